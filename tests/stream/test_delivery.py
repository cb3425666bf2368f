"""A record that waits in Kafka and is not delivered: seen from outside, and nothing else is taken for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from faust.types import TP

from ct_stream.stream.delivery import Delivery

if TYPE_CHECKING:
    from collections.abc import Mapping

A, B = TP("spine.created", 0), TP("spine.created", 1)


class World:
    """Partitions at their positions, what is there to read, and what was looked at."""

    def __init__(self) -> None:
        self.positions: dict[TP, int | None] = {A: 5, B: 8}
        self.there = {A: 6}
        self.busy_at = 0.0
        self.looks: list[dict[TP, int | None]] = []
        self.moves: dict[TP, int | None] = {}
        self.delivery = Delivery(
            positions=lambda: dict(self.positions),
            busy_at=lambda: self.busy_at,
            first_records=self._first_records,
            on_its_way_s=0.001,
        )

    async def _first_records(self, positions: Mapping[TP, int | None]) -> dict[TP, int]:
        self.looks.append(dict(positions))
        self.positions |= self.moves
        return {tp: offset for tp, offset in self.there.items() if tp in positions}


async def test_a_partition_that_does_not_advance_with_something_to_read_is_named() -> None:
    world = World()
    assert await world.delivery.undelivered() == {}
    assert world.looks == []
    assert await world.delivery.undelivered() == {A: 6}
    assert world.looks == [{A: 5, B: 8}]


async def test_a_partition_without_a_position_is_checked_from_the_committed_offset() -> None:
    world = World()
    world.positions = {A: None}
    await world.delivery.undelivered()
    assert await world.delivery.undelivered() == {A: 6}
    assert world.looks == [{A: None}]


async def test_a_partition_that_advanced_or_is_new_or_was_revoked_is_not_named() -> None:
    world = World()
    await world.delivery.undelivered()
    world.positions = {A: 6, TP("spine.created", 2): None}
    assert await world.delivery.undelivered() == {}
    assert world.looks == []


async def test_what_was_just_on_its_way_is_delivered() -> None:
    world = World()
    await world.delivery.undelivered()
    world.moves = {A: 7}
    assert await world.delivery.undelivered() == {}
    assert len(world.looks) == 1


async def test_a_worker_without_room_leaves_records_where_they_are() -> None:
    world = World()
    await world.delivery.undelivered()
    world.busy_at = time.monotonic()
    assert await world.delivery.undelivered() == {}
    assert world.looks == []
