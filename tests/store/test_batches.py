"""Many companies share a statement, and each keeps its own result and its own error."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ct_stream.store import batches as module
from ct_stream.store.batches import MAX_BATCH, Alone, Batches, RowHeld
from tests.store.parts import running

if TYPE_CHECKING:
    from collections.abc import Sequence


class Server:
    """Answers batches from a script of errors; then doubles each number, but for 13, which is at fault itself."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.batches: list[list[int]] = []
        self.outages: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, items: Sequence[int]) -> list[int]:
        await self.gate.wait()
        self.batches.append(list(items))
        if self.errors:
            raise self.errors.pop(0)
        if 13 in items:
            raise asyncpg.DataError("13 cannot be written")
        return [item * 2 for item in items]

    async def retrying(self, _what: str, error: BaseException) -> None:
        self.outages.append(str(error))

    def settled(self, _what: str) -> None:
        self.outages_over = len(self.outages)


def why(error: asyncpg.PostgresError) -> str | None:
    """Return what others do: hold a row, or run a trigger that fails."""
    return str(error) if isinstance(error, asyncpg.LockNotAvailableError) or "trigger" in str(error) else None


def batches(server: Server) -> Batches[int, int]:
    return Batches("test", server.run, order=lambda item: item, outages=server)


async def test_what_is_queued_goes_in_one_statement_sorted_and_each_gets_its_own_result() -> None:
    server = Server()
    queue = batches(server)
    async with running(queue):
        results = await asyncio.gather(*(queue(n) for n in (5, 3, 9)))
    assert results == [10, 6, 18]
    assert server.batches == [[3, 5, 9]]


async def test_a_held_row_keeps_no_other_waiting() -> None:
    """A batch that meets one is taken apart, and the next batches go on beside it."""
    server, held = Server(), {7}

    async def run(items: Sequence[int]) -> list[int]:
        if held & set(items):
            raise asyncpg.LockNotAvailableError("7 is held")
        return await server.run(items)

    queue: Batches[int, int] = Batches(
        "test", run, alone=Alone(run=run, why=why), order=lambda item: item, outages=server
    )
    async with running(queue):
        waiting = asyncio.ensure_future(queue(7))
        async with asyncio.timeout(5):
            assert await asyncio.gather(*(queue(n) for n in (5, 9, 11))) == [10, 18, 22]
            assert await asyncio.gather(*(queue(n) for n in (6, 8))) == [12, 16]
        assert not waiting.done()
        held.clear()
        async with asyncio.timeout(5):
            assert await waiting == 14
    assert server.outages == []


async def test_a_trigger_that_fails_for_one_keeps_no_other_waiting() -> None:
    """Also one that says what sounds like an outage, or like a conflict to be tried again."""
    server = Server()
    said = {
        7: asyncpg.InsufficientPrivilegeError("trigger: permission denied for table vip"),
        8: asyncpg.SerializationError("trigger: no"),
        9: asyncpg.RaiseError("trigger: not this one"),
    }

    async def run(items: Sequence[int]) -> list[int]:
        if found := [said[item] for item in items if item in said]:
            raise found[0]
        return await server.run(items)

    queue: Batches[int, int] = Batches("test", run, alone=Alone(run=run, why=why), outages=server)
    async with running(queue), asyncio.timeout(5):
        results = await asyncio.gather(*(queue(n) for n in (5, 7, 8, 9, 11)), return_exceptions=True)
        assert await queue(6) == 12
    assert [results[0], results[4]] == [10, 22]
    assert [str(one) for one in results[1:4]] == [str(error) for error in said.values()]
    assert all(isinstance(one, RowHeld) for one in results[1:4])
    assert server.outages == []


async def test_a_batch_that_takes_too_long_comes_again_in_halves_and_grows_again() -> None:
    server, slow = Server(), True

    async def run(items: Sequence[int]) -> list[int]:
        if slow and len(items) > 3:
            raise TimeoutError
        return await server.run(items)

    queue: Batches[int, int] = Batches("test", run, alone=Alone(run=run, why=why), outages=server)
    async with running(queue), asyncio.timeout(5):
        numbers = range(100, 120)
        assert await asyncio.gather(*map(queue, numbers)) == [n * 2 for n in numbers]
        assert max(map(len, server.batches)) <= 3
        slow = False
        numbers = range(100, 200)
        assert await asyncio.gather(*map(queue, numbers)) == [n * 2 for n in numbers]
        assert max(map(len, server.batches)) > 10
    assert server.outages_over == len(server.outages) > 0


async def test_what_takes_too_long_alone_waits() -> None:
    server = Server()

    async def run(items: Sequence[int]) -> list[int]:
        if 7 in items:
            raise TimeoutError
        return await server.run(items)

    queue: Batches[int, int] = Batches("test", run, alone=Alone(run=run, why=why), outages=server)
    async with running(queue), asyncio.timeout(5):
        results = await asyncio.gather(*(queue(n) for n in (5, 7, 9)), return_exceptions=True)
    assert (results[0], results[2]) == (10, 18)
    assert "look for slow triggers" in str(results[1])


async def test_what_was_too_slow_alone_is_not_put_into_a_batch_again() -> None:
    """It comes back after its wait, and would make each batch that it is in too slow, and halve it."""
    server = Server()
    slow: set[int] = {7}
    tried: list[list[int]] = []

    async def run(items: Sequence[int]) -> list[int]:
        tried.append(list(items))
        if slow & set(items):
            raise TimeoutError
        return await server.run(items)

    queue: Batches[int, int] = Batches("test", run, alone=Alone(run=run, why=why), outages=server)
    async with running(queue), asyncio.timeout(5):
        await asyncio.gather(*map(queue, (5, 7, 9)), return_exceptions=True)
        tried.clear()
        results = await asyncio.gather(*map(queue, (7, 20, 21, 22)), return_exceptions=True)
        assert results[1:] == [40, 42, 44]
        assert [batch for batch in tried if 7 in batch] == [[7]]
        slow.clear()
        assert await queue(7) == 14


async def test_two_items_whose_rows_are_held_are_tried_with_pauses() -> None:
    tries = 0

    async def run(_items: Sequence[int]) -> list[int]:
        nonlocal tries
        tries += 1
        raise asyncpg.LockNotAvailableError("held")

    queue: Batches[int, int] = Batches("test", run, alone=Alone(run=run, why=why), outages=Server())
    async with running(queue):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.2):
                await asyncio.gather(queue(1), queue(2))
    assert tries < 12


async def test_a_row_that_stays_held_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HELD_S", 0.2)
    monkeypatch.setattr(module, "_AGAIN_S", 0.01)

    async def run(_items: Sequence[int]) -> list[int]:
        raise asyncpg.LockNotAvailableError("it is held")

    queue: Batches[int, int] = Batches("test", run, alone=Alone(run=run, why=why), outages=Server())
    async with running(queue), asyncio.timeout(5):
        with pytest.raises(RowHeld):
            await queue(7)


async def test_a_batch_is_bounded() -> None:
    server = Server()
    queue = batches(server)
    async with running(queue):
        await asyncio.gather(*(queue(n + 100) for n in range(MAX_BATCH + 1)))
    assert [len(batch) for batch in server.batches] == [MAX_BATCH, 1]


@pytest.mark.parametrize(
    "error", [asyncpg.DeadlockDetectedError("met in opposite orders"), asyncpg.SerializationError("again")]
)
async def test_a_deadlock_runs_again_at_once(error: Exception) -> None:
    server = Server(error)
    queue = batches(server)
    async with running(queue):
        assert await queue(4) == 8
    assert len(server.batches) == 2
    assert not server.outages


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("connection refused"),
        asyncpg.AdminShutdownError("terminating connection"),
        asyncpg.DiskFullError("no space left"),
        asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT in a read-only transaction"),
        asyncpg.InsufficientPrivilegeError("permission denied"),
        asyncpg.UndefinedTableError("relation does not exist"),
        asyncpg.InterfaceError("connection is closed"),
        TimeoutError(),
    ],
)
async def test_an_outage_is_waited_out_and_charged_to_no_company(error: Exception) -> None:
    server = Server(error)
    queue = batches(server)
    async with running(queue):
        assert list(await asyncio.gather(queue(4), queue(5))) == [8, 10]
    assert len(server.outages) == 1


async def test_only_the_company_that_fails_alone_is_charged() -> None:
    server = Server()
    queue = batches(server)
    async with running(queue):
        results = await asyncio.gather(*(queue(n) for n in (1, 13, 2)), return_exceptions=True)
    assert results[0] == 2
    assert results[2] == 4
    assert isinstance(results[1], asyncpg.DataError)


async def test_cancelling_one_caller_leaves_the_batch_alone() -> None:
    server = Server()
    server.gate.clear()
    queue = batches(server)
    async with running(queue):
        first, second = asyncio.create_task(queue(1)), asyncio.create_task(queue(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        server.gate.set()
        assert await second == 4
        with pytest.raises(asyncio.CancelledError):
            await first
    assert server.batches == [[1, 2]]


async def test_a_result_that_nobody_claims_is_handed_over_if_it_comes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    server.gate.clear()
    queue = batches(server)
    unclaimed: list[int] = []

    async def hand_over(result: int) -> None:
        unclaimed.append(result)
        if result == 4:
            raise ValueError("it cannot be given back")

    async def send(*numbers: int) -> list[asyncio.Task[int]]:
        calls = [asyncio.create_task(queue(n, unclaimed=hand_over)) for n in numbers]
        for _ in range(4):  # each call queues its item; then the batch leaves
            await asyncio.sleep(0)
        assert not len(queue)
        return calls

    async with running(queue):
        calls = await send(1, 2, 3, 13)
        never_sent = asyncio.create_task(queue(5, unclaimed=hand_over))
        await asyncio.sleep(0)
        for call in (*calls[:2], calls[3], never_sent):
            call.cancel()
        await asyncio.sleep(0)
        server.gate.set()
        ended = await asyncio.gather(*calls, never_sent, return_exceptions=True)
        assert [type(end) for end in ended] == [*[asyncio.CancelledError] * 2, int, *[asyncio.CancelledError] * 2]
        assert (sorted(unclaimed), server.batches[0]) == ([2, 4], [1, 2, 3, 13])
        assert [5] not in server.batches, "nobody wants it, and it was sent"
        server.gate.clear()
        monkeypatch.setattr("ct_stream.store.batches._UNCLAIMED_S", 0.01)
        [late] = await send(6)
        late.cancel()
        with pytest.raises(asyncio.CancelledError):  # an outage does not keep a drain from its end
            await late
        server.gate.set()
    assert sorted(unclaimed) == [2, 4]
