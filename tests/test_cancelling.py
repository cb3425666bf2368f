"""A request to cancel that a library loses: the task ends all the same."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from ct_stream.cancelling import end_all, until_a_signal
from ct_stream.process.loops import Loops

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def loses_one(told: asyncio.Event) -> None:
    """Go on after the first request, as what awaits wait_for or a close() may."""
    told.set()
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(3600)


async def test_a_task_ends_though_its_first_cancellation_is_lost() -> None:
    told = asyncio.Event()
    task = asyncio.create_task(loses_one(told))
    await told.wait()
    async with asyncio.timeout(20):
        await end_all([task], tidies_s=0.05)
    assert task.cancelled()


async def test_a_task_that_tidies_up_in_time_is_asked_once() -> None:
    tidied = asyncio.Event()

    async def tidies() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            tidied.set()

    task = asyncio.create_task(tidies())
    await asyncio.sleep(0)
    await end_all([task], tidies_s=30)
    assert tidied.is_set()
    assert task.cancelled()


@asynccontextmanager
async def what_the_loop_says() -> AsyncIterator[list[str]]:
    """Collect what the event loop complains about."""
    loop, said = asyncio.get_running_loop(), []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _loop, context: said.append(context["message"]))
    try:
        yield said
    finally:
        loop.set_exception_handler(before)


async def test_a_task_that_fails_while_it_ends_says_nothing_later() -> None:
    async def fails() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise RuntimeError("while it ends")

    async def failed_before() -> None:
        raise RuntimeError("before it is ended")

    async with what_the_loop_says() as said:
        tasks = [asyncio.create_task(fails()), asyncio.create_task(failed_before())]
        await asyncio.sleep(0)
        await end_all(tasks)
        tasks.clear()
        gc.collect()
    assert said == []


async def test_the_background_loops_end_though_one_loses_its_cancellation() -> None:
    class Service:
        name = "loses"
        told = asyncio.Event()

        async def run(self) -> None:
            await loses_one(self.told)

    loops = Loops(on_failure=pytest.fail)
    service = Service()
    loops.start(service)
    await service.told.wait()
    async with asyncio.timeout(20):
        await loops.stop()


_PROGRAM = """
import asyncio
from ct_stream.cancelling import until_a_signal

async def work():
    try:
        print("at work", flush=True)
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await asyncio.sleep(3600)
    finally:
        print("tidied", flush=True)

try:
    asyncio.run(until_a_signal(work(), tidies_s=0.05))
except (KeyboardInterrupt, asyncio.CancelledError):
    print("interrupted")
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_command_ends_in_order_though_its_cancellation_is_lost(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", _PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(how)
        assert process.stdout.read() == "tidied\ninterrupted\n"
        assert process.wait() == 0


async def test_an_error_while_a_command_ends_in_order_is_raised() -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            raise OSError("cannot tidy: the disk is full")

    main = asyncio.create_task(until_a_signal(work()))
    await asyncio.sleep(0.01)
    main.cancel()
    try:
        with pytest.raises(OSError, match="cannot tidy"):
            await main
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
