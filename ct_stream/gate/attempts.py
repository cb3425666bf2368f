"""Says what one attempt at a mail server means, and whether its reply is about us."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ct_stream.gate.questions import Trouble
from ct_stream.gate.replies import Meaning, Reading, read_reply
from ct_stream.gate.verdicts import Held, HeldBy

if TYPE_CHECKING:
    from ct_stream.gate.questions import Attempt, MailboxAnswer

TIME_IS_UP = "the time limit for one company (CT_PASS_DEADLINE_S) was reached"

_TROUBLE_SENTENCES = {
    Trouble.NO_ADDRESS: "the MX host's name has no address",
    Trouble.NAME_LOOKUP: "the MX host's address could not be looked up",
    Trouble.UNROUTABLE: "the MX host's address is not publicly routable",
    Trouble.REFUSED: "connection refused",
    Trouble.UNREACHABLE: "network unreachable",
    Trouble.TIMEOUT: "timeout",
    Trouble.CLOSED: "the server closed the connection",
    Trouble.GARBLED: "the server does not speak SMTP",
    Trouble.TLS: "TLS failed",
    Trouble.DEADLINE: f"timeout: {TIME_IS_UP}",
}


def read_attempt(attempt: Attempt) -> Reading:
    """Return what one attempt means; without a reply it is inconclusive, and its trouble is the cause."""
    if attempt.reply is None:
        assert attempt.trouble is not None
        return Reading(
            meaning=Meaning.INCONCLUSIVE,
            rule=f"trouble-{attempt.trouble}",
            cause=_TROUBLE_SENTENCES[attempt.trouble],
        )
    return read_reply(attempt.stage, attempt.reply)


def refusals(answer: MailboxAnswer) -> list[Held]:
    """Return the holds that replies about us put on the pass, in the order of the hosts."""
    return [held for held in map(_held, answer.attempts) if held is not None]


def _held(attempt: Attempt) -> Held | None:
    """Return the hold that a reply about us puts on the pass."""
    reading = read_attempt(attempt)
    if reading.meaning is Meaning.ABOUT_US:
        by = HeldBy.REFUSED
    elif reading.meaning is Meaning.OUR_RATE:
        by = HeldBy.RATE
    else:
        return None
    assert attempt.reply is not None
    reason = f"{attempt.host} at {attempt.stage}: {attempt.reply.code} {attempt.reply.enhanced} {attempt.reply.text}"
    return Held(by=by, host=attempt.host, reason=reason[:300], ip=attempt.ip, is_sender=reading.is_sender)
