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
from tests.ways.fleet import Fleet
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


@dataclass(kw_only=True)
class Watched:
    """What each worker's /readyz said over a time."""

    not_ready: dict[int, str] = field(default_factory=dict)  #: by worker, why it first was not
    after_s: dict[int, float] = field(default_factory=dict)
    last: dict[int, str] = field(default_factory=dict)  #: by worker, troubles and notes


@dataclass(kw_only=True)
class Plan:
    """What is played."""

    way: Way | None  #: None: nothing breaks
    whole: int
    companies: int
    per_s: float = _PER_S
    own_egress: bool = True


async def play(plan: Plan, folder: Path) -> dict[str, Any]:
    """Return the figures; under "broken" what does not hold, a sentence each."""
    way = plan.way
    workers = list(range(plan.whole + (way is not None)))
    bad, whole = (plan.whole if way else None), workers[: plan.whole]
    ipv6 = way is not None and way.no_ipv6
    build_world(ipv6=ipv6)
    broken: list[str] = []
    async with Fleet(folder, len(workers), ipv6=ipv6, own_egress=plan.own_egress) as fleet:
        begun = time.monotonic()
        for number in workers:
            if number == bad and way is not None and way.from_its_start:
                await way.break_(fleet, fleet.namespaces[number])
            fleet.start(number)
        expected = whole if way is not None and way.from_its_start else workers
        late = await fleet.wait_ready(expected)
        assert not late, {n: (said, fleet.log(n)[-2000:]) for n, said in late.items()}
        figures: dict[str, Any] = {"ready_after_s": round(time.monotonic() - begun, 1)}
        if way is None or not way.from_its_start:  # the harness is sound: whole workers decide everybody
            first = await fleet.stream(names("first", _FIRST, ("info",)), plan.per_s)
            await until_decided(fleet, first, claims.DECIDED_S)
            found = await claims.companies(fleet, first)
            log = await fleet.stack.farm.log()
            trusted = {address for namespace in fleet.namespaces for address in namespace.addresses}
            if ill := claims.wrong(found, log, trusted) + claims.late(found):
                return figures | {"broken": [f"before anything broke: {line}" for line in ill]}
        if way is not None and bad is not None and not way.from_its_start:
            await way.break_(fleet, fleet.namespaces[bad])
        watched = Watched()
        watching = asyncio.create_task(watch(fleet, workers, watched))
        kinds = way.kinds if way else ("info",)
        ids = await fleet.stream(names("while", plan.companies, kinds), plan.per_s)
        await until_decided(fleet, ids, claims.DECIDED_S)
        found = await claims.companies(fleet, ids)
        watching.cancel()
        trusted = {address for number in (workers if way and way.noted else whole)
                   for address in fleet.namespaces[number].addresses}  # fmt: skip
        broken += claims.wrong(found, await fleet.stack.farm.log(), trusted) + claims.late(found)
        figures["while_broken"] = claims.took(found)
        figures["recorded_by"] = recorded_by(fleet, ids)
        for number in whole:
            if number in watched.not_ready:
                broken.append(f"worker {number}, whose way is whole, was not ready: {watched.not_ready[number][:300]}")
        if way is not None and bad is not None:
            broken += unsaid(way, bad, watched, figures)
            broken += [f"after the repair: {line}" for line in await after_the_repair(fleet, way, bad, ids, figures)]
        ends = {number: process.poll() for number, process in fleet.processes.items()}
        broken += [f"worker {n} has ended with {code}" for n, code in ends.items() if code is not None]
    return figures | {"broken": broken}


async def after_the_repair(fleet: Fleet, way: Way, bad: int, ids: Sequence[UUID], figures: dict[str, Any]) -> list[str]:
    """Mend the way; return what does not hold then."""
    broken = []
    await way.mend(fleet, fleet.namespaces[bad])
    mended = time.monotonic()
    for number, said in (await fleet.wait_ready(list(fleet.processes), MENDED_S)).items():
        broken.append(f"worker {number} is not ready after {MENDED_S:g} s: {said.why[:300]}")
    figures["ready_again_after_s"] = round(time.monotonic() - mended, 1)
    seen = len((await fleet.stack.farm.log()).sessions())
    after = await fleet.stream(names("after", _AFTER, ("info",)), _PER_S)
    await until_decided(fleet, [*ids, *after], claims.DECIDED_S)
    found, log = await claims.companies(fleet, [*ids, *after]), await fleet.stack.farm.log()
    # Those that came before the repair are late already; here they only must not wait any longer.
    left = [company for company in found[: len(ids)] if company.took_s is None]
    everybody = {address for namespace in fleet.namespaces for address in namespace.addresses}
    broken += claims.wrong(found[len(ids) :], log, everybody) + claims.late([*left, *found[len(ids) :]])
    figures["after_the_repair"] = claims.took(found[len(ids) :])
    peers = [session.peer for session in log.sessions()[seen:] if session.recipients]
    figures["sessions_of_the_mended"] = sum(1 for peer in peers if peer in fleet.namespaces[bad].addresses)
    if not figures["sessions_of_the_mended"]:
        broken.append(f"the mended worker asked no mail server about any of {len(after)} new companies")
    return broken


def unsaid(way: Way, bad: int, watched: Watched, figures: dict[str, Any]) -> list[str]:
    """Return what the broken worker should have said and did not."""
    figures["not_ready_after_s"] = watched.after_s.get(bad)
    figures["says"] = watched.not_ready.get(bad) or watched.last.get(bad, "")
    if way.noted:
        is_said = way.noted in watched.last.get(bad, "")
        return [] if is_said else [f"the broken worker's /readyz says nothing of {way.noted}, not even in a note"]
    if bad not in watched.not_ready:
        return ["the broken worker's /readyz says that it is ready"]
    return [] if watched.not_ready[bad] else ["the broken worker's /readyz is not ready, and does not say why"]


def recorded_by(fleet: Fleet, ids: Sequence[UUID]) -> dict[str, int]:
    """Return how many of these companies' outcomes each worker recorded, whoever heard the answers."""
    logs = {f"worker {number}": fleet.log(number) for number in fleet.processes}
    return {worker: sum(str(company) in log for company in ids) for worker, log in logs.items()}


async def watch(fleet: Fleet, workers: Sequence[int], watched: Watched) -> None:
    """Look at each worker's /readyz until cancelled."""
    begun = time.monotonic()
    while True:
        for number in workers:
            said = await fleet.said(number)
            watched.last[number] = said.words
            if not said.is_ready and number not in watched.not_ready:
                watched.not_ready[number] = said.why
                watched.after_s[number] = round(time.monotonic() - begun, 1)
        await asyncio.sleep(_LOOK_EVERY_S)


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
