"""Trouble of our own is never the company's failure: real DNS, SMTP, Postgres and Kafka, broken and mended."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

FINE = [f"info-{n}.example" for n in range(10)] + [f"allreject-{n}.example" for n in range(3)]
DEAD = [f"refuse-{n}.example" for n in range(3)] + [f"nxdomain-{n}.example" for n in range(3)]


async def outcomes(stack: Stack) -> dict[str, str]:
    rows = await stack.admin.fetch("SELECT domain, coalesce(failure_code, 'PASS') AS code FROM outreach.ct_outcomes")
    return {row["domain"]: row["code"] for row in rows}


def planned() -> dict[str, str]:
    codes = {"info": "PASS", "allreject": "CT-M-NO-PATTERN", "refuse": "CT-M-SMTP-FAIL", "nxdomain": "CT-M-NO-MX"}
    return {domain: codes[domain.partition("-")[0]] for domain in FINE + DEAD}


async def waiting(stack: Stack) -> int:
    return int(await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_passes WHERE state = 'waiting'"))


async def until(stack: Stack, query: str, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not await stack.admin.fetchval(query):
        assert time.monotonic() < deadline, query
        await asyncio.sleep(0.1)


async def all_waiting(stack: Stack, number: int, within_s: float) -> int:
    deadline = time.monotonic() + within_s
    while True:
        count = await waiting(stack)
        if count >= number or time.monotonic() > deadline:
            return count
        await asyncio.sleep(0.2)


@pytest.mark.parametrize("mode", ["servfail", "refused", "nxdomain_all"])
async def test_a_broken_resolver_fails_nobody_and_everybody_is_decided_after_the_repair(
    tmp_path: Path, mode: str
) -> None:
    async with Stack(tmp_path, CT_PASS_DEADLINE_S="30") as stack:
        stack.start_worker()
        assert await stack.wait_said("Ready", 30)
        await stack.farm.set_resolvers(mode)
        await stack.publish(await stack.mint(FINE + DEAD))
        await all_waiting(stack, len(FINE + DEAD), 12)
        if mode == "nxdomain_all":
            await asyncio.sleep(3)  # a lie is found out by a control that fails; silence needs none
        assert await outcomes(stack) == {}, "somebody was decided by a broken resolver"
        await stack.farm.set_resolvers("ok")
        assert await stack.wait_decided(len(FINE + DEAD), 60) == len(FINE + DEAD), stack.worker_log()[-3000:]
        assert await outcomes(stack) == planned()


async def test_a_lie_of_all_resolvers_between_two_controls_is_not_believed(tmp_path: Path) -> None:
    """A control holds before it and one after it, and none is asked in it: the next is due some seconds later."""
    async with Stack(tmp_path, control_s=10.0) as stack:
        stack.start_worker()
        assert await stack.wait_said("Ready", 30)
        await stack.publish(await stack.mint(["nxdomain-first.example"]))
        query = "SELECT ok_begun_at > '-infinity' FROM outreach.ct_controls WHERE kind = 'dns'"
        await until(stack, query, 15)
        await stack.farm.set_resolvers("nxdomain_all")
        await stack.publish(await stack.mint(FINE))
        assert await all_waiting(stack, len(FINE), 8) >= len(FINE)
        await stack.farm.set_resolvers("ok")
        assert await stack.wait_decided(1 + len(FINE), 90) == 1 + len(FINE), stack.worker_log()[-3000:]
        decided = await outcomes(stack)
        assert decided.pop("nxdomain-first.example") == "CT-M-NO-MX"
        assert decided == {domain: code for domain, code in planned().items() if domain in FINE}


@pytest.mark.parametrize("pause_s", [0.0, 3.0], ids=["mended before a control", "seen by controls"])
async def test_a_blocked_port_25_fails_nobody_and_everybody_is_decided_after_the_repair(
    tmp_path: Path, pause_s: float
) -> None:
    async with Stack(tmp_path, CT_PASS_DEADLINE_S="30") as stack:
        stack.start_worker()
        assert await stack.wait_said("Ready", 30)
        await stack.farm.block_smtp("refused")
        await stack.publish(await stack.mint(FINE + DEAD))
        await all_waiting(stack, len(FINE + DEAD) - 3, 15)
        await asyncio.sleep(pause_s)
        decided = await outcomes(stack)
        assert set(decided.values()) <= {"CT-M-NO-MX"}, decided
        await stack.farm.block_smtp(None)
        assert await stack.wait_decided(len(FINE + DEAD), 60) == len(FINE + DEAD), stack.worker_log()[-3000:]
        assert await outcomes(stack) == planned()


async def test_while_postgres_is_away_nothing_is_acked_and_afterwards_all_is_decided_once(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.1) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 30)
        ids = await stack.mint([f"info-{n}.example" for n in range(200)])
        await stack.publish(ids)
        assert await stack.wait_decided(20, 30) >= 20
        stack.admin.terminate()
        await stack.postgres.stop(crash=True)
        await asyncio.sleep(4)
        assert worker.poll() is None, "an outage of Postgres ended the worker"
        assert "Postgres" in stack.worker_log()
        await stack.postgres.start()
        await stack.connect()
        assert await stack.wait_decided(200, 60) == 200, stack.worker_log()[-3000:]
        assert await stack.wait_published(40) == 0
        assert stack.end_worker(worker) == 0
        records = await stack.records("ct.pass", "ct.fail")
        assert {record.key.decode() for record in records} == {str(i) for i in ids}
        by_key: dict[bytes, set[tuple[object, ...]]] = {}
        for record in records:
            by_key.setdefault(record.key, set()).add((record.value, record.headers))
        assert all(len(copies) == 1 for copies in by_key.values()), "two records of one company differ"


async def test_an_idle_worker_outlives_an_outage_of_postgres_and_says_so(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 30)
        await stack.wait_ready(200, 30)
        stack.admin.terminate()
        await stack.postgres.stop(crash=True)
        await asyncio.sleep(6)  # longer than every loop's period: each meets the outage with no company to show it
        assert worker.poll() is None, f"an outage of Postgres ended an idle worker: {stack.worker_log()[-3000:]}"
        status, troubles = await stack.readyz()
        assert status == 503
        assert "postgres" in troubles
        assert len(stack.worker_log().splitlines()) < 40, "the outage floods the log"
        await stack.postgres.start()
        await stack.connect()
        await stack.publish(await stack.mint(["info-1.example"]))
        assert await stack.wait_decided(1, 30) == 1, stack.worker_log()[-3000:]
        assert await stack.wait_ready(200, 30) == {}
        assert stack.end_worker(worker) == 0
