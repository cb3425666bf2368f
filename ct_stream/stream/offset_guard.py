"""Does every offset reach us, in order, from where the group stands?

After a table recovery Faust resumes the flow, seeks, and then clears every queue, while the offsets of what it
cleared count as read (faust issue 596): events are lost for good. Two measures, both needed:

*hold*: on `on_rebalance_complete`, which Faust awaits just before that race, stop the flow, wait until a running fetch
has returned, and seek every partition to where the group stands (Faust leaves out those that never committed).

*continuity*: the first offset after an assignment must be the expected one, and each next one more. On a hole the
process ends at once and without a commit; a graceful stop would commit past the hole, and a seek in place livelocks.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from faust.types import TP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import faust

log = logging.getLogger(__name__)

EXIT_CODE = 77  #: of a process that saw a hole
#: Longer than the timeout of Faust's running getmany (1.0 s, faust/transport/consumer.py).
HOLD_S = 1.5


class OffsetGuard:
    """Holds the flow through Faust's race, and checks what is delivered."""

    def __init__(
        self,
        app: faust.App,
        topics: frozenset[str],
        *,
        next_record: Callable[[TP, int], Awaitable[int | None]],
        hold_s: float = HOLD_S,
        on_hole: Callable[[TP, int, int], None] | None = None,
    ) -> None:
        self._app = app
        self._topics = topics
        self._next_record = next_record  # the offset of the first record at or after an offset, read by itself
        self._hold_s = hold_s
        self._on_hole = on_hole or exit_without_commit
        self._expected: dict[TP, int] = {}
        self._generation: int | None = None
        self._armed = asyncio.Event()

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

    async def accept(self, event: Any) -> bool:
        """Tell if this event is the next one of its partition; False for a repeat or a stale one, to be dropped."""
        await self._armed.wait()
        message = event.message
        if message.generation_id != self._generation:
            return False
        tp = TP(message.topic, message.partition)
        expected = self._expected.get(tp)
        if expected is None or message.offset < expected:
            return False
        if message.offset > expected:
            # Control records of a transactional producer and compaction leave holes by nature.
            there = await self._next_record(tp, expected)
            if self._expected.get(tp) != expected:
                return False  # revoked meanwhile
            if there is not None and there < message.offset:
                self._on_hole(tp, expected, message.offset)
                return False
        self._expected[tp] = message.offset + 1
        return True

    async def _revoked(self, _app: Any, _revoked: Any, **_: Any) -> None:
        self._armed.clear()
        self._expected.clear()

    async def _assigned(self, _app: Any, assigned: set[TP], **_: Any) -> None:
        self._armed.clear()
        self._expected.clear()
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
                self._expected[tp] = max(committed.get(tp) or 0, earliest.get(tp, 0))
        self._generation = generation
        self._armed.set()

    async def _hold(self, _app: Any, **_: Any) -> None:
        consumer: Any = self._app.consumer
        consumer.stop_flow()
        self._app.flow_control.suspend()
        await asyncio.sleep(self._hold_s)
        if self._expected:
            await consumer.seek_wait(dict(self._expected))


async def _no_gap(_tp: TP, _offset_from: int, _offset_to: int) -> None:
    """Stand in for Consumer._add_gap."""


def exit_without_commit(tp: TP, expected: int, got: int) -> None:
    """End the process at once, so that the offsets of a hole are never committed."""
    sys.stderr.write(
        f"ct-stream: {tp.topic}[{tp.partition}] delivered offset {got} where {expected} was expected; "
        "exiting without a commit so that nothing is lost; the restart reads from there again\n"
    )
    sys.stderr.flush()
    os._exit(EXIT_CODE)
