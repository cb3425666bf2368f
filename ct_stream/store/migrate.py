"""How does a database get the gate's tables, roles and grants?

SQL files in order, each once, in one transaction under an advisory lock; the checksum of an applied file is kept, so
that a changed file is found out. What stands in `always_*.sql` runs each time: grants (the spine may be new) and the
adoption of companies that were decided before the gate came.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK = 0x63745F6D  # "ct_m": one migration at a time in this database
_MIN_SERVER = 15
ROLES = ("ct_owner", "ct_gate", "ct_ops")


class MigrationError(Exception):
    """The database cannot be migrated; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationReport:
    """What a run of `migrate` did."""

    applied: tuple[str, ...]
    adopted: int  #: companies that got their ledger row now
    pending: int  #: company_target rows that the gate will decide
    spine_found: bool


def migration_files() -> Iterator[tuple[str, str]]:
    """Yield (name, SQL) of the numbered files in order."""
    folder = files("ct_stream.store").joinpath("migrations")
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.name[:4].isdigit():
            yield entry.name, entry.read_text("utf-8")


def latest_migration() -> str:
    """Return the name of the newest file, which a worker wants to find applied."""
    return max(name for name, _ in migration_files())


async def migrate(admin_dsn: str) -> MigrationReport:
    """Bring the database of `admin_dsn` up to date. Raises MigrationError; nothing is half-applied."""
    connection = await asyncpg.connect(admin_dsn, timeout=10)
    try:
        if connection.get_server_version().major < _MIN_SERVER:
            raise MigrationError(f"PostgreSQL {connection.get_server_version().major} is too old; use 15 or newer")
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            return await _migrate(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(
            f"{error}; CT_POSTGRES_ADMIN_DSN needs a role that may create roles and owns the schema outreach"
        ) from error
    finally:
        await connection.close()


async def _migrate(connection: asyncpg.Connection) -> MigrationReport:
    await _make_roles(connection)
    await connection.execute("CREATE SCHEMA IF NOT EXISTS outreach")
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS outreach.ct_migrations ("
        " name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )
    rows = await connection.fetch("SELECT m.name, m.checksum FROM outreach.ct_migrations AS m")
    known = {row["name"]: row["checksum"] for row in rows}
    ours = dict(migration_files())
    newer = sorted(set(known) - set(ours))
    if newer:
        raise MigrationError(f"the database has migration {newer[0]!r}, which this version does not know; upgrade it")
    applied = []
    for name, sql in ours.items():
        checksum = hashlib.sha256(sql.encode()).hexdigest()
        if name in known:
            if known[name] != checksum:
                raise MigrationError(f"migration {name!r} was applied with other contents; restore the released file")
            continue
        try:
            await connection.execute(sql)
        except asyncpg.UniqueViolationError as error:
            raise MigrationError(f"{name}: {error}; make outreach_id unique in that table first") from error
        await connection.execute("INSERT INTO outreach.ct_migrations (name, checksum) VALUES ($1, $2)", name, checksum)
        applied.append(name)
    adopted = await connection.execute(_always("always_adopt.sql"))
    await _own(connection)
    await connection.execute(_always("always_grants.sql"))
    pending = await connection.fetchval(
        "SELECT count(*) FROM outreach.company_target AS t WHERE t.execution_status = 'pending'"
    )
    spine = await connection.fetchval("SELECT to_regclass('outreach.outreach') IS NOT NULL")
    return MigrationReport(applied=tuple(applied), adopted=int(adopted.split()[-1]), pending=pending, spine_found=spine)


async def _make_roles(connection: asyncpg.Connection) -> None:
    """Make the three roles where they are missing; they cannot log in until somebody gives them a password."""
    for role in ROLES:
        if not await connection.fetchval("SELECT 1 FROM pg_roles AS r WHERE r.rolname = $1", role):
            await connection.execute(f"CREATE ROLE {role} NOLOGIN")
    if not await connection.fetchval("SELECT r.rolsuper FROM pg_roles AS r WHERE r.rolname = current_user"):
        await connection.execute("GRANT ct_owner TO CURRENT_USER")  # to hand objects over to it


async def _own(connection: asyncpg.Connection) -> None:
    """Give what the migrations made to ct_owner, as whom the SECURITY DEFINER functions run."""
    await connection.execute("GRANT USAGE, CREATE ON SCHEMA outreach TO ct_owner")
    statements = await connection.fetch(
        r"""
        SELECT format('ALTER %s %s OWNER TO ct_owner', CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END,
            c.oid::regclass) AS statement
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'outreach' AND c.relkind IN ('r', 'v') AND c.relname LIKE 'ct\_%'
        UNION ALL
        SELECT format('ALTER FUNCTION %s OWNER TO ct_owner', p.oid::regprocedure)
        FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
        WHERE n.nspname = 'outreach' AND (p.proname LIKE 'ct\_%' OR p.proname = 'resume_guardrail')
        """
    )
    for row in statements:
        await connection.execute(row["statement"])


def _always(name: str) -> str:
    return files("ct_stream.store").joinpath("migrations", name).read_text("utf-8")
