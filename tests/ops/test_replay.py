"""Replay reads, tells what became of each record, and leaves no trace."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pytest reads the annotation
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from ct_stream.gate.failures import FailureCode
from ct_stream.ops.publish import publish, read_events
from ct_stream.ops.replay import replay
from ct_stream.settings import Settings
from ct_stream.stream.topology import SPINE_CREATED, create_topics
from tests.brokers import keep_producers_times, lend_broker
from tests.ops.rows import failed, record

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns


async def test_replay_shows_each_record_with_its_outcome(tmp_path: Path, database: DatabaseDsns) -> None:
    outcome = failed(FailureCode.NO_MX)
    await record(database.gate, outcome)
    undecided = "4b0c2f5e-6a0b-4f57-9d4e-0f6f3b0c7a11"
    async with lend_broker(tmp_path) as bootstrap:
        settings = Settings(kafka_bootstrap=bootstrap, postgres_ops_dsn=database.ops)
        await create_topics(settings)
        await keep_producers_times(bootstrap, SPINE_CREATED, most_ahead_ms=2**63 - 1)
        await publish(settings, read_events([str(outcome.outreach_id), undecided], ids=True))
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
            await producer.send_and_wait(SPINE_CREATED, b"\xff not JSON")
            await producer.send_and_wait(SPINE_CREATED, b"{}", key=b"ahead", timestamp_ms=2**62)
            await producer.send_and_wait(outcome.topic, outcome.value, outcome.key, headers=list(outcome.headers))
        told = {str(record["outreach_id"] or record["key"]): record async for record in replay(settings)}
        assert told["ahead"]["time"] == f"{2**62} ms"
        assert told[str(outcome.outreach_id)]["outcome"]["failure_code"] == "CT-M-NO-MX"
        assert told[undecided]["outcome"] is None
        assert told["None"]["unreadable"].startswith("not-json")
        assert told["None"]["value"] == "\\xff not JSON"
        (published,) = [record async for record in replay(settings, topic="ct.fail")]
        assert published["outcome"]["outcome"] == "FAIL"
        assert ["ce_specversion", "1.0"] in published["headers"]
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            assert await admin.list_consumer_groups() == []
        finally:
            await admin.close()
