"""The connections to Postgres, whether outcomes may be written to it, and its clock.

It must be a durable primary with the ledger that we know. Everything waits, and the worker says so, if the server is in
recovery or read-only, if the ledger has another epoch, or if it has fewer outcomes than we have seen (a restored
backup).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import asyncpg

from ct_stream.store.connecting import (
    CONNECT_S,
    MORE_SESSIONS,
    OWN_PATH,
    refuse_other_logins,
    refuse_transaction_mode,
    sessions_at_once,
    set_up,
    without_own_schema,
)
from ct_stream.store.migrate import missing_part
from ct_stream.store.outage import AGAIN, ANY_TROUBLE, OUTAGE, UnfitDatabase, no_triggers, sentence_of
from ct_stream.store.queries import meets_users, query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from uuid import UUID

    from ct_stream.store.connecting import Connection

log = logging.getLogger(__name__)

_Lent: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
_Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

Found = TypeVar("Found")

_COMMAND_TIMEOUT_S = 15.0
_ACQUIRE_S = 10.0  #: to get a connection from the pool, and to return one after a broken statement
_JUMP_S = 20.0  #: a smaller difference may come from a late answer: a statement has 15 s
_RETRY_FIRST_S, _RETRY_MOST_S = 0.2, 5.0
_FAILING_S = 5.0  #: for so long a statement may fail before people are told
_FORGOTTEN_S = 60.0  #: much longer than a time-out and a pause
_AGAIN_S = 0.05  #: after a deadlock that we lost
_LONG_SILENCE_S = 15.0  #: of Postgres; workers that live say so every 5 s, and look dead after 30 s
POOL_SIZE = 8


@dataclass(slots=True)
class _Failing:
    """A query or queue that fails again and again."""

    since: float  #: monotonic
    failed_at: float = 0.0  #: monotonic
    sentence: str | None = None
    times: int = 0


class Database:
    """Connections to the primary, with its state as a sentence for people.

    They are two pools. A statement that meets the users' tables runs code of their owners: triggers, expressions of
    indexes and statistics, views. Such code may leave things behind in its session (a path, a prepared statement, a
    temporary table), so no statement that halts, counts or publishes ever shares a session with it (ADR-030).
    """

    def __init__(self, dsn: str, *, application_name: str = "ct-stream", pool_size: int = POOL_SIZE) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self.most_connections = max(2, pool_size)
        self._pools: dict[bool, _Pool] = {}  #: by whether their sessions meet the users' tables
        self._has_room = False  #: whether we have tried using all connections at once
        self._up = asyncio.Event()
        self._epoch: UUID | None = None
        self._seen_ordinal = 0
        self._clock_base: tuple[datetime, float] | None = None
        self._jumps: deque[tuple[datetime, float]] = deque(maxlen=100)  # (the time after it, seconds ahead)
        self._watched_since = time.monotonic()
        self._failing: dict[str, _Failing] = {}  #: by query or queue
        self._retrying = 0  #: how many wait for the database
        self._is_closed = False
        self._probe_lock = asyncio.Lock()
        self._returning: set[asyncio.Task[None]] = set()
        self.failed_at = -inf  #: when a statement last met an outage, however short (monotonic)
        self._heard_at = -inf  # its last answer (monotonic)
        self._heard_since = inf  # its first answer since a long silence
        self._down: str | None = "not connected to Postgres yet"

    # ---------------------------------------------------------------- state

    @property
    def is_up(self) -> bool:
        """Return whether statements can be expected to work."""
        return self._up.is_set()

    @property
    def heard_for_s(self) -> float:
        """Return for how many seconds it has answered, without a silence in which running workers could look dead."""
        return max(0.0, time.monotonic() - self._heard_since)

    @property
    def trouble(self) -> str | None:
        """Return why nothing, or not everything, can be written now; None: all can.

        The database may answer while one statement fails again and again: a slow trigger, a right that is gone.
        """
        now = time.monotonic()
        for what, failing in [*self._failing.items()]:
            if now - failing.failed_at > _FORGOTTEN_S:  # nobody repeats it any more
                del self._failing[what]
        since, sentence = min(
            ((failing.since, failing.sentence) for failing in self._failing.values()), default=(now, None)
        )
        return self._down or (sentence if now - since > _FAILING_S else None)

    @property
    def epoch(self) -> UUID:
        """Return the ledger's epoch, known after the first connection."""
        assert self._epoch is not None
        return self._epoch

    async def wait_up(self) -> None:
        """Return when the database can be used."""
        await self._up.wait()

    def now(self) -> datetime:
        """Return the database's time: its clock at the last look, plus our monotonic clock since (FAULTS row 25)."""
        if self._clock_base is None:
            return datetime.now(UTC)
        base, at = self._clock_base
        return base + timedelta(seconds=time.monotonic() - at)

    def age_s(self, moment: datetime) -> float:
        """Return how many seconds ago a moment was, by the database's clock; negative if it is in the future.

        The age is at most what this process has seen pass by its own clock: if the database's clock is set ahead, no
        real time has passed for what waits (FAULTS row 25).
        """
        ahead_s = sum(seconds for after, seconds in self._jumps if moment < after)
        age_s = (self.now() - moment).total_seconds() - ahead_s
        return min(age_s, time.monotonic() - self._watched_since)

    def saw_clock(self, now: datetime) -> None:
        """Note the database's time as just read, so that a clock that is set is followed at once."""
        ahead_s = (now - self.now()).total_seconds() if self._clock_base is not None else 0.0
        if ahead_s > _JUMP_S:
            log.warning("The clock of Postgres jumped %.0f s ahead", ahead_s, extra={"action": "postgres_clock_ahead"})
            self._jumps.append((now, ahead_s))
        back_s = -ahead_s
        while back_s > _JUMP_S and self._jumps:  # set back: this undoes its last jumps
            after, seconds = self._jumps.pop()
            if seconds > back_s:
                self._jumps.append((min(after, now), seconds - back_s))
            back_s -= seconds
        self._clock_base = (now, time.monotonic())

    def saw_ordinal(self, ordinal: int) -> None:
        """Remember how far the ledger has come, so that a restored backup is noticed."""
        self._seen_ordinal = max(self._seen_ordinal, ordinal)

    # ---------------------------------------------------------------- life

    async def open(self) -> None:
        """Connect and check the server.

        Raises OSError, asyncpg.PostgresError, UnfitDatabase, UnusablePooler or WrongLogin.
        """
        await self._check()

    async def close(self) -> None:
        """Close all connections, for good."""
        self._is_closed = True
        pools, self._pools = list(self._pools.values()), {}
        try:
            async with asyncio.timeout(5):
                await asyncio.gather(*(pool.close() for pool in pools))
        except TimeoutError:
            for pool in pools:
                pool.terminate()

    async def retrying(self, what: str, error: BaseException) -> None:
        """Note an outage, and return when the database looks usable again. Never gives up."""
        self.failed_at = time.monotonic()
        sentence = f"Postgres: {sentence_of(error)}"
        failing = self._failing.setdefault(what, _Failing(since=self.failed_at))
        if sentence not in (self._down, failing.sentence):
            log.warning("%s; waiting to repeat %s", sentence, what, extra={"action": "postgres_down", "what": what})
        pause_s = min(_RETRY_FIRST_S * 2**failing.times, _RETRY_MOST_S)
        failing.failed_at, failing.sentence, failing.times = self.failed_at, sentence, min(failing.times + 1, 10)
        self._down = sentence
        self._up.clear()
        self._retrying += 1
        try:
            await self._until_up(pause_s)
        finally:
            self._retrying -= 1
            if not self._retrying and not self._up.is_set():  # cancelled: the next statement finds out
                self._down = None
                self._up.set()

    async def _until_up(self, pause_s: float) -> None:
        while True:
            await asyncio.sleep(pause_s)
            async with self._probe_lock:
                if self._up.is_set():
                    return
                try:
                    await self._check()
                except ANY_TROUBLE as again:
                    self._down = f"Postgres: {sentence_of(again)}"
                    pause_s = min(pause_s * 2, _RETRY_MOST_S)
                else:
                    # Where it answers, and refuses one statement again and again, the warning stays the last word.
                    if all(failing.times <= 1 for failing in self._failing.values()):
                        log.info("Postgres answers again", extra={"action": "postgres_up"})
                    return

    def settled(self, what: str) -> None:
        """Note that this query or queue works."""
        self._failing.pop(what, None)

    async def _check(self) -> None:
        if self._is_closed:
            raise ConnectionError("closed")
        if not self._pools:
            await refuse_transaction_mode(self._dsn)
            await refuse_other_logins(self._dsn)
            users_size = self.most_connections // 2
            beside_users = await self._pool(users_size, keeps_path=True)
            own = await self._pool(self.most_connections - users_size)
            self._pools = {True: beside_users, False: own}
        async with self.connection() as connection:
            await self._look(connection)
            applied = {row["part"] for row in await connection.fetch(query("applied"))}
        if missing_part(applied) is not None:
            raise UnfitDatabase("the schema is older than this version", "run `ct-stream migrate`")
        async with self.connection(meets_users=True) as connection:
            await connection.fetchval("SELECT 1")
        if not self._has_room:
            await self._require_room()
        self._down = None
        self._up.set()

    async def _require_room(self) -> None:
        """Raise UnfitDatabase if not all connections can be used at once: one pool would keep the other waiting."""
        have = sum(pool.get_size() for pool in self._pools.values())
        opened = have + await sessions_at_once(self._dsn, self.most_connections - have)
        if opened < self.most_connections:
            raise UnfitDatabase(
                f"only {opened} of {self.most_connections} connections could be used at the same time",
                MORE_SESSIONS,
            )
        self._has_room = True

    async def _pool(self, size: int, *, keeps_path: bool = False) -> _Pool:
        """Make a pool whose new connections are ours and durable, and are checked.

        With `keeps_path` they have the login's own path: the triggers of the users' tables may rest on it. Whoever may
        create functions there can make one that fits a call better than pg_catalog's, so the statements that run in
        such a session name pg_catalog's functions in full.
        """

        async def begin(connection: Connection) -> None:
            path = str(await connection.fetchval("SHOW search_path"))
            await set_up(connection, {"synchronous_commit": "on", "search_path": OWN_PATH})
            await self._look(connection)
            if keeps_path:
                await connection.execute(
                    "SELECT pg_catalog.set_config('search_path', $1, false)", without_own_schema(path)
                )

        return await asyncpg.create_pool(
            self._dsn,
            min_size=0,
            max_size=size,
            timeout=CONNECT_S,
            command_timeout=_COMMAND_TIMEOUT_S,
            max_inactive_connection_lifetime=60,
            init=begin,
            reset=_keep,
            server_settings={"application_name": self._application_name},
        )

    async def _look(self, connection: asyncpg.Connection[asyncpg.Record] | _Lent) -> None:
        """Check the server behind a connection: each new one may lead to another server. Raises UnfitDatabase.

        A failover or a restored backup ends idle connections silently, and the pool opens new ones.
        """
        seen = self._seen_ordinal  # outcomes recorded while this query runs must not look like a restored backup
        row = await connection.fetchrow(query("server"))
        assert row is not None
        if row["in_recovery"]:
            raise UnfitDatabase("the server is a standby", "CT_POSTGRES_DSN must name the primary")
        if row["read_only"] == "on":
            raise UnfitDatabase(
                "the server, or the login, is read-only: default_transaction_read_only is on",
                f"CT_POSTGRES_DSN must name the primary; if it does, ALTER ROLE {row['login']} RESET "
                "default_transaction_read_only, or the same for the database",
            )
        if row["is_replica"]:
            raise no_triggers(row["login"])
        if row["synchronous_commit"] in ("off", "local"):
            raise UnfitDatabase(
                f"synchronous_commit is {row['synchronous_commit']}, so a crash of the server could lose outcomes",
                "let the gate's login have it on",
            )
        if 0 <= row["connection_limit"] < self.most_connections:
            raise UnfitDatabase(
                f"the login {row['login']} may have {row['connection_limit']} connections, and this worker opens up to "
                f"{self.most_connections}",
                f"ALTER ROLE {row['login']} CONNECTION LIMIT ... for all workers, or lower CT_POSTGRES_CONNECTIONS",
            )
        epoch = row["epoch"]
        if epoch is None:
            raise UnfitDatabase("the ledger has no epoch", "run `ct-stream migrate`")
        if self._epoch is not None and epoch != self._epoch:
            raise UnfitDatabase(
                f"this is another ledger (epoch {epoch}, was {self._epoch}): was the database restored or replaced?"
            )
        if row["last_ordinal"] < seen:
            raise UnfitDatabase(
                f"the ledger ends at outcome {row['last_ordinal']}, but this worker has seen outcome {seen}: "
                "was the database restored from a backup?"
            )
        self._epoch = epoch
        self.saw_clock(row["now"])
        self.saw_ordinal(row["last_ordinal"])

    # ---------------------------------------------------------------- statements

    @asynccontextmanager
    async def connection(self, *, meets_users: bool = False) -> AsyncIterator[_Lent]:
        """Lend a connection. It always returns to its pool, and nobody waits for that.

        `meets_users`: for statements that touch the users' tables.
        """
        pool = self._pools.get(meets_users)
        if pool is None:
            raise ConnectionError("not connected")
        try:
            async with asyncio.timeout(_ACQUIRE_S):  # the pool's own limit would make a task for each statement
                lent = await pool.acquire()
        except TimeoutError as error:  # no statement has run that could be slow
            raise ConnectionError(f"no connection became free within {_ACQUIRE_S:.0f} s") from error
        try:
            yield lent
        finally:
            returning = asyncio.create_task(pool.release(lent, timeout=_ACQUIRE_S), name="postgres:release")
            self._returning.add(returning)
            returning.add_done_callback(self._returned)

    def _returned(self, returning: asyncio.Task[None]) -> None:
        self._returning.discard(returning)
        if not returning.cancelled() and (error := returning.exception()) is not None:
            # The pool has closed it, and opens another. The result of the statement is not affected.
            log.info("A connection to Postgres ended: %r", error, extra={"action": "postgres_connection_ended"})

    async def fetch(self, name: str, *args: Any) -> list[asyncpg.Record]:
        """Run the named query and return its rows."""
        async with self.connection(meets_users=meets_users(name)) as connection:
            rows = await connection.fetch(query(name), *args)
        now = time.monotonic()
        if now - self._heard_at > _LONG_SILENCE_S:
            self._heard_since = now
        self._heard_at = now
        return list(rows)

    async def fetch_one(self, name: str, *args: Any) -> asyncpg.Record | None:
        """Run the named query and return its first row."""
        rows = await self.fetch(name, *args)
        return rows[0] if rows else None

    async def run(self, name: str, *args: Any) -> None:
        """Run the named query for its effect."""
        await self.fetch(name, *args)

    async def persist(self, name: str, *args: Any) -> list[asyncpg.Record]:
        """Run the named query again and again until it succeeds; for what must not be lost."""
        return await self._persist(name, lambda: self.fetch(name, *args))

    async def persist_look(self, name: str, look: Callable[[_Lent], Awaitable[Found]]) -> Found:
        """Look at the users' tables again and again until that succeeds; `name` is for the log."""

        async def looked() -> Found:
            async with self.connection(meets_users=True) as connection:
                return await look(connection)

        return await self._persist(name, looked)

    async def _persist(self, name: str, run: Callable[[], Awaitable[Found]]) -> Found:
        while True:
            try:
                found = await run()
            except AGAIN as error:
                log.info("The query %s runs again: %s", name, error, extra={"action": "query_again"})
                await asyncio.sleep(_AGAIN_S)
            except OUTAGE as error:
                await self.retrying(name, error)
            else:
                self.settled(name)
                return found


async def _keep(_connection: object) -> None:
    """Reset nothing when a connection is returned: we keep no session state, and a reset costs a round trip."""
