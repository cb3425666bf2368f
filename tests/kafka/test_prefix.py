"""Two gates with different prefixes share one cluster, and neither sees a record of the other."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING

from ct_stream.settings import load_settings
from ct_stream.stream.topology import create_topics
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

    from tools.kafka.cluster import KafkaCluster

TOPICS = {"spine.created", "ct.pass", "ct.fail", "ct.rejected", "ct-stream-decided-changelog"}


async def told(stack: Stack, *command: str) -> str:
    """Return what a command prints; its exit code is part of it if it is not 0."""
    env = {"PATH": os.environ["PATH"]} | stack.env
    env["CT_POSTGRES_OPS_DSN"] = stack.postgres.dsn("postgres", "ct_ops", "ops")
    ran = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ct_stream", *command, env=env, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(ran.communicate(), 60)
    assert ran.returncode == 0
    return out.decode()


async def test_two_gates_on_one_cluster_see_nothing_of_each_other(cluster: KafkaCluster, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    async with Stack(tmp_path / "a", CT_KAFKA_PREFIX="staging.") as staging, Stack(tmp_path / "b") as production:
        await create_topics(load_settings(staging.env))  # the second one has found the cluster full, and emptied it
        async with cluster.admin() as admin:
            topics = {name for name in await admin.list_topics() if not name.startswith("__")}
        assert topics == TOPICS | {f"staging.{name}" for name in TOPICS}
        minted = {}
        for stack in (staging, production):
            await stack.admin.execute("ALTER ROLE ct_ops LOGIN PASSWORD 'ops'")
            stack.start_worker()
            assert await stack.wait_said("Ready", 40), stack.worker_log()
            minted[stack] = await stack.mint(["info-a.example", None])
            await stack.publish([*minted[stack], minted[stack][0]], values=None)
        by_hand = await staging.mint(["info-b.example"])
        assert "1 events published to staging.spine.created" in await told(
            staging, "publish", "--undecided", "--all", "--limit", "1"
        )
        minted[staging] += by_hand
        for stack, prefix in ((staging, "staging."), (production, "")):
            assert await stack.wait_decided(len(minted[stack]), 40) == len(minted[stack]), stack.worker_log()[-3000:]
            assert await stack.wait_published(20) == 0
            records = await stack.records()
            assert {record.key.decode() for record in records} == {str(i) for i in minted[stack]}
            assert {record.topic for record in records} == {f"{prefix}ct.pass", f"{prefix}ct.fail"}
            verified = json.loads(await told(stack, "verify", "--json"))
            assert verified["ok"], verified
            assert set(verified["checked"]) >= {f"{prefix}spine.created", f"{prefix}ct.pass"}
            assert f"records of {prefix}spine.created are not committed yet" in await told(stack, "lag")
            replayed = [json.loads(line) for line in (await told(stack, "replay", "--json")).splitlines()]
            assert {record["topic"] for record in replayed} == {f"{prefix}spine.created"}
            assert {record["outreach_id"] for record in replayed} == {str(i) for i in minted[stack]}
            assert f"reading {prefix}spine.created as group {prefix}ct-stream" in stack.worker_log()
        async with cluster.admin() as admin:
            groups = {group for group, _ in await admin.list_consumer_groups()}
        assert groups == {"ct-stream", "staging.ct-stream"}
        for stack in (staging, production):
            assert stack.end_worker(stack.workers[0]) == 0
