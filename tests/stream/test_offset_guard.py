"""The alarm: every offset once, in order, from where the group stands; a hole ends the process."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import NodeNotReadyError
from faust.exceptions import ConsumerNotStarted
from faust.types import TP

from ct_stream.stream import offset_guard
from ct_stream.stream.offset_guard import EXIT_CODE, OffsetGuard
from ct_stream.stream.position import CutOff

PARTITION = TP("spine.created", 0)


class Consumer:
    """What the guard asks of Faust's consumer."""

    def __init__(self, committed: dict[TP, int | None], earliest: dict[TP, int]) -> None:
        self._committed, self._earliest = committed, earliest
        self.steps: list[object] = []
        self.booked: list[tuple[int, int]] = []

    async def _add_gap(self, _tp: TP, first: int, last: int) -> None:
        self.booked.append((first, last))

    async def seek_to_committed(self) -> dict[TP, int | None]:
        return self._committed

    async def earliest_offsets(self, *_: TP) -> dict[TP, int]:
        return self._earliest

    def stop_flow(self) -> None:
        self.steps.append("stop_flow")

    async def seek_wait(self, offsets: dict[TP, int]) -> None:
        self.steps.append(offsets)


class World:
    """A guard that was assigned a partition, and what it alarmed about."""

    def __init__(self, *, committed: int | None = 10, earliest: int = 0, there: list[Any] | None = None) -> None:
        self.consumer = Consumer({PARTITION: committed}, {PARTITION: earliest})
        flow = SimpleNamespace(suspend=lambda: self.consumer.steps.append("suspend"))
        app: Any = SimpleNamespace(consumer=self.consumer, consumer_generation_id=1, flow_control=flow)
        self.app = app
        self.holes: list[tuple[int, int]] = []
        self.looks: list[int] = []
        self.ends: list[Any] = []  # one answer after the other
        self.cut_off: list[CutOff] = []
        self.there = there or []
        self.stands: list[Any] = [{}]  # one answer after the other, the last one again and again
        self.guard = OffsetGuard(
            app, frozenset({"spine.created"}), next_offsets=self._next_offsets, committed=self._committed, hold_s=0.001,
            on_hole=lambda _tp, expected, got: self.holes.append((expected, got)), end_of=self._end_of,
            on_cut_off=self.cut_off.append,
        )  # fmt: skip

    async def _next_offsets(self, _tp: TP, offset: int) -> list[int]:
        answer = self.there.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self.looks.append(offset)
        return [each for each in answer if each >= offset]

    async def _end_of(self, _tp: TP) -> int:
        answer = self.ends.pop(0)
        if isinstance(answer, Exception):
            raise answer
        end: int = answer
        return end

    async def _committed(self) -> dict[int, int]:
        answer = self.stands.pop(0) if len(self.stands) > 1 else self.stands[0]
        if isinstance(answer, Exception):
            raise answer
        if callable(answer):
            await answer()
            return {}
        committed: dict[int, int] = answer
        return committed

    async def assign(self) -> World:
        await self.guard._assigned(self.app, {PARTITION, TP("ct-stream-decided-changelog", 0)})
        return self

    async def accept(self, offset: int, generation: int = 1) -> bool:
        message = SimpleNamespace(topic="spine.created", partition=0, offset=offset, generation_id=generation)
        return await self.guard.accept(SimpleNamespace(message=message))


@pytest.mark.parametrize(
    ("committed", "earliest", "first"), [(10, 0, 10), (None, 0, 0), (None, 5, 5), (3, 5, 5)],
    ids=["committed", "never committed", "beginning was cut off", "committed was cut off"],
)  # fmt: skip
async def test_the_first_offset_is_where_the_group_stands(committed: int | None, earliest: int, first: int) -> None:
    world = await World(committed=committed, earliest=earliest).assign()
    assert await world.accept(first)
    assert await world.accept(first + 1)
    assert not world.holes


async def test_a_repeat_and_a_stale_delivery_are_dropped() -> None:
    world = await World().assign()
    assert await world.accept(10)
    assert not await world.accept(10)
    assert not await world.accept(11, generation=0)
    assert await world.accept(11)
    assert not world.holes


async def test_a_record_below_the_committed_offset_is_new_if_the_partition_ends_there() -> None:
    """The cluster lost records: the end is told from it, once the broker answers."""
    world = await World().assign()
    world.ends = [NodeNotReadyError("no broker"), 3]
    assert not await world.accept(0)
    assert world.cut_off == [CutOff(partition=0, stands=10, ends=3)]


async def test_repeats_below_the_committed_offset_are_checked_once_a_run() -> None:
    world = await World().assign()
    world.ends = [12, 14, 3]
    for offset in (7, 8, 9, 10, 11):
        assert await world.accept(offset) is (offset >= 10)
    for offset in (10, 8, 9):
        assert not await world.accept(offset)
    assert len(world.ends) == 1, "another run, another look"
    assert not world.cut_off
    assert not await world.accept(0)
    assert world.cut_off == [CutOff(partition=0, stands=10, ends=3)], "however well it went before"


async def test_a_partition_that_is_revoked_while_its_end_is_looked_at_raises_no_alarm() -> None:
    world = await World().assign()

    async def revoked(_tp: TP) -> int:
        await world.guard._revoked(world.app, {PARTITION})
        return 3

    world.guard._end_of = revoked
    assert not await world.accept(0)
    assert not world.cut_off


async def test_a_hole_with_a_record_in_it_raises_the_alarm() -> None:
    world = await World(there=[[10, 12]]).assign()
    assert not await world.accept(12)
    assert world.holes == [(10, 12)]


async def test_a_natural_hole_is_passed_and_faust_is_told_of_it() -> None:
    world = await World(there=[[12, 13]]).assign()
    assert await world.accept(12), "control records and compaction leave holes"
    assert await world.accept(13)
    assert not world.holes
    assert world.consumer.booked == [(10, 11)], "12 itself is not done"


async def test_one_look_judges_all_the_holes_that_it_saw() -> None:
    world = await World(there=[[11, 13, 15], [17]]).assign()
    for offset in (11, 13, 15):
        assert await world.accept(offset)
    assert world.looks == [10]
    assert await world.accept(17)
    assert world.looks == [10, 16]


async def test_a_record_seen_by_an_earlier_look_is_missed_when_it_does_not_come() -> None:
    world = await World(there=[[11, 13, 14]]).assign()
    assert await world.accept(11)
    assert not await world.accept(14)
    assert world.holes == [(12, 14)]


async def test_without_an_answer_no_hole_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offset_guard, "_LOOK_AGAIN_S", 0.001)
    world = await World(there=[NodeNotReadyError("away"), [], [10, 12]]).assign()
    looked: list[bool] = []
    monkeypatch.setattr(world.guard, "_on_hole", lambda *_: looked.append(world.guard.is_looking))
    assert not world.guard.is_looking
    assert not await world.accept(12)
    assert looked == [True], "a worker that looks leaves records where they are, and is no hung one"
    assert not world.guard.is_looking, "and one that has looked excuses no other partition"


@pytest.mark.parametrize("stands", [12, 13])
async def test_what_the_group_has_committed_since_the_assignment_is_no_hole(stands: int) -> None:
    world = await World(committed=None, there=[[0, 1]]).assign()
    world.stands = [{0: stands}]
    assert await world.accept(12)
    assert await world.accept(13)
    assert not world.holes
    assert world.consumer.booked == [(0, 11)]


async def test_a_hole_beyond_what_the_group_has_committed_raises_the_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offset_guard, "_LOOK_AGAIN_S", 0.001)
    world = await World(there=[[10, 11]]).assign()
    world.stands = [NodeNotReadyError("away"), {0: 11, 1: 99}]
    assert not await world.accept(12)
    assert world.holes == [(10, 12)]


async def test_a_partition_that_is_revoked_while_the_group_is_asked_raises_no_alarm() -> None:
    world = await World(there=[[10, 11]]).assign()
    world.stands = [lambda: world.guard._revoked(world.app, set())]
    assert not await world.accept(12)
    assert not world.holes


async def test_a_look_into_a_hole_that_spans_a_rebalance_takes_nothing_from_the_next_assignment() -> None:
    """The same partition comes back at the same offset; what came before it is dropped, and delivered again."""
    world = await World().assign()

    async def rebalance(_tp: TP, _offset: int) -> list[int]:
        world.guard._next_offsets = world._next_offsets
        await world.guard._revoked(world.app, set())
        world.app.consumer_generation_id = 2
        await world.assign()
        return [12, 13]  # 10 and 11 are marks of a transaction

    world.guard._next_offsets = rebalance
    assert not await world.accept(12, generation=1)
    world.there = [[12, 13]]
    assert await world.accept(12, generation=2)
    assert await world.accept(13, generation=2)
    assert not world.holes


async def test_a_consumer_that_has_not_started_has_no_positions() -> None:
    world = World()

    def assignment() -> set[TP]:
        raise ConsumerNotStarted

    world.consumer.assignment = assignment  # type: ignore[attr-defined]
    assert world.guard.positions() == {}
    world.consumer.assignment = lambda: {PARTITION, TP("ct-stream-decided-changelog", 0)}  # type: ignore[attr-defined]
    assert world.guard.positions() == {PARTITION: None}
    await world.assign()
    assert world.guard.positions() == {PARTITION: 10}


async def test_the_hold_stops_the_flow_and_seeks_every_partition_even_if_never_committed() -> None:
    world = await World(committed=None, earliest=4).assign()
    await world.guard._hold(world.app)
    assert world.consumer.steps == ["stop_flow", "suspend", {PARTITION: 4}]


async def test_the_hold_waits_for_offsets_that_come_late() -> None:
    """Else a group at offset 0 is sought by nobody, and the worker may stand behind its events."""
    world = World(committed=0)
    hold = asyncio.create_task(world.guard._hold(world.app))
    await asyncio.sleep(0.02)
    assert world.consumer.steps == ["stop_flow", "suspend"]
    await world.assign()
    await hold
    assert world.consumer.steps == ["stop_flow", "suspend", {PARTITION: 0}]


async def test_a_hold_of_an_earlier_assignment_seeks_nothing_in_the_next_one() -> None:
    world = World(committed=0)
    hold = asyncio.create_task(world.guard._hold(world.app))
    await asyncio.sleep(0.02)
    world.app.consumer_generation_id = 2
    await world.assign()
    await hold
    assert world.consumer.steps == ["stop_flow", "suspend"]


async def test_the_hook_that_books_skipped_offsets_as_acked_is_disarmed() -> None:
    world = await World().assign()
    await world.consumer._add_gap(PARTITION, 1, 5)
    assert world.consumer.booked == []


def test_the_alarm_ends_the_process_at_once_and_without_a_commit() -> None:
    code = (
        "import atexit; atexit.register(lambda: print('a graceful stop'))\n"
        "from faust.types import TP\n"
        "from ct_stream.stream.offset_guard import exit_without_commit\n"
        "exit_without_commit(TP('spine.created', 3), 10, 12)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_CODE
    assert "spine.created[3] delivered offset 12 where 10 was expected" in done.stderr
    assert done.stdout == ""
    assert signal.SIGTERM not in (-done.returncode,)
