"""Records that cannot be read: single ones are put aside, a flood of them waits for a person (FAULTS row 14)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import orjson

from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

KINDS_OF_JUNK = (
    b"not JSON",
    b"",
    b"[]",
    b"\xff\xfe\x00",
    b'{"outreach_id": 7}',
    b'{"outreach_id": "no uuid"}',
    b"[" * 5000,
    b'{"outreach_id": "' + b"x" * 300_000,
    orjson.dumps({"outreach_id": str(uuid4()), "schema_version": 99}),
)


async def rejected(stack: Stack) -> list[tuple[bytes, bytes]]:
    """Return (partition, offset) of each rejected record, repeats too."""
    headers = [dict(record.headers) for record in await stack.records("ct.rejected")]
    return [(h["ct_source_partition"], h["ct_source_offset"]) for h in headers]


async def test_unreadable_records_among_good_ones_are_put_aside_with_their_reasons(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        good = await stack.mint([f"info-{n}.example" for n in range(60)])
        bodies = [orjson.dumps({"outreach_id": str(company)}) for company in good]
        keys = [*good, *(uuid4() for _ in KINDS_OF_JUNK)]
        await stack.publish(keys, values=[*bodies, *KINDS_OF_JUNK])
        assert await stack.wait_decided(60, 60) == 60
        deadline = time.monotonic() + 30
        while len(await rejected(stack)) < len(KINDS_OF_JUNK):
            assert time.monotonic() < deadline, stack.worker_log()[-2000:]
        records = await stack.records("ct.rejected")
        assert len(records) == len(KINDS_OF_JUNK)
        assert all(dict(record.headers)["ct_reject_reason"] for record in records)
        assert "guardrails" not in (await stack.readyz())[1]
        assert len(stack.worker_log()) < 100_000, "a record was logged whole"
        assert stack.end_worker(worker) == 0


async def test_a_flood_of_unreadable_records_waits_for_a_person_and_is_not_emptied_into_the_rejects(
    tmp_path: Path,
) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        junk = 300
        await stack.publish([uuid4() for _ in range(junk)], values=[b'{"id": 7}'] * junk)
        deadline = time.monotonic() + 30
        while "input is halted" not in (await stack.readyz())[1].get("guardrails", ""):
            assert time.monotonic() < deadline, stack.worker_log()[-2000:]
            await asyncio.sleep(0.2)
        before = len(await rejected(stack))
        assert before <= 60, "the topic is emptied into ct.rejected"
        await stack.publish(await stack.mint(["info-1.example"]))
        await asyncio.sleep(3)
        assert len(await rejected(stack)) == before
        assert await stack.count_decided() == 0
        stack.end_worker(worker)
        again = stack.start_worker()
        assert await stack.wait_said("Ready", 60), "a restart keeps the halt, and runs"
        await asyncio.sleep(3)
        assert len(await rejected(stack)) == before, "a restart forgot the halt"

        await stack.admin.fetchval("SELECT outreach.resume_guardrail('input', 'upstream is mended')")
        assert await stack.wait_decided(1, 60) == 1, stack.worker_log()[-3000:]
        deadline = time.monotonic() + 60
        while len(set(await rejected(stack))) < junk:
            assert time.monotonic() < deadline, stack.worker_log()[-2000:]
        assert stack.end_worker(again) == 0
