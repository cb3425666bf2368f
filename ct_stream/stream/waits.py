"""Who goes on with the companies that wait? This scheduler, in every worker, by leases in Postgres."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from ct_stream.gate.questions import ControlKind

if TYPE_CHECKING:
    from datetime import datetime

    from ct_stream.stream.companies import Companies
    from ct_stream.stream.ports import LedgerPort, PassesPort

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_LOOK_EVERY_S = 0.25
_RENEW_EVERY_S = 5.0
_SLEEPERS_EVERY_S = 5.0
_CONTROLS_EVERY_S = 0.5
_TIDY_EVERY_S = 600.0


class Leases(Protocol):
    """The upkeep that leases need."""

    async def renew_leases(self) -> None:
        """Keep what this worker leases."""

    async def wake_sleepers(self) -> None:
        """Wake what a crash or a race kept asleep."""

    async def tidy(self) -> None:
        """Remove what nothing needs any more."""


class ControlsPort(Protocol):
    """The right to ask a control, and what came of it."""

    async def begin(self, kind: ControlKind) -> datetime | None:
        """Take the right to ask now, when somebody waits for it."""

    async def succeeded(self, kind: ControlKind, begun_at: datetime, detail: str) -> None:
        """Record a proof."""

    async def failed(self, kind: ControlKind, detail: str) -> None:
        """Record that our own way is broken."""


#: Asks a control; returns (succeeded, one sentence).
AskControlOf = Callable[[ControlKind], Awaitable[tuple[bool, str]]]


class Scheduler:
    """Goes on with undecided companies, up to a number of its own so that new events keep their places."""

    def __init__(
        self,
        *,
        companies: Companies,
        passes: PassesPort,
        ledger: LedgerPort,
        leases: Leases,
        controls: ControlsPort,
        ask_control: AskControlOf,
        most_running: int,
    ) -> None:
        self._companies = companies
        self._passes = passes
        self._ledger = ledger
        self._leases = leases
        self._controls = controls
        self._ask_control = ask_control
        self._most_running = most_running
        self._tasks: dict[asyncio.Task[None], float] = {}
        self._stopping = False

    @property
    def running(self) -> int:
        """Return how many waiting companies this worker goes on with now."""
        return len(self._tasks)

    def heads(self) -> dict[str, float]:
        """Return the waiting company that this worker has gone on with for longest, and since when (monotonic)."""
        if not self._tasks:
            return {}
        oldest = min(self._tasks, key=self._tasks.__getitem__)
        return {f"company {oldest.get_name().removeprefix('waiting:')}": self._tasks[oldest]}

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claim_due(), name="waits:claim")
            group.create_task(self._upkeep(self._leases.renew_leases, _RENEW_EVERY_S), name="waits:renew")
            group.create_task(self._upkeep(self._leases.wake_sleepers, _SLEEPERS_EVERY_S), name="waits:sleepers")
            group.create_task(self._upkeep(self._leases.tidy, _TIDY_EVERY_S), name="waits:tidy")
            for kind in ControlKind:
                group.create_task(self._ask_controls(kind), name=f"waits:control:{kind}")

    async def drain(self, within_s: float) -> None:
        """Take no more, give the running ones so long, then put them away with their answers."""
        self._stopping = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within_s)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _claim_due(self) -> None:
        while not self._stopping:
            room = self._most_running - len(self._tasks)
            claimed = 0
            if room > 0 and self._ledger.is_usable():
                due = await self._carefully(self._passes.claim_due, min(room, 200))
                # Told to stop meanwhile: nobody would drain them. Their leases end with this worker.
                for resumed in () if self._stopping else due or ():
                    claimed += 1
                    task = asyncio.create_task(
                        self._companies.from_waiting(resumed), name=f"waiting:{resumed.origin.outreach_id}"
                    )
                    self._tasks[task] = time.monotonic()
                    task.add_done_callback(self._tasks.pop)
            if claimed == 0:
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _upkeep(self, work: Callable[[], Awaitable[None]], every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            if self._ledger.is_usable():
                await self._carefully(work)

    async def _ask_controls(self, kind: ControlKind) -> None:
        """Ask a control when somebody waits for one: one at a time over all workers."""
        while True:
            await asyncio.sleep(_CONTROLS_EVERY_S)
            if not self._ledger.is_usable():
                continue
            begun_at = await self._carefully(self._controls.begin, kind)
            if begun_at is None:
                continue
            # An error of this machine (no descriptor, no port) proves nothing, and stops no worker.
            await self._carefully(self._ask_one, kind, begun_at)

    async def _ask_one(self, kind: ControlKind, begun_at: datetime) -> None:
        succeeded, detail = await self._ask_control(kind)
        if succeeded:
            await self._controls.succeeded(kind, begun_at, detail)
        else:
            await self._controls.failed(kind, detail)
            log.warning("Control %s failed: %s", kind, detail, extra={"action": "control_failed", "kind": kind})

    async def _carefully(self, work: Callable[..., Awaitable[Result]], *args: object) -> Result | None:
        """Do a round of upkeep; an error costs this round, not the scheduler."""
        try:
            return await work(*args)
        except Exception as error:
            log.warning("%s: %s", getattr(work, "__name__", "upkeep"), error, extra={"action": "upkeep_failed"})
            return None
