"""The protocols for what a pass needs in order to ask the world within its limits.

For workers they are implemented over Postgres, for a pass that runs alone (`ct-stream check`) by `solo`. The driver in
`answer` knows nothing else.
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

    SILENT = 0  #: tried to the end without a word
    REPLIED = 1  #: some reply, but no normal greeting
    GREETED = 2


class ProbeLease(Protocol):
    """The right to probe one domain, held from the first session of a pass to its last."""

    async def enter(self, provider: str) -> Wait | None:
        """Exchange the held place for one at the provider of the next host, or return the wait for it."""

    async def next_session(self) -> Wait | None:
        """Take one SMTPCheck unit and return when the domain's next slot is free, at most a few seconds later.

        The first call of a lease returns at once, since `begin_probe` has taken its unit and its slot.
        """

    def session_ended(self) -> None:
        """Start the domain's pause: the next session may begin 2 s after this call."""

    def greeted(self, begun_at: float, ip: str) -> None:
        """Report that a server at this address greeted a session that began at this moment of the monotonic clock."""

    async def release(self, *, met: Mapping[str, Met], greeted_at: Mapping[str, str], refused: Sequence[Held]) -> None:
        """Give the domain and the provider's place back; say what each provider did, and which replies were about us.

        A provider that is missing from `met` was not tried to the end, so its silence says nothing. `greeted_at` has
        the address at which each provider last greeted us.
        """


class Permits(Protocol):
    """The limits of the toolbox, over all workers."""

    def lacks(self, kind: ControlKind) -> Wait | None:
        """Return the wait for a machine that has this way, if this one is not known to; None: it may be used."""

    def cut_off(self, detail: str) -> Wait:
        """Report that a resolver's answer did not fit into UDP and TCP brought nothing; return the wait for it."""

    async def mx_lookup(self) -> Wait | None:
        """Take one MXLookup unit of the day and of the second; None if the look-up may start now."""

    def provider_at(self, host: str, ip: str, domain: str) -> str:
        """Return the provider that a host at this address counts as, the same one for the whole pass."""

    async def begin_probe(self, domain: str, provider: str) -> ProbeLease | Wait:
        """Take the domain's slot, a place at the provider and one SMTPCheck unit, or none of them."""


class Spine(Protocol):
    """The spine's row. That it is missing counts only after the grace and the spine check."""

    async def lookup(self, outreach_id: UUID) -> SpineAnswer | Wait:
        """Return the row, or that it is missing for good, or the wait until one of the two is known."""


class Controls(Protocol):
    """Proof that our own resolvers and our way out work."""

    async def confirm(self, kind: ControlKind, exchanges: Sequence[Exchange]) -> ControlAnswer | Wait:
        """Return the success of a control that began after the last failed one of these answers, or a wait for it."""

    async def astray(self, exchanges: Sequence[Exchange]) -> Wait | None:
        """Return the wait of a pass that heard one of these answers after its way was lost; None: they hold so far."""


class Recall(Protocol):
    """What the domain answered to another company, and whether one is asking it now."""

    async def recall(self, domain: str) -> Memory | Wait:
        """Return what is remembered, or the wait for the company that is asking this domain now."""


class Refusals(Protocol):
    """Judges replies about us: one company's policy, a provider that closes, or a halt of the whole tool."""

    async def judge(self, held: Held, domain: str, provider: str) -> Wait | None:
        """Return the wait that the reply causes for the pass; None if it is this one company's private policy."""

    async def note(self, held: Held, domain: str, provider: str) -> None:
        """Count a reply about us that causes no wait for its own company, but may matter to others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnedOff:
    """Tier-2 was turned off after the pass began, so the pass is decided without it."""

    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Brought:
    """The result of a paid attempt, and how long the vendor took."""

    result: VerifyAnswer | Wait | TurnedOff
    waited_s: float = 0.0


class Tier2(Protocol):
    """The paid vendor."""

    def off_because(self) -> str | None:
        """Return why Tier-2 is not asked, or None when it is on."""

    async def verify(self, outreach_id: UUID, address: Address) -> Brought:
        """Spend the company's one attempt, or return its stored result."""


class MailboxAsker(Protocol):
    """What asks mail servers for a pass; it keeps at most one session open."""

    @property
    def heard(self) -> Sequence[Attempt]:
        """Return what the hosts did for the current or last question, even if a wait cut it off."""

    async def ask(self, address: Address, hosts: tuple[str, ...]) -> MailboxAnswer | Wait:
        """Ask the first host that can be talked to RCPT TO for `address`."""

    def close(self, *, refused: Sequence[Held] = ()) -> Coroutine[Any, Any, None]:
        """Say QUIT if a session is open, and give the lease back, with the replies that were about us."""
