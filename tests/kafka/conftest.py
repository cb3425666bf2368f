"""What only Apache Kafka can show."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ct_stream.settings import Settings
from ct_stream.stream.topology import create_topics
from tests import brokers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tools.kafka.cluster import KafkaCluster


@pytest.fixture
def cluster() -> KafkaCluster:
    """Lend the running Apache Kafka."""
    running = brokers.kafka()
    if running is None:
        pytest.exit("tests/kafka need Apache Kafka: run `make test-kafka`, or pytest with --broker kafka", returncode=1)
    return running


@pytest.fixture
async def settings(cluster: KafkaCluster, tmp_path: Path) -> AsyncIterator[Settings]:
    """Lend an Apache Kafka that is well and has our topics, empty."""
    async with brokers.lend_broker(tmp_path) as bootstrap:
        assert bootstrap == cluster.bootstrap
        settings = Settings(kafka_bootstrap=bootstrap)
        await create_topics(settings)
        yield settings
