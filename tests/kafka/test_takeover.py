"""Partitions go from one worker to another, politely or not: nothing is lost, nobody is decided twice."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from aiokafka import AIOKafkaConsumer

from tests.faults.harness import Stack, said
from tests.faults.test_recovery_race import DELAY

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path


async def each_published_once_or_alike(stack: Stack, ids: list[UUID]) -> None:
    copies: dict[UUID, set[tuple[object, ...]]] = {}
    for record in await stack.records("ct.pass", "ct.fail"):
        copies.setdefault(UUID(record.key.decode()), set()).add((record.topic, record.value, record.headers))
    assert set(copies) == set(ids)
    assert all(len(same) == 1 for same in copies.values()), "two records of one company differ"


def living(*workers: subprocess.Popen[bytes]) -> list[int | None]:
    return [worker.poll() for worker in workers]


@pytest.mark.long
async def test_a_second_worker_takes_half_of_the_partitions_and_gives_them_back(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.1) as stack:
        first = stack.start_worker(CT_IN_FLIGHT="30")
        await said(stack, 0, "Assigned 12 partitions")
        ids = await stack.mint([f"info-{n}.example" for n in range(900)])
        await stack.publish(ids)
        assert await stack.wait_decided(60, 40) >= 60
        second = stack.start_worker(CT_IN_FLIGHT="30")
        await said(stack, 0, "Assigned 6 partitions")
        await said(stack, 1, "Assigned 6 partitions")
        before = await stack.count_decided()
        assert before < 900, "the rebalance did not fall into the middle of the work"
        assert await stack.wait_decided(before + 100, 40) >= before + 100, "nothing goes on after the rebalance"
        assert stack.end_worker(second) == 0
        await stack.farm.set_reply_delay(0.0)
        assert await stack.wait_decided(900, 90, by=first) == 900, stack.worker_log(0)[-3000:]
        assert await stack.wait_published(40) == 0
        await each_published_once_or_alike(stack, ids)
        assert living(first, second) == [None, 0]
        assert stack.end_worker(first) == 0


@pytest.mark.long
async def test_an_idle_spare_takes_over_from_a_killed_worker_and_loses_nothing(tmp_path: Path) -> None:
    """One partition, two workers: the spare recovers a table and gets a backlog at once, where Faust's race is.

    Its guard is on, and the delay makes the race certain (see test_recovery_race.py).
    """
    async with Stack(tmp_path, reply_delay_s=0.1, partitions=1) as stack:
        victim = stack.start_worker(CT_IN_FLIGHT="30")
        await said(stack, 0, "Assigned 1 partitions")
        spare = stack.start_worker(prelude=DELAY, CT_IN_FLIGHT="10")
        # Which of the two is idle is the leader's choice.
        await said(stack, 1, "Assigned ")
        ids = await stack.mint([f"info-{n}.example" for n in range(600)])
        await stack.publish(ids)
        assert await stack.wait_decided(60, 60) >= 60, stack.worker_log()
        owner = 0 if stack.worker_log(0).rfind("Assigned 1") > stack.worker_log(0).rfind("Assigned 0") else 1
        other = 1 - owner
        pair = [victim, spare]
        assert "Assigned 0 partitions" in stack.worker_log(other)
        stack.end_worker(pair[owner], signal.SIGKILL)
        before = await stack.count_decided()
        assert before < 600, "the kill did not fall into the middle of the work"
        await said(stack, other, "Assigned 1 partitions")
        await stack.farm.set_reply_delay(0.0)
        decided = await stack.wait_decided(600, 90, by=pair[other])
        assert pair[other].poll() is None, stack.worker_log(other)[-3000:]
        assert decided == 600, stack.worker_log(other)[-3000:]
        assert await stack.wait_published(40) == 0
        await each_published_once_or_alike(stack, ids)


@pytest.mark.long
async def test_a_worker_that_hangs_is_replaced_and_cannot_overwrite_when_it_continues(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.1) as stack:
        hanging = stack.start_worker(CT_IN_FLIGHT="40")
        await said(stack, 0, "Ready")
        ids = await stack.mint([f"info-{n}.example" for n in range(500)])
        await stack.publish(ids)
        assert await stack.wait_decided(50, 40) >= 50
        os.kill(hanging.pid, signal.SIGSTOP)
        try:
            before = await stack.count_decided()
            assert before < 500, "the hang did not fall into the middle of the work"
            stack.start_worker()
            await said(stack, 1, "Assigned 12 partitions")
            assert await stack.wait_decided(before + 100, 60) >= before + 100
        finally:
            os.kill(hanging.pid, signal.SIGCONT)
        assert await stack.wait_decided(500, 90) == 500, stack.worker_log(1)[-3000:]
        assert await stack.wait_published(60) == 0
        await each_published_once_or_alike(stack, ids)


async def test_a_member_of_another_kind_keeps_a_worker_out_of_the_group_until_it_leaves(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        await stack.publish(await stack.mint(["info-a1.example"]))
        brokers = stack.env["CT_KAFKA_BOOTSTRAP"]
        stranger = AIOKafkaConsumer(
            "spine.created", bootstrap_servers=brokers, group_id=stack.names.group, enable_auto_commit=False
        )
        await stranger.start()
        try:
            stack.start_worker(prelude="import ct_stream.wiring.watching as w; w._LAG_EVERY_S = 1.0")
            assert await stack.wait_said("Health and metrics", 20), stack.worker_log()
            await stack.wait_trouble("kafka_group", "a program of another kind is a member of it", 40)
            assert (await stack.readyz())[0] == 503
        finally:
            await stranger.stop()
        await stack.wait_ready(200, 20)
        assert await stack.wait_decided(1, 20) == 1, stack.worker_log()
