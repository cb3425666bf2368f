"""A wrong clock of a worker holds up no outcome, and a wrong time of a record keeps no event from being read."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka import AIOKafkaProducer

from ct_stream.ops.doctor.kafka_checks import KAFKA
from ct_stream.ops.publish import publish, read_events
from ct_stream.ops.troubles import ServiceTrouble
from ct_stream.settings import Settings, load_settings
from ct_stream.stream.topology import create_topics
from tests.brokers import idempotent_producer, keep_producers_times, lend_broker
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

    from tools.kafka.cluster import KafkaCluster

HOUR_MS = 3600 * 1000
OURS = ("ct.pass", "ct.fail", "ct.rejected", "ct-stream-decided-changelog")
#: Python's clock, and that of aiokafka's compiled part, which dates a record that nobody has dated.
OFF = """
import time, inspect, aiokafka
real, send = time.time, aiokafka.AIOKafkaProducer.send
time.time = lambda: real() + %d * 3600
async def dated(*args, **kwargs):
    call = inspect.signature(send).bind(*args, **kwargs)
    if call.arguments.get("timestamp_ms") is None:
        call.arguments["timestamp_ms"] = int(time.time() * 1000)
    return await send(*call.args, **call.kwargs)
aiokafka.AIOKafkaProducer.send = dated
"""


async def test_a_worker_whose_clock_is_hours_off_still_publishes(cluster: KafkaCluster, tmp_path: Path) -> None:
    """Apache Kafka 4 refuses a record whose timestamp is more than an hour ahead of the broker's clock."""
    async with Stack(tmp_path) as stack:
        await keep_producers_times(
            cluster.bootstrap, "ct.pass", "ct.fail", "ct.rejected", "ct-stream-decided-changelog"
        )
        worker = stack.start_worker(prelude=OFF % 5)
        assert await stack.wait_said("Ready", 40), stack.worker_log()
        ids = await stack.mint(["info-a.example", None])
        await stack.publish([*ids, ids[0]], values=None)
        await stack.publish([ids[0]], values=[b"unreadable"])
        assert await stack.wait_decided(2, 30) == 2, stack.worker_log()[-3000:]
        assert await stack.wait_published(20) == 0, stack.worker_log()[-3000:]
        await stack.wait_ready(200, 10)
        assert await stack.wait_committed(4, 20) == 4, stack.worker_log()[-3000:]
        assert stack.end_worker(worker) == 0, stack.worker_log()[-3000:]
        records = await stack.records()
        changelog = await stack.records("ct-stream-decided-changelog")
    assert sorted(record.topic for record in records) == ["ct.fail", "ct.pass", "ct.rejected"]
    assert changelog, "the dedupe table was not kept"
    now_ms = time.time() * 1000
    assert all(abs(record.timestamp - now_ms) < HOUR_MS for record in [*records, *changelog])


async def test_a_record_of_any_time_is_accepted_and_read(cluster: KafkaCluster, tmp_path: Path) -> None:
    """Otherwise an old one would be beyond the retention when it arrives, and one ahead would be refused."""
    async with Stack(tmp_path) as stack:
        ids = await stack.mint(["info-a.example", "info-b.example"])
        async with idempotent_producer(cluster.bootstrap) as producer:
            for company, days in zip(ids, (-60, 2), strict=True):
                key = str(company).encode()
                at = int(time.time() * 1000) + days * 24 * HOUR_MS
                await producer.send_and_wait("spine.created", b'{"outreach_id": "%s"}' % key, key, timestamp_ms=at)
        records = await stack.records("spine.created")
        assert [abs(record.timestamp - time.time() * 1000) < HOUR_MS for record in records] == [True, True]
        worker = stack.start_worker()
        assert await stack.wait_decided(2, 40) == 2, stack.worker_log()[-3000:]
        assert stack.end_worker(worker) == 0


async def test_doctor_says_that_old_records_of_such_a_topic_do_not_last(cluster: KafkaCluster, tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        settings = load_settings(stack.env)
        assert "record times" not in {check.name for check in await KAFKA.look(settings)}
        await keep_producers_times(cluster.bootstrap, "spine.created")
        [check] = [check for check in await KAFKA.look(settings) if check.name == "record times"]
    assert check.ok is None
    assert "spine.created keeps the timestamps of its producers" in check.detail
    assert "message.timestamp.type=LogAppendTime" in check.detail


async def test_publish_says_that_this_machines_clock_is_wrong(
    cluster: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = AIOKafkaProducer.send

    async def ahead(self: Any, topic: str, value: Any, key: Any, partition: Any, _: Any, headers: Any) -> Any:
        return await send(self, topic, value, key, partition, int(time.time() * 1000) + 5 * HOUR_MS, headers)

    async with lend_broker(tmp_path) as bootstrap:
        assert bootstrap == cluster.bootstrap
        settings = Settings(kafka_bootstrap=bootstrap)
        await create_topics(settings)
        await keep_producers_times(bootstrap, "spine.created")
        monkeypatch.setattr(AIOKafkaProducer, "send", ahead)
        with pytest.raises(ServiceTrouble, match=r"this machine's clock says .*; correct the clock"):
            await publish(settings, read_events(["4b0c2f5e-6a0b-4f57-9d4e-0f6f3b0c7a11"], ids=True))
