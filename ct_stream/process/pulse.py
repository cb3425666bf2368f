"""Notices that this process was stopped for a while: a timeout from that time says nothing about a server.

After SIGSTOP, after the machine was suspended, or when the event loop was starved of CPU, all timers run out at once,
although the answers are waiting in the sockets.
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
    """Beats in the event loop, and notes when it could not."""

    def __init__(self) -> None:
        self._beat_at = inf
        self._stalls: deque[float] = deque(maxlen=100)
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to beat, in the running loop."""
        self._beat_at = time.monotonic()
        self._next = asyncio.get_running_loop().call_later(_BEAT_EVERY_S, self._beat)

    def stop(self) -> None:
        """Stop beating."""
        if self._next is not None:
            self._next.cancel()

    def stalled_since(self, moment: float) -> float:
        """Return 0.0, or how many seconds to rest if the loop was paused after this moment of the monotonic clock.

        The rest grows with the pauses of the last five minutes, from a second to a minute: otherwise a machine that is
        always short of CPU would ask the same servers again every second.
        """
        now = time.monotonic()
        if self._is_late(now) or (self._stalls and self._stalls[-1] > moment):
            stalls = self.stalls_lately
            return float(min(_REST_MOST_S, _REST_FIRST_S * 2 ** max(0, stalls - 1)))
        return 0.0

    @property
    def stalls_lately(self) -> int:
        """Return how often the loop was paused within the last five minutes, at most 100."""
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
