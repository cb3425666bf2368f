"""A record that the broker never got leaves a hole in the sequence of an idempotent producer (KIP-98)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from aiokafka.admin import NewTopic

from ct_stream.metrics import Health
from ct_stream.stream import producer as producing
from ct_stream.stream.producer import Producer, RecordTooLarge
from tests.kafka.test_small_rejects import limit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ct_stream.settings import Settings
    from tools.kafka.cluster import KafkaCluster


@pytest.fixture
async def producer(settings: Settings) -> AsyncIterator[Producer]:
    """Lend a producer that is started."""
    producer = Producer(settings, Health())
    await producer.start()
    yield producer
    await producer.stop()


async def within(seconds: float, producer: Producer, topic: str, values: list[bytes]) -> None:
    """Deliver records to one partition, all at once, in so many seconds."""
    async with asyncio.timeout(seconds):
        await asyncio.gather(*(producer.deliver(topic, b"k", value, []) for value in values))


async def test_after_a_record_that_the_topic_refuses(cluster: KafkaCluster, producer: Producer) -> None:
    assert producer.is_idempotent
    await within(10, producer, "ct.rejected", [b"before"])
    await limit(cluster, 1_500)
    with pytest.raises(RecordTooLarge):
        await producer.deliver("ct.rejected", b"k", b"x" * 10_000, [])
    await within(10, producer, "ct.rejected", [b"%d" % number for number in range(20)])
    assert producer.is_idempotent


async def test_after_a_partition_had_no_leader_for_longer_than_a_try_lasts(
    cluster: KafkaCluster, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producing, "PRODUCE_S", 3.0)
    async with cluster.admin() as admin:
        await admin.create_topics([NewTopic("lonely", -1, -1, replica_assignments={0: [2]})])
    producer = Producer(settings, Health())
    await producer.start()
    try:
        await within(20, producer, "lonely", [b"before"])
        await cluster.kill(2)
        waiting = asyncio.create_task(within(90, producer, "lonely", [b"%d" % number for number in range(20)]))
        await asyncio.sleep(12)
        assert not waiting.done()
        await cluster.start(2)
        await waiting
        await within(10, producer, "lonely", [b"after"])
    finally:
        await producer.stop()
