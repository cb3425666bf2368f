"""Runs one statement for many companies, and retries it if it fails.

Everything queued goes into one statement, without a timer: while one batch is at the server, the next one fills. No
caller's task owns a batch, so the cancellation of an event cannot interrupt a recording.

A row that somebody holds (an open transaction of a hub) must not keep the others waiting: a batch that meets one is
taken apart, and its items go on one by one beside the next batches. An item whose row stays held gets RowHeld.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

import asyncpg

from ct_stream.store.outage import AGAIN, OUTAGE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_BATCH = 500
_HELD_S = 20.0  #: for so long a row may be held
_AGAIN_S = 0.5  #: between two tries, where nothing else is to be tried
_UNCLAIMED_S = 1.0  #: how long a cancelled caller waits for a result that it would have to give back


class RowHeld(Exception):
    """Somebody else holds a row of this item, and does not let it go."""


class Batches(Generic[Item, Result]):
    """A queue of items whose results come from one statement for many of them.

    `run` gets the items sorted by `order`, and returns one result for each item in the same order.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        alone: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]] | None = None,
        order: Callable[[Item], object] | None = None,
        retrying: Callable[[str, BaseException], Awaitable[None]],
    ) -> None:
        """`alone`: as `run`, for one item, with less patience for locked rows; None: locked rows are an outage."""
        self.name = name
        self._run = run
        self._run_alone = alone
        self._apart: deque[tuple[tuple[Item, asyncio.Future[Result]], float]] = deque()  #: with since when (monotonic)
        self._is_apart = asyncio.Event()
        self._alone: asyncio.Task[None] | None = None
        self._order = order
        self._retrying = retrying  # called before each new try in an outage; waits as long as the outage lasts
        self._queue: list[tuple[Item, asyncio.Future[Result]]] = []
        self._filled = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task that sends batches."""
        self._worker = asyncio.create_task(self._send_batches(), name=f"batches:{self.name}")
        if self._run_alone is not None:
            self._alone = asyncio.create_task(self._send_alone(self._run_alone), name=f"alone:{self.name}")

    async def stop(self) -> None:
        """Stop sending, without waiting for what is at the server."""
        tasks = [task for task in (self._worker, self._alone) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
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

    async def _send_alone(self, run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]]) -> None:
        """Send items one by one; those whose rows are held come again, after the others."""
        while True:
            if not self._apart:
                self._is_apart.clear()
                await self._is_apart.wait()
            pair, held_since = self._apart.popleft()
            try:
                await self._settle([pair], run)
            except asyncpg.LockNotAvailableError as error:
                if time.monotonic() - held_since > _HELD_S:
                    _resolve(pair[1], error=RowHeld(str(error)))
                    continue
                self._apart.append((pair, held_since))
                if len(self._apart) == 1:
                    await asyncio.sleep(_AGAIN_S)
            except asyncio.CancelledError:
                pair[1].cancel()
                raise

    async def _send_batches(self) -> None:
        while True:
            await self._filled.wait()
            batch, self._queue = self._queue[:MAX_BATCH], self._queue[MAX_BATCH:]
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
        self,
        batch: list[tuple[Item, asyncio.Future[Result]]],
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]] | None = None,
    ) -> None:
        """Give every item of the batch its result, or its own error. `run`: alone, and a held row is raised."""
        items = [item for item, _ in batch]
        while True:
            try:
                results = await (run or self._run)(items)
            except asyncpg.LockNotAvailableError as error:
                if run is not None:
                    raise
                if self._run_alone is None:
                    await self._retrying(self.name, error)
                    continue
                self._apart.extend((pair, time.monotonic()) for pair in batch)
                self._is_apart.set()
                return
            except AGAIN as error:
                log.info("Batch %s runs again: %s", self.name, error, extra={"action": "batch_again"})
            except OUTAGE as error:
                await self._retrying(self.name, error)
            except Exception as error:
                if len(batch) == 1:
                    _resolve(batch[0][1], error=error)
                    return
                # One item is at fault, and only that one may get the error: each runs alone.
                for pair in batch:
                    await self._settle([pair])
                return
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    _resolve(future, result=result)
                return


def _resolve(future: asyncio.Future[Result], *, result: Result | None = None, error: Exception | None = None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
        future.exception()  # marked as read, because its caller may be gone
    else:
        future.set_result(result)  # type: ignore[arg-type]
