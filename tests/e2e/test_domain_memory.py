"""Many companies of one domain: its servers are asked once, and all take the answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import orjson

from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

MANY = 60
DOMAINS = {
    "info-many.example": "PASS",
    "catchall-many.example": "PASS",
    "allreject-many.example": "CT-M-NO-PATTERN",
    "refuse-many.example": "CT-M-SMTP-FAIL",
    "nxdomain-many.example": "CT-M-NO-MX",
}


async def test_one_chain_serves_all_companies_of_a_domain_and_says_so(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.05) as stack:
        worker = stack.start_worker()
        assert await stack.wait_said("Ready", 30)
        await stack.publish(await stack.mint([domain for domain in DOMAINS for _ in range(MANY)]))
        everyone = MANY * len(DOMAINS)
        assert await stack.wait_decided(everyone, 60) == everyone, stack.worker_log()[-3000:]
        rows = await stack.admin.fetch(
            "SELECT domain, coalesce(failure_code, 'PASS') AS code, count(*) AS n FROM outreach.ct_outcomes"
            " GROUP BY 1, 2"
        )
        assert {(row["domain"], row["code"]): row["n"] for row in rows} == dict.fromkeys(DOMAINS.items(), MANY)

        log = await stack.farm.log()
        for domain in ("info-many.example", "catchall-many.example", "allreject-many.example"):
            recipients = Counter(r for session in log.sessions(domain) for r, _ in session.recipients)
            assert recipients
            assert set(recipients.values()) == {1}, f"{domain} was asked about a mailbox twice"
            assert len(log.queries(domain, "MX")) <= 3

        assert await stack.wait_published(30) == 0
        tools: dict[str, Counter[str]] = {domain: Counter() for domain in DOMAINS}
        for record in await stack.records("ct.pass", "ct.fail"):
            body = orjson.loads(record.value)
            tools[body["domain"]][" ".join(body["tools_used"])] += 1
        assert tools["info-many.example"]["TOOL-004 TOOL-005"] == 1
        assert tools["info-many.example"]["TOOL-004:memory TOOL-005:memory"] == MANY - 1
        assert tools["nxdomain-many.example"]["TOOL-004:memory"] >= MANY - 5

        # What needs no tool needs none of its limits.
        await stack.admin.execute("UPDATE outreach.ct_usage SET used = 1000000000")
        known, unknown = await stack.mint(["info-many.example", "info-new.example"])
        await stack.publish([known, unknown])
        assert await stack.wait_decided(everyone + 1, 20) == everyone + 1
        for _ in range(200):  # its wait is recorded on its own
            reasons = await stack.admin.fetch("SELECT outreach_id, reason FROM outreach.ct_passes")
            if reasons:
                break
            await asyncio.sleep(0.1)
        assert [(row["outreach_id"], row["reason"]) for row in reasons] == [(unknown, "daily_cap")]
        assert await stack.count_decided() == everyone + 1
        assert stack.end_worker(worker) == 0
