"""A tenth of all mail servers is hostile, in every way that the farm and its noise know. Nobody else is worse off.

One in a hundred refuses us for no reason. If many did, SMTP would be halted for all until a person looks, as it should.
CT_TEST_HOSTILE_S says for how many seconds companies come (60).
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from ct_stream.local.farm.names import Names
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE_S = float(os.environ.get("CT_TEST_HOSTILE_S", "60"))
A_SECOND = 12
#: Mail servers, and domains, that do something which no honest one does, or refuse us for no reason.
HOSTILE = (
    *("noise",) * 20,
    *("nobanner", "httpgarbage", "nulgarbage", "longline", "endless", "starttlsbroken", "tarpit", "slowbytes"),
    *(
        "quitsilent",
        "glued",
        "changesmind",
        "blockafter3",
        "banner554",
        "mailrefused",
        "blocklist",
        "mxloop",
        "mxprivate",
    ),
    *("mxip", "mxallgone", "bigmx", "421after3", "attr1", "503after6", "exim10", "otherwords", "ratelimit"),
)
HONEST = (
    "info",
    "contact",
    "catchall",
    "allreject",
    "nullmx",
    "firstdotlast",
    "starttls",
    "multiline",
    "info-at-bigmail",
)


def companies(number: int, dice: random.Random) -> list[str | None]:
    kinds = (dice.choice(HOSTILE if dice.random() < 0.1 else HONEST) for _ in range(A_SECOND))
    return [f"{kind}-{number}x{n}.example" for n, kind in enumerate(kinds)]


@pytest.mark.long
async def test_no_honest_company_is_worse_off_for_a_tenth_of_hostile_servers(tmp_path: Path) -> None:
    dice = random.Random(12)
    names = Names()
    async with Stack(tmp_path, CT_PASS_DEADLINE_S="30") as stack:
        workers = [stack.start_worker() for _ in range(2)]
        domains: dict[object, str] = {}
        began = time.monotonic()
        while (at := time.monotonic() - began) < HOSTILE_S:
            batch = companies(len(domains), dice)
            ids = await stack.mint(batch)
            domains |= dict(zip(ids, map(str, batch), strict=True))
            await stack.publish(ids)
            await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - began - at)))
        honest = {i: domain for i, domain in domains.items() if domain.partition("-")[0] in HONEST}
        outcomes: dict[object, str] = {}
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not honest.keys() <= outcomes.keys():
            await asyncio.sleep(1)
            rows = await stack.admin.fetch(
                "SELECT outreach_id, coalesce(failure_code, outcome) FROM outreach.ct_outcomes"
            )
            outcomes = {row[0]: row[1] for row in rows}
        assert [worker.poll() for worker in workers] == [None, None], stack.worker_log()[-3000:]
        wrong: Counter[tuple[str, str]] = Counter()
        for i, domain in honest.items():
            company = names.company(domain)
            assert company is not None
            if outcomes.get(i, "undecided") != company.expected.outcome:
                wrong[domain.partition("-")[0], outcomes.get(i, "undecided")] += 1
        held = await stack.admin.fetch("SELECT outreach_id, state, reason, detail, exceptions FROM outreach.ct_held")
        assert not wrong, [(domains[row[0]], *row[1:]) for row in held if row[0] in honest][:5]
        halted = await stack.admin.fetch("SELECT key, reason FROM outreach.ct_guardrails WHERE state = 'halted'")
        assert not halted
        # The hostile ones have ended too, or wait for what they said about us.
        while time.monotonic() < deadline + 60 and domains.keys() - outcomes.keys() - {row[0] for row in held}:
            await asyncio.sleep(1)
            rows = await stack.admin.fetch("SELECT outreach_id FROM outreach.ct_outcomes")
            outcomes |= {row[0]: "" for row in rows if row[0] not in outcomes}
            held = await stack.admin.fetch("SELECT outreach_id, exceptions FROM outreach.ct_held")
        left = domains.keys() - outcomes.keys() - {row[0] for row in held}
        assert not left, [domains[i] for i in left][:5]
        raised = [domains[row["outreach_id"]] for row in held if row["exceptions"]]
        assert not raised, "a server's words made our own code fail"
        for worker in workers:
            assert stack.end_worker(worker) == 0
        log = "\n".join(stack.worker_log(number) for number in range(len(workers)))
        assert "exception" not in log.lower(), "a server's words made our own code fail"
        assert "\x1b" not in log
        assert not [line for line in log.splitlines() if line.startswith("2026-01-01")], "a line of the log is forged"
        print(f"{len(domains)} companies, {len(domains) - len(honest)} at hostile servers, {len(held)} of those wait")
