"""The runbook's queries run as they stand, with the login that people have, and its tables name what the code knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.questions import ControlKind
from ct_stream.gate.waits import WaitReason, WaitsOn
from ct_stream.ops.verify.kinds import Kind, is_note
from ct_stream.store.queries import query
from tests.ops.rows import failed, passed, record

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns

RUNBOOK = Path("ops/runbooks/company-target.md").read_text("utf-8")

RECENT_FAILURES = """
SELECT outreach_id, failure_code, blocking_reason, created_at
FROM outreach.company_target_errors
WHERE created_at > NOW() - INTERVAL '24 hours'
ORDER BY created_at DESC
LIMIT 100;
"""
FAILURE_DISTRIBUTION = """
SELECT failure_code, COUNT(*) as count
FROM outreach.company_target_errors
WHERE created_at > NOW() - INTERVAL '7 days'
GROUP BY failure_code
ORDER BY count DESC;
"""
PASS_RATE = """
SELECT
  COUNT(*) FILTER (WHERE execution_status = 'ready') as passed,
  COUNT(*) FILTER (WHERE execution_status = 'failed') as failed,
  ROUND(100.0 * COUNT(*) FILTER (WHERE execution_status = 'ready') / COUNT(*), 2) as pass_rate
FROM outreach.company_target
WHERE imo_completed_at > NOW() - INTERVAL '24 hours';
"""


async def rows(dsn: str, statement: str) -> list[dict[str, object]]:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    try:
        return [dict(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


async def test_the_runbooks_three_queries_run_with_a_persons_login(database: DatabaseDsns) -> None:
    older = [failed(FailureCode.NO_MX), failed(FailureCode.NOT_FOUND), passed()]
    newest = failed(FailureCode.NO_MX, reason="the domain has no MX records")
    await record(database.gate, *older, newest)
    recent = await rows(database.ops, RECENT_FAILURES)
    assert len(recent) == 3
    assert recent[0]["outreach_id"] == newest.outreach_id
    assert recent[0]["blocking_reason"] == "the domain has no MX records"
    assert await rows(database.ops, FAILURE_DISTRIBUTION) == [
        {"failure_code": "CT-M-NO-MX", "count": 2},
        {"failure_code": "CT-I-NOT-FOUND", "count": 1},
    ]
    # A NOT-FOUND has no company_target row.
    (rate,) = await rows(database.ops, PASS_RATE)
    assert (rate["passed"], rate["failed"], str(rate["pass_rate"])) == (1, 2, "33.33")


async def test_the_pass_rate_query_divides_by_zero_on_a_quiet_day(database: DatabaseDsns) -> None:
    with pytest.raises(asyncpg.DivisionByZeroError):
        await rows(database.ops, PASS_RATE)


def first_column(head: str) -> list[str]:
    """Return the names in the first column of the runbook's table that begins with this head."""
    table = RUNBOOK.partition(head)[2].partition("\n\n")[0]
    return sorted(name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1]))


def test_the_runbook_has_a_row_for_each_wait_reason_and_no_other() -> None:
    assert first_column("| reason | why it waits |") == sorted(reason.value for reason in WaitReason)


def test_the_runbook_has_a_row_for_each_name_that_a_company_may_wait_on() -> None:
    rows = RUNBOOK.partition("| `waits_on` | what wakes the company |")[2].partition("\n\n")[0].splitlines()[2:]
    named = {name.partition(":")[0] for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert named == WaitsOn.KINDS


def test_the_runbook_says_what_a_worker_lacks_whose_controls_fail() -> None:
    troubles, notes = first_column("| key of `troubles` |"), first_column("| key of `notes` |")
    must, may = (ControlKind.DNS, ControlKind.SMTP), (ControlKind.SMTP, ControlKind.SMTP6, ControlKind.DNS_TCP)
    assert {f"control_{kind}" for kind in must} <= set(troubles)
    assert {kind.value for kind in may} <= set(notes)


def test_the_runbook_has_a_row_for_each_finding_of_verify_and_no_other() -> None:
    assert first_column("| kind | most likely cause |") == sorted(kind.value for kind in Kind if not is_note(kind))
    assert first_column("| kind | means |") == sorted(kind.value for kind in Kind if is_note(kind))


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("runbook_recent_failures", RECENT_FAILURES),
        ("runbook_failure_distribution", FAILURE_DISTRIBUTION),
        ("runbook_pass_rate", PASS_RATE),
    ],
)
def test_the_demo_runs_the_runbooks_queries_word_for_word(name: str, statement: str) -> None:
    without_comments = [line for line in query(name).splitlines() if not line.startswith("--")]
    assert "\n".join(without_comments).strip() == statement.strip()
