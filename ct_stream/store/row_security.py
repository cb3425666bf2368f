"""Can row security hide a company from this login? Then a missing row proves nothing.

Postgres alone knows: policies may lie below a view, which reads with its owner's rights or with the caller's. With
row_security off, a query that a policy would change is an error (PostgreSQL, "Row Security Policies").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import asyncpg

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]


async def hides_companies(connection: Connection) -> bool:
    """Return whether a policy applies when this login, which may read the spine, reads it."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("SET LOCAL row_security = off")
        await connection.fetch("SELECT s.outreach_id FROM outreach.outreach AS s LIMIT 0")
    except asyncpg.InsufficientPrivilegeError:
        return True
    finally:
        if not connection.is_closed():
            await transaction.rollback()
    return False
