"""What people's reports say of rows that a worker wrote."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.waits import WaitReason
from ct_stream.ops import reports
from ct_stream.ops.story import story, story_lines
from ct_stream.ops.troubles import ServiceTrouble
from ct_stream.settings import Settings, SettingsError
from tests.ops.rows import execute, failed, park, passed, record

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns

DAY = timedelta(days=1)


@pytest.fixture
def settings(database: DatabaseDsns) -> Settings:
    return Settings(postgres_ops_dsn=database.ops)


async def told(settings: Settings, outreach_id: object) -> str:
    assert hasattr(outreach_id, "hex")
    return "\n".join(story_lines(await story(settings, outreach_id)))  # type: ignore[arg-type]


async def test_failures_carry_the_runbooks_words(database: DatabaseDsns, settings: Settings) -> None:
    await record(database.gate, failed(FailureCode.NO_MX, reason="null MX"), failed(FailureCode.SMTP_FAIL), passed())
    (row,) = await reports.failures(settings, since=DAY, code="CT-M-NO-MX", limit=10)
    assert row["blocking_reason"] == "null MX"
    assert row["meaning"] == "No MX records for domain"
    assert row["escalate_to"] == "Data Quality team (domain validation)"
    assert len(await reports.failures(settings, since=DAY, code=None, limit=10)) == 2


async def test_a_code_of_before_the_gate_goes_to_engineering(database: DatabaseDsns, settings: Settings) -> None:
    await execute(
        database.admin,
        "INSERT INTO outreach.company_target_errors (outreach_id, failure_code) VALUES ($1, 'OLD-CODE')",
        uuid4(),
    )
    (row,) = await reports.distribution(settings, since=DAY)
    assert (row["failure_code"], row["count"], row["escalate_to"]) == ("OLD-CODE", 1, "Engineering (check logs)")


async def test_the_pass_rate_of_a_quiet_day_is_none(settings: Settings) -> None:
    assert await reports.pass_rate(settings, since=DAY) == {"passed": 0, "failed": 0, "pass_rate": None}


async def test_held_says_why_and_what_ends_it(database: DatabaseDsns, settings: Settings) -> None:
    waiting = uuid4()
    await park(database.gate, waiting, WaitReason.DAILY_CAP, "all SMTP sessions of the UTC day are used up")
    groups, companies = await reports.held(settings, reason=None, limit=10)
    assert [(g["reason"], g["state"], g["companies"]) for g in groups] == [("daily_cap", "waiting", 1)]
    assert companies[0]["outreach_id"] == waiting
    assert companies[0]["what_ends_it"].startswith("time: looked at again at ")
    assert await reports.held(settings, reason="halted", limit=10) == ([], [])


async def test_a_decided_company_is_told_from_event_to_publication(database: DatabaseDsns, settings: Settings) -> None:
    outcome = failed(FailureCode.NO_PATTERN, reason="mx1.acme.example refused all 8 patterns")
    await execute(
        database.admin,
        "INSERT INTO outreach.outreach (outreach_id, domain) VALUES ($1, 'ACME.example')",
        outcome.outreach_id,
    )
    await record(database.gate, outcome)
    text = await told(settings, outcome.outreach_id)
    assert "event      spine.created partition 3 offset 41" in text
    assert "MX of acme.example: found mx1.acme.example (resolver 192.0.2.53:53)" in text
    assert (
        "RCPT TO jordan.whitfield@acme.example (first.last): mx1.acme.example [192.0.2.25] at rcpt: 550 5.1.1" in text
    )
    assert "outcome    FAIL CT-M-NO-PATTERN at " in text
    assert "No discoverable email format; escalate to Review email pattern list" in text
    assert "rows       company_target: failed; company_target_errors: 1" in text
    assert "published  to ct.fail at " in text


async def test_an_outcome_that_is_not_published_says_so(database: DatabaseDsns, settings: Settings) -> None:
    outcome = passed()
    await record(database.gate, outcome, stamp=False)
    text = await told(settings, outcome.outreach_id)
    assert "method     info@acme.example (info, 0.7)" in text
    assert "published  not yet, to ct.pass" in text


async def test_a_waiting_company_is_told_with_its_answers_so_far(database: DatabaseDsns, settings: Settings) -> None:
    waiting = uuid4()
    await park(database.gate, waiting, WaitReason.PROVIDER_CLOSED, "provider bigmail.example is closed")
    text = await told(settings, waiting)
    assert "MX of acme.example" in text
    assert "waiting since " in text
    assert "why        provider bigmail.example is closed" in text


async def test_a_company_without_an_event_and_an_unknown_one_differ(database: DatabaseDsns, settings: Settings) -> None:
    quiet = uuid4()
    await execute(database.admin, "INSERT INTO outreach.outreach (outreach_id) VALUES ($1)", quiet)
    assert (await story(settings, quiet))["state"] == "not_seen"
    assert (await story(settings, uuid4()))["state"] == "unknown"


async def test_a_guardrail_is_resumed_by_the_audited_function(database: DatabaseDsns, settings: Settings) -> None:
    await execute(database.gate, "SELECT outreach.ct_set_guardrail('tool:TOOL-005', 'halted', 'refused by 5', NULL)")
    (rail,) = await reports.guardrails(settings)
    assert (rail["key"], rail["state"], rail["changed_by"]) == ("tool:TOOL-005", "halted", "ct_gate")
    assert await reports.resume_guardrail(settings, "tool:TOOL-005", "delisted") == "halted -> trial"
    (rail,) = await reports.guardrails(settings)
    assert (rail["state"], rail["reason"], rail["changed_by"]) == ("trial", "delisted", "ct_ops")
    assert await reports.resume_guardrail(settings, "tool:TOOL-005", "again") == "trial already"
    assert await reports.resume_guardrail(settings, "spine", "never halted") == "open already"


async def test_a_wrong_password_is_a_wrong_setting(database: DatabaseDsns) -> None:
    wrong = Settings(postgres_ops_dsn=database.ops.replace("only-on-loopback", "guessed"))
    with pytest.raises(SettingsError, match="CT_POSTGRES_OPS_DSN is refused by Postgres"):
        await reports.guardrails(wrong)


async def test_a_database_without_the_gates_tables_names_migrate(database: DatabaseDsns) -> None:
    other = Settings(postgres_ops_dsn=database.ops.rpartition("/")[0] + "/postgres?sslmode=disable")
    with pytest.raises(ServiceTrouble, match="run `ct-stream migrate`"):
        await reports.guardrails(other)
