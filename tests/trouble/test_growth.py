"""With hundreds of thousands of outcomes and waiting companies, nothing that runs all the time reads them all."""

from __future__ import annotations

import asyncio
import json
import os
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest

from ct_stream.store.database import Database
from ct_stream.store.domain_memory import DomainMemory
from ct_stream.store.guardrails import Guardrails
from ct_stream.store.parked import ParkedCompanies
from ct_stream.store.queries import _all, query
from tests.conftest import TEMPLATE, DatabaseDsns, lend_copy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ct_stream.local.postgres import EmbeddedPostgres

#: CT_TEST_GROWTH says how many; `make nightly` takes a million. With fewer than 20,000 a scan is cheaper than an index.
ROWS = int(os.environ.get("CT_TEST_GROWTH", "100000"))
#: Rows and index entries of one table that a statement may read: its slices, and what is in their way.
MOST_READ = 15_000
#: Of the companies that wait, a tenth is stuck; the rest waits for a provider, for port 25, for midnight, and for
#: the midnight that has just been. Of what
#: ct_tidy removes, half is old enough.
GROW = f"""
SET session_replication_role = replica;
CREATE TABLE public.numbers AS SELECT n, gen_random_uuid() AS id, now() - n * interval '1 second' AS at,
        now() - n * interval '1 ms' - CASE WHEN n % 2 = 0 THEN interval '500 days' ELSE '0' END AS old
    FROM generate_series(1, {ROWS}) AS n;
INSERT INTO outreach.outreach (outreach_id, domain) SELECT id, 'd' || n || '.example' FROM numbers;
INSERT INTO outreach.ct_outcomes (outreach_id, outcome, failure_code, decided_at, recorded_at, topic, published_at)
    SELECT gen_random_uuid(), CASE WHEN n % 3 = 0 THEN 'FAIL' ELSE 'PASS' END,
        CASE WHEN n % 3 = 0 THEN 'CT-M-NO-MX' END, at, at, 'ct.pass', now()
    FROM numbers ORDER BY n DESC;
INSERT INTO outreach.company_target (outreach_id, execution_status, imo_completed_at)
    SELECT outreach_id, CASE WHEN outcome = 'FAIL' THEN 'failed' ELSE 'ready' END, decided_at FROM outreach.ct_outcomes;
INSERT INTO outreach.company_target_errors (outreach_id, failure_code, created_at)
    SELECT outreach_id, failure_code, decided_at FROM outreach.ct_outcomes WHERE outcome = 'FAIL';
INSERT INTO outreach.ct_domains (domain, provider, free_at, lease_owner, lease_until)
    SELECT 'd' || n || '.example', 'd' || n || '.example', CASE WHEN n % 1000 = 0 THEN '-infinity' ELSE old END,
        CASE WHEN n % 1000 = 0 THEN 'dead/' || n % 7 END, CASE WHEN n % 1000 = 0 THEN now() - interval '2 days' END
    FROM numbers;
INSERT INTO outreach.ct_memory (domain, rules_version, outcome, answers, answered_at, mx_at)
    SELECT 'd' || n || '.example', 'test', 'PASS', '[]', old, old FROM numbers;
INSERT INTO outreach.ct_passes (
        outreach_id, state, domain, reason, detail, waits_on, not_before, since, failed_at, worker_version
    )
    SELECT id, 'waiting', 'd' || n || '.example', k.reason, '', k.waits_on, k.not_before, at, at, 'test'
    FROM numbers JOIN (VALUES
        (0, 'provider_closed', 'provider:closed.example', 'infinity'),
        (1, 'control', 'control:smtp:worker', 'infinity'),
        (2, 'daily_cap', 'cap:TOOL-005', now() + interval '6 hours'),
        (3, 'daily_cap', 'cap:TOOL-005', now() - interval '1 minute')
    ) AS k (which, reason, waits_on, not_before) ON k.which = n % 4
    WHERE n % 10 > 0;
INSERT INTO outreach.ct_workers (worker, machine, egress, version, toolbox, troubles, partitions, running)
    SELECT w, '', w, '', '{{}}', '{{}}', '{{}}', 0 FROM unnest(ARRAY['worker', 'broken']) AS w;
UPDATE outreach.ct_workers SET seen_at = now() + interval '1 day';
INSERT INTO outreach.ct_controls (worker, kind) SELECT w, k FROM unnest(ARRAY['worker', 'broken']) AS w,
    unnest(ARRAY['dns', 'smtp', 'smtp6', 'dns_tcp']) AS k;
INSERT INTO outreach.ct_passes (outreach_id, state, domain, reason, detail, not_before, since, worker_version)
    SELECT id, 'stuck', 'd' || n || '.example', 'our_bug', '', at - interval '2 hours', at, 'test'
    FROM numbers WHERE n % 10 = 0;
INSERT INTO outreach.ct_guardrails (key, state, reason, since)
    SELECT 'provider:p' || n || '.example', 'open', 'talks normally again', old FROM numbers;
INSERT INTO outreach.ct_guardrails (key, state, reason, next_try_at)
    VALUES ('provider:closed.example', 'closed', 'refused by 3', now() + interval '6 hours');
INSERT INTO outreach.ct_guardrail_log (key, state, reason, at)
    SELECT 'provider:p' || n % 1000 || '.example', CASE WHEN n % 2 = 0 THEN 'open' ELSE 'closed' END, '', at FROM (
        SELECT n, old AS at FROM numbers ORDER BY old
    ) AS o;
INSERT INTO outreach.ct_alerts (event, state, reason, at, taken_at) SELECT 'stuck', 'stuck', '', old, old FROM numbers;
INSERT INTO outreach.ct_refusals (provider, domain, kind, at)
    SELECT 'p' || n || '.example', 'd' || n || '.example', 'refused', old FROM numbers;
DROP TABLE numbers;
ANALYZE;
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
    "ct_alerts",
    "ct_guardrails",
    "ct_guardrail_log",
}
#: What may read all rows: reports that people run now and then, and what runs once or seldom.
REPORTS = {
    "decided": "the demo compares all companies with its plan",
    "latency": "the demo's report",
    "progress": "the demo's report",
    "has_own_outcomes": "once, when a worker starts; ends at the first row of our own",
    "rehearsal_companies": "once, when a worker starts; ends at 1,000 undecided companies",
    "guardrails": "all that were closed within the last weeks: ct_tidy removes the others",
    "shut_providers": "one look-up in the log for each of these guardrails",
    "refusing_networks": "the domains of the day, whenever a server refuses us",
    "without_outcome": "migrate counts",
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


@pytest.fixture(scope="module")
def grown_template(postgres: EmbeddedPostgres) -> Iterator[str]:
    """Fill one database for all tests of this file."""
    name = "template_grown"
    asyncio.run(fill(postgres, name))
    yield name
    asyncio.run(postgres.drop_database(name))


async def fill(postgres: EmbeddedPostgres, name: str) -> None:
    """Create and fill a database."""
    connection = await asyncpg.connect(await postgres.create_database(name, template=TEMPLATE))
    await connection.execute(GROW)
    await connection.execute("VACUUM")
    await connection.close()


@pytest.fixture
async def grown(postgres: EmbeddedPostgres, grown_template: str) -> AsyncIterator[DatabaseDsns]:
    """Lend a copy of it."""
    async with lend_copy(postgres, grown_template) as dsns:
        yield dsns


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


async def rows_read(admin: asyncpg.Connection[Any]) -> dict[str, int]:
    """Return how many rows or index entries were read, by table or index."""
    rows = await admin.fetch(
        """
        SELECT relname AS name, coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0) AS read FROM pg_stat_user_tables
        UNION ALL
        SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes
        """
    )
    return {row["name"]: row["read"] for row in rows}


HOUR = timedelta(hours=1)
NOW = datetime.now(UTC)
#: What runs all the time, or is a function that no plan shows, and what people ask: as whom, and with what.
RUN: list[tuple[str, str, tuple[object, ...]]] = [
    ("gate", "server", ()),
    ("gate", "wake_sleepers", (10, 30.0)),
    ("gate", "wake_capped", (10_000,)),
    ("gate", "control", (["worker", "broken"], 30.0)),
    ("gate", "control_succeeded", ("smtp", NOW, "", 60.0, "worker")),
    ("gate", "good_talk", (NOW, "", 60.0, "worker", "smtp")),
    ("gate", "begin_control", ("smtp", 30.0, 20.0, "worker", 600.0)),
    ("gate", "to_take_over", ("worker", 30.0, "default")),
    ("gate", "at_work", ("worker", 30.0)),
    ("gate", "count_for_own_way", ("worker", 1000)),
    ("gate", "neighbours", ("203.0.113.7", "203.0.113.0/24", "p1.example", "d1.example", HOUR, "default")),
    ("gate", "set_guardrail", ("provider:closed.example", "open", "talks normally again", -1.0)),
    ("gate", "set_guardrail", ("provider:closed.example", "halted", "why", -1.0)),
    ("gate", "close_everywhere", ("closed.example", "why", 600.0)),
    ("gate", "end_trial", ("default",)),
    ("gate", "tidy", (5000, timedelta(hours=168), timedelta(hours=24))),
    ("gate", "claim_due", ("worker", 100, 20.0, True, ["way", "provider:closed.example"], None, "default")),
    ("gate", "claim_due", ("worker", 100, 20.0, False, [], None, "default")),
    ("gate", "retry_stuck", ("2", 1000)),
    ("gate", "stuck_lately", ()),
    ("gate", "hung_again", (600.0, 3)),
    ("gate", "count_unpublished", ()),
    ("gate", "claim_unpublished", (100, 20.0)),
    ("gate", "refusals_at_provider", ("p1.example", HOUR, "default")),
    ("gate", "take_alerts", ("worker", 10, HOUR)),
    ("gate", "wake_domains", (["d1.example"],)),
    (
        "gate",
        "begin_probes",
        ("worker", ["new.example"], ["p1.example"], [False], [uuid4()], [None], [None], 20.0, 10, 3, "default"),
    ),
    ("gate", "release_owner", ("worker", 5.0)),
    ("ops", "resume_guardrail", ("provider:closed.example", "delisted")),
    ("ops", "held", (None, 100)),
    ("ops", "held", ("our_bug", 100)),
    ("ops", "held", ("tier2", 100)),
    ("ops", "transcripts", (HOUR,)),
    ("ops", "recent_failures", (HOUR, None, 100)),
    ("ops", "failure_distribution", (HOUR,)),
    ("ops", "pass_rate", (HOUR,)),
    ("ops", "workers", (30.0,)),
]


async def test_what_runs_all_the_time_reads_no_more_than_its_slice(grown: DatabaseDsns) -> None:
    admin = await asyncpg.connect(grown.admin)
    roles = {"gate": await asyncpg.connect(grown.gate), "ops": await asyncpg.connect(grown.ops)}
    found = []
    for role, name, args in RUN:
        connection = roles[role]
        before = await rows_read(admin)
        begun_at = time.monotonic()
        transaction = connection.transaction()
        await transaction.start()
        await connection.fetch(query(name), *args)
        took_s = time.monotonic() - begun_at
        await transaction.rollback()  # each statement meets all of it
        await connection.execute("SELECT pg_stat_force_next_flush()")
        after = await rows_read(admin)
        read = {what: n - before[what] for what, n in after.items() if n - before[what] > MOST_READ}
        if read or took_s > 2:
            found.append((name, args, round(took_s, 2), read))
    for connection in (admin, *roles.values()):
        await connection.close()
    assert found == []


async def test_all_that_is_old_goes_in_slices_and_the_rest_stays(grown: DatabaseDsns) -> None:
    admin = await asyncpg.connect(grown.admin)
    await admin.execute(
        "INSERT INTO outreach.ct_guardrails (key, state, reason, since)"
        " VALUES ('spine', 'open', 'looked at', now() - interval '500 days'),"
        " ('provider:shut.example', 'closed', 'refused by 3', now() - interval '500 days');"
        "INSERT INTO outreach.ct_guardrail_log (key, state, reason, at)"
        " SELECT 'provider:shut.example', s, '', now() - interval '500 days'"
        " FROM unnest('{paused, closed}'::text[]) AS s"
    )
    db = Database(grown.gate, pool_size=2)
    await db.open()
    await DomainMemory(db, "test").tidy()
    await db.close()
    left = await admin.fetchrow(
        """
        SELECT (SELECT count(*) FROM outreach.ct_domains) AS domains,
            (SELECT count(*) FROM outreach.ct_memory) AS memories,
            (SELECT count(*) FROM outreach.ct_refusals) AS refusals,
            (SELECT count(*) FROM outreach.ct_alerts) AS alerts,
            (SELECT count(*) FROM outreach.ct_guardrails AS g
                WHERE g.state = 'open' AND g.since < now() - interval '30 days') AS opened,
            (SELECT array_agg(l.key || ' ' || l.state) FROM outreach.ct_guardrail_log AS l
                WHERE l.at < now() - interval '400 days') AS log
        """
    )
    await admin.close()
    assert left is not None
    half = ROWS // 2
    assert (left["domains"], left["memories"], left["refusals"], left["alerts"] - 1) == (half, half, half, half)
    assert left["opened"] == 1, "when a person opened the spine's guardrail counts"
    assert left["log"] == ["provider:shut.example closed"]


async def test_a_provider_that_opens_wakes_its_companies_in_slices(grown: DatabaseDsns) -> None:
    due = (
        "SELECT count(*) FROM outreach.ct_passes"
        " WHERE waits_on = 'provider:closed.example' AND not_before <= clock_timestamp()"
    )
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


async def test_a_proof_that_port_25_works_wakes_those_who_wait_for_it_in_slices(grown: DatabaseDsns) -> None:
    due = (
        "SELECT count(*) FROM outreach.ct_passes"
        " WHERE waits_on = 'control:smtp:worker' AND not_before <= clock_timestamp()"
    )
    admin = await asyncpg.connect(grown.admin)
    db = Database(grown.gate, pool_size=2)
    await db.open()
    passes = ParkedCompanies(db, "worker", "test")
    await passes.wake_sleepers(10)
    assert await admin.fetchval(due) == 0
    await db.run("control_succeeded", "smtp", datetime.now(UTC), "", 60.0, "worker")
    assert await admin.fetchval(due) == 1000
    await passes.wake_sleepers(10)
    assert await admin.fetchval(due) == 2000
    await db.run("good_talk", datetime.now(UTC), "", 60.0, "worker", "smtp")
    assert await admin.fetchval(due) == 3000
    await db.run("control_failed", "smtp", "no way out", "worker")
    await passes.wake_sleepers(10)
    assert await admin.fetchval(due) == 3000
    await db.close()
    await admin.close()


async def test_companies_that_another_version_left_stuck_are_tried_again_in_slices(grown: DatabaseDsns) -> None:
    admin = await asyncpg.connect(grown.admin)
    db = Database(grown.gate, pool_size=2)
    await db.open()
    await ParkedCompanies(db, f"worker/{uuid4().hex}", "2").retry_stuck()
    await db.close()
    assert await admin.fetchval("SELECT count(*) FROM outreach.ct_passes WHERE state = 'stuck'") == 0
    await admin.close()
