"""A worker says on /readyz what a person should know of its settings, from its first second on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
import pytest

from ct_stream.local.processes import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.mark.parametrize(
    ("controls", "note"),
    [("a.example=plain,b.example", "nobody checks who answers for a.example"), ("a.example=a.example", None)],
    ids=["plain", "authenticated"],
)
async def test_a_control_that_is_not_authenticated_is_noted(controls: str, note: str | None) -> None:
    async with _worker(CT_CONTROL_DOMAINS=controls) as port:
        notes = json.loads(await _get(port, "readyz"))["notes"]
    assert (note in notes["controls"]) if note else "controls" not in notes


async def test_the_metrics_name_the_run_of_this_worker_and_its_egress() -> None:
    async with _worker(CT_EGRESS="dc2") as port:
        metrics = await _get(port, "metrics")
    assert re.search(r'^ct_worker_info\{egress="dc2",worker="[^"]+/\d+/[0-9a-f]{8}"\} 1\.0$', metrics, re.MULTILINE)


@asynccontextmanager
async def _worker(**some: str) -> AsyncIterator[int]:
    """Run a worker without Kafka and Postgres, which waits for them; yield its port."""
    port = free_port()
    settings = {
        "CT_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "CT_POSTGRES_DSN": "postgresql://ct_gate:x@127.0.0.1:1/outreach?sslmode=disable",
        "CT_SMTP_HELO": "probe.example.com",
        "CT_SMTP_MAIL_FROM": "probe@example.com",
        "CT_WEB_PORT": str(port),
    } | some
    env = {name: value for name, value in os.environ.items() if not name.startswith("CT_")} | settings
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ct_stream", "worker",
        env=env, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield port
    finally:
        worker.kill()
        await worker.wait()


async def _get(port: int, page: str) -> str:
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/{page}") as response:
                    return await response.text()
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)
