"""Counts how long a pass has waited for servers' answers, up to its deadline."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class OutOfTime(Exception):
    """The pass has no waiting time left."""


class Stopwatch:
    """Runs only inside `waiting`. Our limits, leases, database and broker do not count (DESIGN section 3)."""

    def __init__(self, deadline_s: float, spent_s: float = 0.0) -> None:
        self._deadline_s = deadline_s
        self.spent_s = spent_s

    @property
    def left_s(self) -> float:
        """Return how many seconds the pass may still wait."""
        return max(0.0, self._deadline_s - self.spent_s)

    @asynccontextmanager
    async def waiting(self, limit_s: float = inf) -> AsyncIterator[None]:
        """Count the body's time; raise TimeoutError after `limit_s`, OutOfTime when the pass has no time left.

        Only one body may run at a time.
        """
        left_s = self.left_s
        if left_s <= 0:
            raise OutOfTime
        begin = time.monotonic()
        scope = asyncio.timeout(min(limit_s, left_s))
        try:
            async with scope:
                yield
        except TimeoutError:
            # A connection's own ETIMEDOUT is a TimeoutError as well.
            if scope.expired() and left_s <= limit_s:
                raise OutOfTime from None
            raise
        finally:
            self.spent_s += time.monotonic() - begin
