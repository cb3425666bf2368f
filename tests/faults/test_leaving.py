"""A worker leaves the group and comes back, in the same process: nothing is lost, nobody is decided twice."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from tests.faults.harness import Stack, said

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

#: SIGUSR1: leave the group. SIGUSR2: join it again.
BY_SIGNAL = """
import asyncio, signal
from ct_stream.stream.membership import Membership
init, asked = Membership.__init__, []
def init_and_listen(self, *args):
    init(self, *args)
    loop = asyncio.get_running_loop()
    for number, change in ((signal.SIGUSR1, self.leave), (signal.SIGUSR2, self.rejoin)):
        loop.add_signal_handler(number, lambda change=change: asked.append(loop.create_task(change())))
Membership.__init__ = init_and_listen
"""
#: A watchdog without patience.
IMPATIENT = """
import ct_stream.process.watchdog as watchdog
of = watchdog.Thresholds.of.__func__
watchdog.Thresholds.of = classmethod(lambda cls, s: cls(
    unacked_s=60.0, commit_s=5.0, undelivered_s=5.0, drain_s=10.0, unassigned_s=10.0))
"""
#: It leaves while Faust is about to read the changelog, or waits for its end.
BEFORE_RECOVERY, IN_RECOVERY = (
    f"""
import asyncio
from faust.transport.consumer import Fetcher
maybe_start, begun = Fetcher.maybe_start, []
async def late(self):
    if not begun:
        begun.append(self)
        print("recovering", flush=True)
        {does}
    return await maybe_start(self)
Fetcher.maybe_start = late
"""
    for does in ("await asyncio.sleep(3)", "return False")
)
ASSIGNED = re.compile(r"Assigned (\d+) partitions")


class Pair:
    """Two workers of one group."""

    def __init__(self, stack: Stack, in_flight: int = 30) -> None:
        self.stack = stack
        self._in_flight = in_flight
        self.prelude = BY_SIGNAL
        self.workers: list[subprocess.Popen[bytes]] = []

    async def start(self) -> None:
        """Start one, then the other, and wait until each has its share."""
        await self.start_first()
        self.add()
        await self.wait_shares(6, 6)

    async def start_first(self) -> None:
        """Start one, and wait until it reads all partitions."""
        self.add()
        await said(self.stack, 0, "Assigned 12 partitions")
        await said(self.stack, 0, "Ready")

    def add(self) -> None:
        """Start one more."""
        self.workers.append(self.stack.start_worker(prelude=self.prelude, CT_IN_FLIGHT=str(self._in_flight)))

    def shares(self) -> list[int]:
        """Return how many partitions each one was last assigned."""
        return [int((ASSIGNED.findall(self.stack.worker_log(n)) or [-1])[-1]) for n in range(len(self.workers))]

    async def wait_shares(self, *shares: int, within_s: float = 40) -> None:
        """Wait until each one's last assignment is of so many partitions."""
        deadline = time.monotonic() + within_s
        while self.shares() != list(shares):
            assert time.monotonic() < deadline, f"{self.shares()}: {self.stack.worker_log(0)[-3000:]}"
            await asyncio.sleep(0.05)

    def count(self, number: int, words: str) -> int:
        """Return how often a worker has said something."""
        return self.stack.worker_log(number).count(words)

    def ask(self, number: int, how: signal.Signals) -> None:
        """Let a worker leave or come back."""
        os.kill(self.workers[number].pid, how)

    async def leave(self, number: int, within_s: float = 40) -> float:
        """Let a worker leave; return how long it took."""
        return await self._change(number, signal.SIGUSR1, "Left the group", within_s)

    async def rejoin(self, number: int) -> float:
        """Let it come back."""
        return await self._change(number, signal.SIGUSR2, "Joining the group again", 10)

    async def _change(self, number: int, how: signal.Signals, words: str, within_s: float) -> float:
        before, began = self.count(number, words), time.monotonic()
        self.ask(number, how)
        while self.count(number, words) == before:
            assert time.monotonic() < began + within_s, self.stack.worker_log(number)[-3000:]
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    def assert_well(self) -> None:
        """Check that both live and none has met an error."""
        for number, worker in enumerate(self.workers):
            assert worker.poll() is None, self.stack.worker_log(number)[-3000:]
            assert "Traceback" not in self.stack.worker_log(number), self.stack.worker_log(number)[-6000:]

    async def assert_all_decided_once(self, ids: list[UUID], within_s: float = 90) -> None:
        """Wait until all companies are decided and published, with one outcome each, and all events committed."""
        deadline = time.monotonic() + within_s
        while (decided := await self.stack.count_decided()) < len(ids):
            assert time.monotonic() < deadline, f"{decided} of {len(ids)}: {self.stack.worker_log(0)[-3000:]}"
            await asyncio.sleep(0.1)
        assert await self.stack.wait_published(40) == 0
        copies: dict[UUID, set[tuple[object, ...]]] = {}
        for record in await self.stack.records("ct.pass", "ct.fail"):
            copies.setdefault(UUID(record.key.decode()), set()).add((record.topic, record.value, record.headers))
        assert set(copies) == set(ids)
        assert all(len(same) == 1 for same in copies.values()), "two records of one company differ"
        assert await self.stack.wait_committed(len(ids), 20) == len(ids)


async def mint(stack: Stack, name: str, count: int) -> list[UUID]:
    """Add companies, one domain each, and publish their events."""
    ids = await stack.mint([f"info-{name}{n}.example" for n in range(count)])
    await stack.publish(ids)
    return ids


@pytest.mark.long
async def test_a_worker_leaves_while_events_flow_and_comes_back(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.05) as stack:
        pair = Pair(stack)
        await pair.start()
        ids = await mint(stack, "a", 400)
        await stack.wait_decided(60, 40)
        assert await stack.count_decided() < 400, "it did not leave in the middle of the work"
        began = time.monotonic()
        took_s = await pair.leave(0)
        await pair.wait_shares(6, 12)
        print(f"left after {took_s:.1f} s, all partitions with the other after {time.monotonic() - began:.1f} s")
        await stack.farm.set_reply_delay(0.0)
        await pair.assert_all_decided_once(ids)
        began = time.monotonic()
        await pair.rejoin(0)
        await pair.wait_shares(6, 6)
        print(f"has a share again after {time.monotonic() - began:.1f} s")
        decided_here = pair.count(0, "INFO PASS")
        ids += await mint(stack, "b", 200)
        await pair.assert_all_decided_once(ids)
        assert pair.count(0, "INFO PASS") > decided_here, "it had no share in them"
        pair.assert_well()
        assert [stack.end_worker(worker) for worker in pair.workers] == [0, 0]


@pytest.mark.long
async def test_what_is_in_hand_is_finished_and_committed_before_a_worker_leaves(tmp_path: Path) -> None:
    """Alone in its group, so that no rebalance commits for it; the next owner is given none of them."""
    async with Stack(tmp_path, reply_delay_s=0.15) as stack:
        pair = Pair(stack, in_flight=20)
        await pair.start_first()
        ids = await mint(stack, "a", 60)
        await stack.wait_decided(1)
        before = await stack.count_decided()
        took_s = await pair.leave(0)
        decided = await stack.count_decided()
        assert before < decided < 60, "nothing was in hand"
        assert sum(max(0, at) for at in (await stack.committed()).values()) == decided, stack.worker_log(0)[-3000:]
        print(f"left after {took_s:.1f} s, with {decided - before} more decided")
        pair.add()
        await said(stack, 1, "Assigned 12 partitions")
        ids += await mint(stack, "b", 30)
        await pair.assert_all_decided_once(ids)
        assert pair.count(1, "Already processed") == 0
        pair.assert_well()


@pytest.mark.long
async def test_what_is_not_finished_in_time_is_left_to_the_others(tmp_path: Path) -> None:
    """Sessions of 10 s and more, and 3 s to drain."""
    async with Stack(tmp_path, reply_delay_s=1.0) as stack:
        pair = Pair(stack)
        await pair.start()
        ids = await mint(stack, "a", 60)
        await asyncio.sleep(4)
        assert await stack.count_decided() < 60, "nothing was in hand"
        took_s = await pair.leave(0)
        assert 3 <= took_s < 3 + 4, "it did not give them their time, or too much"
        await stack.farm.set_reply_delay(0.0)
        await pair.wait_shares(6, 12)
        await pair.assert_all_decided_once(ids)
        pair.assert_well()


@pytest.mark.long
async def test_a_worker_leaves_and_comes_back_five_times(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.02) as stack:
        pair = Pair(stack)
        await pair.start()
        ids: list[UUID] = []
        for number in range(5):
            ids += await mint(stack, f"a{number}x", 60)
            await pair.leave(0)
            pair.ask(0, signal.SIGUSR1)  # changes nothing
            await pair.wait_shares(pair.shares()[0], 12)
            ids += await mint(stack, f"b{number}x", 60)
            await pair.rejoin(0)
            await pair.wait_shares(6, 6)
        await stack.farm.set_reply_delay(0.0)
        await pair.assert_all_decided_once(ids)
        pair.assert_well()
        assert [stack.end_worker(worker) for worker in pair.workers] == [0, 0]


@pytest.mark.long
async def test_a_worker_leaves_during_a_rebalance(tmp_path: Path) -> None:
    """Another one joins, and the first one is told to leave before it has; then in the middle of coming back."""
    async with Stack(tmp_path, reply_delay_s=0.05) as stack:
        pair = Pair(stack)
        await pair.start_first()
        ids = await mint(stack, "a", 300)
        await stack.wait_decided(30, 40)
        pair.add()
        await said(stack, 0, "Draining")
        print(f"left after {await pair.leave(0):.1f} s")
        await said(stack, 1, "Assigned 12 partitions")
        await pair.rejoin(0)
        await asyncio.sleep(0.5)
        print(f"left after {await pair.leave(0):.1f} s")
        await stack.farm.set_reply_delay(0.0)
        await pair.assert_all_decided_once(ids)
        await pair.wait_shares(pair.shares()[0], 12)
        pair.assert_well()
        await pair.rejoin(0)
        await pair.wait_shares(6, 6)
        ids += await mint(stack, "b", 100)
        await pair.assert_all_decided_once(ids)
        pair.assert_well()


@pytest.mark.long
@pytest.mark.parametrize("state", ["left", "leaving", "rejoining"])
async def test_a_worker_that_is_told_to_stop_meanwhile_ends_with_0(tmp_path: Path, state: str) -> None:
    async with Stack(tmp_path, reply_delay_s=1.0) as stack:
        pair = Pair(stack)
        await pair.start()
        ids = await mint(stack, "a", 60)
        await asyncio.sleep(3)
        if state == "leaving":
            pair.ask(0, signal.SIGUSR1)
            await said(stack, 0, "Leaving the group")
        else:
            await pair.leave(0)
        if state == "rejoining":
            await pair.rejoin(0)
            await asyncio.sleep(0.3)
        assert stack.end_worker(pair.workers[0], within_s=3 + 5) == 0, stack.worker_log(0)[-3000:]
        assert "exiting" not in stack.worker_log(0), stack.worker_log(0)[-3000:]
        assert "Traceback" not in stack.worker_log(0), stack.worker_log(0)[-3000:]
        await stack.farm.set_reply_delay(0.0)
        await pair.assert_all_decided_once(ids)


@pytest.mark.long
@pytest.mark.parametrize("moment", [BEFORE_RECOVERY, IN_RECOVERY], ids=["before", "in"])
async def test_a_worker_that_left_in_a_recovery_is_not_taken_for_hung(tmp_path: Path, moment: str) -> None:
    """The watchdog waits 20 s for an assignment, and 5 s for records; the worker stays away for 25 s."""
    async with Stack(tmp_path) as stack:
        pair = Pair(stack)
        await pair.start_first()
        ids = await mint(stack, "a", 60)
        await pair.assert_all_decided_once(ids)
        assert stack.end_worker(pair.workers[0]) == 0
        pair.prelude += IMPATIENT + moment
        pair.add()
        await said(stack, 1, "recovering")
        await pair.leave(1)
        ids += await mint(stack, "b", 60)
        await asyncio.sleep(25)
        assert pair.workers[1].poll() is None, stack.worker_log(1)[-3000:]
        assert await stack.readyz() == (503, {"start": "starting"}), "it was never given a whole table"
        assert await stack.count_decided() == 60
        await pair.rejoin(1)
        await pair.assert_all_decided_once(ids)
        assert "Traceback" not in stack.worker_log(1), stack.worker_log(1)[-3000:]
        assert stack.end_worker(pair.workers[1]) == 0
