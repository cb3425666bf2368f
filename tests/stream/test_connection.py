"""A broker that goes away while uvloop runs: aiokafka connects again, and none of its tasks ends silently."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path  # noqa: TC003 - pytest reads the annotation

import aiokafka.conn
import pytest
import uvloop
from aiokafka import AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import IncompatibleBrokerVersion, KafkaConnectionError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.transaction import InitProducerIdRequest

from ct_stream.stream.connection import Connection, install
from tests.brokers import lend_broker


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiokafka.conn, "AIOKafkaConnection", aiokafka.conn.AIOKafkaConnection)  # taken back at the end
    install()


async def cut(producer: AIOKafkaProducer) -> Connection:
    """Let the one connection end in the middle of a response; aiokafka hears of it in the next turn of the loop."""
    await producer.client.fetch_all_metadata()
    connection: Connection
    (connection,) = producer.client._conns.values()
    connection._reader.feed_data(b"\0")
    connection._writer.transport.abort()
    await asyncio.sleep(0)
    assert connection.connected(), "aiokafka knows it: nothing is tested"
    return connection


def test_a_cut_connection_is_a_broken_one(tmp_path: Path) -> None:
    async def run() -> None:
        async with (
            lend_broker(tmp_path) as bootstrap,
            AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer,
        ):
            connection = await cut(producer)
            with pytest.raises(KafkaConnectionError, match="broken: its transport is closed"):
                connection.send(MetadataRequest([]))
            assert not connection.connected()

    uvloop.run(run())


def test_a_request_that_cannot_be_sent_raises_its_own_error_and_keeps_the_connection(tmp_path: Path) -> None:
    """A broker without idempotence is known by it (stream/producer.py); aiokafka's errors are RuntimeErrors, too."""

    async def run() -> None:
        async with (
            lend_broker(tmp_path) as bootstrap,
            AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer,
        ):
            await producer.client.fetch_all_metadata()
            (connection,) = producer.client._conns.values()
            under_way = connection.send(MetadataRequest([]))
            connection._versions.pop(InitProducerIdRequest.API_KEY)
            with pytest.raises(IncompatibleBrokerVersion):
                connection.send(InitProducerIdRequest(None, 1000))
            assert (await under_way).brokers, "the connection was closed under another request"

    uvloop.run(run())


def test_the_brokers_addresses_are_kept_up_to_date_after_a_cut(tmp_path: Path) -> None:
    """The task that keeps them has no guard of its own (aiokafka/client.py): an unexpected error ends it."""

    async def run() -> None:
        async with (
            lend_broker(tmp_path) as bootstrap,
            AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer,
        ):
            client = producer.client
            await cut(producer)
            await client._metadata_update(client.cluster, client._topics)
            assert await client._metadata_update(client.cluster, client._topics), "it did not connect again"

    uvloop.run(run())


def test_aiokafka_makes_its_connections_of_this_class() -> None:
    assert "conn = AIOKafkaConnection(" in inspect.getsource(aiokafka.conn.create_conn)
    assert "except OSError as err" in inspect.getsource(AIOKafkaConnection.send), "aiokafka knows of uvloop now?"
