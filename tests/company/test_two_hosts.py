"""A company with two hosts, each of which may do anything: what one of them says about us is never its end."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from ct_stream.gate.questions import Attempt, MailboxAnswer, Trouble
from ct_stream.gate.replies import Reply, Stage
from ct_stream.gate.verdicts import Failed, Passed
from tests.company.test_coming_back import SAYS_NO, TOO_FAST, Company

if TYPE_CHECKING:
    from ct_stream.gate.waits import Wait
    from ct_stream.probes.stopwatch import Stopwatch

DOES: dict[str, tuple[Stage, Reply | None, Trouble | None]] = {
    "silent": (Stage.CONNECT, None, Trouble.TIMEOUT),
    "has no name": (Stage.CONNECT, None, Trouble.NAME_LOOKUP),
    "hangs up": (Stage.RCPT, None, Trouble.CLOSED),
    "refuses us": (Stage.BANNER, SAYS_NO, None),
    "finds us too fast": (Stage.BANNER, TOO_FAST, None),
    "refuses us at RCPT": (Stage.RCPT, SAYS_NO, None),
    "finds us too fast at RCPT": (Stage.RCPT, TOO_FAST, None),
    "is busy": (Stage.BANNER, Reply(code=450, text="try later"), None),
    "greylists": (Stage.RCPT, Reply(code=450, enhanced="4.2.0", text="Greylisted"), None),
    "knows nobody": (Stage.RCPT, Reply(code=550, enhanced="5.1.1", text="User unknown"), None),
}
MOST_ROUNDS = 24


class TwoHosts(Company):
    """A company whose hosts do always the same."""

    def __init__(self, hosts: tuple[str, str], does: tuple[str, str]) -> None:
        super().__init__(hosts, MailboxAnswer(attempts=()))
        self.does = dict(zip(hosts, does, strict=True))
        self.row["exchanges"] = self.row["exchanges"][:2]
        self.row |= {"waits_on": "", "reason": "rate_limit", "failed_at": None, "asked_at": None, "spent_s": 0.0}

    async def _ask(self, watch: Stopwatch, _address: object, hosts: tuple[str, ...]) -> MailboxAnswer | Wait:
        self.asked += 1
        watch.spent_s += 0.1
        attempts: list[Attempt] = []
        for host in hosts:
            what = self.does[host]
            stage, reply, trouble = DOES[what]
            ip = "" if what == "has no name" else "192.0.2.1"
            attempts.append(Attempt(host=host, ip=ip, stage=stage, reply=reply, trouble=trouble))
            if stage is Stage.RCPT:
                break
        return MailboxAnswer(attempts=tuple(attempts))


def is_about_us(owner: str, what: str) -> bool:
    """Return whether it is a reply about us that is not one company's own policy."""
    return "too fast" in what or (owner == "shared" and "refuses us" in what)


async def test_a_reply_about_us_never_fails_a_company() -> None:
    """All 400 pairs, each brought back until it is decided, with proofs of our own way in between."""
    wrong = []
    for owners, does in product(product(("own", "shared"), repeat=2), product(DOES, repeat=2)):
        names = {"own": "mx{}.acme.example", "shared": "mx{0}.big{0}.example"}
        hosts = (names[owners[0]].format(1), names[owners[1]].format(2))
        company = TwoHosts(hosts, (does[0], does[1]))
        result: object = None
        for _ in range(MOST_ROUNDS):
            result = await company.come_back()
            if isinstance(result, Passed | Failed):
                break
        met = 1 if DOES[does[0]][0] is Stage.RCPT else 2  # the second host is not asked where the first one answers
        about_us = any(is_about_us(*pair) for pair in list(zip(owners, does, strict=True))[:met])
        if about_us is isinstance(result, Passed | Failed):
            wrong.append((owners, does, result))
    assert not wrong, wrong[:5]
