"""Does the event loop still turn? A thread looks, and ends the process when it does not, for its supervisor to restart.

A blocked loop renews no lease, answers no health check and acks nothing, and nothing inside it can notice. What the
process leaves is what a crash leaves: un-acked events come again, leases run out.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

EXIT_CODE = 76  #: of a process whose event loop was blocked
#: A minute. The longest thing that our loop does in one step takes about a tenth of a second, and a lease runs out
#: after 20 s: what it held has long gone to others.
TICKS = 60
TICK_S = 1.0


@asynccontextmanager
async def loop_watchdog(
    *, ticks: int | None = None, tick_s: float = TICK_S, bite: Callable[[float], None] | None = None
) -> AsyncIterator[None]:
    """Watch the running loop for as long as the block lasts; `bite` is called with the seconds that it stood still.

    Counted in ticks of the watching thread, not by a clock: a process that was frozen as a whole (SIGSTOP, a suspended
    machine) has missed none.
    """
    watch = _Watch(TICKS if ticks is None else ticks, tick_s, bite or _exit_now)
    beating = asyncio.create_task(watch.beat(), name="watchdog")
    thread = threading.Thread(target=watch.look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        watch.over.set()
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)


class _Watch:
    def __init__(self, ticks: int, tick_s: float, bite: Callable[[float], None]) -> None:
        self._ticks = ticks
        self._tick_s = tick_s
        self._bite = bite
        self._beats = 0
        self.over = threading.Event()

    async def beat(self) -> None:
        while True:
            self._beats += 1
            await asyncio.sleep(self._tick_s / 2)

    def look(self) -> None:
        seen, missed = -1, 0
        while not self.over.wait(self._tick_s):
            seen, missed = self._beats, missed + 1 if self._beats == seen else 0
            if missed >= self._ticks:
                self._bite(missed * self._tick_s)
                return


def _exit_now(stood_s: float) -> None:
    """Say what every thread was doing, and end at once and without a commit."""
    sys.stderr.write(
        f"ct-stream: the event loop has stood still for {stood_s:g} s; exiting; what is not acked comes again\n"
    )
    sys.stderr.flush()
    faulthandler.dump_traceback(all_threads=True)
    os._exit(EXIT_CODE)
