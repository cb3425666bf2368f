"""Where does the group stand, and what is in the topic? Looked at from outside the group."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from ct_stream.stream.topology import GROUP, SPINE_CREATED, kafka_options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from faust.types import TP

    from ct_stream.settings import Settings

_LOOK_TIMEOUT_S = 10.0


@asynccontextmanager
async def outside_consumer(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    """Lend a consumer without a group: it commits nothing and takes part in no rebalance."""
    consumer = AIOKafkaConsumer(
        **kafka_options(settings), client_id="ct-stream-look", group_id=None, enable_auto_commit=False
    )
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def next_record(settings: Settings, tp: TP, offset: int) -> int | None:
    """Return the offset of the first record at or after `offset`, or None when none came in time."""
    async with outside_consumer(settings) as consumer:
        partition = TopicPartition(tp.topic, tp.partition)
        consumer.assign([partition])
        consumer.seek(partition, offset)
        try:
            async with asyncio.timeout(_LOOK_TIMEOUT_S):
                record = await consumer.getone()
        except TimeoutError:
            return None
        return int(record.offset)


async def committed_offsets(settings: Settings) -> dict[int, int]:
    """Return the group's committed offset for each partition of spine.created that has one."""
    admin = AIOKafkaAdminClient(**kafka_options(settings), client_id="ct-stream-look")
    await admin.start()
    try:
        described = await admin.describe_topics([SPINE_CREATED])
        partitions = [TopicPartition(SPINE_CREATED, p["partition"]) for t in described for p in t["partitions"]]
        offsets = await admin.list_consumer_group_offsets(GROUP, partitions=partitions)
        return {tp.partition: meta.offset for tp, meta in offsets.items() if meta.offset >= 0}
    finally:
        await admin.close()


async def lag(settings: Settings) -> int:
    """Return how many records of spine.created the group has not committed. Raises KafkaError.

    Only for brokers whose end offsets are right; the embedded one's are not.
    """
    committed = await committed_offsets(settings)
    async with outside_consumer(settings) as consumer:
        partitions = consumer.partitions_for_topic(SPINE_CREATED) or set()
        if not partitions:
            await consumer.topics()
            partitions = consumer.partitions_for_topic(SPINE_CREATED) or set()
        tps = [TopicPartition(SPINE_CREATED, p) for p in partitions]
        ends = await consumer.end_offsets(tps)
        begins = await consumer.beginning_offsets(tps)
    return sum(max(0, ends[tp] - max(committed.get(tp.partition, 0), begins[tp])) for tp in tps)
