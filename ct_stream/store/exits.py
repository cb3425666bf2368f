"""Records where workers hung.

This is kept in Postgres, because partitions move between machines, and a worker that hangs has reached Postgres before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from ct_stream.store.queries import query

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ct_stream.store.database import Database

WATCHDOG_RAIL = "watchdog"
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """The exit of a worker that hung."""

    places: Sequence[str]  #: `topic[partition] offset n`
    reason: str
    worker: str
    version: str


async def record_exit(dsn: str, ended: Exit) -> None:
    """Record an exit over a connection of its own: the pool, or its loop, may be what hangs.

    Raises OSError, TimeoutError or asyncpg.PostgresError.
    """
    connection = await asyncpg.connect(dsn, timeout=_TIMEOUT_S, command_timeout=_TIMEOUT_S)
    try:
        await connection.execute(
            query("record_exit"), list(ended.places), ended.reason[:1000], ended.worker, ended.version
        )
    finally:
        connection.terminate()


class ExitRecord:
    """Records the exits of one worker."""

    def __init__(self, dsn: str, worker: str, version: str) -> None:
        self._dsn = dsn
        self._worker = worker
        self._version = version

    async def __call__(self, places: Sequence[str], reason: str) -> None:
        """Record one, in any event loop. Raises like `record_exit`."""
        await record_exit(self._dsn, Exit(places=places, reason=reason, worker=self._worker, version=self._version))


async def hung_again(database: Database, within_s: float, most: int) -> str | None:
    """Return where at least `most` workers hung within `within_s` seconds and since a person resumed the guardrail."""
    rows = await database.persist("hung_again", within_s, most)
    if not rows:
        return None
    times, place, reason = rows[0]["exits"], rows[0]["place"], rows[0]["reason"]
    return f"a worker hung {times} times within {within_s / 60:.0f} minutes at {place}: {reason}"
