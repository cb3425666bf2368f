"""The loops that keep a worker's health and gauges up to date. Each step can be called by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from ct_stream.gate.questions import ControlKind
from ct_stream.problems import said_by
from ct_stream.process.loops import Loop
from ct_stream.store.outage import AGAIN, OUTAGE
from ct_stream.store.worker_record import BEAT_S, Beat
from ct_stream.stream.position import LagUnknown, lag
from ct_stream.stream.refusals import explain, refused_by_group
from ct_stream.stream.rights import Denied, is_denied, require_rights
from ct_stream.stream.topology import names_of, partitions_now

if TYPE_CHECKING:
    from collections.abc import Callable

    from ct_stream.company.own_way import OwnWay
    from ct_stream.company.waiting import Scheduler
    from ct_stream.metrics import Health, Metrics
    from ct_stream.process.pulse import Pulse
    from ct_stream.settings import Settings
    from ct_stream.store.database import Database
    from ct_stream.store.guardrails import Guardrails
    from ct_stream.store.ledger import Ledger
    from ct_stream.store.parked import ParkedCompanies
    from ct_stream.store.worker_record import WorkerRecord
    from ct_stream.stream.agents import GateAgent
    from ct_stream.stream.offset_guard import OffsetGuard

log = logging.getLogger(__name__)

_MACHINE_EVERY_S = 0.5
_GAUGES_EVERY_S = 5.0
_REST_PER_COUNT = 20  #: a count may take a twentieth of the time
_LAG_EVERY_S = 15.0
_PARTITIONS_EVERY_S = 15.0
_LAG_TIMEOUT_S = 25.0
_OF_ALL_WORKERS = frozenset({"waiting", "stuck", "lag"})  #: notes that say nothing of this one


class MachineWatch:
    """Reports the trouble of the database and of this machine, whether or not anyone waits for them."""

    def __init__(self, database: Database, pulse: Pulse, health: Health) -> None:
        self._database = database
        self._pulse = pulse
        self._health = health

    def loop(self) -> Loop:
        """Return the loop of this watch."""
        return Loop(name="machine", step=self.look, every_s=_MACHINE_EVERY_S)

    async def look(self) -> None:
        """Set the trouble of Postgres, and the note about pauses of this process."""
        self._health.set("postgres", self._database.trouble)
        stalls = self._pulse.stalls_lately
        if stalls:
            self._health.notes["machine"] = (
                f"this process was paused (stopped or short of CPU) {stalls} times in the last five minutes; "
                "questions that got no answer meanwhile are asked again"
            )
        else:
            self._health.notes.pop("machine", None)


class Gauges:
    """Counts what is in hand, what waits and what is halted, and says which of our own ways are proven."""

    def __init__(
        self,
        *,
        agent: GateAgent,
        scheduler: Scheduler,
        parked: ParkedCompanies,
        ledger: Ledger,
        guardrails: Guardrails,
        own_way: OwnWay,
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._agent = agent
        self._scheduler = scheduler
        self._parked = parked
        self._ledger = ledger
        self._guardrails = guardrails
        self._own_way = own_way
        self._metrics = metrics
        self._health = health
        self._known: set[tuple[str, str]] = set()
        self._count_at = -inf  #: when the undecided companies are counted next (monotonic)

    def loop(self) -> Loop:
        """Return the loop of this watch."""
        return Loop(name="gauges", step=self.look, every_s=_GAUGES_EVERY_S)

    async def look(self) -> None:
        """Set all gauges."""
        metrics = self._metrics
        metrics.running.set(self._agent.running + self._scheduler.running)
        metrics.unacked.set(len(self._agent.gates))
        metrics.oldest_unacked.set(self._agent.gates.oldest_age_s())
        for kind in ControlKind:
            metrics.way_proven.labels(kind=kind.value).set(self._own_way.lacks(kind) is None)
        metrics.parked_for_own_way.set(self._own_way.parked_for_it)
        await self._count_waiting()
        metrics.unpublished.set(await self._ledger.count_unpublished())
        await self._guardrails.refresh()
        halts = [f"{key} is halted: {why}" for key, why in self._guardrails.halted.items()]
        self._health.set("guardrails", "; ".join(halts) or None)

    async def _count_waiting(self) -> None:
        """Count the undecided companies; of millions less often, and not at all while Postgres is in trouble."""
        begun_at = time.monotonic()
        if begun_at < self._count_at:
            return
        try:
            rows = await self._parked.waiting_by_reason()
        except (*AGAIN, *OUTAGE) as error:
            log.info("The waiting companies were not counted: %s", said_by(error))
            return
        took_s = time.monotonic() - begun_at
        self._count_at = begun_at + _REST_PER_COUNT * took_s
        metrics = self._metrics
        counts = {(state, reason): n for state, reason, n, _ in rows}
        for state, reason in self._known - set(counts):
            metrics.waiting.labels(state=state, reason=reason).set(0)
        for (state, reason), waiting in counts.items():
            metrics.waiting.labels(state=state, reason=reason).set(waiting)
        self._known |= set(counts)
        self._say_waiting(counts)

    def _say_waiting(self, counts: dict[tuple[str, str], int]) -> None:
        for state in ("waiting", "stuck"):
            reasons = [f"{n} {reason}" for (its_state, reason), n in sorted(counts.items()) if its_state == state]
            if reasons:
                self._health.notes[state] = ", ".join(reasons)
            else:
                self._health.notes.pop(state, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _AtWork:
    """What has companies in hand."""

    agent: GateAgent
    scheduler: Scheduler
    guard: OffsetGuard
    own_way: OwnWay


class Heartbeat:
    """Writes down every few seconds what this worker does, for people and for the other workers.

    Also while it still waits for Kafka: people see why, and no worker with other limits gets in meanwhile.
    """

    def __init__(self, record: WorkerRecord, health: Health) -> None:
        self._record = record
        self._health = health
        self._at_work: _AtWork | None = None

    def at_work(self, *, agent: GateAgent, scheduler: Scheduler, guard: OffsetGuard, own_way: OwnWay) -> None:
        """Say from now on what these have in hand, and as whom servers see us."""
        self._at_work = _AtWork(agent=agent, scheduler=scheduler, guard=guard, own_way=own_way)

    def loop(self) -> Loop:
        """Return the loop of this watch."""
        return Loop(name="heartbeat", step=self.look, every_s=BEAT_S, may_fail=True)

    async def look(self) -> None:
        """Write the row."""
        work = self._at_work
        await self._record.beat(
            Beat(
                troubles=dict(self._health.troubles),
                partitions=[] if work is None else sorted(tp.partition for tp in work.guard.positions()),
                running=0 if work is None else work.agent.running + work.scheduler.running,
                notes={part: note for part, note in self._health.notes.items() if part not in _OF_ALL_WORKERS},
                address="" if work is None else work.own_way.address,
            )
        )


class PartitionWatch:
    """Ends the worker when `spine.created` has more partitions, or fewer, than when it started.

    The dedupe table needs a partition for each of them. Faust would read new ones and then crash. There are fewer where
    the topic was deleted and made again, often by a broker that makes whatever topic it is asked about.
    """

    def __init__(self, settings: Settings, partitions: int, refuse: Callable[[str], None]) -> None:
        """`partitions`: of spine.created when this worker started. `refuse` drains it and ends it."""
        self._settings = settings
        self._partitions = partitions
        self._refuse = refuse

    def loop(self) -> Loop:
        """Return the loop of this watch."""
        return Loop(name="partitions", step=self.look, every_s=_PARTITIONS_EVERY_S)

    async def look(self) -> None:
        """Count them. What else may be wrong with Kafka, LagWatch says."""
        with suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(_LAG_TIMEOUT_S):
                now = await partitions_now(self._settings)
            if now is not None and now > self._partitions:
                self.grown(now)
            elif now is not None and now < self._partitions:
                self._shrunk(now)

    def _shrunk(self, now: int) -> None:
        names = names_of(self._settings)
        self._refuse(
            f"{names.spine_created} has {now} partitions, and had {self._partitions} when this worker started: it was "
            f"deleted and made again, and events that nobody had read are gone. Delete it and {names.changelog}, which "
            "is only a cache, run `ct-stream topics`, start the workers again, and publish what is missing "
            "(`ct-stream publish --undecided`)"
        )

    def grown(self, now: int) -> None:
        """End the worker: there are so many now, or at least so many."""
        names = names_of(self._settings)
        self._refuse(
            f"{names.spine_created} has {now} partitions, and had {self._partitions} when this worker started; they "
            f"are read once {names.changelog} has as many: run `ct-stream topics`, then start the workers again"
        )


class LagWatch:
    """Reports how many records of the topic are not committed, and whether Kafka answers at all.

    Otherwise a worker with nothing to publish would not notice that the brokers are gone.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        health: Health,
        *,
        refused: Callable[[], KafkaError | None],
        tells_ends: bool,
    ) -> None:
        """`tells_ends`: False for the embedded broker, whose end offsets are wrong; no number is better than that.

        `refused`: why the group refuses this worker.
        """
        self._refused = refused
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._tells_ends = tells_ends

    def loop(self) -> Loop:
        """Return the loop of this watch."""
        return Loop(name="lag", step=self.look, every_s=_LAG_EVERY_S)

    async def look(self) -> None:
        """Set the lag; -1 if it is not known."""
        if not self._tells_ends:
            self._metrics.lag.set(-1)
            self._health.notes["lag"] = "not known: this broker does not say where a topic ends"
            return
        trouble = None
        try:
            async with asyncio.timeout(_LAG_TIMEOUT_S):
                await require_rights(self._settings)  # without them a topic looks as if it were empty
                self._metrics.lag.set(await lag(self._settings))
        except (Denied, LagUnknown) as error:
            trouble = str(error)
        except (KafkaError, OSError, TimeoutError) as error:
            trouble = f"Kafka cannot be read, or does not know our group: {await explain(self._settings, error)}"
        else:
            refusal = self._refused()
            if refusal is not None and not is_denied(refusal):
                trouble = str(refused_by_group(names_of(self._settings).group, refusal))
        if trouble is not None:
            self._metrics.lag.set(-1)
            if self._health.troubles.get("kafka_group") != trouble:
                log.warning("%s", trouble, extra={"action": "kafka_down"})
        elif "kafka_group" in self._health.troubles:
            log.info("Kafka can be read again", extra={"action": "kafka_up"})
        self._health.set("kafka_group", trouble)
