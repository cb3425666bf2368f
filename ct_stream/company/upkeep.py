"""The background loops that renew leases, wake companies that were left waiting, and tidy up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ct_stream.process.loops import Loop

if TYPE_CHECKING:
    from ct_stream.company.companies import Companies
    from ct_stream.store.database import Database
    from ct_stream.store.domain_memory import DomainMemory
    from ct_stream.store.limits import SharedLimits
    from ct_stream.store.parked import ParkedCompanies

_RENEW_EVERY_S = 5.0  #: a quarter of a lease
_WAKE_EVERY_S = 5.0
_TIDY_EVERY_S = 600.0


class Upkeep:
    """The steps of three loops. None of them does anything while Postgres is away."""

    def __init__(
        self,
        database: Database,
        companies: Companies,
        parked: ParkedCompanies,
        limits: SharedLimits,
        memory: DomainMemory,
    ) -> None:
        self._database = database
        self._companies = companies
        self._parked = parked
        self._limits = limits
        self._memory = memory

    def loops(self) -> tuple[Loop, ...]:
        """Return one loop for each step. An error costs one round."""
        steps = (
            ("renew_leases", self.renew_leases, _RENEW_EVERY_S),
            ("wake_sleepers", self.wake_sleepers, _WAKE_EVERY_S),
            ("tidy", self.tidy, _TIDY_EVERY_S),
        )
        return tuple(
            Loop(name=name, step=step, every_s=every_s, rests_first=True, may_fail=True)
            for name, step, every_s in steps
        )

    async def renew_leases(self) -> None:
        """Renew the leases of the companies and domains that this worker has in hand."""
        if self._database.is_up:
            await self._parked.renew_leases(self._companies.in_hand, self._limits.held)

    async def wake_sleepers(self) -> None:
        """Wake companies that a crash or a race left waiting, and who waits for midnight though units are left."""
        if self._database.is_up:
            await self._parked.wake_sleepers(self._limits.limits.smtp_per_provider)
            await self._limits.wake_capped()

    async def tidy(self) -> None:
        """Remove what nothing needs any more."""
        if self._database.is_up:
            await self._memory.tidy()
