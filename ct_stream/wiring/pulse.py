"""Was this process stopped for a while? Then a timeout is its own, and no server's.

After SIGSTOP, on a machine that was suspended, or where the loop was starved, the timers of all that waits run out at
once, though the answers lie in the sockets.
"""

from __future__ import annotations

import asyncio
import time
from math import inf

_BEAT_EVERY_S = 0.25
STALL_S = (
    1.0  #: the longest step of our loop takes a tenth of it, and the shortest timeout of a server five times as long
)


class Pulse:
    """Beats in the event loop, and notes when it was kept from it."""

    def __init__(self) -> None:
        self._beat_at = inf
        self._stalled_at = -inf
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to beat, in the running loop."""
        self._beat_at = time.monotonic()
        self._next = asyncio.get_running_loop().call_later(_BEAT_EVERY_S, self._beat)

    def stop(self) -> None:
        """Beat no more."""
        if self._next is not None:
            self._next.cancel()

    def stalled_since(self, moment: float) -> bool:
        """Tell if the loop stood still at some time after this moment of the monotonic clock."""
        return self._stalled_at > moment or self._is_late(time.monotonic())

    def _is_late(self, now: float) -> bool:
        return now - self._beat_at > _BEAT_EVERY_S + STALL_S

    def _beat(self) -> None:
        now = time.monotonic()
        if self._is_late(now):
            self._stalled_at = now
        self._beat_at = now
        self._next = asyncio.get_running_loop().call_later(_BEAT_EVERY_S, self._beat)
