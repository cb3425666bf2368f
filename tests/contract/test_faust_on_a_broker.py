"""What Faust does with acks, errors and full buffers, seen from the broker: why we keep each of them off."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from ct_stream.stream.retrying import retried
from tests.brokers import idempotent_producer, kafka, lend_broker, wait_topics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

TOPIC = TopicPartition("contract", 0)

#: A Faust app as a newcomer would write it; argv: broker, what its agent does, seconds of broker_max_poll_interval.
APP = """
import asyncio, sys
import faust
broker, does, max_poll_s = sys.argv[1:]
app = faust.App(
    "contract", broker=["kafka://" + server for server in broker.split(",")], store="memory://", web_enabled=False,
    broker_commit_interval=0.5, consumer_auto_offset_reset="earliest", topic_disable_leader=True, autodiscover=False,
    topic_allow_declare=False, broker_session_timeout=6, broker_heartbeat_interval=2, broker_rebalance_timeout=6,
    broker_max_poll_interval=float(max_poll_s), worker_redirect_stdouts=False, datadir=sys.argv[0] + "-data",
)
held = []
async def body(stream):
    if does == "acks out of order":
        async for event in stream.noack().events():
            held.append(event) if event.message.offset == 5 else event.ack()
    elif does == "acks in order":
        async for event in stream.noack().events():
            held.append(event)
            if event.message.offset < 5:
                event.ack()
    elif does == "raises":
        async for event in stream.events():
            if event.message.offset == 5:
                raise KeyError("a bug")
    elif does == "decodes":
        async for value in stream:
            print("got", value, flush=True)
    elif does == "stops pulling":
        async for event in stream.noack().events():
            print("holds", flush=True)
            await asyncio.sleep(3600)
kind = "json" if does == "decodes" else "raw"
app.agent(app.topic("contract", value_serializer=kind, key_serializer="raw"), name="contract")(body)
async def main():
    await app.start()
    await asyncio.sleep(3600)
asyncio.run(main())
"""


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[str]:
    async with lend_broker(tmp_path / "broker") as bootstrap:
        admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(TOPIC.topic, 1, 1 if kafka() is None else 3)])
            await wait_topics(admin, lambda known: TOPIC.topic in known)
        finally:
            await admin.close()
        yield bootstrap


async def produce(broker: str, values: list[bytes]) -> None:
    async with idempotent_producer(broker) as producer:
        await asyncio.gather(*[await producer.send(TOPIC.topic, value, partition=0) for value in values])


@contextmanager
def running(tmp_path: Path, broker: str, does: str, *, max_poll_s: float = 1000) -> Iterator[Path]:
    """Run the app; yield what it writes."""
    script, log = tmp_path / "app.py", tmp_path / "app.log"
    script.write_text(APP)
    with log.open("wb") as file:
        app = subprocess.Popen(
            [sys.executable, str(script), broker, does, str(max_poll_s)],
            stdout=file, stderr=file, cwd=tmp_path, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
    try:
        yield log
    finally:
        app.kill()
        app.wait()


async def committed(broker: str, at_least: int, within_s: float = 40) -> int:
    """Return the group's offset when it is so far, or time is up."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        deadline = time.monotonic() + within_s
        while True:
            found = await retried(lambda: admin.list_consumer_group_offsets("contract", partitions=[TOPIC]))
            offset = found[TOPIC].offset if TOPIC in found else -1
            if offset >= at_least or time.monotonic() > deadline:
                return int(offset)
            await asyncio.sleep(0.2)
    finally:
        await admin.close()


async def test_acks_out_of_order_commit_past_the_event_that_is_not_done(tmp_path: Path, broker: str) -> None:
    await produce(broker, [b"{}"] * 40)
    with running(tmp_path, broker, "acks out of order"):
        assert await committed(broker, 40) == 40, "offset 5 is not done; if this fails, Faust mended its gap guard"


async def test_acks_in_order_commit_up_to_the_event_that_is_not_done(tmp_path: Path, broker: str) -> None:
    await produce(broker, [b"{}"] * 40)
    with running(tmp_path, broker, "acks in order"):
        assert await committed(broker, 5) == 5
        assert await committed(broker, 6, within_s=3) == 5


async def test_an_agent_that_raises_has_acked_its_event(tmp_path: Path, broker: str) -> None:
    await produce(broker, [b"{}"] * 6)
    with running(tmp_path, broker, "raises"):
        assert await committed(broker, 6) == 6, "the event that raised at offset 5 is gone"


async def test_a_record_that_cannot_be_decoded_is_acked_and_never_seen(tmp_path: Path, broker: str) -> None:
    await produce(broker, [b'"good"'] * 3 + [b"\xff bad"])
    with running(tmp_path, broker, "decodes") as log:
        assert await committed(broker, 4) == 4
        assert b"bad" not in b"".join(line for line in log.read_bytes().splitlines() if line.startswith(b"got"))


async def test_a_consumer_that_does_not_poll_leaves_the_group_for_good(tmp_path: Path, broker: str) -> None:
    if kafka() is None:
        pytest.skip("the embedded broker cannot list the members of a group")
    await produce(broker, [b"{}"] * 6000)  # more than Faust buffers
    with running(tmp_path, broker, "stops pulling", max_poll_s=6) as log:
        assert await members(broker, are=1, within_s=30) == 1
        assert await members(broker, are=0, within_s=40) == 0, log.read_text()[-2000:]
        assert await members(broker, are=1, within_s=10) == 0, "it came back: the poll interval may be shortened"


async def members(broker: str, *, are: int, within_s: float) -> int:
    """Return how many members the group has when they are so many, or time is up."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        deadline = time.monotonic() + within_s
        while True:
            (described,) = await retried(lambda: admin.describe_consumer_groups(["contract"]))
            count = len(described.groups[0][5])
            if count == are or time.monotonic() > deadline:
                return count
            await asyncio.sleep(0.3)
    finally:
        await admin.close()
