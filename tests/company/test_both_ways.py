"""A company that needs a proof of both our ways, in a stream where nobody else waits: it is decided.

On real statements, with every time of the controls a twentieth of the usual one.
"""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ct_stream.company.farewells import Farewells
from ct_stream.company.one_pass import WorkerGate
from ct_stream.gate.evidence import Settling
from ct_stream.gate.memory import Memory
from ct_stream.gate.questions import Attempt, ControlKind, MailboxAnswer, MxAnswer, MxStatus, Trouble
from ct_stream.gate.records import Known
from ct_stream.gate.replies import Stage
from ct_stream.gate.verdicts import Failed, Passed
from ct_stream.gate.waits import Wait
from ct_stream.store import control_ledger as controls_module
from ct_stream.store.control_ledger import ControlLedger
from ct_stream.store.parked import ParkedCompanies
from tests.company.ways import proven_way
from tests.gate.world import RULES
from tests.store.parts import opened, origin, running

if TYPE_CHECKING:
    import pytest

    from ct_stream.gate.output_stage import Origin
    from ct_stream.gate.records import Resumed
    from tests.conftest import DatabaseDsns

SCALE = 20
INTERVAL_S = 30 / SCALE
#: More than a twentieth of the usual one: a statement takes as long as ever, and longer on a busy machine.
SLACK_S = 0.5
#: Longer than a chain of proofs holds without a new one: silent hosts of two addresses each take that long.
ASKED_S = 2 * INTERVAL_S + SLACK_S + 0.5
MOST_S = 60.0

MX = ("mx1.acme.example", "mx2.acme.example")
#: The first host has no address that can be found, the second one says nothing.
SILENT = MailboxAnswer(
    attempts=(
        Attempt(host=MX[0], stage=Stage.CONNECT, trouble=Trouble.NAME_LOOKUP, detail="SERVFAIL"),
        Attempt(host=MX[1], ip="192.0.2.2", stage=Stage.BANNER, trouble=Trouble.TIMEOUT),
    )
)


class Prober:
    """Meets silence, slowly."""

    def __init__(self) -> None:
        self.asked = 0
        self.heard: tuple[()] = ()

    async def ask(self, *_: object) -> MailboxAnswer:
        self.asked += 1
        await asyncio.sleep(ASKED_S)
        return SILENT

    async def close(self, **_: object) -> None:
        """There is no session."""


async def nothing(*_: object, **__: object) -> None:
    """Stand in the way of nothing."""


def parts(controls: ControlLedger, prober: Prober, now: Any) -> Any:
    async def recall(_: str) -> Memory:
        return Memory()

    async def lookup_mx(_: str) -> MxAnswer:
        return MxAnswer(status=MxStatus.FOUND, hosts=MX)

    count = SimpleNamespace(labels=lambda **_: SimpleNamespace(inc=lambda: None))
    return SimpleNamespace(
        rules=RULES,
        controls=controls,
        probing=SimpleNamespace(resolver=SimpleNamespace(lookup_mx=lookup_mx), prober=lambda *_: prober),
        paid_calls=SimpleNamespace(off_because=lambda: "off"),
        memory=SimpleNamespace(recall=recall),
        limits=SimpleNamespace(mx_lookup=nothing),
        own_way=proven_way(),
        farewells=Farewells(),
        metrics=SimpleNamespace(tool_calls=count),
        guardrails=SimpleNamespace(
            unreached=nothing,
            refresh=nothing,
            settling=lambda age_s, _="": Settling(settle_s=600.0, age_s=age_s),
            closed=set(),
            closed_to=lambda _: set(),
            shut={},
        ),
        spine_check=SimpleNamespace(saw=lambda **_: None),
        pass_deadline_s=90.0,
        spine_grace_s=1.0,
        stalled_since=lambda _: 0.0,
        now=now,
        age_s=lambda moment: (now() - moment).total_seconds(),
    )


async def prove(controls: ControlLedger, kind: ControlKind, pauses: list[float]) -> None:
    """Prove a way whenever a proof is due; note how long the machine stood still, where that broke the chain."""
    proved = time.monotonic()
    while True:
        await asyncio.sleep(0.5 / SCALE)
        begun_at = await controls.begin(kind)
        if begun_at is not None:
            await controls.succeeded(kind, begun_at, "works")
            since, proved = time.monotonic() - proved, time.monotonic()
            if since > 2 * INTERVAL_S:
                pauses.append(since)


async def test_a_company_that_needs_both_controls_is_decided_in_a_sparse_stream(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chain of one way must go on while the other one is waited for, or it is asked again for ever."""
    monkeypatch.setattr(controls_module, "_CHAIN_SLACK_S", SLACK_S)
    prober = Prober()
    known = Known(outcome=None, pass_state=None, in_spine=True, domain="acme.example")
    async with opened(database.gate) as db:
        passes, controls = ParkedCompanies(db, "worker", "test"), ControlLedger(db, interval_s=INTERVAL_S)
        gate = WorkerGate(parts(controls, prober, db.now))

        async def go_on(company: Origin, resumed: Resumed | None) -> Passed | Failed | None:
            run = await gate.begin(company, known, resumed)
            result = await run.run()
            if not isinstance(result, Wait):
                return result
            await passes.park(run.parked(company, None, result))
            return None

        async with running(passes.park):
            pauses: list[float] = []
            proving = [asyncio.create_task(prove(controls, kind, pauses)) for kind in ControlKind]
            try:
                begin = time.monotonic()
                verdict = await go_on(origin(), None)
                while verdict is None and time.monotonic() - begin < MOST_S:
                    for resumed in await passes.claim_due(10):
                        verdict = await go_on(resumed.origin, resumed)
                    await asyncio.sleep(0.02)
            finally:
                for task in proving:
                    task.cancel()
        assert isinstance(verdict, Failed), f"not decided, asked {prober.asked} times"
        assert prober.asked == 2 or pauses, "silence is looked at twice"
