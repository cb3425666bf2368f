"""Plays two or three egresses against the whole gate, with a model of parking: is everybody decided, in few looks?"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from ct_stream.company.farewells import Farewells
from ct_stream.company.one_pass import WorkerGate
from ct_stream.gate.evidence import Settling, heard_elsewhere
from ct_stream.gate.memory import Memory
from ct_stream.gate.output_stage import Origin
from ct_stream.gate.providers import is_own_server
from ct_stream.gate.questions import ControlKind, MailboxAnswer, MxAnswer, SpineAnswer
from ct_stream.gate.records import FailedAt, Known, Resumed
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn, control_wait
from tests.company.test_coming_back import OWN, SHARED, attempt, refuses
from tests.company.test_one_pass import ASKED, GOOD, ID, Controls
from tests.company.ways import counts_nothing
from tests.gate.world import RULES, YES, mx

NETWORK = "192.0.2.0/24"
HORIZON_S, MOST_STEPS = 14 * 86400.0, 250
MOST_LOOKS = 8


class Fleet:
    """One company, and the workers that may take it. `states`: of each egress, `says`: what its server says there."""

    def __init__(
        self, states: dict[str, str], says: dict[str, str], hosts: tuple[str, ...], seed: int, *, many: str = ""
    ) -> None:
        """`many`: the egress with so many workers that one of them is always first."""
        self.many = many
        self.states, self.says, self.hosts, self.random = states, says, hosts, random.Random(seed)
        self.provider = NETWORK if is_own_server(hosts[0], "acme.example") else "bigmail.example"
        self.t = 1.0
        self.tries = {e: [600.0, 0] for e, s in states.items() if s == "closed"}
        self.opened: dict[str, datetime] = {}
        self.asked: Counter[str] = Counter()
        self.said: list[str] = []
        self.row: dict[str, Any] = {
            "exchanges": (
                Exchange(key="spine", answer=SpineAnswer(found=True, domain="acme.example")),
                Exchange(key="mx", answer=mx(*hosts)),
            ),
            "pending": None, "looks": 0, "reason": "rate_limit", "waits_on": WaitsOn(""), "asked_at": ASKED,
            "failed_at": None, "spent_s": 0.0, "met_by": "", "met_at": "", "refused_at": "",
        }  # fmt: skip
        self.first_at, self.not_before, self.parked_at = "", 1.0, 1.0

    @property
    def now(self) -> Any:
        return ASKED + timedelta(seconds=self.t)

    def others(self, e: str) -> list[str]:
        return [x for x, state in self.states.items() if x != e and state in ("ok", "closed")]

    # What the database does (queries.sql, waiting.sql)

    def free_at(self, e: str) -> float:
        """Return when the worker of this egress may take the company."""
        due = min(self.not_before, max(self.woken_at(), self.parked_at))
        if self.others(e) and e in (self.first_at, self.row["refused_at"]):
            due += 5.0
        names = set()
        if self.states[e] in ("ok", "closed"):
            for x, state in self.states.items():
                if x != e:
                    names.add(WaitsOn.other_than(x))
                    if state in ("halted", "trial"):
                        names.add(WaitsOn.tool("TOOL-005", x))
                    if state == "closed" and self.states[e] == "ok":
                        names.add(WaitsOn.provider(self.provider, x))
        waits_on = self.row["waits_on"]
        is_open = self.not_before == float("inf") or waits_on.startswith("egress:")
        if waits_on in names and is_open and self.row["refused_at"] != e:
            due = min(due, self.parked_at + 60.0, self.parked_at / 0.9)
        return due

    def woken_at(self) -> float:
        if self.not_before < float("inf"):
            return float("inf")  # ct_wake_sleepers: only who waits for no fixed time
        for x, (next_try, _) in self.tries.items():
            if self.row["waits_on"] == WaitsOn.provider(self.provider, x):
                return next_try
        for x, state in self.states.items():
            if self.row["waits_on"] == WaitsOn.tool("TOOL-005", x) and state == "trial":
                return self.parked_at + 5.0
        return float("inf")

    # One pass

    async def step(self) -> str | None:
        free = {e: max(self.free_at(e), self.t) for e in self.states}
        self.t = min(free.values())
        if self.t > HORIZON_S:
            return "nobody takes it any more"
        able = [e for e, at in free.items() if at <= self.t]
        e = self.many if self.many in able else self.random.choice(able)
        self.t += 0.5
        return await self.passes(e)

    async def passes(self, e: str) -> str | None:
        others, worker = self.others(e), f"{e}/1/a"
        good = GOOD.__class__(**{
            name: getattr(GOOD, name) for name in GOOD.__class__.__slots__ if name not in ("ok_begun_at",)
        } | {"ok_begun_at": self.now - timedelta(seconds=0.1)})  # fmt: skip
        controls = Controls(dict.fromkeys((ControlKind.DNS, ControlKind.SMTP), good))
        controls.worker = worker

        async def nothing(*_: object, **__: object) -> None:
            return None

        async def recall(_: str) -> Memory:
            return Memory()

        async def lookup_mx(_: str) -> MxAnswer:
            return mx(*self.hosts)

        def settling(age_s: float, met_at: str = "") -> Settling:
            x = met_at or e
            is_halted = self.states.get(x) == "halted"
            return Settling(
                settle_s=600.0, age_s=age_s, halted_by=WaitsOn.tool("TOOL-005", x) if is_halted else None,
                closed=closed_to(x),
            )  # fmt: skip

        def closed_to(x: str) -> set[str]:
            return {self.provider} if self.states.get(x) == "closed" else set()

        def shut_to(x: str) -> dict[str, datetime | None]:
            if self.states.get(x) == "closed":
                return {self.provider: None}
            return {self.provider: self.opened[x]} if x in self.opened else {}

        async def judge(held: Any, domain: str, provider: str) -> Wait:
            del provider
            if is_own_server(held.host, domain) and self.states[e] != "closed":
                return control_wait(ControlKind.SMTP, f"{held.host} refuses us")
            on = WaitsOn.provider(self.provider, e)
            return Wait(reason=WaitReason.REFUSED, detail="refuses us", after_s=600.0, waits_on=on)

        async def unreached(provider: str, age_s: float, met_at: str = "") -> Wait | None:
            x = met_at or e
            if self.states.get(x) == "closed":
                on = WaitsOn.provider(provider, x)
                return Wait(reason=WaitReason.PROVIDER_CLOSED, detail="closed", waits_on=on)
            return settling(age_s, x).silence(provider)

        async def ask(_address: object, hosts: tuple[str, ...]) -> MailboxAnswer | Wait:
            if self.states[e] == "halted":
                return Wait(reason=WaitReason.HALTED, detail="halted", waits_on=WaitsOn.tool("TOOL-005", e))
            if self.states[e] == "closed":
                next_try, tries = self.tries[e]
                if next_try > self.t:
                    on = WaitsOn.provider(self.provider, e)
                    return Wait(reason=WaitReason.PROVIDER_CLOSED, detail="closed", waits_on=on)
                self.tries[e] = [self.t + min(600.0 * 2 ** (tries + 1), 21600.0), tries + 1]
            self.asked[e] += 1
            match self.says[e]:
                case "yes":
                    return YES
                case "refuses":
                    return refuses(hosts[0])
            return MailboxAnswer(attempts=(attempt(hosts[0]),))

        own_way = SimpleNamespace(
            trouble=None, astray=lambda _: None, egress=e, others=others, take_over=[], lacks=lambda _: None,
            elsewhere=lambda wait: heard_elsewhere(wait, e, others) if others else None,
        )  # fmt: skip
        parts: Any = SimpleNamespace(
            memory=SimpleNamespace(recall=recall), own_way=own_way, farewells=Farewells(), metrics=counts_nothing(),
            spine_check=None, spine_grace_s=60.0, limits=SimpleNamespace(mx_lookup=nothing), rules=RULES,
            controls=controls,
            guardrails=SimpleNamespace(
                refresh=nothing, closed=closed_to(e), unreached=unreached, judge=judge, note=judge, settling=settling,
                closed_to=closed_to, shut={x: shut_to(x) for x in self.states},
            ),
            probing=SimpleNamespace(
                resolver=SimpleNamespace(lookup_mx=lookup_mx),
                prober=lambda *_: SimpleNamespace(ask=ask, close=nothing, heard=())
            ),
            paid_calls=SimpleNamespace(off_because=lambda: "off"), pass_deadline_s=90.0, stalled_since=lambda _: 0.0,
            now=lambda: self.now, age_s=lambda moment: (self.now - moment).total_seconds(),
        )  # fmt: skip
        origin = Origin(outreach_id=ID)
        resumed = Resumed(origin=origin, event_at=None, domain="acme.example", since=ASKED, exceptions=0, **self.row)
        known = Known(outcome=None, pass_state="waiting", in_spine=True, domain="acme.example")
        run = await WorkerGate(parts).begin(origin, known, resumed)
        result = await run.run()
        if not isinstance(result, Wait):
            return type(result).__name__
        left = run.parked(origin, None, result)
        failed = {FailedAt.NOW: self.now, FailedAt.ON_RECORD: self.row["failed_at"], FailedAt.NONE: None}
        self.row |= {
            "exchanges": left.exchanges, "pending": left.pending, "looks": left.looks,
            "reason": result.reason.value, "waits_on": result.waits_on, "failed_at": failed[left.failed],
            "asked_at": self.row["asked_at"] if left.asked_at is None else left.asked_at, "spent_s": left.spent_s,
            "met_by": left.met_by or worker, "met_at": left.met_at or e, "refused_at": left.refused_at,
        }  # fmt: skip
        self.first_at, self.parked_at = left.first_at, self.t
        self.not_before = float("inf") if result.after_s is None else self.t + result.after_s
        if result.waits_on.is_control:
            self.not_before = self.t + 1.0  # a control of that worker
        self.said.append(f"t={self.t:.0f} {e}: {result.reason}/{result.waits_on} refused_at={left.refused_at}")
        return None

    async def play(self) -> str | None:
        for _ in range(MOST_STEPS):
            result = await self.step()
            if result is not None:
                return result
        return f"still undecided after {MOST_STEPS} passes"


STATES = ("ok", "halted", "trial", "closed")
CASES = [
    (kind, states)
    for kind in ("refuses", "silent", "own silent")
    for n in (2, 3)
    for states in itertools.product(STATES, repeat=n)
    # Who met silence at a shared provider that is closed to one address waits for that: see below.
    if "ok" in states and list(states) == sorted(states) and not (kind == "silent" and "closed" in states)
]


@pytest.mark.parametrize(("kind", "states"), CASES, ids=str)
async def test_whoever_one_address_could_decide_is_decided_in_few_looks(kind: str, states: tuple[str, ...]) -> None:
    """The company's server treats all of our addresses alike. At least one of them is welcome to ask."""
    hosts = SHARED if kind == "silent" else OWN[:1]
    bad = []
    for seed in range(12):
        names = ("default", "dc2", "dc3")
        fleet = Fleet(
            dict(zip(names, states, strict=False)), dict.fromkeys(names, kind.removeprefix("own ")), hosts, seed
        )
        result = await fleet.play()
        looks = fleet.asked.total()
        if result not in ("Failed", "Passed") or looks > MOST_LOOKS:
            bad.append((seed, result, dict(fleet.asked), fleet.t, fleet.said[-3:]))
    assert not bad, f"{len(bad)} of 12: {bad[0]}"


@pytest.mark.parametrize("kind", ["refuses", "silent"])
@pytest.mark.parametrize("states", [s for kind, s in CASES if kind == "refuses" and len(s) == 2], ids=str)
async def test_whoever_one_open_address_talks_to_passes(kind: str, states: tuple[str, ...]) -> None:
    """The server refuses every address but one of those that may ask. (With two addresses: each is heard.)"""
    names = ("default", "dc2", "dc3")[: len(states)]
    bad = []
    for seed in range(12):
        says = {e: "yes" if state == "ok" else kind for e, state in zip(names, states, strict=True)}
        fleet = Fleet(dict(zip(names, states, strict=True)), says, OWN[:1] if kind == "refuses" else SHARED, seed)
        result = await fleet.play()
        if result != "Passed":
            bad.append((seed, result, dict(fleet.asked), fleet.t, fleet.said[-3:]))
    assert not bad, f"{len(bad)} of 12: {bad[0]}"


SHUNS = {"default": "closed", "dc2": "ok"}


@pytest.mark.parametrize("asks_again_after_h", [1.0, 30.0])
@pytest.mark.parametrize("what_ends_it", ["its server wakes up", "a person resumes it", "a normal talk opens it"])
async def test_who_met_silence_that_is_closed_to_another_address_waits_for_what_is_named(
    what_ends_it: str, asks_again_after_h: float
) -> None:
    """Nobody knows whether its provider shuns us. Meanwhile it is asked now and then, as at any closed provider."""
    for seed in range(6):
        fleet = Fleet(dict(SHUNS), dict.fromkeys(SHUNS, "silent"), SHARED, seed)
        while fleet.t < asks_again_after_h * 3600 or not fleet.row["waits_on"].startswith("provider:"):
            assert await fleet.step() is None, fleet.said
        assert fleet.asked.total() <= 20, fleet.asked
        ends = fleet.row["waits_on"]
        assert fleet.row["reason"] in (WaitReason.PROVIDER_SILENT, WaitReason.PROVIDER_CLOSED), fleet.said[-1]
        assert ends == WaitsOn.provider(fleet.provider), "people are told what they may resume"
        if what_ends_it == "its server wakes up":
            fleet.says = dict.fromkeys(SHUNS, "yes")
        else:
            fleet.states["default"], fleet.tries, fleet.opened = "ok", {}, {"default": fleet.now}
            fleet.not_before = min(fleet.not_before, fleet.t)  # ct_set_guardrail wakes who waits on it
            fleet.says = dict.fromkeys(SHUNS, "yes" if what_ends_it == "a normal talk opens it" else "silent")
        before, asked = fleet.t, fleet.asked.total()
        result = await fleet.play()
        assert result == ("Failed" if what_ends_it == "a person resumes it" else "Passed"), fleet.said
        assert fleet.asked.total() > asked, "decided by what was heard while it was closed"
        assert fleet.t - before <= 7 * 3600


@pytest.mark.parametrize("closes_at_s", [0.0, 100.0])
@pytest.mark.parametrize("opens_at_s", [20.0, 300.0, 700.0])
async def test_silence_from_before_a_provider_opened_to_another_address_is_asked_for_again(
    closes_at_s: float, opens_at_s: float
) -> None:
    """Its outage is over: a company that met it must not be failed because it is."""
    for seed in range(6):
        states = {"default": "ok", "dc2": "ok"}
        fleet = Fleet(states, dict.fromkeys(states, "silent"), SHARED, seed, many="dc2")

        def closes(fleet: Fleet = fleet) -> None:
            fleet.states["default"], fleet.tries = "closed", {"default": [fleet.t + 600.0, 0]}

        def opens(fleet: Fleet = fleet) -> None:
            fleet.states["default"], fleet.tries, fleet.opened = "ok", {}, {"default": fleet.now}
            fleet.says = dict.fromkeys(fleet.states, "yes")
            if fleet.row["waits_on"].startswith("provider:"):
                fleet.not_before = min(fleet.not_before, fleet.t)

        result = None
        ahead = [(closes_at_s, closes), (max(opens_at_s, closes_at_s + 20.0), opens)]
        while result is None:
            next_s = min(map(fleet.free_at, fleet.states))
            if ahead and ahead[0][0] <= next_s:
                fleet.t = max(fleet.t, ahead[0][0])
                ahead.pop(0)[1]()
            else:
                result = await fleet.step()
        assert result == "Passed", (seed, fleet.said)


@pytest.mark.parametrize("hosts", [OWN[:1], SHARED], ids=["own server", "shared provider"])
async def test_a_silent_server_is_not_asked_again_and_again_where_another_address_has_it_closed(
    hosts: tuple[str, ...],
) -> None:
    """`default` has nine workers, and its network or provider closed; dc2 has one worker, and dc3 was refused first.

    What dc2 met is due once it has proven its way. A worker of `default` takes it, and puts it away for its own closed
    provider; dc2 takes it over, finds it waiting for a closed provider, makes it void, and asks again.
    """
    states = {"default": "closed", "dc2": "ok"}
    fleet = Fleet(states, dict.fromkeys(states, "silent"), hosts, 1, many="default")
    fleet.row |= {"refused_at": "dc3" if hosts is SHARED else ""}
    for hours, most in ((1.0, 5), (48.0, 20)):
        while fleet.t < hours * 3600 and await fleet.step() is None:
            pass
        asked = fleet.asked["dc2"]
        assert asked <= most, f"dc2 asked it {asked} times in {fleet.t:.0f} s"
