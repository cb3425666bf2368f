"""The scheduler of those that wait: an error of this machine costs a round, and nothing is begun once it stops."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ct_stream.stream import waits
from ct_stream.stream.waits import Scheduler

if TYPE_CHECKING:
    import pytest

    from ct_stream.gate.questions import ControlKind

NOW = datetime(2026, 1, 7, 9, 30, tzinfo=UTC)


class Parts:
    """What the scheduler works with, and what it did."""

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

    async def ask(self, kind: ControlKind) -> tuple[bool, str]:
        del kind
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def claim_due(self, limit: int) -> list[Any]:
        del limit
        await self.claiming.wait()
        return [SimpleNamespace(origin=SimpleNamespace(outreach_id=1))]

    async def from_waiting(self, resumed: Any) -> None:
        self.begun.append(resumed)

    def scheduler(self) -> Scheduler:
        nothing: Any = SimpleNamespace(renew_leases=_rest, wake_sleepers=_rest, tidy=_rest)
        parts: Any = self
        ledger: Any = SimpleNamespace(is_usable=lambda: True)
        return Scheduler(
            companies=parts, passes=parts, ledger=ledger, leases=nothing, controls=parts, ask_control=self.ask,
            most_running=5,
        )  # fmt: skip


async def _rest() -> None:
    return None


async def test_a_control_that_this_machine_cannot_ask_proves_nothing_and_stops_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waits, "_CONTROLS_EVERY_S", 0.01)
    parts = Parts(OSError(24, "Too many open files"), MemoryError(), (False, "no answer"), (True, "resolves"))
    running = asyncio.create_task(parts.scheduler().run())
    await asyncio.wait({running}, timeout=1.0)
    assert not running.done(), "an error of the machine ended the worker"
    assert sorted(parts.said) == [(False, "no answer"), (True, "resolves")]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_what_is_claimed_while_it_stops_is_not_begun() -> None:
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


async def test_the_company_that_is_gone_on_with_for_longest_is_what_the_watchdog_sees() -> None:
    parts = Parts()
    scheduler = parts.scheduler()
    assert scheduler.heads() == {}
    tasks = [asyncio.create_task(asyncio.sleep(60), name=f"waiting:{name}") for name in ("b", "a", "c")]
    scheduler._tasks.update(zip(tasks, (20.0, 10.0, 30.0), strict=True))
    assert scheduler.heads() == {"company a": 10.0}
    for task in tasks:
        task.cancel()
