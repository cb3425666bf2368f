"""Was this process stopped for a while? Then a timeout is its own, and no server's.

After SIGSTOP, on a machine that was suspended, or where the loop was starved, the timers of all that waits run out at
once, though the answers lie in the sockets.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from math import inf

_BEAT_EVERY_S = 0.25
STALL_S = (
    1.0  #: the longest step of our loop takes a tenth of it, and the shortest timeout of a server five times as long
)
_LATELY_S = 300.0
_REST_FIRST_S, _REST_MOST_S = 1.0, 60.0


class Pulse:
    """Beats in the event loop, and notes when it was kept from it."""

    def __init__(self) -> None:
        self._beat_at = inf
        self._stalls: deque[float] = deque(maxlen=100)
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to beat, in the running loop."""
        self._beat_at = time.monotonic()
        self._next = asyncio.get_running_loop().call_later(_BEAT_EVERY_S, self._beat)

    def stop(self) -> None:
        """Beat no more."""
        if self._next is not None:
            self._next.cancel()

    def stalled_since(self, moment: float) -> float:
        """Tell if the loop stood still at some time after this moment of the monotonic clock: 0.0, or how long to rest.

        That grows with the stops of the last five minutes, from a second to a minute: a machine that is starved for
        good would else ask the same servers again every second.
        """
        now = time.monotonic()
        if self._is_late(now) or (self._stalls and self._stalls[-1] > moment):
            stalls = self.stalls_lately
            return float(min(_REST_MOST_S, _REST_FIRST_S * 2 ** max(0, stalls - 1)))
        return 0.0

    @property
    def stalls_lately(self) -> int:
        """Return how often the loop stood still within the last five minutes, at most 100."""
        since = time.monotonic() - _LATELY_S
        return sum(1 for stalled_at in self._stalls if stalled_at > since)

    def _is_late(self, now: float) -> bool:
        return now - self._beat_at > _BEAT_EVERY_S + STALL_S

    def _beat(self) -> None:
        now = time.monotonic()
        if self._is_late(now):
            self._stalls.append(now)
        self._beat_at = now
        self._next = asyncio.get_running_loop().call_later(_BEAT_EVERY_S, self._beat)
