"""With hundreds of thousands of outcomes and waiting companies, nothing that runs all the time reads them all."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest

from ct_stream.store.database import Database
from ct_stream.store.guardrails import Guardrails
from ct_stream.store.parked import ParkedCompanies
from ct_stream.store.queries import _all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import DatabaseDsns

ROWS = 100_000
GROW = f"""
SET session_replication_role = replica;
CREATE TABLE numbers AS SELECT n, gen_random_uuid() AS id FROM generate_series(1, {ROWS}) AS n;
INSERT INTO outreach.outreach (outreach_id, domain) SELECT id, 'd' || n || '.example' FROM numbers;
INSERT INTO outreach.ct_outcomes (outreach_id, outcome, failure_code, decided_at, topic, published_at)
    SELECT gen_random_uuid(), CASE WHEN n % 3 = 0 THEN 'FAIL' ELSE 'PASS' END,
        CASE WHEN n % 3 = 0 THEN 'CT-M-NO-MX' END, now() - n * interval '1 second', 'ct.pass', now()
    FROM numbers;
INSERT INTO outreach.company_target (outreach_id, execution_status, imo_completed_at)
    SELECT outreach_id, CASE WHEN outcome = 'FAIL' THEN 'failed' ELSE 'ready' END, decided_at FROM outreach.ct_outcomes;
INSERT INTO outreach.company_target_errors (outreach_id, failure_code, created_at)
    SELECT outreach_id, failure_code, decided_at FROM outreach.ct_outcomes WHERE outcome = 'FAIL';
INSERT INTO outreach.ct_domains (domain, provider, free_at)
    SELECT 'd' || n || '.example', 'd' || n || '.example', now() FROM numbers;
INSERT INTO outreach.ct_memory (domain, rules_version, outcome, answers, answered_at, mx_at)
    SELECT 'd' || n || '.example', 'test', 'PASS', '[]', now(), now() FROM numbers;
INSERT INTO outreach.ct_passes (outreach_id, state, domain, reason, detail, waits_on, not_before, since)
    SELECT id, 'waiting', 'd' || n || '.example', 'provider_closed', '', 'provider:closed.example', 'infinity',
        now() - n * interval '1 second' FROM numbers;
INSERT INTO outreach.ct_guardrails (key, state, reason, next_try_at)
    VALUES ('provider:closed.example', 'closed', 'refused by 3', 'infinity');
INSERT INTO outreach.ct_refusals (provider, domain, kind)
    SELECT 'p' || n || '.example', 'd' || n || '.example', 'refused' FROM numbers;
ANALYZE;
SET session_replication_role = origin;
"""
BIG = {
    "ct_outcomes",
    "ct_passes",
    "company_target",
    "company_target_errors",
    "ct_domains",
    "ct_memory",
    "outreach",
    "ct_refusals",
}
#: What may read all rows: reports that people run now and then, and what runs once or seldom.
REPORTS = {
    "decided": "the demo compares all companies with its plan",
    "latency": "the demo's report",
    "progress": "the demo's report",
    "has_own_outcomes": "once, when a worker starts; ends at the first row of our own",
    "rehearsal_companies": "once, when a worker starts; ends at 1,000 undecided companies",
    "control_succeeded": "at most every 30 s, while somebody waits for a control",
    "refusing_networks": "the domains of the day, whenever a server refuses us",
    "spine_control": "ends at the first row of the spine",
    "verify_companies": "verify compares everything",
    "undecided": "lists all of the spine that nobody decided",
    "runbook_failure_distribution": "as the runbook has it",
    "runbook_pass_rate": "as the runbook has it",
    "failure_distribution": "counts all failures of a span",
    "pass_rate": "counts all decisions of a span",
    "recent_failures": "joins what could not be written to the errors table",
    "waiting_by_reason": "counts all waiting companies, and rests twenty times as long",
}


def scans(plan: dict[str, Any]) -> Iterator[str]:
    """Yield the big tables that a plan reads from end to end."""
    if plan["Node Type"] == "Seq Scan" and plan.get("Relation Name") in BIG:
        yield plan["Relation Name"]
    for part in plan.get("Plans", ()):
        yield from scans(part)


@pytest.fixture
async def grown(database: DatabaseDsns) -> DatabaseDsns:
    admin = await asyncpg.connect(database.admin)
    await admin.execute(GROW)
    await admin.close()
    return database


async def test_nothing_reads_all_companies(grown: DatabaseDsns) -> None:
    admin = await asyncpg.connect(grown.admin)
    await admin.execute("SET plan_cache_mode = force_generic_plan")
    found = {}
    for name, statement in _all().items():
        kinds = [f"{kind.schema}.{kind.name}" for kind in (await admin.prepare(statement)).get_parameters()]
        types = ", ".join(kind.removeprefix("pg_catalog.") for kind in kinds)
        await admin.execute(f"PREPARE {name}{f' ({types})' if types else ''} AS {statement}")
        nulls = f"({', '.join('NULL' for _ in kinds)})" if kinds else ""
        explained = await admin.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE {name}{nulls}")
        if read := sorted(set(scans(json.loads(explained)[0]["Plan"]))):
            found[name] = read
    await admin.close()
    assert {name: read for name, read in found.items() if name not in REPORTS} == {}


async def test_a_provider_that_opens_wakes_its_companies_in_slices(grown: DatabaseDsns) -> None:
    due = "SELECT count(*) FROM outreach.ct_passes WHERE not_before <= clock_timestamp()"
    admin = await asyncpg.connect(grown.admin)
    db = Database(grown.gate, pool_size=2)
    await db.open()
    passes = ParkedCompanies(db, "worker", "test")
    begun_at = time.monotonic()
    await passes.wake_sleepers(10)
    assert await admin.fetchval(due) == 0
    await Guardrails(db, 60.0).set_state("provider:closed.example", "open", "talks again", None)
    assert await admin.fetchval(due) == 1000
    for slices in (2, 3):
        await passes.wake_sleepers(10)
        assert await admin.fetchval(due) == 1000 * slices
    assert time.monotonic() - begun_at < 10, "a statement read all waiting companies"
    assert len(await passes.claim_due(10)) == 10
    await db.close()
    await admin.close()


async def test_companies_that_another_version_left_stuck_are_tried_again_in_slices(grown: DatabaseDsns) -> None:
    admin = await asyncpg.connect(grown.admin)
    await admin.execute(
        "UPDATE outreach.ct_passes SET state = 'stuck', worker_version = '1', not_before = now()"
        " WHERE outreach_id IN (SELECT outreach_id FROM outreach.ct_passes LIMIT 2500)"
    )
    db = Database(grown.gate, pool_size=2)
    await db.open()
    await ParkedCompanies(db, f"worker/{uuid4().hex}", "2").retry_stuck()
    await db.close()
    assert await admin.fetchval("SELECT count(*) FROM outreach.ct_passes WHERE state = 'stuck'") == 0
    await admin.close()
