"""SIGKILL in the middle of work, and a restart: every company decided, none twice, nothing lost.

One round in `make test`; `CT_TEST_KILLS=20 make test-faults` runs as many on one stack, in about 15 minutes.
"""

from __future__ import annotations

import os
import random
import signal
from typing import TYPE_CHECKING

from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("CT_TEST_KILLS", "1"))
COMPANIES = 1000


async def test_a_kill_in_mid_work_loses_nothing_and_decides_nobody_twice(tmp_path: Path) -> None:
    # Every company is in an SMTP dialogue of a second or more, so that hundreds are in flight at any moment.
    async with Stack(tmp_path, reply_delay_s=0.15) as stack:
        ids = []
        for number in range(ROUNDS):
            seed = random.Random(number)
            minted = await stack.mint([f"info-{number}x{n}.example" for n in range(COMPANIES)])
            ids += minted
            before = len(ids) - COMPANIES
            await stack.publish(minted)
            victim = stack.start_worker()
            await stack.wait_decided(before + seed.randint(100, 700), 60)
            stack.end_worker(victim, signal.SIGKILL)
            decided = await stack.count_decided() - before
            print(f"round {number}: killed at {decided} of {COMPANIES}", flush=True)
            assert decided < COMPANIES, "the kill did not fall into the middle of the work"
            worker = stack.start_worker()
            assert await stack.wait_decided(len(ids), 90) == len(ids), stack.worker_log()[-3000:]
            assert await stack.wait_published(45) == 0
            assert "Already processed" in stack.worker_log(), "no redelivery was seen"
            assert stack.end_worker(worker) == 0
        records = await stack.records("ct.pass", "ct.fail")
    copies: dict[str, set[tuple[object, ...]]] = {}
    for record in records:
        copies.setdefault(record.key.decode(), set()).add((record.topic, record.value, record.headers))
    assert set(copies) == {str(company) for company in ids}
    assert all(len(same) == 1 for same in copies.values()), "two records of one company differ"
