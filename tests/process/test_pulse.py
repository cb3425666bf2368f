"""A process that was paused knows it before any of its timers fires."""

from __future__ import annotations

import asyncio
import time

from ct_stream.process.pulse import STALL_S, Pulse


async def test_a_loop_that_turns_has_not_stood_still() -> None:
    pulse = Pulse()
    begin = time.monotonic()
    assert not pulse.stalled_since(begin), "not before it was started"
    pulse.start()
    await asyncio.sleep(0.6)
    assert not pulse.stalled_since(begin)
    pulse.stop()


async def test_a_timer_that_ran_out_during_a_pause_sees_the_pause() -> None:
    pulse = Pulse()
    pulse.start()
    begin = time.monotonic()
    timed_out = None
    try:
        async with asyncio.timeout(0.1):
            time.sleep(STALL_S + 0.5)  # noqa: ASYNC251 - the loop is paused
            assert pulse.stalled_since(begin), "whoever asks before the next beat"
            await asyncio.sleep(10)
    except TimeoutError:
        timed_out = pulse.stalled_since(begin)
    assert timed_out == 1.0
    await asyncio.sleep(0.3)
    assert pulse.stalled_since(begin)
    assert not pulse.stalled_since(time.monotonic()), "what is asked after it is not touched"
    pulse.stop()


async def test_a_loop_that_stands_still_again_and_again_rests_longer_each_time() -> None:
    pulse = Pulse()
    now = time.monotonic()
    pulse._stalls.extend([now - 400.0, now - 290.0, now - 50.0])
    assert pulse.stalls_lately == 2
    assert pulse.stalled_since(now) == 0.0
    assert pulse.stalled_since(now - 60.0) == 2.0
    pulse._stalls.extend([now - 1.0] * 20)
    assert pulse.stalled_since(now - 60.0) == 60.0
