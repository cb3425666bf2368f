"""Our own bug makes its company stuck and fails nobody; a dead process counts against nobody."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

from tests.faults.harness import Stack
from tests.trouble.test_watchdog import ends

if TYPE_CHECKING:
    from pathlib import Path

RAISES = """
from ct_stream.company.one_pass import WorkerGate
begin = WorkerGate.begin
async def raises(self, origin, known, resumed):
    if (known.domain or "").startswith("info-bug"):
        raise LookupError("no such key in " + known.domain)
    return await begin(self, origin, known, resumed)
WorkerGate.begin = raises
"""
STUCK = "SELECT outreach_id, exceptions, traceback FROM outreach.ct_passes WHERE state = 'stuck'"
HURRY = "UPDATE outreach.ct_passes SET not_before = now() WHERE state = 'waiting' AND reason = 'our_bug'"


async def wait_stuck(stack: Stack, number: int, within_s: float) -> int:
    """Wait until so many companies are stuck, without their pauses of 5 s; return how many are."""
    deadline = time.monotonic() + within_s
    while (stuck := len(await stack.admin.fetch(STUCK))) < number and time.monotonic() < deadline:
        await stack.admin.execute(HURRY)
        await asyncio.sleep(0.1)
    return stuck


async def test_an_exception_makes_its_own_company_stuck_at_the_third_and_twenty_of_them_stop_the_worker(
    tmp_path: Path,
) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker(prelude=RAISES)
        bad = await stack.mint(["info-bug0.example"])
        good = await stack.mint([f"info-{n}.example" for n in range(30)])
        await stack.publish(good[:10] + bad + good[10:])
        assert await stack.wait_decided(30, 40) == 30, stack.worker_log()[-3000:]
        assert await wait_stuck(stack, 1, 20) == 1
        (row,) = await stack.admin.fetch(STUCK)
        assert (row["outreach_id"], row["exceptions"]) == (bad[0], 3)
        assert "LookupError: no such key in info-bug0.example" in row["traceback"]
        held = await stack.admin.fetchrow("SELECT state, what_ends_it FROM outreach.ct_held")
        assert held is not None
        assert tuple(held) == ("stuck", "a worker of another version tries it again when it starts")
        assert worker.poll() is None, "one stuck company ended the worker"

        await stack.publish(await stack.mint([f"info-bug{n}.example" for n in range(1, 20)]))
        assert await wait_stuck(stack, 20, 30) == 20
        assert await ends(stack, 30) == 70, stack.worker_log()[-3000:]
        assert "20 companies became stuck within an hour at 1 places" in stack.worker_log()
        assert await stack.count_decided() == 30, "our own bug decided somebody"


async def test_three_kills_with_many_in_flight_count_against_nobody(tmp_path: Path) -> None:
    """As the kernel does when memory runs out: each time the same companies are in hand."""
    async with Stack(tmp_path, reply_delay_s=0.5) as stack:
        ids = await stack.mint([f"info-{n}.example" for n in range(200)])
        await stack.publish(ids)
        in_hand = "SELECT count(*) FROM outreach.ct_domains WHERE lease_owner IS NOT NULL"
        for _ in range(3):
            worker = stack.start_worker()
            deadline = time.monotonic() + 40
            while int(await stack.admin.fetchval(in_hand)) < 100:
                assert time.monotonic() < deadline, stack.worker_log()[-3000:]
                await asyncio.sleep(0.05)
            stack.end_worker(worker, signal.SIGKILL)
            # The leases of the dead worker would end by themselves after 20 s.
            await stack.admin.execute("UPDATE outreach.ct_domains SET lease_owner = NULL, lease_until = NULL")
        assert await stack.count_decided() < 200
        await stack.farm.set_reply_delay(0.0)
        stack.start_worker()
        assert await stack.wait_decided(200, 60) == 200, stack.worker_log()[-3000:]
        assert await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_passes WHERE exceptions > 0") == 0
        assert "Our bug" not in "".join(stack.worker_log(number) for number in range(4))
        assert await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_outcomes WHERE outcome = 'FAIL'") == 0
