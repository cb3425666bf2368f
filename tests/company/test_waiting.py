"""The scheduler of those that wait: an error of this machine costs a round, and nothing is begun once it stops."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ct_stream.company import own_way
from ct_stream.company.own_way import OwnWay
from ct_stream.company.waiting import Scheduler
from ct_stream.probes.mx import ControlResult
from ct_stream.process.loops import Loops

if TYPE_CHECKING:
    import pytest

    from ct_stream.gate.questions import ControlKind

NOW = datetime(2026, 1, 7, 9, 30, tzinfo=UTC)


class Parts:
    """What the scheduler works with, and what it did."""

    worker = "worker"

    def __init__(self, *answers: tuple[bool, str] | Exception) -> None:
        self.answers = list(answers)
        self.said: list[tuple[bool, str]] = []
        self.begun: list[Any] = []
        self.claiming = asyncio.Event()

    async def begin(self, kind: ControlKind) -> datetime | None:
        del kind
        return NOW if self.answers else None

    async def succeeded(self, kind: ControlKind, begun_at: datetime, detail: str) -> None:
        del kind, begun_at
        self.said.append((True, detail))

    async def failed(self, kind: ControlKind, detail: str) -> None:
        del kind
        self.said.append((False, detail))

    async def look(self) -> None:
        """Look at nothing."""

    async def ask_control(self, kind: ControlKind) -> ControlResult:
        del kind
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return ControlResult(ok=answer[0], detail=answer[1])

    async def claim_due(self, limit: int, **_: object) -> list[Any]:
        del limit
        await self.claiming.wait()
        return [SimpleNamespace(origin=SimpleNamespace(outreach_id=1))]

    async def from_waiting(self, resumed: Any) -> None:
        self.begun.append(resumed)

    def scheduler(self) -> Scheduler:
        parts: Any = self
        database: Any = SimpleNamespace(is_up=True)
        own_way: Any = SimpleNamespace(trouble=None, take_over=[], others=[])
        return Scheduler(companies=parts, parked=parts, database=database, own_way=own_way, most_running=5)

    def own_way(self) -> OwnWay:
        parts: Any = self
        database: Any = SimpleNamespace(is_up=True)
        nothing: Any = None
        own_way = OwnWay(database, parts, nothing, parts, nothing, nothing)
        own_way.look = self.look  # type: ignore[method-assign]
        return own_way


async def test_a_control_that_this_machine_cannot_ask_proves_nothing_and_stops_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(own_way, "_ASK_EVERY_S", 0.01)
    parts = Parts(OSError(24, "Too many open files"), MemoryError(), (False, "no answer"), (True, "resolves"))
    failures: list[str] = []
    loops = Loops(failures.append)
    loops.start(*parts.own_way().ask_loops())
    await asyncio.sleep(0.5)
    assert failures == [], "an error of the machine ended the worker"
    assert sorted(parts.said) == [(False, "no answer"), (True, "resolves")]
    await loops.stop()


async def test_companies_claimed_during_a_stop_are_not_started() -> None:
    parts = Parts()
    scheduler = parts.scheduler()
    running = asyncio.create_task(scheduler.run())
    await asyncio.sleep(0.05)
    await scheduler.drain(0.0)
    parts.claiming.set()
    await asyncio.sleep(0.05)
    assert parts.begun == []
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_watchdog_sees_the_company_that_was_resumed_longest_ago() -> None:
    parts = Parts()
    scheduler = parts.scheduler()
    assert scheduler.heads() == {}
    tasks = [asyncio.create_task(asyncio.sleep(60), name=f"waiting:{name}") for name in ("b", "a", "c")]
    scheduler._tasks.update(zip(tasks, (20.0, 10.0, 30.0), strict=True))
    assert scheduler.heads() == {"company a": 10.0}
    for task in tasks:
        task.cancel()
