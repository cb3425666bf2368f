"""Trouble of the worker's machine: a clock that jumps, a log that takes nothing, an end with thousands in flight."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults import invariants
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from uuid import UUID

KINDS = ("info", "allreject", "catchall", "nxdomain", "refuse")

#: The wall clock of the process jumps 40 days ahead, then 80 back; the monotonic one does not.
JUMPS = """
import datetime as dt, threading, time as t
shift, real = [0.0], t.time
t.time = lambda: real() + shift[0]
class Shifted(dt.datetime):
    @classmethod
    def now(cls, tz=None):
        return dt.datetime.fromtimestamp(t.time(), tz)
for module in list(sys.modules.values()):
    if getattr(module, "datetime", None) is dt.datetime:
        module.datetime = Shifted
def jump():
    for days in (40, -80):
        t.sleep(4)
        shift[0] += days * 86400
        sys.stderr.write(f"JUMPED {days} days\\n")
threading.Thread(target=jump, daemon=True).start()
"""
#: Whatever is written to the log meets ENOSPC.
FULL_DISK = """
full = os.open("/dev/full", os.O_WRONLY)
os.dup2(full, 1)
os.dup2(full, 2)
"""


async def mint(stack: Stack, number: int) -> dict[UUID, str | None]:
    names: list[str | None] = [f"{KINDS[n % len(KINDS)]}-m{n}.example" for n in range(number)]
    ids = await stack.mint(names)
    await stack.publish(ids)
    return dict(zip(ids, names, strict=True))


async def test_a_clock_that_jumps_decides_nothing_and_spends_no_other_day(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.3) as stack:
        worker = stack.start_worker(prelude=JUMPS)
        assert await stack.wait_said("Ready", 60)
        companies = await mint(stack, 100)
        assert await stack.wait_said("JUMPED 40 days", 20)
        companies |= await mint(stack, 100)
        assert await stack.wait_said("JUMPED -80 days", 20)
        companies |= await mint(stack, 100)
        await invariants.wait_at_rest(stack, len(companies), 90)
        found = await invariants.check(stack, companies, pause_s=0.2)
        assert found.broken == [], stack.worker_log()[-2000:]
        row = await stack.admin.fetchrow(
            "SELECT min(decided_at) AS first, max(decided_at) AS last, max(duration_ms) AS longest,"
            " (SELECT count(DISTINCT begins) FROM outreach.ct_usage WHERE span = 'day') AS days"
            " FROM outreach.ct_outcomes"
        )
        assert row is not None
        now = datetime.now(UTC)
        assert now - timedelta(minutes=10) < row["first"] <= row["last"] < now + timedelta(minutes=1)
        assert row["longest"] < 120_000
        assert row["days"] <= 2, "midnight may pass, no more"
        assert stack.end_worker(worker) == 0


async def test_a_full_disk_under_the_log_stops_nobody(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker(prelude=FULL_DISK)
        companies = await mint(stack, 200)
        assert await stack.wait_decided(len(companies), 60) == len(companies)
        await invariants.wait_at_rest(stack, len(companies), 30)
        found = await invariants.check(stack, companies, pause_s=0.2)
        assert found.broken == []
        assert worker.poll() is None
        assert stack.end_worker(worker) == 0


def address_space(pid: int) -> int:
    """Return the bytes of address space that a process has (proc(5))."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


async def _start_again(stack: Stack) -> None:
    """Start another worker whenever one has ended, as a supervisor does."""
    while True:
        if stack.workers[-1].poll() is not None:
            stack.start_worker()
        await asyncio.sleep(0.5)


async def test_a_limit_of_memory_decides_nothing(tmp_path: Path) -> None:
    """It may end the worker, and its supervisor starts another; no company pays for it."""
    async with Stack(tmp_path, reply_delay_s=0.2) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        companies = await mint(stack, 60)
        await stack.wait_decided(5, 30)
        _, hard = resource.prlimit(worker.pid, resource.RLIMIT_AS)
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (address_space(worker.pid) + 2**20, hard))
        companies |= await mint(stack, 1000)
        await asyncio.sleep(15)
        was_alive = worker.poll() is None
        if was_alive:
            resource.prlimit(worker.pid, resource.RLIMIT_AS, (hard, hard))
        else:
            stack.start_worker()
        supervisor = asyncio.create_task(_start_again(stack))  # it may end after this look too
        await invariants.wait_at_rest(stack, len(companies), 120)
        supervisor.cancel()
        logs = [stack.worker_log(number) for number in range(len(stack.workers))]
        # A control too may fail for want of memory: what was heard since the last one is asked again.
        lost = [line for log in logs for line in log.splitlines() if "This worker asks nobody: a control of" in line]
        # While it fails nobody is asked, so only the first of a row makes anything void.
        blows = len(stack.workers) - 1 + min(len(lost), 2 * len(stack.workers))
        found = await invariants.check(stack, companies, kills=blows, pause_s=None)
        assert found.broken == [], (lost, logs[-1][-2000:])
        log = logs[0]
        assert "MemoryError" in log or "annot allocate memory" in log or not was_alive, "the limit was not felt"


async def test_a_worker_that_is_stopped_for_longer_than_a_server_is_waited_for_blames_no_server(tmp_path: Path) -> None:
    """As by a suspended machine: all its timers run out at once, though the replies lie in the sockets."""
    async with Stack(tmp_path, reply_delay_s=0.6) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        companies: dict[UUID, str | None] = {}
        for wave in range(12):  # so that at each question of a session some company is found
            names: list[str | None] = [f"{kind}-s{wave}x{n}.example" for n in range(4) for kind in ("info", "contact")]
            ids = await stack.mint(names)
            await stack.publish(ids)
            companies |= dict(zip(ids, names, strict=True))
            await asyncio.sleep(0.6)
        worker.send_signal(signal.SIGSTOP)
        await asyncio.sleep(17)  # a command is waited for 15 s
        worker.send_signal(signal.SIGCONT)
        await invariants.wait_at_rest(stack, len(companies), 90)
        found = await invariants.check(stack, companies, kills=1, pause_s=None)
        assert found.broken == [], stack.worker_log()[-2000:]
        assert stack.end_worker(worker) == 0


#: However long a machine takes to bring so many into their sessions, none is there long enough to be given up.
PATIENT = """
from ct_stream.probes.smtp import SmtpSettings
SmtpSettings.__init__.__kwdefaults__["command_s"] = 250.0
"""


@pytest.mark.long
async def test_five_thousand_in_flight_are_given_up_within_the_drain_and_come_again(tmp_path: Path) -> None:
    number = 5000
    async with Stack(tmp_path, CT_IN_FLIGHT=str(number), CT_PASS_DEADLINE_S="300") as stack:
        worker = stack.start_worker(prelude=PATIENT)
        assert await stack.wait_said("Ready", 60)
        await stack.wait_ready(200, 60)  # its first controls have succeeded
        await stack.farm.set_reply_delay(200.0)
        ids = await stack.mint([f"contact-d{n}.example" for n in range(number)])
        await stack.publish(ids)
        leases = "SELECT count(*) FROM outreach.ct_domains WHERE lease_until > clock_timestamp()"
        deadline = time.monotonic() + 100
        while await stack.admin.fetchval(leases) < 0.98 * number:
            assert time.monotonic() < deadline, await stack.admin.fetchval(leases)
            await asyncio.sleep(0.5)
        # test_recovery_race shows with fewer companies that a drain ends in time; to park so many takes longer.
        assert stack.end_worker(worker, within_s=60) == 0, stack.worker_log()[-2000:]
        assert await stack.count_decided() == 0
        await stack.farm.set_reply_delay(0.0)
        again = stack.start_worker()
        decided = 0
        while decided < number:  # however long a machine with other work takes for so many
            before, decided = decided, await invariants.wait_at_rest(stack, number, 40)
            assert decided > before, f"{decided} were decided, and then none for 40 s: {stack.worker_log()[-2000:]}"
        assert stack.end_worker(again) == 0
