"""Replay reads, tells what became of each record, and leaves no trace."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pytest reads the annotation
from typing import TYPE_CHECKING
from uuid import uuid4

from aiokafka.admin import AIOKafkaAdminClient

from ct_stream.gate.failures import FailureCode
from ct_stream.ops.publish import publish, read_events
from ct_stream.ops.replay import replay
from ct_stream.ops.story import story, story_lines
from ct_stream.settings import Settings
from ct_stream.stream.topology import CT_REJECTED, SPINE_CREATED, create_topics
from tests.brokers import idempotent_producer, keep_producers_times, lend_broker
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
        async with idempotent_producer(bootstrap) as producer:
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


async def test_show_finds_the_reject_of_a_company_that_the_gate_could_not_read(
    tmp_path: Path, database: DatabaseDsns
) -> None:
    lost, other = uuid4(), uuid4()
    async with lend_broker(tmp_path) as bootstrap:
        settings = Settings(postgres_ops_dsn=database.ops, kafka_bootstrap=bootstrap)
        await create_topics(settings)
        headers = [("ct_reject_reason", b"key-differs"), ("ct_source_topic", b"spine.created")]
        headers += [("ct_source_partition", b"3"), ("ct_source_offset", b"41")]
        async with idempotent_producer(bootstrap) as producer:
            for key, value in [(str(other), b"{}"), (None, b'{"outreach_id": "%s"' % str(lost).upper().encode())]:
                await producer.send_and_wait(CT_REJECTED, value, key and key.encode(), headers=headers)
        found = await story(settings, lost)
        assert found["state"] == "rejected"
        assert [reject["reason"] for reject in found["rejects"]] == ["key-differs"]
        text = "\n".join(story_lines(found))
        assert "key-differs (event spine.created partition 3 offset 41); it is on ct.rejected" in text
        assert (await story(settings, uuid4()))["state"] == "unknown"
    away = await story(Settings(postgres_ops_dsn=database.ops, kafka_bootstrap="127.0.0.1:1"), lost)
    assert away["state"] == "unknown"
    assert "cannot be searched: Kafka at 127.0.0.1:1 does not answer" in "\n".join(story_lines(away))
