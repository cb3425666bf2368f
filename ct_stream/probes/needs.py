"""What does a pass need from the rest of the program, to ask the world within its limits?

Protocols only: the store implements them over Postgres for workers, `solo` for a pass that runs alone, as in
`ct-stream check`. The driver in `answer` knows nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence
    from uuid import UUID

    from ct_stream.gate.memory import Memory
    from ct_stream.gate.patterns import Address
    from ct_stream.gate.questions import Attempt, ControlAnswer, ControlKind, MailboxAnswer, SpineAnswer, VerifyAnswer
    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.verdicts import Held
    from ct_stream.gate.waits import Wait


class Met(IntEnum):
    """How far a pass came with the servers of one provider: the best of what they did."""

    SILENT = 0  #: tried to the end, and not a word
    REPLIED = 1  #: some reply, but no normal greeting
    GREETED = 2


class ProbeLease(Protocol):
    """The right to probe one domain, held from the first session of a pass to its last."""

    async def enter(self, provider: str) -> Wait | None:
        """Take a place at the provider of the next host, for the one that was held, or come back with the wait."""

    async def next_session(self) -> Wait | None:
        """Take one SMTPCheck unit and come back when the domain's next slot is there, at most a few seconds later.

        The first call of a lease returns at once: `begin_probe` took its unit and its slot.
        """

    def session_ended(self) -> None:
        """Start the domain's pause: the next session may begin 2 s after this call."""

    def greeted(self, begun_at: float) -> None:
        """Tell that a server greeted a session begun at this moment of the monotonic clock."""

    async def release(self, *, met: Mapping[str, Met], refused: Sequence[Held]) -> None:
        """Give the domain and the provider's place back; say what each provider did, and what replies were about us.

        A provider that is missing was not asked to the end, so its silence says nothing.
        """


class Permits(Protocol):
    """The limits of the toolbox, over all workers."""

    async def mx_lookup(self) -> Wait | None:
        """Take one MXLookup unit of the day and of the second; None when the look-up may go now."""

    async def begin_probe(self, domain: str, provider: str) -> ProbeLease | Wait:
        """Take the domain's slot, a place at the provider and one SMTPCheck unit, or none of them."""


class Spine(Protocol):
    """The spine's row, with the grace and the control that a lasting absence needs."""

    async def lookup(self, outreach_id: UUID) -> SpineAnswer | Wait:
        """Return the row, or its lasting absence, or why that cannot be told yet."""


class Controls(Protocol):
    """Proof that our own resolvers and our way out work."""

    async def confirm(self, kind: ControlKind, exchanges: Sequence[Exchange]) -> ControlAnswer | Wait:
        """Return a control's success that was begun after the last failed of a pass's answers, or a wait for one."""


class Recall(Protocol):
    """What the domain answered to another company, and whether one is asking it now."""

    async def recall(self, domain: str) -> Memory | Wait:
        """Return what is remembered, or the wait for the company that is asking this domain now."""


class Refusals(Protocol):
    """Where replies about us are judged: this company's policy, a closed provider, or all of us halted."""

    async def judge(self, held: Held, domain: str, provider: str) -> Wait | None:
        """Return the wait that the reply puts on the pass; None when it is this one company's private policy."""

    async def note(self, held: Held, domain: str, provider: str) -> None:
        """Count a reply about us that puts no wait on its own company: for all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedOff:
    """Tier-2 went off since the pass began: it is decided as without it."""

    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """What a paid attempt came to, and for how long the vendor was waited for."""

    result: VerifyAnswer | Wait | TurnedOff
    waited_s: float = 0.0


class Tier2(Protocol):
    """The paid vendor."""

    def off_because(self) -> str | None:
        """Return why Tier-2 is not asked, or None when it is on."""

    async def verify(self, outreach_id: UUID, address: Address) -> Brought:
        """Spend the company's one attempt, or return what it brought."""


class MailboxAsker(Protocol):
    """A pass's way to mail servers: keeps at most one session open."""

    @property
    def heard(self) -> Sequence[Attempt]:
        """Return what the hosts did for the question that is asked, or was asked last: also where a wait cut it off."""

    async def ask(self, address: Address, hosts: tuple[str, ...]) -> MailboxAnswer | Wait:
        """Ask RCPT TO for `address` of the first host that can be talked to."""

    def close(self, *, refused: Sequence[Held] = ()) -> Coroutine[Any, Any, None]:
        """Say QUIT where a session is open, and give the lease back, with the replies that were about us."""
