"""Answers as a list, for tests of the pure gate: no loop, no fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from ct_stream.gate.middle_stage import middle_stage
from ct_stream.gate.patterns import PATTERNS, ProbeName
from ct_stream.gate.questions import (
    Answer,
    Attempt,
    ControlAnswer,
    ControlKind,
    MailboxAnswer,
    MxAnswer,
    MxStatus,
    Question,
    Trouble,
)
from ct_stream.gate.replies import Reply, Stage
from ct_stream.gate.rules import Rules
from ct_stream.gate.transcript import Play

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ct_stream.gate.verdicts import Verdict

COMPANY = UUID("3f0c6f0e-6f5e-4f6e-9a53-1f3c2f0f9a10")
RULES = Rules(probe_name=ProbeName(first="jordan", last="whitfield"))
TIER2_OFF = "Tier-2 is off"
DOMAIN = "acme.example"


def mx(*hosts: str) -> MxAnswer:
    return MxAnswer(status=MxStatus.FOUND, hosts=hosts or ("mx1.acme.example",))


def no_mx(status: MxStatus, detail: str = "") -> MxAnswer:
    return MxAnswer(status=status, detail=detail)


def said(
    code: int, enhanced: str = "", text: str = "", *, stage: Stage = Stage.RCPT, host: str = "mx1.acme.example"
) -> MailboxAnswer:
    reply = Reply(code=code, enhanced=enhanced, text=text)
    return MailboxAnswer(attempts=(Attempt(host=host, stage=stage, reply=reply),))


def trouble(kind: Trouble, *, stage: Stage = Stage.CONNECT, host: str = "mx1.acme.example") -> MailboxAnswer:
    return MailboxAnswer(attempts=(Attempt(host=host, stage=stage, trouble=kind),))


YES = said(250, "2.1.5", "Ok")
NO = said(550, "5.1.1", "User unknown")
GREY = said(450, "4.2.0", "Greylisted, try again later")
FULL = said(552, "5.2.2", "Mailbox full")
LISTED = said(554, "5.7.1", "Service unavailable; client host blocked using zen.spamhaus.org")
TOO_FAST = said(421, "4.7.0", "Too many connections from your IP")
DNS_WORKS = ControlAnswer(detail="control.example resolves")
SMTP_WORKS = ControlAnswer(detail="control.example greets")
CONTROLS = {ControlKind.DNS: DNS_WORKS, ControlKind.SMTP: SMTP_WORKS}
ALL_NO: list[Answer] = [NO] * len(PATTERNS)


def play(
    answers: Sequence[Answer], *, rules: Rules = RULES, tier2_off: str | None = TIER2_OFF
) -> tuple[Verdict | None, list[Question]]:
    """Send the answers in order; return the verdict (None: it asks on) and the questions put. Loud on a surplus one."""
    game = Play(middle_stage(COMPANY, DOMAIN, rules, tier2_off=tier2_off))
    asked: list[Question] = []
    for answer in answers:
        assert game.question is not None, f"no question left for {answer}; verdict {game.verdict}"
        asked.append(game.question)
        game.answer(answer)
    if game.question is not None:
        asked.append(game.question)
    return game.verdict, asked
