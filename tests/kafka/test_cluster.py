"""Three brokers in the background, as a person runs them with make; and what every cluster here promises."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from ct_stream.stream.position import outside_consumer
from ct_stream.stream.topology import SPINE_CREATED
from tests.kafka.upstream import transactional
from tools.kafka.background import BackgroundCluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ct_stream.settings import Settings
    from tools.kafka.cluster import KafkaCluster


def kafka(folder: Path, *words: str) -> tuple[int, str]:
    """Do as the Makefile does; return the exit code and what was said."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.kafka.background", "--folder", str(folder), *words],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Lend a folder, and leave no broker that runs in it."""
    yield tmp_path / "cluster"
    kafka(tmp_path / "cluster", "down")


@pytest.mark.long
def test_up_kill_stop_start_down(folder: Path) -> None:
    cluster = BackgroundCluster(folder)
    assert kafka(folder, "start", "1") == (69, "there is no cluster; make one with `make kafka-cluster`\n")
    code, said = kafka(folder, "up")
    assert (code, said) == (0, f"export CT_KAFKA_BOOTSTRAP={cluster.files.bootstrap}\n")
    pids = [cluster.pid(node) for node in (1, 2, 3)]
    assert kafka(folder, "up")[0] == 0
    assert [cluster.pid(node) for node in (1, 2, 3)] == pids, "what runs is left alone"
    assert kafka(folder, "status")[0] == 0

    assert kafka(folder, "kill", "2") == (0, "broker 2 has ended\n")
    assert kafka(folder, "stop", "2") == (0, "broker 2 did not run\n")
    assert cluster.running == [1, 3]
    assert kafka(folder, "status")[0] == 1
    assert kafka(folder, "start", "2")[0] == 0
    assert kafka(folder, "status")[0] == 0

    assert kafka(folder, "down")[0] == 0
    assert cluster.running == []
    before = cluster.files.bootstrap
    assert kafka(folder, "up")[1] == f"export CT_KAFKA_BOOTSTRAP={before}\n", "the same cluster is back"


async def test_also_kafkas_own_topics_have_three_replicas(cluster: KafkaCluster, settings: Settings) -> None:
    async with transactional(settings.kafka_bootstrap) as producer:
        await producer.begin_transaction()
        await producer.send_and_wait(SPINE_CREATED, b"{}", partition=0)
        await producer.send_offsets_to_transaction({TopicPartition(SPINE_CREATED, 0): 1}, "some-group")
        await producer.commit_transaction()
    async with cluster.admin() as admin:
        topics = await admin.describe_topics()
    own = {topic["topic"]: topic["partitions"] for topic in topics if topic["topic"].startswith("__")}
    assert set(own) == {"__consumer_offsets", "__transaction_state"}
    assert all(len(partition["replicas"]) == 3 for partitions in own.values() for partition in partitions)


async def test_a_record_on_two_brokers_survives_the_kill_of_any_one(cluster: KafkaCluster, settings: Settings) -> None:
    partition = TopicPartition(SPINE_CREATED, 0)
    for node in (1, 2, 3):
        async with AIOKafkaProducer(bootstrap_servers=settings.kafka_bootstrap, enable_idempotence=True) as producer:
            for number in range(20):
                await producer.send_and_wait(SPINE_CREATED, b"%d-%d" % (node, number), partition=0)
            await cluster.kill(node)
        await cluster.repair()
    async with outside_consumer(settings) as consumer:
        consumer.assign([partition])
        consumer.seek(partition, 0)
        values: list[bytes | None] = []
        while await consumer.position(partition) < 60:
            values += [record.value for record in (await consumer.getmany(timeout_ms=500)).get(partition, [])]
    assert values == [b"%d-%d" % (node, number) for node in (1, 2, 3) for number in range(20)]


async def test_one_broker_of_three_alone_accepts_nothing(cluster: KafkaCluster, settings: Settings) -> None:
    """min.insync.replicas is 2: rather no record than one that a single disk holds."""
    leader = await cluster.leader(SPINE_CREATED, 0)
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.kafka_bootstrap, acks="all", request_timeout_ms=5000, retry_backoff_ms=500
    )
    await producer.start()
    try:
        await producer.send_and_wait(SPINE_CREATED, b"before", partition=0)
        await cluster.kill(*({1, 2, 3} - {leader}))
        with pytest.raises(KafkaError):
            await producer.send_and_wait(SPINE_CREATED, b"alone", partition=0)
    finally:
        await producer.stop()
