"""The same events again: each meets its outcome, and nobody is asked or published twice (FAULTS 13)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson
from aiokafka import AIOKafkaProducer

from ct_stream.stream.topology import SPINE_CREATED
from tests.faults import invariants
from tests.faults.harness import Stack, said

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("info", "allreject", "catchall", "nxdomain")
COMPANIES = 80


async def test_one_company_on_every_partition_at_once_is_asked_and_decided_once(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.05) as stack:
        workers = [stack.start_worker(), stack.start_worker()]
        for number in range(len(workers)):  # a rebalance in mid-work would put a question again whose answer is lost
            await said(stack, number, "Assigned 6 partitions")
        names: list[str | None] = [f"{KINDS[n % len(KINDS)]}-{n}.example" for n in range(COMPANIES)]
        ids = await stack.mint(names)
        producer = AIOKafkaProducer(bootstrap_servers=stack.env["CT_KAFKA_BOOTSTRAP"], linger_ms=5, acks="all")
        await producer.start()
        try:
            for company in ids:
                body = orjson.dumps({"outreach_id": str(company), "correlation_id": f"again-{company}"})
                for partition in range(12):
                    await producer.send(SPINE_CREATED, key=str(company).encode(), value=body, partition=partition)
        finally:
            await producer.stop()
        await invariants.wait_at_rest(stack, COMPANIES, 120)
        found = await invariants.check(stack, dict(zip(ids, names, strict=True)), pause_s=0.2)
        assert found.broken == [], stack.worker_log()[-2000:]
        assert found.figures["repeats on the topics"] == 0
        assert found.figures["mailboxes asked again"] == 0
        for worker in workers:
            assert stack.end_worker(worker) == 0
