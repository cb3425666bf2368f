"""Runs the Faust app that reads `spine.created`, from the first assignment to the last commit."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from aiokafka.errors import (
    BrokerNotAvailableError,
    CommitFailedError,
    IllegalGenerationError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    KafkaUnavailableError,
    RebalanceInProgressError,
    ReplicaNotAvailableError,
    UnknownMemberIdError,
)

from ct_stream.cancelling import end_all
from ct_stream.stream.delivery import Delivery
from ct_stream.stream.offset_guard import OffsetGuard

if TYPE_CHECKING:
    from collections.abc import Callable

    from ct_stream.metrics import Health
    from ct_stream.stream.agents import GateAgent
    from ct_stream.stream.app import GateApp
    from ct_stream.stream.membership import Membership
    from ct_stream.stream.position import OutsideView

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
#: aiokafka does not call these retriable: the same request would fail again. A new worker starts afresh.
_WELL_THE_NEXT_TIME = (
    BrokerNotAvailableError, CommitFailedError, IllegalGenerationError, KafkaConnectionError, KafkaTimeoutError,
    KafkaUnavailableError, RebalanceInProgressError, ReplicaNotAvailableError, UnknownMemberIdError,
)  # fmt: skip


def is_outage(error: BaseException) -> bool:
    """Return whether Kafka cannot be reached, or may be well the next time. A record that cannot be read stays so."""
    return isinstance(error, (TimeoutError, ConnectionError, *_WELL_THE_NEXT_TIME)) or (
        isinstance(error, KafkaError) and bool(error.retriable)
    )


def guarded(app: GateApp, view: OutsideView) -> OffsetGuard:
    """Return the guard of the app's offsets. To be called before the app starts."""
    guard = OffsetGuard(
        app,
        frozenset({view.names.spine_created}),
        names=view.names,
        next_offsets=view.next_offsets,
        committed=view.committed,
        end_of=view.end_of,
    )
    guard.connect()
    return guard


class Reading:
    """Runs the Faust app with the gate's agent."""

    def __init__(
        self,
        app: GateApp,
        agent: GateAgent,
        guard: OffsetGuard,
        view: OutsideView,
        health: Health,
        on_fatal: Callable[[str], None],
        *,
        membership: Membership,
        partitions: int,
        on_more_partitions: Callable[[int], None],
        on_kafka_gone: Callable[[str], None],
    ) -> None:
        """`partitions`: of spine.created, and so of the dedupe table; the last two end the worker."""
        self._partitions = partitions
        self._on_more_partitions = on_more_partitions
        self._app = app
        self._agent = agent
        self._guard = guard
        self._names = view.names
        self._health = health
        self._on_fatal = on_fatal
        self._on_kafka_gone = on_kafka_gone
        self._membership = membership
        self._explain = view.explain
        self._running: asyncio.Task[None] | None = None
        self._stopping = False
        #: Finds records that wait for us in Kafka and are not delivered.
        self.delivery = Delivery(positions=guard.positions, busy_at=self._busy_at, first_records=view.first_records)
        app.drain = agent.drain
        app.on_partitions_assigned.connect(self._assigned, weak=False)  # type: ignore[arg-type]
        app.agent(app.topic(self._names.spine_created, key_serializer="raw", value_serializer="raw"), name="gate")(
            agent.consume
        )

    def start(self) -> None:
        """Join the group, and read until stopped."""
        self._running = asyncio.create_task(self._run(), name="faust")

    async def stop(self) -> None:
        """Drain, commit and leave the group. Does nothing if it was never started."""
        self._stopping = True
        if self._running is None:
            return
        await self._membership.stop()
        await self._app.stop()
        await end_all([self._running])

    async def _run(self) -> None:
        self._agent.join()
        try:
            await self._app.start()
        except Exception as error:
            if not self._stopping:
                await self._ended("did not start", error)
            return
        if self._stopping:
            return
        self._health.set("start", None)
        log.info(
            "Ready: reading %s as group %s", self._names.spine_created, self._names.group, extra={"action": "ready"}
        )
        while not self._stopping:  # what breaks while Faust stops is no crash
            if self._app.crashed:
                await self._ended("crashed", self._app.crash_reason)
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _ended(self, how: str, error: BaseException | None) -> None:
        """End the worker: Faust cannot be started twice. A new process can wait for Kafka, as this one did at first."""
        if error is not None and is_outage(error):
            self._on_kafka_gone(f"Kafka went away: {await self._explain(error)}")
            return
        log.error("Faust %s: %s", how, error, exc_info=error)
        self._on_fatal(f"Faust {how}: {error!r}")

    async def _assigned(self, _app: Any, partitions: set[Any], **_: Any) -> None:
        ours = [tp.partition for tp in partitions if tp.topic == self._names.spine_created]
        if max(ours, default=-1) >= self._partitions:  # upstream has added some, and the table has no place for them
            self._agent.stop_pulling()
            self._on_more_partitions(max(ours) + 1)
        self._agent.assigned()
        count = len(ours)
        log.info("Assigned %d partitions of %s", count, self._names.spine_created, extra={"action": "assigned"})
        self._health.notes["partitions"] = f"{count} partitions of {self._names.spine_created} are assigned"

    def _busy_at(self) -> float:
        return time.monotonic() if self._guard.is_looking else self._agent.busy_at
