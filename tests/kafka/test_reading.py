"""What people read from Apache Kafka, and the embedded broker cannot tell: lag, ends, times."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.consumer.fetcher import Fetcher

from ct_stream.ops.doctor.kafka_checks import KAFKA
from ct_stream.ops.publish import publish, read_events
from ct_stream.ops.replay import lag, replay
from ct_stream.ops.troubles import ServiceTrouble
from ct_stream.stream.producer import supports_idempotence
from ct_stream.stream.topology import GROUP, SPINE_CREATED, check_topics, create_topics
from tests.brokers import wait_topics
from tests.kafka.upstream import send_in_transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from ct_stream.settings import Settings
    from tools.kafka.cluster import KafkaCluster

EARLIEST = -2  #: how Kafka's ListOffsets asks for the first offset


async def commit(settings: Settings, offsets: dict[TopicPartition, int]) -> None:
    """Commit for the gate's group, as a worker does."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.kafka_bootstrap, group_id=GROUP, enable_auto_commit=False)
    consumer.assign(list(offsets))
    await consumer.start()
    try:
        await consumer.commit(offsets)
    finally:
        await consumer.stop()


async def test_topics_are_made_with_three_replicas_of_which_two_must_have_a_record(
    cluster: KafkaCluster, settings: Settings
) -> None:
    await check_topics(settings)
    async with cluster.admin() as admin:
        for topic in await admin.describe_topics():
            for partition in topic["partitions"]:
                assert len(partition["replicas"]) == 3, topic["topic"]
    assert (await create_topics(settings))[0] == [], "what is there is not made again"


async def test_this_broker_has_idempotent_producers(settings: Settings) -> None:
    assert await supports_idempotence(settings)


async def test_lag_is_what_the_group_has_not_committed(settings: Settings) -> None:
    assert await lag(settings) == 0
    await publish(settings, read_events([str(uuid4()) for _ in range(700)], ids=True))
    assert await lag(settings) == 700
    first = TopicPartition(SPINE_CREATED, 0)
    there = len([record async for record in replay(settings, partition=0)])
    await commit(settings, {first: there - 3})
    assert await lag(settings) == 700 - there + 3


async def test_a_lag_that_cannot_be_counted_is_not_none(cluster: KafkaCluster, settings: Settings) -> None:
    await commit(settings, {TopicPartition(SPINE_CREATED, 3): 33})
    with pytest.raises(ServiceTrouble, match=r"spine\.created\[3\] ends at 0, but .* has committed up to 33"):
        await lag(settings)
    async with cluster.admin() as admin:
        await admin.delete_topics([SPINE_CREATED])
        await wait_topics(admin, lambda names: SPINE_CREATED not in names)
    with pytest.raises(ServiceTrouble, match=r"topic spine\.created is missing, .*; create it with `ct-stream topics`"):
        await lag(settings)


async def test_doctor_lets_no_outcome_be_deleted(cluster: KafkaCluster, settings: Settings) -> None:
    async def wrong() -> list[str]:
        return [one.detail for one in await KAFKA.look(settings) if one.name == "topic settings" and one.ok is False]

    assert await wrong() == []
    both = {"cleanup.policy": "compact,delete", "retention.ms": "3600000"}
    async with cluster.admin() as admin, asyncio.timeout(20):
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "ct.pass", both)])
        for _ in range(100):
            if said := await wrong():
                break
            await asyncio.sleep(0.1)
    assert said == ["ct.pass has cleanup.policy=compact,delete, not compact"]


async def test_transaction_markers_alone_are_no_lag(settings: Settings) -> None:
    await send_in_transaction(settings.kafka_bootstrap, [uuid4(), uuid4()], partition=0)
    assert await lag(settings) == 3, "two records, and the mark behind them"
    await commit(settings, {TopicPartition(SPINE_CREATED, 0): 2})  # the worker's commit ends before the mark
    assert await lag(settings) == 0
    await send_in_transaction(settings.kafka_bootstrap, [uuid4()], partition=0, abort=True)
    assert await lag(settings) == 0, "what upstream took back is no work"


async def test_replay_begins_at_a_time(settings: Settings) -> None:
    before, after = [str(uuid4()) for _ in range(30)], [str(uuid4()) for _ in range(30)]
    await publish(settings, read_events(before, ids=True))
    old = [record async for record in replay(settings)]
    newest = max(datetime.fromisoformat(str(record["time"])) for record in old)
    await asyncio.sleep(max(0.0, (newest - datetime.now(UTC)).total_seconds()) + 0.002)  # one clock, in milliseconds
    border = datetime.now(UTC)
    await publish(settings, read_events(after, ids=True))
    since = [str(record["outreach_id"]) async for record in replay(settings, from_time=border)]
    assert sorted(since) == sorted(after)
    later = datetime.now(UTC) + timedelta(hours=1)
    assert [record async for record in replay(settings, from_time=later)] == []


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(lambda: {"from_time": datetime.now(UTC) + timedelta(hours=1)}, id="a time to come"),
        pytest.param(lambda: {"from_offset": 5000}, id="an offset behind the end"),
    ],
)
async def test_replay_begins_where_it_was_told_to_whatever_aiokafka_looks_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, start: Callable[[], dict[str, Any]]
) -> None:
    """aiokafka looks up a start of its own from the moment of assign(); what it finds may come after our seek."""
    await publish(settings, read_events([str(uuid4()) for _ in range(30)], ids=True))
    ask = Fetcher._proc_offset_request

    async def late(self: Fetcher, node_id: int, topic_data: dict[str, list[tuple[int, int]]]) -> Any:
        answer = await ask(self, node_id, topic_data)
        if any(time == EARLIEST for times in topic_data.values() for _, time in times):
            await asyncio.sleep(0.5)
        return answer

    monkeypatch.setattr(Fetcher, "_proc_offset_request", late)
    assert [record async for record in replay(settings, **start())] == []


async def test_replay_shows_no_record_that_upstream_took_back(settings: Settings) -> None:
    kept, aborted = [uuid4() for _ in range(3)], [uuid4() for _ in range(3)]
    await send_in_transaction(settings.kafka_bootstrap, kept[:1], partition=2)
    await send_in_transaction(settings.kafka_bootstrap, aborted, partition=2, abort=True)
    await send_in_transaction(settings.kafka_bootstrap, kept[1:], partition=2)
    shown = [record async for record in replay(settings)]
    assert [record["outreach_id"] for record in shown] == kept
    assert [record["offset"] for record in shown] == [0, 6, 7]
