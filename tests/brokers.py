"""Which broker do the tests run on? `pytest --broker kafka`: on Apache Kafka. Otherwise on an embedded one each.

Apache Kafka is started once for a run, and each test finds it well and empty: our topics have fixed names.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.admin import DeleteGroupsRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.protocol.metadata import MetadataRequest

from ct_stream.local.broker import EmbeddedBroker
from tools.kafka.cluster import KafkaCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path


_CHANGED_S = 20.0
_running: list[KafkaCluster] = []


def run_kafka(folder: Path) -> Iterator[None]:
    """Run Apache Kafka for the tests of this process; a generator that a fixture goes through."""
    cluster = KafkaCluster(folder)
    asyncio.run(cluster.__aenter__())
    _running.append(cluster)
    try:
        yield
    finally:
        _running.remove(cluster)
        asyncio.run(cluster.__aexit__(None, None, None))


def use(cluster: KafkaCluster) -> None:
    """Let stacks of this process run on an Apache Kafka that the caller runs."""
    _running.append(cluster)


def kafka() -> KafkaCluster | None:
    """Return the running Apache Kafka, or None where the tests run on embedded brokers."""
    return _running[0] if _running else None


def idempotent_producer(bootstrap: str) -> AIOKafkaProducer:
    """Return a producer that writes each record once, where the broker can (the embedded one has no InitProducerId).

    Without that a repeat after a slow answer is a second record, which a busy machine sees now and then.
    """
    return AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=kafka() is not None)


@asynccontextmanager
async def lend_broker(folder: Path) -> AsyncIterator[str]:
    """Lend an empty Kafka; yield the address for CT_KAFKA_BOOTSTRAP."""
    cluster = kafka()
    if cluster is None:
        async with EmbeddedBroker(folder) as broker:
            yield broker.bootstrap
    else:
        await cluster.repair()
        await _empty(cluster)
        yield cluster.bootstrap


async def _empty(cluster: KafkaCluster) -> None:
    """Remove the groups and topics that the test before has left."""
    async with cluster.admin() as admin:
        for group, _ in await admin.list_consumer_groups():
            await _delete_group(admin, group)
        topics = [topic for topic in await admin.list_topics() if not topic.startswith("__")]
        if topics:
            await admin.delete_topics(topics)
        await wait_topics(admin, lambda known: not known & set(topics))


async def wait_topics(admin: AIOKafkaAdminClient, are_right: Callable[[set[str]], bool]) -> None:
    """Wait until every broker knows the right topics: each learns of a change a moment after the controller made it."""
    deadline = time.monotonic() + _CHANGED_S
    for broker in (await admin.describe_cluster())["brokers"]:
        while True:
            answer = await _send(admin, MetadataRequest(None), broker["node_id"])
            if are_right({topic["topic"] for topic in answer.to_object()["topics"]}):
                break
            assert time.monotonic() < deadline, f"broker {broker['node_id']} does not know the topics"
            await asyncio.sleep(0.05)


async def keep_producers_times(bootstrap: str, *topics: str, most_ahead_ms: int = 3_600_000) -> None:
    """Let topics keep the timestamps of whoever writes, as those that were made without us; embedded ones do.

    `most_ahead_ms`: of a record that the broker accepts; the default is Kafka 4's own.
    """
    if kafka() is None:
        return
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        for topic in topics:
            config = {
                "message.timestamp.type": "CreateTime",
                "message.timestamp.after.max.ms": str(most_ahead_ms),
            }
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, config)])
    finally:
        await admin.close()


async def _delete_group(admin: AIOKafkaAdminClient, group: str) -> None:
    """Delete a group, after the killed workers have left it: by themselves they would after the session timeout."""
    coordinator = await admin.find_coordinator(group)
    (described,) = await admin.describe_consumer_groups([group], group_coordinator_id=coordinator)
    for member in described.groups[0][5]:
        await _send(admin, LeaveGroupRequest(group, member[0]), coordinator)
    await _send(admin, DeleteGroupsRequest([group]), coordinator)


async def _send(admin: AIOKafkaAdminClient, request: Any, node: int) -> Any:
    return await admin._send_request(request, node)
