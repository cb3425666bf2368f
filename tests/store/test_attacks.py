"""What somebody with the gate's or a person's login tries: to lift a halt, to free a budget, to stop the probing.

Each statement was first seen succeeding.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from ct_stream.gate.questions import ControlKind
from ct_stream.gate.records import NotOurs
from ct_stream.store.control_ledger import ControlLedger
from ct_stream.store.guardrails import Guardrails
from ct_stream.store.ledger import Ledger, headers_to_json
from ct_stream.store.migrate import MigrationError, migrate
from tests.conftest import PASSWORD
from tests.store.parts import NO_MX, NOT_FOUND, opened, outcome, record, role, running
from tests.store.test_roles import run

if TYPE_CHECKING:
    from ct_stream.gate.output_stage import Outcome
    from ct_stream.local.postgres import EmbeddedPostgres
    from tests.conftest import DatabaseDsns

TAKE = (
    "SELECT outreach.ct_take_tier2(ARRAY[gen_random_uuid()], ARRAY['info@a.example'], ARRAY[gen_random_uuid()],"
    " 'vendor', 50, 10000, {usd_per_month}, {usd_per_call}, 30, 1, 5)"
)
HALTS = ("tool:TOOL-005", "tool:TOOL-019", "spine", "input", "watchdog")


async def value(dsn: str, statement: str) -> object:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize("rail", HALTS)
@pytest.mark.parametrize("state", ["paused", "closed", "open", "trial"])
async def test_the_gate_lifts_no_halt(database: DatabaseDsns, rail: str, state: str) -> None:
    await run(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', 'halted', 'refused by 5', NULL)")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only a person resumes"):
        await run(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', '{state}', 'never mind', NULL)")
    assert await value(database.ops, f"SELECT state FROM outreach.ct_guardrails WHERE key = '{rail}'") == "halted"


async def test_the_gate_loosens_no_provider_but_after_a_normal_session(database: DatabaseDsns) -> None:
    rail = "provider:bigmail.example"
    for state, then in [("paused", "paused"), ("closed", "closed"), ("paused", "closed"), ("halted", "halted")]:
        await run(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', '{state}', 'why', NULL)")
        assert await value(database.ops, f"SELECT state FROM outreach.ct_guardrails WHERE key = '{rail}'") == then
    for state in ("open", "paused", "closed"):
        await run(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', '{state}', 'why', NULL)")
        assert await value(database.ops, f"SELECT state FROM outreach.ct_guardrails WHERE key = '{rail}'") == "halted"


#: Somebody has let the gate do it, for a trigger of theirs.
MOVES = "GRANT UPDATE (outreach_id) ON outreach.company_target TO ct_gate"
RECORDED = "INSERT INTO outreach.ct_outcomes (outreach_id, outcome, decided_at"


@pytest.mark.parametrize(
    "statement",
    [
        f"{RECORDED}, source) VALUES (gen_random_uuid(), 'PASS', now(), 'adopted')",
        f"{RECORDED}, recorded_at) VALUES (gen_random_uuid(), 'PASS', now(), 'infinity')",
        f"{RECORDED}, published_at) VALUES (gen_random_uuid(), 'PASS', now(), now())",
        f"{RECORDED}, ordinal) OVERRIDING SYSTEM VALUE VALUES (gen_random_uuid(), 'PASS', now(), 7)",
        "UPDATE outreach.ct_refusals SET at = now()",
        "INSERT INTO outreach.ct_refusals (provider, domain, kind, at) VALUES ('p', 'd', 'refused', 'infinity')",
        "INSERT INTO outreach.ct_watchdog_exits (at, places, reason, worker, worker_version)"
        " VALUES ('infinity', '{x}', 'x', 'w', 'v')",
    ],
)
async def test_numbers_times_and_sources_are_the_databases_own(database: DatabaseDsns, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await run(database.gate, statement)


@pytest.mark.parametrize(
    ("table", "names", "row", "defaults", "kept"),
    [
        (
            "ct_outcomes", "outreach_id, outcome, decided_at", "gen_random_uuid(), 'PASS', now()",
            {
                "source": "'override'", "recorded_in": "'5000'::xid8", "recorded_at": "'infinity'",
                "published_at": "now()",
            },
            "source = 'gate' AND recorded_in::text <> '5000' AND isfinite(recorded_at) AND published_at IS NULL",
        ),
        (
            "ct_refusals", "provider, domain, kind", "'p', 'd', 'refused'", {"at": "'infinity'"}, "isfinite(at)",
        ),
        (
            "ct_watchdog_exits", "places, reason, worker, worker_version", "'{x}', 'x', 'w', 'v'",
            {"at": "'infinity'"}, "isfinite(at)",
        ),
        (
            "ct_usage", "tool_id, span, begins", "'TOOL-019', 'month', now()", {"refused_at": "now()"},
            "refused_at IS NULL",
        ),
    ],
)  # fmt: skip
async def test_nor_does_a_view_of_the_gates_give_them(
    database: DatabaseDsns, table: str, names: str, row: str, defaults: dict[str, str], kept: str
) -> None:
    """Postgres asks for no right on a column whose value is a default of the view."""
    where = "DO $$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO ct_gate', current_database()); END $$"
    await run(database.admin, where)
    view = f"CREATE TEMP VIEW v AS SELECT * FROM outreach.{table};" + "".join(
        f"ALTER VIEW v ALTER COLUMN {column} SET DEFAULT {default};" for column, default in defaults.items()
    )
    await run(database.gate, f"{view} INSERT INTO v ({names}) VALUES ({row})")
    assert await value(database.admin, f"SELECT bool_and({kept}) FROM outreach.{table}") is True
    for column in ("ordinal", "refusal_id", "exit_id"):
        has_it = f"attrelid = 'outreach.{table}'::regclass AND attname = '{column}'"
        if await value(database.admin, f"SELECT count(*) FROM pg_attribute WHERE {has_it}"):
            with pytest.raises(asyncpg.PostgresError):
                await run(
                    database.gate,
                    f"{view} ALTER VIEW v ALTER COLUMN {column} SET DEFAULT 7; INSERT INTO v ({names}) VALUES ({row})",
                )
            await run(
                database.gate,
                f"{view} ALTER VIEW v ALTER COLUMN {column} SET DEFAULT 7000;"
                f" INSERT INTO v ({names}) OVERRIDING SYSTEM VALUE VALUES ({row})",
            )
            assert await value(database.admin, f"SELECT max({column}) < 7000 FROM outreach.{table}") is True


async def test_an_outcome_is_published_now_whatever_the_gate_says(database: DatabaseDsns) -> None:
    await run(database.gate, f"{RECORDED}) VALUES ('{UUID(int=1)}', 'PASS', now())")
    await run(database.gate, "UPDATE outreach.ct_outcomes SET published_at = '-infinity'")
    assert await value(database.ops, "SELECT now() - published_at < interval '1 minute' FROM outreach.ct_outcomes")


async def test_what_is_created_in_the_users_schema_is_not_called_with_ct_owners_rights(database: DatabaseDsns) -> None:
    await run(
        database.admin,
        "CREATE TABLE outreach.ran_as (who name); GRANT INSERT ON outreach.ran_as TO PUBLIC;"
        "CREATE FUNCTION outreach.planted(oid, regclass) RETURNS boolean LANGUAGE plpgsql AS $$"
        " BEGIN INSERT INTO outreach.ran_as VALUES (current_user); RETURN false; END $$;"
        "CREATE OPERATOR outreach.= (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = outreach.planted)",
    )
    await run(database.gate, "SELECT outreach.ct_left_the_spine(gen_random_uuid())")
    assert await value(database.admin, "SELECT count(*) FROM outreach.ran_as") == 0


@pytest.mark.parametrize("reason", ["E'\\n\\t '", "repeat('x', 1001)"])
async def test_a_reason_has_words_and_an_end(database: DatabaseDsns, reason: str) -> None:
    await run(database.gate, "SELECT outreach.ct_set_guardrail('spine', 'halted', 'empty', NULL)")
    for call in (f"resume_guardrail('spine', {reason})", f"ct_accept_toolbox('{{}}', {reason})"):
        with pytest.raises(asyncpg.RaiseError, match="a reason is needed"):
            await run(database.ops, f"SELECT outreach.{call}")


async def test_a_reason_is_read_alike_whatever_a_person_has_set_for_backslashes(database: DatabaseDsns) -> None:
    await run(database.gate, "SELECT outreach.ct_set_guardrail('spine', 'halted', 'empty', NULL)")
    await run(
        database.ops,
        "SET standard_conforming_strings = off; SET escape_string_warning = off;"
        "SELECT outreach.resume_guardrail('spine', 'restored')",
    )
    assert await value(database.ops, "SELECT state FROM outreach.ct_guardrails WHERE key = 'spine'") == "open"


async def test_a_persons_transaction_that_is_left_open_keeps_no_worker_waiting(database: DatabaseDsns) -> None:
    """Whatever she resumes, and though she takes every limit off her transaction."""
    company, rail = uuid4(), "provider:p.example"
    await run(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', 'closed', 'refused by 3', NULL)")
    await run(
        database.gate,
        "INSERT INTO outreach.ct_passes (outreach_id, state, reason, detail, not_before, waits_on, pending)"
        f" VALUES ('{company}', 'waiting', 'refused', '', 'infinity', '{rail}', '[]');"
        "INSERT INTO outreach.ct_refusals (provider, domain, kind) VALUES ('p.example', 'a.example', 'refused')",
    )
    person: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.ops)
    try:
        await person.execute("BEGIN")
        await person.execute(f"SELECT outreach.resume_guardrail('{rail}', 'restored')")
        await person.execute("SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0")
        async with asyncio.timeout(10):
            await run(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', 'open', 'talks normally', NULL)")
            await run(database.gate, "UPDATE outreach.ct_passes SET lease_owner = 'w', lease_until = now()")
            await run(database.gate, f"SELECT outreach.ct_forget_passes(ARRAY['{company}'::uuid])")
            await run(database.gate, "SELECT outreach.ct_tidy(10, '168 hours', '24 hours')")
    finally:
        await person.close()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize(
    ("role", "call"),
    [
        ("ops", "resume_guardrail('tool:TOOL-005', 'delisted')"),
        ("gate", TAKE.format(usd_per_month=50, usd_per_call=0.004).removeprefix("SELECT outreach.")),
        (
            "gate",
            "ct_begin_probes('w', ARRAY['a.example'], ARRAY['p.example'], ARRAY[false], ARRAY[gen_random_uuid()],"
            " ARRAY['1'], ARRAY[now()], 20, 100, 10)",
        ),
    ],
)
async def test_nobody_acts_by_an_old_snapshot(database: DatabaseDsns, level: str, role: str, call: str) -> None:
    with pytest.raises(asyncpg.PostgresError, match="READ COMMITTED"):
        await run(getattr(database, role), f"BEGIN ISOLATION LEVEL {level}; SELECT outreach.{call}; COMMIT")


async def test_a_persons_key_is_the_one_that_she_named(database: DatabaseDsns) -> None:
    try:
        await run(
            database.admin,
            "CREATE COLLATION public.loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false)",
        )
    except asyncpg.FeatureNotSupportedError:
        pytest.skip("this Postgres is built without ICU; Debian's is not (CT_TEST_POSTGRES)")
    await run(database.gate, "SELECT outreach.ct_set_guardrail('spine', 'halted', 'empty', NULL)")
    resumed = "SELECT outreach.resume_guardrail('SPINE' COLLATE public.loose, 'restored' COLLATE public.loose)"
    with suppress(asyncpg.PostgresError):  # up to 17, no pattern matches text of such a collation
        await run(database.ops, resumed)
    assert await value(database.ops, "SELECT state FROM outreach.ct_guardrails WHERE key = 'spine'") == "halted"


async def test_the_gate_takes_no_row_from_its_company_by_a_trigger_of_its_own(database: DatabaseDsns) -> None:
    """A foreign key may (ON DELETE SET NULL), and it acts as the owner of the table."""
    await run(
        database.admin,
        "ALTER TABLE outreach.company_target DROP CONSTRAINT company_target_pkey, ALTER outreach_id DROP NOT NULL;"
        f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{OTHERS}'); {MOVES}",
    )
    await run(database.gate, f"{RECORDED}, failure_code) VALUES ('{OTHERS}', 'FAIL', now(), 'CT-I-NOT-FOUND')")
    with pytest.raises(asyncpg.RestrictViolationError, match="the gate changes no row"):
        await run(
            database.gate,
            "CREATE TEMP TABLE mine (n integer);"
            "CREATE FUNCTION pg_temp.detach() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " UPDATE outreach.company_target SET outreach_id = NULL; RETURN NEW; END $$;"
            "CREATE TRIGGER detach BEFORE INSERT ON mine FOR EACH ROW EXECUTE FUNCTION pg_temp.detach();"
            "INSERT INTO mine VALUES (1)",
        )


async def test_the_log_names_the_login_that_resumed(database: DatabaseDsns) -> None:
    await run(database.gate, "SELECT outreach.ct_set_guardrail('spine', 'halted', 'empty', NULL)")
    await run(database.ops, "SELECT outreach.resume_guardrail('spine', 'restored')")
    by = await value(database.ops, "SELECT by_role FROM outreach.ct_guardrail_log ORDER BY log_id DESC LIMIT 1")
    assert by == "ct_ops"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await run(database.gate, "SELECT outreach.resume_guardrail('spine', 'restored')")


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(TAKE.format(usd_per_month=50, usd_per_call=-1000), id="a call that costs less than nothing"),
        pytest.param(TAKE.format(usd_per_month=50, usd_per_call="'-Infinity'"), id="and infinitely less"),
        pytest.param(TAKE.format(usd_per_month="'NaN'", usd_per_call=0.004), id="a budget that is no number"),
        pytest.param("UPDATE outreach.ct_usage SET usd = -1000000", id="a month with money to come"),
        pytest.param("UPDATE outreach.ct_usage SET usd = 0", id="a month without spending"),
        pytest.param("UPDATE outreach.ct_usage SET used = 0", id="a month without calls"),
        pytest.param("UPDATE outreach.ct_usage SET begins = '2000-01-01'", id="calls of another month"),
        pytest.param("UPDATE outreach.ct_usage SET tool_id = 'TOOL-000'", id="calls of another tool"),
        pytest.param("DELETE FROM outreach.ct_usage", id="no month at all"),
        pytest.param("INSERT INTO outreach.ct_usage VALUES ('TOOL-019', 'month', '2030-01-01', -5, -5)", id="a gift"),
    ],
)
async def test_the_gate_books_no_negative_money_and_takes_none_back(database: DatabaseDsns, statement: str) -> None:
    await run(database.gate, TAKE.format(usd_per_month=50, usd_per_call=0.004))
    with pytest.raises((asyncpg.PostgresError,)):
        await run(database.gate, statement)
    row = "SELECT (used, usd)::text FROM outreach.ct_usage WHERE tool_id = 'TOOL-019'"
    assert await value(database.ops, row) == "(1,0.004000)"


async def test_a_person_stops_no_probing_by_holding_a_lock(database: DatabaseDsns) -> None:
    """Advisory locks are everybody's: nothing that the gate waits for is one."""
    person: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.ops)
    try:
        for name in ("ct:tier2", "ct:provider:bigmail.example"):
            await person.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", name)
        await person.execute("BEGIN; LOCK TABLE outreach.ct_rates, outreach.ct_usage IN ACCESS SHARE MODE")
        async with asyncio.timeout(10):
            await run(database.gate, TAKE.format(usd_per_month=50, usd_per_call=0.004))
            begun = await value(
                database.gate,
                "SELECT answer FROM outreach.ct_begin_probes('w', ARRAY['a.example'], ARRAY['bigmail.example'],"
                " ARRAY[false], ARRAY[gen_random_uuid()], ARRAY['1'], ARRAY[now()], 20, 100, 10)",
            )
        assert begun == "granted"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await person.execute("LOCK TABLE outreach.ct_rates IN ROW EXCLUSIVE MODE")
    finally:
        await person.close()


async def test_the_gate_takes_no_guard_off_a_final_row(database: DatabaseDsns) -> None:
    """A row that is noted as unwritten is not guarded: only the transaction that decides the company may note it."""
    company = uuid4()
    await run(
        database.gate,
        "INSERT INTO outreach.ct_outcomes (outreach_id, outcome, failure_code, decided_at)"
        f" VALUES ('{company}', 'FAIL', 'CT-M-NO-MX', now());"
        "INSERT INTO outreach.company_target (outreach_id, execution_status, imo_completed_at)"
        f" VALUES ('{company}', 'failed', now())",
    )
    note = "INSERT INTO outreach.ct_unwritten (outreach_id, its_table) VALUES ('{}', 'company_target')"
    for attempt in (note.format(company), f"BEGIN; {note.format(company)}; SET CONSTRAINTS ALL IMMEDIATE"):
        with pytest.raises(asyncpg.RestrictViolationError):
            await run(database.gate, attempt)
    with pytest.raises(asyncpg.RestrictViolationError):
        await run(database.gate, note.format(uuid4()))
    with pytest.raises(asyncpg.RestrictViolationError):
        await run(
            database.gate,
            f"UPDATE outreach.company_target SET execution_status = 'ready' WHERE outreach_id = '{company}'",
        )


async def test_the_gate_probes_no_halted_provider(database: DatabaseDsns) -> None:
    await run(database.gate, "SELECT outreach.ct_set_guardrail('provider:p.example', 'halted', 'x', NULL)")
    await run(database.gate, "UPDATE outreach.ct_guardrails SET next_try_at = 'epoch'")
    begun = await value(
        database.gate,
        "SELECT answer FROM outreach.ct_begin_probes('w', ARRAY['a.example'], ARRAY['p.example'], ARRAY[false],"
        " ARRAY[gen_random_uuid()], ARRAY['1'], ARRAY[now()], 20, 100, 10)",
    )
    assert begun == "provider_closed"
    with pytest.raises(asyncpg.CheckViolationError):
        await run(database.gate, "UPDATE outreach.ct_guardrails SET next_try_at = '-infinity'")


async def test_no_forged_row_of_a_worker_keeps_others_from_starting(database: DatabaseDsns) -> None:
    await run(
        database.gate,
        "INSERT INTO outreach.ct_workers (worker, machine, egress, version, toolbox, troubles, partitions, running,"
        " started_at, seen_at) VALUES ('x', 'x', 'x', 'x', '{}', '{}', '{}', 0, '-infinity', 'infinity')",
    )
    ahead = (
        "SELECT count(*) FROM outreach.ct_workers"
        " WHERE seen_at > clock_timestamp() OR started_at < now() - interval '1 day'"
    )
    assert await value(database.ops, ahead) == 0


OTHERS = "00000000-0000-0000-0000-00000000000a"
FORGED = {
    "a guard taken off": "INSERT INTO outreach.ct_unwritten (outreach_id, its_table)"
    f" VALUES ('{OTHERS}', 'company_target')",
    "a second failure": "INSERT INTO outreach.company_target_errors (outreach_id, failure_code)"
    f" VALUES ('{OTHERS}', 'CT-M-NO-MX')",
    "a row that was gone": "INSERT INTO outreach.company_target (outreach_id, execution_status)"
    f" VALUES ('{OTHERS}', 'ready')",
    "a row that was gone, in two steps": f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{OTHERS}');"
    "UPDATE outreach.company_target SET execution_status = 'ready'",
    "a row of another company": f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{uuid4()}');"
    f"UPDATE outreach.company_target SET outreach_id = '{OTHERS}', execution_status = 'ready'",
    "a row of nobody's": "INSERT INTO outreach.company_target (outreach_id, execution_status)"
    " VALUES (gen_random_uuid(), 'ready')",
}


@pytest.mark.parametrize("statement", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize(
    "claims", ["", f"UPDATE outreach.ct_outcomes SET publish_until = now() WHERE outreach_id = '{OTHERS}'"]
)
async def test_the_gate_adds_nothing_to_what_another_transaction_decided(
    database: DatabaseDsns, statement: str, claims: str
) -> None:
    """Not in a transaction that began before, nor after it has touched the outcome's row."""
    gate: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.gate)
    try:
        await gate.execute("BEGIN; SELECT 1")
        await run(database.gate, f"{RECORDED}) VALUES ('{OTHERS}', 'PASS', now())")
        if claims:
            await gate.execute(claims)
        with pytest.raises(
            asyncpg.RestrictViolationError, match=r"was not recorded by this transaction|changes no row|writes no row"
        ):
            await gate.execute(f"{statement}; COMMIT")
    finally:
        await gate.close()


async def test_the_gate_writes_no_row_of_an_undecided_company(database: DatabaseDsns) -> None:
    """It could be committed when its company is decided without one."""
    with pytest.raises(asyncpg.RestrictViolationError, match="the gate writes no row that is not final"):
        await run(database.gate, f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{OTHERS}')")


async def test_nor_by_a_trigger_of_its_own_one_that_says_something(database: DatabaseDsns) -> None:
    where = "DO $$ BEGIN EXECUTE format('GRANT TEMPORARY ON DATABASE %I TO ct_gate', current_database()); END $$"
    await run(database.admin, where)
    await run(database.admin, "ALTER TABLE outreach.company_target DROP CONSTRAINT company_target_status_check")
    for column, word in (
        ("email_method", "'evil@x.example'"), ("method_type", "'info'"), ("confidence_score", "0.95"),
        ("is_catchall", "true"), ("imo_completed_at", "now()"), ("execution_status", "'READY'"),
        ("execution_status", "'done'"),
    ):  # fmt: skip
        with pytest.raises(asyncpg.RestrictViolationError, match="the gate writes no row that is not final"):
            await run(
                database.gate,
                "CREATE TEMP TABLE mine (id uuid);"
                "CREATE FUNCTION pg_temp.f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
                f" INSERT INTO outreach.company_target (outreach_id, {column}) VALUES (NEW.id, {word});"
                " RETURN NEW; END $$;"
                "CREATE TRIGGER f BEFORE INSERT ON mine FOR EACH ROW EXECUTE FUNCTION pg_temp.f();"
                f"INSERT INTO mine VALUES ('{OTHERS}')",
            )


@pytest.mark.parametrize("operation", ["INSERT INTO outreach.company_target (outreach_id)", "UPDATE"])
async def test_the_gate_adds_no_row_by_an_old_snapshot_whoever_it_is_at_the_end_of_the_statement(
    postgres: EmbeddedPostgres, database: DatabaseDsns, operation: str
) -> None:
    """A login whose roles are not inherited is checked as the gate, and its triggers run as itself."""
    other = uuid4()
    await run(
        database.admin,
        role("sly") + f"ALTER ROLE sly LOGIN NOINHERIT PASSWORD '{PASSWORD}'; GRANT ct_gate TO sly;"
        "GRANT USAGE ON SCHEMA outreach TO sly",
    )
    await run(database.admin, f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{other}'); {MOVES}")
    sly: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
        postgres.dsn(database.gate.rpartition("/")[2].partition("?")[0], "sly", PASSWORD)
    )
    as_itself = f"(SELECT '{OTHERS}'::uuid FROM (SELECT set_config('role', 'none', true) OFFSET 0) AS s)"
    if operation == "UPDATE":
        statement = f"UPDATE outreach.company_target SET outreach_id = {as_itself} WHERE outreach_id = '{other}'"
    else:
        statement = f"{operation} {as_itself}"
    try:
        await sly.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1; SET LOCAL ROLE ct_gate; TABLE pg_am")
        await run(database.gate, f"{RECORDED}, failure_code) VALUES ('{OTHERS}', 'FAIL', now(), 'CT-I-NOT-FOUND')")
        with pytest.raises(asyncpg.PostgresError, match=r"writes no row|changes no row|no right of its own"):
            await sly.execute(f"{statement}; COMMIT")
    finally:
        await sly.close()


@pytest.mark.parametrize("change", ["company_unique_id = 'another'", "target_id = gen_random_uuid()", "note = 'x'"])
@pytest.mark.parametrize("status", ["ready", "pending"])
async def test_the_gate_writes_no_column_of_others(database: DatabaseDsns, status: str, change: str) -> None:
    """Nor, by a foreign key of theirs, in a table on which it has no right."""
    await run(
        database.admin,
        "ALTER TABLE outreach.company_target ADD company_unique_id text, ADD note text,"
        " ADD target_id uuid DEFAULT gen_random_uuid() UNIQUE;"
        "CREATE TABLE outreach.hubs (target_id uuid REFERENCES outreach.company_target (target_id) ON UPDATE CASCADE);"
        f"INSERT INTO outreach.company_target (outreach_id, execution_status) VALUES ('{OTHERS}', '{status}');"
        "INSERT INTO outreach.hubs SELECT target_id FROM outreach.company_target",
    )
    for statement in (
        f"UPDATE outreach.company_target SET {change}",
        f"INSERT INTO outreach.company_target AS t (outreach_id) VALUES ('{OTHERS}')"
        f" ON CONFLICT (outreach_id) DO UPDATE SET {change}",
        "INSERT INTO outreach.company_target (outreach_id, note) VALUES (gen_random_uuid(), 'x')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await run(database.gate, statement)
    await run(
        database.admin,
        role("importer") + "GRANT USAGE ON SCHEMA outreach TO importer;"
        "GRANT SELECT, UPDATE (note) ON outreach.company_target TO importer;"
        "SET ROLE importer; UPDATE outreach.company_target SET note = 'theirs'",
    )


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("timestamp", "TimeZone = 'UTC'", "TimeZone = 'XXX+100'"),
        ("timestamp", "TimeZone = 'UTC'", "TimeZone = 'XXX-100'"),
        ("text", "TimeZone = 'UTC'", "TimeZone = 'XXX+100'"),
        ("text", "DateStyle = 'sql, dmy'", "DateStyle = 'sql, mdy'"),
        ("text", "DateStyle = 'sql, mdy'", "DateStyle = 'sql, dmy'"),
    ],
)
async def test_the_gate_notes_no_row_that_it_wrote_as_left_alone_in_another_zone_or_style(
    database: DatabaseDsns, kind: str, before: str, after: str
) -> None:
    """Where the time of its decision has no zone of its own, or is text."""
    await run(database.admin, f"ALTER TABLE outreach.company_target ALTER imo_completed_at TYPE {kind}")
    with pytest.raises((asyncpg.RestrictViolationError, asyncpg.DatetimeFieldOverflowError)):
        await run(
            database.gate,
            f"SET {before}; BEGIN; {RECORDED}) VALUES ('{OTHERS}', 'PASS', now());"
            "INSERT INTO outreach.company_target (outreach_id, execution_status, imo_completed_at)"
            f" VALUES ('{OTHERS}', 'ready', now()); SET {after};"
            f"INSERT INTO outreach.ct_unwritten (outreach_id, its_table) VALUES ('{OTHERS}', 'company_target'); COMMIT",
        )


@pytest.mark.parametrize("change", ["updated_at = 'infinity'", "execution_status = execution_status"])
async def test_the_gate_touches_no_final_row(database: DatabaseDsns, change: str) -> None:
    """Triggers of others would run for it, with rights of their own."""
    await run(
        database.admin,
        f"INSERT INTO outreach.company_target (outreach_id, execution_status) VALUES ('{OTHERS}', 'ready')",
    )
    with pytest.raises(asyncpg.RestrictViolationError, match="the gate changes no row that is final"):
        await run(database.gate, f"UPDATE outreach.company_target SET {change}")


async def test_a_number_of_another_servers_transaction_is_not_this_ones(database: DatabaseDsns) -> None:
    """A ledger that was restored here while a transaction was open, which then got a number that it holds."""
    gate: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.gate)
    admin: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.admin)
    try:
        await gate.execute("BEGIN; SELECT 1")
        number = await gate.fetchval("SELECT pg_current_xact_id()::text")
        await admin.execute(
            "INSERT INTO outreach.ct_outcomes (outreach_id, outcome, failure_code, decided_at, recorded_in)"
            f" VALUES ('{OTHERS}', 'FAIL', 'CT-M-NO-MX', now(), '{number}')"
        )
        with pytest.raises(asyncpg.RestrictViolationError, match="was not recorded by this transaction"):
            await gate.execute(
                "INSERT INTO outreach.company_target_errors (outreach_id, failure_code)"
                f" VALUES ('{OTHERS}', 'CT-M-NO-MX')"
            )
    finally:
        await gate.close()
        await admin.close()


async def test_a_command_that_people_are_told_to_run_runs_nothing_else(database: DatabaseDsns) -> None:
    rail = "provider:x''; touch owned #"
    await run(
        database.gate,
        f"SELECT outreach.ct_set_guardrail('{rail}', 'closed', 'refused', now() + interval '1 hour');"
        "INSERT INTO outreach.ct_passes (outreach_id, state, reason, detail, not_before, waits_on)"
        f" VALUES ('{OTHERS}', 'waiting', 'provider_closed', 'x', 'infinity', '{rail}')",
    )
    said = str(await value(database.ops, "SELECT what_ends_it FROM outreach.ct_held"))
    command = said.partition("ct-stream ")[2].partition("; looked at")[0]
    assert shlex.split(command, comments=True) == ["guardrails", "resume", "provider:x; touch owned #"]


async def test_the_gate_keeps_a_column_that_others_grant_it_and_loses_the_whole_table(database: DatabaseDsns) -> None:
    """For a trigger of theirs that writes there as the gate."""
    await run(
        database.admin,
        'ALTER TABLE outreach.company_target ADD note text, ADD other text, ADD gone text, ADD "A ""b""; --" text;'
        'GRANT UPDATE (note, gone, "A ""b""; --") ON outreach.company_target TO ct_gate;'
        "ALTER TABLE outreach.company_target DROP gone; GRANT UPDATE ON outreach.company_target TO ct_gate",
    )
    for _ in range(2):
        await migrate(database.admin)
        await run(database.gate, """UPDATE outreach.company_target SET note = 'x', "A ""b""; --" = 'x'""")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await run(database.gate, "UPDATE outreach.company_target SET other = 'x'")


@pytest.mark.parametrize("table", ["company_target", "company_target_errors"])
async def test_the_gate_keeps_no_right_but_to_read_and_write_its_columns(database: DatabaseDsns, table: str) -> None:
    """With TRIGGER, code of its own would run as whoever imports."""
    await run(database.admin, f"GRANT ALL ON outreach.{table} TO ct_gate")
    await migrate(database.admin)
    rights = await value(database.admin, "SELECT array_agg(a.privilege_type::text) FROM pg_class AS c"
        " CROSS JOIN LATERAL aclexplode(c.relacl) AS a WHERE a.grantee = 'ct_gate'::regrole"
        f" AND c.oid = 'outreach.{table}'::regclass")  # fmt: skip
    assert rights == ["SELECT"]


async def test_nobody_of_the_gates_adds_a_trigger_or_comes_through_a_partition(database: DatabaseDsns) -> None:
    """After the usual answer to "permission denied". What a trigger's WHEN calls runs as whoever writes."""
    await run(database.admin, PARTITIONED)
    await run(database.admin, "GRANT ALL ON ALL TABLES IN SCHEMA outreach TO ct_gate, ct_ops, PUBLIC")
    await migrate(database.admin)
    for login in (database.gate, database.ops):
        for table in ("company_target", "company_target_errors", "low"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await run(login, f"CREATE TRIGGER aaa AFTER INSERT ON outreach.{table} FOR EACH ROW"
                    " WHEN (outreach.resume_guardrail('spine', 'x') IS NULL)"
                    " EXECUTE FUNCTION tsvector_update_trigger()")  # fmt: skip
    of_partitions = (
        "SELECT count(*) FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a WHERE c.relname IN"
        " ('low', 'high') AND a.grantee IN ('ct_gate'::regrole, 'ct_ops'::regrole)"
    )
    assert await value(database.admin, of_partitions) == 0


async def test_the_gate_makes_no_failure_of_others_into_one_of_a_decided_company(database: DatabaseDsns) -> None:
    """Through a view of the owner's, or one of its own over that one."""
    passed, missing, theirs = outcome(), outcome(verdict=NOT_FOUND), uuid4()
    await record(database, passed, missing)
    await run(
        database.admin,
        role("resolver") + "CREATE SCHEMA shared; GRANT USAGE, CREATE ON SCHEMA shared TO ct_gate, ct_ops;"
        "CREATE VIEW shared.failures AS SELECT * FROM outreach.company_target_errors;"
        "GRANT ALL ON shared.failures TO ct_gate; INSERT INTO outreach.company_target_errors"
        " (outreach_id, pipeline_stage, failure_code, blocking_reason, imo_stage)"
        f" VALUES ('{theirs}', 'x', 'THEIRS', 'x', 'I'); SET ROLE ct_gate;"
        "CREATE VIEW shared.lent AS SELECT * FROM shared.failures; GRANT ALL ON shared.lent TO ct_ops;"
        "RESET ROLE; GRANT USAGE ON SCHEMA outreach TO resolver;"
        "GRANT SELECT, UPDATE (blocking_reason, resolution_note) ON outreach.company_target_errors TO resolver",
    )
    for login, view in ((database.gate, "failures"), (database.ops, "lent")):
        for change in (
            f"outreach_id = '{passed.outreach_id}'",
            f"outreach_id = '{missing.outreach_id}', failure_code = 'CT-OTHER', blocking_reason = 'retry'",
            "blocking_reason = 'y'", "retry_allowed = NOT retry_allowed", "outreach_id = gen_random_uuid()",
        ):  # fmt: skip
            with pytest.raises((asyncpg.RestrictViolationError, asyncpg.InsufficientPrivilegeError)):
                await run(login, f"UPDATE shared.{view} SET {change} WHERE outreach_id = '{theirs}'")
    theirs_too = f"UPDATE outreach.company_target_errors SET blocking_reason = 'y' WHERE outreach_id = '{theirs}'"
    await run(database.admin, f"SET ROLE resolver; {theirs_too}")


@pytest.mark.parametrize("more", ["", ", execution_status = 'failed'"], ids=["", "and another status"])
@pytest.mark.parametrize("how", ["at once", "in a trigger of its own", "through a view of its own, by another"])
async def test_the_gate_gives_no_row_to_a_company_though_it_may_write_to_a_view(
    database: DatabaseDsns, how: str, more: str
) -> None:
    """Of the owner's, over the whole table: so it has a right to the column that it has not on the table."""
    missing = outcome(verdict=NOT_FOUND)
    await record(database, missing)
    change = f"UPDATE shared.companies SET outreach_id = '{missing.outreach_id}'{more}"
    await run(
        database.admin,
        "CREATE SCHEMA shared; GRANT USAGE, CREATE ON SCHEMA shared TO ct_gate, ct_ops;"
        "CREATE VIEW shared.companies AS SELECT * FROM outreach.company_target;"
        "GRANT ALL ON shared.companies TO ct_gate;"
        "GRANT UPDATE (execution_status) ON outreach.company_target TO ct_ops;"
        "INSERT INTO outreach.company_target (outreach_id, execution_status, email_method)"
        " VALUES (gen_random_uuid(), 'ready', 'x@x.example'); SET ROLE ct_gate;"
        "CREATE VIEW shared.lent AS SELECT * FROM shared.companies; GRANT ALL ON shared.lent TO ct_ops;"
        "CREATE TABLE shared.own (a integer);"
        "CREATE FUNCTION shared.moves() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN {change}; RETURN NEW; END $$;"
        "CREATE TRIGGER moves BEFORE INSERT ON shared.own FOR EACH ROW EXECUTE FUNCTION shared.moves()",
    )
    login, statement = {
        "at once": (database.gate, change),
        "in a trigger of its own": (database.gate, "INSERT INTO shared.own VALUES (1)"),
        "through a view of its own, by another": (database.ops, change.replace("shared.companies", "shared.lent")),
    }[how]
    with pytest.raises((asyncpg.RestrictViolationError, asyncpg.InsufficientPrivilegeError)):
        await run(login, statement)
    assert await value(database.admin, "SELECT outreach_id FROM outreach.company_target") != missing.outreach_id


async def test_a_time_of_a_failure_is_not_changed_for_one_of_the_same_text(database: DatabaseDsns) -> None:
    """When a summer ends, an hour comes twice, and a zone may have a summer time of ten hours and one name for both."""
    last_of_november = datetime.now(UTC).replace(month=11, day=30, hour=12, minute=30)
    if last_of_november > datetime.now(UTC):
        last_of_november = last_of_november.replace(year=last_of_november.year - 1)
    failed = outcome(verdict=NO_MX, decided_at=last_of_november)
    await record(database, failed)
    zone = "SET DateStyle = 'sql'; SET TimeZone = 'XXX0XXX-10,J1/0,J334/17:00:00';"
    with pytest.raises(asyncpg.RestrictViolationError, match="a change of created_at is refused"):
        await run(database.admin, zone + "UPDATE outreach.company_target_errors"
            " SET created_at = created_at - interval '10 hours'")  # fmt: skip


@pytest.mark.parametrize(
    "key", ["tool-019", "TOOL-019", "TOOL-019 ", "tool:tool-019", "tool:TOOL-019 ", "tool:TOOL-19", "spine ", "", None]
)
async def test_no_key_of_a_halt_looks_like_another_one(database: DatabaseDsns, key: str | None) -> None:
    """A person resumes what `held` and `guardrails list` name, and TOOL-019 is short for tool:TOOL-019."""
    with pytest.raises(asyncpg.InvalidParameterValueError, match="is no key of a guardrail"):
        await run(
            database.gate,
            f"SELECT outreach.ct_set_guardrail({'NULL' if key is None else repr(key)}, 'halted', 'a test', NULL)",
        )


async def test_others_write_rows_of_their_own(database: DatabaseDsns) -> None:
    """Their archive jobs and imports are not the gate's affair; `verify` names what has no outcome."""
    await run(
        database.admin,
        role("importer")
        + "GRANT USAGE ON SCHEMA outreach TO importer; GRANT INSERT ON outreach.company_target TO importer;"
        "SET ROLE importer; INSERT INTO outreach.company_target (outreach_id, execution_status)"
        " VALUES (gen_random_uuid(), 'ready')",
    )


async def test_people_are_told_once_that_the_budget_is_spent(database: DatabaseDsns) -> None:
    await run(database.gate, TAKE.format(usd_per_month=0, usd_per_call=0.004))
    for moment in ("NULL", "now()"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await run(database.gate, f"UPDATE outreach.ct_usage SET refused_at = {moment} WHERE tool_id = 'TOOL-019'")


async def test_a_talk_in_the_future_ends_no_trial(database: DatabaseDsns) -> None:
    await run(database.gate, "SELECT outreach.ct_set_guardrail('tool:TOOL-005', 'halted', 'refused by 5', NULL)")
    await run(database.ops, "SELECT outreach.resume_guardrail('tool:TOOL-005', 'delisted')")
    await run(
        database.gate,
        "INSERT INTO outreach.ct_domains (domain, provider, free_at, talked_at)"
        " SELECT n, n, now(), 'infinity' FROM unnest(ARRAY['a', 'b', 'c']) AS n",
    )
    assert await value(database.gate, "SELECT outreach.ct_end_trial()") is False


async def test_a_person_who_looks_at_an_open_guardrail_keeps_the_gate_from_no_halt(database: DatabaseDsns) -> None:
    await run(database.gate, "SELECT outreach.ct_set_guardrail('spine', 'halted', 'empty', NULL)")
    await run(database.ops, "SELECT outreach.resume_guardrail('spine', 'restored')")
    person: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.ops)
    try:
        await person.execute("BEGIN")
        await person.execute("SELECT outreach.resume_guardrail('spine', 'again')")
        async with asyncio.timeout(3):
            await run(database.gate, "SELECT outreach.ct_set_guardrail('spine', 'halted', 'empty again', NULL)")
    finally:
        await person.close()
    assert await value(database.ops, "SELECT state FROM outreach.ct_guardrails WHERE key = 'spine'") == "halted"


async def test_a_person_who_resumes_for_ever_keeps_no_worker_waiting(database: DatabaseDsns) -> None:
    rail = "provider:p.example"
    await run(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', 'closed', 'refused by 3', now())")
    person: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.ops)
    sleeping = asyncio.ensure_future(person.execute(f"SELECT outreach.resume_guardrail('{rail}', 'x'), pg_sleep(40)"))
    try:
        await asyncio.sleep(0.5)
        async with asyncio.timeout(10):
            begun = await value(
                database.gate,
                "SELECT answer FROM outreach.ct_begin_probes('w', ARRAY['a.example'], ARRAY['p.example'],"
                " ARRAY[false], ARRAY[gen_random_uuid()], ARRAY['1'], ARRAY[now()], 20, 100, 10)",
            )
            changed = await value(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', 'open', 'talks', NULL)")
        assert (begun, changed) == ("provider_closed", False)
    finally:
        person.terminate()
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            await sleeping


async def test_the_gate_rewrites_no_row_that_it_left_as_it_was(database: DatabaseDsns) -> None:
    """One that was final before its company was decided is not guarded against its owner, and is none of the gate's."""
    await run(
        database.admin,
        f"INSERT INTO outreach.company_target (outreach_id, execution_status) VALUES ('{OTHERS}', 'ready'); {MOVES}",
    )
    await run(
        database.gate,
        f"BEGIN; {RECORDED}) VALUES ('{OTHERS}', 'PASS', now());"
        f"INSERT INTO outreach.ct_unwritten (outreach_id, its_table) VALUES ('{OTHERS}', 'company_target'); COMMIT",
    )
    for change in ("email_method = 'evil@x.example'", "execution_status = 'pending'", "outreach_id = NULL"):
        with pytest.raises((asyncpg.RestrictViolationError, asyncpg.NotNullViolationError)):
            await run(database.gate, f"UPDATE outreach.company_target SET {change}")
    await run(database.admin, "UPDATE outreach.company_target SET email_method = 'mended@x.example'")


@pytest.mark.parametrize(
    ("table", "column", "word"),
    [
        ("company_target", "execution_status", "ready"),
        ("company_target", "execution_status", "blocked"),
        ("company_target_errors", "failure_code", "CT-M-NO-PATTERN"),
        ("ct_unwritten", "its_table", "company_target_errors"),
    ],
)
async def test_the_gates_rows_say_what_its_outcome_says(
    database: DatabaseDsns, table: str, column: str, word: str
) -> None:
    with pytest.raises(asyncpg.RestrictViolationError, match="contradicts what this transaction records"):
        await run(
            database.gate,
            f"BEGIN; {RECORDED}, failure_code) VALUES ('{OTHERS}', 'FAIL', now(), 'CT-M-NO-MX');"
            f"INSERT INTO outreach.{table} (outreach_id, {column}) VALUES ('{OTHERS}', '{word}'); COMMIT",
        )


EVENT: dict[str, Any] = {
    "outreach_id": OTHERS, "email_method": "info@a.example", "method_type": "info", "confidence_score": 0.7,
    "is_catchall": False,
}  # fmt: skip


def published(**changes: Any) -> str:
    """Return the statement that records a PASS of OTHERS with its event, or with something else in one place."""
    row = {
        "outreach_id": OTHERS, "outcome": "PASS", "topic": "ct.pass", "key": OTHERS, "headers": "[]",
        "value": json.dumps(EVENT), "decided_at": "now",
    } | changes  # fmt: skip
    values = ", ".join("NULL" if one is None else f"'{one}'" for one in row.values())
    return f"INSERT INTO outreach.ct_outcomes ({', '.join(row)}) VALUES ({values})"


async def test_a_person_with_a_login_of_her_own_takes_over_nobody_elses(database: DatabaseDsns) -> None:
    """As the README gives it to her."""
    person = f"alice_{uuid4().hex}"
    if await value(database.admin, "SELECT current_setting('server_version_num')::integer < 160000"):
        pytest.skip("a role cannot be granted WITH SET FALSE before PostgreSQL 16")
    await run(
        database.admin, f"CREATE ROLE {person} LOGIN PASSWORD '{PASSWORD}'; GRANT ct_ops TO {person} WITH SET FALSE"
    )
    dsn = database.ops.replace("//ct_ops:", f"//{person}:")
    try:
        for attempt in ("SET ROLE ct_ops", "ALTER ROLE ct_ops PASSWORD 'mine'"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await run(dsn, attempt)
        await run(database.gate, "SELECT outreach.ct_set_guardrail('spine', 'halted', 'empty', NULL)")
        assert await value(dsn, "SELECT outreach.resume_guardrail('spine', 'restored')") == "halted -> open"
        assert await value(dsn, "SELECT changed_by FROM outreach.ct_guardrails WHERE key = 'spine'") == person
    finally:
        await run(database.admin, f"DROP ROLE {person}")


@pytest.mark.parametrize(
    "changes",
    [
        {"topic": "ct.fail"}, {"topic": "ct-stream-decided-changelog"}, {"topic": None}, {"headers": None},
        {"headers": "{}"}, {"key": str(uuid4())}, {"key": None}, {"value": None},
        {"value": json.dumps(EVENT | {"outreach_id": str(uuid4())})}, {"value": json.dumps([OTHERS])},
        {"value": json.dumps(EVENT | {"failure_code": "CT-M-NO-MX"})}, {"decided_at": "infinity"},
        {"decided_at": "4000-01-01 BC"}, {"outreach_id": str(uuid4())},
        {"outcome": "FAIL", "failure_code": "CT-M-NO-MX"},
        {"value": f'{{"outreach_id": "{uuid4()}", "outreach_id": "{OTHERS}"}}'},
        {"value": f'{{"outreach_id": "{OTHERS}", "Outreach_Id": "{uuid4()}"}}'},
        {"value": json.dumps(EVENT | {"i\u017f_catchall": True}, ensure_ascii=False)},
        {"value": json.dumps(EVENT | {"is_catchall": "false"})}, {"value": json.dumps(EVENT | {"EMAIL_METHOD": "x"})},
        {"value": json.dumps(EVENT | {"confidence_score": 99999})},
        {"value": json.dumps(EVENT | {"confidence_score": "x"})},
        {"value": json.dumps(EVENT | {"domain": "a.example"})},
        {"value": json.dumps(EVENT | {"verified_by": "override"})},
        {"value": json.dumps(EVENT | {"adr": 7})},
        {"value": json.dumps(EVENT | {"note": "x" * 1_000_000})}, {"reason": "x" * 10_000_001},
    ],
)  # fmt: skip
async def test_what_is_published_is_the_companys_own_outcome(database: DatabaseDsns, changes: dict[str, Any]) -> None:
    """A worker publishes what is in the ledger as it is: another company's PASS, on whatever topic."""
    with pytest.raises(asyncpg.CheckViolationError):
        await run(database.gate, published(**changes))
    with pytest.raises(asyncpg.DataError):
        await run(database.gate, published(value="no json"))
    await run(database.gate, published())


FAILED: dict[str, Any] = {"outreach_id": OTHERS, "failure_code": "CT-M-NO-MX"}


@pytest.mark.parametrize(
    "changes",
    [
        {"retry_allowed": True}, {"retry_allowed": "false"}, {"blocking_reason": "another one"},
        {"domain": "a.example"}, {"email_method": "x@a.example"}, {"confidence_score": 0.7}, {"imo_stage": "I"},
        {"verified_by": "smtp"}, {"decided_at": "2001-01-01T00:00:00.000Z"}, {"duration_ms": 5}, {"schema_version": 99},
        {"email": "x@a.example"},
    ],
)  # fmt: skip
async def test_a_failure_is_published_as_it_is_recorded(database: DatabaseDsns, changes: dict[str, Any]) -> None:
    row = {
        "outcome": "FAIL",
        "failure_code": "CT-M-NO-MX",
        "topic": "ct.fail",
        "reason": "no MX",
        "domain": "b.example",
    }
    with pytest.raises(asyncpg.CheckViolationError):
        await run(database.gate, published(**row, value=json.dumps(FAILED | changes)))
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    said = {
        "retry_allowed": False, "blocking_reason": "no MX", "domain": "b.example", "imo_stage": "M",
        "schema_version": 1, "decided_at": f"{today}T12:00:00.123Z", "duration_ms": 12, "tools_used": ["TOOL-004"],
        "correlation_id": "c",
    }  # fmt: skip
    row |= {"decided_at": f"{today} 12:00:00.123999Z", "duration_ms": "12"}
    zone = "SET TimeZone = 'UTC+100'; SET timezone_abbreviations = 'Default';"
    shifted = f"{datetime.fromisoformat(f'{today}T12:00:00+00:00') - timedelta(hours=100):%Y-%m-%dT%H:%M:%S}.123Z"
    with pytest.raises(asyncpg.CheckViolationError):
        await run(database.gate, zone + published(**row, value=json.dumps(FAILED | said | {"decided_at": shifted})))
    await run(database.gate, published(**row, value=json.dumps(FAILED | said)))


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        ("company_target (outreach_id, execution_status, email_method, imo_completed_at)"
         f" VALUES ('{OTHERS}', 'failed', 'evil@x.example', now())", "email_method is"),
        ("company_target (outreach_id, execution_status, imo_completed_at, method_type)"
         f" VALUES ('{OTHERS}', 'failed', now(), 'info')", "method_type is"),
        ("company_target (outreach_id, execution_status, imo_completed_at, confidence_score)"
         f" VALUES ('{OTHERS}', 'failed', now(), 0.95)", "confidence_score is"),
        ("company_target (outreach_id, execution_status, imo_completed_at, is_catchall)"
         f" VALUES ('{OTHERS}', 'failed', now(), true)", "is_catchall is"),
        ("company_target_errors (outreach_id, failure_code, blocking_reason)"
         f" VALUES ('{OTHERS}', 'CT-M-NO-MX', 'no MX'), ('{OTHERS}', 'CT-M-NO-MX', 'no MX')", "it has another one"),
        ("company_target_errors (outreach_id, failure_code, blocking_reason)"
         f" VALUES ('{OTHERS}', 'CT-M-NO-MX', 'try again')", "blocking_reason is"),
        ("company_target_errors (outreach_id, failure_code, blocking_reason, created_at)"
         f" VALUES ('{OTHERS}', 'CT-M-NO-MX', 'no MX', NULL)", "created_at is"),
        ("company_target_errors (outreach_id, failure_code, blocking_reason, imo_stage)"
         f" VALUES ('{OTHERS}', 'CT-M-NO-MX', 'no MX', 'I')", "imo_stage is"),
        ("company_target_errors (outreach_id, failure_code, blocking_reason, severity)"
         f" VALUES ('{OTHERS}', 'CT-M-NO-MX', 'no MX', 'none')", "severity is"),
        ("company_target_errors (outreach_id, failure_code, blocking_reason, pipeline_stage)"
         f" VALUES ('{OTHERS}', 'CT-M-NO-MX', 'no MX', 'other')", "pipeline_stage is"),
        (f"ct_unwritten (outreach_id, its_table) VALUES ('{OTHERS}', 'company_target')", "there is no final row"),
        (f"ct_unwritten (outreach_id, its_table) VALUES ('{OTHERS}', 'company_target_errors')", "it was written"),
    ],
)  # fmt: skip
async def test_what_is_said_of_a_failure_agrees(database: DatabaseDsns, rows: str, wrong: str) -> None:
    await run(database.admin, "ALTER TABLE outreach.company_target_errors ALTER created_at DROP NOT NULL")
    with pytest.raises(asyncpg.RestrictViolationError, match=f"contradicts what this transaction records: {wrong}"):
        await run(
            database.gate,
            f"BEGIN; {RECORDED}, failure_code, reason) VALUES ('{OTHERS}', 'FAIL', now(), 'CT-M-NO-MX', 'no MX');"
            f"INSERT INTO outreach.{rows}; COMMIT",
        )


@pytest.mark.parametrize("word", ["yes", "TRUE", "t", "catch-all"])
async def test_a_failure_is_no_catch_all_in_whatever_words(database: DatabaseDsns, word: str) -> None:
    await run(
        database.admin,
        "ALTER TABLE outreach.company_target ALTER is_catchall DROP DEFAULT, ALTER is_catchall TYPE text",
    )
    with pytest.raises(asyncpg.RestrictViolationError, match="contradicts what this transaction records: is_catchall"):
        await run(
            database.gate,
            f"BEGIN; {RECORDED}, failure_code) VALUES ('{OTHERS}', 'FAIL', now(), 'CT-M-NO-MX');"
            "INSERT INTO outreach.company_target (outreach_id, execution_status, imo_completed_at, is_catchall)"
            f" VALUES ('{OTHERS}', 'failed', now(), '{word}'); COMMIT",
        )


async def test_a_not_found_has_its_failure_unless_a_foreign_key_forbids_it(database: DatabaseDsns) -> None:
    with pytest.raises(asyncpg.RestrictViolationError, match="it was written, or is to be"):
        await run(
            database.gate,
            f"BEGIN; {RECORDED}, failure_code) VALUES ('{OTHERS}', 'FAIL', now(), 'CT-I-NOT-FOUND');"
            f"INSERT INTO outreach.ct_unwritten (outreach_id, its_table) VALUES ('{OTHERS}', 'company_target_errors');"
            "COMMIT",
        )


async def test_a_foreign_key_that_is_not_enforced_forbids_no_failure(database: DatabaseDsns) -> None:
    if await value(database.admin, "SELECT current_setting('server_version_num')::integer < 180000"):
        pytest.skip("NOT ENFORCED is new in PostgreSQL 18")
    await run(
        database.admin,
        "ALTER TABLE outreach.company_target_errors ADD FOREIGN KEY (outreach_id) REFERENCES outreach.outreach"
        " NOT ENFORCED",
    )
    await record(database, outcome(verdict=NOT_FOUND))
    assert await value(database.admin, "SELECT count(*) FROM outreach.company_target_errors") == 1
    assert await value(database.admin, "SELECT count(*) FROM outreach.ct_unwritten") == 0


async def test_nobody_lends_a_persons_right_to_the_gate(database: DatabaseDsns) -> None:
    """The log would name the gate."""
    await run(
        database.admin,
        "CREATE SCHEMA shared; GRANT CREATE, USAGE ON SCHEMA shared TO PUBLIC; SET ROLE ct_ops;"
        "CREATE FUNCTION shared.lent() RETURNS text LANGUAGE sql SECURITY DEFINER AS"
        " $$ SELECT outreach.resume_guardrail('spine', 'restored') $$;"
        "CREATE FUNCTION shared.lent_too() RETURNS bigint LANGUAGE sql SECURITY DEFINER AS"
        " $$ SELECT outreach.ct_accept_toolbox('{}', 'because') $$",
    )
    await run(database.gate, "SELECT outreach.ct_set_guardrail('spine', 'halted', 'empty', NULL)")
    for call in ("lent", "lent_too"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="login ct_gate is not one of the people"):
            await run(database.gate, f"SELECT shared.{call}()")
        await run(database.ops, f"SELECT shared.{call}()")


async def test_an_answer_without_a_word_is_none(database: DatabaseDsns) -> None:
    with pytest.raises(asyncpg.PostgresError, match="needs its word"):
        await run(
            database.gate,
            f"SELECT outreach.ct_answer_tier2('{uuid4()}', '{uuid4()}', NULL, 'why', NULL, 5, 5)",
        )


async def test_a_row_of_a_pass_needs_what_is_published_of_it(database: DatabaseDsns) -> None:
    with pytest.raises(asyncpg.RestrictViolationError, match="nothing is published of it"):
        await run(
            database.gate,
            f"BEGIN; {RECORDED}) VALUES ('{OTHERS}', 'PASS', now());"
            "INSERT INTO outreach.company_target (outreach_id, execution_status, email_method, imo_completed_at)"
            f" VALUES ('{OTHERS}', 'ready', 'evil@x.example', now()); COMMIT",
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"email_method": "evil@a.example"}, {"method_type": "first"}, {"confidence_score": "NaN"},
        {"confidence_score": 0.9}, {"confidence_score": 0.7001}, {"is_catchall": True},
        {"email_method": None}, {"execution_status": "failed"},
        {"execution_status": "pending"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("steps", [1, 2])
async def test_the_row_says_what_is_published(database: DatabaseDsns, changes: dict[str, Any], steps: int) -> None:
    row = {name: value for name, value in EVENT.items() if name != "outreach_id"} | {"execution_status": "ready"}
    row["imo_completed_at"] = "now"
    values = {name: "NULL" if one is None else f"'{one}'" for name, one in (row | changes).items()}
    insert = f"INSERT INTO outreach.company_target (outreach_id, {', '.join(values)}) VALUES ('{OTHERS}', {{}})"
    write = insert.format(", ".join(values.values()))
    if steps == 2:
        await run(database.admin, f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{OTHERS}')")
        write = f"UPDATE outreach.company_target SET {', '.join(f'{n} = {v}' for n, v in values.items())}"
    said = "the gate writes no row that is not final|contradicts what this transaction records"
    with pytest.raises(asyncpg.RestrictViolationError, match=said):
        await run(database.gate, f"BEGIN; {published()}; {write}; COMMIT")


@pytest.mark.parametrize(
    ("table", "column", "wrong"),
    [
        ("company_target", "imo_completed_at", "infinity"), ("company_target", "imo_completed_at", "2020-01-01"),
        ("company_target_errors", "retry_allowed", "true"), ("company_target_errors", "created_at", "100000-01-01"),
    ],
)  # fmt: skip
async def test_times_and_words_of_the_gates_rows_are_those_of_the_outcome(
    database: DatabaseDsns, table: str, column: str, wrong: str
) -> None:
    code, value = ("failure_code", "CT-M-NO-MX") if table.endswith("errors") else ("execution_status", "failed")
    with pytest.raises(asyncpg.RestrictViolationError, match=f"contradicts what this transaction records: {column} is"):
        await run(
            database.gate,
            f"BEGIN; {RECORDED}, failure_code) VALUES ('{OTHERS}', 'FAIL', now(), 'CT-M-NO-MX');"
            f"INSERT INTO outreach.{table} (outreach_id, {code}, {column}) VALUES ('{OTHERS}', '{value}', '{wrong}');"
            "COMMIT",
        )


@pytest.mark.parametrize("moment", ["100000-01-01", "4000-01-01 BC"])
async def test_a_time_that_python_cannot_show_keeps_nothing_from_being_read(
    database: DatabaseDsns, moment: str
) -> None:
    await run(
        database.gate,
        f"SELECT outreach.ct_set_guardrail('provider:x.example', 'closed', '{'x' * 2000}', '{moment}');"
        f"UPDATE outreach.ct_guardrails SET next_try_at = '{moment}';"
        f"INSERT INTO outreach.ct_controls (worker, kind, trouble_from, earlier) VALUES ('me', 'smtp', '{moment}',"
        f" '{{[{moment},100001-01-01)}}');"
        "INSERT INTO outreach.ct_passes (outreach_id, state, reason, detail, not_before, since)"
        f" VALUES ('{OTHERS}', 'waiting', 'drain', 'x', now(), '{moment}')",
    )
    async with opened(database.gate) as db:
        guardrails = Guardrails(db, 60.0)
        await guardrails.refresh(now=True)
        assert guardrails.closed == {"x.example"}
        assert len(await db.fetch("claim_due", "me", 10, 60.0, True, [], None, "default")) == 1
        assert await ControlLedger(db, 30.0, "me").state(ControlKind.SMTP)


@pytest.mark.parametrize(
    ("near", "bits", "nearest"),
    [
        (10, 12, 12), (10, 9, 9), (2**32 + 5, 7, 2**32 + 7), (2**32 + 5, 2**32 - 3, 2**32 - 3),
        (2**33 - 2, 1, 2**33 + 1), (5, 2**32 - 1, 0), (3 * 2**32 + 2**31, 0, 3 * 2**32),
    ],
)  # fmt: skip
async def test_a_transaction_is_known_by_its_last_bits(
    database: DatabaseDsns, near: int, bits: int, nearest: int
) -> None:
    """Also one that began after the snapshot, or before the counter's last turn."""
    assert await value(database.gate, f"SELECT outreach.ct_nearest({near}, {bits})") == nearest


async def test_a_row_older_than_two_billion_transactions_was_not_written_here(database: DatabaseDsns) -> None:
    """By its last bits it would be of a transaction that does not exist yet. The transaction's own one does."""
    mine = "(SELECT outreach.ct_written_here(xmin) FROM outreach.ct_unwritten)"
    answers = await value(
        database.admin,
        "WITH made AS (INSERT INTO outreach.ct_refusals (provider, domain, kind) VALUES ('p', 'd', 'rate')"
        " RETURNING outreach.ct_written_here(xmin) AS is_here)"
        f" SELECT ARRAY[outreach.ct_written_here('1900000000'::xid), m.is_here, {mine}] FROM made AS m",
    )
    assert answers == [False, True, None]


async def test_a_row_that_waits_is_not_filled_in_after_its_company_was_decided(database: DatabaseDsns) -> None:
    await run(database.admin, f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{OTHERS}')")
    await run(database.gate, published())
    for write in (
        "UPDATE outreach.company_target SET email_method = 'evil@a.example'",
        f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{OTHERS}') ON CONFLICT (outreach_id)"
        " DO UPDATE SET confidence_score = 1",
    ):
        with pytest.raises(asyncpg.RestrictViolationError, match="the gate writes no row that is not final"):
            await run(database.gate, write)


def row_of(one: Outcome) -> dict[str, Any]:
    """Return what `published` takes, to record this outcome as it is."""
    return {
        "outreach_id": str(one.outreach_id), "key": str(one.outreach_id), "value": one.value.decode(),
        "headers": headers_to_json(one.headers), "domain": one.verdict.domain,
        "decided_at": one.decided_at.isoformat(), "duration_ms": one.duration_ms,
    }  # fmt: skip


_ANOTHER, _THEIRS = outcome(), outcome(UUID(OTHERS))
WHOLE = json.loads(headers_to_json(_THEIRS.headers))
FAILS = json.loads(headers_to_json(outcome(UUID(OTHERS), NO_MX).headers))
ANOTHERS = json.loads(headers_to_json(outcome().headers))


@pytest.mark.parametrize(
    "headers",
    [
        "[]", "[1]", '[["ce_id", "x"]]', '[["ce_id", {"base64": "!"}]]', '[["ce_id"]]',
        json.dumps([[5, "x"], *WHOLE]), json.dumps([[None, "x"], *WHOLE]), json.dumps([["ce_id", "x"], *WHOLE]),
        json.dumps([*WHOLE, ["CE_ID", "x"]]), json.dumps(FAILS), json.dumps(ANOTHERS), json.dumps(WHOLE[:3]),
        json.dumps([*WHOLE, ["verified_by", "override"]]), json.dumps([*WHOLE, ["ce-type", "x"]]),
        json.dumps([[n, "2001-01-01T00:00:00.000Z" if n == "ce_time" else v] for n, v in WHOLE]),
        json.dumps([[n, "application/cloudevents+json" if n == "content-type" else v] for n, v in WHOLE]),
    ],
)  # fmt: skip
async def test_headers_that_are_not_the_gates_are_not_published_and_keep_nothing_waiting(
    database: DatabaseDsns, headers: str
) -> None:
    """Hubs would take the company's true outcome for a repeat of an event with the same ce_id."""
    async with opened(database.gate) as db:
        ledger = Ledger(db)
        async with running(*ledger.batches):
            whole = outcome()
            assert await ledger.record(whole)
            await run(database.gate, published(**row_of(_THEIRS) | {"headers": headers}))
            await run(database.gate, published(**row_of(_ANOTHER)))
            await run(database.admin, "UPDATE outreach.ct_outcomes SET publish_until = now() - interval '1 hour'")
            assert isinstance(await ledger.claim(UUID(OTHERS)), NotOurs), "and its event is not in hand for ever"
            claimed = {one.outreach_id for one in await ledger.claim_unpublished(10)}
    assert claimed == {whole.outreach_id, _ANOTHER.outreach_id}


async def test_a_pass_has_no_failure_not_even_one_without_a_code(database: DatabaseDsns) -> None:
    await run(database.admin, "ALTER TABLE outreach.company_target_errors ALTER failure_code DROP NOT NULL")
    with pytest.raises(asyncpg.RestrictViolationError, match="contradicts what this transaction records"):
        await run(
            database.gate,
            f"BEGIN; {published()}; INSERT INTO outreach.company_target_errors (outreach_id, failure_code)"
            f" VALUES ('{OTHERS}', NULL); COMMIT",
        )


@pytest.mark.parametrize("change", ["0.71", "0.00007"])
async def test_a_confidence_is_compared_whatever_the_session_shows_of_it(database: DatabaseDsns, change: str) -> None:
    await run(
        database.admin,
        "ALTER TABLE outreach.company_target ALTER confidence_score TYPE double precision",
    )
    whole = outcome()
    await record(database, whole)
    with pytest.raises(asyncpg.RestrictViolationError):
        await run(
            database.gate,
            f"SET extra_float_digits = -15; UPDATE outreach.company_target SET confidence_score = '{change}'",
        )


@pytest.mark.parametrize("zone", ["UTC-160", "UTC+160", "Pacific/Kiritimati"])
async def test_a_months_money_stays_in_its_month_whatever_the_sessions_time_zone(
    database: DatabaseDsns, zone: str
) -> None:
    """From 18 on, a session's zone may say what UTC is."""
    take = TAKE.format(usd_per_month=0.01, usd_per_call=0.01)
    await run(database.gate, take)
    await run(database.gate, f"SET TimeZone = '{zone}'; {take}; SELECT outreach.ct_utc_day()")
    spent = "SELECT string_agg(used || ' in ' || begins, ', ') FROM outreach.ct_usage WHERE tool_id = 'TOOL-019'"
    month = datetime.now(UTC).strftime("%Y-%m-01")
    assert await value(database.admin, spent) == f"1 in {month}"


async def test_a_note_opens_no_row_to_the_gate(database: DatabaseDsns) -> None:
    records = (
        f"BEGIN; {published()};"
        f"INSERT INTO outreach.ct_unwritten (outreach_id, its_table) VALUES ('{OTHERS}', 'company_target'); COMMIT"
    )
    for row in ("SELECT 1", f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{OTHERS}')"):
        await run(database.admin, row)
        with pytest.raises(asyncpg.RestrictViolationError, match="there is no final row to leave alone"):
            await run(database.gate, records)
    await run(database.admin, "UPDATE outreach.company_target SET execution_status = 'blocked'")
    await run(database.gate, records)
    await run(database.admin, "UPDATE outreach.company_target SET execution_status = 'pending'")
    with pytest.raises(asyncpg.RestrictViolationError, match="the gate writes no row that is not final"):
        await run(database.gate, "UPDATE outreach.company_target SET email_method = 'evil@a.example'")


async def test_what_is_compressed_is_measured_as_it_is(database: DatabaseDsns) -> None:
    with pytest.raises(asyncpg.CheckViolationError, match="it is too large"):
        await run(
            database.gate,
            "INSERT INTO outreach.ct_passes (outreach_id, state, reason, detail, not_before, answers)"
            f" VALUES ('{OTHERS}', 'waiting', 'drain', 'x', now(), jsonb_build_array(repeat('x', 11000000)));"
            "INSERT INTO outreach.ct_outcomes (outreach_id, outcome, decided_at, transcript)"
            f" SELECT '{OTHERS}', 'PASS', now(), p.answers FROM outreach.ct_passes AS p",
        )
    with pytest.raises(asyncpg.CheckViolationError, match="it is too large"):
        await run(database.gate, published(headers=json.dumps([["x", "y" * 40_000], *WHOLE])))


async def test_a_wait_is_given_to_no_other_company(database: DatabaseDsns) -> None:
    """A decided one, with which it would be forgotten."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await run(database.gate, f"UPDATE outreach.ct_passes SET outreach_id = '{OTHERS}'")


PARTITIONED = """
DROP TABLE outreach.company_target;
CREATE TABLE outreach.company_target (
    target_id uuid DEFAULT gen_random_uuid(), outreach_id uuid PRIMARY KEY, email_method text, method_type text,
    confidence_score numeric(5, 4), is_catchall boolean, execution_status text DEFAULT 'pending',
    imo_completed_at timestamptz, created_at timestamptz DEFAULT now(), updated_at timestamptz DEFAULT now()
) PARTITION BY RANGE (outreach_id);
CREATE TABLE outreach.low PARTITION OF outreach.company_target
    FOR VALUES FROM (MINVALUE) TO ('80000000-0000-0000-0000-000000000000');
CREATE TABLE outreach.high PARTITION OF outreach.company_target
    FOR VALUES FROM ('80000000-0000-0000-0000-000000000000') TO (MAXVALUE);
"""


@pytest.mark.parametrize(
    "change",
    [
        "execution_status = 'pending'",
        "outreach_id = 'f0000000-0000-0000-0000-00000000000a', execution_status = 'pending'",
        "outreach_id = 'f0000000-0000-0000-0000-00000000000a'",
        "outreach_id = '00000000-0000-0000-0000-00000000000b', execution_status = 'pending'",
    ],
)
async def test_the_gate_moves_no_final_row_to_another_partition(database: DatabaseDsns, change: str) -> None:
    """There it would be a new one."""
    await run(database.admin, PARTITIONED)
    await migrate(database.admin)
    await run(
        database.admin,
        f"INSERT INTO outreach.company_target (outreach_id, execution_status) VALUES ('{OTHERS}', 'blocked'); {MOVES}",
    )
    with pytest.raises(asyncpg.RestrictViolationError, match="the gate changes no row"):
        await run(database.gate, f"UPDATE outreach.company_target SET {change}")
    await run(database.admin, f"UPDATE outreach.company_target SET {change}")  # it is not decided, and its owner's


DECIDED = (
    f"{RECORDED}, failure_code) VALUES ('{OTHERS}', 'FAIL', now(), 'CT-I-NOT-FOUND');"
    "INSERT INTO outreach.company_target (outreach_id, execution_status, email_method)"
    f" VALUES ('{OTHERS}', 'failed', 'a');"
    f"INSERT INTO outreach.company_target_errors (outreach_id, failure_code) VALUES ('{OTHERS}', 'CT-I-NOT-FOUND')"
)


@pytest.mark.parametrize("table", ["company_target", "company_target_errors"])
async def test_no_trigger_of_others_changes_what_is_final(database: DatabaseDsns, table: str) -> None:
    """Triggers run in the order of their names: one that comes after the guard could change what it let pass."""
    changed = "NEW.email_method := 'b'" if table == "company_target" else "NEW.blocking_reason := 'b'"
    await run(
        database.admin,
        f"{DECIDED}; ALTER TABLE outreach.{table} ADD COLUMN note text;"
        f"CREATE FUNCTION public.zz() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {changed}; RETURN NEW; END $$;"
        f"CREATE TRIGGER zz BEFORE UPDATE ON outreach.{table} FOR EACH ROW EXECUTE FUNCTION public.zz()",
    )
    with pytest.raises(asyncpg.RestrictViolationError, match="a change of"):
        await run(database.admin, f"UPDATE outreach.{table} SET note = 'x'")


async def test_the_failure_of_a_company_that_was_never_there_goes_with_nothing(database: DatabaseDsns) -> None:
    await run(
        database.admin,
        f"{DECIDED}; CREATE TABLE public.mine (n integer);"
        "CREATE FUNCTION public.wipe() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " DELETE FROM outreach.company_target_errors; RETURN NEW; END $$;"
        "CREATE TRIGGER wipe AFTER INSERT ON public.mine FOR EACH ROW EXECUTE FUNCTION public.wipe()",
    )
    with pytest.raises(asyncpg.RestrictViolationError):
        await run(database.admin, "INSERT INTO public.mine VALUES (1)")


@pytest.mark.parametrize(
    ("column", "words", "others"), [("email_method", "'a'", "'A'"), ("confidence_score", "'0.7'", "'\uff10.\uff17'")]
)
async def test_words_that_a_collation_calls_equal_are_not_the_same(
    database: DatabaseDsns, column: str, words: str, others: str
) -> None:
    try:
        await run(
            database.admin,
            "CREATE COLLATION public.loose (provider = icu, locale = 'und-u-ks-level1', deterministic = false)",
        )
    except asyncpg.FeatureNotSupportedError:
        pytest.skip("this Postgres is built without ICU; Debian's is not (CT_TEST_POSTGRES)")
    await run(
        database.admin,
        f"ALTER TABLE outreach.company_target ALTER COLUMN {column} TYPE text COLLATE public.loose; {DECIDED}",
    )
    await run(
        database.admin,
        f"ALTER TABLE outreach.company_target DISABLE TRIGGER USER;"
        f"UPDATE outreach.company_target SET {column} = {words};"
        "ALTER TABLE outreach.company_target ENABLE TRIGGER USER",
    )
    assert await value(database.admin, f"SELECT count(*) FROM outreach.company_target WHERE {column} = {others}") == 1
    with pytest.raises(asyncpg.RestrictViolationError, match=f"a change of {column}"):
        await run(database.admin, f"UPDATE outreach.company_target SET {column} = {others}")


async def test_rows_that_no_trigger_guards_are_refused(database: DatabaseDsns) -> None:
    await run(database.admin, "CREATE TABLE public.more () INHERITS (outreach.company_target)")
    with pytest.raises(MigrationError, match=r"public\.more inherits from outreach\.company_target"):
        await migrate(database.admin)


async def test_a_halt_waits_for_whoever_changes_the_tables_and_is_not_lost(database: DatabaseDsns) -> None:
    """As `migrate` does, beside workers: only a guardrail that a person is opening is passed over."""
    admin: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.admin)
    await admin.execute("BEGIN; LOCK TABLE outreach.ct_guardrail_log IN SHARE ROW EXCLUSIVE MODE")
    halting = asyncio.ensure_future(
        value(database.gate, "SELECT outreach.ct_set_guardrail('tool:TOOL-005', 'halted', 'refused by 5', NULL)")
    )
    await asyncio.sleep(3)
    assert not halting.done()
    await admin.execute("COMMIT")
    await admin.close()
    async with asyncio.timeout(5):
        assert await halting is True


async def test_a_clock_that_is_set_back_after_a_resume_voids_nothing_that_is_said_then(database: DatabaseDsns) -> None:
    await run(
        database.admin,
        "INSERT INTO outreach.ct_guardrail_log (at, key, state, reason)"
        " VALUES (now() + interval '2 hours', 'tool:TOOL-005', 'trial', 'delisted');"
        "INSERT INTO outreach.ct_guardrails (key, state, reason, since)"
        " VALUES ('tool:TOOL-005', 'trial', 'delisted', now() + interval '2 hours');"
        "INSERT INTO outreach.ct_refusals (provider, domain, kind, network)"
        " SELECT 'p' || n, 'd' || n, 'refused', '192.0.' || n || '.0/24' FROM generate_series(1, 6) AS n",
    )
    async with opened(database.gate) as db:
        rows = await db.fetch("refusing_networks", timedelta(hours=24), 20, "default", False)
        assert rows[0]["refusing"] == 6
        guardrails = Guardrails(db, 60.0)
        await guardrails.refresh(now=True)
        assert guardrails.settling(0.0).resumed_at is None
        person: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.ops)
        await person.execute("BEGIN")
        resumed = "SELECT outreach.resume_guardrail('tool:TOOL-005', 'again')"
        assert await person.fetchval(resumed) == "trial already"
        halted = "BEGIN; SELECT outreach.ct_set_guardrail('tool:TOOL-005', 'halted', 'due', NULL); ROLLBACK"
        async with asyncio.timeout(3):
            await run(database.gate, halted)
        await person.execute("COMMIT")
        await person.close()
        await guardrails.refresh(now=True)
        assert guardrails.settling(0.0).resumed_at is not None
        await run(
            database.gate,
            "INSERT INTO outreach.ct_domains (domain, provider, free_at, talked_at)"
            " SELECT n, n, now(), clock_timestamp() FROM unnest(ARRAY['a', 'b', 'c']) AS n",
        )
        assert await value(database.gate, "SELECT outreach.ct_end_trial()") is True


@pytest.mark.parametrize("rail", ["spine", "tool:TOOL-005", "provider:p.example"])
async def test_people_who_resume_together_lock_nothing_that_is_open(database: DatabaseDsns, rail: str) -> None:
    """Postgres would lock what the second one has waited for, although it is open by then."""
    state = "closed" if rail.startswith("provider:") else "halted"
    halt = f"SELECT outreach.ct_set_guardrail('{rail}', '{state}', 'due', NULL)"
    assert await value(database.gate, halt) is True
    resume = f"SELECT outreach.resume_guardrail('{rail}', 'mended')"
    first, second = await asyncpg.connect(database.ops), await asyncpg.connect(database.ops)
    try:
        await first.execute("BEGIN")
        await first.execute(resume)
        await second.execute("BEGIN; SAVEPOINT s")
        with pytest.raises(asyncpg.LockNotAvailableError, match=f"somebody else is resuming {rail}"):
            async with asyncio.timeout(3):
                await second.execute(resume)
        await first.execute("COMMIT")
        await second.execute(f"ROLLBACK TO s; {resume}")
        async with asyncio.timeout(3):
            assert await value(database.gate, halt) is True
            assert await value(database.gate, "SELECT outreach.ct_end_trial()") is False
    finally:
        await first.close()
        await second.close()


async def test_a_long_log_of_guardrails_slows_no_judgement(database: DatabaseDsns) -> None:
    await run(
        database.admin,
        "SET session_replication_role = replica;"
        "INSERT INTO outreach.ct_guardrail_log (at, key, state, reason)"
        " SELECT now() - n * interval '2 minutes', 'provider:p' || n % 5,"
        " CASE WHEN n % 2 = 0 THEN 'open' ELSE 'paused' END, '' FROM generate_series(1, 50000) AS n;"
        "INSERT INTO outreach.ct_refusals (provider, domain, kind, network)"
        " SELECT 'own' || n, 'own' || n, 'refused', '' FROM generate_series(1, 2000) AS n; ANALYZE",
    )
    async with opened(database.gate) as db, asyncio.timeout(5):
        rows = await db.fetch("refusing_networks", timedelta(hours=24), 20, "default", False)
        assert rows[0]["refusing"] == 20
