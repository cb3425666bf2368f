"""A group that is reset to the beginning: each event meets its outcome, and nobody is asked again (FAULTS 15).

Also where the dedupe table, which is a cache, was lost (FAULTS 17): then the ledger says so.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from ct_stream.settings import load_settings
from ct_stream.stream.topology import CHANGELOG, GROUP, SPINE_CREATED, create_topics
from tests.brokers import wait_topics
from tests.faults import invariants
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("info", "allreject", "catchall", "nxdomain")
COMPANIES = 80

#: Two threads share Faust's set of partitions to fetch from: emptied (the changelog is read) between the one's look and
#: the other's use of it, it means all partitions, whose records are then dropped: the flow is stopped. Offset 0 is not
#: sought again (aiokafka's seek_to_committed leaves it out), and the look-up of the offsets is slow.
EMPTIED_SET = """
import asyncio
import aiokafka.consumer.fetcher as fetcher
import faust.transport.drivers.aiokafka as driver
fetched_records = fetcher.Fetcher.fetched_records
async def late(self, partitions, *options, **named):
    if partitions and all(tp.topic != "spine.created" for tp in partitions):
        await asyncio.sleep(0.5)
    return await fetched_records(self, partitions, *options, **named)
fetcher.Fetcher.fetched_records = late
earliest_offsets = driver.AIOKafkaConsumerThread.earliest_offsets
async def slow(self, *partitions):
    if any(tp.topic == "spine.created" for tp in partitions):
        await asyncio.sleep(2.5)
    return await earliest_offsets(self, *partitions)
driver.AIOKafkaConsumerThread.earliest_offsets = slow
"""


async def rewind(stack: Stack, to: int = 0) -> None:
    """Let the group stand at the beginning of every partition, as a reset to earliest does, or anywhere else."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=stack.env["CT_KAFKA_BOOTSTRAP"], group_id=GROUP, enable_auto_commit=False
    )
    await consumer.start()
    try:
        partitions = [TopicPartition(SPINE_CREATED, partition) for partition in range(12)]
        consumer.assign(partitions)
        await consumer.commit(dict.fromkeys(partitions, to))
    finally:
        await consumer.stop()


async def lose_table(stack: Stack) -> None:
    """Delete the dedupe table's changelog, and make it again, empty."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.env["CT_KAFKA_BOOTSTRAP"])
    await admin.start()
    try:
        await admin.delete_topics([CHANGELOG])
        await wait_topics(admin, lambda known: CHANGELOG not in known)
    finally:
        await admin.close()
    await create_topics(load_settings(stack.env))


@pytest.mark.parametrize(
    ("table", "prelude"),
    [
        pytest.param("kept", "", id="kept"),
        pytest.param("lost", "", id="lost"),
        pytest.param("kept", EMPTIED_SET, id="a recovery that leaves the worker behind its events"),
    ],
)
async def test_a_group_that_is_reset_to_the_beginning_asks_and_publishes_nothing(
    tmp_path: Path, table: str, prelude: str
) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        names: list[str | None] = [f"{KINDS[n % len(KINDS)]}-{n}.example" for n in range(COMPANIES)]
        ids = await stack.mint(names)
        await stack.publish(ids)
        await invariants.wait_at_rest(stack, COMPANIES, 60)
        assert stack.end_worker(worker) == 0
        before = await invariants.ledger_hashes(stack)
        sessions = len((await stack.farm.log()).company_sessions())
        await rewind(stack)
        if table == "lost":
            await lose_table(stack)
        again = stack.start_worker(prelude=prelude, session_s=45.0)  # no rebalance that would cure a silent worker
        deadline = time.monotonic() + 60
        while stack.worker_log().count("Already processed") < COMPANIES:
            assert time.monotonic() < deadline, stack.worker_log()[-2000:]
            await asyncio.sleep(0.2)
        found = await invariants.check(stack, dict(zip(ids, names, strict=True)), pause_s=0.2, before=[before])
        assert found.broken == [], stack.worker_log()[-2000:]
        assert found.figures["repeats on the topics"] == 0
        assert len((await stack.farm.log()).company_sessions()) == sessions, "somebody was asked again"
        assert stack.end_worker(again) == 0


async def test_a_topic_that_ends_before_the_committed_offset_is_not_read(tmp_path: Path) -> None:
    """As where a cluster lost records, or offsets were copied from another: what comes next would count as read."""
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        names: list[str | None] = [f"info-{n}.example" for n in range(COMPANIES)]
        await stack.publish(await stack.mint(names[:40]))
        await invariants.wait_at_rest(stack, 40, 60)
        assert stack.end_worker(worker) == 0
        await rewind(stack, to=1000)
        await stack.publish(await stack.mint(names[40:]))
        again = stack.start_worker()
        assert await stack.wait_end(again, 60) == 78, stack.worker_log()[-2000:]
        assert "ends at" in stack.worker_log()
        assert "--reset-offsets --to-earliest" in stack.worker_log()
        assert await stack.count_decided() == 40
        await rewind(stack)
        last = stack.start_worker()
        await invariants.wait_at_rest(stack, COMPANIES, 60)
        assert await stack.count_decided() == COMPANIES
        assert stack.end_worker(last) == 0
