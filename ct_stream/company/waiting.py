"""Resumes the companies that wait: a scheduler in every worker, which shares them by leases in Postgres."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ct_stream.company.companies import Companies
    from ct_stream.company.own_way import OwnWay
    from ct_stream.store.database import Database
    from ct_stream.store.parked import ParkedCompanies

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.25
_MOST_AT_ONCE = 200


class Scheduler:
    """Resumes undecided companies, only so many at a time that new events have room too."""

    name = "waiting"

    def __init__(
        self,
        *,
        companies: Companies,
        parked: ParkedCompanies,
        database: Database,
        own_way: OwnWay,
        most_running: int,
    ) -> None:
        self._companies = companies
        self._own_way = own_way
        self._parked = parked
        self._database = database
        self._most_running = most_running
        self._tasks: dict[asyncio.Task[None], float] = {}
        self._stopping = False

    @property
    def running(self) -> int:
        """Return how many resumed companies are in hand now."""
        return len(self._tasks)

    def heads(self) -> dict[str, float]:
        """Return the resumed company that has been in hand longest, and since when (monotonic)."""
        if not self._tasks:
            return {}
        oldest = min(self._tasks, key=self._tasks.__getitem__)
        return {f"company {oldest.get_name().removeprefix('waiting:')}": self._tasks[oldest]}

    async def run(self) -> None:
        """Resume companies that are due, until told to stop."""
        while not self._stopping:
            if await self.resume_due() == 0:
                await asyncio.sleep(_LOOK_EVERY_S)

    async def resume_due(self) -> int:
        """Lease companies whose wait is over, as many as there is room for; return how many were."""
        room = self._most_running - len(self._tasks)
        if room <= 0 or not self._database.is_up:
            return 0
        try:
            due = await self._parked.claim_due(
                min(room, _MOST_AT_ONCE),
                may_ask=self._own_way.trouble is None,
                take_over=self._own_way.take_over,
                others_ask=bool(self._own_way.others),
            )
        except Exception as error:  # it costs one look, not the worker
            log.warning("Companies that wait could not be claimed: %s", error, extra={"action": "upkeep_failed"})
            return 0
        if self._stopping:
            return 0  # told to stop meanwhile, so nobody would drain them; their leases end with this worker
        for resumed in due:
            task = asyncio.create_task(
                self._companies.from_waiting(resumed), name=f"waiting:{resumed.origin.outreach_id}"
            )
            self._tasks[task] = time.monotonic()
            task.add_done_callback(self._tasks.pop)
        return len(due)

    async def drain(self, within_s: float) -> None:
        """Take no more, give the running ones this long, then store their answers and give them up."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
