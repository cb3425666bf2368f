"""What does the stream need from the store and the probes? Both are handed in by `wiring`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from ct_stream.gate.output_stage import Origin, Outcome
    from ct_stream.gate.records import FailedAt, Known, Parked, Publication, Resumed
    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.verdicts import Failed, Passed
    from ct_stream.gate.waits import Wait


class LedgerPort(Protocol):
    """The arbiter of outcomes. Calls come back when the database has answered, however long it is away."""

    async def look_up(self, outreach_id: UUID, /) -> Known:
        """Return all that is known of a company."""

    async def record(self, outcome: Outcome, /) -> bool:
        """Record an outcome; True when it is the company's first."""

    async def claim(self, outreach_id: UUID, /) -> Publication | None:
        """Take the claim to publish a recorded outcome, where nobody holds it."""

    async def claim_unpublished(self, limit: int, /) -> list[Publication]:
        """Claim what a crash left unpublished."""

    async def stamp(self, outreach_id: UUID, /) -> None:
        """Note that the broker has the outcome."""

    def is_usable(self) -> bool:
        """Tell if the database answers now."""

    async def wait_usable(self) -> None:
        """Come back when it does."""

    def now(self) -> datetime:
        """Return the database's time."""

    def epoch(self) -> str:
        """Return the ledger's epoch."""


class InputPort(Protocol):
    """Whether unreadable records are single ones, or all that upstream sends now."""

    def saw(self, at: datetime | None, /, *, readable: bool) -> None:
        """Count one record, with its timestamp."""

    async def trouble(self) -> str | None:
        """Return why an unreadable record must not be let go of now, or None."""


class PassesPort(Protocol):
    """The undecided companies."""

    async def park(self, parked: Parked, /) -> None:
        """Record a wait."""

    async def claim_due(self, limit: int, /) -> list[Resumed]:
        """Lease companies whose wait is over."""

    async def give_back(self, ids: Sequence[UUID], /) -> None:
        """End leases without a change."""

    async def forget(self, outreach_id: UUID, /) -> None:
        """Remove the undecided pass of a company that has an outcome."""

    async def count_exception(
        self, origin: Origin, event_at: datetime | None, detail: str, traceback: str, /
    ) -> tuple[int, str]:
        """Count our bug against a company; return (exceptions so far, state)."""


class RunningPass(Protocol):
    """One company's way through the gate."""

    async def run(self) -> Passed | Failed | Wait:
        """Go on until there is a verdict, or a wait."""

    def leave(self) -> None:
        """Let go of its domain, once what it came to is on record."""

    @property
    def exchanges(self) -> Sequence[Exchange]:
        """Return the answers so far."""

    @property
    def pending(self) -> Exchange | None:
        """Return an answer about us whose scope is not settled."""

    @property
    def domain(self) -> str | None:
        """Return the canonical domain, once it is known."""

    @property
    def spent_s(self) -> float:
        """Return how much of the pass deadline is used up."""

    @property
    def asked_at(self) -> datetime | None:
        """Return when its first question was put, by the database's clock, or None when that is on record."""

    @property
    def looks(self) -> int:
        """Return how often nobody answered, and a control then proved our own way."""

    @property
    def failed(self) -> FailedAt:
        """Return when its last failed answer came."""


class Gate(Protocol):
    """Makes passes."""

    rules_version: str

    async def begin(
        self, origin: Origin, event_at: datetime | None, known: Known, resumed: Resumed | None
    ) -> RunningPass:
        """Return the pass of a company, with its kept answers where it was put away."""
