"""The schema stands in one place, and migrations lead to it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import uuid4

from ct_stream.store.migrate import SqlFiles, migrate, sql_files
from ct_stream.store.queries import _all
from tests.store.catalog import HELD, dump

if TYPE_CHECKING:
    from ct_stream.local.postgres import EmbeddedPostgres

#: schema.sql of the first release. It never changes: databases were made from it.
BASELINE = (HELD.parent / "baseline.sql").read_text()
#: Of the functions only the one that `migrate` calls: the others must come from this version.
FIRST = {"adoption.sql": sql_files().functions["adoption.sql"]}


async def fresh(postgres: EmbeddedPostgres, sql: SqlFiles) -> str:
    """Return the schema of a new database."""
    dsn = await postgres.create_database(f"fresh_{uuid4().hex}")
    await migrate(dsn, sql)
    return await dump(dsn)


async def upgraded(postgres: EmbeddedPostgres, sql: SqlFiles) -> str:
    """Return the schema of a database that the first release made."""
    dsn = await postgres.create_database(f"upgraded_{uuid4().hex}")
    await migrate(
        dsn, replace(sql, schema=BASELINE, migrations={}, functions=FIRST, triggers="SELECT 1", grants="SELECT 1")
    )
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
    assert [name for name in defined if f"{name}(" not in callers] == ["outreach.ct_adopt"], "migrate calls it"
