"""What a worker's metrics and heartbeat say of its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ct_stream.gate.questions import ControlKind
from ct_stream.metrics import Health, Metrics
from ct_stream.wiring.watching import Gauges, Heartbeat

if TYPE_CHECKING:
    from ct_stream.store.worker_record import Beat


class Parts:
    """The parts of a worker, as far as its gauges and its heartbeat look at them."""

    def __init__(self, lacking: set[ControlKind]) -> None:
        self.lacking = lacking
        self.running, self.parked_for_it, self.address = 2, 7, "203.0.113.25"
        self.halted: dict[str, str] = {}
        self.beats: list[Beat] = []

    def lacks(self, kind: ControlKind) -> object:
        return "a wait" if kind in self.lacking else None

    async def waiting_by_reason(self) -> list[Any]:
        return []

    async def count_unpublished(self) -> int:
        return 0

    async def refresh(self) -> None:
        return

    def positions(self) -> list[Any]:
        return []

    async def beat(self, beat: Beat) -> None:
        self.beats.append(beat)


class _NoGates:
    def __len__(self) -> int:
        return 0

    def oldest_age_s(self) -> float:
        return 0.0


@pytest.mark.parametrize("lacking", [set(), {ControlKind.SMTP6}, set(ControlKind)], ids=["none", "IPv6", "all"])
async def test_the_gauges_say_which_of_our_own_ways_are_proven(lacking: set[ControlKind]) -> None:
    parts: Any = Parts(lacking)
    parts.gates = _NoGates()
    metrics = Metrics()
    gauges = Gauges(
        agent=parts, scheduler=parts, parked=parts, ledger=parts, guardrails=parts, own_way=parts, metrics=metrics,
        health=Health(),
    )  # fmt: skip
    await gauges.look()
    value = metrics.registry.get_sample_value
    assert {kind: value("ct_way_proven", {"kind": kind.value}) for kind in ControlKind} == {
        kind: float(kind not in lacking) for kind in ControlKind
    }
    assert value("ct_parked_for_own_way") == 7


async def test_the_heartbeat_carries_the_notes_of_this_worker_and_its_address() -> None:
    parts: Any = Parts(set())
    health = Health()
    health.notes |= {"smtp6": "no way over IPv6", "waiting": "312 control", "stuck": "1 our_bug", "lag": "not known"}
    heartbeat = Heartbeat(parts, health)
    await heartbeat.look()
    heartbeat.at_work(agent=parts, scheduler=parts, guard=parts, own_way=parts)
    await heartbeat.look()
    assert [beat.address for beat in parts.beats] == ["", "203.0.113.25"]
    assert parts.beats[-1].notes == {"smtp6": "no way over IPv6"}, "the others are of all workers"
