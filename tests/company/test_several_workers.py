"""Two to four workers, of which any may lose its way and find it again: every company is decided, and by no broken one.

Random interleavings, without a database or a clock: what stores/ keeps of controls and waits is a few lines here, and
tests/store holds it to the same. What a pass makes of it is the real thing.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from ct_stream.company.farewells import Farewells
from ct_stream.company.one_pass import WorkerGate
from ct_stream.gate.evidence import UNPROVEN, Settling, before_astray
from ct_stream.gate.memory import Memory
from ct_stream.gate.output_stage import Origin
from ct_stream.gate.questions import ControlAnswer, ControlKind, MxAnswer, MxStatus, SpineAnswer, Trouble
from ct_stream.gate.records import FailedAt, Known, Resumed
from ct_stream.gate.verdicts import Failed, Passed
from ct_stream.gate.waits import NOTHING, Wait, WaitReason, WaitsOn
from ct_stream.store.control_ledger import ControlLedger, RunWays
from tests.company.ways import proven_way
from tests.gate.world import NO, RULES, YES, mx, trouble

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ct_stream.gate.evidence import Way
    from ct_stream.gate.patterns import Address
    from ct_stream.gate.questions import MailboxAnswer
    from ct_stream.gate.transcript import Exchange
    from ct_stream.probes.stopwatch import Stopwatch

SEEDS = 250
NEVER = UNPROVEN.control_at
KINDS = (ControlKind.DNS, ControlKind.SMTP)
INTERVAL, WINDOW = 3, 40  #: ticks between two controls, and for which one lets a worker ask
HOLDS_FROM, MOST_TICKS = 120, 100  #: from when on one way holds, and by when everybody is decided after that
MOST_LOOKS = 6  #: of one company after that
FAULTS = ("silent", "answered by somebody else", "resolver says that no name exists")
LASTS = (12, 40)  #: a shorter one may come and go between two proofs of one chain, and nobody could know of it
KEPT = timedelta(seconds=900)  #: a way that breaks again so soon after was not whole in between


@dataclass
class Run:
    """One worker run."""

    name: str
    fault: str | None = None
    until: int = 0  #: when it is mended
    is_gone: bool = False
    is_whole: bool = False  #: from now on its way holds, and nothing limits it
    ways: dict[ControlKind, Way] = field(default_factory=lambda: dict.fromkeys(KINDS, UNPROVEN))
    lost: list[tuple[datetime, datetime]] = field(default_factory=list)  #: from the last success to a failure
    asked: dict[ControlKind, float] = field(default_factory=lambda: dict.fromkeys(KINDS, -inf))

    def is_open(self, now: datetime) -> bool:
        return all(
            not way.is_failing
            and way.control_at > way.failed_at
            and now - way.control_at < timedelta(seconds=WINDOW + 5)
            for way in self.ways.values()
        )


@dataclass
class Company:
    """One company, whose servers live or are dead, and what is kept of it while it waits."""

    number: int
    lives: bool
    row: dict[str, Any]
    not_before: datetime
    looks: int = 0
    verdict: Passed | Failed | None = None


class Ways(ControlLedger):
    """The controls of one run, in the memory of the test."""

    def __init__(self, world: World, run: Run) -> None:
        super().__init__(None, float(INTERVAL), run.name)  # type: ignore[arg-type]
        self._world, self._run = world, run

    async def own(self) -> dict[ControlKind, Way]:
        return self._run.ways

    async def of_runs(self, runs: Collection[str]) -> dict[str, RunWays]:
        return {
            run.name: RunWays(
                ways={kind: replace(way, is_gone=run.is_gone) for kind, way in run.ways.items()}, is_gone=run.is_gone
            )
            for run in self._world.all_runs
            if run.name in runs
        }


class World:
    """The companies, the runs, and the ticks."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.now = datetime(2026, 1, 7, tzinfo=UTC)
        self.tick = 0
        self.all_runs = [Run(f"run/{n}") for n in range(self.chance.randint(2, 4))]
        self.companies = [self._company(n) for n in range(12)]

    def _company(self, number: int) -> Company:
        row = {
            "exchanges": (), "pending": None, "looks": 0, "reason": "rate_limit", "waits_on": NOTHING, "asked_at": None,
            "failed_at": None, "spent_s": 0.0, "met_by": "",
        }  # fmt: skip
        # Half of them come so late that they are under way when the one way begins to hold.
        first = 0 if number % 2 else HOLDS_FROM - 10
        comes_at = self.now + timedelta(seconds=self.chance.randint(first, HOLDS_FROM))
        return Company(number, lives=number % 3 > 0, row=row, not_before=comes_at)

    def moment(self) -> datetime:
        """Return a moment of its own for whatever happens next."""
        self.now += timedelta(milliseconds=1)
        return self.now

    @property
    def runs(self) -> list[Run]:
        return [run for run in self.all_runs if not run.is_gone]

    # ---------------------------------------------------------------- what befalls the runs

    def befall(self, whole: Run | None) -> None:
        for run in self.runs:
            if run.fault and self.tick >= run.until:
                run.fault = None
            if run is whole:
                continue  # it breaks no more; what is broken is mended in its time
            if not run.fault and self.chance.random() < 0.05:
                run.fault, run.until = self.chance.choice(FAULTS), self.tick + self.chance.randint(*LASTS)
            elif self.chance.random() < 0.01:
                run.is_gone = True
                self.all_runs.append(Run(f"run/{len(self.all_runs)}"))

    def control(self, run: Run, kind: ControlKind) -> None:
        way = run.ways[kind]
        waiting = any(c.row["met_by"] == run.name and c.row["waits_on"].is_control for c in self.open_companies)
        is_due = way.is_failing or waiting or way.control_at + timedelta(seconds=WINDOW) < self.now
        if not is_due or self.tick - run.asked[kind] < INTERVAL:
            return
        run.asked[kind] = self.tick
        at = self.moment()
        if run.fault == FAULTS[2] if kind is ControlKind.DNS else run.fault in FAULTS[:2]:
            run.lost.append((way.control_at, at))  # before its first success it asks nobody
            goes_on = way.trouble_until > UNPROVEN.trouble_until and way.trouble_until > at - KEPT
            earlier = way.earlier if goes_on else (*way.earlier, (way.trouble_from, way.trouble_until))
            begin = way.trouble_from if goes_on and way.trouble_from > NEVER else way.control_at
            run.ways[kind] = replace(
                way, failed_at=at, trouble_from=begin, trouble_until=UNPROVEN.proven_since, earlier=earlier
            )
            return
        in_chain = way.failed_at < way.proven_since and at <= way.ok_begun_at + timedelta(seconds=2 * INTERVAL + 3)
        run.ways[kind] = replace(
            way, ok_begun_at=at, control_at=at, proven_since=way.proven_since if in_chain else at,
            trouble_until=at if way.is_failing else way.trouble_until,
        )  # fmt: skip
        for company in self.open_companies:
            row = company.row
            if row["met_by"] == run.name and row["waits_on"] == WaitsOn.control(kind) and row["failed_at"] < at:
                company.not_before = at

    # ---------------------------------------------------------------- what the runs do

    @property
    def open_companies(self) -> list[Company]:
        return [company for company in self.companies if company.verdict is None]

    def may_claim(self, run: Run, company: Company) -> bool:
        if company.not_before <= self.now or company.row["waits_on"] == WaitsOn.way():
            return True
        if not company.row["waits_on"].is_control:
            return False
        other = next(r for r in self.all_runs if r.name == company.row["met_by"])
        kind = ControlKind(company.row["waits_on"].partition(":")[2])
        return other is not run and (other.is_gone or other.ways[kind].is_failing)

    def _lookup_mx(self, run: Run) -> MxAnswer:
        return MxAnswer(status=MxStatus.NXDOMAIN) if run.fault == FAULTS[2] else mx()

    def _mailbox(self, run: Run, company: Company, address: Address) -> MailboxAnswer:
        if run.fault == FAULTS[1]:
            return YES
        if run.fault == FAULTS[0] or not company.lives:
            return trouble(Trouble.TIMEOUT)
        return YES if address.local_part == "info" else NO

    async def resume(self, run: Run, company: Company) -> None:
        asked_before = company.looks

        async def lookup_mx(_: str) -> MxAnswer:
            company.looks = asked_before + 1
            return self._lookup_mx(run)

        def limit() -> Wait | None:
            # Of all workers over a day or a second: who meets one is often taken up by another run.
            if run.is_whole or self.chance.random() > 0.2:
                return None
            return Wait(reason=WaitReason.RATE_LIMIT, detail="so many a second", after_s=1.0)

        async def limited() -> Wait | None:
            return limit()

        async def ask(watch: Stopwatch, address: Address, _hosts: object) -> MailboxAnswer | Wait:
            if (wait := limit()) is not None:
                return wait
            company.looks = asked_before + 1
            watch.spent_s += 0.1
            return self._mailbox(run, company, address)

        async def nothing(*_: object, **__: object) -> None:
            return None

        async def recall(_: str) -> Memory:
            return Memory()

        def prober(_: object, watch: Stopwatch) -> SimpleNamespace:
            async def ask_it(address: Address, hosts: object) -> MailboxAnswer | Wait:
                return await ask(watch, address, hosts)

            return SimpleNamespace(ask=ask_it, close=nothing, heard=())

        def astray(exchanges: tuple[Exchange, ...]) -> Wait | None:
            is_true = len(before_astray(exchanges, {run.name: run.ways})) == len(exchanges)
            return None if is_true else Wait(reason=WaitReason.CONTROL, detail="", waits_on=WaitsOn.way())

        count = SimpleNamespace(labels=lambda **_: SimpleNamespace(inc=lambda: None))
        parts: Any = SimpleNamespace(
            memory=SimpleNamespace(recall=recall), own_way=proven_way(astray),
            farewells=Farewells(), metrics=SimpleNamespace(tool_calls=count),
            spine_check=SimpleNamespace(saw=lambda **_: None), spine_grace_s=0.0, rules=RULES,
            limits=SimpleNamespace(mx_lookup=limited), controls=Ways(self, run),
            guardrails=SimpleNamespace(
                refresh=nothing, closed=set(), closed_to=lambda _: set(), shut={},
                unreached=nothing,
                settling=lambda *_: Settling(settle_s=0.0, age_s=1.0),
            ),
            probing=SimpleNamespace(resolver=SimpleNamespace(lookup_mx=lookup_mx), prober=prober),
            paid_calls=SimpleNamespace(off_because=lambda: "off"), pass_deadline_s=90.0,
            stalled_since=lambda _: 0.0, now=self.moment, age_s=lambda _: 1000.0,
        )  # fmt: skip
        origin = Origin(outreach_id=UUID(int=company.number))
        resumed = Resumed(
            origin=origin, event_at=None, domain="acme.example", since=self.now, exceptions=0, **company.row
        )
        known = Known(outcome=None, pass_state="waiting", in_spine=True, domain="acme.example")
        begun = self.moment()
        its_pass = await WorkerGate(parts).begin(origin, known, resumed)
        result = await its_pass.run()
        if not isinstance(result, Wait):
            company.verdict = result
            self.check(its_pass.exchanges)
            return
        left = its_pass.parked(origin, None, result)
        at = self.moment()
        failed = {FailedAt.NOW: at, FailedAt.ON_RECORD: company.row["failed_at"], FailedAt.NONE: None}
        company.not_before = at + timedelta(seconds=result.after_s) if result.after_s is not None else _EVER
        company.row |= {
            "exchanges": left.exchanges, "pending": left.pending, "looks": left.looks, "reason": result.reason.value,
            "waits_on": result.waits_on, "failed_at": failed[left.failed], "spent_s": left.spent_s,
            "asked_at": company.row["asked_at"] if left.asked_at is None else begun, "met_by": left.met_by or run.name,
        }  # fmt: skip

    def check(self, exchanges: Sequence[Exchange]) -> None:
        """Nothing in a transcript was heard by a run whose next control failed before the verdict."""
        for exchange in exchanges:
            run = next(run for run in self.all_runs if run.name == exchange.by)
            at = datetime.fromisoformat(exchange.at)
            asked = not isinstance(exchange.answer, SpineAnswer | ControlAnswer)
            assert not asked or exchange.proven or not any(begin <= at < end for begin, end in run.lost), exchange

    async def go_on(self, whole: Run | None) -> None:
        """Play one tick."""
        self.tick += 1
        self.now += timedelta(seconds=1)
        self.befall(whole)
        for run in self.runs:
            for kind in KINDS:
                self.control(run, kind)
        for run in self.chance.sample(self.runs, len(self.runs)):
            for company in self.open_companies:
                if (
                    run.is_open(self.now)
                    and self.may_claim(run, company)
                    and (run is whole or self.chance.random() < 0.5)
                ):
                    await self.resume(run, company)


_EVER = datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize("half", [0, 1])
async def test_every_company_is_decided_within_a_few_looks_once_one_way_holds(half: int) -> None:
    failed = late = 0
    for seed in range(half, SEEDS, 2):
        world = World(seed)
        while world.tick < HOLDS_FROM:
            await world.go_on(None)
        left = world.open_companies
        late += len(left)
        whole = world.chance.choice(world.runs)
        whole.is_whole = True
        before = {company.number: company.looks for company in left}
        while world.open_companies and world.tick < HOLDS_FROM + MOST_TICKS:
            await world.go_on(whole)
        assert not world.open_companies, f"seed {seed}: {world.open_companies}"
        looks = {company.number: company.looks - before[company.number] for company in left}
        assert all(number <= MOST_LOOKS for number in looks.values()), f"seed {seed}: {looks}"
        for company in world.companies:
            if company.lives:
                assert isinstance(company.verdict, Passed), f"seed {seed}: a living company failed: {company.verdict}"
            failed += isinstance(company.verdict, Failed)
    assert failed > SEEDS, "the dead ones must fail"
    assert late > SEEDS / 2, "few were under way when the way began to hold"
