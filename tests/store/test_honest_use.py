"""What users do with their own tables, that the guards against forged rows must let pass."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from ct_stream.store import ledger as module
from ct_stream.store.batches import RowHeld
from ct_stream.store.ledger import Ledger
from ct_stream.store.migrate import migrate
from tests.store import users_schema
from tests.store.parts import NO_MX, NOT_FOUND, PASSED, opened, outcome, record, role, running
from tests.store.test_attacks import PARTITIONED
from tests.store.test_roles import run

if TYPE_CHECKING:
    from ct_stream.local.postgres import EmbeddedPostgres
    from tests.conftest import DatabaseDsns

STORE = Path(module.__file__).parent


async def fetch(dsn: str, sql: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


@pytest.mark.parametrize("document", [r'{"page": "a\u0000b"}', '{"n": 1e200000}', r'{"page": "\ud83d"}'])
async def test_a_column_of_theirs_may_hold_what_jsonb_cannot(database: DatabaseDsns, document: str) -> None:
    company = outcome()
    await run(
        database.admin,
        role("importer") + "ALTER TABLE outreach.company_target ADD COLUMN page json, ADD COLUMN note text;"
        "GRANT USAGE ON SCHEMA outreach TO importer;"
        "GRANT SELECT, INSERT, UPDATE ON outreach.company_target TO importer; SET ROLE importer;"
        f"INSERT INTO outreach.company_target (outreach_id, page) VALUES ('{company.outreach_id}', '{document}');"
        "UPDATE outreach.company_target SET note = 'looked at'",
    )
    await record(database, company)
    await run(database.admin, "SET ROLE importer; UPDATE outreach.company_target SET note = 'sold'")
    assert await fetch(database.admin, "SELECT execution_status, note, page::text FROM outreach.company_target") == [
        ("ready", "sold", document)
    ]
    with pytest.raises(asyncpg.RestrictViolationError, match="a change of email_method is refused"):
        await run(database.admin, "UPDATE outreach.company_target SET email_method = 'x@a.example'")


async def test_a_column_of_theirs_may_have_any_name(postgres: EmbeddedPostgres) -> None:
    """Even that of a variable or an alias in our SQL. Rows can be recorded, changed, and deleted with their company."""
    words: set[str] = set()
    for file in (STORE / "queries.sql", *sorted((STORE / "functions").glob("*.sql"))):
        sql = re.sub(r"--.*", "", file.read_text())  # a table has at most 1600 columns
        words |= set(re.findall(r"[a-z_][a-z0-9_]*", sql))
    passes, fails, is_final = outcome(), outcome(verdict=NO_MX), outcome()
    async with users_schema.made(postgres, users_schema.ddl(errors_cascade=True)) as database:
        for table in ("outreach", "company_target", "company_target_errors"):
            there = {name for (name,) in await fetch(database.admin, "SELECT attname FROM pg_attribute"
                f" WHERE attrelid = 'outreach.{table}'::regclass")}  # fmt: skip
            more = [f'ADD COLUMN "{word}" text' for word in sorted(words - there - {"created_at"})]
            await run(database.admin, f"ALTER TABLE outreach.{table} {', '.join(more)}")
        await migrate(database.admin)
        for one in (passes, fails, is_final):
            await run(database.admin, "INSERT INTO outreach.outreach (outreach_id, domain)"
                f" VALUES ('{one.outreach_id}', 'a.example')")  # fmt: skip
        await run(database.admin, "INSERT INTO outreach.company_target (outreach_id, execution_status)"
            f" VALUES ('{is_final.outreach_id}', 'blocked')")  # fmt: skip
        await record(database, passes, fails, is_final, outcome(verdict=NOT_FOUND))
        await run(database.admin, 'UPDATE outreach.company_target SET "said" = $$x$$, "id" = $$x$$')
        with pytest.raises(asyncpg.RestrictViolationError, match="a change of email_method is refused"):
            await run(database.admin, "UPDATE outreach.company_target SET email_method = 'x@a.example'")
        await run(database.admin, "DELETE FROM outreach.outreach")
        assert await fetch(database.admin, "SELECT outreach_id FROM outreach.company_target") == []


async def test_people_with_a_right_on_one_column_use_it(database: DatabaseDsns) -> None:
    failed, missing = outcome(verdict=NO_MX), outcome(verdict=NOT_FOUND)
    await record(database, failed, missing)
    resolver = (
        role("resolver")
        + "GRANT USAGE ON SCHEMA outreach TO resolver; GRANT SELECT, UPDATE (resolved_at, resolution_note)"
        " ON outreach.company_target_errors TO resolver;"
        "GRANT SELECT, INSERT (outreach_id) ON outreach.company_target TO resolver; SET ROLE resolver;"
    )
    await run(
        database.admin,
        f"{resolver} UPDATE outreach.company_target_errors SET resolved_at = now(), resolution_note = 'new MX';"
        f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{uuid4()}')",
    )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await run(database.admin, "SET ROLE resolver; UPDATE outreach.company_target_errors SET severity = 'none'")


async def test_people_write_through_a_view_without_a_right_on_our_schema(database: DatabaseDsns) -> None:
    """As a web API does: a schema with views of the owner's, and a login that knows nothing else."""
    decided, failed, waits, new = outcome(), outcome(verdict=NO_MX), uuid4(), uuid4()
    await run(
        database.admin,
        role("web") + "ALTER TABLE outreach.company_target ADD COLUMN note text;"
        "ALTER TABLE outreach.company_target_errors ADD COLUMN note text; CREATE SCHEMA api;"
        "CREATE VIEW api.companies AS SELECT * FROM outreach.company_target;"
        "CREATE VIEW api.mine AS SELECT outreach_id, note FROM api.companies;"
        "CREATE VIEW api.failures AS SELECT * FROM outreach.company_target_errors;"
        "GRANT USAGE ON SCHEMA api TO web;"
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA api TO web;",
    )
    as_web = "SET ROLE web;"
    await run(
        database.admin,
        as_web + f"INSERT INTO api.companies (outreach_id) VALUES ('{waits}'), ('{decided.outreach_id}');"
        f"INSERT INTO api.mine (outreach_id, note) VALUES ('{new}', 'from a list');",
    )
    await record(database, decided, failed)
    await run(
        database.admin,
        as_web + "UPDATE api.mine SET note = 'looked at'; UPDATE api.failures SET note = 'looked at';"
        f"UPDATE api.companies SET execution_status = 'pending', email_method = 'x' WHERE outreach_id = '{waits}';"
        f"DELETE FROM api.mine WHERE outreach_id = '{new}';"
        f"INSERT INTO api.mine (outreach_id, note) VALUES ('{failed.outreach_id}', 'looked at')"
        " ON CONFLICT (outreach_id) DO UPDATE SET note = 'again'",
    )
    for forged in (
        f"UPDATE api.companies SET email_method = 'x' WHERE outreach_id = '{decided.outreach_id}'",
        "UPDATE api.failures SET failure_code = 'CT-M-NO-MX-2'",
        f"DELETE FROM api.companies WHERE outreach_id = '{decided.outreach_id}'",
        "DELETE FROM api.failures",
    ):
        with pytest.raises((asyncpg.RestrictViolationError, asyncpg.InsufficientPrivilegeError)):
            await run(database.admin, as_web + forged)
    rows = "SELECT outreach_id, execution_status, email_method, note FROM outreach.company_target"
    assert sorted(await fetch(database.admin, rows)) == sorted(
        [
            (decided.outreach_id, "ready", "info@acme.example", "looked at"),
            (failed.outreach_id, "failed", None, "again"),
            (waits, "pending", "x", "looked at"),
        ]
    )


@pytest.mark.parametrize("usage", ["GRANT USAGE ON SCHEMA outreach TO web;", ""], ids=["", "a closed schema"])
async def test_a_web_login_changes_whatever_the_gate_has_not_decided(database: DatabaseDsns, usage: str) -> None:
    new, other = uuid4(), uuid4()
    await run(
        database.admin,
        role("web") + "ALTER TABLE outreach.company_target ADD COLUMN tenant text;"
        "ALTER TABLE outreach.company_target DROP CONSTRAINT company_target_pkey;"
        "ALTER TABLE outreach.company_target ALTER COLUMN outreach_id DROP NOT NULL, ADD UNIQUE (outreach_id);"
        "CREATE SCHEMA api; CREATE VIEW api.companies AS SELECT * FROM outreach.company_target;"
        "CREATE VIEW api.failures AS SELECT * FROM outreach.company_target_errors;"
        f"GRANT USAGE ON SCHEMA api TO web; {usage} GRANT ALL ON api.companies, api.failures TO web",
    )
    as_web = "SET ROLE web;"
    await run(database.admin, as_web + f"INSERT INTO api.companies (outreach_id, email_method)"
        f" VALUES ('{new}', 'a@a.example'), (NULL, 'of a list');"
        f"UPDATE api.companies SET outreach_id = '{other}' WHERE email_method = 'of a list';"
        "UPDATE api.companies SET email_method = 'b@a.example', confidence_score = 0.5;"
        f"UPDATE api.companies SET execution_status = 'blocked' WHERE outreach_id = '{new}';"
        "INSERT INTO api.failures (outreach_id, failure_code, pipeline_stage, blocking_reason, imo_stage)"
        f" VALUES ('{new}', 'THEIRS', 'import', 'x', 'I')")  # fmt: skip
    assert sorted(
        await fetch(database.admin, "SELECT outreach_id, execution_status, email_method FROM outreach.company_target")
    ) == sorted([(new, "blocked", "b@a.example"), (other, "pending", "b@a.example")])
    for final in (
        f"UPDATE api.companies SET email_method = 'c@a.example' WHERE outreach_id = '{new}'",
        "UPDATE api.failures SET blocking_reason = 'y'",
        f"UPDATE api.companies SET execution_status = 'pending' WHERE outreach_id = '{new}'",
        f"UPDATE api.companies SET execution_status = 'blocked' WHERE outreach_id = '{new}'",
        f"DELETE FROM api.companies WHERE outreach_id = '{new}'",
        "DELETE FROM api.failures",
    ):
        if usage or final.endswith(f"'blocked' WHERE outreach_id = '{new}'"):
            await run(database.admin, as_web + final)
        else:
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="web may not ask whether the gate") as refused:
                await run(database.admin, as_web + final)
            assert refused.value.hint == "GRANT USAGE ON SCHEMA outreach TO web"


@pytest.mark.parametrize("usage", ["GRANT USAGE ON SCHEMA outreach TO web;", ""], ids=["", "a closed schema"])
@pytest.mark.parametrize(
    ("view", "column"),
    [
        ("SELECT outreach_id, email_method AS email, tenant FROM outreach.company_target", "email"),
        ("SELECT * FROM outreach.company_target WHERE tenant = 'a' WITH CHECK OPTION", "email_method"),
    ],
    ids=["renamed", "WITH CHECK OPTION"],
)
async def test_a_view_that_does_not_count_needs_a_right_that_the_refusal_names(
    database: DatabaseDsns, view: str, column: str, usage: str
) -> None:
    """Who has a right on the table and none on its schema can do no more with it than through the view."""
    new = uuid4()
    await run(
        database.admin,
        role("web") + f"ALTER TABLE outreach.company_target ADD COLUMN tenant text; CREATE SCHEMA api; {usage}"
        f"CREATE VIEW api.v AS {view}; GRANT USAGE ON SCHEMA api TO web; GRANT ALL ON api.v TO web",
    )
    insert = f"SET ROLE web; INSERT INTO api.v (outreach_id, {column}, tenant) VALUES ('{new}', 'x', 'a')"
    for statement in (insert, f"SET ROLE web; UPDATE api.v SET {column} = 'y'"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="web has no right of its own") as refused:
            await run(database.admin, statement)
        assert refused.value.hint is not None
        (grant,) = re.findall(r"GRANT .* TO web", refused.value.hint)
        await run(database.admin, grant)
        await run(database.admin, statement)
    assert await fetch(database.admin, "SELECT outreach_id, email_method FROM outreach.company_target") == [(new, "y")]


async def test_a_role_with_a_right_on_some_columns_changes_those(database: DatabaseDsns) -> None:
    """Whatever the row says, if the gate has not decided its company; also which company it is of."""
    ready, of_a_list = uuid4(), uuid4()
    await run(
        database.admin,
        role("crm") + role("scorer") + "ALTER TABLE outreach.company_target ADD COLUMN source text;"
        "ALTER TABLE outreach.company_target DROP CONSTRAINT company_target_pkey;"
        "ALTER TABLE outreach.company_target ALTER COLUMN outreach_id DROP NOT NULL, ADD UNIQUE (outreach_id);"
        "GRANT USAGE ON SCHEMA outreach TO crm, scorer; GRANT SELECT ON outreach.company_target TO crm, scorer;"
        "GRANT UPDATE (outreach_id, source) ON outreach.company_target TO crm;"
        "GRANT UPDATE (confidence_score, email_method) ON outreach.company_target TO scorer;"
        "INSERT INTO outreach.company_target (outreach_id, execution_status, source)"
        f" VALUES (NULL, 'pending', 'csv'), ('{ready}', 'ready', 'x')",
    )
    await run(database.admin, f"SET ROLE crm; UPDATE outreach.company_target SET outreach_id = '{of_a_list}'"
        " WHERE source = 'csv'; SET ROLE scorer;"
        "UPDATE outreach.company_target SET confidence_score = 0.5, email_method = 'x'")  # fmt: skip
    assert {row[0] for row in await fetch(database.admin, "SELECT outreach_id FROM outreach.company_target"
        " WHERE confidence_score = 0.5")} == {ready, of_a_list}  # fmt: skip


async def test_a_company_goes_from_a_spine_with_row_security(postgres: EmbeddedPostgres) -> None:
    """Whether others may see the spine is asked only of companies that the gate has decided."""
    loose = users_schema.ddl().replace("ON DELETE CASCADE", "ON DELETE SET NULL")
    async with users_schema.made(postgres, loose) as database:
        await run(
            database.admin,
            "ALTER TABLE outreach.outreach ENABLE ROW LEVEL SECURITY;"
            "CREATE POLICY people ON outreach.outreach FOR SELECT TO PUBLIC USING (true)",
        )
        await migrate(database.admin)
        waits = await users_schema.mint(database.admin, pending=True)
        ready = await users_schema.mint(database.admin, pending=True)
        await run(
            database.admin,
            f"UPDATE outreach.company_target SET execution_status = 'ready' WHERE outreach_id = '{ready}';"
            f"DELETE FROM outreach.outreach WHERE outreach_id IN ('{waits}', '{ready}')",
        )
        assert sorted(await fetch(database.admin, "SELECT outreach_id, execution_status FROM outreach.company_target"),
            key=str) == [(None, "pending"), (None, "ready")]  # fmt: skip


async def test_a_trigger_of_theirs_changes_more_of_a_final_row_than_its_role_may(database: DatabaseDsns) -> None:
    """Who may say that a row is final may have the rest of it filled in."""
    await run(
        database.admin,
        role("blocker") + "ALTER TABLE outreach.company_target ADD COLUMN note text;"
        "CREATE FUNCTION outreach.fill() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.email_method := NEW.note; RETURN NEW; END $$;"
        "CREATE TRIGGER fill BEFORE UPDATE ON outreach.company_target FOR EACH ROW EXECUTE FUNCTION outreach.fill();"
        "GRANT USAGE ON SCHEMA outreach TO blocker; GRANT SELECT ON outreach.company_target TO blocker;"
        "GRANT UPDATE (execution_status, note) ON outreach.company_target TO blocker;"
        f"INSERT INTO outreach.company_target (outreach_id, execution_status) VALUES ('{uuid4()}', 'blocked');"
        "SET ROLE blocker; UPDATE outreach.company_target SET note = 'asked'",
    )
    assert await fetch(database.admin, "SELECT email_method FROM outreach.company_target") == [("asked",)]


async def test_a_trigger_of_theirs_changes_more_of_a_failure_than_its_role_may(database: DatabaseDsns) -> None:
    """Of a company that is not decided; nor does it matter under which name a view shows its columns."""
    await run(
        database.admin,
        role("desk") + "CREATE SCHEMA api;"
        "CREATE VIEW api.ren AS SELECT outreach_id AS company, severity AS sev FROM outreach.company_target_errors;"
        "CREATE FUNCTION outreach.fill() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN IF NEW.resolved_at IS NOT NULL THEN NEW.severity := 'resolved'; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER fill BEFORE UPDATE ON outreach.company_target_errors FOR EACH ROW"
        " EXECUTE FUNCTION outreach.fill(); GRANT USAGE ON SCHEMA outreach, api TO desk; GRANT ALL ON api.ren TO desk;"
        "GRANT SELECT, UPDATE (resolved_at) ON outreach.company_target_errors TO desk;"
        "INSERT INTO outreach.company_target_errors (outreach_id, pipeline_stage, failure_code, blocking_reason)"
        f" VALUES ('{uuid4()}', 'theirs', 'THEIRS', 'x'); SET ROLE desk; UPDATE api.ren SET sev = 'warning'",
    )
    severity = "SELECT severity FROM outreach.company_target_errors"
    assert await fetch(database.admin, severity) == [("warning",)]
    await run(database.admin, "SET ROLE desk; UPDATE outreach.company_target_errors SET resolved_at = now()")
    assert await fetch(database.admin, severity) == [("resolved",)]


async def test_a_role_with_a_right_on_some_columns_changes_those_of_a_partition_too(database: DatabaseDsns) -> None:
    low, high = UUID(int=1), UUID(int=2**127 + 1)
    await run(database.admin, PARTITIONED)
    await migrate(database.admin)
    await run(
        database.admin,
        role("crm") + role("scorer") + "GRANT USAGE ON SCHEMA outreach TO crm, scorer;"
        "GRANT SELECT ON outreach.company_target TO crm, scorer;"
        "GRANT UPDATE (outreach_id), INSERT (outreach_id) ON outreach.company_target TO crm;"
        "GRANT UPDATE (confidence_score, email_method) ON outreach.company_target TO scorer;"
        "INSERT INTO outreach.company_target (outreach_id, execution_status)"
        f" VALUES ('{uuid4()}', 'ready'), ('{low}', 'pending'); SET ROLE crm;"
        f"UPDATE outreach.company_target SET outreach_id = '{high}' WHERE outreach_id = '{low}'; SET ROLE scorer;"
        "UPDATE outreach.company_target SET confidence_score = 0.5, email_method = 'x'",
    )
    assert await fetch(database.admin, "SELECT count(*) FROM outreach.company_target WHERE email_method = 'x'") == [
        (2,)
    ]
    assert await fetch(database.admin, f"SELECT 1 FROM outreach.high WHERE outreach_id = '{high}'") == [(1,)]


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("status", ["pending", "blocked", "ready"])
async def test_who_has_rights_on_the_spine_alone_deletes_and_renumbers_a_company(
    postgres: EmbeddedPostgres, status: str, level: str
) -> None:
    """Before PostgreSQL 18 the triggers of a foreign key's update run as whoever made it."""
    loose = users_schema.ddl().replace("ON DELETE CASCADE", "ON DELETE SET NULL ON UPDATE CASCADE")
    async with users_schema.migrated(postgres, loose) as database:
        company, renumbered = await users_schema.mint(database.admin, pending=True), uuid4()
        await run(
            database.admin,
            role("spiner") + f"UPDATE outreach.company_target SET execution_status = '{status}'"
            f" WHERE '{status}' <> 'ready'; GRANT USAGE ON SCHEMA outreach TO spiner;"
            "GRANT SELECT, UPDATE, DELETE ON outreach.outreach TO spiner",
        )
        await run(
            database.admin,
            "ALTER TABLE outreach.company_target_errors DROP CONSTRAINT company_target_errors_outreach_id_fkey,"
            " ADD FOREIGN KEY (outreach_id) REFERENCES outreach.outreach ON DELETE SET NULL ON UPDATE CASCADE,"
            " ALTER outreach_id DROP NOT NULL, ALTER blocking_reason DROP NOT NULL;"
            "INSERT INTO outreach.company_target_errors (outreach_id, pipeline_stage, failure_code)"
            f" SELECT '{company}', 'theirs', 'THEIRS' WHERE '{status}' <> 'ready'",
        )
        as_spiner = f"SET ROLE spiner; BEGIN ISOLATION LEVEL {level};"
        rows = "SELECT outreach_id, execution_status FROM outreach.company_target"
        if status == "ready":  # it is final, and goes from its company only with it
            await record(database, outcome(company))
            renumbered = company
        await run(database.admin, f"{as_spiner} UPDATE outreach.outreach SET outreach_id = '{renumbered}'"
            f" WHERE outreach_id = '{company}'; COMMIT")  # fmt: skip
        assert await fetch(database.admin, rows) == [(renumbered, status)]
        await run(database.admin, f"{as_spiner} DELETE FROM outreach.outreach; COMMIT")
        assert await fetch(database.admin, rows) == [(None, status)]


async def test_a_copy_without_the_gates_roles_can_be_changed_by_its_owner(postgres: EmbeddedPostgres) -> None:
    """A dump without owners and rights, restored on a server that knows no gate: no role may be needed by its name."""
    functions = "".join(
        re.findall(r"CREATE OR REPLACE FUNCTION.*?^(?:END )?\$\$;", (STORE / "functions" / "guards.sql").read_text(),
            re.MULTILINE | re.DOTALL)
    ).replace("'ct_gate'", "'no_gate_here'")  # fmt: skip
    loose = users_schema.ddl().replace("ON DELETE CASCADE", "ON DELETE SET NULL")
    async with users_schema.migrated(postgres, loose) as database:
        await run(database.admin, functions)
        for status in ("pending", "blocked"):
            company = await users_schema.mint(database.admin, pending=True)
            await run(
                database.admin,
                f"UPDATE outreach.company_target SET execution_status = '{status}', email_method = 'x';"
                "UPDATE outreach.company_target SET execution_status = 'pending';"
                f"UPDATE outreach.company_target SET execution_status = '{status}';"
                f"DELETE FROM outreach.outreach WHERE outreach_id = '{company}';"
                "DELETE FROM outreach.company_target",
            )


async def test_a_statement_that_was_prepared_before_a_deletion_stays(postgres: EmbeddedPostgres) -> None:
    """Also in one message with it, where all have one time."""
    async with users_schema.migrated(postgres, users_schema.ddl()) as database:
        decided = await users_schema.mint(database.admin)
        await record(database, outcome(decided))
        await run(
            database.admin,
            f"PREPARE mine AS SELECT 1; DELETE FROM outreach.outreach WHERE outreach_id = '{decided}'; EXECUTE mine",
        )


@pytest.mark.parametrize("kind", ["a role that changed in a session", "a trigger in the gate's own statement"])
async def test_a_hub_uses_its_own_rights_whoever_asked_it(database: DatabaseDsns, kind: str) -> None:
    """The rights of a hub's role count, not those of the session: it may be the gate's, or an administrator's."""
    company, sibling = outcome(), uuid4()
    await run(
        database.admin,
        role("hub") + "CREATE SCHEMA hub; GRANT ALL ON SCHEMA hub TO hub; GRANT USAGE ON SCHEMA outreach TO hub;"
        "GRANT SELECT, INSERT (outreach_id, email_method), UPDATE (email_method) ON outreach.company_target TO hub;"
        f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{sibling}'); SET ROLE hub;"
        "CREATE FUNCTION hub.guess() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        f" IF NEW.outreach_id <> '{sibling}' THEN"
        f"  UPDATE outreach.company_target SET email_method = 'guess' WHERE outreach_id = '{sibling}'; END IF;"
        " RETURN NULL; END $$",
    )
    if kind.startswith("a role"):
        await run(database.admin, "SET ROLE hub; UPDATE outreach.company_target SET email_method = 'guess'")
        await run(
            database.admin,
            f"SET ROLE hub; INSERT INTO outreach.company_target (outreach_id, email_method) VALUES ('{uuid4()}', 'x')",
        )
    else:
        await run(
            database.admin,
            "CREATE TRIGGER guess AFTER INSERT ON outreach.company_target FOR EACH ROW EXECUTE FUNCTION hub.guess()",
        )
    await record(database, company)
    rows = f"SELECT execution_status, email_method FROM outreach.company_target WHERE outreach_id = '{sibling}'"
    assert await fetch(database.admin, rows) == [("pending", "guess")]


@pytest.mark.parametrize(
    ("column", "word"),
    [("confidence_score", "0.4"), ("imo_completed_at", "now()"), ("execution_status", "'already_known'")],
)
async def test_a_role_fills_in_the_one_column_that_it_may(database: DatabaseDsns, column: str, word: str) -> None:
    await run(
        database.admin,
        role("scorer") + "ALTER TABLE outreach.company_target DROP CONSTRAINT company_target_status_check;"
        f"GRANT SELECT, INSERT (outreach_id, {column}), UPDATE ({column}) ON outreach.company_target TO scorer;"
        "GRANT USAGE ON SCHEMA outreach TO scorer; SET SESSION AUTHORIZATION scorer;"
        f"INSERT INTO outreach.company_target (outreach_id, {column}) VALUES ('{uuid4()}', {word});"
        f"UPDATE outreach.company_target SET {column} = {word}",
    )
    assert len(await fetch(database.admin, "SELECT outreach_id FROM outreach.company_target")) == 1


@pytest.mark.parametrize("default", ["email_method SET DEFAULT ''", "imo_completed_at SET DEFAULT now()"])
async def test_a_hubs_trigger_names_another_company_whatever_their_columns_have_by_default(
    database: DatabaseDsns, default: str
) -> None:
    parent, company = uuid4(), outcome()
    await run(
        database.admin,
        f"ALTER TABLE outreach.company_target ALTER {default};"
        "CREATE FUNCTION public.parent() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.outreach_id <> '{parent}' THEN INSERT INTO outreach.company_target (outreach_id) VALUES ('{parent}')"
        " ON CONFLICT DO NOTHING; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER parent AFTER INSERT ON outreach.company_target FOR EACH ROW EXECUTE FUNCTION public.parent()",
    )
    await record(database, company)
    assert len(await fetch(database.admin, "SELECT outreach_id FROM outreach.company_target")) == 2


@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
async def test_a_trigger_closes_older_failures(database: DatabaseDsns, when: str) -> None:
    company = outcome(verdict=NO_MX)
    await run(
        database.admin,
        "CREATE FUNCTION public.close_older() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN"
        " UPDATE outreach.company_target_errors SET resolved_at = now()"
        " WHERE outreach_id = NEW.outreach_id AND error_id <> NEW.error_id; RETURN NEW; END $$;"
        f"CREATE TRIGGER close_older {when} INSERT ON outreach.company_target_errors"
        " FOR EACH ROW EXECUTE FUNCTION public.close_older();"
        "INSERT INTO outreach.company_target_errors (outreach_id, failure_code, pipeline_stage, blocking_reason)"
        f" VALUES ('{company.outreach_id}', 'LEGACY', 'x', 'x')",
    )
    await record(database, company)
    rows = "SELECT failure_code, resolved_at IS NULL FROM outreach.company_target_errors"
    assert sorted(await fetch(database.admin, rows)) == [("CT-M-NO-MX", True), ("LEGACY", False)]


async def test_views_may_belong_to_a_role_that_has_grants_only(database: DatabaseDsns) -> None:
    await run(
        database.admin,
        role("api_owner") + role("web") + "CREATE SCHEMA api; GRANT USAGE, CREATE ON SCHEMA api TO api_owner;"
        "GRANT USAGE ON SCHEMA api TO web; GRANT USAGE ON SCHEMA outreach TO api_owner;"
        "GRANT ALL ON outreach.company_target TO api_owner; SET ROLE api_owner;"
        "CREATE VIEW api.companies AS SELECT * FROM outreach.company_target; GRANT ALL ON api.companies TO web",
    )
    await run(
        database.admin,
        f"SET SESSION AUTHORIZATION web; INSERT INTO api.companies (outreach_id) VALUES ('{uuid4()}');"
        "UPDATE api.companies SET email_method = 'guess'; UPDATE api.companies SET execution_status = 'blocked'",
    )
    assert await fetch(database.admin, "SELECT execution_status, email_method FROM outreach.company_target") == [
        ("blocked", "guess")
    ]


async def test_row_security_with_a_policy_for_the_gate_keeps_no_company_undecided(database: DatabaseDsns) -> None:
    """Also not one whose row was final before: it is looked at, and noted as left alone."""
    found, adopted = outcome(), outcome()
    await run(
        database.admin,
        "INSERT INTO outreach.company_target (outreach_id, execution_status)"
        f" VALUES ('{adopted.outreach_id}', 'blocked');"
        "ALTER TABLE outreach.company_target ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY gate ON outreach.company_target TO ct_gate USING (true);",
    )
    await record(database, found, adopted)
    assert sorted(await fetch(database.admin, "SELECT execution_status FROM outreach.company_target")) == [
        ("blocked",), ("ready",)
    ]  # fmt: skip
    assert await fetch(database.admin, "SELECT outreach_id FROM outreach.ct_unwritten") == [(adopted.outreach_id,)]


async def test_an_importer_adds_a_row_of_a_company_that_the_gate_never_found(database: DatabaseDsns) -> None:
    never_there = outcome(verdict=NOT_FOUND)
    await record(database, never_there)
    await run(
        database.admin,
        role("importer") + "ALTER TABLE outreach.company_target ADD COLUMN note text;"
        "GRANT USAGE ON SCHEMA outreach TO importer;"
        "GRANT INSERT (outreach_id, note), UPDATE (note) ON outreach.company_target TO importer; SET ROLE importer;"
        f"INSERT INTO outreach.company_target (outreach_id, note) VALUES ('{never_there.outreach_id}', 'a lead');"
        "UPDATE outreach.company_target SET note = 'sold'",
    )
    assert await fetch(database.admin, "SELECT execution_status, note FROM outreach.company_target") == [
        ("pending", "sold")
    ]


@pytest.mark.parametrize("of", ["STATEMENT", "ROW"])
@pytest.mark.parametrize("completed", ["now() - interval '3 days'", "NULL"])
async def test_a_hubs_trigger_that_touches_a_row_in_conflict_keeps_no_company_undecided(
    database: DatabaseDsns, of: str, completed: str
) -> None:
    company = outcome()
    await run(
        database.admin,
        "ALTER TABLE outreach.company_target ADD COLUMN hub_rank integer;"
        "GRANT UPDATE (hub_rank) ON outreach.company_target TO ct_gate;"
        "INSERT INTO outreach.company_target (outreach_id, execution_status, imo_completed_at)"
        f" VALUES ('{company.outreach_id}', 'ready', {completed});"
        "CREATE FUNCTION public.ranks() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF pg_trigger_depth() = 1 THEN"
        " UPDATE outreach.company_target SET hub_rank = coalesce(hub_rank, 0) + 1; END IF;"
        " RETURN NULL; END $$;"
        "CREATE TRIGGER ranks AFTER INSERT OR UPDATE OF execution_status ON outreach.company_target"
        f" FOR EACH {of} EXECUTE FUNCTION public.ranks()",
    )
    await record(database, company, outcome())
    assert await fetch(database.admin, "SELECT its_table FROM outreach.ct_unwritten") == [("company_target",)]


SLOW = (
    "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN PERFORM pg_sleep({}); RETURN NULL; END $$;"
    "CREATE TRIGGER slow AFTER INSERT OR UPDATE ON outreach.company_target"
    " FOR EACH ROW WHEN ({}) EXECUTE FUNCTION public.slow()"
)


async def test_a_slow_trigger_makes_the_batches_smaller(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole batch would take longer than a statement may, each time."""
    monkeypatch.setattr("ct_stream.store.database._COMMAND_TIMEOUT_S", 1.0)
    await run(database.admin, SLOW.format(0.05, "true"))
    async with opened(database.gate) as db, asyncio.timeout(60):
        ledger = Ledger(db)
        async with running(*ledger.batches):
            assert all(await asyncio.gather(*(ledger.record(outcome()) for _ in range(80))))


async def test_a_company_that_takes_too_long_keeps_no_other_waiting(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ct_stream.store.database._COMMAND_TIMEOUT_S", 1.0)
    await run(database.admin, SLOW.format(30, "NEW.execution_status = 'failed'"))
    async with opened(database.gate) as db, asyncio.timeout(60):
        ledger = Ledger(db)
        async with running(*ledger.batches):
            slow = asyncio.ensure_future(ledger.record(outcome(verdict=NO_MX)))
            assert all(await asyncio.gather(*(ledger.record(outcome()) for _ in range(20))))
            with pytest.raises(RowHeld, match="look for slow triggers"):
                await slow


@pytest.mark.parametrize(
    "fails",
    ["INSERT INTO public.vip VALUES (1)", "RAISE EXCEPTION 'not this one' USING ERRCODE = '40001'", "PERFORM 1 / 0"],
)
async def test_a_trigger_that_fails_for_one_company_keeps_no_other_waiting(database: DatabaseDsns, fails: str) -> None:
    """The rehearsal does not see it, and its error looks like an outage, a conflict or a bug in the gate."""
    await run(
        database.admin,
        "CREATE TABLE public.vip (n integer);"
        f"CREATE FUNCTION public.audit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {fails}; RETURN NULL; END $$;"
        "CREATE TRIGGER audit AFTER INSERT OR UPDATE ON outreach.company_target FOR EACH ROW"
        " WHEN (NEW.execution_status = 'failed') EXECUTE FUNCTION public.audit()",
    )
    async with opened(database.gate) as db, asyncio.timeout(30):
        ledger = Ledger(db)
        async with running(*ledger.batches):
            one = asyncio.ensure_future(ledger.record(outcome(verdict=NO_MX)))
            assert all(await asyncio.gather(*(ledger.record(outcome()) for _ in range(20))))
            with pytest.raises(RowHeld, match=r"recording it runs the function (public\.)?audit"):
                await one
        assert db.trouble is None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            "CREATE FUNCTION public.rewrites() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN NEW.execution_status := 'blocked'; RETURN NEW; END $$;"
            "CREATE TRIGGER rewrites BEFORE INSERT OR UPDATE ON outreach.company_target FOR EACH ROW"
            " WHEN (NEW.execution_status = 'failed') EXECUTE FUNCTION public.rewrites()",
            "does not keep what the gate writes: execution_status is 'blocked'",
        ),
        (
            "ALTER TABLE outreach.company_target ADD CONSTRAINT odd CHECK (execution_status <> 'failed')",
            "the constraint odd of outreach.company_target refuses",
        ),
        (
            "ALTER TABLE outreach.company_target_errors ALTER blocking_reason TYPE varchar(12)",
            "a column is too short for recording it: value too long",
        ),
        (
            "ALTER TABLE outreach.company_target_errors ALTER failure_code TYPE varchar(3)",
            "a column is too short for recording it: value too long",
        ),
    ],
)
async def test_a_table_that_does_not_take_one_company_makes_it_wait(
    database: DatabaseDsns, made: str, said: str
) -> None:
    """This is not a bug in the gate, and no other company waits for it."""
    await run(database.admin, made)
    async with opened(database.gate) as db, asyncio.timeout(30):
        ledger = Ledger(db)
        async with running(*ledger.batches):
            one = asyncio.ensure_future(ledger.record(outcome(verdict=NO_MX)))
            assert all(await asyncio.gather(*(ledger.record(outcome()) for _ in range(20))))
            with pytest.raises(RowHeld, match=said):
                await one


@pytest.mark.parametrize(
    ("broken", "mended", "said"),
    [
        (
            "DROP INDEX outreach.company_target_outreach_id_key;"
            " ALTER TABLE outreach.company_target DROP CONSTRAINT company_target_pkey",
            "CREATE UNIQUE INDEX ON outreach.company_target (outreach_id)",
            "has no unique index over outreach_id alone",
        ),
        (
            "ALTER TABLE outreach.company_target ALTER email_method TYPE varchar(5) USING left(email_method, 5)",
            "ALTER TABLE outreach.company_target ALTER email_method TYPE text",
            "a column is too short",
        ),
        (
            "ALTER TABLE outreach.company_target ALTER confidence_score TYPE numeric(4, 4) USING NULL",
            "ALTER TABLE outreach.company_target ALTER confidence_score TYPE numeric(5, 4)",
            "numeric field overflow",
        ),
        (
            "ALTER TABLE outreach.company_target ALTER is_catchall TYPE integer USING 0",
            "ALTER TABLE outreach.company_target ALTER is_catchall TYPE boolean USING false",
            "is_catchall is of type integer",
        ),
        (
            "ALTER TABLE outreach.company_target DROP updated_at,"
            " ADD updated_at timestamptz GENERATED ALWAYS AS (imo_completed_at) STORED",
            "ALTER TABLE outreach.company_target ALTER updated_at DROP EXPRESSION",
            "a column that Postgres generates",
        ),
    ],
)
async def test_tables_that_are_changed_under_a_worker_make_companies_wait_until_they_are_mended(
    database: DatabaseDsns, broken: str, mended: str, said: str
) -> None:
    """Never as a bug in the gate, with which a company would be stuck until the next version."""
    sure = outcome(verdict=replace(PASSED, confidence=1.0))
    async with opened(database.gate) as db, asyncio.timeout(30):
        ledger = Ledger(db)
        async with running(*ledger.batches):
            assert await ledger.record(outcome())
            await run(database.admin, broken)
            with pytest.raises(RowHeld, match=said):
                await ledger.record(sure)
            await run(database.admin, f"{mended}; GRANT INSERT, UPDATE ON outreach.company_target TO ct_gate")
            assert await ledger.record(sure)


async def test_a_cascade_is_replicated_row_by_row(database: DatabaseDsns) -> None:
    gone, stays = outcome(verdict=NO_MX), outcome(verdict=NO_MX)
    await run(
        database.admin, f"INSERT INTO outreach.outreach (outreach_id, domain) VALUES ('{stays.outreach_id}', 'x')"
    )
    await record(database, gone, stays)
    apply = "SET session_replication_role = replica; DELETE FROM outreach.{} WHERE outreach_id = '{}'"
    for table in ("company_target", "company_target_errors"):
        await run(database.admin, apply.format(table, gone.outreach_id))
        with pytest.raises(asyncpg.RestrictViolationError, match="is final"):
            await run(database.admin, apply.format(table, stays.outreach_id))


async def test_a_restore_brings_back_what_was_refused(database: DatabaseDsns) -> None:
    await run(
        database.admin,
        "INSERT INTO outreach.ct_usage (tool_id, span, begins, used, usd, refused_at)"
        " VALUES ('TOOL-019', 'month', '2026-11-01', 12500, 50, now())",
    )


@pytest.mark.parametrize("table", ["company_target", "company_target_errors"])
async def test_nobody_reads_a_copy_of_sovereign_id(database: DatabaseDsns, table: str) -> None:
    """And whoever writes there writes as before: also a row that was final, which is looked at more closely."""
    await run(database.admin, f"ALTER TABLE outreach.{table} ADD COLUMN sovereign_id uuid")
    for _ in range(2):
        await migrate(database.admin)
    for login in (database.gate, database.ops):
        await run(login, f"SELECT outreach_id, created_at FROM outreach.{table}")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await run(login, f"SELECT sovereign_id FROM outreach.{table}")
    found = outcome()
    await run(
        database.admin,
        "INSERT INTO outreach.company_target (outreach_id, execution_status)"
        f" VALUES ('{found.outreach_id}', 'blocked')",
    )
    await record(database, found, outcome(), outcome(verdict=NO_MX), outcome(verdict=NOT_FOUND))
