"""A worker is on record from its start on, also while it still waits for something."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import orjson

from tests.faults.harness import Stack

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

SILENT = "127.0.0.1:1"


async def test_a_worker_that_waits_for_kafka_goes_on_saying_so(tmp_path: Path) -> None:
    """Else it would soon count as gone, and a worker with other limits would start beside it."""
    async with Stack(tmp_path) as stack:
        stack.start_worker(CT_KAFKA_BOOTSTRAP=SILENT)
        beats: set[datetime] = set()
        try:
            async with asyncio.timeout(60):
                while len(beats) < 3:
                    await asyncio.sleep(0.5)
                    row = await stack.admin.fetchrow("SELECT seen_at, troubles, ended_at FROM outreach.ct_workers")
                    if row is not None and "kafka" in orjson.loads(row["troubles"]):
                        beats.add(row["seen_at"])
                        assert row["ended_at"] is None
        except TimeoutError:
            raise AssertionError(f"{len(beats)} beats: {stack.worker_log()[-2000:]}") from None
