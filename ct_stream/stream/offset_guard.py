"""Does every offset reach us, in order, from where the group stands?

After a table recovery Faust resumes the flow, seeks, and then clears every queue, while the offsets of what it
cleared count as read (faust issue 596): events are lost for good. Two measures, both needed:

*hold*: on `on_rebalance_complete`, which Faust awaits just before that race, stop the flow, wait until a running fetch
has returned, and seek every partition to where the group stands (Faust leaves out those that never committed or stand
at 0). That fetch may have taken our records: the set of partitions to fetch from is shared by two threads, and emptied
between a look and its use it means all of them.

*continuity*: the first offset after an assignment must be the expected one, and each next one more. On a hole the
process ends at once and without a commit; a graceful stop would commit past the hole, and a seek in place livelocks.

Some holes are there by nature: marks of transactions, what a transactional upstream took back, compaction. A second
consumer tells them from the others, and Faust is told of them, or its commits would stop before the first one. And some
are none: where the group stood was not known at the assignment (its coordinator was just lost), or the former owner's
last commit came after we had read it. What the group has committed meanwhile is done.

*no way back*: a record from below where the group stood is a repeat, unless the partition ends there. Then the cluster
lost records (an unclean election), and what comes now is new: dropped as repeats they would be lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from bisect import bisect_left
from math import inf
from typing import TYPE_CHECKING, Any

from aiokafka.errors import KafkaError
from faust.exceptions import ConsumerNotStarted
from faust.types import TP

from ct_stream.stream.position import CutOff

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import faust

log = logging.getLogger(__name__)

EXIT_CODE = 77  #: of a process that saw a hole
#: Longer than the timeout of Faust's running getmany (1.0 s, faust/transport/consumer.py).
HOLD_S = 1.5
_LOOK_AGAIN_S = 1.0
_LOOK_MOST_S = 300.0


class OffsetGuard:
    """Holds the flow through Faust's race, and checks what is delivered."""

    def __init__(
        self,
        app: faust.App,
        topics: frozenset[str],
        *,
        next_offsets: Callable[[TP, int], Awaitable[list[int]]],
        committed: Callable[[], Awaitable[Mapping[int, int]]],
        end_of: Callable[[TP], Awaitable[int]],
        hold_s: float = HOLD_S,
        on_hole: Callable[[TP, int, int], None] | None = None,
        on_cut_off: Callable[[CutOff], None] | None = None,
    ) -> None:
        self._app = app
        self._topics = topics
        self._next_offsets = next_offsets  # of the records at or after an offset, in order, read by another consumer
        self._committed = committed  # of each partition, as the group's coordinator tells it now
        self._hold_s = hold_s
        self._end_of = end_of  # the offset of a partition's next record, as another consumer is told it now
        self._on_hole = on_hole or exit_without_commit
        self._on_cut_off = on_cut_off or exit_cut_off
        self._expected: dict[TP, int] = {}
        self._stood: dict[TP, int] = {}  # where the group stood at the assignment
        self._repeated: dict[TP, int] = {}  # the last record from below it
        # What was read of each partition to judge one hole judges those behind it: a look for each mark would be slow.
        self._read: dict[TP, list[int]] = {}
        self._generation: int | None = None
        self._armed = asyncio.Event()
        self._looking_since = -inf  # (monotonic) into a hole, now: meanwhile no record of any partition is taken

    def connect(self) -> None:
        """Listen to the app's signals; before it starts."""
        self._app.on_partitions_revoked.connect(self._revoked, weak=False)  # type: ignore[arg-type]
        self._app.on_partitions_assigned.connect(self._assigned, weak=False)  # type: ignore[arg-type]
        if self._hold_s:
            self._app.on_rebalance_complete.connect(self._hold, weak=False)  # type: ignore[arg-type]

    @property
    def generation(self) -> int | None:
        """Return the group generation whose offsets are expected now."""
        return self._generation

    def positions(self) -> dict[TP, int | None]:
        """Return the next offset of each partition that is ours now; None while it is not known."""
        try:
            assignment = self._app.consumer.assignment()
        except ConsumerNotStarted:
            return {}
        ours = {TP(tp.topic, tp.partition) for tp in assignment if tp.topic in self._topics}
        return {tp: self._expected.get(tp) for tp in ours}

    async def accept(self, event: Any) -> bool:
        """Tell if this event is the next one of its partition; False for a repeat or a stale one, to be dropped."""
        await self._armed.wait()
        message = event.message
        if message.generation_id != self._generation:
            return False
        tp = TP(message.topic, message.partition)
        expected = self._expected.get(tp)
        if expected is None:
            return False
        if message.offset < expected:
            await self._look_at_end(message, tp)
            return False
        if message.offset > expected and not await self._looked_through(message, tp, expected):
            return False
        self._expected[tp] = message.offset + 1
        return True

    async def _look_at_end(self, message: Any, tp: TP) -> None:
        """See that a record from below where the group stood is a repeat: that the partition goes on to there."""
        stood = self._stood.get(tp, 0)
        if message.offset >= stood:
            return
        is_next = message.offset == self._repeated.get(tp, -2) + 1  # of a run whose first record was looked at
        self._looking_since = time.monotonic()
        try:
            while not is_next and self._is_current(message.generation_id):
                try:
                    ends = await self._end_of(tp)
                except (KafkaError, OSError, TimeoutError) as error:
                    log.warning("The end of %s[%d] cannot be read, trying again: %r", tp.topic, tp.partition, error)
                    await asyncio.sleep(_LOOK_AGAIN_S)  # without an answer nothing is dropped
                    continue
                if ends < stood and self._is_current(message.generation_id):
                    self._on_cut_off(CutOff(partition=tp.partition, stands=stood, ends=ends))
                break
        finally:
            self._looking_since = -inf
        self._repeated[tp] = message.offset

    @property
    def is_looking(self) -> bool:
        """Tell if a look into a hole is under way, and not for so long that it is a hang itself."""
        return time.monotonic() - self._looking_since < _LOOK_MOST_S

    async def _looked_through(self, message: Any, tp: TP, expected: int) -> bool:
        """Tell if the hole before this event is none, and book it for Faust."""
        self._looking_since = time.monotonic()
        try:
            there = await self._next_record(tp, expected)
            if there is None:
                return False  # revoked meanwhile
            if there < message.offset:
                stands = await self._group_stands(tp)
                if stands is None:
                    return False
                if stands < message.offset:
                    self._on_hole(tp, expected, message.offset)
                    return False
                log.info(
                    "%s[%d]: offset %d was expected, but the group has committed up to %d; nothing is lost",
                    tp.topic,
                    tp.partition,
                    expected,
                    stands,
                )
            # Faust's own bookkeeping counts the record behind the hole as done, too: it is told of the hole only.
            consumer: Any = self._app.consumer
            await type(consumer)._add_gap(consumer, tp, expected, message.offset - 1)
            return self._is_current(message.generation_id)
        finally:
            self._looking_since = -inf

    def _is_current(self, generation: int | None) -> bool:
        """Tell if no rebalance began since: the same partition may come back at the same offset."""
        return self._armed.is_set() and self._generation == generation

    async def _next_record(self, tp: TP, offset: int) -> int | None:
        """Return the offset of the first record at or after `offset`; None when the partition was revoked meanwhile."""
        generation = self._generation
        read = self._read.get(tp, [])
        while not read or not read[0] <= offset <= read[-1]:
            try:
                read = await self._next_offsets(tp, offset)
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning(
                    "A hole in the offsets of %s[%d] cannot be checked, trying again: %r",
                    tp.topic,
                    tp.partition,
                    error,
                )
                read = []
            if not self._is_current(generation):
                return None
            if read:
                self._read[tp] = read
                break
            await asyncio.sleep(_LOOK_AGAIN_S)  # without an answer nothing is passed
        return read[bisect_left(read, offset)]

    async def _group_stands(self, tp: TP) -> int | None:
        """Return what the group has committed by now, 0 for nothing; None when the partition was revoked meanwhile."""
        generation = self._generation
        while True:
            try:
                stands = (await self._committed()).get(tp.partition, 0)
            except (KafkaError, OSError, TimeoutError) as error:
                log.warning(
                    "The committed offset of %s[%d] cannot be read, trying again: %r", tp.topic, tp.partition, error
                )
                stands = None
            if not self._is_current(generation):
                return None
            if stands is not None:
                return stands
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _revoked(self, _app: Any, _revoked: Any, **_: Any) -> None:
        self._armed.clear()
        self._expected.clear()
        self._stood.clear()
        self._repeated.clear()
        self._read.clear()

    async def _assigned(self, _app: Any, assigned: set[TP], **_: Any) -> None:
        self._armed.clear()
        self._expected.clear()
        self._stood.clear()
        self._repeated.clear()
        self._read.clear()
        consumer: Any = self._app.consumer
        consumer._add_gap = _no_gap
        generation = self._app.consumer_generation_id
        ours = {tp for tp in assigned if tp.topic in self._topics}
        if ours:
            committed = {TP(tp.topic, tp.partition): at for tp, at in (await consumer.seek_to_committed()).items()}
            earliest = {
                TP(tp.topic, tp.partition): at or 0 for tp, at in (await consumer.earliest_offsets(*ours)).items()
            }
            if generation != self._app.consumer_generation_id:
                return  # another rebalance came meanwhile, with a call of its own
            for tp in ours:
                self._expected[tp] = self._stood[tp] = max(committed.get(tp) or 0, earliest.get(tp, 0))
        self._generation = generation
        self._armed.set()

    async def _hold(self, _app: Any, **_: Any) -> None:
        consumer: Any = self._app.consumer
        consumer.stop_flow()
        self._app.flow_control.suspend()
        generation = self._app.consumer_generation_id
        await asyncio.sleep(self._hold_s)
        # A short recovery ends before the offsets are known. Faust's own seek leaves out those at 0, so that without
        # ours a worker may stand behind its events, ready and silent.
        await self._armed.wait()
        if self._expected and generation == self._generation:
            await consumer.seek_wait(dict(self._expected))


async def _no_gap(_tp: TP, _offset_from: int, _offset_to: int) -> None:
    """Stand in for Consumer._add_gap."""


def exit_cut_off(found: CutOff) -> None:
    """End the process at once: the restart refuses until the group is reset."""
    sys.stderr.write(f"ct-stream: {found}; exiting without a commit\n")
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def exit_without_commit(tp: TP, expected: int, got: int) -> None:
    """End the process at once, so that the offsets of a hole are never committed."""
    sys.stderr.write(
        f"ct-stream: {tp.topic}[{tp.partition}] delivered offset {got} where {expected} was expected; "
        f"exiting without a commit so that nothing is lost; a restart reads the missing records again\n"
    )
    sys.stderr.flush()
    os._exit(EXIT_CODE)
