"""Brings a database up to date: the gate's tables, functions, triggers, roles and grants.

A fresh database gets `schema.sql`, the tables in their final form. An existing one gets the files of `migrations/` that
it does not have yet; the checksum of an applied file is kept, so that a later change of the file is detected.
Functions, triggers and grants are replaced each time, and their version is kept too. All this is one transaction, under
an advisory lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from ct_stream.problems import ProblemError
from ct_stream.store.adoption import adopt, without_outcome
from ct_stream.store.as_gate import CannotAct, acting_as_gate, may_act_as, membership_options
from ct_stream.store.as_migrated import fetching, triggers_altered
from ct_stream.store.connecting import connect
from ct_stream.store.fit import check_arbiter, check_fit, longest_method
from ct_stream.store.misfit import Misfit, said
from ct_stream.store.rehearsal import NO_SPINE, STATEMENTS, Rehearsal, has_spine, rehearse
from ct_stream.store.sql_files import BASELINE, OF_READER, checksum, sql_files

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from ct_stream.store.sql_files import SqlFiles

_LOCK = 0x63745F6D  # "ct_m": one migration at a time in this database
_MIN_SERVER = 15
_NOTED = ("ct_migrations", "ct_functions")  #: what this module writes to
#: An administrator must not resolve names in a schema that others may write to, and must see every row to adopt.
_SAFELY = "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL row_security = off"
#: Who waits for a table keeps all who come after it waiting, too: workers record nothing meanwhile.
_WAIT_FOR_TABLES = "SET LOCAL lock_timeout = '10s'"
#: If this process ends, so does what it asked for, and the locks go. Not every platform supports this setting.
_END_WITH_US = """
DO $$ BEGIN
    PERFORM set_config('client_connection_check_interval', '5s', true);
EXCEPTION WHEN OTHERS THEN NULL; END $$
"""
_WAIT_FOR_OTHERS = "SET LOCAL lock_timeout = '60s'"  #: other migrations, each of which takes a second
_IN_THE_WAY = """
SELECT format('process %s of %s, since %s', a.pid, coalesce(quote_ident(a.usename), a.backend_type),
    coalesce(a.xact_start, a.state_change)::timestamptz(0))
FROM pg_locks AS l
JOIN pg_stat_activity AS a ON a.pid = l.pid
LEFT JOIN pg_class AS c ON c.oid = l.relation
WHERE l.granted AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
    AND (c.relnamespace = to_regnamespace('outreach') OR l.locktype = 'advisory' AND l.objid = $1::bigint::oid)
ORDER BY l.mode = 'AccessShareLock', a.xact_start LIMIT 1  -- readers are seldom in the way
"""
_ERRORS_BOUND_BY = """
SELECT quote_ident(c.conname) FROM pg_constraint AS c
JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
WHERE c.conrelid = 'outreach.company_target_errors'::regclass AND c.contype = 'f' AND a.attname = 'outreach_id'
"""
_NOT_OWNERS = {"ct_gate": "for workers", "ct_ops": "for people"}
ROLES = ("ct_owner", "ct_gate", "ct_ops", "ct_reader")
_INHERITS = "SELECT r.rolinherit FROM pg_roles AS r WHERE r.rolname = current_user"


class MigrationError(ProblemError):
    """The database cannot be migrated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationReport:
    """What a run of `migrate` did."""

    applied: tuple[str, ...]
    adopted: int  #: companies decided earlier that got a ledger row now
    pending: int  #: company_target rows that the gate will decide
    foreign: int  #: company_target rows that were made final without an outcome, after the others were adopted
    errors_bound_by: str | None  #: the constraint because of which a NOT-FOUND has no row in company_target_errors
    longest_method: int | None  #: how many characters company_target.email_method takes; None: any method fits
    rehearsal: str  #: whether recording was rehearsed; what it met that does not fit is a MigrationError
    spine_found: bool
    temp_revoked: bool  #: from PUBLIC, now
    temp_open: bool  #: PUBLIC may make temporary objects here, and this role may not change that


def latest_migration() -> str:
    """Return the name of the newest migration, which must be applied before a worker starts."""
    return sql_files().latest_migration


def missing_part(applied: Collection[str]) -> str | None:
    """Return what a database lacks of this version, or None. `applied`: the result of the query `applied`.

    More than this version knows is fine: a worker may keep running in a database that a newer version has migrated.
    """
    if latest_migration() not in applied:
        return latest_migration()
    return None if sql_files().functions_checksum in applied else "functions"


async def migrate(admin_dsn: str, sql: SqlFiles | None = None, *, again: bool = False) -> MigrationReport:
    """Bring the database of `admin_dsn` up to date. Raises MigrationError, and then nothing has changed.

    `again`: put this version's functions back, although another version has replaced them since.
    """
    # Others' triggers run in the rehearsal. One could put a statement of its own in the place of a prepared one, to be
    # executed by the administrator.
    connection = await connect(admin_dsn, application_name="ct-stream migrate", keeps_statements=False)
    try:
        if connection.get_server_version().major < _MIN_SERVER:
            raise MigrationError(f"PostgreSQL {connection.get_server_version().major} is too old", "use 15 or newer")
        if (login := await connection.fetchval("SELECT session_user")) in _NOT_OWNERS:
            raise MigrationError(
                f"CT_POSTGRES_ADMIN_DSN has the login {login}, which is {_NOT_OWNERS[login]}",
                "it needs the owner of the schema outreach, or a superuser",
            )
        async with connection.transaction():
            await connection.execute(_SAFELY)
            await connection.execute(_END_WITH_US)
            await connection.execute(_WAIT_FOR_OTHERS)
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            await connection.execute(_WAIT_FOR_TABLES)
            return await _migrate(connection, sql or sql_files(), again=again)
    except asyncpg.LockNotAvailableError as error:
        raise await _in_the_way(connection) from error
    except Misfit as error:
        raise MigrationError(error.problem.what, error.problem.action) from error
    except asyncpg.InterfaceError as error:
        if not connection.is_closed():
            raise
        raise MigrationError(
            "the connection to Postgres was lost", "nothing has changed: see that the server answers, and migrate again"
        ) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(
            str(error), "CT_POSTGRES_ADMIN_DSN needs a role that may create roles and owns the schema outreach"
        ) from error
    finally:
        await connection.close()


async def _in_the_way(connection: asyncpg.Connection) -> MigrationError:
    """Say who holds what this waited for. Nothing has changed."""
    async with connection.transaction(readonly=True):
        await connection.execute(_SAFELY)
        who = await connection.fetchval(_IN_THE_WAY, _LOCK)
    return MigrationError(
        f"a table of schema outreach is in use, and this waited for it in vain: {who or 'it is free now'}",
        "nothing has changed: migrate again when that is done, or end it with pg_terminate_backend",
    )


async def _migrate(connection: asyncpg.Connection, sql: SqlFiles, *, again: bool) -> MigrationReport:
    await _make_roles(connection)
    await check_fit(connection)
    if await connection.fetchval("SELECT to_regclass('outreach.ct_migrations') IS NULL"):
        await _run(connection, "adopt.sql", sql.adopt)
        await _run(connection, "schema.sql", sql.schema)
        await _note(connection, {BASELINE: sql.schema, **sql.migrations})
        applied = ["schema.sql"]
    else:
        applied = await _apply_missing(connection, sql)
    applied += await _replace_functions(connection, sql, again=again)
    await _own(connection, sql)
    await _run(connection, "grants.sql", sql.grants)
    await check_arbiter(connection)
    temp_was_open = await _is_temp_open(connection)
    await _revoke_temp(connection)
    temp_open = await _is_temp_open(connection)
    adopted = await adopt(connection)
    undecided = await without_outcome(connection)
    return MigrationReport(
        applied=tuple(applied),
        adopted=adopted,
        pending=undecided["pending"],
        foreign=undecided["made_final"],
        errors_bound_by=await connection.fetchval(_ERRORS_BOUND_BY),
        longest_method=await longest_method(connection),
        rehearsal=str(await _rehearsed(connection)),
        spine_found=await connection.fetchval("SELECT to_regclass('outreach.outreach') IS NOT NULL"),
        temp_revoked=temp_was_open and not temp_open,
        temp_open=temp_open,
    )


async def _rehearsed(connection: asyncpg.Connection) -> Rehearsal:
    """Rehearse as ct_gate what workers will do, so that what does not fit is told now. Raises Misfit."""
    if not await has_spine(connection):
        return NO_SPINE
    try:
        async with acting_as_gate(connection, STATEMENTS) as actor:
            return await rehearse(connection, actor)
    except CannotAct as why:
        return Rehearsal(not_rehearsed=str(why))


async def _apply_missing(connection: asyncpg.Connection, sql: SqlFiles) -> list[str]:
    """Run the migrations that an existing database does not have yet, and return their names."""
    try:
        rows = await connection.fetch("SELECT m.name, m.checksum FROM outreach.ct_migrations AS m")
    except asyncpg.UndefinedColumnError as error:
        raise MigrationError(
            "outreach.ct_migrations is there, and is not the gate's", "rename it, and migrate again"
        ) from error
    known = {row["name"]: row["checksum"] for row in rows}
    if BASELINE not in known:
        raise MigrationError(
            "the database was made by a version from before the first release",
            "let its workers finish until `ct-stream held` is empty and nothing is unpublished, stop them, drop the "
            "ct_* tables and functions of schema outreach (CASCADE) and migrate again: what was decided is adopted. "
            "`ct-stream publish --undecided` sends those again that waited; paid attempts and halts are forgotten",
        )
    newer = sorted(set(known) - {BASELINE, *sql.migrations})
    if newer:
        raise MigrationError(
            f"the database has migration {newer[0]!r}, which this version does not know", "upgrade ct-stream"
        )
    for name, text in sql.migrations.items():
        if known.get(name, checksum(text)) != checksum(text):
            raise MigrationError(f"migration {name!r} was applied with other contents", "restore the released file")
    missing = {name: text for name, text in sql.migrations.items() if name not in known}
    for name, text in missing.items():
        await _run(connection, name, text)
    await _note(connection, missing)
    return list(missing)


async def _replace_functions(connection: asyncpg.Connection, sql: SqlFiles, *, again: bool) -> list[str]:
    """Put this version's functions and triggers in place; return what is new.

    Workers of the version before may still run, and their start may run that version's `migrate` again. It must not
    put the old functions back.
    """
    rows = await connection.fetch("SELECT f.checksum FROM outreach.ct_functions AS f ORDER BY f.ordinal")
    had = [row["checksum"] for row in rows]
    is_new = sql.functions_checksum not in had
    if not is_new and had[-1] != sql.functions_checksum:
        if not again:
            raise MigrationError(
                "another version has put its functions in place since this one did",
                "if that is a newer version, upgrade ct-stream; if an older one was migrated by accident, run "
                "`ct-stream migrate --again`",
            )
        # Noted below as the newest.
        await connection.execute("DELETE FROM outreach.ct_functions WHERE checksum = $1", sql.functions_checksum)
        is_new = True
    for name, text in sql.functions.items():
        await _run(connection, f"functions/{name}", text)
    # Only when new, or when somebody has changed one: each waits for the writers of its table.
    are_altered = bool(await triggers_altered(sql, fetching(connection)))
    if is_new or are_altered:
        await _run(connection, "triggers.sql", sql.triggers)
    if not is_new:
        return ["triggers"] if are_altered else []
    await connection.execute("INSERT INTO outreach.ct_functions (checksum) VALUES ($1)", sql.functions_checksum)
    return ["functions"]


async def _run(connection: asyncpg.Connection, name: str, text: str) -> None:
    try:
        await connection.execute(text)
    except asyncpg.UniqueViolationError as error:
        raise MigrationError(f"{name}: {error}", "make outreach_id unique in that table first") from error
    except asyncpg.InvalidFunctionDefinitionError as error:
        raise MigrationError(
            f"{name}: a function that is there has another result: {said(error)}",
            "find out who made it, drop it, and migrate again",
        ) from error
    except (asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError) as error:
        raise MigrationError(f"{name}: {said(error)}, and is not the gate's", "rename it, and migrate again") from error
    except (asyncpg.WrongObjectTypeError, asyncpg.FeatureNotSupportedError, asyncpg.DatatypeMismatchError) as error:
        raise MigrationError(
            f"{name}: a table that was there before does not fit: {said(error)}",
            "make it a plain table with the types that the README names, and migrate again",
        ) from error


async def _note(connection: asyncpg.Connection, applied: Mapping[str, str]) -> None:
    await connection.executemany(
        "INSERT INTO outreach.ct_migrations (name, checksum) VALUES ($1, $2)",
        [(name, checksum(text)) for name, text in applied.items()],
    )


async def _make_roles(connection: asyncpg.Connection) -> None:
    """Create the roles that are missing; they cannot log in until somebody gives them a password.

    Roles belong to the whole server: a DBA, or another database's owner, may have made them before.
    """
    login = await connection.fetchval("SELECT quote_ident(current_user)")
    inherits = membership_options(connection)
    grant = f"GRANT ct_owner, ct_reader, ct_gate TO {login}{inherits}"
    if not inherits and not await connection.fetchval(_INHERITS):
        grant += f"; ALTER ROLE {login} INHERIT"
    known = {row["rolname"] for row in await connection.fetch("SELECT r.rolname FROM pg_roles AS r")}
    missing = [role for role in ROLES if role not in known]
    for role in missing:
        try:
            await connection.execute(f"CREATE ROLE {role} NOLOGIN")
        except asyncpg.InsufficientPrivilegeError as error:
            roles = "; ".join(f"CREATE ROLE {role} NOLOGIN" for role in missing)
            raise MigrationError(
                f"there is no role {role}, and {login} may not create roles",
                f"have somebody who may run: {roles}; {grant}",
            ) from error
    for role in ("ct_owner", "ct_reader"):
        if await may_act_as(connection, role):
            continue
        try:
            await connection.execute(f"GRANT {role} TO CURRENT_USER{inherits}")  # to hand objects over to it
        except asyncpg.InsufficientPrivilegeError as error:
            raise MigrationError(
                f"the roles are there already, and {login} may not act as {role}",
                "have whoever made them, or a superuser, decide (who has these roles may change the outcomes of every "
                f"gate on this server) and run: {grant}",
            ) from error
        if not await may_act_as(connection, role):
            raise MigrationError(
                f"{login} has the role {role}, but not its rights: it does not inherit them",
                f"have it run, or a superuser: ALTER ROLE {login} INHERIT",
            )


async def _is_temp_open(connection: asyncpg.Connection) -> bool:
    """Return whether everybody who may connect may make temporary tables, types and functions."""
    return bool(
        await connection.fetchval(
            """
            SELECT EXISTS (
                SELECT 1 FROM pg_database AS d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS a
                WHERE d.datname = current_database() AND a.grantee = 0 AND a.privilege_type = 'TEMPORARY'
            )
            """
        )
    )


async def _revoke_temp(connection: asyncpg.Connection) -> None:
    """Let nobody create temporary objects by default: they could hide objects that another role's function uses.

    Functions already put pg_temp last for this reason; this is a second guard. Only the database's owner may set it.
    """
    statement = await connection.fetchval(
        """
        SELECT format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', d.datname) FROM pg_database AS d
        WHERE d.datname = current_database() AND pg_has_role(d.datdba, 'USAGE')
        """
    )
    if statement is not None:
        await connection.execute(statement)


async def _own(connection: asyncpg.Connection, sql: SqlFiles) -> None:
    """Make ct_owner, as whom the SECURITY DEFINER functions run, the owner of what was created, by its name.

    Others may have objects in this schema whose names begin with ct_, too: those stay theirs. The two tables that this
    module writes to are left out: an owner may put a trigger on a table, and it would run here. What ct_owner owns
    already is skipped, because each change of owner locks the table against the workers.
    """
    await connection.execute("GRANT USAGE, CREATE ON SCHEMA outreach TO ct_owner, ct_reader")
    statements = await connection.fetch(
        r"""
        SELECT format('ALTER %s %s OWNER TO ct_owner', CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END,
            c.oid::regclass) AS statement
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'outreach' AND c.relkind IN ('r', 'v') AND c.relname = ANY ($1::text[])
            AND c.relowner <> 'ct_owner'::regrole
        UNION ALL
        SELECT format('ALTER FUNCTION %s OWNER TO %s', p.oid::regprocedure, o.name)
        FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
        CROSS JOIN LATERAL (
            SELECT CASE WHEN p.proname = ANY ($3::text[]) THEN 'ct_reader' ELSE 'ct_owner' END AS name
        ) AS o
        WHERE n.nspname = 'outreach' AND p.proname = ANY ($2::text[]) AND p.proowner <> o.name::regrole
            -- Made by this transaction: an overload of somebody else's with one of our names stays theirs.
            AND p.xmin::text::bigint = pg_current_xact_id()::text::bigint % 4294967296
        """,
        [name for name in sql.made if name not in _NOTED],
        list(sql.made_functions),
        list(OF_READER),
    )
    for row in statements:
        await connection.execute(row["statement"])
    foreign = await connection.fetchval(
        "SELECT p.oid::regprocedure::text FROM pg_proc AS p WHERE p.pronamespace = 'outreach'::regnamespace"
        " AND p.proname = ANY ($1::text[]) AND p.proowner NOT IN ('ct_owner'::regrole, 'ct_reader'::regrole) LIMIT 1",
        list(sql.made_functions),
    )
    if foreign is not None:
        raise MigrationError(
            f"the function {foreign} has a name of the gate's, and is not its own", "rename or drop it"
        )
