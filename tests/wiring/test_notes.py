"""A worker says on /readyz what a person should know of its settings, from its first second on."""

from __future__ import annotations

import asyncio
import os
import sys

import aiohttp
import pytest

from ct_stream.local.processes import free_port


@pytest.mark.parametrize(
    ("controls", "note"),
    [("a.example=plain,b.example", "nobody checks who answers for a.example"), ("a.example=a.example", None)],
    ids=["plain", "authenticated"],
)
async def test_a_control_that_is_not_authenticated_is_noted(controls: str, note: str | None) -> None:
    port = free_port()
    settings = {
        "CT_KAFKA_BOOTSTRAP": "127.0.0.1:1",
        "CT_POSTGRES_DSN": "postgresql://ct_gate:x@127.0.0.1:1/outreach?sslmode=disable",
        "CT_SMTP_HELO": "probe.example.com",
        "CT_SMTP_MAIL_FROM": "probe@example.com",
        "CT_CONTROL_DOMAINS": controls,
        "CT_WEB_PORT": str(port),
    }
    env = {name: value for name, value in os.environ.items() if not name.startswith("CT_")} | settings
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ct_stream", "worker",
        env=env, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        notes = (await _readyz(port))["notes"]
    finally:
        worker.kill()
        await worker.wait()
    assert (note in notes["controls"]) if note else "controls" not in notes


async def _readyz(port: int) -> dict[str, dict[str, str]]:
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                    answer: dict[str, dict[str, str]] = await response.json()
                    return answer
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)
