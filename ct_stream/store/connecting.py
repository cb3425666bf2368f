"""Connects to Postgres as people have it: directly, or through a pooler such as PgBouncer.

A pooler in session mode behaves like Postgres, but takes few startup parameters, so settings are made after the
connection. In transaction mode each statement may meet another session. Prepared statements then vanish or belong to
somebody else, so that mode is told apart and refused.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

import asyncpg

from ct_stream.problems import ProblemError
from ct_stream.store.outage import ANY_TROUBLE

if TYPE_CHECKING:
    from collections.abc import Mapping

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

CONNECT_S = 10.0


class UnusablePooler(ProblemError):
    """The way to Postgres leads through a pooler that gives each statement another session."""


class WrongLogin(ProblemError):
    """This login is not the gate's."""


#: What a DBA may have set for a login, and our statements rest on. A day has 24 hours: asyncpg sends 24 hours as a day,
#: and Postgres reads a day in the session's time zone. Limits count what others have committed meanwhile.
_OURS = {
    "TimeZone": "UTC",
    "DateStyle": "iso, mdy",
    "default_transaction_isolation": "read committed",
    "standard_conforming_strings": "on",
}
#: What to do where sessions_at_once finds too few.
MORE_SESSIONS = "lower CT_POSTGRES_CONNECTIONS, or raise what limits them (of PgBouncer: default_pool_size)"
#: A value of each type of array that our statements use.
_ARRAYS = "SELECT " + ", ".join(
    f"'{{}}'::{kind}[]" for kind in ("bigint", "boolean", "bytea", "float8", "integer", "text", "timestamptz", "uuid")
)
#: The path on which nobody else's functions are found.
OWN_PATH = "pg_catalog, pg_temp"
_ROUNDS = 4  #: of looks whether a session stays the same while another one works
_TRANSACTION_MODE = UnusablePooler(
    "leads to a pooler in transaction mode, where each statement may meet another session",
    "use session mode for ct-stream (PgBouncer: pool_mode=session for its database or user), or name Postgres itself",
)


async def connect(
    dsn: str,
    *,
    application_name: str,
    command_timeout: float | None = None,
    session: Mapping[str, str] | None = None,
    keeps_statements: bool = True,
) -> Connection:
    """Connect, and make these settings of the session. `keeps_statements`: prepared statements are used again.

    Raises OSError, asyncpg.PostgresError, or UnusablePooler if the way leads through a pooler in transaction mode.
    """
    await refuse_transaction_mode(dsn)
    connection: Connection = await asyncpg.connect(
        dsn,
        timeout=CONNECT_S,
        command_timeout=command_timeout,
        statement_cache_size=100 if keeps_statements else 0,
        server_settings={"application_name": application_name},
    )
    try:
        await set_up(connection, session)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def set_up(
    connection: Connection | asyncpg.pool.PoolConnectionProxy[asyncpg.Record], session: Mapping[str, str] | None = None
) -> None:
    """Make the settings of a session, ours and those of `session`. Not by startup parameters: a pooler refuses some.

    synchronous_commit is only raised: a DBA's stronger setting stays.
    """
    made = _OURS | dict(session or {})
    path = str(await connection.fetchval("SHOW search_path"))
    # First of all: what follows must not call functions of somebody who may set this database's path.
    await connection.execute(f"SET search_path = {OWN_PATH}")
    await connection.set_type_codec(
        "timestamptz", schema="pg_catalog", encoder=_from_moment, decoder=_to_moment, format="tuple"
    )
    # asyncpg asks the catalog about an array type at its first use, and calls functions by the path of then. All else
    # that we use is built into it.
    await connection.fetchval(_ARRAYS)
    made.setdefault("search_path", without_own_schema(path))
    await connection.execute(
        "SELECT set_config(s.name, s.value, false) FROM unnest($1::text[], $2::text[]) AS s (name, value)"
        " WHERE s.name <> 'synchronous_commit' OR current_setting(s.name) IN ('off', 'local')",
        list(made),
        list(made.values()),
    )


_BEGIN = datetime(2000, 1, 1, tzinfo=UTC)  #: from when Postgres counts
_MOMENT = timedelta(microseconds=1)
_FIRST, _LAST = (
    (datetime.min.replace(tzinfo=UTC) - _BEGIN) // _MOMENT,
    (datetime.max.replace(tzinfo=UTC) - _BEGIN) // _MOMENT,
)
#: What `_to_moment` returns for the infinities, and for times near them.
_ENDLESS = {_FIRST: -(2**63), _LAST: 2**63 - 1}


def _to_moment(microseconds: tuple[int]) -> datetime:
    """Return a time, or the nearest one that Python can show: one row must not keep all others from being read."""
    return _BEGIN + min(max(microseconds[0], _FIRST), _LAST) * _MOMENT


def _from_moment(moment: datetime) -> tuple[int]:
    microseconds = (moment - _BEGIN) // _MOMENT
    return (_ENDLESS.get(microseconds, microseconds),)


def without_own_schema(path: str) -> str:
    """Return a search_path without `"$user"`: whoever may make schemas could make the one with a login's name.

    Nor does it name pg_catalog, which is searched first then. Otherwise a DBA's path stays: triggers of the users'
    tables may rest on it.
    """
    names = re.findall(r'"(?:[^"]|"")*"|[^",\s]+', path)
    kept = [
        name
        for name in names
        if name not in ('"$user"', '"pg_catalog"') and name.lower() not in ("$user", "pg_catalog")
    ]
    return ", ".join(kept) or "pg_catalog"


async def refuse_transaction_mode(dsn: str) -> None:
    """Raise UnusablePooler if the way to Postgres leads through a pooler in transaction mode.

    A pooler gives a connection a process id of its own invention. Where the two agree, there is none.
    """
    first = await _plain(dsn)
    try:
        if first.get_server_pid() == await first.fetchval("SELECT pg_catalog.pg_backend_pid()"):
            return
        second = await _plain(dsn)
        try:
            if not await _keeps_its_session(first, second):
                raise _TRANSACTION_MODE
        finally:
            await _close(second)
    except (
        asyncpg.InvalidSQLStatementNameError,  # a prepared statement is in another session,
        asyncpg.DuplicatePreparedStatementError,  # or somebody else's is in this one
    ) as error:
        raise _TRANSACTION_MODE from error
    except (asyncpg.ProtocolViolationError, asyncpg.ConnectionDoesNotExistError) as error:
        if "statement pooling mode" not in str(error):
            raise
        raise _TRANSACTION_MODE from error
    finally:
        await _close(first)


async def refuse_other_logins(dsn: str) -> None:
    """Raise WrongLogin if this login does not have the rights of ct_gate. Before the first migrate nobody has them."""
    connection = await _plain(dsn)
    try:
        row = await connection.fetchrow(
            "SELECT pg_catalog.quote_ident(session_user) AS login,"
            " pg_catalog.pg_has_role(g.oid, 'USAGE') AS is_gate, pg_catalog.pg_has_role(g.oid, 'MEMBER') AS is_member,"
            " (SELECT pg_catalog.pg_has_role(p.oid, 'USAGE') FROM pg_catalog.pg_roles AS p"
            " WHERE p.rolname OPERATOR(pg_catalog.=) 'ct_ops')"
            " AS is_people FROM pg_catalog.pg_roles AS g WHERE g.rolname OPERATOR(pg_catalog.=) 'ct_gate'"
        )
    finally:
        await _close(connection)
    if row is None or row["is_gate"]:
        return
    login = row["login"]
    if row["is_member"]:
        raise WrongLogin(
            f"has the login {login}, which does not inherit the rights of its role ct_gate",
            f"ALTER ROLE {login} INHERIT (from PostgreSQL 16 on also GRANT ct_gate TO {login} WITH INHERIT TRUE)",
        )
    if row["is_people"]:
        raise WrongLogin(f"has the login {login}, which is for people (ct_ops)", "name the gate's login, ct_gate")
    raise WrongLogin(
        f"has the login {login}, which does not have the role ct_gate",
        f"name the gate's login, or GRANT ct_gate TO {login}",
    )


async def sessions_at_once(dsn: str, wanted: int) -> int:
    """Return how many of the wanted sessions answer while all of them are open. Raises the first error.

    A pooler keeps a connection waiting until it has a session for it.
    """
    if wanted <= 0:
        return 0
    opening = [asyncio.create_task(_plain(dsn)) for _ in range(wanted)]
    answers: list[asyncio.Task[Any]] = []
    try:
        done, _ = await asyncio.wait(opening, timeout=CONNECT_S)
        opened = [task.result() for task in done]
        answers = [asyncio.create_task(connection.fetchval("SELECT 1")) for connection in opened]
        answered, waiting = await asyncio.wait(answers, timeout=CONNECT_S) if answers else (set(), set())
        for task in waiting:
            task.cancel()
        return sum(task.exception() is None for task in answered)
    finally:
        for task in (*opening, *answers):
            task.cancel()
        await asyncio.gather(*answers, return_exceptions=True)
        ends = await asyncio.gather(*opening, return_exceptions=True)
        await asyncio.gather(*(_close(end) for end in ends if not isinstance(end, BaseException)))


async def _keeps_its_session(first: Connection, second: Connection) -> bool:
    """Return whether the first connection meets one session only, and the second one never meets it.

    A pooler that hands out its newest session gives it to the second connection; one that takes turns gives the first
    connection another session with each statement.
    """
    mark = uuid4().hex
    sessions = set()
    for _ in range(_ROUNDS):
        await first.fetchval("SELECT pg_catalog.set_config('ct_stream.session', $1, false)", mark)
        async with second.transaction():
            if await second.fetchval("SELECT pg_catalog.current_setting('ct_stream.session', true)") == mark:
                return False
            if await first.fetchval("SELECT pg_catalog.current_setting('ct_stream.session', true)") != mark:
                return False
        sessions |= {await first.fetchval("SELECT pg_catalog.pg_backend_pid()") for _ in range(3)}
    return len(sessions) == 1


async def _plain(dsn: str) -> Connection:
    connection: Connection = await asyncpg.connect(
        dsn, timeout=CONNECT_S, command_timeout=CONNECT_S, statement_cache_size=0
    )
    return connection


async def _close(connection: asyncpg.Connection[Any]) -> None:
    with suppress(*ANY_TROUBLE):
        await connection.close(timeout=1)
