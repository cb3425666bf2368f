"""What people's reports say of rows that a worker wrote."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.questions import ControlKind
from ct_stream.gate.transcript import to_json
from ct_stream.gate.waits import NOTHING, WaitReason, WaitsOn
from ct_stream.ops import reports
from ct_stream.ops.story import exchange_lines, story, story_lines
from ct_stream.ops.troubles import ServiceTrouble, WrongInput
from ct_stream.settings import Settings, SettingsError
from tests.ops.rows import EXCHANGES, execute, failed, park, passed, record

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


async def test_an_unknown_failure_code_from_before_the_gate_is_escalated_to_engineering(
    database: DatabaseDsns, settings: Settings
) -> None:
    await execute(
        database.admin,
        "INSERT INTO outreach.company_target_errors (outreach_id, failure_code) VALUES ($1, 'OLD-CODE')",
        uuid4(),
    )
    (row,) = await reports.distribution(settings, since=DAY)
    assert (row["failure_code"], row["count"], row["escalate_to"]) == ("OLD-CODE", 1, "Engineering (check logs)")


async def test_without_decisions_there_is_no_pass_rate(settings: Settings) -> None:
    assert await reports.pass_rate(settings, since=DAY) == {"passed": 0, "failed": 0, "pass_rate": None}


async def test_held_says_why_and_what_ends_it(database: DatabaseDsns, settings: Settings) -> None:
    waiting = uuid4()
    await park(database.gate, waiting, WaitReason.DAILY_CAP, "all SMTP sessions of the UTC day are used up")
    groups, companies = await reports.held(settings, reason=None, limit=10)
    assert [(g["reason"], g["state"], g["companies"]) for g in groups] == [("daily_cap", "waiting", 1)]
    assert companies[0]["outreach_id"] == waiting
    assert companies[0]["what_ends_it"].startswith("the next UTC day begins; looked at again at ")
    assert await reports.held(settings, reason="halted", limit=10) == ([], [])


ENDS = {
    WaitReason.SPINE_GRACE: (1.0, NOTHING, "it appears in the spine"),
    WaitReason.SPINE_CONTROL: (30.0, WaitsOn.spine(), "the check of the spine succeeds"),
    WaitReason.RATE_LIMIT: (1.0, NOTHING, "a short time passes"),
    WaitReason.DAILY_CAP: (3600.0, WaitsOn.cap("TOOL-005"), "the next UTC day begins, or a unit of today"),
    WaitReason.DOMAIN_BUSY: (None, WaitsOn.domain("acme.example"), "the company that asks acme.example now is done"),
    WaitReason.PROVIDER_BUSY: (None, WaitsOn.place("bigmail.example"), "one of our sessions at bigmail.example ends"),
    WaitReason.PROVIDER_CLOSED: (
        *(None, WaitsOn.provider("2001:db8:7::/48")),
        "another company talks normally with 2001:db8:7::/48, or a person resumes it: "
        "ct-stream guardrails resume provider:2001:db8:7::/48",
    ),
    WaitReason.PROVIDER_SILENT: (600.0, NOTHING, "it is known whether the provider is silent for other companies too"),
    WaitReason.HALTED: (None, WaitsOn.tool("TOOL-005"), "a worker sees within seconds"),  # it is open here
    WaitReason.CONTROL: (
        *(None, WaitsOn.control(ControlKind.SMTP)),
        "another worker takes it within seconds: worker test/1, which met its last answer, has ended",
    ),
    WaitReason.RESOLVER: (1.0, WaitsOn.control(ControlKind.DNS), "a short time passes"),  # only `check` says it
    WaitReason.REFUSED: (
        *(600.0, WaitsOn.provider("bigmail.example")),
        "it is known whether other companies are refused too",
    ),
    WaitReason.OUR_RATE: (None, WaitsOn.provider("bigmail.example"), "another company talks normally with"),
    WaitReason.TIER2: (30.0, WaitsOn.vendor(), "the vendor gives a usable answer, or its turn comes"),
    WaitReason.OUR_MACHINE: (5.0, NOTHING, "a short time passes"),
    WaitReason.ANOTHER_MACHINE: (
        None,
        WaitsOn.way(ControlKind.SMTP6),
        "a worker takes it whose machine reaches port 25 over IPv6",
    ),
    WaitReason.ROW_HELD: (60.0, NOTHING, "its rows can be written: who holds them"),
    WaitReason.OUR_BUG: (5.0, NOTHING, "a short time passes"),
    WaitReason.DRAIN: (0.0, NOTHING, "it is over: the next free worker continues with the company"),
}


@pytest.mark.parametrize("reason", WaitReason)
async def test_held_says_in_a_sentence_what_ends_each_kind_of_wait(
    database: DatabaseDsns, settings: Settings, reason: WaitReason
) -> None:
    after_s, waits_on, sentence = ENDS[reason]
    await park(database.gate, uuid4(), reason, "why", after_s=after_s, waits_on=waits_on)
    _, companies = await reports.held(settings, reason=None, limit=10)
    assert companies[0]["what_ends_it"].startswith(sentence)


async def test_held_names_the_command_that_resumes_a_halted_tool(database: DatabaseDsns, settings: Settings) -> None:
    await execute(
        database.admin,
        "INSERT INTO outreach.ct_guardrails (key, state, reason) VALUES ('tool:TOOL-005', 'halted', 'listed')",
    )
    await park(database.gate, uuid4(), WaitReason.HALTED, "why", after_s=None, waits_on=WaitsOn.tool("TOOL-005"))
    _, companies = await reports.held(settings, reason=None, limit=10)
    assert companies[0]["what_ends_it"] == "a person resumes it: ct-stream guardrails resume tool:TOOL-005"


WORKER = (
    "INSERT INTO outreach.ct_workers (worker, machine, egress, version, toolbox, troubles, notes, partitions, running) "
    "VALUES ($1, 'm', $2, '1', '{}', $3, $4, '{}', 0)"
)


async def ends(settings: Settings) -> str:
    _, (company,) = await reports.held(settings, reason=None, limit=10)
    return str(company["what_ends_it"])


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        (ControlKind.DNS, "the resolvers of worker test/1 (egress dc2) work"),
        (ControlKind.SMTP, "the way out to port 25 of worker test/1 (egress dc2) works"),
        (ControlKind.SMTP6, "the way out to port 25 over IPv6 of worker test/1 (egress dc2) works"),
        (ControlKind.DNS_TCP, "the resolvers over TCP of worker test/1 (egress dc2) work"),
    ],
)
async def test_held_names_the_worker_whose_control_is_awaited_and_its_egress(
    database: DatabaseDsns, settings: Settings, kind: ControlKind, way: str
) -> None:
    await execute(database.gate, WORKER, "test/1", "dc2", "{}", "{}")
    await park(database.gate, uuid4(), WaitReason.CONTROL, "why", after_s=None, waits_on=WaitsOn.control(kind))
    assert await ends(settings) == f"a control shows that {way}"
    await execute(database.gate, "UPDATE outreach.ct_workers SET ended_at = now()")
    assert await ends(settings) == (
        "another worker takes it within seconds: worker test/1, which met its last answer, has ended"
    )


@pytest.mark.parametrize(
    ("waits_on", "lack", "sentence"),
    [
        ("way", "{}", "a worker takes it whose own way out is proven"),
        ("way:smtp", '{"smtp": "x"}', "a worker takes it whose machine reaches port 25 over IPv4"),
        ("way:smtp6", '{"smtp6": "x"}', "a worker takes it whose machine reaches port 25 over IPv6"),
        ("way:dns_tcp", '{"dns_tcp": "x"}', "a worker takes it whose resolvers answer over TCP (port 53)"),
    ],
)
async def test_held_says_whether_a_worker_is_there_that_can_take_the_company(
    database: DatabaseDsns, settings: Settings, waits_on: str, lack: str, sentence: str
) -> None:
    await park(database.gate, uuid4(), WaitReason.CONTROL, "why", after_s=None, waits_on=WaitsOn(waits_on))
    nobody = f"{sentence}; there is none now, see ct-stream workers"
    assert await ends(settings) == nobody
    await execute(database.gate, WORKER, "broken/1", "default", '{"control_smtp": "no answer"}', "{}")
    if lack != "{}":
        await execute(database.gate, WORKER, "lacking/1", "default", "{}", lack)
    assert await ends(settings) == nobody
    await execute(database.gate, WORKER, "whole/1", "default", "{}", "{}")
    assert await ends(settings) == sentence


async def test_held_says_that_another_egress_may_take_what_waits_for_one(
    database: DatabaseDsns, settings: Settings
) -> None:
    halt = "SELECT outreach.ct_set_guardrail($1, 'halted', 'listed', NULL)"
    await execute(database.gate, halt, "tool:TOOL-005@dc2")
    await park(
        *(database.gate, uuid4(), WaitReason.HALTED, "why"), after_s=None, waits_on=WaitsOn.tool("TOOL-005", "dc2")
    )
    resume = "a person resumes it: ct-stream guardrails resume tool:TOOL-005@dc2"
    await execute(database.gate, WORKER, "same/1", "dc2", "{}", "{}")
    assert await ends(settings) == resume
    await execute(database.gate, WORKER, "other/1", "default", "{}", "{}")
    assert await ends(settings) == f"{resume}, or a worker of another egress takes it"


async def test_held_names_the_egress_to_which_a_provider_is_closed(database: DatabaseDsns, settings: Settings) -> None:
    rail = WaitsOn.provider("bigmail.example", "dc2")
    await execute(database.gate, "SELECT outreach.ct_set_guardrail($1, 'closed', 'no', NULL)", rail)
    await park(database.gate, uuid4(), WaitReason.PROVIDER_CLOSED, "why", after_s=None, waits_on=rail)
    assert await ends(settings) == (
        "another company talks normally with bigmail.example from egress dc2, or a person resumes it: "
        "ct-stream guardrails resume provider:bigmail.example@dc2"
    )


async def test_held_says_that_another_egress_asks_whom_this_one_was_refused_by(
    database: DatabaseDsns, settings: Settings
) -> None:
    waits_on = WaitsOn.other_than("dc2")
    await park(database.gate, uuid4(), WaitReason.REFUSED, "why", after_s=60.0, waits_on=waits_on)
    assert (await ends(settings)).startswith("a worker of another egress than dc2 asks instead; looked at again at ")


def heard(*runs: str) -> list[dict[str, object]]:
    return to_json([replace(one, by=by) for one, by in zip(EXCHANGES, runs, strict=True)])


def test_show_says_who_heard_an_answer_only_where_that_was_not_always_the_same() -> None:
    for one_run in (("a/1/x", "a/1/x", "a/1/x"), ("a/1/x", "b/2/y", "b/2/y"), ("", "", "b/2/y")):
        assert "heard by" not in "\n".join(exchange_lines(heard(*one_run))), "the spine row is no server's answer"
    lines = [line.strip().partition(":")[0] for line in exchange_lines(heard("a/1/x", "a/1/x", "b/2/y"))]
    assert lines == [
        *("1. spine row", "heard by worker a/1/x", "2. MX of acme.example", "heard by worker b/2/y"),
        "3. RCPT TO jordan.whitfield@acme.example (first.last)",
    ]


async def test_show_tells_the_story_of_a_decided_company_from_event_to_publication(
    database: DatabaseDsns, settings: Settings
) -> None:
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


async def test_show_says_that_an_outcome_is_not_published_yet(database: DatabaseDsns, settings: Settings) -> None:
    outcome = passed()
    await record(database.gate, outcome, stamp=False)
    text = await told(settings, outcome.outreach_id)
    assert "method     info@acme.example (info, 0.7)" in text
    assert "published  not yet, to ct.pass" in text


async def test_show_gives_a_waiting_companys_reason_and_its_answers_so_far(
    database: DatabaseDsns, settings: Settings
) -> None:
    waiting = uuid4()
    await park(database.gate, waiting, WaitReason.PROVIDER_CLOSED, "provider bigmail.example is closed")
    text = await told(settings, waiting)
    assert "MX of acme.example" in text
    assert "waiting since " in text
    assert "why        provider bigmail.example is closed" in text


async def test_show_tells_a_company_without_an_event_from_an_unknown_one(
    database: DatabaseDsns, settings: Settings
) -> None:
    quiet = uuid4()
    await execute(database.admin, "INSERT INTO outreach.outreach (outreach_id) VALUES ($1)", quiet)
    assert (await story(settings, quiet))["state"] == "not_seen"
    assert (await story(settings, uuid4()))["state"] == "unknown"


async def test_resuming_a_guardrail_is_logged_with_login_and_reason(database: DatabaseDsns, settings: Settings) -> None:
    await execute(database.gate, "SELECT outreach.ct_set_guardrail('tool:TOOL-005', 'halted', 'refused by 5', NULL)")
    (rail,) = await reports.guardrails(settings)
    assert (rail["key"], rail["state"], rail["changed_by"]) == ("tool:TOOL-005", "halted", "ct_gate")
    assert await reports.resume_guardrail(settings, "tool:TOOL-005", "delisted") == "halted -> trial"
    (rail,) = await reports.guardrails(settings)
    assert (rail["state"], rail["reason"], rail["changed_by"]) == ("trial", "delisted", "ct_ops")
    assert await reports.resume_guardrail(settings, "tool:TOOL-005", "again") == "trial already"
    with pytest.raises(WrongInput, match=r"there is no guardrail 'spine'; not open are: tool:TOOL-005 \(trial\)"):
        await reports.resume_guardrail(settings, "spine", "never halted")


HALT = "SELECT outreach.ct_set_guardrail($1, 'halted', 'listed', NULL)"


async def test_a_guardrail_is_listed_with_the_egress_that_it_holds(database: DatabaseDsns, settings: Settings) -> None:
    for key in ("mail_from", "provider:bigmail.example", "tool:TOOL-005@dc2", "tool:TOOL-019"):
        await execute(database.gate, HALT, key)
    assert [(row["key"], row["base"], row["egress"]) for row in await reports.guardrails(settings)] == [
        ("mail_from", "mail_from", None),
        ("provider:bigmail.example", "provider:bigmail.example", "default"),
        ("tool:TOOL-005@dc2", "tool:TOOL-005", "dc2"),
        ("tool:TOOL-019", "tool:TOOL-019", None),
    ]


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("TOOL-005", "tool:TOOL-005"), ("tool-005@dc2", "tool:TOOL-005@dc2"), ("TOOL-005@default", "tool:TOOL-005"),
        ("provider:bigmail.example@default", "provider:bigmail.example"), ("mail_from", "mail_from"),
        ("provider:x.example@dc2", "provider:x.example@dc2"), ("spine@default", "spine@default"),
    ],
)  # fmt: skip
def test_a_key_may_be_typed_in_short(typed: str, key: str) -> None:
    assert reports.full_key(typed) == key


async def test_only_the_egress_is_resumed_that_was_named(database: DatabaseDsns, settings: Settings) -> None:
    await execute(database.gate, HALT, "tool:TOOL-005@dc2")
    with pytest.raises(WrongInput) as caught:
        await reports.resume_guardrail(settings, "TOOL-005", "delisted")
    assert str(caught.value.problems[0]) == (
        "tool:TOOL-005 is open for egress default; not open is tool:TOOL-005@dc2 (halted): "
        "`ct-stream guardrails resume TOOL-005@dc2 --reason ...`"
    )
    with pytest.raises(WrongInput, match=r"there is no guardrail 'tool:TOOL-005@dc3'; not open are: tool:TOOL-005@dc2"):
        await reports.resume_guardrail(settings, "TOOL-005@dc3", "delisted")
    assert [row["state"] for row in await reports.guardrails(settings)] == ["halted"]
    await execute(database.gate, HALT, "tool:TOOL-005")
    said = await reports.resume_guardrail(settings, "TOOL-005", "delisted")
    assert said == "halted -> trial; still not open: tool:TOOL-005@dc2 (halted)"
    with pytest.raises(WrongInput, match="tool:TOOL-005 is on trial for egress default; not open is tool:TOOL-005@dc2"):
        await reports.resume_guardrail(settings, "TOOL-005", "delisted")
    assert await reports.resume_guardrail(settings, "TOOL-005@dc2", "delisted") == "halted -> trial"
    assert await reports.resume_guardrail(settings, "TOOL-005", "delisted") == "trial already"


async def test_resuming_our_sender_says_that_each_address_is_tried_first(
    database: DatabaseDsns, settings: Settings
) -> None:
    await execute(database.gate, HALT, "mail_from")
    said = await reports.resume_guardrail(settings, "mail_from", "it accepts bounces again")
    assert said == "halted -> open; TOOL-005 goes on trial on every egress where it is open"


async def test_what_a_person_must_look_at_comes_first(database: DatabaseDsns, settings: Settings) -> None:
    for key, state in [("provider:a.example", "paused"), ("provider:b.example", "closed"), ("spine", "halted")]:
        await execute(database.gate, f"SELECT outreach.ct_set_guardrail('{key}', '{state}', 'why', NULL)")
    assert [rail["state"] for rail in await reports.guardrails(settings)] == ["halted", "closed", "paused"]


async def test_a_wrong_password_is_reported_as_a_wrong_setting(database: DatabaseDsns) -> None:
    wrong = Settings(postgres_ops_dsn=database.ops.replace("only-on-loopback", "guessed"))
    with pytest.raises(SettingsError, match="CT_POSTGRES_OPS_DSN is refused by Postgres"):
        await reports.guardrails(wrong)


async def test_reports_name_migrate_for_a_database_without_the_gates_tables(database: DatabaseDsns) -> None:
    other = Settings(postgres_ops_dsn=database.ops.rpartition("/")[0] + "/postgres?sslmode=disable")
    with pytest.raises(ServiceTrouble, match="run `ct-stream migrate`"):
        await reports.guardrails(other)
