"""Finishes what a decided company does not wait for: the end of its last session, and its report to the controls."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

log = logging.getLogger(__name__)


class Farewells:
    """Owns these tasks; a worker that stops waits for them."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, closing: Coroutine[Any, Any, None]) -> None:
        """See a session to its end."""
        task = asyncio.create_task(closing, name="farewell")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def wait(self) -> None:
        """Return when all sessions have ended."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # This loses no answer, and a lease runs out by itself.
            log.error("Closing an SMTP session failed: %r", error, exc_info=error, extra={"action": "our_bug"})
