"""The outside checker on brokers that tell ends and transactions rightly."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from ct_stream.ops.verify import Limits, Report, verify
from ct_stream.ops.verify.kinds import Kind
from ct_stream.stream.topology import CT_PASS, GROUP, SPINE_CREATED
from tests.kafka.upstream import send, transactional
from tests.ops.planted import NOW, Place, company, many, well

if TYPE_CHECKING:
    from ct_stream.settings import Settings
    from tests.conftest import DatabaseDsns
    from tools.kafka.cluster import KafkaCluster

PARTITION = 4


@pytest.fixture
def place(database: DatabaseDsns, settings: Settings) -> Place:
    return Place(database.admin, settings.kafka_bootstrap or "")


@pytest.fixture
def people(database: DatabaseDsns, settings: Settings) -> Settings:
    return replace(settings, postgres_ops_dsn=database.ops)


async def compare(people: Settings) -> Report:
    return await verify(people, Limits(grace=timedelta(0)), lambda _what, _count: None)


async def test_transaction_markers_and_aborted_records_are_no_violation(place: Place, people: Settings) -> None:
    """Holes at the end of a partition: they are reached, and nobody misses what was never there."""
    kept, taken_back = [company(has_event=False) for _ in range(5)], [company().id for _ in range(5)]
    await place.plant([*many(300), *well(), *kept])
    await place.commit()
    async with transactional(people.kafka_bootstrap or "") as producer:
        await send(producer, [one.id for one in kept], partition=PARTITION)
        await send(producer, taken_back, partition=PARTITION, abort=True)
    begun = time.monotonic()
    report = await compare(people)
    assert report.found == {}
    assert report.not_told == []
    assert time.monotonic() - begun < 15, "a mark at the end was waited for"


async def test_a_group_past_the_end_and_records_removed_unread_are_found(
    cluster: KafkaCluster, place: Place, people: Settings
) -> None:
    await place.plant(many(600))
    await place.commit()
    past, removed = TopicPartition(SPINE_CREATED, 5), TopicPartition(SPINE_CREATED, 6)
    consumer = AIOKafkaConsumer(bootstrap_servers=people.kafka_bootstrap, group_id=GROUP, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign([past, removed])
        await consumer.commit({past: 1_000_000, removed: 3})
    finally:
        await consumer.stop()
    async with cluster.admin() as admin:
        await admin.delete_records({removed: RecordsToDelete(before_offset=10)})
    report = await compare(people)
    assert set(report.found) == {Kind.COMMITTED_PAST_END, Kind.EVENTS_REMOVED_UNREAD}
    (gone,) = report.found[Kind.EVENTS_REMOVED_UNREAD].examples
    assert (gone.partition, gone.offset, report.found[Kind.EVENTS_REMOVED_UNREAD].count) == (6, 3, 7)
    assert report.found[Kind.COMMITTED_PAST_END].examples[0].partition == 5


async def test_records_removed_by_retention_are_reported_and_not_missed(
    cluster: KafkaCluster, place: Place, people: Settings
) -> None:
    """A topic that somebody gave a retention: outcomes of before cannot be compared, those of after can."""
    old = company(records=())
    new = company(records=(), published_at=NOW - timedelta(minutes=10))
    await place.plant([*many(50), old, new])
    hour = {"cleanup.policy": "delete", "retention.ms": "3600000"}
    async with cluster.admin() as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, CT_PASS, hour)])
    async with asyncio.timeout(20):
        while True:
            report = await compare(people)
            if report.not_told:
                break
    assert [example.outreach_id for example in report.found[Kind.NOT_ON_TOPIC].examples] == [new.id.bytes]
    assert "ct.pass has a retention" in report.not_told[0]
