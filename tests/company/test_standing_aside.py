"""A worker whose own way is broken leaves the group while others can work, and comes back once its way is proven."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from ct_stream.company.standing_aside import LEAVE_AFTER_S, StandsAside
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.metrics import Health

BROKEN = Wait(reason=WaitReason.CONTROL, detail="our way out to port 25: no answer")


class Group:
    """A place in a group, and what was done with it."""

    def __init__(self) -> None:
        self.is_left = False
        self.done: list[str] = []

    async def leave(self) -> None:
        self.is_left = True
        self.done.append("left")

    async def rejoin(self) -> None:
        self.is_left = False
        self.done.append("joined")


def way(*, broken_s: float | None, healthy: bool = True) -> Any:
    """Return the way of a worker, broken for so long, beside another one that can work or not."""
    return SimpleNamespace(
        trouble=None if broken_s is None else BROKEN,
        trouble_since=None if broken_s is None else time.monotonic() - broken_s,
        healthy=["other/1/b"] if healthy else [],
    )


@pytest.mark.parametrize(
    ("broken_s", "healthy", "leaves"),
    [
        (None, True, False),
        (LEAVE_AFTER_S - 5, True, False),
        (LEAVE_AFTER_S + 1, True, True),
        (LEAVE_AFTER_S + 1, False, False),
    ],
    ids=["it is whole", "not long enough", "for a minute", "nobody else can work"],
)
async def test_it_leaves_after_a_minute_if_somebody_can_work_in_its_place(
    broken_s: float | None, healthy: bool, leaves: bool
) -> None:
    group: Any = Group()
    stands_aside = StandsAside(way(broken_s=broken_s, healthy=healthy), group, Health())
    for _ in range(2):
        await stands_aside.look()
    assert group.done == (["left"] if leaves else [])


async def test_it_comes_back_once_its_way_is_proven_and_not_before() -> None:
    group: Any = Group()
    own_way = way(broken_s=LEAVE_AFTER_S + 1)
    stands_aside = StandsAside(own_way, group, Health())
    await stands_aside.look()
    own_way.healthy = []
    await stands_aside.look()
    assert group.done == ["left"], "it could decide nothing"
    own_way.trouble_since = None
    await stands_aside.look()
    await stands_aside.look()
    assert group.done == ["left", "joined"]


async def test_it_does_not_bring_back_who_was_sent_out_for_another_reason() -> None:
    group: Any = Group()
    await group.leave()
    await StandsAside(way(broken_s=None), group, Health()).look()
    assert group.done == ["left"]


@pytest.mark.parametrize("why", ["proven", "alone", "told to stop"])
async def test_it_does_not_join_only_to_put_companies_away(why: str) -> None:
    own_way, stop = way(broken_s=1.0), asyncio.Event()
    group: Any = Group()
    health = Health()
    joining = asyncio.create_task(StandsAside(own_way, group, health).before_joining(stop))
    await asyncio.sleep(0.05)
    assert not joining.done(), "others can work"
    assert "has not joined the group" in health.notes["partitions"]
    if why == "proven":
        own_way.trouble = None
    elif why == "alone":
        own_way.healthy = []
    else:
        stop.set()
    async with asyncio.timeout(3):
        await joining
    assert "partitions" not in health.notes
