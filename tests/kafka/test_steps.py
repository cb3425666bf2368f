"""SIGKILL at each named step of an event's way, and a worker that was frozen while others went on."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from tests.faults import invariants
from tests.faults.harness import Stack
from tests.faults.steps import BATCH_STEPS, STEPS

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path
    from uuid import UUID

KINDS = ("info", "allreject", "catchall", "nxdomain", "421after3", "contact")
COMPANIES = 60  #: for each step
TIMES = 20  #: how often a step is passed before the kill
BATCHES = 4  #: the same of a step that many companies pass at once: how many depends on the machine
PAUSE_S = 0.2
MORE_S = 0.25  #: between those that come one by one after them


def strike(step: str, times: int, how: signal.Signals = signal.SIGKILL) -> str:
    return f"from tests.faults.steps import strike\nstrike({step!r}, {times}, {int(how)})\n"


async def produce(stack: Stack, name: str, companies: int) -> dict[UUID, str | None]:
    domains: list[str | None] = [f"{KINDS[n % len(KINDS)]}-{name}x{n}.example" for n in range(companies - 2)]
    domains += [None, None]
    ids = await stack.mint(domains)
    await stack.publish(ids)
    return dict(zip(ids, domains, strict=True))


async def produce_while(stack: Stack, name: str, worker: subprocess.Popen[bytes]) -> dict[UUID, str | None]:
    """Produce one more again and again while the worker lives, for at most 60 s: so that the kill finds work.

    The first ones of a partition may wait for the leases of the worker that was killed before, and hold all acks up for
    longer than the rest takes.
    """
    companies: dict[UUID, str | None] = {}
    for number in range(int(60 / MORE_S)):
        if worker.poll() is not None:
            break
        domain = f"contact-{name}y{number}.example"
        [company] = await stack.mint([domain])
        await stack.publish([company])
        companies[company] = domain
        await asyncio.sleep(MORE_S)
    return companies


@pytest.mark.long
async def test_a_kill_at_each_step_leaves_one_outcome_for_each_company(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.05, pause_s=PAUSE_S) as stack:
        companies: dict[UUID, str | None] = {}
        seen = []
        for number, step in enumerate(STEPS):
            times = BATCHES if step in BATCH_STEPS else TIMES
            victim = stack.start_worker(prelude=strike(step, times))
            companies |= await produce(stack, f"s{number}", COMPANIES)
            companies |= await produce_while(stack, f"s{number}", victim)
            assert await stack.wait_end(victim, 90) == -signal.SIGKILL, f"{step}: {stack.worker_log()[-3000:]}"
            assert f"STRUCK at {step!r}" in stack.worker_log()
            seen.append(await invariants.ledger_hashes(stack))
            assert len(seen[-1]) < len(companies), f"{step}: nothing was left to do, the kill came too late"
            print(f"killed at {step!r}: {len(seen[-1])} of {len(companies)} decided", flush=True)
        worker = stack.start_worker()
        await invariants.wait_at_rest(stack, len(companies), 120)
        # A company is asked again only by the kills that fell into its own passes: its batch's, and a leftover's.
        found = await invariants.check(stack, companies, kills=3, pause_s=PAUSE_S, before=seen)
        assert found.broken == [], stack.worker_log()[-2000:]
        assert found.figures["repeats on the topics"] >= 1, "a kill after `published` must repeat a record"
        assert stack.end_worker(worker) == 0
        print(found.figures, flush=True)


async def test_a_frozen_worker_whose_companies_others_took_over_changes_nothing(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.05, pause_s=PAUSE_S) as stack:
        frozen = stack.start_worker(prelude=strike("smtp done", 10, signal.SIGSTOP))
        assert await stack.wait_said("Ready", 60), stack.worker_log()[-3000:]
        companies = await produce(stack, "f", 2 * COMPANIES)
        assert await stack.wait_said("STRUCK", 60), stack.worker_log()[-3000:]
        other = stack.start_worker()
        await invariants.wait_at_rest(stack, len(companies), 120)
        before = await invariants.ledger_hashes(stack)
        assert len(before) == len(companies), stack.worker_log()[-3000:]
        frozen.send_signal(signal.SIGCONT)
        more = await produce(stack, "g", COMPANIES)
        await invariants.wait_at_rest(stack, len(companies) + len(more), 90)
        found = await invariants.check(stack, companies | more, kills=1, pause_s=None, before=[before])
        assert found.broken == [], stack.worker_log()[-2000:]
        for worker in (frozen, other):
            assert stack.end_worker(worker) == 0
        print(found.figures, flush=True)
