"""Runs the background loops of a process, and reports the ones that fail.

One owner starts them and ends them all. It does not use asyncio.TaskGroup, which would cancel the others at once when
one fails: a worker that stops because of a bug still needs them while it drains (leases, the outbox).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ct_stream.cancelling import end_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)


class Service(Protocol):
    """Something that works in the background until cancelled."""

    @property
    def name(self) -> str:
        """Return its name, for tasks and logs."""

    async def run(self) -> None:
        """Work until cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """Repeats one step."""

    name: str
    step: Callable[[], Awaitable[None]]
    every_s: float  #: of rest between two steps
    rests_first: bool = False
    may_fail: bool = False  #: True: an error is logged and costs one step; False: it ends the loop, and so the process

    async def run(self) -> None:
        """Work until cancelled."""
        if self.rests_first:
            await asyncio.sleep(self.every_s)
        while True:
            try:
                await self.step()
            except Exception as error:
                if not self.may_fail:
                    raise
                log.warning(
                    "The background loop %s failed, and runs again in %g s: %s",
                    self.name,
                    self.every_s,
                    error,
                    extra={"action": "upkeep_failed"},
                )
            await asyncio.sleep(self.every_s)


class Loops:
    """Runs services until it is stopped. `on_failure` is called with a sentence for each one that fails."""

    def __init__(self, on_failure: Callable[[str], None]) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, *services: Service) -> None:
        """Run each of these services in a task of its own."""
        for service in services:
            task = asyncio.create_task(service.run(), name=service.name)
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """End all services, and return when they have ended."""
        for task in self._tasks:
            task.remove_done_callback(self._ended)
        await end_all(self._tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("The background loop %s failed: %r", task.get_name(), error, exc_info=error)
            self._on_failure(f"the background loop {task.get_name()} failed: {error!r}")
