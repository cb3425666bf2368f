"""When does the watchdog bite, and when never? The decision, by a scripted clock; then in a process."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from ct_stream.metrics import Health
from ct_stream.process.watchdog import EXIT_CODE, Commits, Hang, Thresholds, Watch, Watchdog, describe

LIMITS = Thresholds(unacked_s=100.0, commit_s=60.0, blocked_s=30.0)
PLACE = "spine.created[3] offset 7"
PARTITION = "spine.created[3]"


def look_each_second(
    watch: Watch, begin: int, end: int, arrived: float, *, troubled_until: float = -1e9
) -> float | None:
    """Look once a second; return when it bit."""
    for at in range(begin, end):
        watch.excuse(min(float(at), troubled_until))
        if (hang := watch.look(float(at), {PLACE: arrived})) is not None:
            assert hang.places == (PLACE,)
            assert PLACE in hang.reason
            return float(at)
    return None


def test_an_event_that_is_not_acked_in_time_is_a_hang() -> None:
    assert look_each_second(Watch(LIMITS), 1000, 1200, arrived=1000.0) == 1101.0


def test_events_that_are_acked_in_time_are_no_hang() -> None:
    watch = Watch(LIMITS)
    assert all(watch.look(float(at), {f"spine.created[3] offset {at}": at - 90.0}) is None for at in range(1000, 2000))
    assert watch.look(2000.0, {}) is None


def test_an_outage_never_counts_and_all_times_restart_after_it() -> None:
    assert look_each_second(Watch(LIMITS), 1000, 9000, arrived=1000.0, troubled_until=8000.0) == 8101.0


def test_an_outage_that_comes_and_goes_never_counts() -> None:
    """A lock on the ledger shows itself for a moment every 15 s only, when a statement runs out of time."""
    watch = Watch(LIMITS)
    for at in range(1000, 9000):
        watch.excuse(at - at % 15 + 0.2)
        assert watch.look(float(at), {PLACE: 1000.0}) is None


def test_a_process_that_was_stopped_is_not_one_that_hangs() -> None:
    """SIGSTOP for an hour, or a frozen machine: nobody looked meanwhile, and nothing could make progress."""
    watch = Watch(LIMITS)
    assert watch.look(1000.0, {PLACE: 1000.0}) is None
    assert watch.look(4600.0, {PLACE: 1000.0}) is None
    assert look_each_second(watch, 4601, 4800, arrived=1000.0) == 4701.0


def test_every_event_that_hangs_is_named_the_oldest_first() -> None:
    hang = Watch(LIMITS).look(1000.0, {"a": 850.0, "b": 800.0, "c": 950.0})
    assert hang is not None
    assert hang.places == ("b", "a")


def commits_each_second(watch: Watch, moves: bool, *, done: int = 50, seconds: int = 300) -> int | None:
    for at in range(seconds):
        committed = 10 + at // 40 if moves else 10
        hang = watch.look_at_commits(float(at), {PARTITION: Commits(done=done, committed=committed)})
        if hang is not None:
            assert hang.places == (f"{PARTITION} offset {committed}",)
            return at
    return None


def test_commits_that_stand_still_with_something_to_commit_are_a_hang() -> None:
    assert commits_each_second(Watch(LIMITS), moves=False) == 61


def test_commits_that_advance_or_have_nothing_to_commit_are_no_hang() -> None:
    assert commits_each_second(Watch(LIMITS), moves=True) is None
    assert commits_each_second(Watch(LIMITS), moves=False, done=10) is None


def test_commits_wait_for_the_end_of_an_outage() -> None:
    watch = Watch(LIMITS)
    for at in range(500):
        watch.excuse(float(min(at, 400)))
        hang = watch.look_at_commits(float(at), {PARTITION: Commits(done=50, committed=10)})
        if hang is not None:
            assert at == 461
            return
    pytest.fail("commits that stand still after an outage were not seen")


def test_a_record_that_waits_in_kafka_and_is_not_delivered_is_a_hang() -> None:
    watch = Watch(Thresholds(unacked_s=100.0, undelivered_s=60.0))
    looks = range(0, 300, 15)
    bitten = [at for at in looks if watch.look_at_input(float(at), {PARTITION: 7}) is not None]
    assert bitten[0] == 75
    hang = watch.look_at_input(300.0, {PARTITION: 7, "spine.created[4]": 9})
    assert hang is not None
    assert hang.places == ("spine.created[3] offset 7",)
    assert hang.reason == f"{PARTITION} offset 7 has been in Kafka for 300 s and is not delivered (at most 60 s)"


def test_a_partition_that_advances_or_has_nothing_to_read_is_no_hang() -> None:
    watch = Watch(Thresholds(unacked_s=100.0, undelivered_s=60.0))
    assert all(watch.look_at_input(float(at), {PARTITION: at // 30}) is None for at in range(0, 900, 15))
    assert watch.look_at_input(900.0, {}) is None
    assert watch.look_at_input(915.0, {PARTITION: 60}) is None
    watch.excuse(970.0)
    assert watch.look_at_input(980.0, {PARTITION: 60}) is None


def test_a_rebalance_that_does_not_end_is_a_hang_and_an_outage_restarts_its_time() -> None:
    watch = Watch(Thresholds(unacked_s=100.0, unassigned_s=60.0))
    assert watch.look_at_group(1000.0, None) is None
    assert watch.look_at_group(1050.0, 1000.0) is None
    watch.excuse(1030.0)
    assert watch.look_at_group(1085.0, 1000.0) is None
    hang = watch.look_at_group(1091.0, 1000.0)
    assert hang is not None
    assert (hang.reason, hang.places) == (
        "the group has assigned no partitions for 91 s (at most 60 s)",
        ("the group",),
    )


def test_three_exits_of_the_slowest_kind_fall_into_one_window() -> None:
    usual = Thresholds.of(90.0)
    assert (usual.unacked_s, usual.window_s) == (240.0, 660.0)
    assert Thresholds.of(10.0).window_s == 600.0
    slow = Thresholds.of(600.0)
    assert slow.window_s >= 2 * (slow.unacked_s + slow.restart_s)


def test_a_trouble_is_known_until_it_ends() -> None:
    health = Health()
    assert health.troubled_until("kafka") == float("-inf")
    health.set("kafka", "does not answer")
    first = health.troubled_until("postgres", "kafka")
    assert health.troubled_until("kafka") >= first > 0
    health.set("kafka", None)
    ended = health.troubled_until("kafka")
    assert ended >= first
    assert health.troubled_until("kafka") == ended


async def test_the_dump_says_where_each_task_waits_and_puts_equal_ones_together() -> None:
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def inner(_secret: str) -> None:
        await never

    async def outer() -> None:
        await inner("a value that must not be told")

    tasks = [asyncio.create_task(outer(), name=f"event:3:{n}") for n in range(500)]
    await asyncio.sleep(0)
    dump = describe(tasks)
    assert re.search(r"500 x event:3:\d+\n.*outer\n.*inner\n\s+waits for ", dump), dump
    assert "a value" not in dump
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_dump_is_bounded() -> None:
    made: list[asyncio.Task[None]] = []
    for number in range(2000):
        scope: dict[str, object] = {}
        exec(f"async def waits_{number}(it):\n    await it", scope)
        made.append(asyncio.create_task(scope[f"waits_{number}"](asyncio.Event().wait())))  # type: ignore[operator]
    await asyncio.sleep(0)
    assert len(describe(made)) < 49_000
    for task in made:
        task.cancel()
    await asyncio.gather(*made, return_exceptions=True)


BLOCKED = """
import asyncio, os, signal, sys, time
from ct_stream.process.watchdog import *
async def main():
    async def record(places, reason):
        print(list(places), flush=True)
    dog = Watchdog("spine.created", Thresholds(unacked_s=60.0, blocked_s=0.4), record)
    dog._heads = lambda: {"spine.created[1] offset 5": 1.0}
    dog.start()
    async def event():
        %s
    await asyncio.create_task(event(), name="event:2:41")
    print("went on")
asyncio.run(main())
"""


def run_blocked(body: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKED % body], capture_output=True, text=True, timeout=30, check=False
    )


def test_a_blocked_loop_ends_the_process_and_says_which_event_and_which_line() -> None:
    done = run_blocked("time.sleep(20)")
    assert done.returncode == EXIT_CODE
    assert done.stdout == "['spine.created[2] offset 41']\n"
    assert "the event loop has been blocked for 0 s (at most 0.4 s) in spine.created[2] offset 41" in done.stderr
    assert "in event" in done.stderr, "no stack of the blocked thread"


def test_a_loop_that_only_waits_is_not_blocked() -> None:
    done = run_blocked("await asyncio.sleep(1.5)")
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


async def test_a_look_that_always_fails_does_not_stop_the_others() -> None:
    """A look at the input that fails (a bug, one broker that swallows packets) hid every event that hung."""
    begin = time.monotonic()
    looks: list[float] = []

    async def undelivered() -> dict[str, int]:
        looks.append(time.monotonic())
        raise TypeError("our own bug")

    async def nothing(*_: object) -> None:
        return None

    async def committed() -> dict[int, int]:
        return {}

    # The proportions of the real ones (240 : 120), a hundredth as long.
    thresholds = Thresholds(unacked_s=2.4, commit_s=1.5, undelivered_s=1.2, blocked_s=60.0)
    senses: Any = SimpleNamespace(
        heads=lambda: {"spine.created[3] offset 7": begin}, done=dict, committed=committed, undelivered=undelivered,
        unassigned_since=lambda: None, excused=lambda: -inf, outage=nothing,
    )  # fmt: skip
    watchdog = Watchdog("spine.created", thresholds, nothing)
    bitten: asyncio.Future[Hang] = asyncio.get_running_loop().create_future()

    async def bite(hang: Hang) -> None:
        if not bitten.done():
            bitten.set_result(hang)

    watchdog._bite = bite  # type: ignore[method-assign]
    running = asyncio.create_task(watchdog.service(senses).run())
    hang = await asyncio.wait_for(bitten, 30)
    running.cancel()
    assert hang.places == ("spine.created[3] offset 7",)
    assert looks
