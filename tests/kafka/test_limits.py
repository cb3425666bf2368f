"""The limits as the mail servers saw them: exact over eight workers, and never passed, whoever is killed."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.faults import invariants
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

WORKERS = 8
CAP = 1000
PAUSE_S = 2.0
_MIDNIGHT_SLACK_S = 240.0


async def away_from_midnight(stack: Stack) -> None:
    """Wait for midnight where it is near: a new UTC day has a new cap."""
    left_s = float(
        await stack.admin.fetchval(
            "SELECT extract(epoch FROM date_trunc('day', t) + interval '1 day' - t)"
            " FROM (SELECT now() AT TIME ZONE 'UTC') AS n (t)"
        )
    )
    if left_s < _MIDNIGHT_SLACK_S:
        await asyncio.sleep(left_s + 1)


async def company_sessions(stack: Stack) -> Counter[str]:
    """Return how many sessions each company had, and hosts whose company was not known yet."""
    log = await stack.farm.log()
    return Counter(session.domain or session.host for session in log.company_sessions())


async def wait_capped(stack: Stack, within_s: float) -> None:
    """Wait until the day's units are used up and nobody is in a session."""
    deadline = time.monotonic() + within_s
    query = """
    SELECT (SELECT coalesce(sum(u.used), 0) FROM outreach.ct_usage AS u WHERE u.tool_id = 'TOOL-005') AS used,
        (SELECT count(*) FROM outreach.ct_domains AS d WHERE d.lease_until > clock_timestamp()) AS busy
    """
    while True:
        [row] = await stack.admin.fetch(query)
        if row["used"] >= CAP and not row["busy"]:
            return
        assert time.monotonic() < deadline, (
            f"{row['used']} of {CAP} used, {row['busy']} busy: {stack.worker_log()[-2000:]}"
        )
        await asyncio.sleep(0.5)


def domains() -> list[str | None]:
    """Return companies of one session each, and of three."""
    names: list[str | None] = [f"{'421after3' if n % 10 == 0 else 'info'}-l{n}.example" for n in range(CAP + 200)]
    random.Random(8).shuffle(names)
    return names


@pytest.mark.long
async def test_the_days_cap_is_exact_with_eight_workers(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.01, pause_s=0.5, smtp_per_day=CAP) as stack:
        await away_from_midnight(stack)
        for _ in range(WORKERS):
            stack.start_worker()
        await stack.publish(await stack.mint(domains()))
        await wait_capped(stack, 150)
        sessions = await company_sessions(stack)
        assert sessions.total() == CAP, f"the most at one company: {sessions.most_common(5)}"
        failed = await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_outcomes WHERE outcome = 'FAIL'")
        assert failed == 0, "a cap was taken for the company's fault"
        waiting = await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_passes WHERE reason = 'daily_cap'")
        assert waiting > 0


@pytest.mark.long
async def test_no_kill_passes_the_cap_or_the_pause_of_a_domain(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.05, pause_s=PAUSE_S, smtp_per_day=CAP) as stack:
        await away_from_midnight(stack)
        workers = [stack.start_worker() for _ in range(WORKERS)]
        names = domains()
        ids = await stack.mint(names)
        await stack.publish(ids)
        for decided in (100, 300, 500):
            await stack.wait_decided(decided, 60)
            victim = workers.pop(0)
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            workers.append(stack.start_worker())
        await wait_capped(stack, 150)
        sessions = await company_sessions(stack)
        assert sessions.total() <= CAP, f"the most at one company: {sessions.most_common(5)}"
        found = invariants.Found()
        await invariants.check_farm(stack, found, dict(zip(ids, names, strict=True)), {}, kills=3, pause_s=PAUSE_S)
        assert found.broken == []
