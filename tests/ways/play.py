"""Plays one broken way beside whole ones, in a world of its own, and prints what it measured and what does not hold.

python -m tests.ways.play proxy --whole 3 --companies 60
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tests import brokers
from tests.ways import claims
from tests.ways.breaking import WAYS, Way
from tests.ways.fleet import Fleet, Said
from tests.ways.namespaces import build_world, in_a_world, missing
from tools.kafka.cluster import KafkaCluster

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

MENDED_S = 90.0  #: from the repair until the worker is ready
_FIRST = 16  #: companies before anything breaks, and after it is mended
_AFTER = 40
_PER_S = 4.0
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is played."""

    way: Way | None  #: None: nothing breaks
    whole: int
    companies: int
    per_s: float = _PER_S
    own_egress: bool = True


@dataclass(kw_only=True)
class Play:
    """One way, broken and mended: what was measured, and what does not hold. The last worker is the broken one."""

    plan: Plan
    fleet: Fleet
    workers: list[int]
    whole: list[int]
    figures: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    #: What each worker's /readyz says now, and when it first was not ready and why.
    now: dict[int, Said] = field(default_factory=dict)
    first_trouble: dict[int, tuple[float, str]] = field(default_factory=dict)

    async def all_whole(self) -> None:
        """Start the workers, and show that they decide everybody before anything breaks."""
        way = self.plan.way
        starts_broken = way is not None and way.from_its_start
        begun = time.monotonic()
        if way is not None and starts_broken:
            await way.break_(self.fleet, self.fleet.namespaces[-1])
        for number in self.workers:
            self.fleet.start(number)
        late = await self.fleet.wait_ready(self.whole if starts_broken else self.workers)
        assert not late, {number: (said, self.fleet.log(number)[-2000:]) for number, said in late.items()}
        self.figures["ready_after_s"] = round(time.monotonic() - begun, 1)
        if not starts_broken:
            ids = await self.fleet.stream(names("first", _FIRST, ("info",)), _PER_S)
            await until_decided(self.fleet, ids, claims.DECIDED_S)
            found, log = await claims.companies(self.fleet, ids), await self.fleet.stack.farm.log()
            ill = claims.wrong(found, log, self.addresses(self.workers)) + claims.late(found)
            assert not ill, f"before anything broke: {ill}"

    async def while_broken(self, way: Way | None) -> list[UUID]:
        """Break the way, let companies come, and judge; return them."""
        if way is not None and not way.from_its_start:
            await way.break_(self.fleet, self.fleet.namespaces[-1])
        watching = asyncio.create_task(self.watch(began := time.monotonic()))
        kinds = way.kinds if way is not None else ("info",)
        ids = await self.fleet.stream(names("while", self.plan.companies, kinds), self.plan.per_s)
        await until_decided(self.fleet, ids, claims.DECIDED_S)
        found, log = await claims.companies(self.fleet, ids), await self.fleet.stack.farm.log()
        # A worker that still hears the truth from some servers may pass companies by it.
        trusted = self.addresses(self.workers if way is not None and way.noted else self.whole)
        self.broken += claims.wrong(found, log, trusted) + claims.late(found)
        self.figures["while_broken"] = claims.took(found)
        self.figures["recorded_by"] = self.recorded_by(ids)
        if way is not None:
            while unsaid := self.unsaid(way):
                if time.monotonic() > began + claims.DECIDED_S:
                    break
                await asyncio.sleep(_LOOK_EVERY_S)
            self.broken += unsaid
            said = self.now[self.workers[-1]]
            self.figures["says"] = said.words
            if not said.is_ready:
                self.figures["not_ready_after_s"] = self.first_trouble[self.workers[-1]][0]
        watching.cancel()
        for number in self.whole:
            if number in self.first_trouble:
                why = self.first_trouble[number][1][:300]
                self.broken.append(f"worker {number}, whose way is whole, was not ready: {why}")
        return ids

    async def mended(self, way: Way, ids: Sequence[UUID]) -> None:
        """Mend the way, let more companies come, and judge; `ids` came before."""
        left = {company.domain for company in await claims.companies(self.fleet, ids) if company.code is None}
        await way.mend(self.fleet, self.fleet.namespaces[-1])
        begun, bad = time.monotonic(), self.workers[-1]
        broken = [
            f"worker {number} is not ready after {MENDED_S:g} s: {said.why[:300]}"
            for number, said in (await self.fleet.wait_ready(self.workers, MENDED_S)).items()
        ]
        self.figures["ready_again_after_s"] = round(time.monotonic() - begun, 1)
        seen = len((await self.fleet.stack.farm.log()).sessions())
        after: list[UUID] = []
        asked = 0
        while not asked and time.monotonic() < begun + MENDED_S:  # its partitions may take their time to come back
            after += await self.fleet.stream(names(f"after{len(after)}x", _AFTER, ("info",)), _PER_S)
            sessions = (await self.fleet.stack.farm.log()).sessions()[seen:]
            asked = sum(1 for one in sessions if one.recipients and one.peer in self.addresses([bad]))
        await until_decided(self.fleet, [*ids, *after], claims.DECIDED_S)
        found, log = await claims.companies(self.fleet, [*ids, *after]), await self.fleet.stack.farm.log()
        before, behind = [company for company in found[: len(ids)] if company.domain in left], found[len(ids) :]
        broken += claims.wrong([*before, *behind], log, self.addresses(self.workers))
        # Those that waited for the repair are late already, and have been named: now they must only come to an end.
        broken += claims.late([*(company for company in before if company.code is None), *behind])
        self.figures["after_the_repair"] = claims.took(behind)
        self.figures["asked_by_the_mended"] = asked
        if not asked:
            broken.append(f"the mended worker asked no mail server about any of {len(after)} new companies")
        self.broken += [f"after the repair: {line}" for line in broken]

    async def watch(self, began: float) -> None:
        """Look at each worker's /readyz until cancelled."""
        while True:
            for number in self.workers:
                said = self.now[number] = await self.fleet.said(number)
                if not said.is_ready:
                    self.first_trouble.setdefault(number, (round(time.monotonic() - began, 1), said.why))
            await asyncio.sleep(_LOOK_EVERY_S)

    def unsaid(self, way: Way) -> list[str]:
        """Return what the broken worker should say now and does not."""
        said = self.now.get(self.workers[-1])
        if said is None or said.status is None:
            return ["the broken worker's /readyz does not answer"]
        if way.noted:
            is_said = way.noted in said.words
            return [] if is_said else [f"the broken worker's /readyz says nothing of {way.noted}, not even in a note"]
        if said.is_ready:
            return ["the broken worker's /readyz says that it is ready"]
        return [] if said.why else ["the broken worker's /readyz is not ready, and does not say why"]

    def recorded_by(self, ids: Sequence[UUID]) -> dict[str, int]:
        """Return how many of these companies' outcomes each worker recorded, whoever heard the answers."""
        logs = {f"worker {number}": self.fleet.log(number) for number in self.workers}
        return {worker: sum(str(company) in log for company in ids) for worker, log in logs.items()}

    def addresses(self, numbers: Sequence[int]) -> set[str]:
        """Return the addresses that servers see of these workers."""
        return {address for number in numbers for address in self.fleet.namespaces[number].addresses}


async def play(plan: Plan, folder: Path) -> dict[str, Any]:
    """Return the figures; under "broken" what does not hold, a sentence each."""
    way = plan.way
    workers = list(range(plan.whole + (way is not None)))
    ipv6 = way is not None and way.no_ipv6
    build_world(ipv6=ipv6)
    async with Fleet(folder, len(workers), ipv6=ipv6, own_egress=plan.own_egress) as fleet:
        run = Play(plan=plan, fleet=fleet, workers=workers, whole=workers[: plan.whole])
        await run.all_whole()
        ids = await run.while_broken(way)
        if way is not None:
            await run.mended(way, ids)
        ends = {number: process.poll() for number, process in fleet.processes.items()}
        run.broken += [f"worker {number} has ended with {code}" for number, code in ends.items() if code is not None]
    return run.figures | {"broken": run.broken}


async def until_decided(fleet: Fleet, ids: Sequence[UUID], within_s: float) -> None:
    """Wait until these companies are decided, or time is up."""
    deadline = time.monotonic() + within_s
    query = "SELECT count(*) FROM outreach.ct_outcomes WHERE outreach_id = ANY ($1)"
    while await fleet.stack.admin.fetchval(query, ids) < len(ids):
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)


def names(when: str, count: int, kinds: Sequence[str]) -> list[str]:
    """Return domains of living companies."""
    return [f"{kind}-{when}{number}.example" for number, kind in enumerate(islice(cycle(kinds), count))]


def run(name: str, *options: str, within_s: float | None = None) -> dict[str, Any]:
    """Play a way in a world of its own; return the figures. "" as name: nothing breaks."""
    done = subprocess.run(
        in_a_world("tests.ways.play", [name, *options, "--inside"]),
        cwd=Path(__file__).parents[2], capture_output=True, check=False, timeout=within_s,
    )  # fmt: skip
    if done.returncode:
        return {"broken": [f"the harness ended with {done.returncode}: {done.stderr.decode(errors='replace')[-3000:]}"]}
    figures: dict[str, Any] = orjson.loads(done.stdout.splitlines()[-1])
    return figures


async def _main(plan: Plan, broker: str, folder: Path) -> dict[str, Any]:
    async with AsyncExitStack() as exits:
        if broker == "kafka":
            brokers.use(await exits.enter_async_context(KafkaCluster(folder / "kafka")))
        return await play(plan, folder)


def options_of(parser: argparse.ArgumentParser) -> None:
    """Add what every run can be given."""
    parser.add_argument("--whole", type=int, default=3, metavar="N", help="workers with a whole way beside the broken")
    parser.add_argument("--broker", choices=["embedded", "kafka"], default="embedded")
    parser.add_argument("--one-egress", action="store_true", help="let all workers call their way out by one name")


def main() -> int:
    """Read the options; begin again in a new world."""
    parser = argparse.ArgumentParser(prog="python -m tests.ways.play", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("way", choices=["", *WAYS])
    parser.add_argument("--companies", type=int, default=60)
    parser.add_argument("--per-s", type=float, default=_PER_S)
    parser.add_argument("--keep", type=Path, help="a folder for logs that stays")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options_of(parser)
    options = parser.parse_args()
    if not options.inside:
        if sentence := missing():
            sys.exit(f"python -m tests.ways.play {sentence}")
        inside = in_a_world("tests.ways.play", [*sys.argv[1:], "--inside"])
        return subprocess.run(inside, check=False).returncode
    plan = Plan(
        way=WAYS.get(options.way), whole=options.whole, companies=options.companies, per_s=options.per_s,
        own_egress=not options.one_egress,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ct-stream-ways-") as folder:
        figures = asyncio.run(_main(plan, options.broker, options.keep or Path(folder)))
    print(orjson.dumps(figures).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
