"""A record that ct.rejected finds too large is cut further, and holds up nobody."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.faults.harness import Stack
from tests.trouble.test_poison import committed_to, send

if TYPE_CHECKING:
    from pathlib import Path

    from tools.kafka.cluster import KafkaCluster


async def limit(cluster: KafkaCluster, most_bytes: int, topic: str = "ct.rejected") -> None:
    """Let a topic take records of so many bytes. Brokers hear of that from the controller, each in its own time.

    They take up its news one after the other, and of each news the partitions before the limits: who leads a partition
    that was made after that news was heard knows the limit.
    """
    resource = ConfigResource(ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(most_bytes)})
    async with cluster.admin() as admin:
        await admin.alter_configs([resource])
    for _ in range(2):
        await _made_on_each_broker(cluster)


async def _made_on_each_broker(cluster: KafkaCluster) -> None:
    """Make a topic, and return when each broker leads its partition of it."""
    later = f"later-{uuid4().hex}"
    async with cluster.admin() as admin:
        await admin.create_topics([NewTopic(later, -1, -1, replica_assignments={0: [1], 1: [2], 2: [3]})])
    async with AIOKafkaProducer(bootstrap_servers=cluster.bootstrap, acks="all") as producer, asyncio.timeout(30):
        for partition in range(3):
            await producer.send_and_wait(later, b"x", partition=partition)


async def test_a_topic_that_takes_little_gets_little_of_the_original(cluster: KafkaCluster, tmp_path: Path) -> None:
    junk = b"x" * 400_000
    async with Stack(tmp_path) as stack:
        await limit(cluster, 100_000)
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        await send(stack, [(b"k", junk, [("h", b"v" * 1000)] * 100)])
        assert await committed_to(stack, 1, 30) == 1, stack.worker_log()[-3000:]
        await limit(cluster, 1_500)
        await send(stack, [(b"k", junk, [])])
        assert await committed_to(stack, 2, 30) == 2, stack.worker_log()[-3000:]
        first, second = sorted(await stack.records("ct.rejected"), key=lambda record: -len(record.value))
        assert stack.end_worker(worker) == 0
    for record, kept in ((first, 64 * 1024), (second, 0)):
        headers = dict(record.headers)
        assert (record.value, headers["ct_kept_size"]) == (junk[:kept], str(kept).encode())
        assert headers["ct_original_sha256"] == hashlib.sha256(junk).hexdigest().encode()


@pytest.mark.parametrize("mib", [1, 3])
async def test_a_value_of_1_mib_and_one_beyond_what_a_fetch_takes_are_rejected(
    cluster: KafkaCluster, tmp_path: Path, mib: int
) -> None:
    """Where a topic was given room for them: a consumer fetches 1 MiB a partition by default (KIP-74 goes beyond)."""
    junk = b"x" * (mib * 1024 * 1024)
    async with Stack(tmp_path) as stack:
        await limit(cluster, 4 * 1024 * 1024, "spine.created")
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        async with AIOKafkaProducer(
            bootstrap_servers=stack.env["CT_KAFKA_BOOTSTRAP"], acks="all", max_request_size=5 * 1024 * 1024
        ) as producer:
            await producer.send_and_wait("spine.created", junk, b"k")
        assert await committed_to(stack, 1, 30) == 1, stack.worker_log()[-3000:]
        [record] = await stack.records("ct.rejected")
        assert stack.end_worker(worker) == 0
    headers = dict(record.headers)
    assert headers["ct_reject_reason"].startswith(b"too-large")
    assert headers["ct_original_size"] == str(len(junk)).encode()
    assert headers["ct_original_sha256"] == hashlib.sha256(junk).hexdigest().encode()
    assert record.value == junk[: 512 * 1024]
