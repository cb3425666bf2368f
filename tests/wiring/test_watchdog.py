"""A loop that stands still is noticed, one that is slow or was frozen is not."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

from ct_stream.wiring.watchdog import EXIT_CODE, loop_watchdog
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

QUICK = """
import ct_stream.wiring.watchdog as watchdog
watchdog.TICKS = 3
"""
BLOCKED = (
    QUICK
    + """
import time
import ct_stream.wiring.world as world
run, passes = world.CompanyPass.run, 0
async def block(self):
    global passes
    passes += 1
    if passes == 20:
        time.sleep(600)
    return await run(self)
world.CompanyPass.run = block
"""
)


async def test_a_blocked_loop_is_noticed_and_a_slow_one_is_not() -> None:
    bites: list[float] = []
    async with loop_watchdog(ticks=3, tick_s=0.05, bite=bites.append):
        for _ in range(4):
            time.sleep(0.08)  # noqa: ASYNC251 - the loop is blocked on purpose
            await asyncio.sleep(0.06)
        assert bites == []
        time.sleep(0.5)  # noqa: ASYNC251
        await asyncio.sleep(0)
    assert len(bites) == 1


async def test_a_worker_whose_loop_is_blocked_ends_and_says_where_and_loses_nothing(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker(prelude=BLOCKED)
        assert await stack.wait_said("Ready", 60)
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(40)]))
        assert await asyncio.to_thread(worker.wait, 30) == EXIT_CODE
        assert "stood still for 3 s" in stack.worker_log()
        assert "in block" in stack.worker_log(), "it does not say where"
        frozen = stack.start_worker(prelude=QUICK)
        assert await stack.wait_decided(40, 60) == 40, stack.worker_log()[-2000:]
        frozen.send_signal(signal.SIGSTOP)
        await asyncio.sleep(5)
        frozen.send_signal(signal.SIGCONT)
        await stack.publish(await stack.mint(["info-again.example"]))
        assert await stack.wait_decided(41, 60) == 41, "a process that was frozen as a whole is not blocked"
        assert stack.end_worker(frozen) == 0
