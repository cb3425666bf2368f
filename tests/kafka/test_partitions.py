"""Partitions that are added to spine.created under running workers: noticed, said, mended, and nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from aiokafka.admin import NewPartitions, NewTopic

from ct_stream.settings import load_settings
from ct_stream.stream.topology import TopologyError, check_topics, create_topics
from tests.brokers import wait_topics
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

    from tools.kafka.cluster import KafkaCluster

COMPANIES = 24
#: Who notices first: our own look, or Faust, which then has the new partitions in its hands.
WE_LOOK = "import ct_stream.wiring.watching as w; w._PARTITIONS_EVERY_S = 0.5"
FAUST_LOOKS = """
import ct_stream.wiring.watching as w; w._PARTITIONS_EVERY_S = 1000.0
import ct_stream.stream.app as a; make = a.GateApp
a.GateApp = lambda *args, **more: make(*args, consumer_metadata_max_age_ms=500, **more)
"""


async def grow(cluster: KafkaCluster, topic: str, partitions: int) -> None:
    """Add partitions, as upstream does when it needs more of them."""
    async with cluster.admin() as admin:
        await admin.create_partitions({topic: NewPartitions(partitions)})


@pytest.mark.parametrize("prelude", [WE_LOOK, FAUST_LOOKS], ids=["we notice", "Faust notices"])
async def test_added_partitions_end_the_workers_with_the_command_that_mends_it(
    cluster: KafkaCluster, tmp_path: Path, prelude: str
) -> None:
    async with Stack(tmp_path, partitions=2) as stack:
        workers = [stack.start_worker(prelude=prelude) for _ in range(2)]
        assert await stack.wait_said("Ready", 40), stack.worker_log()
        await stack.publish(await stack.mint(["info-a.example", "info-b.example"]))
        assert await stack.wait_decided(2, 20) == 2
        await grow(cluster, "spine.created", 6)
        await stack.publish(await stack.mint([f"info-c{n}.example" for n in range(COMPANIES)]))
        for number, worker in enumerate(workers):
            assert await stack.wait_end(worker, 20) == 78, stack.worker_log(number)
            said = stack.worker_log(number)
            assert "partitions, and had 2 when this worker started" in said
            assert "run `ct-stream topics`, then start the workers again" in said
            assert "Traceback" not in said
        settings = load_settings(stack.env)
        with pytest.raises(TopologyError, match="with `ct-stream topics`"):
            await check_topics(settings)
        assert (await create_topics(settings))[0] == ["ct-stream-decided-changelog"]
        worker = stack.start_worker()
        assert await stack.wait_decided(2 + COMPANIES, 40) == 2 + COMPANIES, stack.worker_log()[-3000:]
        assert stack.end_worker(worker) == 0
        assert len(await stack.committed()) == 6
        assert sum(max(0, at) for at in (await stack.committed()).values()) == 2 + COMPANIES


async def test_a_topic_that_was_made_again_with_fewer_partitions_ends_the_worker(
    cluster: KafkaCluster, tmp_path: Path
) -> None:
    """As a broker does that makes whatever topic it is asked about: the worker would stay ready, and read nothing."""
    async with Stack(tmp_path, partitions=4) as stack:
        worker = stack.start_worker(prelude=WE_LOOK)
        assert await stack.wait_said("Ready", 40), stack.worker_log()
        async with cluster.admin() as admin:
            await admin.delete_topics(["spine.created"])
            await wait_topics(admin, lambda names: "spine.created" not in names)
            await admin.create_topics([NewTopic("spine.created", 1, 3)])
        assert await stack.wait_end(worker, 40) == 78, stack.worker_log()
        assert "has 1 partitions, and had 4 when this worker started: it was deleted" in stack.worker_log()
        assert "Traceback" not in stack.worker_log()
