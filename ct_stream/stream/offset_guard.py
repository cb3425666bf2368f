"""Checks that every offset reaches us, in order, starting at the group's committed offset.

After a table recovery Faust resumes the flow, seeks, and then clears every queue, although the offsets of the cleared
records count as read (faust issue 596). Those events are lost for good. Two measures are needed against it:

*hold*: Faust awaits `on_rebalance_complete` just before that race. Here we stop the flow, wait until a running fetch
has returned, and seek every partition to its committed offset (Faust leaves out partitions that never committed or are
at 0). The running fetch may have taken our records: two threads share the set of partitions to fetch from, and if it is
emptied between the check and its use, it means all partitions.

*continuity*: the first offset after an assignment must be the expected one, and each following one must be one higher.
At a hole the process ends at once, without a commit. A graceful stop would commit past the hole, and seeking back in
the running process never ends.

Some holes are normal: transaction markers, records that a transactional upstream aborted, compaction. A second consumer
tells them from the others. Faust is told about them, or its commits would stop before the first one. Some holes are
none: the committed offset was not known at the assignment (its coordinator was just lost), or the former owner's last
commit came after we had read it. What the group has committed meanwhile is done.

*no way back*: a record below the committed offset is a repeat, unless the partition ends below that offset too. Then
the cluster lost records (an unclean election), and this record is new: if it were dropped as a repeat, it would be
lost.
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
from ct_stream.stream.topology import UNPREFIXED, Names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import faust

log = logging.getLogger(__name__)

EXIT_CODE = 77  #: of a process that found a hole
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
        names: Names = UNPREFIXED,
        hold_s: float = HOLD_S,
        on_hole: Callable[[TP, int, int], None] | None = None,
        on_cut_off: Callable[[CutOff], None] | None = None,
    ) -> None:
        self._app = app
        self._topics = topics
        self._names = names
        self._next_offsets = next_offsets  # of the records at or after an offset, in order, read by another consumer
        self._committed = committed  # of each partition, as the group's coordinator knows it now
        self._hold_s = hold_s
        self._end_of = end_of  # the offset of a partition's next record, as another consumer sees it now
        self._on_hole = on_hole or exit_without_commit
        self._on_cut_off = on_cut_off or exit_cut_off
        self._expected: dict[TP, int] = {}
        self._stood: dict[TP, int] = {}  # the committed offset at the assignment
        self._repeated: dict[TP, int] = {}  # the last record below it
        # The offsets read to judge one hole also judge the next ones: one look for each transaction marker would be
        # slow.
        self._read: dict[TP, list[int]] = {}
        self._generation: int | None = None
        self._armed = asyncio.Event()
        self._looking_since = -inf  # (monotonic) since when a hole is being checked; meanwhile no record is taken

    def connect(self) -> None:
        """Listen to the app's signals. To be called before it starts."""
        self._app.on_partitions_revoked.connect(self._revoked, weak=False)  # type: ignore[arg-type]
        self._app.on_partitions_assigned.connect(self._assigned, weak=False)  # type: ignore[arg-type]
        if self._hold_s:
            self._app.on_rebalance_complete.connect(self._hold, weak=False)  # type: ignore[arg-type]

    @property
    def generation(self) -> int | None:
        """Return the generation of the group whose offsets are expected now."""
        return self._generation

    def positions(self) -> dict[TP, int | None]:
        """Return the next offset of each of our partitions; None while it is not known."""
        try:
            assignment = self._app.consumer.assignment()
        except ConsumerNotStarted:
            return {}
        ours = {TP(tp.topic, tp.partition) for tp in assignment if tp.topic in self._topics}
        return {tp: self._expected.get(tp) for tp in ours}

    async def accept(self, event: Any) -> bool:
        """Return whether this event is its partition's next one; False for a repeat or a stale one, to be dropped."""
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
        """Check that a record below the committed offset is a repeat: that the partition reaches that offset."""
        stood = self._stood.get(tp, 0)
        if message.offset >= stood:
            return
        is_next = message.offset == self._repeated.get(tp, -2) + 1  # in a run whose first record was checked
        self._looking_since = time.monotonic()
        try:
            while not is_next and self._is_current(message.generation_id):
                try:
                    ends = await self._end_of(tp)
                except (KafkaError, OSError, TimeoutError) as error:
                    log.warning("The end of %s[%d] cannot be read, trying again: %r", tp.topic, tp.partition, error)
                    await asyncio.sleep(_LOOK_AGAIN_S)  # without an answer no record is dropped
                    continue
                if ends < stood and self._is_current(message.generation_id):
                    self._on_cut_off(CutOff(partition=tp.partition, stands=stood, ends=ends, names=self._names))
                break
        finally:
            self._looking_since = -inf
        self._repeated[tp] = message.offset

    @property
    def is_looking(self) -> bool:
        """Return whether a hole is being checked, and not for so long that this is a hang itself."""
        return time.monotonic() - self._looking_since < _LOOK_MOST_S

    async def _looked_through(self, message: Any, tp: TP, expected: int) -> bool:
        """Return whether nothing is missing in the hole before this event; if so, tell Faust about the hole."""
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
            # Faust's own bookkeeping would also count the record after the hole as done, so it is told only of the
            # hole.
            consumer: Any = self._app.consumer
            await type(consumer)._add_gap(consumer, tp, expected, message.offset - 1)
            return self._is_current(message.generation_id)
        finally:
            self._looking_since = -inf

    def _is_current(self, generation: int | None) -> bool:
        """Return whether no rebalance has begun since; the same partition may come back at the same offset."""
        return self._armed.is_set() and self._generation == generation

    async def _next_record(self, tp: TP, offset: int) -> int | None:
        """Return the offset of the first record at or after `offset`; None if the partition was revoked meanwhile."""
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
            await asyncio.sleep(_LOOK_AGAIN_S)  # without an answer no record is accepted
        return read[bisect_left(read, offset)]

    async def _group_stands(self, tp: TP) -> int | None:
        """Return the group's committed offset, 0 if there is none; None if the partition was revoked meanwhile."""
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
        # A short recovery ends before the offsets are known. Faust's own seek leaves out partitions at 0. Without ours
        # a worker may have a position after its events: ready and idle.
        await self._armed.wait()
        if self._expected and generation == self._generation:
            await consumer.seek_wait(dict(self._expected))


async def _no_gap(_tp: TP, _offset_from: int, _offset_to: int) -> None:
    """Stand in for Consumer._add_gap."""


def exit_cut_off(found: CutOff) -> None:
    """End the process at once. A restarted worker refuses to start until the group is reset."""
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
