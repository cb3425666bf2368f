"""Brokers die (FAULTS rows 8 and 9): with one gone the gate goes on, with two it waits and says so; nothing is lost."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from aiokafka.errors import KafkaConnectionError

from ct_stream.ops.replay import lag
from ct_stream.settings import load_settings
from ct_stream.stream.producer import supports_idempotence
from ct_stream.stream.topology import SPINE_CREATED
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

    from ct_stream.settings import Settings
    from tools.kafka.cluster import KafkaCluster


async def published(stack: Stack) -> dict[UUID, list[tuple[object, ...]]]:
    """Return all copies of each outcome on the topics."""
    copies: dict[UUID, list[tuple[object, ...]]] = {}
    for record in await stack.records("ct.pass", "ct.fail"):
        copies.setdefault(UUID(record.key.decode()), []).append((record.topic, record.value, record.headers))
    return copies


async def all_acked(stack: Stack, within_s: float = 30) -> int:
    """Return the lag when there is none, or time is up."""
    deadline = time.monotonic() + within_s
    settings = load_settings({"CT_KAFKA_BOOTSTRAP": stack.env["CT_KAFKA_BOOTSTRAP"]})
    while True:
        left = await lag(settings)
        if left == 0 or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.3)


async def still(stack: Stack, *, for_s: float, within_s: float) -> int:
    """Return how many companies are decided when none was for `for_s`."""
    deadline = time.monotonic() + within_s
    decided, since = await stack.count_decided(), time.monotonic()
    while time.monotonic() - since < for_s:
        assert time.monotonic() < deadline, f"the gate still decides after {within_s:g} s"
        await asyncio.sleep(0.2)
        if (now := await stack.count_decided()) != decided:
            decided, since = now, time.monotonic()
    return decided


async def test_a_broker_that_is_away_does_not_hide_what_the_others_can(
    cluster: KafkaCluster, settings: Settings
) -> None:
    await cluster.kill(2)
    for _ in range(6):  # any of the three may be asked first
        assert await supports_idempotence(settings)
    await cluster.kill(1, 3)
    with pytest.raises(KafkaConnectionError):
        await supports_idempotence(settings)


@pytest.mark.long
async def test_one_of_three_brokers_dies_under_load_and_the_gate_continues(
    tmp_path: Path, cluster: KafkaCluster
) -> None:
    async with Stack(tmp_path, reply_delay_s=0.1) as stack:
        ids = await stack.mint([f"info-{n}.example" for n in range(800)])
        worker = stack.start_worker(CT_IN_FLIGHT="100")
        await stack.publish(ids[:500])
        assert await stack.wait_decided(100, 90) >= 100, stack.worker_log()[-2000:]
        # The one that leads the group is the hardest to lose.
        async with cluster.admin() as admin:
            victim = await admin.find_coordinator("ct-stream")
        await cluster.kill(victim)
        assert await stack.count_decided() < 500, "the kill did not fall into the middle of the work"
        await stack.publish(ids[500:])
        assert await stack.wait_decided(800, 90) == 800, stack.worker_log()[-3000:]
        assert await stack.wait_published(30) == 0
        assert victim not in cluster.running, "it went on without the broker"
        assert await all_acked(stack) == 0, f"exit {stack.workers[-1].poll()}: {stack.worker_log()[-3000:]}"
        copies = await published(stack)
        assert set(copies) == set(ids)
        assert all(len(same) == 1 for same in copies.values()), "an idempotent producer leaves no repeats"
        assert stack.end_worker(worker) == 0


@pytest.mark.long
async def test_two_of_three_brokers_die_and_everything_waits_until_they_are_back(
    tmp_path: Path, cluster: KafkaCluster
) -> None:
    async with Stack(tmp_path, reply_delay_s=0.1) as stack:
        ids = await stack.mint([f"info-{n}.example" for n in range(600)])
        worker = stack.start_worker(CT_IN_FLIGHT="50")
        await stack.publish(ids)
        assert await stack.wait_decided(100, 90) >= 100, stack.worker_log()[-2000:]
        await cluster.kill(1, 2)
        troubles = await stack.wait_ready(503, 60)
        assert {"kafka", "kafka_group"} & set(troubles), troubles
        stands_at = await still(stack, for_s=5, within_s=40)
        assert stands_at < 600, "the gate went on deciding what it cannot publish"
        waiting = await stack.admin.fetchval(
            "SELECT count(*) FROM outreach.ct_outcomes WHERE published_at IS NULL AND topic IS NOT NULL"
        )
        assert 0 < waiting <= 100, "outcomes wait in the ledger, no more than were in flight"
        assert worker.poll() is None, "the outage ended the worker"
        await cluster.start(1, 2)
        assert await stack.wait_decided(600, 120) == 600, stack.worker_log()[-3000:]
        assert await stack.wait_published(60) == 0
        await stack.wait_ready(200, 30)
        assert await all_acked(stack) == 0, f"exit {stack.workers[-1].poll()}: {stack.worker_log()[-3000:]}"
        copies = await published(stack)
        assert set(copies) == set(ids)
        assert all(len(set(same)) == 1 for same in copies.values()), "two copies of one outcome differ"
        assert stack.end_worker(worker) == 0


async def test_an_idle_worker_says_that_two_of_three_brokers_are_gone(tmp_path: Path, cluster: KafkaCluster) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 40), stack.worker_log()
        await stack.wait_ready(200, 20)
        await cluster.kill(1, 3)
        assert "kafka_group" in await stack.wait_ready(503, 60)
        assert len(stack.worker_log().splitlines()) < 60, f"the outage floods the log: {stack.worker_log()[-3000:]}"
        await cluster.start(1, 3)
        await stack.wait_ready(200, 60)
        assert stack.end_worker(worker) == 0


async def test_a_restart_of_the_whole_cluster_loses_nothing(tmp_path: Path, cluster: KafkaCluster) -> None:
    """SIGKILL for all three at once, in mid-work: topics, offsets and the group come back, and the worker goes on."""
    async with Stack(tmp_path, reply_delay_s=0.1) as stack:
        ids = await stack.mint([f"info-{n}.example" for n in range(400)])
        worker = stack.start_worker(CT_IN_FLIGHT="50")
        await stack.publish(ids[:200])
        assert await stack.wait_decided(80, 90) >= 80, stack.worker_log()[-2000:]
        before = await stack.committed()
        await cluster.kill(1, 2, 3)
        await cluster.repair()
        after = await stack.committed()
        assert all(after[partition] >= offset for partition, offset in before.items()), "committed offsets went back"
        async with cluster.admin() as admin:
            topics = await admin.describe_topics([SPINE_CREATED])
        assert len(topics[0]["partitions"]) == 12
        await stack.publish(ids[200:])
        assert await stack.wait_decided(400, 90) == 400, stack.worker_log()[-3000:]
        assert await stack.wait_published(60) == 0
        assert await all_acked(stack) == 0, f"exit {stack.workers[-1].poll()}: {stack.worker_log()[-3000:]}"
        copies = await published(stack)
        assert set(copies) == set(ids)
        assert all(len(set(same)) == 1 for same in copies.values()), "two copies of one outcome differ"
        assert worker.poll() is None, "the restart of the cluster ended the worker"
        assert stack.end_worker(worker) == 0


# Stops where the worker has seen that everything is well, and Faust has not begun.
_PAUSED = """
import asyncio, pathlib
from ct_stream.stream.app import GateApp
start = GateApp.start
async def paused(self):
    print("everything is well", flush=True)
    while not pathlib.Path({gone!r}).exists():
        await asyncio.sleep(0.05)
    await start(self)
GateApp.start = paused
"""


async def test_brokers_that_vanish_between_the_checks_and_the_first_read_are_no_bug(
    tmp_path: Path, cluster: KafkaCluster
) -> None:
    gone = tmp_path / "gone"
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker(prelude=_PAUSED.format(gone=str(gone)))
        assert await stack.wait_said("everything is well", 40)
        await cluster.kill(1, 2, 3)
        gone.touch()
        assert await stack.wait_end(worker, 60) == 75
        assert "Stopping: Kafka went away: " in stack.worker_log()
        assert "Unable to bootstrap" not in stack.worker_log().partition("Stopping: ")[2]
        assert "Traceback" not in stack.worker_log()
        again = stack.start_worker()
        assert await stack.wait_said("Waiting: ", 40)
        await cluster.repair()
        await stack.publish(await stack.mint(["info-a.example"]))
        assert await stack.wait_decided(1, 60) == 1, stack.worker_log()[-3000:]
        assert stack.end_worker(again) == 0


async def test_brokers_that_are_restarted_one_after_the_other_are_not_noticed(
    tmp_path: Path, cluster: KafkaCluster
) -> None:
    """An upgrade of the cluster, the way it is done."""
    async with Stack(tmp_path, reply_delay_s=0.1) as stack:
        ids = await stack.mint([f"info-{n}.example" for n in range(900)])
        worker = stack.start_worker(CT_IN_FLIGHT="40")
        await stack.publish(ids)
        assert await stack.wait_decided(50, 40) >= 50, stack.worker_log()[-2000:]
        for node in (1, 2, 3):
            await cluster.stop(node)
            await cluster.repair()
        assert await stack.wait_decided(900, 90) == 900, stack.worker_log()[-3000:]
        assert await stack.wait_published(30) == 0
        assert await all_acked(stack) == 0, f"exit {stack.workers[-1].poll()}: {stack.worker_log()[-3000:]}"
        copies = await published(stack)
        assert set(copies) == set(ids)
        assert all(len(same) == 1 for same in copies.values()), "an idempotent producer leaves no repeats"
        assert worker.poll() is None
        assert stack.end_worker(worker) == 0
