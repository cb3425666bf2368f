"""A worker whose event loop is blocked says where and ends; one that was frozen as a whole goes on."""

from __future__ import annotations

import asyncio
import re
import signal
from typing import TYPE_CHECKING

from ct_stream.process.watchdog import EXIT_CODE
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

QUICK = """
from ct_stream.process import watchdog
watchdog.Thresholds.of = classmethod(lambda cls, _: cls(unacked_s=600.0, blocked_s=3.0))
"""
BLOCKS = (
    QUICK
    + """
import time
import ct_stream.company.one_pass as world
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


async def test_a_worker_whose_loop_is_blocked_ends_and_says_where_and_loses_nothing(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker(prelude=BLOCKS)
        assert await stack.wait_said("Ready", 60)
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(40)]))
        assert await asyncio.to_thread(worker.wait, 30) == EXIT_CODE
        assert re.search(r"blocked for 3 s \(at most 3 s\) in spine\.created\[\d+\] offset \d+;", stack.worker_log())
        assert "in block" in stack.worker_log(), "it does not say where"
        frozen = stack.start_worker(prelude=QUICK)
        assert await stack.wait_decided(40, 60) == 40, stack.worker_log()[-2000:]
        frozen.send_signal(signal.SIGSTOP)
        await asyncio.sleep(5)
        frozen.send_signal(signal.SIGCONT)
        await stack.publish(await stack.mint(["info-again.example"]))
        assert await stack.wait_decided(41, 60) == 41, "a process that was frozen as a whole is not blocked"
        assert stack.end_worker(frozen) == 0
