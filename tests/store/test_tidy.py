"""No table grows for ever unless it must, and what is removed changes nothing that anybody could notice."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from ct_stream.store.control_ledger import ControlLedger
from ct_stream.store.guardrails import Guardrails
from ct_stream.store.limits import DomainLease, SharedLimits
from ct_stream.store.parked import ParkedCompanies
from tests.store.parts import LIMITS, opened, parked, running, seen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import DatabaseDsns

#: What bounds each table. A new table needs its answer here.
BOUND_BY = {
    "company_target": "one row for each company, for ever: the decision",
    "company_target_errors": "one row for each FAIL, for ever",
    "ct_adoption": "one row",
    "ct_alerts": "ct_tidy: a week",
    "ct_controls": "ct_tidy: two rows for each worker run, eight days after its last control",
    "ct_domains": "ct_tidy: a day after the last session, or after the lease of a worker that died",
    "ct_epoch": "one row",
    "ct_functions": "one row for each version that was migrated to",
    "ct_guardrail_log": "ct_tidy: 400 days; the last change of a guardrail that is not open stays",
    "ct_guardrails": "ct_tidy: a provider that has been open for 30 days has no row; few tools and inputs",
    "ct_memory": "ct_tidy: a week",
    "ct_migrations": "one row for each migration",
    "ct_outcomes": "one row for each company, for ever: the ledger",
    "ct_passes": "one row for each company without an outcome, removed with its outcome",
    "ct_rates": "one row for each tool",
    "ct_refusals": "ct_tidy: a week",
    "ct_tier2_attempts": "one row for each paid company, for ever: nothing is paid twice",
    "ct_toolboxes": "one row each time a person accepts one, for ever: the log",
    "ct_unwritten": "at most two rows for each company, for ever: what the users' tables do not hold",
    "ct_usage": "two rows a day and one a month, for ever: what was used and paid",
    "ct_watchdog_exits": "ct_tidy: 400 days",
    "ct_workers": "ct_tidy: a week",
}

_PROVIDER = "provider:bigmail.example"
#: For each table of ct_tidy a row of this age; the ages that go, and that stay.
ROWS = {
    "ct_alerts": (
        "INSERT INTO outreach.ct_alerts (event, state, reason, at) VALUES ('stuck', 'stuck', '', now() - $1::interval)",
        ("8 days", "6 days"),
    ),
    "ct_domains": (
        "INSERT INTO outreach.ct_domains (domain, provider, free_at) VALUES ('a.example', 'p', now() - $1::interval)",
        ("25 hours", "23 hours"),
    ),
    "ct_domains, held by a worker that died": (
        "INSERT INTO outreach.ct_domains (domain, provider, free_at, lease_owner, lease_until)"
        " VALUES ('a.example', 'p', '-infinity', 'dead', now() - $1::interval)",
        ("25 hours", "23 hours"),
    ),
    "ct_guardrail_log": (
        f"INSERT INTO outreach.ct_guardrail_log (key, state, reason, at)"
        f" VALUES ('{_PROVIDER}', 'open', '', now() - $1::interval)",
        ("401 days", "399 days"),
    ),
    "ct_guardrails": (
        f"INSERT INTO outreach.ct_guardrails (key, state, reason, since)"
        f" VALUES ('{_PROVIDER}', 'open', '', now() - $1::interval)",
        ("31 days", "29 days"),
    ),
    "ct_memory": (
        "INSERT INTO outreach.ct_memory (domain, rules_version, outcome, answers, answered_at, mx_at)"
        " VALUES ('a.example', '1', 'PASS', '[]', now() - $1::interval, now())",
        ("169 hours", "167 hours"),
    ),
    "ct_controls": (
        "INSERT INTO outreach.ct_controls (worker, kind, started_at) VALUES ('w', 'dns', now() - $1::interval)",
        ("193 hours", "191 hours"),
    ),
    "ct_refusals": (
        "INSERT INTO outreach.ct_refusals (provider, domain, kind, at)"
        " VALUES ('p', 'd', 'refused', now() - $1::interval)",
        ("8 days", "6 days"),
    ),
    "ct_watchdog_exits": (
        "INSERT INTO outreach.ct_watchdog_exits (places, reason, worker, worker_version, at)"
        " VALUES ('{}', '', '', '', now() - $1::interval)",
        ("401 days", "399 days"),
    ),
    "ct_workers": (
        "INSERT INTO outreach.ct_workers"
        " (worker, machine, egress, version, toolbox, troubles, partitions, running, seen_at)"
        " VALUES ('w', '', '', '', '{}', '{}', '{}', 0, now() - $1::interval)",
        ("8 days", "6 days"),
    ),
}
TIDY = "SELECT outreach.ct_tidy($1, '168 hours', '24 hours')"


@asynccontextmanager
async def administrator(database: DatabaseDsns) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Connect as somebody whose rows no trigger touches."""
    admin = await asyncpg.connect(database.admin)
    await admin.execute("SET session_replication_role = replica")
    try:
        yield admin
    finally:
        await admin.close()


async def test_somebody_has_said_of_each_table_what_bounds_it(database: DatabaseDsns) -> None:
    async with administrator(database) as admin:
        rows = await admin.fetch(
            "SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'outreach'::regnamespace"
            " AND c.relkind IN ('r', 'p') AND c.relname <> 'outreach'"
        )
    assert {row["relname"] for row in rows} == set(BOUND_BY)
    tidied = {table for table, by in BOUND_BY.items() if by.startswith("ct_tidy")}
    assert tidied == {name.partition(",")[0] for name in ROWS}


@pytest.mark.parametrize("name", ROWS)
async def test_what_is_too_old_goes_and_nothing_younger(database: DatabaseDsns, name: str) -> None:
    insert, (goes, stays) = ROWS[name]
    count = f"SELECT count(*) FROM outreach.{name.partition(',')[0]}"
    async with administrator(database) as admin:
        await admin.execute(insert.replace("$1", repr(stays)))
        assert not await admin.fetchval(TIDY, 1000)
        assert await admin.fetchval(count) == 1, "too young to go"
        await admin.execute(f"DELETE FROM outreach.{name.partition(',')[0]}")
        await admin.execute(insert.replace("$1", repr(goes)))
        assert not await admin.fetchval(TIDY, 1000)
        assert await admin.fetchval(count) == 0


async def test_it_says_whether_more_is_left(database: DatabaseDsns) -> None:
    insert, (goes, _) = ROWS["ct_refusals"]
    async with administrator(database) as admin:
        for _ in range(5):
            await admin.execute(insert.replace("$1", repr(goes)))
        left = []
        for _ in range(3):
            more = await admin.fetchval(TIDY, 2)
            left.append((more, await admin.fetchval("SELECT count(*) FROM outreach.ct_refusals")))
    assert left == [(True, 3), (True, 1), (False, 0)]


async def test_it_waits_for_nobody(database: DatabaseDsns) -> None:
    insert, (goes, _) = ROWS["ct_alerts"]
    async with administrator(database) as admin, administrator(database) as person:
        await admin.execute(insert.replace("$1", repr(goes)))
        async with person.transaction():
            await person.execute("SELECT 1 FROM outreach.ct_alerts FOR UPDATE")
            async with asyncio.timeout(5):
                assert not await admin.fetchval(TIDY, 1000)
        assert await admin.fetchval("SELECT count(*) FROM outreach.ct_alerts") == 1


async def test_a_domain_that_is_asked_now_stays(database: DatabaseDsns) -> None:
    async with administrator(database) as admin, opened(database.gate) as db:
        limits = SharedLimits(db, "worker", LIMITS)
        async with running(*limits.batches):
            assert isinstance(await limits.begin_probe("acme.example", "acme.example"), DomainLease)
            await admin.fetchval(TIDY, 1000)
            assert await admin.fetchval("SELECT count(*) FROM outreach.ct_domains WHERE lease_until > now()") == 1


async def test_the_last_change_of_a_guardrail_stays_unless_it_opened_it(database: DatabaseDsns) -> None:
    async with administrator(database) as admin:
        for key, state in [("a", "closed"), ("a", "open"), ("b", "paused"), ("b", "closed"), ("c", "halted")]:
            await admin.execute(
                "INSERT INTO outreach.ct_guardrail_log (key, state, reason, at)"
                " VALUES ($1, $2, '', now() - interval '2 years')",
                key,
                state,
            )
        await admin.fetchval(TIDY, 1000)
        rows = await admin.fetch("SELECT key || ' ' || state AS line FROM outreach.ct_guardrail_log ORDER BY key")
    assert [row["line"] for row in rows] == ["b closed", "c halted"]


async def test_when_a_person_opened_a_tool_or_an_input_is_kept(database: DatabaseDsns) -> None:
    keys = ["input", "spine", "tool:TOOL-005", "tool:TOOL-019", "watchdog"]
    async with administrator(database) as admin:
        for key in keys:
            await admin.execute(
                "INSERT INTO outreach.ct_guardrails (key, state, reason, since) VALUES ($1, 'open', '', '2020-01-01')",
                key,
            )
        await admin.fetchval(TIDY, 1000)
        rows = await admin.fetch("SELECT key FROM outreach.ct_guardrails ORDER BY key")
    assert [row["key"] for row in rows] == keys


async def test_a_normal_session_at_a_provider_that_was_never_closed_is_no_news(database: DatabaseDsns) -> None:
    """One company was refused there, and the next one was not. A row for each such provider would never end."""
    async with administrator(database) as admin, opened(database.gate) as db:
        passes, rails = ParkedCompanies(db, "worker", "test"), Guardrails(db, 60.0)
        async with running(passes.park):
            waiting = parked(after_s=600.0, waits_on=_PROVIDER)
            await passes.park(waiting)
            await rails.set_state(_PROVIDER, "open", "talks normally again", None)
            assert [resumed.origin for resumed in await passes.claim_due(10)] == [waiting.origin]
        for table in ("ct_guardrails", "ct_guardrail_log", "ct_alerts"):
            assert await admin.fetchval(f"SELECT count(*) FROM outreach.{table}") == 0


async def test_a_provider_whose_row_went_closes_and_opens_as_before(database: DatabaseDsns) -> None:
    told = "SELECT array_agg(state ORDER BY alert_id) FROM outreach.ct_alerts"
    async with administrator(database) as admin, opened(database.gate) as db:
        rails = Guardrails(db, 60.0)
        for state in ("closed", "open"):
            await rails.set_state(_PROVIDER, state, "why", 600.0)
        await admin.execute("UPDATE outreach.ct_guardrails SET since = since - interval '31 days'")
        await admin.fetchval(TIDY, 1000)
        assert await admin.fetchval("SELECT count(*) FROM outreach.ct_guardrails") == 0
        for state in ("open", "paused", "open", "closed", "open"):
            await rails.set_state(_PROVIDER, state, "why", 600.0)
        assert await admin.fetchval(told) == ["closed", "open", "closed", "open"]


async def test_a_proof_is_for_who_was_parked_just_after_it_too(database: DatabaseDsns) -> None:
    """Parked between the proof and the next one: the sweep finds it."""
    async with administrator(database) as admin, opened(database.gate) as db:
        passes = ParkedCompanies(db, "worker", "test")
        async with running(passes.park):
            companies = [parked(after_s=None, waits_on="control:smtp") for _ in range(2)]
            for company in companies:
                await passes.park(company)
            before, after = (company.origin.outreach_id for company in companies)
            await seen(db, "worker")
            await ControlLedger(db, 30.0, "worker").begin_record()
            await admin.execute(
                "UPDATE outreach.ct_controls SET ok_begun_at = now() - interval '1 minute' WHERE kind = 'smtp'"
            )
            failed_at = "UPDATE outreach.ct_passes SET failed_at = now() - $2::text::interval WHERE outreach_id = $1"
            await admin.execute(failed_at, before, "2 minutes")
            await admin.execute(failed_at, after, "1 second")
            await passes.wake_sleepers(10)
            assert [resumed.origin.outreach_id for resumed in await passes.claim_due(10)] == [before]
