"""The schema is in one place, and migrations lead to it."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg

from ct_stream.gate.questions import ControlKind
from ct_stream.gate.waits import WaitsOn
from ct_stream.store.migrate import migrate
from ct_stream.store.queries import _all
from ct_stream.store.sql_files import SqlFiles, sql_files
from tests.store.catalog import HELD, dump

if TYPE_CHECKING:
    from ct_stream.local.postgres import EmbeddedPostgres
    from tests.conftest import DatabaseDsns

#: schema.sql of the first release. It never changes: databases were made from it.
BASELINE = (HELD.parent / "baseline.sql").read_text()
#: Of the functions only those that `migrate` calls: the others must come from this version.
FIRST = {"adoption.sql": sql_files().functions["adoption.sql"]}
READS = (
    "GRANT USAGE ON SCHEMA outreach TO ct_gate;"
    "GRANT SELECT ON outreach.company_target, outreach.company_target_errors, outreach.ct_outcomes TO ct_gate"
)


async def fresh(postgres: EmbeddedPostgres, sql: SqlFiles) -> str:
    """Return the schema of a new database."""
    dsn = await postgres.create_database(f"fresh_{uuid4().hex}")
    await migrate(dsn, sql)
    return await dump(dsn)


async def upgraded(postgres: EmbeddedPostgres, sql: SqlFiles) -> str:
    """Return the schema of a database that the first release made."""
    dsn = await postgres.create_database(f"upgraded_{uuid4().hex}")
    await migrate(dsn, replace(sql, schema=BASELINE, migrations={}, functions=FIRST, triggers="SELECT 1", grants=READS))
    report = await migrate(dsn, sql)
    assert report.applied == (*sql.migrations, "functions")
    return await dump(dsn)


async def test_the_schema_changes_on_purpose_only(postgres: EmbeddedPostgres) -> None:
    """The diff of data/schema.txt is what a change does to a database; catalog.py says how to write it."""
    assert await fresh(postgres, sql_files()) == HELD.read_text()


async def test_migrations_lead_to_the_schema(postgres: EmbeddedPostgres) -> None:
    """Whoever changes schema.sql without a migration, or the other way round, hears of it here."""
    assert await upgraded(postgres, sql_files()) == HELD.read_text()


async def test_a_change_without_its_migration_is_found_out(postgres: EmbeddedPostgres) -> None:
    sql = sql_files()
    changed = replace(sql, schema=sql.schema + "ALTER TABLE outreach.ct_rates ADD COLUMN note text;")
    migrated = replace(
        changed, migrations={**sql.migrations, "9999_note.sql": "ALTER TABLE outreach.ct_rates ADD COLUMN note text"}
    )
    wanted = await fresh(postgres, changed)
    assert await upgraded(postgres, changed) != wanted
    assert await upgraded(postgres, migrated) == wanted
    assert await fresh(postgres, migrated) == wanted


def test_every_function_is_defined_once_and_used() -> None:
    """A second definition would be the one that counts, far from the one that is read."""
    sql = sql_files()
    all_of_it = "\n".join((sql.adopt, sql.schema, *sql.migrations.values(), *sql.functions.values(), sql.triggers))
    defined = re.findall(r"^CREATE (?:OR REPLACE )?FUNCTION (outreach\.\w+)", all_of_it, re.MULTILINE)
    assert len(defined) > 30
    assert sorted(defined) == sorted(set(defined))
    callers = re.sub(
        r"^CREATE (?:OR REPLACE )?FUNCTION \S+\(", "", "\n".join((all_of_it, *_all().values())), flags=re.MULTILINE
    )
    assert [name for name in defined if f"{name}(" not in callers] == []


async def test_no_function_can_be_misled_or_called_by_everybody(database: DatabaseDsns) -> None:
    """Holds for each function to come.

    A function that runs with another's rights (SECURITY DEFINER), or by another's statement (a trigger), looks names up
    in a path of its own. Temporary objects come last there; where pg_temp is not named, it is searched first.
    """
    admin = await asyncpg.connect(database.admin)
    rows = await admin.fetch(
        """
        SELECT p.proname AS name,
            -- PL/pgSQL compiles a function once in a session, by the path of who called it first.
            p.prosecdef OR p.prorettype = 'trigger'::regtype
                OR (SELECT l.lanname FROM pg_language AS l WHERE l.oid = p.prolang) = 'plpgsql' AS needs_a_path,
            p.proconfig AS config, p.proowner::regrole::text AS owner,
            has_function_privilege('public', p.oid, 'EXECUTE') AS is_public
        FROM pg_proc AS p WHERE p.pronamespace = 'outreach'::regnamespace
        """
    )
    await admin.close()
    path = "search_path=pg_catalog, pg_temp"
    assert {
        row["name"]: row["config"] for row in rows if row["needs_a_path"] and path not in (row["config"] or ())
    } == {}
    assert [row["name"] for row in rows if row["owner"] != "ct_owner"] == ["ct_left_the_spine"]
    assert [row["owner"] for row in rows if row["name"] == "ct_left_the_spine"] == ["ct_reader"]
    # The triggers of the tables that others write to call these as whoever writes.
    public = {"ct_is_decided", "ct_left_the_spine", "ct_first_change", "ct_acts_as_gate", "ct_require_fresh"}
    assert {row["name"] for row in rows if row["is_public"]} == public


async def test_only_the_owner_makes_something_in_the_schema(database: DatabaseDsns) -> None:
    admin = await asyncpg.connect(database.admin)
    await admin.execute("GRANT CREATE ON SCHEMA outreach TO PUBLIC, ct_gate")
    await migrate(database.admin)
    rows = await admin.fetch(
        "SELECT r.rolname FROM pg_roles AS r WHERE r.rolname LIKE 'ct\\_%' AND has_schema_privilege(r.oid,"
        " 'outreach'::regnamespace, 'CREATE')"
    )
    await admin.close()
    assert [row["rolname"] for row in rows] == ["ct_owner"]


def test_sql_names_what_ends_a_wait_as_the_gate_does() -> None:
    """A name that only one side knows is a company that nobody wakes."""
    sql = sql_files()
    texts = (*sql.functions.values(), sql.schema, files("ct_stream.store").joinpath("queries.sql").read_text("utf-8"))
    built = {kind for text in texts for kind in re.findall(r"'([a-z0-9]+):(?! )", text)}
    others = {"budget"}  # the log of the month's budget, which nobody waits for
    assert built - others <= WaitsOn.KINDS
    assert len(built & WaitsOn.KINDS) >= 7, "none was looked at"


def test_each_constructor_makes_a_kind_that_is_known() -> None:
    by_name = (make("x") for make in (WaitsOn.provider, WaitsOn.place, WaitsOn.domain, WaitsOn.tool, WaitsOn.cap))
    made = [
        *by_name,
        WaitsOn.control(ControlKind.DNS),
        WaitsOn.paid_call(UUID(int=1)),
        WaitsOn.vendor(),
        WaitsOn.spine(),
        WaitsOn.way(),
        WaitsOn.mail_from(),
        WaitsOn.other_than("dc2"),
    ]
    assert {name.partition(":")[0] for name in made} == WaitsOn.KINDS
