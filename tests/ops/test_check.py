"""`check` asks as stage M does, within the limits, and leaves no outcome."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ct_stream.local.farm import MailFarm
from ct_stream.ops.check import check
from ct_stream.ops.troubles import ServiceTrouble, WrongInput
from ct_stream.probes.probing import make_probing
from ct_stream.probes.toolbox import load_toolbox
from ct_stream.settings import Settings, load_settings
from tests.ops.rows import execute

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ct_stream.ops.check import Checked
    from tests.conftest import DatabaseDsns


@pytest.fixture
async def farm() -> AsyncIterator[MailFarm]:
    async with MailFarm() as farm:
        yield farm


@pytest.fixture
def settings(farm: MailFarm) -> Settings:
    return load_settings(farm.env() | {"CT_PASS_DEADLINE_S": "20"})


async def ask(settings: Settings, domain: str) -> Checked:
    return await check(settings, load_toolbox(), make_probing(settings), domain)


async def test_an_honest_yes_is_a_pass_with_its_transcript(settings: Settings) -> None:
    checked = await ask(settings, "  FirstDotLast-A.example. ")
    assert (checked.outcome, checked.method_type, checked.confidence_score) == ("PASS", "first.last", 0.95)
    assert checked.email_method == "{first}.{last}@firstdotlast-a.example"
    assert checked.is_catchall is False
    assert [exchange["key"] for exchange in checked.transcript] == ["mx", "rcpt:first.last", "rcpt:random"]


@pytest.mark.parametrize(
    ("domain", "outcome", "code"),
    [
        pytest.param("catchall-a.example", "PASS", None, id="catch-all"),
        pytest.param("nxdomain-a.example", "FAIL", "CT-M-NO-MX", id="no MX"),
        pytest.param("allreject-a.example", "FAIL", "CT-M-NO-PATTERN", id="no pattern"),
        pytest.param("refuse-a.example", "FAIL", "CT-M-SMTP-FAIL", id="refused"),
        pytest.param("blocklist-at-bigmail-1.example", "HELD", None, id="a provider refuses us"),
    ],
)
async def test_check_returns_each_outcome_with_its_transcript_and_reason(
    settings: Settings, domain: str, outcome: str, code: str | None
) -> None:
    checked = await ask(settings, domain)
    assert (checked.outcome, checked.failure_code) == (outcome, code)
    assert checked.transcript
    assert checked.reason or outcome == "PASS"


async def test_check_answers_held_when_our_own_network_is_broken(farm: MailFarm, settings: Settings) -> None:
    farm.faults.block_smtp("refused")
    checked = await ask(settings, "info-a.example")
    assert (checked.outcome, checked.held_by) == ("HELD", "control")
    farm.faults.set_resolvers("refused")
    assert (await ask(settings, "info-b.example")).outcome == "HELD"


async def test_check_fails_no_domain_on_the_word_of_whoever_answers_in_a_controls_place(
    farm: MailFarm, settings: Settings
) -> None:
    """A proxy on port 25 greets everybody, so a dead server and a refusal need a control that proves who it is."""
    proxy = "controlselfsigned-x.example"
    behind = load_settings(farm.env() | {"CT_CONTROL_DOMAINS": f"{proxy}={proxy}"})
    for domain, scope in (("refuse-a.example", "control"), ("blocklist-a.example", "halted")):
        checked = await ask(behind, domain)
        assert (checked.outcome, checked.held_by) == ("HELD", scope)
        assert f"mx1.{proxy}: somebody answers in its place" in (checked.reason or "")
        assert (await ask(settings, domain)).failure_code == "CT-M-SMTP-FAIL"


async def test_check_refuses_input_that_is_not_a_domain(settings: Settings) -> None:
    with pytest.raises(WrongInput, match="CT-I-NO-DOMAIN"):
        await ask(settings, "https://acme.example/about")


async def test_check_with_a_database_counts_against_the_shared_limits_and_obeys_halts(
    settings: Settings, database: DatabaseDsns
) -> None:
    settings = replace(settings, postgres_dsn=database.gate)
    assert (await ask(settings, "info-a.example")).outcome == "PASS"
    assert (await ask(settings, "info-a.example")).outcome == "PASS"  # it waited for the domain's pause
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.ops)
    try:
        rows = await connection.fetch("SELECT u.tool_id, u.used FROM outreach.ct_usage AS u")
        outcomes = await connection.fetchval("SELECT count(*) FROM outreach.ct_outcomes")
    finally:
        await connection.close()
    assert {row["tool_id"]: row["used"] for row in rows} == {"TOOL-004": 2, "TOOL-005": 2}
    assert outcomes == 0
    await execute(database.gate, "SELECT outreach.ct_set_guardrail('tool:TOOL-005', 'halted', 'refused by 5', NULL)")
    checked = await ask(settings, "info-b.example")
    assert (checked.outcome, checked.held_by) == ("HELD", "halted")
    assert checked.reason == "TOOL-005 is halted: refused by 5"


@pytest.mark.parametrize("try_is_due", [False, True])
async def test_check_with_a_database_calls_no_refusal_from_a_closed_network_a_policy(
    farm: MailFarm, settings: Settings, database: DatabaseDsns, try_is_due: bool
) -> None:
    machine = "127.77.250.7"
    farm.add("customer.example", "blocklist", None, machine)
    due = "now()" if try_is_due else "now() + interval '1 hour'"
    close = f"SELECT outreach.ct_set_guardrail('provider:{machine}', 'closed', 'refused by 2', {due})"
    await execute(database.gate, close)
    checked = await ask(replace(settings, postgres_dsn=database.gate), "customer.example")
    assert (checked.outcome, checked.held_by) == ("HELD", "provider_closed")
    assert (await ask(settings, "customer.example")).failure_code == "CT-M-SMTP-FAIL", "without the database"


async def test_check_names_a_database_that_does_not_answer(settings: Settings) -> None:
    settings = replace(settings, postgres_dsn="postgresql://ct_gate:x@127.0.0.1:1/outreach?sslmode=disable")
    with pytest.raises(ServiceTrouble, match=r"Postgres \(CT_POSTGRES_DSN\) does not answer"):
        await ask(settings, "info-a.example")
