"""Whoever owns the users' tables, or the spine, gets nobody's rights: their code runs when these are read."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest

from ct_stream.ops.reader import reader
from ct_stream.settings import Settings
from ct_stream.store import migrate as module
from ct_stream.store.ledger import Ledger
from ct_stream.store.migrate import MigrationError, migrate
from tests.conftest import UPSTREAM
from tests.store.parts import NO_MX, NOT_FOUND, opened, outcome, record, role, running
from tests.store.test_attacks import value
from tests.store.test_roles import run

if TYPE_CHECKING:
    from ct_stream.local.postgres import EmbeddedPostgres
    from tests.conftest import DatabaseDsns


@pytest.fixture
async def owners_database(postgres: EmbeddedPostgres) -> str:
    """Lend a database that is not migrated yet, in which `app_owner`, no superuser, has a schema and may create."""
    dsn = await postgres.create_database(f"owned_{uuid4().hex}")
    await run(
        dsn,
        UPSTREAM
        + role("app_owner")
        + "CREATE SCHEMA evil AUTHORIZATION app_owner; GRANT USAGE ON SCHEMA evil TO PUBLIC;"
        "GRANT USAGE, CREATE ON SCHEMA outreach TO app_owner;"
        "CREATE TABLE evil.ran (as_whom text); GRANT ALL ON evil.ran TO PUBLIC;"
        "INSERT INTO outreach.outreach (outreach_id, domain) SELECT gen_random_uuid(), 'a.example'"
        " FROM generate_series(1, 5)",
    )
    return dsn


NOTES = "INSERT INTO evil.ran VALUES (current_user);"
TARGET = (
    "CREATE TABLE outreach.company_target ("
    "target_id uuid PRIMARY KEY DEFAULT gen_random_uuid(), outreach_id uuid UNIQUE"
)


async def ran_as(dsn: str) -> set[str]:
    return set(str(await value(dsn, "SELECT coalesce(string_agg(DISTINCT as_whom, ' '), '') FROM evil.ran")).split())


async def test_no_trigger_puts_its_own_statement_in_the_administrators_place(owners_database: str) -> None:
    """The rehearsal runs others' triggers; one that renames prepared statements ran as the superuser."""
    await run(
        owners_database,
        f"""
        {TARGET}); ALTER TABLE outreach.company_target OWNER TO app_owner;
        SET SESSION AUTHORIZATION app_owner;
        CREATE FUNCTION evil.trig() RETURNS trigger LANGUAGE plpgsql AS $f$
        DECLARE r record;
        BEGIN
            FOR r IN SELECT name FROM pg_catalog.pg_prepared_statements LOOP
                RAISE EXCEPTION 'a prepared statement of the administrator is there: %', r.name;
            END LOOP;
            RETURN NEW;
        END $f$;
        CREATE TRIGGER t BEFORE INSERT OR UPDATE ON outreach.company_target FOR EACH ROW EXECUTE FUNCTION evil.trig();
        """,
    )
    await migrate(owners_database)


async def test_no_cast_of_the_tables_owner_is_run(owners_database: str) -> None:
    await run(
        owners_database,
        f"""
        SET SESSION AUTHORIZATION app_owner;
        CREATE TYPE evil.status AS ENUM ('pending', 'ready', 'failed', 'blocked');
        CREATE FUNCTION evil.to_text(evil.status) RETURNS text LANGUAGE plpgsql AS $f$ BEGIN
            RAISE EXCEPTION 'ran as %', current_user;
        END $f$;
        CREATE CAST (evil.status AS text) WITH FUNCTION evil.to_text(evil.status);
        {TARGET}, execution_status evil.status DEFAULT 'pending');
        INSERT INTO outreach.company_target (outreach_id) SELECT gen_random_uuid() FROM generate_series(1, 2);
        """,
    )
    with pytest.raises(MigrationError, match=r"execution_status is of type evil\.status"):
        await migrate(owners_database)


async def test_no_overload_of_a_function_of_ours_gets_our_rights(owners_database: str) -> None:
    await run(
        owners_database,
        """
        SET SESSION AUTHORIZATION app_owner;
        CREATE FUNCTION outreach.ct_first_change(statement text) RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $f$
        BEGIN EXECUTE statement; END $f$;
        """,
    )
    with pytest.raises(MigrationError, match=r"ct_first_change\(text\) has a name of the gate's"):
        await migrate(owners_database)


async def test_no_view_of_the_spines_owner_runs_as_ours(database: DatabaseDsns) -> None:
    await run(
        database.admin,
        f"""
        CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;
        CREATE TABLE evil.ran (as_whom text); GRANT ALL ON evil.ran TO PUBLIC;
        CREATE FUNCTION evil.f(id uuid) RETURNS uuid LANGUAGE plpgsql AS $f$ BEGIN {NOTES} RETURN id; END $f$;
        ALTER TABLE outreach.outreach RENAME TO the_real_one;
        CREATE VIEW outreach.outreach AS SELECT evil.f(outreach_id) AS outreach_id, domain FROM outreach.the_real_one;
        INSERT INTO outreach.the_real_one (outreach_id, domain) VALUES (gen_random_uuid(), 'x.example');
        GRANT SELECT ON outreach.outreach TO PUBLIC;
        """,
    )
    assert await value(database.ops, "SELECT outreach.ct_left_the_spine(gen_random_uuid())") is False
    assert await ran_as(database.admin) == set()


#: Notes as whom it is run, whenever a query of a table is planned that has it in its extended statistics.
PLANNED = """
    CREATE FUNCTION evil.note() RETURNS integer LANGUAGE sql AS $f$
        INSERT INTO evil.ran VALUES (current_user) RETURNING 1 $f$;
    CREATE FUNCTION evil.noted(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $f$
    BEGIN PERFORM evil.note(); RETURN 1; END $f$;
    CREATE STATISTICS evil.planned ON (evil.noted(1) + length(outreach_id::text)), outreach_id FROM {};
"""


async def test_what_is_planned_with_a_users_table_runs_neither_as_the_administrator_nor_as_ct_owner(
    owners_database: str,
) -> None:
    await run(
        owners_database,
        "SET SESSION AUTHORIZATION app_owner;"
        f"{TARGET}, execution_status text);"
        "INSERT INTO outreach.company_target (outreach_id, execution_status) SELECT gen_random_uuid(), 'ready';"
        + PLANNED.format("outreach.company_target"),
    )
    assert (await migrate(owners_database)).adopted == 1
    await run(owners_database, "DELETE FROM outreach.ct_adoption")  # and once more, now that everything is there
    await migrate(owners_database)
    assert await ran_as(owners_database) <= {"ct_gate", "app_owner"}


@pytest.mark.parametrize("owner", ["app_owner", "postgres"])
async def test_what_is_planned_with_the_spine_runs_as_who_may_only_read_its_ids(
    owners_database: str, owner: str
) -> None:
    """The foreign key of a users' table deletes as its owner, who may be a superuser."""
    await migrate(owners_database)
    company = uuid4()
    await run(
        owners_database,
        f"""
        {role("spine_owner")}
        GRANT USAGE ON SCHEMA outreach, evil TO spine_owner; GRANT CREATE ON SCHEMA evil TO spine_owner;
        ALTER TABLE outreach.outreach OWNER TO spine_owner; ALTER TABLE outreach.company_target OWNER TO {owner};
        GRANT REFERENCES ON outreach.outreach TO {owner};
        ALTER TABLE outreach.company_target
            ADD FOREIGN KEY (outreach_id) REFERENCES outreach.outreach ON DELETE CASCADE;
        INSERT INTO outreach.outreach (outreach_id, domain) VALUES ('{company}', 'b.example');
        INSERT INTO outreach.ct_outcomes (outreach_id, outcome, decided_at) VALUES ('{company}', 'PASS', now());
        INSERT INTO outreach.company_target (outreach_id, execution_status) VALUES ('{company}', 'ready');
        SET SESSION AUTHORIZATION spine_owner;
        """
        + PLANNED.format("outreach.outreach"),
    )
    delete = f"SET SESSION AUTHORIZATION spine_owner; DELETE FROM outreach.outreach WHERE outreach_id = '{company}'"
    await run(owners_database, "DELETE FROM evil.ran")
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):  # it may change nothing, whoever it is
        await run(owners_database, delete)
    assert await ran_as(owners_database) == set()
    await run(owners_database, f"DROP STATISTICS evil.planned; {delete}")
    assert await value(owners_database, "SELECT count(*) FROM outreach.company_target") == 0


async def test_a_row_that_an_administrator_notes_as_left_alone_runs_no_owners_code(owners_database: str) -> None:
    await migrate(owners_database)
    await run(
        owners_database,
        "GRANT CREATE ON SCHEMA outreach TO app_owner; ALTER TABLE outreach.company_target_errors OWNER TO app_owner;"
        "SET SESSION AUTHORIZATION app_owner;" + PLANNED.format("outreach.company_target_errors"),
    )
    company = uuid4()
    await run(
        owners_database,
        "INSERT INTO outreach.ct_outcomes (outreach_id, outcome, failure_code, decided_at)"
        f" VALUES ('{company}', 'FAIL', 'CT-I-NOT-FOUND', now());"
        f"INSERT INTO outreach.ct_unwritten (outreach_id, its_table) VALUES ('{company}', 'company_target_errors')",
    )
    assert await ran_as(owners_database) == set()


LEFT_FOR_LATER = {
    "a function that runs as its caller": """
        DO LANGUAGE plpgsql $d$ DECLARE f record; BEGIN
            FOR f IN SELECT p.oid::regprocedure AS name FROM pg_catalog.pg_proc AS p
                WHERE p.proname LIKE 'ct_as_gate%'
            LOOP EXECUTE format('ALTER FUNCTION %s SECURITY INVOKER', f.name); END LOOP;
        END $d$;
    """,
    "a search path": "SELECT set_config('search_path', 'evil, pg_catalog', false);",
    "an event of a deferred trigger": "SET CONSTRAINTS ALL DEFERRED; INSERT INTO evil.later VALUES (1);",
}


@pytest.mark.parametrize("left", LEFT_FOR_LATER.values(), ids=LEFT_FOR_LATER)
async def test_code_that_ran_as_the_gate_leaves_nothing_that_runs_as_the_administrator(
    owners_database: str, left: str
) -> None:
    await run(
        owners_database,
        f"""
        SET SESSION AUTHORIZATION app_owner;
        {TARGET}, execution_status text);
        INSERT INTO outreach.company_target (outreach_id, execution_status) SELECT gen_random_uuid(), 'ready';
        CREATE FUNCTION evil.notes() RETURNS trigger LANGUAGE plpgsql AS $f$ BEGIN {NOTES} RETURN NULL; END $f$;
        CREATE TABLE evil.later (n integer); GRANT ALL ON evil.later TO PUBLIC;
        CREATE CONSTRAINT TRIGGER later AFTER INSERT ON evil.later DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION evil.notes();
        CREATE FUNCTION evil.equal(name, name) RETURNS boolean LANGUAGE plpgsql AS $f$
            BEGIN {NOTES} RETURN $1 OPERATOR(pg_catalog.=) $2; END $f$;
        CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = name, FUNCTION = evil.equal);
        CREATE FUNCTION evil.leave() RETURNS integer LANGUAGE plpgsql AS $f$ BEGIN
            {NOTES}
            IF current_user <> 'app_owner' THEN
                EXECUTE $s${left}$s$;
            END IF;
            RETURN 1;
        END $f$;
        CREATE FUNCTION evil.noted(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $f$
            BEGIN PERFORM evil.leave(); RETURN 1; END $f$;
        CREATE STATISTICS evil.planned ON (evil.noted(1) + length(outreach_id::text)), outreach_id
            FROM outreach.company_target;
        """,
    )
    with nullcontext() if "INVOKER" not in left else pytest.raises(MigrationError, match="changed a function of the"):
        await migrate(owners_database)
    assert await ran_as(owners_database) <= {"ct_gate", "app_owner"}


async def test_migrate_waits_for_no_reader_for_long_and_says_who_it_is(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for a table keeps the workers that come after it waiting: they would record nothing."""
    monkeypatch.setattr(module, "_WAIT_FOR_TABLES", "SET LOCAL lock_timeout = '300ms'")
    monkeypatch.setattr(module, "_WAIT_FOR_OTHERS", "SET LOCAL lock_timeout = '300ms'")
    admin = database.admin
    reads, writes = await asyncpg.connect(database.ops), await asyncpg.connect(admin)
    try:
        await reads.execute("BEGIN; SELECT FROM outreach.company_target; SELECT FROM outreach.ct_held")
        await run(admin, "DELETE FROM outreach.ct_functions; ALTER TABLE outreach.company_target DISABLE TRIGGER ALL")
        await migrate(admin)
        await writes.execute("BEGIN; INSERT INTO outreach.company_target (outreach_id) VALUES (gen_random_uuid())")
        await run(admin, "DELETE FROM outreach.ct_functions")
        with pytest.raises(MigrationError, match=rf"process {writes.get_server_pid()} of postgres, since 20"):
            await migrate(admin)
        await writes.execute("ROLLBACK")
        await reads.execute(f"COMMIT; SELECT pg_advisory_lock({module._LOCK})")
        with pytest.raises(MigrationError, match=rf"process {reads.get_server_pid()} of ct_ops, since 20"):
            await migrate(admin)
    finally:
        await reads.close()
        await writes.close()
    await migrate(admin)


async def test_nobody_resumes_a_guardrail_in_the_name_of_a_person_who_reads(
    database: DatabaseDsns, owners_database: str
) -> None:
    dsn = owners_database
    await migrate(dsn)
    await run(
        dsn,
        """
        ALTER TABLE outreach.company_target OWNER TO app_owner;
        INSERT INTO outreach.ct_guardrails (key, state, reason) VALUES ('spine', 'halted', 'empty');
        SET SESSION AUTHORIZATION app_owner;
        CREATE FUNCTION evil.resume() RETURNS integer LANGUAGE plpgsql AS $f$ BEGIN
            IF pg_has_role(current_user, 'ct_ops', 'MEMBER') THEN
                SET default_transaction_read_only = off;
                SET search_path = evil, pg_catalog;
                IF NOT current_setting('transaction_read_only')::boolean THEN
                    PERFORM outreach.resume_guardrail('spine', 'never mind');
                END IF;
            END IF;
            RETURN 1;
        END $f$;
        CREATE FUNCTION evil.resumed(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $f$
            BEGIN PERFORM evil.resume(); RETURN 1; END $f$;
        CREATE STATISTICS evil.planned ON (evil.resumed(1) + length(outreach_id::text)), outreach_id
            FROM outreach.company_target;
        """,
    )
    name = urlsplit(dsn).path.strip("/")
    settings = Settings(postgres_ops_dsn=database.ops.replace(urlsplit(database.ops).path, f"/{name}"))
    async with reader(settings) as people:
        for _ in range(2):
            await people.rows("story_target", uuid4())
            assert await people._connection.fetchval("SHOW search_path") == "pg_catalog, pg_temp"
            await people.row("story_target", uuid4())
    assert await value(dsn, "SELECT state FROM outreach.ct_guardrails") == "halted"


async def test_no_owners_code_alters_the_function_that_it_runs_in(owners_database: str) -> None:
    """A role may alter what it owns: the function would then run as whoever deletes."""
    await migrate(owners_database)
    await run(
        owners_database,
        """
        ALTER TABLE outreach.outreach OWNER TO app_owner; SET SESSION AUTHORIZATION app_owner;
        CREATE FUNCTION evil.alter_it() RETURNS integer LANGUAGE plpgsql AS $f$ BEGIN
            IF current_user = 'ct_reader' THEN
                ALTER FUNCTION outreach.ct_left_the_spine(uuid) SECURITY INVOKER;
            END IF;
            RETURN 1;
        END $f$;
        CREATE FUNCTION evil.altered(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $f$
            BEGIN PERFORM evil.alter_it(); RETURN 1; END $f$;
        CREATE STATISTICS evil.planned ON (evil.altered(1) + length(outreach_id::text)), outreach_id
            FROM outreach.outreach;
        """,
    )
    with suppress(asyncpg.PostgresError):
        await run(owners_database, "SELECT outreach.ct_left_the_spine(gen_random_uuid())")
    assert await value(owners_database, "SELECT prosecdef FROM pg_proc WHERE proname = 'ct_left_the_spine'") is True


async def test_no_planted_function_is_called_in_the_place_of_a_statement_of_the_gate(owners_database: str) -> None:
    await run(
        owners_database,
        """
        SET SESSION AUTHORIZATION app_owner;
        CREATE FUNCTION outreach.ct_as_gate_decided_before(uuid, double precision) RETURNS TABLE (
            outreach_id uuid, outcome text, failure_code text, blocking_reason text, decided_at timestamptz
        ) LANGUAGE plpgsql AS $f$ BEGIN INSERT INTO evil.ran VALUES (current_user); END $f$;
        """,
    )
    with pytest.raises(MigrationError, match="functions of schema outreach have names that begin with ct_as_gate_"):
        await migrate(owners_database)
    assert await ran_as(owners_database) == set()


#: A view that ct_gate has made, and that another role may use: rights are looked up as its owner's.
VIEW_OF_THE_GATES = (
    f"{role('app_owner')} CREATE SCHEMA shared; GRANT USAGE, CREATE ON SCHEMA shared TO ct_gate, app_owner;"
    "GRANT USAGE ON SCHEMA outreach TO app_owner;"
    "SET ROLE ct_gate; CREATE VIEW shared.v AS SELECT * FROM outreach.company_target;"
    "GRANT ALL ON shared.v TO app_owner"
)


@pytest.mark.parametrize(
    "own",
    [
        "SELECT 1",
        "CREATE VIEW shared.mine AS SELECT outreach_id FROM outreach.company_target;"
        "GRANT ALL ON shared.mine TO app_owner",
        "GRANT INSERT (outreach_id) ON outreach.company_target TO app_owner",
        "CREATE VIEW shared.other AS SELECT 'x' AS execution_status FROM outreach.outreach;"
        "GRANT ALL ON shared.other TO app_owner",
        "CREATE VIEW shared.mine WITH (security_invoker = true) AS SELECT * FROM outreach.company_target;"
        "GRANT ALL ON shared.mine TO app_owner",
        "CREATE VIEW shared.mine AS SELECT * FROM outreach.company_target WHERE execution_status = 'pending'"
        " WITH CHECK OPTION; GRANT ALL ON shared.mine TO app_owner",
        "CREATE VIEW shared.mine AS SELECT outreach_id, upper(execution_status) AS execution_status"
        " FROM outreach.company_target; GRANT ALL ON shared.mine TO app_owner",
        "CREATE VIEW shared.mine AS SELECT * FROM shared.leads AS l WHERE NOT EXISTS"
        " (SELECT t.outreach_id FROM outreach.company_target AS t WHERE t.outreach_id = l.outreach_id);"
        "GRANT ALL ON shared.mine TO app_owner",
        "CREATE VIEW shared.mine AS SELECT * FROM outreach.company_target; GRANT ALL ON shared.mine TO app_owner;"
        "CREATE FUNCTION shared.nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;"
        "CREATE TRIGGER nothing INSTEAD OF INSERT ON shared.mine FOR EACH ROW EXECUTE FUNCTION shared.nothing()",
    ],
    ids=[
        "no right of its own", "a narrow view", "one column", "a view of another table", "a view of its own rights",
        "a view of what waits", "a view of other words", "a view that only looks", "a view that does nothing",
    ],
)  # fmt: skip
@pytest.mark.parametrize("knows_the_schema", [True, False])
async def test_nobody_writes_rows_through_a_view_of_the_gates(
    database: DatabaseDsns, own: str, knows_the_schema: bool
) -> None:
    await run(database.admin, VIEW_OF_THE_GATES)
    await run(
        database.admin,
        "CREATE TABLE shared.leads (outreach_id uuid, email_method text, execution_status text);"
        f"{'GRANT' if knows_the_schema else 'REVOKE'} USAGE ON SCHEMA outreach"
        f" {'TO' if knows_the_schema else 'FROM'} app_owner; {own}",
    )
    never_there = outcome(verdict=NOT_FOUND)
    await record(database, never_there)
    for row in (
        "(outreach_id, execution_status) VALUES (gen_random_uuid(), 'ready')",
        f"(outreach_id, email_method) VALUES ('{never_there.outreach_id}', 'evil@x.example')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="app_owner has no right of its own to write"):
            await run(database.admin, f"SET SESSION AUTHORIZATION app_owner; INSERT INTO shared.v {row}")


@pytest.mark.parametrize(
    "gone", ["DROP VIEW shared.v", "ALTER VIEW shared.v OWNER TO ct_ops", "CREATE OR REPLACE VIEW shared.v AS SELECT"
             " NULL::uuid AS outreach_id, NULL::text AS execution_status"],
    ids=["dropped", "given away", "replaced"],
)  # fmt: skip
async def test_a_view_of_the_gates_that_is_gone_before_its_statement_ends_lends_nothing(
    database: DatabaseDsns, gone: str
) -> None:
    """Its owner's function takes it away, in the middle of the statement that goes through it."""
    failed = outcome(verdict=NO_MX)
    await record(database, failed)
    await run(
        database.admin,
        "CREATE SCHEMA shared; GRANT USAGE, CREATE ON SCHEMA shared TO ct_gate, ct_ops; SET ROLE ct_gate;"
        "CREATE VIEW shared.v AS SELECT outreach_id, execution_status FROM outreach.company_target;"
        "CREATE VIEW shared.notes AS SELECT outreach_id, its_table FROM outreach.ct_unwritten;"
        "GRANT ALL ON shared.v, shared.notes TO ct_ops;"
        "CREATE FUNCTION shared.take_away(what text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS"
        " $$ BEGIN EXECUTE what; RETURN true; EXCEPTION WHEN OTHERS THEN RETURN true; END $$",
    )
    for statement in (
        f"INSERT INTO shared.notes SELECT '{failed.outreach_id}', 'company_target'"
        f" WHERE shared.take_away($${gone.replace('shared.v', 'shared.notes')}$$)",
        f"INSERT INTO shared.v SELECT gen_random_uuid(), 'ready' WHERE shared.take_away($${gone}$$)",
        f"UPDATE shared.v SET execution_status = 'ready' WHERE shared.take_away($${gone}$$)",
    ):
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.RestrictViolationError)):
            await run(database.ops, statement)


async def test_who_is_the_gate_and_somebody_else_writes_as_the_gate(database: DatabaseDsns) -> None:
    """One login for the worker and for people changes its role in the middle of a statement."""
    failed = outcome(verdict=NO_MX)
    await record(database, failed)
    both = role("two_hats") + "GRANT ct_gate, ct_ops TO two_hats; SET SESSION AUTHORIZATION two_hats; SET ROLE ct_gate;"
    turn = "WITH r AS MATERIALIZED (SELECT set_config('role', 'ct_ops', false))"
    for statement in (
        "INSERT INTO outreach.ct_unwritten (outreach_id, its_table)"
        f" SELECT '{failed.outreach_id}', 'company_target' FROM r",
        "INSERT INTO outreach.company_target (outreach_id, execution_status) SELECT gen_random_uuid(), 'ready' FROM r",
        "UPDATE outreach.company_target SET execution_status = 'ready' FROM r",
    ):
        with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.RestrictViolationError)):
            await run(database.admin, f"{both} {turn} {statement}")


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize(
    "how",
    [
        "CREATE VIEW shared.w AS SELECT * FROM outreach.company_target",
        "CREATE TABLE shared.w (outreach_id uuid, email_method text, execution_status text);"
        "CREATE RULE w AS ON INSERT TO shared.w DO INSTEAD INSERT INTO outreach.company_target"
        " (outreach_id, email_method, execution_status)"
        " VALUES (NEW.outreach_id, NEW.email_method, NEW.execution_status)",
        "SET ROLE app_owner; CREATE VIEW shared.w AS SELECT * FROM shared.v",
    ],
    ids=["a view", "a rule", "a view of its own over it"],
)
async def test_what_the_gate_lends_is_seen_however_late_it_is_made(
    database: DatabaseDsns, how: str, level: str
) -> None:
    """A transaction with an old snapshot uses a view that was made after it."""
    if "shared.v" in how:
        await run(database.admin, VIEW_OF_THE_GATES)
    else:
        await run(database.admin, VIEW_OF_THE_GATES.partition("SET ROLE")[0])
    other: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.admin)
    try:
        await other.execute(f"SET SESSION AUTHORIZATION app_owner; BEGIN ISOLATION LEVEL {level};"
            "SELECT count(*) FROM pg_class")  # fmt: skip
        await run(database.admin, f"SET ROLE ct_gate; {how}; GRANT ALL ON shared.w TO app_owner")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="app_owner has no right of its own to write"):
            await other.execute("INSERT INTO shared.w (outreach_id, email_method, execution_status)"
                f" VALUES ('{uuid4()}', 'evil@x.example', 'ready')")  # fmt: skip
    finally:
        await other.close()


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize(
    "own", ["SELECT 1", "GRANT ALL ON shared.mine TO ct_ops"], ids=["", "with a view of the owner's"]
)
async def test_no_person_of_the_gates_writes_through_its_view(database: DatabaseDsns, own: str, level: str) -> None:
    """Nor in a transaction that began before a company was decided."""
    await run(database.admin, VIEW_OF_THE_GATES)
    await run(
        database.admin,
        "GRANT ALL ON shared.v TO ct_ops; GRANT USAGE ON SCHEMA shared TO ct_ops;"
        f"CREATE VIEW shared.mine AS SELECT * FROM outreach.company_target; {own}",
    )
    never_there = outcome(verdict=NOT_FOUND)
    await run(database.admin, f"INSERT INTO outreach.company_target (outreach_id) VALUES ('{never_there.outreach_id}')")
    for statement in (
        f"INSERT INTO shared.v (outreach_id, email_method) VALUES ('{uuid4()}', 'evil@x.example')",
        f"INSERT INTO shared.v (outreach_id, method_type, confidence_score) VALUES ('{uuid4()}', 'info', 0.9)",
        f"INSERT INTO shared.v (outreach_id, execution_status) VALUES ('{uuid4()}', 'ready')",
        "UPDATE shared.v SET email_method = 'evil@x.example'",
    ):
        person: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.ops)
        try:
            await person.execute(f"BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM outreach.ct_outcomes")
            async with opened(database.gate) as db:
                ledger = Ledger(db)
                async with running(*ledger.batches):
                    await ledger.record(never_there)
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="ct_ops has no right of its own to write"):
                await person.execute(statement)
        finally:
            await person.close()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["written first", "noted first"])
@pytest.mark.parametrize("between", ["", "SAVEPOINT s;"], ids=["", "in a savepoint"])
@pytest.mark.parametrize("table", ["company_target", "company_target_errors"])
async def test_what_was_written_with_an_outcome_is_not_noted_as_left_alone(
    database: DatabaseDsns, table: str, between: str, order: tuple[int, int]
) -> None:
    """By the gate, or by a trigger of the tables' owner that runs as the gate, in the same transaction."""
    company = uuid4()
    write = {
        "company_target": "INSERT INTO outreach.company_target (outreach_id, execution_status)"
        f" VALUES ('{company}', 'failed');",
        "company_target_errors": "INSERT INTO outreach.company_target_errors (outreach_id, failure_code)"
        f" VALUES ('{company}', 'CT-I-NOT-FOUND');",
    }[table]
    note = f"INSERT INTO outreach.ct_unwritten (outreach_id, its_table) VALUES ('{company}', '{table}');"
    first, second = ((write, note)[n] for n in order)
    with pytest.raises(asyncpg.RestrictViolationError, match="contradicts what this transaction records"):
        await run(
            database.gate,
            "BEGIN; INSERT INTO outreach.ct_outcomes (outreach_id, outcome, failure_code, decided_at)"
            f" VALUES ('{company}', 'FAIL', 'CT-I-NOT-FOUND', now());"
            f"{between} {first} {between and 'RELEASE s;'} {second} COMMIT",
        )


async def test_no_owners_code_puts_a_statement_of_its_own_in_the_place_of_a_prepared_one(owners_database: str) -> None:
    """No rollback undoes a PREPARE, and a read-only transaction allows it."""
    await migrate(owners_database)
    await run(
        owners_database,
        """
        ALTER TABLE outreach.outreach OWNER TO app_owner; SET SESSION AUTHORIZATION app_owner;
        CREATE FUNCTION evil.take() RETURNS integer LANGUAGE sql AS $f$
            INSERT INTO evil.ran VALUES (current_user) RETURNING 1 $f$;
        CREATE FUNCTION evil.swap() RETURNS integer LANGUAGE plpgsql AS $f$ BEGIN
            IF current_user = 'ct_reader' THEN
                DEALLOCATE victim;
                PREPARE victim AS SELECT evil.take();
            END IF;
            RETURN 1;
        END $f$;
        CREATE FUNCTION evil.swapped(integer) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $f$
            BEGIN PERFORM evil.swap(); RETURN 1; END $f$;
        CREATE STATISTICS evil.planned ON (evil.swapped(1) + length(outreach_id::text)), outreach_id
            FROM outreach.outreach;
        """,
    )
    admin: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(owners_database, statement_cache_size=0)
    await admin.execute("PREPARE victim AS SELECT 1")
    with suppress(asyncpg.PostgresError):
        await admin.execute("SELECT outreach.ct_left_the_spine(gen_random_uuid())")
    with suppress(asyncpg.InvalidSQLStatementNameError):
        await admin.execute("EXECUTE victim")
    await admin.close()
    assert await ran_as(owners_database) == set()


async def test_a_right_on_one_other_column_opens_no_view_of_the_gates(database: DatabaseDsns) -> None:
    await run(
        database.admin,
        f"{VIEW_OF_THE_GATES}; RESET ROLE; ALTER TABLE outreach.company_target ADD COLUMN hub_note text;"
        "GRANT INSERT (hub_note), UPDATE (hub_note), SELECT ON outreach.company_target TO app_owner;"
        "INSERT INTO outreach.company_target (outreach_id) VALUES (gen_random_uuid())",
    )
    for change in (
        "UPDATE shared.v SET execution_status = 'ready'",
        "INSERT INTO shared.v (outreach_id, execution_status) VALUES (gen_random_uuid(), 'ready')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="app_owner has no right of its own to write"):
            await run(database.admin, f"SET ROLE app_owner; {change}")
