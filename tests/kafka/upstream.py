"""An upstream that produces spine.created in transactions; each leaves a mark, a record that no consumer sees."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

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
    """Send one transaction, and commit it or take it back; readers of what is committed see it when this comes back."""
    await producer.begin_transaction()
    for outreach_id in ids:
        body = orjson.dumps({"outreach_id": str(outreach_id)})
        await producer.send_and_wait(SPINE_CREATED, body, str(outreach_id).encode(), partition=partition)
    await (producer.abort_transaction() if abort else producer.commit_transaction())
    if ids:
        await _wait_mark(producer.client, TopicPartition(SPINE_CREATED, partition))


async def _wait_mark(client: Any, partition: TopicPartition) -> None:
    """Wait until no transaction is open: the coordinator answers before the mark is written (KIP-98)."""
    bootstrap = [f"{host}:{port}" for host, port, _ in client.hosts]
    async with (
        AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_uncommitted") as all_of_it,
        AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed") as committed,
    ):
        deadline = time.monotonic() + 30
        while (await all_of_it.end_offsets([partition])) != (await committed.end_offsets([partition])):
            assert time.monotonic() < deadline, "the transaction is not ended"
            await asyncio.sleep(0.01)


async def send_in_transaction(
    bootstrap: str | None, ids: Sequence[UUID], *, partition: int, abort: bool = False
) -> None:
    """Send one transaction with a producer of its own."""
    async with transactional(bootstrap) as producer:
        await send(producer, ids, partition=partition, abort=abort)
