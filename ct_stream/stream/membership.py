"""Lets this worker leave the consumer group, and come back later, in the same process (ADR-CT-IMO-035).

To Faust it is one long rebalance: partitions are revoked, and some time later others are assigned. To Kafka it is the
end of one member and the beginning of another: the aiokafka consumer that leaves is closed, as at the end of a process,
and one that has joined nothing yet takes its place.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

from ct_stream.stream.app import give_up_recovery

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from ct_stream.metrics import Health
    from ct_stream.stream.agents import GateAgent
    from ct_stream.stream.app import GateApp

log = logging.getLogger(__name__)

_CONNECT_S = 20.0


class Membership:
    """This worker's place in the consumer group."""

    def __init__(self, app: GateApp, agent: GateAgent, health: Health) -> None:
        self._app = app
        self._agent = agent
        self._health = health
        self._topics: frozenset[str] = frozenset()  # while we are out of the group: what we read in it
        self._changing: asyncio.Task[None] | None = None
        self._is_over = False

    @property
    def is_left(self) -> bool:
        """Return whether this worker is out of the group, and will stay so until `rejoin`."""
        return bool(self._topics)

    async def leave(self) -> None:
        """Drain, commit and leave the group, so that the other workers read our partitions within seconds.

        Does nothing if we are out of it, have not joined it yet, or stop. A rebalance that has begun ends before.
        Raises KafkaError, OSError or TimeoutError when Kafka cannot be reached: then nothing has changed. A later
        failure crashes Faust, which ends the worker. A caller that is cancelled does not stop it.
        """
        await self._one_at_a_time(self._leave)

    async def rejoin(self) -> None:
        """Join the group again; it assigns us partitions soon after. Does nothing if we are in it, or stop."""
        await self._one_at_a_time(self._rejoin)

    async def stop(self) -> None:
        """Finish what is under way, and change nothing any more: Faust leaves the group itself, if we are in it."""
        self._is_over = True
        if self._changing is not None:
            await asyncio.wait({self._changing})

    async def _one_at_a_time(self, change: Any) -> None:
        while self._changing is not None:
            await asyncio.wait({self._changing})
        if self._is_over:
            return
        self._changing = asyncio.create_task(self._change(change()), name="membership")
        await asyncio.shield(self._changing)

    async def _change(self, change: Coroutine[Any, Any, None]) -> None:
        try:
            await change
        finally:
            self._changing = None

    async def _leave(self) -> None:
        app: Any = self._app
        consumer = app.consumer
        topics = consumer._thread.topics_read()
        if self.is_left or not topics or app.should_stop:
            return
        async with asyncio.timeout(_CONNECT_S):
            spare = await consumer._thread.run_here(consumer._thread.new_spare())
        began = time.monotonic()
        log.info("Leaving the group: events in hand get their time first", extra={"action": "leaving"})
        try:
            await self._hand_over(consumer, spare)
        except Exception as error:
            await app.crash(error)
            raise
        self._topics = topics
        self._agent.left()
        took_s = time.monotonic() - began
        log.info("Left the group after %.1f s: the others read what we read", took_s, extra={"action": "left"})
        self._health.notes["partitions"] = "this worker has left the group; the other workers read its partitions"

    async def _hand_over(self, consumer: Any, spare: Any) -> None:
        """Do what Faust does at a rebalance, leave, and let Faust forget the partitions.

        Faust's consumer is told of the revocation only afterwards: it first forgets what is acked and not yet
        committed, and then drains.
        """
        app: Any = self._app
        self._agent.leave()
        ours = consumer.assignment()
        app.on_rebalance_start()
        await app._on_partitions_revoked(ours)
        await consumer._thread.run_here(consumer._thread.leave_group())
        await consumer.on_partitions_revoked(ours | consumer.assignment())  # a rebalance may have ended meanwhile
        await give_up_recovery(self._app)
        await consumer._thread.run_here(consumer._thread.take(spare))

    async def _rejoin(self) -> None:
        if not self.is_left:
            return
        consumer: Any = self._app.consumer
        log.info("Joining the group again", extra={"action": "rejoining"})
        self._health.notes["partitions"] = "this worker joins the group again"
        self._agent.join()
        await consumer._thread.run_here(consumer._thread.look_alive())
        await consumer.subscribe(self._topics)
        self._topics = frozenset()
