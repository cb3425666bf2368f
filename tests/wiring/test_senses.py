"""What does the watchdog hear of a worker?"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

from ct_stream.metrics import Health
from ct_stream.process.watchdog import Thresholds
from ct_stream.wiring.senses import WorkerSenses


async def test_a_worker_excuses_each_known_trouble_a_drain_and_a_halted_input() -> None:
    """A switch that is off here would restart workers in every outage."""
    health = Health()
    database: Any = SimpleNamespace(failed_at=float("-inf"))
    agent: Any = SimpleNamespace(is_draining=False, unassigned_since=None)
    control: Any = SimpleNamespace(is_halted=False)
    nothing: Any = None
    excused = WorkerSenses(
        app=nothing, agent=agent, membership=nothing, scheduler=nothing, input_check=control, delivery=nothing,
        view=nothing, database=database, health=health, thresholds=Thresholds.of(90.0),
    ).excused  # fmt: skip
    began = time.monotonic()
    assert excused() < began
    for part in ("postgres", "kafka", "kafka_group", "ledger"):
        before = time.monotonic()
        health.set(part, "away")
        assert excused() >= before, part
        health.set(part, None)
        assert before <= excused() <= time.monotonic(), part
    health.set("control_smtp", "port 25 is blocked: companies wait, and events are acked")
    now = time.monotonic()
    assert excused() < now
    database.failed_at = now + 1
    assert excused() == now + 1, "a lock shows itself for a moment only"
    for held in (agent, control):
        name = next(iter(vars(held)))
        setattr(held, name, True)
        database.failed_at = 0.0
        assert excused() >= now
        setattr(held, name, False)
    database.failed_at = 0.0
    agent.unassigned_since = time.monotonic() - 100
    assert excused() >= now, "a rebalance"
    agent.unassigned_since = time.monotonic() - 200
    assert excused() < now, "no rebalance takes so long"


async def test_a_recovery_that_stands_still_counts_only_in_the_group() -> None:
    recovery = SimpleNamespace(in_recovery=True, active_remaining_total=lambda: 60)
    membership: Any = SimpleNamespace(is_left=False)
    app: Any = SimpleNamespace(tables=SimpleNamespace(recovery=recovery))
    view: Any = SimpleNamespace(names=SimpleNamespace(changelog="changelog"))

    async def nothing_waits() -> dict[object, int]:
        return {}

    delivery: Any = SimpleNamespace(undelivered=nothing_waits)
    health, nothing = Health(), cast("Any", None)
    senses = WorkerSenses(
        app=app, agent=nothing, membership=membership, scheduler=nothing, input_check=nothing, delivery=delivery,
        view=view, database=nothing, health=health, thresholds=Thresholds.of(90.0),
    )  # fmt: skip
    assert await senses.undelivered() == {"changelog": 60}
    assert "60 records are left" in health.notes["recovery"]
    membership.is_left = True
    assert await senses.undelivered() == {}
    assert "recovery" not in health.notes
