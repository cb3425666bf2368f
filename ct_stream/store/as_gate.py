"""Lets the administrator's connection run the gate's statements with the rights of ct_gate.

Whoever owns a table decides what runs when it is read or written: expressions of an index or of statistics, triggers.
SET ROLE alone would not keep the administrator's rights from that code, which could RESET ROLE. In a function that runs
as its owner (SECURITY DEFINER) Postgres refuses that. So each statement becomes such a function of ct_gate, and the
savepoint that is rolled back takes away the function and whatever that code left for later: settings of the session,
events of deferred triggers, which would run as the administrator.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from ct_stream.store.connecting import OWN_PATH, without_own_schema
from ct_stream.store.misfit import OF_REHEARSAL, Misfit, explain, said
from ct_stream.store.queries import ON_LOGINS_PATH, query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

_SETTLE = "settle"

#: The search_path that a login as ct_gate gets: triggers may rest on it.
_PATH = """
SELECT coalesce(
    (
        SELECT split_part(c, '=', 2)
        FROM pg_db_role_setting AS s
        LEFT JOIN pg_roles AS r ON r.oid = s.setrole
        LEFT JOIN pg_database AS d ON d.oid = s.setdatabase,
        unnest(s.setconfig) AS c
        WHERE c LIKE 'search\\_path=%' AND coalesce(r.rolname, 'ct_gate') = 'ct_gate'
            AND coalesce(d.datname, current_database()) = current_database()
        ORDER BY s.setrole = 0, s.setdatabase = 0 LIMIT 1
    ),
    (SELECT s.reset_val FROM pg_settings AS s WHERE s.name = 'search_path')
)
"""
_MAKE = """
CREATE FUNCTION outreach.{name}({inputs}) RETURNS {result} LANGUAGE sql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = {row_security} AS {body}
"""


#: To give objects to a role, and to change them then. From 16 on, a member may have one right without the other.
_MAY_ACT_AS = """
SELECT pg_has_role($1, 'USAGE') AND pg_has_role(
    $1, CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END
)
"""


class CannotAct(Exception):
    """This login may not run anything as ct_gate; the message says why."""


async def may_act_as(connection: asyncpg.Connection[asyncpg.Record], role: str) -> bool:
    """Return whether this login may give objects to `role`, which exists, and change those that it has."""
    return bool(await connection.fetchval(_MAY_ACT_AS, role))


def membership_options(connection: asyncpg.Connection[asyncpg.Record]) -> str:
    """Return what to add to a GRANT of a role, so that its member may act as it.

    From 16 on, a login that does not inherit by itself is given that with the role.
    """
    return " WITH INHERIT TRUE, SET TRUE" if connection.get_server_version().major >= 16 else ""


class AsGate:
    """Runs some named statements as ct_gate."""

    def __init__(
        self, connection: asyncpg.Connection[asyncpg.Record], names: Sequence[str], *, sees_all: bool = False
    ) -> None:
        """`sees_all`: row security that hides rows is an error, as for the administrator."""
        self._connection = connection
        self._names = names
        self._row_security = "off" if sees_all else "on"
        self._inputs: dict[str, Sequence[str]] = {}  #: the types of each statement's parameters
        self._made: set[tuple[Any, ...]] = set()

    async def fetch(self, name: str, *args: Any) -> Sequence[Mapping[str, Any]]:
        """Run a named statement."""
        places = ", ".join(f"${n}::{kind}" for n, kind in enumerate(self._inputs[name], 1))
        await self._require_untouched()
        rows = await self._connection.fetch(f"SELECT * FROM outreach.{OF_REHEARSAL}{name}({places})", *args)
        return [dict(row) for row in rows]

    async def settle(self) -> None:
        """Check deferred constraints, and run deferred triggers."""
        await self._require_untouched()
        await self._connection.fetch(f"SELECT * FROM outreach.{OF_REHEARSAL}{_SETTLE}()")

    async def _require_untouched(self) -> None:
        """Raise Misfit if code that ran as ct_gate has changed our functions: it owns them, too.

        It could make one run as whoever calls it.
        """
        await self._connection.execute("SET LOCAL search_path = pg_catalog, pg_temp")  # it may have set another
        if await self._functions() != self._made:
            raise Misfit(
                "code that belongs to the users' tables changed a function of the rehearsal while that ran",
                "look through the triggers, index expressions and extended statistics of outreach.company_target, "
                "outreach.company_target_errors and outreach.outreach: somebody tries to get this login's rights",
            )

    async def _functions(self) -> set[tuple[Any, ...]]:
        rows = await self._connection.fetch(
            "SELECT p.oid, p.xmin::text, p.ctid::text FROM pg_proc AS p"
            " WHERE p.pronamespace = 'outreach'::regnamespace AND starts_with(p.proname, $1)",
            OF_REHEARSAL,
        )
        return {tuple(row) for row in rows}

    async def make(self) -> None:
        """Make the functions. Raises CannotAct or Misfit."""
        path = without_own_schema(await self._connection.fetchval(_PATH))
        if planted := await self._functions():
            raise Misfit(
                f"{len(planted)} functions of schema outreach have names that begin with {OF_REHEARSAL}",
                "find out who made them, and drop them: they would be called in the place of the gate's statements",
            )
        try:
            if not await may_act_as(self._connection, "ct_gate"):
                await self._connection.execute(f"GRANT ct_gate TO CURRENT_USER{membership_options(self._connection)}")
            await self._connection.execute("GRANT CREATE ON SCHEMA outreach TO ct_gate")
            await self._make(_SETTLE, (), (), "SET CONSTRAINTS ALL IMMEDIATE", path)
        except asyncpg.InsufficientPrivilegeError as error:
            raise CannotAct(
                f"this login may not act as ct_gate ({said(error)}); with GRANT ct_gate TO this login it would"
            ) from error
        for name in self._names:
            try:
                statement = await self._connection.prepare(query(name))
                await self._make(
                    name,
                    [kind.oid for kind in statement.get_parameters()],
                    [(column.name, column.type.oid) for column in statement.get_attributes()],
                    query(name).rstrip(";"),
                    path if name in ON_LOGINS_PATH else OWN_PATH,
                )
            except asyncpg.PostgresError as error:
                raise explain(error, f"the gate's statement {name}") from error
        await self._connection.execute("REVOKE CREATE ON SCHEMA outreach FROM ct_gate")
        self._made = await self._functions()

    async def _make(
        self, name: str, inputs: Sequence[int], outputs: Sequence[tuple[str, int]], text: str, path: str
    ) -> None:
        kinds = [*inputs, *(oid for _, oid in outputs)]
        names = await self._connection.fetchval(
            "SELECT array_agg(format_type(o, NULL) ORDER BY n) FROM unnest($1::oid[]) WITH ORDINALITY AS u (o, n)",
            kinds,
        )
        given, returned = (names or [])[: len(inputs)], (names or [])[len(inputs) :]
        self._inputs[name] = given
        columns = ", ".join(f'"{name}" {kind}' for (name, _), kind in zip(outputs, returned, strict=True))
        body = await self._connection.fetchval(
            "SELECT quote_literal(format('SELECT pg_catalog.set_config(%L, %L, true); %s',"
            " 'search_path', $1::text, $2::text))",
            path,
            text,
        )
        made = _MAKE.format(
            name=OF_REHEARSAL + name,
            inputs=", ".join(given),
            result=f"TABLE ({columns})" if columns else "void",
            body=body,
            row_security=self._row_security,
        )
        await self._connection.execute(made)
        await self._connection.execute(
            f"ALTER FUNCTION outreach.{OF_REHEARSAL}{name}({', '.join(given)}) OWNER TO ct_gate"
        )


@asynccontextmanager
async def acting_as_gate(
    connection: asyncpg.Connection[asyncpg.Record], names: Sequence[str], *, sees_all: bool = False
) -> AsyncIterator[AsGate]:
    """Act as ct_gate within a savepoint that is rolled back. Raises CannotAct or Misfit."""
    savepoint = connection.transaction()
    await savepoint.start()
    try:
        actor = AsGate(connection, names, sees_all=sees_all)
        await actor.make()
        yield actor
    finally:
        if not connection.is_closed():
            await savepoint.rollback()
