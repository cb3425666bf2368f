"""An upstream that produces spine.created in transactions; each leaves a mark, a record that no consumer sees."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import orjson
from aiokafka import AIOKafkaProducer

from ct_stream.stream.topology import SPINE_CREATED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence


@asynccontextmanager
async def transactional(bootstrap: str | None) -> AsyncIterator[AIOKafkaProducer]:
    """Lend a transactional producer."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=f"upstream-{uuid4()}", linger_ms=5)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def send(producer: AIOKafkaProducer, ids: Sequence[UUID], *, partition: int, abort: bool = False) -> None:
    """Send one transaction, and commit it or take it back."""
    await producer.begin_transaction()
    for outreach_id in ids:
        body = orjson.dumps({"outreach_id": str(outreach_id)})
        await producer.send_and_wait(SPINE_CREATED, body, str(outreach_id).encode(), partition=partition)
    await (producer.abort_transaction() if abort else producer.commit_transaction())


async def send_in_transaction(
    bootstrap: str | None, ids: Sequence[UUID], *, partition: int, abort: bool = False
) -> None:
    """Send one transaction with a producer of its own."""
    async with transactional(bootstrap) as producer:
        await send(producer, ids, partition=partition, abort=abort)
