"""Background loops: one owner starts them, hears of the first that fails, and ends them all."""

from __future__ import annotations

import asyncio

from ct_stream.process.loops import Loop, Loops


class Step:
    """A step that counts, and raises when it is told to."""

    def __init__(self, *raises: int) -> None:
        self.raises = raises
        self.times = 0

    async def __call__(self) -> None:
        self.times += 1
        if self.times in self.raises:
            raise KeyError("a bug")


async def test_a_loop_that_fails_is_told_once_and_the_others_go_on() -> None:
    told: list[str] = []
    broken, healthy = Step(2), Step()
    loops = Loops(told.append)
    loops.start(Loop(name="broken", step=broken, every_s=0.001), Loop(name="healthy", step=healthy, every_s=0.001))
    await asyncio.sleep(0.1)
    before = healthy.times
    await asyncio.sleep(0.1)
    assert told == ["the background loop broken failed: KeyError('a bug')"]
    assert broken.times == 2
    assert healthy.times > before, "a worker that drains still needs it"
    await loops.stop()


async def test_a_loop_that_may_fail_loses_one_step() -> None:
    told: list[str] = []
    step = Step(1, 3)
    loops = Loops(told.append)
    loops.start(Loop(name="upkeep", step=step, every_s=0.001, may_fail=True))
    await asyncio.sleep(0.1)
    await loops.stop()
    assert told == []
    assert step.times > 3


async def test_a_loop_that_rests_first_does_nothing_at_the_start() -> None:
    step = Step()
    loops = Loops(lambda _: None)
    loops.start(Loop(name="tidy", step=step, every_s=60.0, rests_first=True))
    await asyncio.sleep(0.05)
    assert step.times == 0
    await loops.stop()


async def test_what_is_stopped_is_no_failure() -> None:
    told: list[str] = []
    loops = Loops(told.append)
    loops.start(Loop(name="gauges", step=Step(), every_s=60.0))
    await asyncio.sleep(0)
    await loops.stop()
    assert told == []
    assert [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "gauges"] == []
