"""Decides whether another event may be taken now."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ct_stream.company.checks import InputCheck
    from ct_stream.company.own_way import OwnWay
    from ct_stream.company.waiting import Scheduler
    from ct_stream.store.database import Database


class Admission:
    """Answers the agent, which asks before each event.

    No event is taken while the database is away, or while a person must look at the input. While this worker's own way
    is not proven, companies are parked before anything is asked, and other workers take them. Once as many wait for
    that as may be in flight, no more events are taken. Until then companies that need no network (NOT-FOUND, NO-DOMAIN)
    are still decided.
    """

    def __init__(
        self, database: Database, input_check: InputCheck, own_way: OwnWay, scheduler: Scheduler, in_flight: int
    ) -> None:
        self._database = database
        self._input_check = input_check
        self._own_way = own_way
        self._scheduler = scheduler
        self._in_flight = in_flight

    def may_pull(self, running: int) -> bool:
        """Return whether there is room beside so many running events, and nothing is in the way."""
        return (
            running + self._scheduler.running < self._in_flight  # resumed companies count as well
            and self._database.is_up
            and (self._own_way.trouble is None or self._own_way.parked_for_it < self._in_flight)
            and not self._input_check.is_halted
        )
