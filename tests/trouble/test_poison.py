"""Records that cannot be read: single ones are put aside, a flood of them waits for a person (FAULTS row 14)."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer

from ct_stream.stream.topology import SPINE_CREATED
from tests.faults.harness import Stack
from tests.trouble.test_watchdog import LIMITS, UNACKED_S

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]
ID = "3f0c6f0e-6f5e-4f6e-9a53-1f3c2f0f9a10"
KEY = ID.encode()
SECRET = "do-not-log-me"


def body(**fields: object) -> bytes:
    return orjson.dumps({"outreach_id": ID} | fields)


#: Name to (record, the word that its reason begins with).
POISON: dict[str, tuple[Record, str]] = {
    "malformed": ((KEY, b'{"outreach_id": "' + KEY, []), "not-json"),
    "empty": ((KEY, b"", []), "not-json"),
    "not utf-8": ((KEY, b'{"outreach_id": "\xff\xfe"}', []), "not-json"),
    "utf-16": ((KEY, body().decode().encode("utf-16"), []), "not-json"),
    "byte order mark": ((KEY, b"\xef\xbb\xbf" + body(), []), "not-json"),
    "raw NUL": ((KEY, body() + b"\0", []), "not-json"),
    "infinity": ((KEY, b'{"outreach_id": Infinity}', []), "not-json"),
    "deep nesting": ((KEY, b"[" * 200_000 + b"]" * 200_000, []), "too-large"),
    "deep nesting, smaller": ((KEY, b"[" * 100_000 + b"]" * 100_000, []), "not-json"),
    "nested as deep as one reader goes": (
        (KEY, b'{"outreach_id":"%b","x":%b,"y":":"}' % (KEY, b"[" * 1010 + b"]" * 1010), []), "too-deep",
    ),
    "array": ((KEY, b"[1]", []), "not-an-object"),
    "string": ((KEY, b'"' + KEY + b'"', []), "not-an-object"),
    "null": ((KEY, b"null", []), "not-an-object"),
    "tombstone": ((KEY, None, []), "tombstone"),
    "no id": ((KEY, b'{"domain": "acme.example"}', []), "schema"),
    "number as id": ((KEY, body(outreach_id=7), []), "schema"),
    "boolean as id": ((KEY, body(outreach_id=True), []), "schema"),
    "object as id": ((KEY, body(outreach_id={"id": ID}), []), "schema"),
    "CRLF in the id": ((KEY, body(outreach_id=f"{ID}\r\nRCPT TO:<{SECRET}>"), []), "schema"),
    "NUL in the id": ((KEY, body(outreach_id=f"{ID}\0"), []), "schema"),
    "look-alike digit": ((KEY, body(outreach_id=ID.replace("3", "\uff13", 1)), []), "schema"),
    "look-alike letter": ((KEY, body(outreach_id=ID.replace("c", "\u0441", 1)), []), "schema"),
    "braces": ((KEY, body(outreach_id="{" + ID + "}"), []), "schema"),
    "long id": ((KEY, body(outreach_id=SECRET * 10_000), []), "schema"),
    "correlation id of a wrong type": ((KEY, body(correlation_id=[SECRET]), []), "schema"),
    "future version": ((KEY, body(schema_version=2), []), "schema-version"),
    "far future version": ((KEY, body(schema_version=1e30), []), "schema"),
    "version in words": ((KEY, body(schema_version="1"), []), "schema"),
    "duplicate key": ((KEY, b'{"outreach_id":"%b","outreach_id":"%b"}' % (str(uuid.UUID(int=1)).encode(), KEY), []),
                      "duplicate-key"),
    "other key": ((str(uuid.UUID(int=2)).encode(), body(), []), "key-mismatch"),
    "key of bytes": ((b"\xff\xfe", body(), []), "key-mismatch"),
    "empty key": ((b"", body(), []), "key-mismatch"),
    "nearly 1 MiB": ((KEY, body(filler=SECRET * 76_000), []), "too-large"),
    "long key": ((KEY * 1000, b"{", []), "not-json"),
    "10,000 headers": ((KEY, b"{", [(f"h{n}", b"v" * 20) for n in range(10_000)]), "not-json"),
    "large header": ((KEY, b"{", [("h" * 500, b"v" * 500_000)]), "not-json"),
}  # fmt: skip
STRANGE_DOMAINS = ["evil.example\r\nRCPT TO:<a@b.example>", "two words.example", "\uff41\uff43\uff4d\uff45",
                   "x" * 300 + ".example", "http://acme.example/"]  # fmt: skip


async def send(stack: Stack, records: Sequence[Record]) -> list[Any]:
    """Produce records one after the other; return where each went."""
    producer = AIOKafkaProducer(
        bootstrap_servers=stack.env["CT_KAFKA_BOOTSTRAP"], acks="all", max_request_size=2 * 1024 * 1024
    )
    await producer.start()
    try:
        return [
            await producer.send_and_wait(SPINE_CREATED, key=key, value=value, headers=headers)
            for key, value, headers in records
        ]
    finally:
        await producer.stop()


async def committed_to(stack: Stack, number: int, within_s: float) -> int:
    """Wait until so many records are committed; return how many are."""
    deadline = time.monotonic() + within_s
    while True:
        count = sum(offset for offset in (await stack.committed()).values() if offset > 0)
        if count >= number or time.monotonic() > deadline:
            return count
        await asyncio.sleep(0.3)


async def test_each_kind_of_poison_among_good_companies_is_rejected_with_its_reason_and_nothing_else_changes(
    tmp_path: Path,
) -> None:
    async with Stack(tmp_path) as stack:
        good = await stack.mint([f"info-{n}.example" for n in range(60)])
        strange = await stack.mint([*STRANGE_DOMAINS])
        records: list[Record] = [(str(i).encode(), orjson.dumps({"outreach_id": str(i)}), []) for i in good + strange]
        # A header too large for an outcome must not keep its company from being decided.
        records[7] = (*records[7][:2], [("traceparent", b"t" * 1_047_000), ("correlation_id", b"import-7")])
        large = records[7]
        for number, (record, _) in enumerate(POISON.values()):
            records.insert(number * 2 + 1, record)
        places = await send(stack, records)
        worker = stack.start_worker()
        assert await stack.wait_decided(len(good + strange), 60) == len(good + strange), stack.worker_log()[-3000:]
        assert await committed_to(stack, len(records), 30) == len(records), stack.worker_log()[-3000:]
        assert await stack.wait_published() == 0
        assert stack.end_worker(worker) == 0

        rejected = {(int(h["ct_source_partition"]), int(h["ct_source_offset"])): (record, h)
                    for record in await stack.records("ct.rejected") for h in [dict(record.headers)]}  # fmt: skip
        assert len(rejected) == len(await stack.records("ct.rejected")) == len(POISON)
        for number, (name, ((key, value, headers), word)) in enumerate(POISON.items()):
            place = places[number * 2 + 1]
            record, ours = rejected[place.partition, place.offset]
            assert ours["ct_reject_reason"].decode().partition(":")[0] == word, name
            assert record.value == (value[: 512 * 1024] if value is not None else None), name
            assert record.key == (key or b"")[:4096], name
            assert ours["ct_original_size"] == str(len(value or b"")).encode()
            assert ours["ct_original_sha256"] == hashlib.sha256(value or b"").hexdigest().encode()
            assert ours["ct_original_headers"] == str(len(headers)).encode()
            assert len(record.headers) <= 64 + 8
        log = stack.worker_log()
        assert SECRET * 30 not in log, "a record was logged whole"
        assert max(map(len, log.splitlines())) < 1000
        outcomes = await stack.admin.fetch("SELECT outreach_id, failure_code FROM outreach.ct_outcomes")
        assert {row["outreach_id"] for row in outcomes} == {*good, *strange}, "poison was decided"
        codes = {row["outreach_id"]: row["failure_code"] for row in outcomes}
        assert {codes[company] for company in good} == {None}
        assert {codes[company] for company in strange} == {"CT-I-NO-DOMAIN"}
        assert await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_passes") == 0
        (carried,) = [dict(record.headers) for record in await stack.records("ct.pass") if record.key == large[0]]
        assert carried["correlation_id"] == b"import-7"
        assert "traceparent" not in carried


async def rejected(stack: Stack) -> list[tuple[bytes, bytes]]:
    """Return (partition, offset) of each rejected record, repeats too."""
    headers = [dict(record.headers) for record in await stack.records("ct.rejected")]
    return [(h["ct_source_partition"], h["ct_source_offset"]) for h in headers]


@pytest.mark.long
async def test_a_flood_of_unreadable_records_waits_for_a_person_and_is_not_emptied_into_the_rejects(
    tmp_path: Path,
) -> None:
    async with Stack(tmp_path) as stack:
        worker = stack.start_worker(prelude=LIMITS)
        assert await stack.wait_said("Ready", 60)
        junk = 300
        await stack.publish([uuid.uuid4() for _ in range(junk)], values=[b'{"id": 7}'] * junk)
        deadline = time.monotonic() + 30
        while "input is halted" not in (await stack.readyz())[1].get("guardrails", ""):
            assert time.monotonic() < deadline, stack.worker_log()[-2000:]
            await asyncio.sleep(0.2)
        before = len(await rejected(stack))
        assert before <= 60, "the topic is emptied into ct.rejected"
        await stack.publish(await stack.mint(["info-1.example"]))
        await asyncio.sleep(UNACKED_S * 1.5)
        assert worker.poll() is None, f"who waits for a person does not hang: {stack.worker_log()[-3000:]}"
        assert len(await rejected(stack)) == before
        assert await stack.count_decided() == 0
        stack.end_worker(worker)
        committed = await stack.committed()
        again = stack.start_worker()
        assert await stack.wait_said("Ready", 60), "a restart keeps the halt, and runs"
        await asyncio.sleep(3)
        assert len(await rejected(stack)) == before, "a restart forgot the halt"
        assert await stack.committed() == committed

        await stack.admin.fetchval("SELECT outreach.resume_guardrail('input', 'upstream is mended')")
        assert await stack.wait_decided(1, 60) == 1, stack.worker_log()[-3000:]
        deadline = time.monotonic() + 60
        while len(set(await rejected(stack))) < junk:
            assert time.monotonic() < deadline, stack.worker_log()[-2000:]
        copies: dict[Any, set[Any]] = {}
        for record in await stack.records("ct.rejected"):
            headers = dict(record.headers)
            place = headers["ct_source_partition"], headers["ct_source_offset"]
            copies.setdefault(place, set()).add((record.key, record.value, record.headers))
        assert all(len(same) == 1 for same in copies.values()), "two copies of one record differ"
        assert stack.end_worker(again) == 0
