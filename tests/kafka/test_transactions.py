"""Offsets with holes: a transactional upstream and compaction. Nothing is lost, nothing is alarmed, commits go on."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from ct_stream.ops.replay import lag
from ct_stream.settings import load_settings
from ct_stream.stream.position import outside_consumer
from ct_stream.stream.topology import SPINE_CREATED
from tests.brokers import idempotent_producer
from tests.faults.harness import Stack
from tests.kafka.upstream import send, transactional

if TYPE_CHECKING:
    from pathlib import Path

    from tools.kafka.cluster import KafkaCluster

pytestmark = pytest.mark.usefixtures("cluster")
PARTITION = 4


async def committed_at_least(stack: Stack, offset: int, within_s: float = 20) -> int:
    """Return the group's offset of the partition when it is so far, or time is up."""
    deadline = time.monotonic() + within_s
    while True:
        found = (await stack.committed()).get(PARTITION, -1)
        if found >= offset or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)


async def decided(stack: Stack) -> set[UUID]:
    return {row["outreach_id"] for row in await stack.admin.fetch("SELECT outreach_id FROM outreach.ct_outcomes")}


async def test_aborted_records_are_not_decided_and_transaction_markers_block_nothing(
    tmp_path: Path,
) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 40), stack.worker_log()
        kept = await stack.mint([f"info-k{n}.example" for n in range(12)])
        aborted = await stack.mint([f"info-a{n}.example" for n in range(25)])
        async with transactional(stack.env["CT_KAFKA_BOOTSTRAP"]) as producer:
            await send(producer, kept[:3], partition=PARTITION)  # offsets 0 to 2, the mark is 3
            await send(producer, aborted[:20], partition=PARTITION, abort=True)  # 4 to 23, 24
            await send(producer, kept[3:6], partition=PARTITION)  # 25 to 27, 28
            assert await stack.wait_decided(6, 40) == 6, stack.worker_log()[-2000:]
            assert await committed_at_least(stack, 28) == 28, "the hole holds the commits up"
            await send(producer, aborted[20:], partition=PARTITION, abort=True)  # 29 to 33, 34
        assert await lag(load_settings({"CT_KAFKA_BOOTSTRAP": stack.env["CT_KAFKA_BOOTSTRAP"]})) == 0
        assert stack.end_worker(worker) == 0
        # A start whose first record lies behind a hole, and a hole right behind another.
        async with transactional(stack.env["CT_KAFKA_BOOTSTRAP"]) as producer:
            await send(producer, kept[6:9], partition=PARTITION)  # 35 to 37, 38
            await send(producer, [uuid4()], partition=PARTITION, abort=True)  # 39, 40
            await send(producer, kept[9:], partition=PARTITION)  # 41 to 43, 44
        worker = stack.start_worker()
        assert await stack.wait_decided(12, 40) == 12, stack.worker_log()[-2000:]
        assert await committed_at_least(stack, 44) == 44
        assert await decided(stack) == set(kept)
        assert "Already processed" not in stack.worker_log(), "a commit was missing: something was delivered again"
        assert stack.end_worker(worker) == 0


async def test_an_open_transaction_is_waited_for(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        stack.start_worker()
        first, second, other = await stack.mint(["info-1.example", "info-2.example", "info-3.example"])
        async with transactional(stack.env["CT_KAFKA_BOOTSTRAP"]) as producer:
            await producer.begin_transaction()
            await producer.send_and_wait(SPINE_CREATED, f'{{"outreach_id": "{first}"}}'.encode(), partition=PARTITION)
            async with idempotent_producer(stack.env["CT_KAFKA_BOOTSTRAP"]) as plain:
                for company, partition in ((second, PARTITION), (other, PARTITION + 1)):
                    value = f'{{"outreach_id": "{company}"}}'.encode()
                    await plain.send_and_wait(SPINE_CREATED, value, partition=partition)
            assert await stack.wait_decided(1, 40) == 1, stack.worker_log()[-2000:]
            assert await decided(stack) == {other}, "a record that may still be taken back was decided"
            await producer.commit_transaction()
        assert await stack.wait_decided(3, 30) == 3, stack.worker_log()[-2000:]


@pytest.mark.long
async def test_holes_that_compaction_leaves_raise_no_alarm_and_hold_nothing_up(
    tmp_path: Path, cluster: KafkaCluster
) -> None:
    """An upstream that compacts spine.created: of 400 records of 4 companies a few are left, with holes between."""
    async with Stack(tmp_path) as stack:
        ids = await stack.mint([f"info-{n}.example" for n in range(8)])
        async with cluster.admin() as admin:
            settings = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, SPINE_CREATED, configs=settings)])
        async with idempotent_producer(stack.env["CT_KAFKA_BOOTSTRAP"]) as producer:
            for number in range(400):
                if number == 397:  # Kafka never compacts the newest segment; let the last records have it
                    await asyncio.sleep(0.3)
                company = ids[0] if number % 100 else ids[number // 100]
                await _send(producer, company)
        left = await _compacted(stack, end=400, fewer_than=50)
        last = left[-1]
        assert any(after - before > 1 for before, after in itertools.pairwise(left)), "no hole was left"
        worker = stack.start_worker()
        assert await stack.wait_decided(4, 40) == 4, stack.worker_log()[-2000:]
        async with idempotent_producer(stack.env["CT_KAFKA_BOOTSTRAP"]) as producer:
            for company in ids[4:]:
                await _send(producer, company)
        assert await stack.wait_decided(8, 30) == 8, stack.worker_log()[-2000:]
        assert await committed_at_least(stack, last + 5) == last + 5
        assert stack.end_worker(worker) == 0


async def _send(producer: AIOKafkaProducer, company: UUID) -> None:
    value = f'{{"outreach_id": "{company}"}}'.encode()
    await producer.send_and_wait(SPINE_CREATED, value, str(company).encode(), partition=PARTITION)


async def _compacted(stack: Stack, *, end: int, fewer_than: int) -> list[int]:
    """Return the offsets that are left once Kafka has compacted the partition."""
    partition = TopicPartition(SPINE_CREATED, PARTITION)
    deadline = time.monotonic() + 40
    while True:
        async with outside_consumer(load_settings(stack.env)) as consumer:
            consumer.assign([partition])
            consumer.seek(partition, 0)
            offsets: list[int] = []
            while await consumer.position(partition) < end:
                found = await consumer.getmany(partition, timeout_ms=200)
                offsets += [record.offset for records in found.values() for record in records]
        if len(offsets) < fewer_than:
            return offsets
        assert time.monotonic() < deadline, f"Kafka has not compacted: {len(offsets)} records are left"
        await asyncio.sleep(0.5)
