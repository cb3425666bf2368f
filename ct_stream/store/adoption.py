"""Reads what the users' own tables said before the gate came, so that those companies count as decided.

Not with the rights of who migrates, nor with those of ct_owner: the owner of a table decides what runs when it is read.
So it is read as ct_gate (as_gate.py), a slice at a time, each in a savepoint that is rolled back; what was read is then
written by ct_owner, in whose tables only its own code runs.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

import asyncpg

from ct_stream.store.as_gate import CannotAct, acting_as_gate
from ct_stream.store.misfit import Misfit
from ct_stream.store.queries import query
from ct_stream.store.rehearsal import OneSelf

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from typing import Any

    from ct_stream.store.rehearsal import Cast

    Connection = asyncpg.Connection[asyncpg.Record]

_SLICE = 20_000  #: companies
_READ_S = 300  #: for one slice, or for a count of a table of millions on a busy server
_LAST = 2**128 - 1  #: the greatest id
_SOURCES = ("decided_before", "failed_before")
_COLUMNS = ("outreach_id", "outcome", "failure_code", "blocking_reason", "decided_at")
_OWNERS = """
SELECT bool_and(c.relowner = to_regrole(quote_ident(current_user))) FROM pg_class AS c
WHERE c.oid IN ('outreach.company_target'::regclass, 'outreach.company_target_errors'::regclass)
"""


async def adopt(connection: Connection) -> int:
    """Give each company that was decided before its ledger row, once; return how many got one. Raises Misfit."""
    if await connection.fetchval(query("is_adopted")):
        return 0
    adopted = 0
    for source in _SOURCES:
        rows = await _read(connection, source, UUID(int=0), _SLICE)
        while rows:
            adopted += await connection.fetchval(query("adopt"), *([row[name] for row in rows] for name in _COLUMNS))
            last = rows[-1]["outreach_id"].int
            is_more = len(rows) == _SLICE and last < _LAST
            rows = await _read(connection, source, UUID(int=last + 1), _SLICE) if is_more else []
    await connection.fetchval(query("end_adoption"), adopted)
    return adopted


async def without_outcome(connection: Connection) -> Mapping[str, int]:
    """Count the rows of company_target that have no outcome: `pending`, and `made_final` by others."""
    return (await _read(connection, "without_outcome"))[0]


async def _read(connection: Connection, name: str, *args: Any) -> Sequence[Mapping[str, Any]]:
    try:
        async with _reading(connection, name) as cast:
            return await cast.fetch(name, *args)
    except asyncpg.QueryCanceledError as error:
        raise Misfit(
            f"what company_target and company_target_errors say could not be read within {_READ_S} s",
            "see what else the server does, and migrate again: nothing has changed",
        ) from error
    except asyncpg.InsufficientPrivilegeError as error:  # 42501, also where row security hides rows
        raise Misfit(
            f"what company_target and company_target_errors say cannot be read: {error}",
            "switch row security off for that table while you migrate, or let a superuser ALTER ROLE ct_gate BYPASSRLS",
        ) from error


@asynccontextmanager
async def _reading(connection: Connection, name: str) -> AsyncIterator[Cast]:
    """Act as ct_gate, or, in tables of this login's own, as this login."""
    try:
        async with acting_as_gate(connection, (name,), sees_all=True) as cast:
            await connection.execute(f"SET LOCAL statement_timeout = '{_READ_S}s'")  # what its owner lets run must end
            yield cast
        return
    except CannotAct as why:
        if not await connection.fetchval(_OWNERS):
            raise Misfit(
                f"company_target and company_target_errors are read as ct_gate, and {why}",
                "have whoever made the roles, or a superuser, run that statement for this login, and migrate again",
            ) from why
    yield OneSelf(connection)
