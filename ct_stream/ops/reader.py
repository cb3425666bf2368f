"""Read the gate's tables for people: as ct_ops, on one connection, in read-only transactions."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Literal

from ct_stream.ops.troubles import postgres_answers
from ct_stream.store.connecting import OWN_PATH, connect
from ct_stream.store.queries import query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from ct_stream.settings import Settings

_PREFETCH = 500
COMMAND_S = 60.0  #: a distribution over millions of errors takes its time


class Reader:
    """Runs the named queries of `store/queries.sql`.

    Each in a read-only transaction of its own. That it is the session's default would not be enough: code of the users'
    tables (expressions of an index, of statistics) runs as the person who reads, and could change the default for the
    next query, in which it would resume a guardrail in that person's name.
    """

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._connection = connection

    async def rows(self, name: str, *args: Any) -> list[asyncpg.Record]:
        """Return the rows of the named query."""
        async with self._looking():
            return list(await self._connection.fetch(query(name), *args))

    async def each(self, name: str, *args: Any) -> AsyncIterator[asyncpg.Record]:
        """Yield the rows of the named query, a few thousand in memory at a time, as they were at one moment."""
        async with self._looking(isolation="repeatable_read"):
            async for row in self._connection.cursor(query(name), *args, prefetch=_PREFETCH):
                yield row

    async def pages(self, statement: str, *args: Any, size: int) -> AsyncIterator[list[asyncpg.Record]]:
        """Yield the rows of a statement, `size` at a time, as they were at one moment; the server holds the rest."""
        async with self._looking(isolation="repeatable_read"):
            cursor = await self._connection.cursor(statement, *args)
            while page := await cursor.fetch(size):
                yield page

    async def row(self, name: str, *args: Any) -> asyncpg.Record | None:
        """Return the first row of the named query."""
        async with self._looking():
            return await self._connection.fetchrow(query(name), *args)

    @asynccontextmanager
    async def _looking(
        self, *, isolation: Literal["read_committed", "repeatable_read"] = "read_committed"
    ) -> AsyncIterator[None]:
        """Read, and take back what was set on the way: a path that planted code leaves would serve the next query."""
        transaction = self._connection.transaction(isolation=isolation, readonly=True)
        await transaction.start()
        try:
            yield
        finally:
            if not self._connection.is_closed():
                await transaction.rollback()

    async def change(self, name: str, *args: Any) -> asyncpg.Record | None:
        """Run the named query, one of the few by which a person changes something; return its first row."""
        async with self._connection.transaction(isolation="read_committed"):
            return await self._connection.fetchrow(query(name), *args)


@asynccontextmanager
async def reader(settings: Settings, *, read_only: bool = True, command_s: float = COMMAND_S) -> AsyncIterator[Reader]:
    """Connect as CT_POSTGRES_OPS_DSN says; a statement gets `command_s`. Raises SettingsError or ServiceTrouble."""
    settings.require("postgres_ops_dsn")
    with postgres_answers("CT_POSTGRES_OPS_DSN"):
        assert settings.postgres_ops_dsn is not None
        connection = await connect(
            settings.postgres_ops_dsn,
            application_name="ct-stream-ops",
            command_timeout=command_s,
            # No path of a DBA's: nothing that a person reads rests on one, and what is found there runs in her name.
            session={
                "default_transaction_read_only": "on" if read_only else "off",
                "search_path": OWN_PATH,
            },
        )
        try:
            yield Reader(connection)
        finally:
            await connection.close()
