"""Producers compress as they like, and every record is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiokafka import AIOKafkaProducer

from ct_stream.stream.topology import SPINE_CREATED
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

CODECS = (None, "gzip", "snappy", "lz4", "zstd")


async def test_an_event_is_decided_whatever_codec_its_producer_uses(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        ids = await stack.mint([f"info-{n}.example" for n in range(20 * len(CODECS))])
        worker = stack.start_worker()
        for number, codec in enumerate(CODECS):
            producer = AIOKafkaProducer(
                bootstrap_servers=stack.env["CT_KAFKA_BOOTSTRAP"], compression_type=codec, linger_ms=50, acks="all"
            )
            await producer.start()
            for company in ids[20 * number : 20 * (number + 1)]:
                value = orjson.dumps({"outreach_id": company})
                await producer.send(SPINE_CREATED, key=str(company).encode(), value=value)
            await producer.stop()
        assert await stack.wait_decided(len(ids), 60) == len(ids), stack.worker_log()[-3000:]
        assert stack.end_worker(worker) == 0
