"""Postgres locked, full, read-only, slow, or another one: all wait, nobody fails (FAULTS 10, 24)."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.faults import invariants
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KINDS = ("info", "allreject", "catchall", "nxdomain")
COMPANIES = 160


async def says(stack: Stack, part: str, words: str, within_s: float) -> None:
    """Wait until /readyz names trouble with a part in these words.

    Another sentence may come first: that a connection was ended is seen before where the next one leads to.
    """
    deadline = time.monotonic() + within_s
    while True:
        status, troubles = await stack.readyz()
        if status == 503 and words in troubles.get(part, ""):
            return
        assert time.monotonic() < deadline, f"/readyz says {status} {troubles}: {stack.worker_log()[-2000:]}"
        await asyncio.sleep(0.2)


@asynccontextmanager
async def locked(stack: Stack) -> AsyncIterator[None]:
    """Hold the ledger as a migration does."""
    connection = await asyncpg.connect(stack.postgres.admin_dsn)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("LOCK TABLE outreach.ct_outcomes IN ACCESS EXCLUSIVE MODE")
    try:
        yield
    finally:
        await transaction.rollback()
        await connection.close()


@asynccontextmanager
async def full(stack: Stack) -> AsyncIterator[None]:
    """Let each write of an outcome or a wait fail as on a full disk (SQLSTATE 53100)."""
    body = "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';"
    async with triggers(stack, body):
        yield


@asynccontextmanager
async def slow(stack: Stack) -> AsyncIterator[None]:
    """Let each write take two seconds."""
    async with triggers(stack, "PERFORM pg_sleep(2);"):
        yield


@asynccontextmanager
async def crawling(stack: Stack) -> AsyncIterator[None]:
    """Let each write take longer than a worker waits for a statement: it never hears what became of it."""
    async with triggers(stack, "PERFORM pg_sleep(18);"):
        yield


@asynccontextmanager
async def triggers(stack: Stack, body: str) -> AsyncIterator[None]:
    tables = ("outreach.ct_outcomes", "outreach.ct_passes")
    await stack.admin.execute(
        f"CREATE FUNCTION outreach.fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NULL; END $$"
    )
    for table in tables:
        await stack.admin.execute(
            f"CREATE TRIGGER fault BEFORE INSERT OR UPDATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION outreach.fault()"
        )
    try:
        yield
    finally:
        for table in tables:
            await stack.admin.execute(f"DROP TRIGGER fault ON {table}")
        await stack.admin.execute("DROP FUNCTION outreach.fault()")


@asynccontextmanager
async def read_only(stack: Stack) -> AsyncIterator[None]:
    """Refuse writes, as a server does that failed over under us."""
    await stack.admin.execute("ALTER ROLE ct_gate SET default_transaction_read_only = on")
    await stack.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ct_gate'")
    try:
        yield
    finally:
        await stack.admin.execute("ALTER ROLE ct_gate RESET default_transaction_read_only")
        await stack.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ct_gate'")


@asynccontextmanager
async def revoked(stack: Stack) -> AsyncIterator[None]:
    """Take away what the gate may do."""
    await stack.admin.execute("REVOKE SELECT ON outreach.outreach FROM ct_gate")
    await stack.admin.execute("REVOKE SELECT (outreach_id, domain) ON outreach.outreach FROM ct_gate")
    try:
        yield
    finally:
        await stack.admin.execute("GRANT SELECT (outreach_id, domain) ON outreach.outreach TO ct_gate")


@pytest.mark.parametrize(
    ("fault", "is_ready", "lasts_s"),
    [
        pytest.param(locked, False, 18.0, id="locked", marks=pytest.mark.long),
        # Longer than leases, claims, a session of the group, and a control's interval.
        pytest.param(locked, False, 75.0, id="locked for long", marks=pytest.mark.long),
        pytest.param(full, False, 6.0, id="full"),
        pytest.param(slow, True, 8.0, id="slow", marks=pytest.mark.long),
        pytest.param(crawling, False, 60.0, id="crawling", marks=pytest.mark.long),
        pytest.param(read_only, False, 6.0, id="read-only"),
        pytest.param(revoked, False, 6.0, id="revoked"),
    ],
)
async def test_a_postgres_in_trouble_fails_nobody_and_all_is_decided_after_the_repair(
    tmp_path: Path, fault: object, is_ready: bool, lasts_s: float
) -> None:
    async with Stack(tmp_path, reply_delay_s=0.05) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        names: list[str | None] = [f"{KINDS[n % len(KINDS)]}-{n}.example" for n in range(COMPANIES)]
        ids = await stack.mint(names)
        await stack.publish(ids[: COMPANIES // 2])
        await stack.wait_decided(10, 30)
        assert callable(fault)
        async with fault(stack):
            broken_at = time.monotonic()
            await stack.publish(ids[COMPANIES // 2 :])
            if not is_ready:
                await says(stack, "postgres", "Postgres", 30)
            await asyncio.sleep(max(0.0, broken_at + lasts_s - time.monotonic()))
            assert worker.poll() is None, stack.worker_log()[-3000:]
        await invariants.wait_at_rest(stack, COMPANIES, 90)
        found = await invariants.check(stack, dict(zip(ids, names, strict=True)), pause_s=0.2)
        assert found.broken == [], stack.worker_log()[-2000:]
        stuck = await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_passes WHERE exceptions > 0")
        assert stuck == 0, "the database's trouble was charged to a company"
        assert stack.end_worker(worker) == 0


async def test_a_ledger_that_lost_rows_makes_everything_wait_and_decides_nobody_twice(tmp_path: Path) -> None:
    """A backup was restored under a running worker: the same epoch, fewer outcomes than were seen."""
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        ids = await stack.mint([f"info-{n}.example" for n in range(40)])
        await stack.publish(ids)
        assert await stack.wait_decided(40, 30) == 40
        for table in ("ct_outcomes", "company_target"):
            await stack.admin.execute(f"ALTER TABLE outreach.{table} DISABLE TRIGGER USER")
        await stack.admin.execute(
            "DELETE FROM outreach.ct_outcomes AS o WHERE o.outreach_id IN"
            " (SELECT n.outreach_id FROM outreach.ct_outcomes AS n ORDER BY n.ordinal DESC LIMIT 20)"
        )
        await stack.admin.execute(
            "DELETE FROM outreach.company_target AS t WHERE NOT EXISTS"
            " (SELECT 1 FROM outreach.ct_outcomes AS o WHERE o.outreach_id = t.outreach_id)"
        )
        await stack.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ct_gate'")
        await stack.publish(ids)
        await says(stack, "postgres", "restored from a backup", 30)
        assert await stack.count_decided() == 20
        assert worker.poll() is None


async def test_another_database_is_told_by_its_epoch(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        await stack.publish(await stack.mint(["info-1.example"]))
        assert await stack.wait_decided(1, 30) == 1
        await stack.admin.execute("UPDATE outreach.ct_epoch SET epoch = $1", uuid.uuid4())
        await stack.admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'ct_gate'")
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(2, 12)]))
        await says(stack, "postgres", "another ledger", 30)
        assert await stack.count_decided() == 1
        assert worker.poll() is None


async def test_a_spine_of_strangers_is_not_believed(tmp_path: Path) -> None:
    """A wrong database, or a lagging copy: most companies are missing, which looks just like NOT-FOUND."""
    async with Stack(tmp_path, CT_SPINE_GRACE_S="1") as stack:
        stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        await stack.mint(["info-1.example"])
        await stack.publish([uuid.uuid4() for _ in range(60)])
        await says(stack, "guardrails", "spine is halted", 60)
        failed = await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_outcomes")
        assert failed <= 20, "more were believed than the control lets through"
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(2, 12)]))
        assert await stack.wait_decided(failed + 10, 30) >= failed + 10, "who is in the spine goes on"
