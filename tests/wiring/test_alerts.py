"""People hear once of what needs them, and a receiver in trouble costs nothing but its alert."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import orjson
import pytest
from aiohttp import web

from ct_stream.gate.contracts import ALERT
from ct_stream.gate.output_stage import Origin
from ct_stream.gate.questions import ControlKind
from ct_stream.metrics import Metrics
from ct_stream.settings import SettingsError, load_settings
from ct_stream.store.control_ledger import ControlLedger
from ct_stream.store.database import Database
from ct_stream.store.guardrails import SMTP_RAIL, Guardrails
from ct_stream.store.parked import ParkedCompanies
from ct_stream.store.worker_record import WorkerRecord
from ct_stream.wiring import alerts as alerting_module
from ct_stream.wiring.alerts import QUEUE, TRIES, Alert, AlertRelay, Alerts, alerting
from tests.texts import NASTY, assert_no_chat_is_steered
from tests.wiring.receiver import SECRET, Receiver, receiving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import DatabaseDsns

HALTED = Alert(
    event="guardrail",
    rail=SMTP_RAIL,
    state="halted",
    reason="5 providers refuse us",
    at=datetime(2026, 1, 7, tzinfo=UTC),
)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerting_module, "_RETRY_S", (0.01, 0.01))
    monkeypatch.setattr(alerting_module, "_LOOK_EVERY_S", 0.05)


def make(url: str | None) -> tuple[Alerts, Metrics]:
    metrics = Metrics()
    return Alerts(url, "host/1/a", "0.1.0", metrics), metrics


def counted(metrics: Metrics, result: str) -> float:
    return metrics.registry.get_sample_value("ct_alerts_total", {"result": result}) or 0.0


async def test_an_alert_is_one_post_of_the_documented_shape(receiver: Receiver) -> None:
    alerts, metrics = make(receiver.url)
    conflict = Alert(event="conflict", outreach_id=uuid4(), state="kept", reason="it was final", at=datetime.now(UTC))
    stuck = Alert(event="stuck", outreach_id=uuid4(), state="stuck", reason="KeyError: 'x'", at=datetime.now(UTC))
    async with alerting(alerts):
        alerts.put(HALTED)
        alerts.put(stuck)
        alerts.worker_stops("20 companies became stuck within an hour")
        for kind in ("dns", "smtp"):
            alerts.put(
                replace(
                    HALTED, event="control", rail=f"control:{kind}", state="failing", run="gate-2/1/b", its_egress="dc2"
                )
            )
        alerts.put(conflict)
        await receiver.wait_for(6)
    assert [ALERT.problem(body) for body in receiver.bodies] == [None] * 6
    assert receiver.bodies[0] == {
        "schema_version": 1,
        "text": "ct-stream: guardrail tool:TOOL-005 is halted: 5 providers refuse us",
        "severity": "critical",
        "event": "guardrail",
        "rail": "tool:TOOL-005",
        "about_worker": None,
        "egress": "default",
        "outreach_id": None,
        "state": "halted",
        "reason": "5 providers refuse us",
        "at": "2026-01-07T00:00:00.000Z",
        "worker": "host/1/a",
        "version": "0.1.0",
    }
    assert [body["event"] for body in receiver.bodies] == [
        "guardrail", "stuck", "worker", "control", "control", "conflict",
    ]  # fmt: skip
    assert receiver.bodies[5]["severity"] == "warning"
    assert f"a row of company {conflict.outreach_id} that the gate did not make: it was" in receiver.bodies[5]["text"]
    assert counted(metrics, "sent") == 6


@pytest.mark.parametrize(
    ("alert", "text", "egress"),
    [
        (HALTED, "guardrail tool:TOOL-005 is halted: ", "default"),
        (replace(HALTED, rail="tool:TOOL-005@dc2"), "guardrail tool:TOOL-005 of egress dc2 is halted: ", "dc2"),
        (
            replace(HALTED, rail="provider:bigmail.example@dc2", state="closed"),
            "guardrail provider:bigmail.example of egress dc2 is closed: ",
            "dc2",
        ),
        (replace(HALTED, rail="mail_from"), "guardrail mail_from (our sender, on every egress) is halted: ", None),
        (replace(HALTED, rail="spine"), "guardrail spine is halted: ", None),
        (
            replace(HALTED, event="control", rail="control:dns", state="failing", run="gate-2/1/b", its_egress="dc2"),
            "worker gate-2/1/b (egress dc2) asks nobody, because a control of its resolvers failed: ",
            "dc2",
        ),
        (
            replace(HALTED, event="control", rail="control:smtp", state="working", run="gate-2/1/b", its_egress="dc2"),
            "worker gate-2/1/b (egress dc2) works again: a control of its way out to port 25 succeeded: ",
            "dc2",
        ),
    ],
    ids=lambda value: value.rail if isinstance(value, Alert) else "",
)
def test_the_text_names_what_is_meant_and_the_egress(alert: Alert, text: str, egress: str | None) -> None:
    body = orjson.loads(alert.body("w/1", "1"))
    assert body["text"] == f"ct-stream: {text}5 providers refuse us"
    assert body["egress"] == egress
    assert ALERT.problem(body) is None
    assert_no_chat_is_steered(body["text"])


@pytest.mark.parametrize(
    ("status", "tries"), [(500, TRIES), (503, TRIES), (429, TRIES), (404, 1), (302, 1)], ids=lambda value: str(value)
)
async def test_an_alert_that_is_refused_is_sent_again_only_if_that_may_help(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, status: int, tries: int
) -> None:
    async def refuse() -> web.Response:
        return web.Response(status=status, headers={"Location": receiver.url})

    receiver.answer = refuse
    alerts, metrics = make(receiver.url)
    async with alerting(alerts):
        alerts.put(HALTED)
        await alerts.wait_idle()
    assert len(receiver.bodies) == tries
    assert counted(metrics, "failed") == 1
    assert f"answers {status}" in caplog.text
    assert "very-secret" not in caplog.text


async def test_a_receiver_that_recovers_gets_the_alert(receiver: Receiver) -> None:
    async def fail_once() -> web.Response:
        receiver.answer = receiver.take
        return web.Response(status=500)

    receiver.answer = fail_once
    alerts, metrics = make(receiver.url)
    async with alerting(alerts):
        alerts.put(HALTED)
        await alerts.wait_idle()
    assert receiver.bodies[0] == receiver.bodies[1]
    assert counted(metrics, "sent") == 1


async def test_a_receiver_that_is_away_is_named_without_its_secret(caplog: pytest.LogCaptureFixture) -> None:
    alerts, metrics = make(f"http://user:pass-word@127.0.0.1:1{SECRET}")
    with caplog.at_level(logging.DEBUG):
        async with alerting(alerts):
            alerts.put(HALTED)
            await alerts.wait_idle()
    assert counted(metrics, "failed") == 1
    assert "http://127.0.0.1:1: ClientConnectorError" in caplog.text
    assert "very-secret" not in caplog.text
    assert "pass-word" not in caplog.text


async def test_a_hanging_receiver_holds_nobody_and_drops_the_oldest(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()

    async def hang() -> web.Response:
        await never.wait()
        return web.Response()

    receiver.answer = hang
    monkeypatch.setattr(alerting_module, "DRAIN_S", 0.2)
    alerts, metrics = make(receiver.url)
    async with alerting(alerts):
        alerts.put(HALTED)
        await receiver.wait_for(1)
        begun = time.monotonic()
        for number in range(QUEUE + 7):
            alerts.put(replace(HALTED, reason=str(number)))
        assert time.monotonic() - begun < 1.0
        assert counted(metrics, "dropped") == 7
        ended = time.monotonic()
    assert time.monotonic() - ended < 2.0, "the end waits for the receiver"
    never.set()


async def test_each_try_has_a_deadline(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    never = asyncio.Event()

    async def hang() -> web.Response:
        await never.wait()
        return web.Response()

    receiver.answer = hang
    monkeypatch.setattr(alerting_module, "TIMEOUT_S", 0.2)
    alerts, metrics = make(receiver.url)
    async with alerting(alerts):
        alerts.put(HALTED)
        await alerts.wait_idle()
        assert len(receiver.bodies) == TRIES
        assert counted(metrics, "failed") == 1
    assert "no answer within 0.2 s" in caplog.text
    never.set()


async def test_what_is_queued_at_the_end_is_still_sent(receiver: Receiver) -> None:
    alerts, _ = make(receiver.url)
    async with alerting(alerts):
        alerts.worker_stops("a bug")
    assert [body["event"] for body in receiver.bodies] == ["worker"]


async def test_without_a_webhook_nothing_is_kept() -> None:
    alerts, metrics = make(None)
    async with alerting(alerts):
        for _ in range(2 * QUEUE):
            alerts.put(HALTED)
    assert [counted(metrics, result) for result in ("sent", "failed", "dropped")] == [0, 0, 0]


def test_a_strangers_text_addresses_nobody_and_fits() -> None:
    alert = Alert(event="guardrail", state="halted", rail="spine", reason=NASTY + "x" * 2000, at=datetime.now(UTC))
    body = orjson.loads(alert.body("w/1", "1"))
    for text in (body["text"], body["reason"]):
        assert_no_chat_is_steered(text)
    assert len(body["reason"]) == 500


@pytest.mark.parametrize("url", ["ftp://hooks.example.com/s3cret", "hooks.example.com/s3cret", "https:///s3cret"])
def test_a_wrong_address_is_refused_without_saying_it(url: str) -> None:
    with pytest.raises(SettingsError, match="CT_ALERT_WEBHOOK is not an http or https address") as caught:
        load_settings({"CT_ALERT_WEBHOOK": url})
    assert "s3cret" not in str(caught.value)


def test_the_address_is_not_in_the_settings_repr() -> None:
    settings = load_settings({"CT_ALERT_WEBHOOK": f"https://hooks.example.com{SECRET}"})
    assert settings.alert_webhook == f"https://hooks.example.com{SECRET}"
    assert "very-secret" not in repr(settings)


# ---------------------------------------------------------------- from the database


@asynccontextmanager
async def two_workers(dsns: DatabaseDsns, url: str) -> AsyncIterator[tuple[Database, Database]]:
    """Run the alerts of two workers on one database."""
    databases = (Database(dsns.gate), Database(dsns.gate))
    for database in databases:
        await database.open()
    both = [Alerts(url, f"worker/{number}", "0.1.0", Metrics()) for number in range(2)]
    relays = [
        asyncio.create_task(AlertRelay(database, a).loop().run()) for a, database in zip(both, databases, strict=True)
    ]
    try:
        async with alerting(both[0]), alerting(both[1]):
            yield databases
    finally:
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)
        for database in databases:
            await database.close()


async def test_each_change_is_told_by_one_worker_whoever_makes_it(database: DatabaseDsns, receiver: Receiver) -> None:
    async with two_workers(database, receiver.url) as (one, two):
        rails = [Guardrails(db, 60.0) for db in (one, two)]
        for rail in rails:  # both see the same evidence
            await rail.set_state("provider:bigmail.example", "closed", "3 companies refused", 600.0)
            await rail.set_state(SMTP_RAIL, "halted", "5 providers refuse us", None)
        ops: asyncpg.Connection[Any] = await asyncpg.connect(database.ops)
        try:
            await ops.execute("SELECT outreach.resume_guardrail('tool:TOOL-005', 'delisted')")
        finally:
            await ops.close()
        await rails[1].set_state("provider:bigmail.example", "open", "talks normally again", None)
        controls = ControlLedger(one, 1.0)
        begun_at = datetime.now(UTC)
        for _ in range(3):
            await controls.failed(ControlKind.SMTP, "connection refused")
        await controls.succeeded(ControlKind.SMTP, datetime.now(UTC), "gmail.com greeted")
        await controls.succeeded(ControlKind.DNS, begun_at, "a first proof is no recovery")
        passes = ParkedCompanies(two, "worker/1", "1")
        origin = Origin(outreach_id=uuid4(), topic="spine.created", partition=0, offset=1)
        for _ in range(4):
            await passes.count_exception(origin, None, "KeyError: 'x'", "Traceback")
        await receiver.wait_for(7)
        # Paused for a minute, and over: nothing that a person must hear of.
        await rails[0].set_state("provider:other.example", "paused", "too fast", 60.0)
        await rails[0].set_state("provider:other.example", "open", "talks normally again", None)
        await rails[0].set_state("spine", "halted", "the last one", None)
        await receiver.wait_for(8)
    told = sorted((body["rail"] or body["event"], body["state"]) for body in receiver.bodies)
    assert told == sorted(
        [
            ("provider:bigmail.example", "closed"),
            ("tool:TOOL-005", "halted"),
            ("tool:TOOL-005", "trial"),
            ("provider:bigmail.example", "open"),
            ("control:smtp", "failing"),
            ("control:smtp", "working"),
            ("stuck", "stuck"),
            ("spine", "halted"),
        ]
    )
    assert [ALERT.problem(body) for body in receiver.bodies] == [None] * 8


async def test_two_workers_whose_ways_break_are_two_alerts_that_name_them(
    database: DatabaseDsns, receiver: Receiver
) -> None:
    async with two_workers(database, receiver.url) as (one, _):
        for name, egress in (("gate-1/7/a", "default"), ("gate-2/9/b", "dc2")):
            await WorkerRecord(one, worker=name, machine="m", egress=egress, version="1", toolbox={}).begin()
            await ControlLedger(one, 1.0, name).failed(ControlKind.SMTP, "connection refused")
        await receiver.wait_for(2)
    told = {(body["rail"], body["state"], body["about_worker"], body["egress"]) for body in receiver.bodies}
    assert told == {
        ("control:smtp", "failing", "gate-1/7/a", "default"),
        ("control:smtp", "failing", "gate-2/9/b", "dc2"),
    }
    assert [ALERT.problem(body) for body in receiver.bodies] == [None, None]


async def test_old_news_is_dropped_and_counted(database: DatabaseDsns, receiver: Receiver) -> None:
    opened = Database(database.gate)
    await opened.open()
    admin: asyncpg.Connection[Any] = await asyncpg.connect(database.admin)
    try:
        insert = (
            "INSERT INTO outreach.ct_alerts (at, event, rail, state, reason) VALUES ($1, 'guardrail', $2, 'halted', '')"
        )
        await admin.execute(insert, datetime(2026, 1, 7, tzinfo=UTC), "tool:TOOL-004")
        await admin.execute(insert, datetime.now(UTC), "spine")
    finally:
        await admin.close()
    alerts, metrics = make(receiver.url)
    relay = asyncio.create_task(AlertRelay(opened, alerts).loop().run())
    try:
        async with alerting(alerts):
            await receiver.wait_for(1)
    finally:
        relay.cancel()
        await asyncio.gather(relay, return_exceptions=True)
        await opened.close()
    assert [body["rail"] for body in receiver.bodies] == ["spine"]
    assert counted(metrics, "dropped") == 1
