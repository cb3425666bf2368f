"""Table recovery throws events away in Faust (issue 596): shown, and shown to be cured by the hold.

Made certain by a delay between `resume_partitions` and `flow_control.resume`, where Faust's race is.
"""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

#: `perform_seek` is what Faust awaits between the two; the delay is what a slow broker makes of it.
DELAY = """
import asyncio
import faust.transport.consumer as transport
perform_seek = transport.Consumer.perform_seek
async def slow_seek(self):
    await perform_seek(self)
    await asyncio.sleep(4)
transport.Consumer.perform_seek = slow_seek
"""
WITHOUT_GUARD = """
import ct_stream.stream.offset_guard as guard_module
async def accept_all(self, event):
    return True
guard_module.OffsetGuard.accept = accept_all
guard_module.OffsetGuard.connect = lambda self: None
"""
#: The whole changelog is read before Faust waits for that.
LATE_WAIT = """
import asyncio
from faust.transport.consumer import Fetcher
maybe_start = Fetcher.maybe_start
async def late(self):
    started = await maybe_start(self)
    await asyncio.sleep(3)
    return started
Fetcher.maybe_start = late
"""
BACKLOG = 300
QUIET_S = 20.0  #: in which not one company more is decided: then nothing comes any more


async def restart_with_a_backlog(stack: Stack, prelude: str, delay: str = DELAY) -> tuple[int, int | None]:
    """Start on a non-empty changelog with a backlog; return (undecided when nothing comes any more, exit code)."""
    first = stack.start_worker()
    ids = await stack.mint([None] * 5 + ["nullmx-1.example"] + [f"info-a{n}.example" for n in range(40)])
    await stack.publish(ids)
    assert await stack.wait_decided(46, 40) == 46
    assert stack.end_worker(first) == 0
    backlog = await stack.mint([f"info-b{n}.example" for n in range(BACKLOG)])
    await stack.publish(backlog)
    # Few places and slow servers, so that events are still queued when Faust clears the queues.
    await stack.farm.set_reply_delay(0.5)
    second = stack.start_worker(prelude=delay + prelude, CT_IN_FLIGHT="10")
    await stack.wait_said("Ready", 30)
    await stack.farm.set_reply_delay(0.0)
    decided, before = await stack.count_decided(), -1
    while before < decided < 46 + BACKLOG and second.poll() is None:
        before, decided = decided, await stack.wait_decided(46 + BACKLOG, QUIET_S)
    return 46 + BACKLOG - decided, second.poll()


async def test_faust_alone_never_delivers_what_arrives_during_recovery(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        lost, ended = await restart_with_a_backlog(stack, WITHOUT_GUARD)
        assert ended is None
        assert lost > 0, "the race did not strike: the test no longer shows what the guard is for"


async def test_the_hold_cures_the_race(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        lost, ended = await restart_with_a_backlog(stack, "")
        assert (lost, ended) == (0, None)
        assert stack.end_worker(stack.workers[-1]) == 0


async def test_a_recovery_that_ends_before_faust_waits_for_it_does_not_hang(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        lost, ended = await restart_with_a_backlog(stack, "", LATE_WAIT)
        assert (lost, ended) == (0, None)
        assert stack.end_worker(stack.workers[-1]) == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_ends_with_0_within_the_drain_and_5_s(tmp_path: Path, how: signal.Signals) -> None:
    async with Stack(tmp_path, reply_delay_s=1.0) as stack:
        worker = stack.start_worker()
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(400)]))
        assert await stack.wait_said("Ready", 40)
        await asyncio.sleep(4)  # in the middle of sessions that take 10 s or more
        assert stack.end_worker(worker, how, within_s=3 + 5) == 0
        decided = await stack.count_decided()
        stack.start_worker()
        assert await stack.wait_decided(400, 90) == 400
        assert decided < 400, "nothing was in flight: the drain was not put to the test"
