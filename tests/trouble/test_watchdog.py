"""A worker that hangs by its own fault ends with 75 and loses nothing; one that waits for the world never does."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ct_stream.process.watchdog import EXIT_CODE
from tests.brokers import kafka
from tests.faults.harness import Stack

if TYPE_CHECKING:
    import subprocess

PASS_DEADLINE_S, UNACKED_S = 4.0, 8.0
#: Every threshold in seconds, so that a test need not wait for minutes.
LIMITS = f"""
from ct_stream.process import watchdog
watchdog.Thresholds.of = classmethod(
    lambda cls, _: cls(
        unacked_s={UNACKED_S}, commit_s=4.0, undelivered_s=4.0, drain_s=15.0, unassigned_s=4.0, blocked_s=5.0
    )
)
import ct_stream.stream.delivery as delivery
delivery._QUIET_S, delivery._ON_ITS_WAY_S = 1.0, 0.2
"""
#: What a bug in our code would do to one company.
BUG = (
    LIMITS
    + """
import asyncio, time, os
from ct_stream.company.companies import Companies
one_pass = Companies._pass
async def hang(self, origin, *args):
    if str(origin.outreach_id) == os.environ["CT_TEST_VICTIM"]:
        %s
    return await one_pass(self, origin, *args)
Companies._pass = hang
"""
)
BLOCKS = BUG % "time.sleep(1e6)"
NEVER_RESOLVES = BUG % "await asyncio.get_running_loop().create_future()"
COMMITS_STAND_STILL = (
    LIMITS
    + """
import faust.transport.drivers.aiokafka as driver
async def no_commit(self, offsets):
    return False
driver.AIOKafkaConsumerThread._commit = no_commit
driver.AIOKafkaConsumerThread.commit = no_commit
"""
)
HANGS_ON_ITS_WAY = (
    LIMITS
    + """
import asyncio, os
from ct_stream.company.companies import Companies
from_waiting = Companies.from_waiting
async def hang(self, resumed):
    if str(resumed.origin.outreach_id) == os.environ["CT_TEST_VICTIM"]:
        await asyncio.get_running_loop().create_future()
    await from_waiting(self, resumed)
Companies.from_waiting = hang
"""
)
#: What Faust did to us: records are read, and given to nobody.
LOSES_ITS_PLACE = (
    LIMITS
    + """
import faust.transport.drivers.aiokafka as driver
fetch = driver.AIOKafkaConsumerThread._fetch_records
async def drop(self, *args, **options):
    return {tp: r for tp, r in (await fetch(self, *args, **options)).items() if tp.topic != "spine.created"}
driver.AIOKafkaConsumerThread._fetch_records = drop
"""
)
REBALANCE_NEVER_ENDS = (
    LIMITS
    + """
import asyncio
import faust.transport.drivers.aiokafka as driver
async def never(self, assigned):
    await asyncio.Event().wait()
driver.ConsumerRebalanceListener.on_partitions_assigned = never
"""
)
#: A changelog that takes longer to read than a record may wait; a little of it is read all the time.
LONG_RECOVERY = (
    LIMITS
    + """
import time
from faust.tables.recovery import Recovery
need_recovery, begun_at, left = Recovery.need_recovery, None, iter(range(10**9, 0, -1))
def longer(self):
    global begun_at
    begun_at = begun_at or time.monotonic()
    return time.monotonic() - begun_at < 15 or need_recovery(self)
Recovery.need_recovery = longer
Recovery.active_remaining_total = lambda self: next(left)
"""
)
RECOVERY_STANDS_STILL = LONG_RECOVERY.replace("next(left)", "7").replace("< 15", "< 1e6")
#: Faust's producer comes up before its consumer does.
SLOW_START = (
    LIMITS
    + """
import asyncio
import faust.transport.drivers.aiokafka as driver
on_start = driver.Producer.on_start
async def slow(self):
    await asyncio.sleep(4)
    await on_start(self)
driver.Producer.on_start = slow
"""
)


async def ends(stack: Stack, within_s: float) -> int | None:
    """Wait until the newest worker has ended; return its exit code, or None when it still runs."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if (code := stack.workers[-1].poll()) is not None:
            return code
        await asyncio.sleep(0.1)
    return None


def broker_pid(stack: Stack) -> int:
    """Return the process of the stack's embedded broker: our child process that has its address."""
    address = f"tcp://{stack.env['CT_KAFKA_BOOTSTRAP']}"
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # somebody else's, that has just ended
            if (
                entry.name.isdigit()
                and f"PPid:\t{os.getpid()}\n" in (entry / "status").read_text()
                and address in (entry / "cmdline").read_text()
            ):
                found.append(int(entry.name))
    assert len(found) == 1
    return found[0]


async def decided_once(stack: Stack, number: int) -> None:
    """All have one outcome, and it is on the topics."""
    assert await stack.wait_decided(number, 60) == number, stack.worker_log()[-3000:]
    assert await stack.wait_published(40) == 0
    keys = {record.key for record in await stack.records("ct.pass", "ct.fail")}
    assert len(keys) == number


@pytest.mark.long
async def test_a_blocked_loop_ends_the_worker_three_times_and_then_it_waits_for_a_person(tmp_path: Path) -> None:
    async with Stack(tmp_path, partitions=1) as stack:
        ids = await stack.mint([f"info-{n}.example" for n in range(12)])
        await stack.publish(ids)
        for _ in range(3):
            stack.start_worker(prelude=BLOCKS, CT_TEST_VICTIM=str(ids[5]))
            assert await ends(stack, 60) == EXIT_CODE, stack.worker_log()[-3000:]
            assert "in spine.created[0] offset 5;" in stack.worker_log()
            assert "in hang" in stack.worker_log(), "no stack of the blocked thread"
        exits = await stack.admin.fetch("SELECT places, reason FROM outreach.ct_watchdog_exits")
        assert [list(row["places"]) for row in exits] == [["spine.created[0] offset 5"]] * 3
        assert (await stack.committed()).get(0, 0) <= 5, "the offset of the victim was committed"

        held = stack.start_worker(prelude=BLOCKS, CT_TEST_VICTIM=str(ids[5]))
        assert await stack.wait_said("Workers keep hanging", 30), stack.worker_log()[-2000:]
        status, troubles = await stack.readyz()
        assert status == 503
        assert "a worker hung 3 times within 10 minutes at spine.created[0] offset 5" in troubles["watchdog"]
        assert held.poll() is None
        assert stack.end_worker(held) == 0
        alert = "SELECT count(*) FROM outreach.ct_alerts WHERE rail = 'watchdog' AND state = 'halted'"
        assert await stack.admin.fetchval(alert) == 1

        # Mended, and started before a person resumes: it waits, then goes on by itself.
        mended = stack.start_worker()
        assert await stack.wait_said("Workers keep hanging", 30)
        await stack.admin.execute("SELECT outreach.resume_guardrail('watchdog', 'mended')")
        await decided_once(stack, 12)
        assert await stack.wait_ready(200, 30) == {}
        assert stack.end_worker(mended) == 0


async def test_an_event_that_never_comes_back_ends_the_worker_with_what_it_was_doing(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        ids = await stack.mint([f"info-{n}.example" for n in range(30)])
        await stack.publish(ids)
        stack.start_worker(prelude=NEVER_RESOLVES, CT_TEST_VICTIM=str(ids[5]))
        assert await ends(stack, 60) == EXIT_CODE, stack.worker_log()[-3000:]
        log = stack.worker_log()
        assert re.search(
            r"Hung: spine\.created\[\d+\] offset \d+ has been in hand for \d+ s and is not done \(at most 8 s\)", log
        )
        assert re.search(r"1 x event:\d+:\d+\n.*_handle\n(.*\n){1,3}.*hang\n\s+waits for ", log), log[-3000:]
        assert await stack.count_decided() == 29, "one event that hangs blocked the others"
        stack.start_worker()
        await decided_once(stack, 30)


async def test_a_resumed_company_that_never_ends_ends_the_worker_and_is_resumed_again(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        ids = await stack.mint(["nxdomain-1.example", *(f"info-{n}.example" for n in range(10))])
        await stack.publish(ids)
        stack.start_worker(prelude=HANGS_ON_ITS_WAY, CT_TEST_VICTIM=str(ids[0]))
        assert await ends(stack, 60) == EXIT_CODE, stack.worker_log()[-3000:]
        assert f"Hung: company {ids[0]} has been in hand for" in stack.worker_log()
        stack.start_worker()
        await decided_once(stack, 11)


async def test_records_that_are_not_delivered_end_the_worker(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker(prelude=LOSES_ITS_PLACE)
        assert await stack.wait_said("Ready", 60)
        await asyncio.sleep(12)
        assert worker.poll() is None, "nothing was there to read"
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(5)]))
        assert await ends(stack, 60) == EXIT_CODE, stack.worker_log()[-3000:]
        assert re.search(
            r"Hung: spine\.created\[\d+\] offset \d+ has been in Kafka for \d+ s and is not delivered",
            stack.worker_log(),
        )
        stack.start_worker()
        await decided_once(stack, 5)


async def restarted(stack: Stack, prelude: str) -> subprocess.Popen[bytes]:
    """Start a worker on a changelog that is not empty, with events to read."""
    first = stack.start_worker()
    await stack.publish(await stack.mint([f"info-a{n}.example" for n in range(20)]))
    assert await stack.wait_decided(20, 60) == 20
    assert stack.end_worker(first) == 0
    await stack.publish(await stack.mint([f"info-b{n}.example" for n in range(10)]))
    return stack.start_worker(prelude=prelude)


@pytest.mark.parametrize("prelude", [LONG_RECOVERY, SLOW_START], ids=["a long recovery", "a slow start"])
async def test_what_only_takes_long_ends_no_worker(tmp_path: Path, prelude: str) -> None:
    async with Stack(tmp_path) as stack:
        worker = await restarted(stack, prelude)
        await decided_once(stack, 30)
        assert worker.poll() is None
        assert await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_watchdog_exits") == 0


async def test_a_recovery_that_stands_still_ends_the_worker(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        await restarted(stack, RECOVERY_STANDS_STILL)
        assert await ends(stack, 60) == EXIT_CODE, stack.worker_log()[-3000:]
        assert "Hung: ct-stream-decided-changelog offset 7 has been in Kafka" in stack.worker_log()
        stack.start_worker()
        await decided_once(stack, 30)


async def test_a_rebalance_that_never_ends_ends_the_worker(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        stack.start_worker(prelude=REBALANCE_NEVER_ENDS)
        assert await ends(stack, 60) == EXIT_CODE, stack.worker_log()[-3000:]
        assert "Hung: the group has assigned no partitions for" in stack.worker_log()
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(5)]))
        stack.start_worker()
        await decided_once(stack, 5)


async def test_commits_that_stand_still_end_the_worker(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(30)]))
        stack.start_worker(prelude=COMMITS_STAND_STILL)
        assert await ends(stack, 60) == EXIT_CODE, stack.worker_log()[-3000:]
        assert re.search(
            r"Hung: no commit for \d+ s \(at most [\d.]+ s\): spine\.created\[\d+\] is done up to", stack.worker_log()
        )
        assert await stack.committed() == {} or set((await stack.committed()).values()) <= {-1, 0}
        worker = stack.start_worker(prelude=LIMITS)
        await decided_once(stack, 30)
        deadline = time.monotonic() + 30
        while sum(offset for offset in (await stack.committed()).values() if offset > 0) < 30:
            assert time.monotonic() < deadline, stack.worker_log()[-3000:]
            await asyncio.sleep(0.2)
        assert stack.end_worker(worker) == 0


async def test_neither_a_slow_server_nor_a_long_outage_of_postgres_ends_a_worker(tmp_path: Path) -> None:
    async with Stack(tmp_path, CT_PASS_DEADLINE_S=str(PASS_DEADLINE_S)) as stack:
        worker = stack.start_worker(prelude=LIMITS)
        assert await stack.wait_said("Ready", 30)
        slow = [f"tarpit-{n}.example" for n in range(6)] + [f"slowbytes-{n}.example" for n in range(4)]
        await stack.publish(await stack.mint(slow))
        assert await stack.wait_decided(len(slow), 60) == len(slow), stack.worker_log()[-3000:]
        assert worker.poll() is None

        await stack.farm.set_reply_delay(0.1)
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(100)]))
        assert await stack.wait_decided(len(slow) + 5, 30) >= len(slow) + 5
        stack.admin.terminate()
        await stack.postgres.stop(crash=True)
        await asyncio.sleep(UNACKED_S * 1.5)
        assert worker.poll() is None, f"an outage of Postgres ended the worker: {stack.worker_log()[-3000:]}"
        await stack.postgres.start()
        await stack.connect()
        assert await stack.wait_decided(len(slow) + 100, 30) == len(slow) + 100, stack.worker_log()[-3000:]
        assert stack.end_worker(worker) == 0
        assert await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_watchdog_exits") == 0


LOCKED = LIMITS + "\nimport ct_stream.store.database as database\ndatabase._COMMAND_TIMEOUT_S = 3.0\n"


async def test_a_locked_table_ends_no_worker_though_postgres_answers(tmp_path: Path) -> None:
    """It shows itself for a moment only, whenever a statement runs out of time."""
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker(prelude=LOCKED)
        assert await stack.wait_said("Ready", 30)
        blocker = await asyncpg.connect(stack.postgres.admin_dsn)
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("LOCK TABLE outreach.ct_passes IN ACCESS EXCLUSIVE MODE")
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(20)]))
        await asyncio.sleep(UNACKED_S * 2)
        assert worker.poll() is None, f"a lock ended the worker: {stack.worker_log()[-3000:]}"
        await transaction.rollback()
        await blocker.close()
        await decided_once(stack, 20)
        assert worker.poll() is None


async def test_a_broker_that_hangs_ends_no_worker(tmp_path: Path) -> None:
    if kafka() is not None:
        pytest.skip("stops the embedded broker's process")
    async with Stack(tmp_path, reply_delay_s=0.1) as stack:
        worker = stack.start_worker(prelude=LIMITS)
        assert await stack.wait_said("Ready", 30)
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(100)]))
        assert await stack.wait_decided(5, 30) >= 5
        broker = broker_pid(stack)
        os.kill(broker, signal.SIGSTOP)
        try:
            await asyncio.sleep(UNACKED_S * 2)
            assert worker.poll() is None, f"an outage of Kafka ended the worker: {stack.worker_log()[-3000:]}"
        finally:
            os.kill(broker, signal.SIGCONT)
        assert await stack.wait_decided(100, 60) == 100, stack.worker_log()[-3000:]
        assert await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_watchdog_exits") == 0
