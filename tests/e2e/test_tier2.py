"""Tier-2 decides what plain SMTP leaves open: real mail servers, Postgres, Kafka, and a vendor on loopback."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from typing import TYPE_CHECKING

import aiohttp
import orjson

from ct_stream.ops.story import story, story_lines
from ct_stream.settings import Settings
from tests.faults.harness import Stack
from tests.probes.vendors import KEY, Answer, VendorServer, millionverifier, reacher

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

# Every recipient is greylisted there, so that no pattern is decided by SMTP.
PLANNED = {
    "grey-valid.example": "PASS info 0.70 tier2",
    "grey-catchall.example": "PASS first.last 0.50 tier2",
    "grey-invalid.example": "CT-M-VERIFY-FAIL",
    "grey-unknown.example": "CT-M-VERIFY-FAIL",
    "grey-broken.example": "CT-M-SMTP-FAIL",
    "grey-garbage.example": "CT-M-SMTP-FAIL",
    "info-fine.example": "PASS info 0.70 smtp",
}


def as_planned(email: str) -> Answer:
    result = {"valid": "ok", "catchall": "catch_all", "invalid": "invalid", "unknown": "unknown"}
    word = email.partition("@grey-")[2].removesuffix(".example")
    if word == "broken":
        return Answer(status=500)
    return millionverifier(result[word], email) if word in result else Answer(body=b"\x00\xff{")


async def outcomes(stack: Stack) -> dict[str, str]:
    rows = await stack.admin.fetch(
        "SELECT o.domain, o.failure_code, t.method_type, t.confidence_score, o.value"
        " FROM outreach.ct_outcomes AS o JOIN outreach.company_target AS t USING (outreach_id)"
    )
    found = {}
    for row in rows:
        verified_by = orjson.loads(row["value"]).get("verified_by")
        passed = f"PASS {row['method_type']} {row['confidence_score'] or 0:.2f} {verified_by}"
        found[row["domain"]] = row["failure_code"] or passed
    return found


async def told(stack: Stack, outreach_id: UUID) -> str:
    return "\n".join(story_lines(await story(Settings(postgres_ops_dsn=stack.postgres.admin_dsn), outreach_id)))


async def metric(stack: Stack, name: str) -> float:
    served = re.search(r"Health and metrics on (http://\S+)", stack.worker_log())
    assert served is not None
    async with aiohttp.ClientSession() as session, session.get(f"{served[1]}/metrics") as response:
        found = re.search(rf"^{re.escape(name)} (\S+)$", await response.text(), re.MULTILINE)
    return float(found[1]) if found else 0.0


async def wait_reason(stack: Stack, reason: str, number: int, within_s: float = 30) -> int:
    """Wait until so many companies wait for `reason`; return how many do."""
    deadline = time.monotonic() + within_s
    while True:
        count = int(await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_passes WHERE reason = $1", reason))
        if count >= number or time.monotonic() > deadline:
            return count
        await asyncio.sleep(0.1)


async def test_the_vendor_decides_what_smtp_leaves_open_and_is_asked_once(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(f"{KEY}\n")
    async with (
        VendorServer(as_planned) as vendor,
        Stack(
            tmp_path, CT_TIER2_PROVIDER="millionverifier", CT_TIER2_URL=vendor.url, CT_TIER2_API_KEY_FILE=str(key)
        ) as stack,
    ):
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 30)
        ids = await stack.mint(list(PLANNED))
        await stack.publish(ids)
        assert await stack.wait_decided(len(ids), 60) == len(ids), stack.worker_log()[-3000:]
        assert await outcomes(stack) == PLANNED
        grey = [f"info@{domain}" for domain in PLANNED if domain.startswith("grey-")]
        assert vendor.asked == dict.fromkeys(grey, 1)
        assert await metric(stack, 'ct_tool_calls_total{tool="TOOL-019"}') == len(grey)
        assert round(await metric(stack, "ct_tier2_usd_total"), 6) == round(0.004 * len(grey), 6)

        shown = {domain: await told(stack, one) for domain, one in zip(PLANNED, ids, strict=True)}
        says = "Tier-2 about info@grey-valid.example: valid millionverifier says ok: the address exists"
        assert says in shown["grey-valid.example"]
        assert "millionverifier answers HTTP 500" in shown["grey-broken.example"]
        assert "Greylisted" in shown["grey-invalid.example"], "the reason says what SMTP had left open"

        # The month's budget is spent from here on.
        await stack.admin.execute("UPDATE outreach.ct_usage SET used = 10000 WHERE tool_id = 'TOOL-019'")
        late = await stack.mint(["grey-late.example", "grey-later.example"])
        await stack.publish(late)
        assert await stack.wait_decided(len(ids) + 2, 30) == len(ids) + 2
        reasons = await stack.admin.fetch("SELECT reason FROM outreach.ct_outcomes WHERE outreach_id = ANY ($1)", late)
        assert all("Tier-2 budget" in row["reason"] and "10000 of 10000 calls" in row["reason"] for row in reasons)
        assert stack.worker_log().count("Guardrail budget:TOOL-019 is closed") == 1

        # Everything comes again, to another worker: nobody is paid for twice.
        assert stack.end_worker(worker) == 0
        again = stack.start_worker()
        assert await stack.wait_said("Ready", 30)
        await stack.publish([*ids, *late])
        await stack.publish(await stack.mint(["info-last.example"]))
        assert await stack.wait_decided(len(ids) + 3, 30) == len(ids) + 3
        assert sum(vendor.asked.values()) == len(grey)
        assert stack.end_worker(again) == 0

        kept = await stack.admin.fetchval(
            "SELECT string_agg(concat(o.transcript, o.reason, o.value::text, a.detail), '')"
            " FROM outreach.ct_outcomes AS o LEFT JOIN outreach.ct_tier2_attempts AS a USING (outreach_id)"
        )
        for text in (kept, stack.worker_log(0), stack.worker_log(1), *shown.values()):
            assert KEY not in text
            assert KEY.encode().hex() not in text


async def test_a_wrong_secret_halts_the_tool_and_who_has_its_attempt_waits_until_a_person_resumes_it(
    tmp_path: Path,
) -> None:
    refuses = True

    def answer(email: str) -> Answer:
        return Answer(status=401) if refuses else reacher("risky", email, {})

    async with (
        VendorServer(answer) as vendor,
        Stack(tmp_path, CT_TIER2_PROVIDER="reacher", CT_TIER2_URL=vendor.url, CT_TIER2_API_KEY=KEY) as stack,
    ):
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 30)
        ids = await stack.mint([f"grey-{n}.example" for n in range(12)])
        await stack.publish([*ids, *await stack.mint(["info-fine.example"])])
        assert await stack.wait_said("Guardrail tool:TOOL-019 is halted", 40), stack.worker_log()[-3000:]
        await stack.wait_decided(2, 30)
        await wait_reason(stack, "halted", len(ids) - 1, 60)
        assert list((await outcomes(stack)).values()).count("CT-M-SMTP-FAIL") == 1, "that one's attempt is spent"
        assert sum(vendor.asked.values()) == 1
        held = await stack.admin.fetch("SELECT DISTINCT reason, what_ends_it FROM outreach.ct_held")
        assert {tuple(row) for row in held} == {
            ("halted", "a person resumes it: ct-stream guardrails resume tool:TOOL-019")
        }  # fmt: skip

        refuses = False
        await stack.admin.fetchval("SELECT outreach.resume_guardrail('tool:TOOL-019', 'the secret is right now')")
        assert await stack.wait_decided(len(ids) + 1, 90) == len(ids) + 1, stack.worker_log()[-3000:]
        assert sorted((await outcomes(stack)).values()) == sorted(
            ["CT-M-SMTP-FAIL", "PASS info 0.70 smtp", *["PASS info 0.70 tier2"] * (len(ids) - 1)]
        )
        assert set(vendor.asked.values()) == {1}
        assert KEY not in stack.worker_log()
        assert stack.end_worker(worker) == 0


async def test_a_worker_killed_in_a_paid_call_pays_once_and_its_company_is_decided_without_it(tmp_path: Path) -> None:
    called, never = asyncio.Event(), asyncio.Event()

    async def answer(email: str) -> Answer:
        called.set()
        await never.wait()
        return millionverifier("ok", email)

    async with (
        VendorServer(answer) as vendor,
        Stack(tmp_path, CT_TIER2_PROVIDER="millionverifier", CT_TIER2_URL=vendor.url, CT_TIER2_API_KEY=KEY) as stack,
    ):
        victim = stack.start_worker()
        assert await stack.wait_said("Ready", 30)
        (company,) = await stack.mint(["grey-killed.example"])
        await stack.publish([company])
        await asyncio.wait_for(called.wait(), 30)
        stack.end_worker(victim, signal.SIGKILL)
        worker = stack.start_worker()
        assert await wait_reason(stack, "tier2", 1, 60) == 1, stack.worker_log()[-3000:]
        assert await stack.count_decided() == 0, "the answer may still come"

        # Its 30 s pass: the reservation is dated back, which no role but the owner can do.
        async with stack.admin.acquire() as owner, owner.transaction():
            await owner.execute("ALTER TABLE outreach.ct_tier2_attempts DISABLE TRIGGER ct_final")
            await owner.execute("UPDATE outreach.ct_tier2_attempts SET answer_due = clock_timestamp()")
            await owner.execute("ALTER TABLE outreach.ct_tier2_attempts ENABLE ALWAYS TRIGGER ct_final")
            await owner.execute("UPDATE outreach.ct_passes SET not_before = clock_timestamp()")
        assert await stack.wait_decided(1, 30) == 1, stack.worker_log()[-3000:]
        assert await outcomes(stack) == {"grey-killed.example": "CT-M-SMTP-FAIL"}
        assert "ended before it stored an answer" in await told(stack, company)
        assert sum(vendor.asked.values()) == 1
        assert stack.end_worker(worker) == 0
        never.set()
