"""May each login do what its commands do, and nothing more? Is the database fit to hold outcomes?"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

from ct_stream.ops.doctor.part import Check, Part, Seen, verdict
from ct_stream.ops.troubles import postgres_answers
from ct_stream.settings import variable
from ct_stream.store.as_migrated import compare, fetching
from ct_stream.store.connecting import MORE_SESSIONS, OWN_PATH, connect, refuse_other_logins, sessions_at_once
from ct_stream.store.migrate import ROLES, latest_migration, missing_part
from ct_stream.store.misfit import Misfit
from ct_stream.store.outage import no_triggers
from ct_stream.store.queries import query
from ct_stream.store.rehearsal import rehearse
from ct_stream.store.row_security import hides_companies
from ct_stream.store.worker_record import ALIVE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from ct_stream.settings import Settings

_MIN_POSTGRES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class _Login:
    """A connection as one of the three logins."""

    setting: str  #: the variable that names it
    connection: asyncpg.Connection[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _GateLogin(_Login):
    """The gate's connection, with what the server says of it."""

    dsn: str
    most_connections: int  #: of a worker
    seen: asyncpg.Record  #: the row of the query doctor_server


def _login(field: str) -> Callable[[Settings], AbstractAsyncContextManager[_Login]]:
    @asynccontextmanager
    async def connected(settings: Settings) -> AsyncIterator[_Login]:
        setting = variable(field)
        with postgres_answers(setting):
            connection = await connect(
                getattr(settings, field), application_name="ct-stream doctor", session={"search_path": OWN_PATH}
            )
            try:
                yield _Login(setting=setting, connection=connection)
            finally:
                await connection.close()

    return connected


@asynccontextmanager
async def _gate_login(settings: Settings) -> AsyncIterator[_GateLogin]:
    with postgres_answers(variable("postgres_dsn")):
        await refuse_other_logins(settings.postgres_dsn or "")
    async with _login("postgres_dsn")(settings) as login:
        row = await login.connection.fetchrow(query("doctor_server"))
        assert row is not None
        yield _GateLogin(
            setting=login.setting,
            connection=login.connection,
            dsn=settings.postgres_dsn or "",
            most_connections=settings.postgres_connections,
            seen=row,
        )


# ---------------------------------------------------------------- the gate's login


async def _version(gate: _GateLogin) -> Check:
    major = gate.connection.get_server_version().major
    seen = f"version {major}, login {gate.seen['login']}"
    action = f"use PostgreSQL {_MIN_POSTGRES} or newer"
    return verdict("Postgres", ok=major >= _MIN_POSTGRES, good=seen, bad=seen, action=action)


async def _primary(gate: _GateLogin) -> Check:
    if gate.seen["in_recovery"] or gate.seen["read_only"] == "off":
        return verdict(
            "primary",
            ok=not gate.seen["in_recovery"],
            good="the server is a primary",
            bad="the server is a standby",
            action=f"name the primary in {gate.setting}",
        )
    return Check(
        name="primary",
        ok=False,
        detail="the server, or the login, is read-only: default_transaction_read_only is on",
        action=f"name the primary in {gate.setting}; if it is the primary, ALTER ROLE {gate.seen['login']} RESET "
        "default_transaction_read_only, or the same for the database",
    )


async def _triggers(gate: _GateLogin) -> Check:
    problem = no_triggers(gate.seen["login"]).problem
    return verdict(
        "triggers",
        ok=not gate.seen["is_replica"],
        good="they run for what the gate's login writes",
        bad=problem.what,
        action=problem.action,
    )


async def _connections(gate: _GateLogin) -> Check:
    """A pooler, or a limit of the login, may give a worker fewer than it opens. Workers have theirs already."""
    name, most = "connections", gate.most_connections
    others = await gate.connection.fetchval(
        "SELECT count(*) FROM pg_catalog.pg_stat_activity AS a"
        " WHERE a.usename = session_user AND a.pid <> pg_catalog.pg_backend_pid()"
    )
    if others:
        return Check(name=name, ok=None, detail=f"not tried: this login has {others} other sessions")
    for more_tries in (2, 1, 0):
        try:
            opened = 1 + await sessions_at_once(gate.dsn, most - 1)
            break
        except asyncpg.TooManyConnectionsError as error:
            if not more_tries:
                return Check(name=name, ok=False, detail=f"fewer than {most}: {error}", action=MORE_SESSIONS)
        await asyncio.sleep(0.5)  # sessions of the checks before may not have ended yet
    return verdict(
        name,
        ok=opened >= most,
        good=f"{most} at once, as many as a worker opens",
        bad=f"only {opened} of the {most} that a worker opens could be used at the same time",
        action=MORE_SESSIONS,
    )


async def _autovacuum(gate: _GateLogin) -> Check:
    return verdict(
        "autovacuum",
        ok=gate.seen["autovacuum"],
        good="on",
        bad="off: statements become slower and slower",
        action="set autovacuum and track_counts to on in postgresql.conf, and reload it",
    )


async def _roles(gate: _GateLogin) -> Check:
    missing = [role for role in ROLES if role not in gate.seen["roles"]]
    return verdict(
        "roles",
        ok=not missing,
        good=", ".join(ROLES),
        bad=f"missing: {', '.join(missing)}",
        action="run `ct-stream migrate`",
    )


async def _schema(gate: _GateLogin) -> Check:
    migrate = "run `ct-stream migrate`"
    try:
        applied = {row["part"] for row in await gate.connection.fetch(query("applied"))}
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.InsufficientPrivilegeError) as error:
        return Check(name="schema", ok=False, detail=str(error), action=migrate)
    lacking = missing_part(applied)
    return verdict(
        "schema",
        ok=lacking is None,
        good=f"{latest_migration()} is applied",
        bad=f"older than this version, {lacking} is missing",
        action=migrate,
    )


async def _spine(gate: _GateLogin) -> Check:
    if not gate.seen["spine"]:
        return Check(
            name="spine",
            ok=False,
            detail="outreach.outreach is missing, or this login may not see it",
            action="have upstream make it, then run `ct-stream migrate` for the grants",
        )
    return verdict(
        "spine",
        ok=gate.seen["reads_domain"],
        good="outreach_id and domain can be read",
        bad="outreach_id and domain cannot be read",
        action="run `ct-stream migrate`, which grants it",
    )


async def _sovereign_id(gate: _GateLogin) -> Seen:
    if not gate.seen["spine"]:
        return ()
    tables = gate.seen["reads_sovereign_id"]
    return verdict(
        "sovereign_id",
        ok=not tables,
        good="cannot be read by the gate's login",
        bad=f"can be read by the gate's login in {', '.join(f'outreach.{table}' for table in tables)}",
        action="run `ct-stream migrate`; if it stays, use a login that has ct_gate's rights only",
    )


async def _cl_schema(gate: _GateLogin) -> Seen:
    if not gate.seen["spine"]:
        return ()
    return verdict(
        "CL schema",
        ok=not gate.seen["uses_cl"],
        good="is closed to the gate's login",
        bad="is open to the gate's login",
        action="revoke USAGE on schema cl from this login",
    )


async def _row_security(gate: _GateLogin) -> Seen:
    if not gate.seen["spine"] or not gate.seen["reads_domain"]:
        return ()
    return verdict(
        "row security",
        ok=not await hides_companies(gate.connection),
        good="hides nothing",
        bad="of the spine, or of a table below it, may hide rows from the gate's login",
        action="exempt that login, or the view's owner, from it",
    )


async def _rehearsal(gate: _GateLogin) -> Seen:
    """Rehearse recording as a worker does, where the schema is there."""
    if not gate.seen["spine"] or (await _schema(gate)).ok is False:
        return ()
    try:
        rehearsal = await rehearse(gate.connection)
    except Misfit as error:
        return Check(name="recording", ok=False, detail=error.problem.what, action=error.problem.action)
    return Check(name="recording", ok=None if rehearsal.not_rehearsed else True, detail=str(rehearsal))


async def _public(gate: _GateLogin) -> Seen:
    if not gate.seen["public_is_open"]:
        return ()
    return Check(
        name="schema public",
        ok=None,
        detail="everybody may create functions in it, as in databases from before PostgreSQL 15. Such a function runs "
        "as whoever calls it by mistake, the gate too",
        action="REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    )


async def _objects(gate: _GateLogin) -> Seen:
    """Look whether the gate's login may make views and functions of its own.

    By a column's default in such a view it could write columns that it has no right on. Our own columns are guarded
    against that by triggers, others' columns are not.
    """
    schemas = [name for name in gate.seen["creates_in"] if name != "public" or not gate.seen["public_is_open"]]
    places = [f"in schema {name}" for name in schemas]
    remedies = [f"REVOKE CREATE ON SCHEMA {name} FROM PUBLIC, or from the role that has it" for name in schemas]
    if gate.seen["creates_temporary"]:
        places.append("temporary ones")
        remedies.append(
            f"REVOKE TEMPORARY ON DATABASE {gate.seen['database']} FROM PUBLIC, or from the role that has it"
        )
    if not places:
        return ()
    return Check(
        name="objects",
        ok=None,
        detail=f"the gate's login may create views and functions ({', '.join(places)}). It needs none, and by a view "
        "it could write your own columns of company_target",
        action="; ".join(remedies),
    )


async def _guards(gate: _GateLogin) -> Seen:
    if (await _schema(gate)).ok is False:
        return ()
    found = await compare(fetching(gate.connection))
    bad = [Check(name="guards", ok=False, detail=one.what, action=one.action) for one in found.altered]
    if not found.is_whole:
        return [*bad, Check(name="guards", ok=None, detail="another version of ct-stream has migrated last")]
    if not bad:
        return Check(name="guards", ok=True, detail="triggers, functions and rights are as `migrate` made them")
    return bad


async def _addresses(gate: _GateLogin) -> Seen:
    """Compare the egress names of the running workers with the addresses as which controls' servers saw them."""
    if (await _schema(gate)).ok is False:
        return ()
    rows = await gate.connection.fetch(query("addresses"), ALIVE_S)
    by_name: dict[str, dict[str, str]] = {}
    by_address: dict[str, dict[str, str]] = {}
    for row in rows:
        by_name.setdefault(row["egress"], {})[row["address"]] = row["worker"]
        by_address.setdefault(row["address"], {})[row["egress"]] = row["worker"]
    mixed = [
        Check(
            name=f"egress {name}",
            ok=None,
            detail="its workers were seen with different addresses: "
            + ", ".join(f"{address} (worker {worker})" for address, worker in sorted(seen.items()))
            + ". What servers think of one of them halts or closes all of them",
            action="give the workers behind each address a CT_EGRESS of its own, unless one worker's address changes",
        )
        for name, seen in by_name.items()
        if len(seen) > 1
    ]
    split = [
        Check(
            name=f"address {address}",
            ok=None,
            detail=f"it has several names: egress {', '.join(sorted(names))}. The refusals of each are counted apart, "
            "so it is halted later than it should be",
        )
        for address, names in by_address.items()
        if len(names) > 1
    ]
    return [*mixed, *split]


POSTGRES_GATE = Part(
    name="Postgres, gate",
    setting="postgres_dsn",
    connect=_gate_login,
    checks=(
        _version,
        _primary,
        _triggers,
        _connections,
        _autovacuum,
        _roles,
        _schema,
        _spine,
        _sovereign_id,
        _cl_schema,
        _row_security,
        _rehearsal,
        _addresses,
        _objects,
        _guards,
        _public,
    ),
)


# ---------------------------------------------------------------- the other two logins


async def _people_connect(login: _Login) -> Check:
    return Check(name="Postgres, people", ok=True, detail=f"the login of {login.setting} works")


async def _migrations_connect(login: _Login) -> Check:
    return Check(name="Postgres, migrations", ok=True, detail=f"the login of {login.setting} works")


POSTGRES_PEOPLE = Part(
    name="Postgres, people",
    setting="postgres_ops_dsn",
    needed_by="show, held, failures and the like",
    connect=_login("postgres_ops_dsn"),
    checks=(_people_connect,),
)
POSTGRES_MIGRATIONS = Part(
    name="Postgres, migrations",
    setting="postgres_admin_dsn",
    needed_by="migrate",
    connect=_login("postgres_admin_dsn"),
    checks=(_migrations_connect,),
)
