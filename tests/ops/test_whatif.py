"""Outcomes in the ledger, recomputed under other rules, and nothing changed by it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest

from ct_stream.gate.output_stage import Outcome, output_stage
from ct_stream.gate.patterns import PATTERNS, Pattern, ProbeName, random_address, render
from ct_stream.gate.questions import Answer, MailboxAnswer, SpineAnswer
from ct_stream.gate.recompute import recompute
from ct_stream.gate.rules import Rules
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.verdicts import Failed, Passed
from ct_stream.ops.whatif import whatif
from ct_stream.settings import Settings
from tests.gate.world import GREY, NO, YES, mx
from tests.ops.rows import origin, record

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns

WEEK = timedelta(days=7)
OWN = Rules(probe_name=ProbeName(first="jordan", last="whitfield"))
WIDER = Rules(
    probe_name=OWN.probe_name,
    patterns=(*PATTERNS, Pattern(name="sales", template="sales", confidence=0.7, is_role=True)),
)
SHORTER = Rules(probe_name=OWN.probe_name, patterns=PATTERNS[:-1])


def decided(*replies: MailboxAnswer, rules: Rules = OWN) -> Outcome:
    """Return an outcome whose mailboxes answered so, one after the other, the last one for the random mailbox."""
    outreach_id = uuid4()
    asked: list[tuple[str, Answer, str]] = [
        ("spine", SpineAnswer(found=True, domain="acme.example"), str(outreach_id)),
        ("mx", mx(), "acme.example"),
    ]
    for pattern, reply in zip(rules.patterns, replies, strict=False):
        asked.append((f"rcpt:{pattern.name}", reply, str(render(pattern, rules.probe_name, "acme.example"))))
        if reply is YES:
            asked.append(("rcpt:random", replies[-1], str(random_address(outreach_id, "acme.example"))))
            break
    exchanges = [Exchange(key=key, answer=answer, asked=of) for key, answer, of in asked]
    verdict = recompute(outreach_id, exchanges, rules)
    assert isinstance(verdict, Passed | Failed), verdict
    return output_stage(
        origin(outreach_id),
        verdict,
        exchanges,
        rules_version=rules.version,
        decided_at=datetime.now(UTC),
        duration_ms=1,
    )


PASS_INFO, PASS_CONTACT = [*[NO] * 6, YES, NO], [*[NO] * 7, YES, NO]
ALL_NO, ALL_GREY = [NO] * 8, [GREY] * 8


@pytest.fixture
def settings(database: DatabaseDsns) -> Settings:
    return Settings(postgres_ops_dsn=database.ops)


async def test_whatif_under_the_same_rules_changes_nothing(database: DatabaseDsns, settings: Settings) -> None:
    await record(database.gate, *(decided(*replies) for replies in (PASS_INFO, PASS_CONTACT, ALL_NO, ALL_GREY)))
    result = await whatif(settings, OWN, since=WEEK, limit=10)
    assert dict(result.kinds) == {"same": 4}
    assert dict(result.decided_by) == {OWN.version: 4}


async def test_whatif_without_a_pattern_fails_the_companies_that_passed_by_it(
    database: DatabaseDsns, settings: Settings
) -> None:
    contact = decided(*PASS_CONTACT)
    await record(database.gate, decided(*PASS_INFO), contact, decided(*ALL_NO))
    before = await everything(database)
    result = await whatif(settings, SHORTER, since=WEEK, limit=10)
    assert dict(result.kinds) == {"same": 2, "changed": 1}
    assert dict(result.moves) == {("changed", "PASS contact 0.70", "FAIL CT-M-NO-PATTERN"): 1}
    assert [company.outreach_id for company in result.companies] == [contact.outreach_id]
    assert await everything(database) == before


async def test_whatif_does_not_guess_the_answer_to_a_mailbox_that_was_never_asked(
    database: DatabaseDsns, settings: Settings
) -> None:
    await record(database.gate, decided(*PASS_INFO), decided(*ALL_NO), decided(*ALL_NO))
    result = await whatif(settings, WIDER, since=WEEK, limit=10)
    assert dict(result.kinds) == {"same": 1, "cannot tell": 2}
    assert dict(result.moves) == {("cannot tell", "FAIL CT-M-NO-PATTERN", "rcpt:sales was never asked"): 2}


async def test_whatif_leaves_out_older_and_adopted_outcomes_and_counts_unreadable_transcripts(
    database: DatabaseDsns, settings: Settings
) -> None:
    old, strange, adopted = decided(*ALL_NO), decided(*ALL_NO), decided(*ALL_NO)
    await record(database.gate, old, strange, adopted)
    await change(database.admin, "decided_at = now() - interval '8 days'", old.outreach_id)
    await change(database.admin, """transcript = '[{"key": "oracle", "answer": 42}]'""", strange.outreach_id)
    await change(database.admin, "source = 'adopted'", adopted.outreach_id)
    result = await whatif(settings, OWN, since=WEEK, limit=10)
    assert dict(result.kinds) == {"unreadable": 1}


async def change(dsn: str, what: str, outreach_id: UUID) -> None:
    """Change a final row of this test's own database: its triggers are off from then on."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("ALTER TABLE outreach.ct_outcomes DISABLE TRIGGER ALL")
    await connection.execute(f"UPDATE outreach.ct_outcomes SET {what} WHERE outreach_id = $1", outreach_id)
    await connection.close()


async def everything(database: DatabaseDsns) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(database.admin)
    rows = await connection.fetch("SELECT * FROM outreach.ct_outcomes ORDER BY outreach_id")
    await connection.close()
    return [tuple(row) for row in rows]
