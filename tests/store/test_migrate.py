"""Migrations adopt what is there, keep every row, and can be run again."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest

from ct_stream.store.database import Database
from ct_stream.store.migrate import MigrationError, latest_migration, migrate
from ct_stream.store.outage import UnfitDatabase
from ct_stream.store.queries import _all
from ct_stream.store.sql_files import sql_files
from tests.conftest import PASSWORD, UPSTREAM
from tests.store.parts import opened

if TYPE_CHECKING:
    from ct_stream.local.postgres import EmbeddedPostgres
    from tests.conftest import DatabaseDsns

OLD_SCHEMA = """
CREATE SCHEMA outreach;
CREATE TABLE outreach.outreach (outreach_id uuid PRIMARY KEY, domain text, sovereign_id uuid);
CREATE TABLE outreach.company_target (
    target_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, outreach_id uuid NOT NULL,
    execution_status text NOT NULL, imo_completed_at timestamptz, notes text
);
CREATE TABLE outreach.company_target_errors (
    error_id uuid PRIMARY KEY DEFAULT gen_random_uuid(), outreach_id uuid NOT NULL, failure_code text NOT NULL,
    blocking_reason text, created_at timestamptz NOT NULL DEFAULT now()
);
"""


async def test_an_existing_schema_is_adopted_with_every_row(postgres: EmbeddedPostgres) -> None:
    dsn = await postgres.create_database(f"adopt_{uuid4().hex}")
    connection = await asyncpg.connect(dsn)
    await connection.execute(OLD_SCHEMA)
    ready, failed, blocked, pending, error_only = (uuid4() for _ in range(5))
    await connection.executemany(
        "INSERT INTO outreach.company_target (outreach_id, execution_status, notes) VALUES ($1, $2, 'kept')",
        [(ready, "ready"), (failed, "failed"), (blocked, "blocked"), (pending, "pending")],
    )
    await connection.executemany(
        "INSERT INTO outreach.company_target_errors (outreach_id, failure_code) VALUES ($1, 'CT-M-NO-MX')",
        [(failed,), (error_only,), (error_only,)],
    )
    report = await migrate(dsn)
    assert (report.adopted, report.pending, report.spine_found) == (4, 1, True)
    rows = await connection.fetch("SELECT outreach_id, outcome, source, topic, published_at FROM outreach.ct_outcomes")
    assert {(row["outreach_id"], row["outcome"]) for row in rows} == {
        (ready, "PASS"), (failed, "FAIL"), (blocked, "FAIL"), (error_only, "FAIL"),
    }  # fmt: skip
    assert all((row["source"], row["topic"], row["published_at"]) == ("adopted", None, None) for row in rows)
    assert await connection.fetchval("SELECT count(*) FROM outreach.company_target WHERE notes = 'kept'") == 4

    again = await migrate(dsn)
    assert (again.applied, again.adopted, again.pending) == ((), 0, 1)
    await connection.close()


async def test_an_old_table_with_two_rows_of_a_company_is_named(postgres: EmbeddedPostgres) -> None:
    dsn = await postgres.create_database(f"twice_{uuid4().hex}")
    connection = await asyncpg.connect(dsn)
    await connection.execute(OLD_SCHEMA)
    await connection.executemany(
        "INSERT INTO outreach.company_target (outreach_id, execution_status) VALUES ($1, 'ready')", [(UUID(int=1),)] * 2
    )
    await connection.close()
    with pytest.raises(MigrationError, match="make outreach_id unique"):
        await migrate(dsn)


async def test_a_file_that_was_changed_after_its_release_is_found_out(postgres: EmbeddedPostgres) -> None:
    dsn = await postgres.create_database(f"changed_{uuid4().hex}")
    await migrate(dsn, replace(sql_files(), migrations={"0001_one.sql": "SELECT 1"}))
    with pytest.raises(MigrationError, match="other contents"):
        await migrate(dsn, replace(sql_files(), migrations={"0001_one.sql": "SELECT 1 -- changed"}))


async def test_a_database_of_a_newer_version_is_left_alone(database: DatabaseDsns) -> None:
    connection = await asyncpg.connect(database.admin)
    await connection.execute("INSERT INTO outreach.ct_migrations (name, checksum) VALUES ('9999_later.sql', 'x')")
    await connection.close()
    with pytest.raises(MigrationError, match="upgrade"):
        await migrate(database.admin)


async def test_the_functions_of_a_newer_version_are_left_alone(database: DatabaseDsns) -> None:
    """In a rolling upgrade the version before may be started, and so migrated, once more."""
    newer = replace(sql_files(), functions={**sql_files().functions, "later.sql": "SELECT 1"})
    assert (await migrate(database.admin, newer)).applied == ("functions",)
    with pytest.raises(MigrationError, match=r"another version has put its functions in place since .*--again"):
        await migrate(database.admin)
    async with opened(database.gate):
        pass  # a worker of the version before runs on


async def test_a_person_puts_the_functions_back_that_an_older_version_has_replaced(database: DatabaseDsns) -> None:
    older = replace(sql_files(), functions={**sql_files().functions, "earlier.sql": "SELECT 1"})
    await migrate(database.admin, older)
    assert (await migrate(database.admin, again=True)).applied == ("functions",)
    assert (await migrate(database.admin)).applied == ()
    with pytest.raises(MigrationError, match="another version"):
        await migrate(database.admin, older)


async def test_a_database_from_before_the_first_release_is_refused(database: DatabaseDsns) -> None:
    connection = await asyncpg.connect(database.admin)
    await connection.execute("UPDATE outreach.ct_migrations SET name = '0001_tables.sql'")
    await connection.close()
    with pytest.raises(MigrationError, match="before the first release; let its workers finish"):
        await migrate(database.admin)


@pytest.mark.parametrize("is_fresh", [pytest.param(True, id="fresh"), pytest.param(False, id="existing")])
async def test_a_half_done_migration_leaves_nothing(postgres: EmbeddedPostgres, is_fresh: bool) -> None:
    dsn = await postgres.create_database(f"half_{uuid4().hex}")
    if not is_fresh:
        await migrate(dsn)
    bad = replace(
        sql_files(),
        migrations={"0001_added.sql": "CREATE TABLE outreach.ct_added ()", "0002_bad.sql": "SELECT 1/0"},
        grants="SELECT 1/0",
    )
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(dsn, bad)
    connection = await asyncpg.connect(dsn)
    left = "outreach.ct_outcomes" if is_fresh else "outreach.ct_added"
    assert await connection.fetchval("SELECT to_regclass($1)", left) is None
    await connection.close()


@pytest.mark.parametrize("owns", [pytest.param(True, id="owns the database"), pytest.param(False, id="owns a schema")])
async def test_an_administrator_need_not_be_superuser(postgres: EmbeddedPostgres, owns: bool) -> None:
    """As where the server is managed by others. Who does not own the database hears what its owner should do."""
    name, role = f"managed_{uuid4().hex}", f"admin_{uuid4().hex}"
    connection = await asyncpg.connect(await postgres.create_database(name))
    await connection.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}' CREATEROLE;"
        f"GRANT ct_owner, ct_reader TO {role} WITH ADMIN OPTION;"
        f"GRANT CREATE ON DATABASE {name} TO {role};"
        f"{OLD_SCHEMA.replace('CREATE SCHEMA outreach', f'CREATE SCHEMA outreach AUTHORIZATION {role}')}"
        f"ALTER TABLE outreach.outreach OWNER TO {role}; ALTER TABLE outreach.company_target OWNER TO {role};"
        f"ALTER TABLE outreach.company_target_errors OWNER TO {role};"
        "INSERT INTO outreach.company_target (outreach_id, execution_status) VALUES (gen_random_uuid(), 'ready');"
    )
    if owns:
        await connection.execute(f"ALTER DATABASE {name} OWNER TO {role}")
    dsn = postgres.dsn(name, role, PASSWORD)
    report = await migrate(dsn)
    assert (report.adopted, report.temp_revoked, report.temp_open) == (1, owns, not owns)
    again = await migrate(dsn)
    assert (again.applied, again.adopted, again.temp_revoked, again.temp_open) == ((), 0, False, not owns)
    async with opened(postgres.dsn(name, "ct_gate", PASSWORD)):
        pass
    await connection.close()
    await postgres.drop_database(name)


async def test_every_named_query_is_valid_as_the_gates_role(database: DatabaseDsns) -> None:
    connection = await asyncpg.connect(database.gate)
    for name, text in _all().items():
        try:
            await connection.prepare(text)
        except asyncpg.PostgresError as error:
            pytest.fail(f"{name}: {error}")
    await connection.close()


# ---------------------------------------------------------------- a database that may be trusted


async def test_another_ledger_is_not_written_to(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        admin = await asyncpg.connect(database.admin)
        await admin.execute("UPDATE outreach.ct_epoch SET epoch = gen_random_uuid()")
        await admin.close()
        with pytest.raises(UnfitDatabase, match="another ledger"):
            await db._check()


async def test_a_ledger_with_fewer_outcomes_than_were_seen_is_not_written_to(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        db.saw_ordinal(5)
        with pytest.raises(UnfitDatabase, match="restored from a backup"):
            await db._check()


async def test_a_read_only_server_is_refused(database: DatabaseDsns) -> None:
    admin = await asyncpg.connect(database.admin)
    name = await admin.fetchval("SELECT current_database()")
    await admin.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    db = Database(database.gate)
    try:
        with pytest.raises(UnfitDatabase, match="primary"):
            await db.open()
    finally:
        await db.close()
        await admin.close()


@pytest.mark.parametrize(
    "forgotten",
    [
        pytest.param("DELETE FROM outreach.ct_migrations WHERE name = $1", id="tables"),
        pytest.param("DELETE FROM outreach.ct_functions WHERE $1 <> ''", id="functions"),
    ],
)
async def test_a_schema_that_is_too_old_is_refused_with_the_command(database: DatabaseDsns, forgotten: str) -> None:
    admin = await asyncpg.connect(database.admin)
    await admin.execute(forgotten, latest_migration())
    await admin.close()
    db = Database(database.gate)
    try:
        with pytest.raises(UnfitDatabase, match="ct-stream migrate"):
            await db.open()
    finally:
        await db.close()


async def test_rows_that_row_security_hides_are_named_and_nothing_is_half_adopted(postgres: EmbeddedPostgres) -> None:
    dsn = await postgres.create_database(f"hidden_{uuid4().hex}")
    connection = await asyncpg.connect(dsn)
    await connection.execute(
        "CREATE SCHEMA outreach; CREATE TABLE outreach.company_target ("
        " outreach_id uuid PRIMARY KEY, email_method text, method_type text, confidence_score numeric,"
        " is_catchall boolean, execution_status text, imo_completed_at timestamptz);"
        "ALTER TABLE outreach.company_target ENABLE ROW LEVEL SECURITY"
    )
    with pytest.raises(MigrationError, match=r"cannot be read: .*row-level security.*; switch row security off"):
        await migrate(dsn)
    assert await connection.fetchval("SELECT to_regclass('outreach.ct_outcomes') IS NULL")
    await connection.execute("ALTER TABLE outreach.company_target DISABLE ROW LEVEL SECURITY")
    await migrate(dsn)
    await connection.close()


async def test_a_dsn_of_the_gate_or_of_people_is_not_the_administrators(database: DatabaseDsns) -> None:
    """It must not be told to give them the rights of ct_owner."""
    for dsn, whose in ((database.gate, "ct_gate, which is for workers"), (database.ops, "ct_ops, which is for people")):
        with pytest.raises(MigrationError) as refused:
            await migrate(dsn)
        assert str(refused.value) == (
            f"CT_POSTGRES_ADMIN_DSN has the login {whose}; it needs the owner of the schema outreach, or a superuser"
        )


async def test_companies_decided_before_are_read_in_time_without_statistics(postgres: EmbeddedPostgres) -> None:
    """A restored database has none until somebody runs ANALYZE; migrate holds its tables meanwhile."""
    dsn = await postgres.create_database(f"restored_{uuid4().hex}")
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    await connection.execute(UPSTREAM)
    await migrate(dsn)
    await connection.execute(
        """
        SET session_replication_role = replica; DELETE FROM outreach.ct_adoption;
        INSERT INTO outreach.company_target (outreach_id, execution_status)
            SELECT md5(n::text)::uuid, 'failed' FROM generate_series(1, 20000) AS n;
        INSERT INTO outreach.company_target_errors (outreach_id, failure_code, created_at)
            SELECT md5(n::text)::uuid, 'CT-M-NO-MX', now() - n * interval '1 second'
            FROM generate_series(1, 20000) AS n;
        """
    )
    await connection.close()
    async with asyncio.timeout(60):
        assert (await migrate(dsn)).adopted == 20000
