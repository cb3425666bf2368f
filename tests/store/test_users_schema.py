"""The gate lives in the schema that the runbook was written for: its columns are final, those of others are theirs."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ct_stream.ops import reports
from ct_stream.settings import Settings
from ct_stream.store.ledger import Ledger
from ct_stream.store.migrate import migrate
from tests.store.parts import NO_MX, NOT_FOUND, PASSED, opened, outcome, running
from tests.store.users_schema import ddl, made, migrated, mint, rows, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ct_stream.gate.output_stage import Outcome
    from ct_stream.local.postgres import EmbeddedPostgres
    from tests.conftest import DatabaseDsns


@pytest.fixture
async def users(postgres: EmbeddedPostgres) -> AsyncIterator[DatabaseDsns]:
    """Lend the users' own schema, migrated, with errors rows that go with their company."""
    async with migrated(postgres, ddl(errors_cascade=True)) as database:
        yield database


async def record(gate_dsn: str, *outcomes: Outcome) -> list[bool]:
    """Record outcomes as the gate does."""
    async with opened(gate_dsn) as database:
        ledger = Ledger(database)
        async with running(*ledger.batches):
            return [await ledger.record(one) for one in outcomes]


async def test_others_change_their_own_columns_of_a_decided_company(users: DatabaseDsns) -> None:
    passed, failed = await mint(users.admin, pending=True), await mint(users.admin)
    assert await record(users.gate, outcome(passed), outcome(failed, NO_MX)) == [True, True]
    await run(
        users.admin,
        "UPDATE outreach.company_target SET outreach_status = 'active', sequence_count = sequence_count + 1,"
        " last_targeted_at = now(), updated_at = now(), company_unique_id = target_id::text",
    )
    await run(users.admin, "UPDATE outreach.company_target_errors SET archived_at = now(), retry_count = 1")
    await run(users.admin, "UPDATE outreach.company_target_errors SET resolved_at = now(), resolution_note = 'seen'")
    found = await rows(users.admin, "SELECT outreach_status, sequence_count, source FROM outreach.company_target")
    assert sorted(found, key=str) == sorted([("active", 1, "crm"), ("active", 1, None)], key=str)


@pytest.mark.parametrize(
    "change",
    [
        "outreach_id = gen_random_uuid()",
        "email_method = 'x@acme.example'",
        "method_type = 'first.last'",
        "confidence_score = 0.1",
        "is_catchall = true",
        "execution_status = 'pending'",
        "imo_completed_at = now()",
        "outreach_status = 'active', email_method = NULL",
    ],
)
async def test_the_gates_own_columns_are_final_for_the_administrator_too(users: DatabaseDsns, change: str) -> None:
    await record(users.gate, outcome(await mint(users.admin)))
    with pytest.raises(asyncpg.RestrictViolationError, match=r"is final \(ready\): a change of "):
        await run(users.admin, f"UPDATE outreach.company_target SET {change}")
    with pytest.raises(asyncpg.RestrictViolationError, match="delete is refused"):
        await run(users.admin, "DELETE FROM outreach.company_target")


@pytest.mark.parametrize("change", ["failure_code = 'x'", "blocking_reason = 'x'", "raw_input = '{}'"])
async def test_the_record_of_a_failure_is_final(users: DatabaseDsns, change: str) -> None:
    await record(users.gate, outcome(await mint(users.admin), NO_MX))
    with pytest.raises(asyncpg.RestrictViolationError, match="is final: a change of "):
        await run(users.admin, f"UPDATE outreach.company_target_errors SET {change}, archived_at = now()")
    with pytest.raises(asyncpg.RestrictViolationError, match="delete is refused"):
        await run(users.admin, "DELETE FROM outreach.company_target_errors")


async def test_a_row_goes_with_its_company_and_the_ledger_stays(users: DatabaseDsns) -> None:
    passed, failed = await mint(users.admin), await mint(users.admin)
    await record(users.gate, outcome(passed), outcome(failed, NO_MX))
    await run(users.admin, "DELETE FROM outreach.outreach")
    assert await rows(users.admin, "SELECT count(*) FROM outreach.company_target") == [(0,)]
    assert await rows(users.admin, "SELECT count(*) FROM outreach.company_target_errors") == [(0,)]
    assert await rows(users.admin, "SELECT count(*) FROM outreach.ct_outcomes") == [(2,)]
    await run(users.admin, "INSERT INTO outreach.outreach (outreach_id, domain) VALUES ($1, 'acme.example')", passed)
    assert await record(users.gate, outcome(passed, NO_MX)) == [False], "nobody is decided twice"


async def test_a_row_may_outlive_its_company_without_an_id(postgres: EmbeddedPostgres) -> None:
    loose = ddl().replace("ON DELETE CASCADE", "ON DELETE SET NULL")
    async with migrated(postgres, loose) as users:
        passed = await mint(users.admin)
        await record(users.gate, outcome(passed))
        with pytest.raises(asyncpg.RestrictViolationError, match="a change of outreach_id is refused"):
            await run(users.admin, "UPDATE outreach.company_target SET outreach_id = NULL")
        await run(users.admin, "DELETE FROM outreach.outreach")
        assert await rows(users.admin, "SELECT outreach_id, execution_status FROM outreach.company_target") == [
            (None, "ready")
        ]


async def test_how_long_a_method_may_be_is_told(postgres: EmbeddedPostgres) -> None:
    async with migrated(postgres, ddl()) as users:
        assert (await migrate(users.admin)).longest_method == 100
        await run(users.admin, "ALTER TABLE outreach.company_target ALTER COLUMN email_method TYPE varchar(300)")
        assert (await migrate(users.admin)).longest_method is None


async def test_somebody_without_rights_on_ledger_and_spine_changes_what_is_theirs(users: DatabaseDsns) -> None:
    """A service of the users' own may write only to company_target: the triggers run as that service."""
    await record(users.gate, outcome(await mint(users.admin)))
    connection = await asyncpg.connect(users.admin)
    try:
        await connection.execute("BEGIN; CREATE ROLE sequencer; GRANT USAGE ON SCHEMA outreach TO sequencer;"
                                 "GRANT SELECT, UPDATE, DELETE ON outreach.company_target TO sequencer;"
                                 "SET ROLE sequencer")  # fmt: skip
        await connection.execute("UPDATE outreach.company_target SET outreach_status = 'paused'")
        await connection.execute("SAVEPOINT before")
        with pytest.raises(asyncpg.RestrictViolationError):
            await connection.execute("UPDATE outreach.company_target SET email_method = NULL")
        await connection.execute("ROLLBACK TO before")
        with pytest.raises(asyncpg.RestrictViolationError):
            await connection.execute("DELETE FROM outreach.company_target")
    finally:
        await connection.execute("ROLLBACK")
        await connection.close()


async def test_errors_rows_have_the_words_of_the_gate_before(users: DatabaseDsns) -> None:
    failed = await mint(users.admin)
    await record(users.gate, outcome(failed, NO_MX), outcome(await mint(users.admin), PASSED))
    assert await rows(users.admin, "SELECT pipeline_stage, severity FROM outreach.company_target_errors") == [
        ("company_target_imo", "blocking")
    ]


@pytest.mark.parametrize("word", ["'pending'", "'queued'", "'PENDING'", "NULL", "''"])
async def test_a_status_that_the_gate_does_not_know_waits_for_it(postgres: EmbeddedPostgres, word: str) -> None:
    wide = ddl().replace("CHECK (execution_status IN ('pending', 'ready', 'failed', 'blocked'))", "")
    async with migrated(postgres, wide) as users:
        company = await mint(users.admin, pending=True)
        await run(users.admin, f"UPDATE outreach.company_target SET execution_status = {word}")
        assert (await migrate(users.admin)).pending == 1
        assert await record(users.gate, outcome(company)) == [True]
        found = await rows(users.admin, "SELECT execution_status, email_method FROM outreach.company_target")
        assert found == [("ready", "info@acme.example")]


async def test_rows_that_belong_to_no_company_of_the_spine_are_left_alone(postgres: EmbeddedPostgres) -> None:
    async with made(postgres, ddl()) as users:
        await run(users.admin, "INSERT INTO outreach.company_target (execution_status) VALUES ('ready'), ('pending')")
        report = await migrate(users.admin)
        assert (report.adopted, report.pending, report.foreign) == (0, 0, 0)
        await run(users.admin, "UPDATE outreach.company_target SET execution_status = 'failed'")
        await run(users.admin, "DELETE FROM outreach.company_target")


async def test_companies_decided_before_are_adopted_once(postgres: EmbeddedPostgres) -> None:
    async with made(postgres, ddl()) as users:
        before = await mint(users.admin, pending=True)
        await run(users.admin, "UPDATE outreach.company_target SET execution_status = 'ready'")
        assert (await migrate(users.admin)).adopted == 1
        after = await mint(users.admin, pending=True)
        await run(
            users.admin, "UPDATE outreach.company_target SET execution_status = 'ready' WHERE outreach_id = $1", after
        )
        again = await migrate(users.admin)
        assert (again.adopted, again.foreign) == (0, 1)
        assert await rows(users.admin, "SELECT outreach_id FROM outreach.ct_outcomes") == [(before,)]


async def test_a_final_row_that_the_gate_did_not_make_is_kept_and_told(
    users: DatabaseDsns, caplog: pytest.LogCaptureFixture
) -> None:
    company = await mint(users.admin, pending=True)
    await run(users.admin, "UPDATE outreach.company_target SET execution_status = 'ready', email_method = 'theirs'")
    assert await record(users.gate, outcome(company, NO_MX)) == [True], "the outcome counts"
    assert f"a final row of company {company} that the gate did not make" in caplog.text
    kept = "SELECT execution_status, email_method FROM outreach.company_target"
    assert await rows(users.admin, kept) == [("ready", "theirs")]
    assert await rows(users.admin, "SELECT event, outreach_id, state FROM outreach.ct_alerts") == [
        ("conflict", company, "kept")
    ]
    await run(users.admin, "UPDATE outreach.company_target SET execution_status = 'failed', email_method = NULL")


async def test_an_errors_row_of_an_undecided_company_is_not_the_gates(users: DatabaseDsns) -> None:
    company = await mint(users.admin)
    await run(
        users.admin,
        "INSERT INTO outreach.company_target_errors (outreach_id, pipeline_stage, failure_code, blocking_reason)"
        " VALUES ($1, 'theirs', 'X', 'x')",
        company,
    )
    await run(users.admin, "UPDATE outreach.company_target_errors SET failure_code = 'Y'")
    await run(users.admin, "DELETE FROM outreach.company_target_errors")


async def test_a_not_found_is_told_where_it_cannot_have_an_errors_row(postgres: EmbeddedPostgres) -> None:
    async with migrated(postgres, ddl()) as users:
        report = await migrate(users.admin)
        assert report.errors_bound_by == "company_target_errors_outreach_id_fkey"
        bound, free = outcome(verdict=NOT_FOUND), outcome(verdict=NOT_FOUND)
        assert await record(users.gate, bound) == [True]
        failures = "SELECT outreach_id FROM outreach.company_target_errors"
        assert await rows(users.admin, failures) == []
        settings = Settings(postgres_ops_dsn=users.ops)
        [told] = await reports.failures(settings, since=timedelta(hours=1), code=None, limit=10)
        assert (told["outreach_id"], told["failure_code"]) == (bound.outreach_id, "CT-I-NOT-FOUND")
        [counted] = await reports.distribution(settings, since=timedelta(hours=1))
        assert (counted["failure_code"], counted["count"]) == ("CT-I-NOT-FOUND", 1)
        await run(
            users.admin,
            f"ALTER TABLE outreach.company_target_errors DROP CONSTRAINT {report.errors_bound_by}",
        )
        assert await record(users.gate, free) == [True]
        assert await rows(users.admin, failures) == [(free.outreach_id,)]
        assert (await migrate(users.admin)).errors_bound_by is None


async def test_what_others_have_named_like_ours_stays_theirs(postgres: EmbeddedPostgres) -> None:
    theirs = """
    CREATE TABLE outreach.ct_notes (note text);
    CREATE FUNCTION outreach.ct_score() RETURNS integer LANGUAGE sql AS 'SELECT 1';
    """
    async with migrated(postgres, ddl() + theirs) as users:
        await migrate(users.admin)
        owned = (
            "SELECT 'outreach.ct_notes'::regclass::oid IN (SELECT c.oid FROM pg_class AS c WHERE c.relowner ="
            " 'ct_owner'::regrole), has_function_privilege('public', 'outreach.ct_score()', 'EXECUTE'),"
            " (SELECT p.proowner = 'ct_owner'::regrole FROM pg_proc AS p WHERE p.oid = 'outreach.ct_score'::regproc)"
        )
        assert await rows(users.admin, owned) == [(False, True, False)]
