"""Tells the watchdog what it needs to know about its worker."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError

from ct_stream.problems import said_by
from ct_stream.store.outage import OUTAGE

if TYPE_CHECKING:
    from ct_stream.company.checks import InputCheck
    from ct_stream.company.waiting import Scheduler
    from ct_stream.metrics import Health
    from ct_stream.process.watchdog import Thresholds
    from ct_stream.store.database import Database
    from ct_stream.stream.agents import GateAgent
    from ct_stream.stream.app import GateApp
    from ct_stream.stream.delivery import Delivery
    from ct_stream.stream.membership import Membership
    from ct_stream.stream.position import OutsideView

_POSTGRES_S = 20.0  #: to answer, before the watchdog ends the process
#: Troubles that excuse a lack of progress: they are outages, or known and reported already.
_EXCUSES = ("postgres", "kafka", "kafka_group", "ledger")


class WorkerSenses:
    """The watchdog's `Senses` (process/watchdog.py) of one worker."""

    def __init__(
        self,
        *,
        app: GateApp,
        agent: GateAgent,
        membership: Membership,
        scheduler: Scheduler,
        input_check: InputCheck,
        delivery: Delivery,
        view: OutsideView,
        database: Database,
        health: Health,
        thresholds: Thresholds,
    ) -> None:
        self._app = app
        self._agent = agent
        self._membership = membership
        self._scheduler = scheduler
        self._input_check = input_check
        self._delivery = delivery
        self._view = view
        self._database = database
        self._health = health
        self._thresholds = thresholds

    def heads(self) -> dict[str, float]:
        """Return the oldest events in hand, and the oldest resumed company."""
        return self._agent.heads() | self._scheduler.heads()

    def done(self) -> dict[int, int]:
        """Return for each partition the offset behind the last acked event."""
        return self._agent.done()

    async def committed(self) -> dict[int, int]:
        """Return the group's committed offsets. Raises KafkaError (a RuntimeError), OSError or TimeoutError."""
        return await self._view.committed()

    async def undelivered(self) -> dict[str, int]:
        """Return the record that waits in each partition that does not advance, and report it. Raises like `committed`.

        While the table's changelog is being read nothing is delivered, however long that takes. Then return how much of
        it is left. Out of the group nothing waits for us, and a recovery that was given up stays unfinished.
        """
        tables: Any = self._app.tables
        recovery = tables.recovery
        self._health.notes.pop("recovery", None)
        if recovery.in_recovery and not self._membership.is_left:
            left = recovery.active_remaining_total()
            self._health.notes["recovery"] = f"reading the dedupe table's changelog: {left} records are left"
            return {self._view.names.changelog: left}
        undelivered = await self._delivery.undelivered()
        found = {f"{tp.topic}[{tp.partition}]": offset for tp, offset in undelivered.items()}
        waiting = ", ".join(f"{partition} offset {offset}" for partition, offset in found.items())
        self._health.set("delivery", f"Kafka has {waiting} and does not deliver it to this worker" if found else None)
        return found

    def unassigned_since(self) -> float | None:
        """Return since when the group has assigned us no partitions (monotonic)."""
        return self._agent.unassigned_since

    def excused(self) -> float:
        """Return until when a known trouble, a drain or a halted input lasted (monotonic), -inf if there was none."""
        if self._input_check.is_halted:
            return time.monotonic()
        if (self._agent.is_draining or self._agent.unassigned_since is not None) and not self._is_kept_waiting():
            return time.monotonic()
        return max(self._health.troubled_until(*_EXCUSES), self._database.failed_at)

    async def outage(self) -> str | None:
        """Ask Postgres and Kafka; return which of them does not answer and why, or None if both answer."""
        try:
            async with asyncio.timeout(_POSTGRES_S):
                await self._database.fetch("server")
        except OUTAGE as error:
            return f"Postgres does not answer: {said_by(error)}"
        try:
            await self.committed()
        except (KafkaError, OSError, TimeoutError) as error:
            return str(await self._view.explain(error))
        return None

    def _is_kept_waiting(self) -> bool:
        """Return whether the group keeps us waiting for longer than a rebalance takes, so that it counts as a hang."""
        since = self._agent.unassigned_since
        return since is not None and time.monotonic() - since > self._thresholds.drain_s
