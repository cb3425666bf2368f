"""The gate's agent: takes records of `spine.created`, and acks each one when its company is safe.

It never raises, never acks out of order, and never holds more records than it may: a company that waits does so in
Postgres and takes up no place here. While the database is away no record is taken.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from faust.types import TP

from ct_stream.gate.events import SpineCreated, Unreadable, read_spine_created
from ct_stream.gate.output_stage import Origin
from ct_stream.stream.ack_gate import AckGates, Cell
from ct_stream.stream.rejects import header_pairs, reject

if TYPE_CHECKING:
    from collections.abc import Callable

    from ct_stream.metrics import Metrics
    from ct_stream.stream.dedupe import DedupeTable
    from ct_stream.stream.offset_guard import OffsetGuard
    from ct_stream.stream.ports import Admission, Companies, InputCheck
    from ct_stream.stream.producer import Producer

log = logging.getLogger(__name__)

_ROOM_POLL_S = 0.05
_INPUT_POLL_S = 1.0
_MOST_CARRIED = 4096  #: bytes of a header that is copied to the outcome; a record too large for ct.pass would get stuck


class GateAgent:
    """The events of this worker, from arrival to ack."""

    def __init__(
        self,
        *,
        companies: Companies,
        admission: Admission,
        input_check: InputCheck,
        producer: Producer,
        guard: OffsetGuard,
        table: DedupeTable,
        epoch: Callable[[], object],
        metrics: Metrics,
        drain_s: float,
        on_fatal: Callable[[str], None],
    ) -> None:
        """`epoch` is the ledger's: what the table remembers from another epoch does not count."""
        self._companies = companies
        self._admission = admission
        self._epoch = epoch
        self._producer = producer
        self._guard = guard
        self._table = table
        self._input = input_check
        self._metrics = metrics
        self._drain_s = drain_s
        self._on_fatal = on_fatal
        self.gates: AckGates[Any] = AckGates()
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._stopping = False
        self._is_leaving = False
        self._freed = asyncio.Event()
        self._busy_at = time.monotonic()
        self._unassigned_since: float | None = None

    @property
    def running(self) -> int:
        """Return how many events are being worked on."""
        return len(self._tasks)

    @property
    def is_draining(self) -> bool:
        """Return whether no events are taken because of a rebalance or the end."""
        return self._draining or self._stopping

    @property
    def busy_at(self) -> float:
        """Return when an event last had to wait for room, on the monotonic clock."""
        return self._busy_at

    @property
    def unassigned_since(self) -> float | None:
        """Return since when the group has assigned us no partitions; None while it has, or while we are out of it."""
        return self._unassigned_since

    def heads(self) -> dict[str, float]:
        """Return the place of each partition's oldest event in hand, and its arrival on the monotonic clock."""
        return {_place(cell.event.message): cell.arrived_at for cell in self.gates.heads()}

    def done(self) -> dict[int, int]:
        """Return for each partition the offset after its newest acked event: what should be committed."""
        return {event.message.partition: event.message.offset + 1 for event in self.gates.last_acked()}

    async def consume(self, stream: Any) -> None:
        """Take events, as many as there is room for. This is the body of the Faust agent."""
        async for event in stream.noack().events():
            if not await self._guard.accept(event):
                continue
            tp = TP(event.message.topic, event.message.partition)
            generation = event.message.generation_id
            if not await self._room(tp) or generation != self._guard.generation:
                continue  # draining, or revoked meanwhile: it is dropped without an ack and delivered again
            cell = self.gates.arrive(tp, event)
            self._metrics.received.inc()
            task = asyncio.create_task(self._handle(tp, cell), name=f"event:{tp.partition}:{event.message.offset}")
            self._tasks.add(task)
            task.add_done_callback(self._done)
            del event, cell, task, generation

    async def _room(self, tp: TP) -> bool:
        """Return True when there is room and the database answers; False if the worker drains meanwhile."""
        while True:
            if self._draining or self._stopping or self._is_leaving:
                return False
            if self.gates.has_room(tp) and self._admission.may_pull(len(self._tasks)):
                return True
            self._freed.clear()
            self._busy_at = time.monotonic()
            try:
                async with asyncio.timeout(_ROOM_POLL_S):
                    await self._freed.wait()
            except TimeoutError:
                pass

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._freed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its event stays un-acked, and this process must not continue as if nothing had happened.
            log.critical("The task of an event failed, so the worker stops: %r", error, exc_info=error)
            self._on_fatal(f"an event's task failed: {error!r}")

    # ---------------------------------------------------------------- one event

    async def _handle(self, tp: TP, cell: Cell[Any]) -> None:
        message = cell.event.message
        match read_spine_created(message.key, message.value):
            case Unreadable() as unreadable:
                self._input.saw(_event_at(message), readable=False)
                await self._wait_for_a_person()
                await self._reject(message, unreadable)
            case SpineCreated() as created:
                self._input.saw(_event_at(message), readable=True)
                if created.key_missing:
                    self._metrics.keyless.inc()
                await self._company(message, created, tp)
        self._metrics.acked.inc(self.gates.finish(tp, cell))

    async def _company(self, message: Any, created: SpineCreated, tp: TP) -> None:
        headers = dict(header_pairs(message.headers))
        origin = Origin(
            outreach_id=created.outreach_id,
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            correlation_id=created.correlation_id,
            traceparent=_carried(headers, "traceparent", message),
            correlation_header=_carried(headers, "correlation_id", message),
        )
        key, epoch = str(created.outreach_id), str(self._epoch())
        remembered = self._table.outcome(key, epoch)
        if remembered is not None:
            self._metrics.table_hits.inc()
        outcome = await self._companies.from_event(origin, _event_at(message), remembered)
        if outcome is not None and remembered is None and not self._draining:
            self._table.remember(key, epoch, outcome, tp.partition)

    async def _wait_for_a_person(self) -> None:
        """Hold an unreadable record un-acked while most records are: the topic must not drain into ct.rejected."""
        while True:
            if await self._input.trouble() is None:
                return
            await asyncio.sleep(_INPUT_POLL_S)

    async def _reject(self, message: Any, unreadable: Unreadable) -> None:
        word = unreadable.reason.partition(":")[0]
        self._metrics.rejected.labels(reason=word).inc()
        log.warning(
            "Rejected %s[%d] offset %d: %s",
            message.topic,
            message.partition,
            message.offset,
            unreadable.reason,
            extra={"action": "rejected"},
        )
        await reject(self._producer, message, unreadable.reason)

    # ---------------------------------------------------------------- drain

    async def drain(self) -> None:
        """Take no more events, give those in hand `drain_s`, then give up the rest un-acked, with answers stored."""
        self._draining = True
        self._unassigned_since = time.monotonic()
        if self._tasks:
            log.info("Draining: %d events are in hand", len(self._tasks), extra={"action": "drain"})
            await asyncio.wait(self._tasks, timeout=self._drain_s)
        given_up = set(self._tasks)
        for task in given_up:
            task.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        self.gates.clear()
        self._table.revoked()

    def join(self) -> None:
        """Note that from now on we wait for the group to assign us partitions."""
        self._is_leaving = False
        self._unassigned_since = time.monotonic()

    def leave(self) -> None:
        """Take no more events until `join`, whatever the group still assigns to us."""
        self._is_leaving = True
        self._freed.set()

    def left(self) -> None:
        """Note that we are out of the group: there is nothing to drain, and nothing to wait for."""
        self._draining = False
        self._unassigned_since = None

    def stop_pulling(self) -> None:
        """Take no more events, for good."""
        self._stopping = True

    def assigned(self) -> None:
        """Take events again: partitions were assigned."""
        self._draining = False
        self._busy_at = time.monotonic()
        self._unassigned_since = None


def _carried(headers: dict[str, bytes | None], name: str, message: Any) -> bytes | None:
    """Return a header that is copied to the outcome; None if there is none, or if it is too large."""
    value = headers.get(name)
    if value is None or len(value) <= _MOST_CARRIED:
        return value
    log.warning("%s: header %s has %d bytes, too many to copy to the outcome", _place(message), name, len(value))
    return None


def _place(message: Any) -> str:
    return f"{message.topic}[{message.partition}] offset {message.offset}"


def _event_at(message: Any) -> datetime | None:
    timestamp = message.timestamp  # seconds in Faust, -1 where the record has none; upstream may write anything
    try:
        return datetime.fromtimestamp(timestamp, UTC) if timestamp is not None and timestamp > 0 else None
    except (OverflowError, ValueError, OSError):
        return None
