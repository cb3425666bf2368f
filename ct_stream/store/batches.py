"""Runs one statement for many companies, and retries it if it fails.

Everything queued goes into one statement, without a timer: while one batch is at the server, the next one fills. No
caller's task owns a batch, so the cancellation of an event cannot interrupt a recording.

What others do must not keep a whole batch waiting: a row that somebody holds (an open transaction of a hub), or a
trigger of somebody's that fails. A batch that meets this is taken apart, and its items go on one by one beside the next
batches. An item that cannot go on alone either gets RowHeld. A batch that takes too long, because a trigger does, comes
again in two halves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import asyncpg

from ct_stream.cancelling import end_all
from ct_stream.store.outage import AGAIN, OUTAGE, OWN_TROUBLE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH = 500
_QUICK_S = 3.0  #: a full batch that takes less than this doubles the size of the next
_SLOW_FOR_S = 600.0  #: for so long an item that took too long alone is sent alone again
_HELD_S = 20.0  #: for so long a row may be held
_AGAIN_S = 0.5  #: between two tries, where nothing else is to be tried
_PAUSES_S = (0.0, 0.05, 0.2, 1.0)  #: before a batch is repeated after a deadlock or a conflict
_CONFLICTS = 3  #: so many may be chance; after that it is somebody's trigger that raises them
_SLOW = (
    "recording it takes too long: look for slow triggers of company_target and company_target_errors, and for "
    "somebody who holds a lock on all of one of them (pg_locks)"
)
_UNCLAIMED_S = 1.0  #: how long a cancelled caller waits for a result that it would have to give back


class RowHeld(Exception):
    """Others keep a row of this item from being written; the message says how."""


class _TooSlow(RowHeld):
    """This item takes too long even alone."""


class _Kind(Enum):
    """What kind of error ended a statement."""

    CONFLICT = auto()  #: with another statement, by chance: it runs again at once
    OUTAGE = auto()  #: the database is in trouble
    TOO_LONG = auto()  #: the database answers, and this statement takes too long
    BLOCKED = auto()  #: others hold a row, or a trigger of theirs fails
    OWN = auto()  #: an item's


class Outages(Protocol):
    """Who waits out the database's trouble."""

    async def retrying(self, what: str, error: BaseException) -> None:
        """Return when it is worth trying this queue again."""
        ...

    def settled(self, what: str) -> None:
        """Note that a statement of this queue has succeeded."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone(Generic[Item, Result]):
    """How to run one item whose batch others have blocked."""

    run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]]  #: with one item, and less patience for locked rows
    why: Callable[[asyncpg.PostgresError], str | None]  #: what others do that raised this error, or None


class Batches(Generic[Item, Result]):
    """A queue of items whose results come from one statement for many of them.

    `run` gets the items sorted by `order`, and returns one result for each item in the same order.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        alone: Alone[Item, Result] | None = None,
        order: Callable[[Item], object] | None = None,
        outages: Outages,
    ) -> None:
        """Without `alone`, locked rows are an outage."""
        self.name = name
        self._run = run
        self._taken_apart = alone
        self._most = MAX_BATCH  #: in one statement
        self._slow: dict[object, float] = {}  #: what took too long alone, by its order, with when (monotonic)
        self._apart: deque[tuple[tuple[Item, asyncio.Future[Result]], float]] = deque()  #: with since when (monotonic)
        self._is_apart = asyncio.Event()
        self._alone: asyncio.Task[None] | None = None
        self._order = order
        self._outages = outages
        self._queue: list[tuple[Item, asyncio.Future[Result]]] = []
        self._filled = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task that sends batches."""
        self._worker = asyncio.create_task(self._send_batches(), name=f"batches:{self.name}")
        if self._taken_apart is not None:
            self._alone = asyncio.create_task(self._send_alone(self._taken_apart), name=f"alone:{self.name}")

    async def stop(self) -> None:
        """Stop sending, without waiting for what is at the server."""
        await end_all(task for task in (self._worker, self._alone) if task is not None)
        for _, future in (*self._queue, *(pair for pair, _ in self._apart)):
            future.cancel()
        self._queue.clear()
        self._apart.clear()

    async def __call__(self, item: Item, *, unclaimed: Callable[[Result], Awaitable[None]] | None = None) -> Result:
        """Return the item's own result. Cancelling the caller leaves the batch alone.

        With `unclaimed`, the item of a cancelled caller is not sent any more. If it was sent already and its result
        comes soon, `unclaimed` gets it, to give back what nobody will use.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        entry = (item, future)
        if self._was_slow(item):  # it would make its whole batch too slow
            self._take_apart([entry])
        else:
            self._queue.append(entry)
            self._filled.set()
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if unclaimed is None:
                raise
            if entry in self._queue:
                self._queue.remove(entry)
                raise
            await asyncio.wait({future}, timeout=_UNCLAIMED_S)
            if future.done() and not future.cancelled() and future.exception() is None:
                try:
                    await unclaimed(future.result())
                except Exception as error:  # the caller must see its cancellation; what was taken runs out by itself
                    log.warning(
                        "Batch %s: what a cancelled company had taken could not be given back: %s",
                        self.name,
                        error,
                        extra={"action": "unclaimed"},
                    )
            raise

    def __len__(self) -> int:
        return len(self._queue) + len(self._apart)

    async def _send_alone(self, alone: Alone[Item, Result]) -> None:
        """Send items one by one; those whose rows are held come again, after the others."""
        while True:
            if not self._apart:
                self._is_apart.clear()
                await self._is_apart.wait()
            pair, held_since = self._apart.popleft()
            try:
                await self._settle([pair], alone=alone)
            except asyncpg.LockNotAvailableError as error:
                if time.monotonic() - held_since > _HELD_S:
                    _resolve(pair[1], error=RowHeld(alone.why(error) or str(error)))
                    continue
                self._apart.append((pair, held_since))
                await asyncio.sleep(_AGAIN_S / len(self._apart))
            except _TooSlow as error:
                self._slow[self._key(pair[0])] = time.monotonic()
                _resolve(pair[1], error=error)
            except RowHeld as error:
                _resolve(pair[1], error=error)
            except asyncio.CancelledError:
                pair[1].cancel()
                raise

    async def _send_batches(self) -> None:
        while True:
            await self._filled.wait()
            batch, self._queue = self._queue[: self._most], self._queue[self._most :]
            if not self._queue:
                self._filled.clear()
            if not batch:
                continue  # the callers that queued it were cancelled
            if self._order is not None:
                order = self._order
                batch.sort(key=lambda pair: order(pair[0]))  # type: ignore[arg-type, return-value]
            try:
                await self._settle(batch)
            except asyncio.CancelledError:
                for _, future in batch:
                    future.cancel()
                raise

    async def _settle(
        self, batch: list[tuple[Item, asyncio.Future[Result]]], alone: Alone[Item, Result] | None = None
    ) -> None:
        """Give every item of the batch its result, or its own error.

        `alone`: it is one item, taken out of its batch; raises LockNotAvailableError or RowHeld.
        """
        items = [item for item, _ in batch]
        again = 0
        while True:
            began = time.monotonic()
            try:
                results = await (alone.run if alone is not None else self._run)(items)
            except Exception as error:
                match self._kind_of(error, again):
                    case _Kind.CONFLICT:
                        log.info("Batch %s runs again: %s", self.name, error, extra={"action": "batch_again"})
                        await asyncio.sleep(_PAUSES_S[min(again, len(_PAUSES_S) - 1)])
                        again += 1
                    case _Kind.OUTAGE:
                        await self._outages.retrying(self.name, error)
                    case _Kind.TOO_LONG:
                        await self._outages.retrying(self.name, error)  # the database may be gone
                        if alone is not None:
                            raise _TooSlow(_SLOW) from error
                        if self._makes_smaller(batch):
                            return
                    case _Kind.BLOCKED if alone is None:
                        self._take_apart(batch)
                        return
                    case _Kind.BLOCKED if isinstance(error, asyncpg.LockNotAvailableError):
                        raise
                    case _Kind.BLOCKED:
                        raise RowHeld(self._others_do(error)) from error
                    case _Kind.OWN:
                        await self._charge(batch, error)
                        return
            else:
                self._outages.settled(self.name)
                if len(batch) == self._most and time.monotonic() - began < _QUICK_S:
                    self._most = min(MAX_BATCH, self._most * 2)
                for (_, future), result in zip(batch, results, strict=True):
                    _resolve(future, result=result)
                return

    def _kind_of(self, error: Exception, again: int) -> _Kind:
        """Return what kind of error this is, after so many conflicts of the same batch."""
        is_conflict = isinstance(error, AGAIN)
        if not (is_conflict and again < _CONFLICTS) and self._others_do(error) is not None:
            return _Kind.BLOCKED
        if is_conflict:
            return _Kind.CONFLICT
        if isinstance(error, TimeoutError) and error.errno is None:  # with a number it is a connection's
            return _Kind.TOO_LONG
        return _Kind.OUTAGE if isinstance(error, OUTAGE) else _Kind.OWN

    def _makes_smaller(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> bool:
        """Queue again in smaller batches what takes too long; return whether this queue does that."""
        if self._taken_apart is None:
            return False
        if len(batch) == 1:
            self._take_apart(batch)
            return True
        self._most = len(batch) // 2
        log.warning(
            "Batch %s takes too long; it comes again with %d items", self.name, self._most,
            extra={"action": "batch_halved"},
        )  # fmt: skip
        self._queue[:0] = batch
        self._filled.set()
        return True

    def _key(self, item: Item) -> object:
        return item if self._order is None else self._order(item)

    def _was_slow(self, item: Item) -> bool:
        if not self._slow:
            return False
        now = time.monotonic()
        self._slow = {key: at for key, at in self._slow.items() if now - at < _SLOW_FOR_S}
        return self._key(item) in self._slow

    def _others_do(self, error: Exception) -> str | None:
        """Return what others do that raised this; None: nothing, or this queue takes no batch apart."""
        if self._taken_apart is None or not isinstance(error, asyncpg.PostgresError) or isinstance(error, OWN_TROUBLE):
            return None
        return self._taken_apart.why(error)

    def _take_apart(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        self._apart.extend((pair, time.monotonic()) for pair in batch)
        self._is_apart.set()

    async def _charge(self, batch: list[tuple[Item, asyncio.Future[Result]]], error: Exception) -> None:
        """Give the error to the one item at fault: if there are several, each runs by itself."""
        if len(batch) == 1:
            _resolve(batch[0][1], error=error)
            return
        for pair in batch:
            await self._settle([pair])


def _resolve(future: asyncio.Future[Result], *, result: Result | None = None, error: Exception | None = None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
        future.exception()  # marked as read, because its caller may be gone
    else:
        future.set_result(result)  # type: ignore[arg-type]
