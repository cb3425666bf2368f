"""May this worker ask anything now? Only while its own controls succeed, on real statements."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ct_stream.company.lease import Permits
from ct_stream.company.own_way import OwnWay
from ct_stream.gate.evidence import before_astray
from ct_stream.gate.patterns import Address
from ct_stream.gate.questions import Attempt, ControlKind, MailboxAnswer
from ct_stream.gate.records import FailedAt
from ct_stream.gate.replies import Reply, Stage
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.metrics import Health
from ct_stream.probes.mailbox import MailboxProber
from ct_stream.probes.mx import ControlResult
from ct_stream.probes.smtp import SmtpSettings
from ct_stream.probes.stopwatch import Stopwatch
from ct_stream.store.control_ledger import ControlLedger
from ct_stream.store.parked import ParkedCompanies
from tests.gate.world import YES, mx
from tests.store.parts import opened, parked, running, seen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ct_stream.store.database import Database
    from tests.conftest import DatabaseDsns

ME = "me/1/a"


class Worker:
    """A worker's own way, and what its controls say next."""

    def __init__(self, db: Database, *, window_s: float) -> None:
        self.db, self.health = db, Health()
        self.broken: set[ControlKind] = set()
        self.halts: list[str] = []
        self.seen_as = dict.fromkeys(ControlKind, "")
        self.smtp_rail = "tool:TOOL-005@dc2"
        self.halted: dict[str, str] = {}
        self.controls = ControlLedger(db, 0.0, ME, window_s=window_s)
        self.parked = ParkedCompanies(db, ME, "test")
        parts: Any = self
        self.way = OwnWay(db, self.controls, parts, parts, self.health, self.parked, most=3, window_s=window_s)

    async def ask_control(self, kind: ControlKind) -> ControlResult:
        is_broken = kind in self.broken
        detail = "somebody answers in its place" if is_broken else "works"
        return ControlResult(ok=not is_broken, detail=detail, our_address="" if is_broken else self.seen_as[kind])

    async def set_state(self, rail: str, *_: object) -> None:
        self.halts.append(rail)

    async def ask_all(self) -> Wait | None:
        for kind in ControlKind:
            await self.way.ask(kind)
        return self.way.trouble

    def trouble(self) -> Wait | None:
        return self.way.trouble

    def heard(self) -> list[Exchange]:
        """Return a yes that this worker hears now."""
        at = self.db.now().isoformat()
        return [Exchange(key="mx", answer=mx(), at=at, by=ME), Exchange(key="rcpt:info", answer=YES, at=at, by=ME)]


@asynccontextmanager
async def worker(database: DatabaseDsns, window_s: float = 600.0) -> AsyncIterator[Worker]:
    async with opened(database.gate) as db:
        yield Worker(db, window_s=window_s)


async def test_a_worker_asks_nobody_before_both_of_its_controls_have_succeeded(database: DatabaseDsns) -> None:
    async with worker(database) as w:
        assert w.way.trouble is not None, "from the first moment on"
        await w.way.look()
        assert w.way.trouble is not None
        assert w.health.troubles.keys() == {"control_dns", "control_smtp"}
        await w.way.ask(ControlKind.DNS)
        assert w.way.trouble is not None, "port 25 is not proven"
        assert (w.way.trouble.reason, w.way.trouble.waits_on) == (WaitReason.CONTROL, "way")
        assert w.way.trouble.detail == (
            f"worker {ME} (egress default) asks nobody: no control of its way out to port 25 has succeeded yet"
        )
        assert await w.ask_all() is None
        assert w.health.troubles == {}
        await w.way.opened(0.0)


@pytest.mark.parametrize("kind", [ControlKind.DNS, ControlKind.SMTP])
async def test_a_failing_control_closes_the_way_and_the_next_one_that_succeeds_opens_it(
    database: DatabaseDsns, kind: ControlKind
) -> None:
    async with worker(database, window_s=0.001) as w:
        assert await w.ask_all() is None
        w.broken = {kind}
        assert await w.ask_all() is not None
        its_way = "its resolvers" if kind is ControlKind.DNS else "its way out to port 25"
        assert w.health.troubles[f"control_{kind}"] == (
            f"this worker asks nobody: the last control of {its_way} failed: somebody answers in its place"
        )
        w.broken = set()
        assert await w.ask_all() is None
        assert w.halts == []


async def test_without_a_control_for_too_long_the_way_counts_as_lost(database: DatabaseDsns) -> None:
    """Asking may have failed for reasons of our own: then nothing is known of it."""
    async with worker(database, window_s=600.0) as w:
        assert await w.ask_all() is None
        for minutes, is_lost in ((10, False), (12, True)):
            stamps = ", ".join(
                f"{name} = clock_timestamp() - interval '{minutes} minutes'"
                for name in ("ok_begun_at", "control_at", "proven_at", "started_at")
            )
            async with w.db.connection() as connection:
                await connection.execute(f"UPDATE outreach.ct_controls SET {stamps}")
            await w.way.look()
            assert (w.way.trouble is not None) is is_lost


async def test_a_verdict_is_not_recorded_after_the_way_on_which_it_was_heard_was_lost(database: DatabaseDsns) -> None:
    async with worker(database, window_s=0.001) as w:
        await w.ask_all()
        exchanges = w.heard()
        assert w.way.astray(exchanges) is None
        w.broken = {ControlKind.SMTP}
        await w.way.ask(ControlKind.SMTP)
        wait = w.way.astray(exchanges)
        assert wait is not None
        assert wait.waits_on == "way"
        w.broken = set()
        await w.ask_all()
        assert w.way.astray(exchanges) is not None, "it was not heard anew"
        assert w.way.astray(w.heard()) is None


async def test_companies_that_wait_for_it_are_counted_up_to_what_may_be_in_flight(database: DatabaseDsns) -> None:
    async with worker(database) as w, running(w.parked.park):
        for _ in range(2):
            await w.parked.park(parked(after_s=None, waits_on="way", reason=WaitReason.CONTROL))
        await w.parked.park(parked(after_s=None, waits_on="cap:TOOL-005", reason=WaitReason.DAILY_CAP))
        await w.way.look()
        assert w.way.parked_for_it == 2
        for _ in range(2):
            await w.parked.park(parked(after_s=None, waits_on="way", reason=WaitReason.CONTROL))
        await w.way.look()
        assert w.way.parked_for_it == 3, "more need not be counted"
        await w.ask_all()
        assert w.way.parked_for_it == 0


async def test_a_worker_whose_way_is_proven_takes_what_broken_ones_parked(database: DatabaseDsns) -> None:
    async with worker(database) as w:
        broken = ControlLedger(w.db, 0.0, "broken/1/b")
        await seen(w.db, "broken/1/b", ME)
        await broken.succeeded(ControlKind.SMTP, w.db.now() - timedelta(seconds=9), "works")
        await broken.failed(ControlKind.SMTP, "no answer")
        await w.way.look()
        assert w.way.take_over == [], "it is not proven itself"
        await w.ask_all()
        ways = [f"way:{kind}" for kind in ControlKind]
        assert w.way.take_over == ["way", *ways, "control:smtp:broken/1/b"]


@pytest.mark.parametrize(("is_sender", "rail"), [(False, "tool:TOOL-005@dc2"), (True, "mail_from")])
async def test_a_control_that_refuses_us_halts_this_address_or_our_sender_everywhere(
    database: DatabaseDsns, is_sender: bool, rail: str
) -> None:
    async with worker(database) as w:

        async def refuse(_: ControlKind) -> ControlResult:
            return ControlResult(ok=False, detail="blocked", refused=True, is_sender=is_sender)

        w.way._probing = SimpleNamespace(ask_control=refuse)  # type: ignore[assignment]
        await w.way.ask(ControlKind.SMTP)
        assert w.halts == [rail]


async def test_a_company_that_is_refused_is_passed_on_only_if_another_address_is_at_work(
    database: DatabaseDsns,
) -> None:
    refused = Wait(reason=WaitReason.REFUSED, detail="mx.acme.example refuses us", after_s=600.0)
    async with worker(database) as w:
        assert w.way.elsewhere(refused) is None
        w.way.others = ["dc2"]
        wait = w.way.elsewhere(refused)
        assert wait is not None
        assert (wait.reason, wait.after_s, wait.waits_on) == (WaitReason.REFUSED, 600.0, "egress:default")


# ---------------------------------------------------------------- what a machine may lack


@pytest.mark.parametrize("kind", [ControlKind.SMTP6, ControlKind.DNS_TCP])
async def test_a_machine_that_lacks_something_passes_on_who_needs_it_and_works_on(
    database: DatabaseDsns, kind: ControlKind
) -> None:
    async with worker(database, window_s=0.001) as w:
        w.broken = {kind}
        assert await w.ask_all() is None
        assert w.health.troubles == {}
        assert kind.value in w.health.notes
        wait = w.way.lacks(kind)
        assert wait is not None
        assert (wait.reason, wait.waits_on) == (WaitReason.ANOTHER_MACHINE, f"way:{kind}")
        assert f"; that of worker {ME} (egress default) is none" in wait.detail
        assert f"way:{kind}" not in w.way.take_over
        heard = w.heard()
        assert w.way.astray(heard) is None, "what needed nothing of it is true"
        w.broken = set()
        assert await w.ask_all() is None
        assert w.way.lacks(kind) is None
        assert kind.value not in w.health.notes
        assert f"way:{kind}" in w.way.take_over


async def test_a_machine_with_ipv6_alone_asks_over_that(database: DatabaseDsns) -> None:
    async with worker(database, window_s=0.001) as w:
        w.broken = {ControlKind.SMTP}
        assert await w.ask_all() is None
        assert w.way.lacks(ControlKind.SMTP) is not None
        assert "reaches port 25 only over IPv6" in w.health.notes["smtp"]
        w.broken = set()
        assert await w.ask_all() is None
        assert "smtp" not in w.health.notes, "it has IPv4 now"


async def test_the_address_as_which_servers_see_us_is_the_one_of_ipv4_that_was_named_last(
    database: DatabaseDsns,
) -> None:
    async with worker(database, window_s=0.001) as w:
        w.seen_as = dict.fromkeys(ControlKind, "2001:db8::25") | {ControlKind.SMTP: "203.0.113.25"}
        await w.ask_all()
        assert w.way.address == "203.0.113.25"
        w.seen_as[ControlKind.SMTP] = ""
        await w.ask_all()
        w.broken = {ControlKind.SMTP}
        await w.ask_all()
        assert w.way.address == "203.0.113.25", "not every server names it"


async def test_a_machine_that_had_ipv4_and_lost_it_is_broken(database: DatabaseDsns) -> None:
    async with worker(database, window_s=0.001) as w:
        assert await w.ask_all() is None
        w.broken = {ControlKind.SMTP}
        assert await w.ask_all() is not None


async def test_a_refusal_over_ipv6_halts_nothing(database: DatabaseDsns) -> None:
    """Mail servers want a reverse name of each address; over IPv4 they may take us."""
    async with worker(database) as w:

        async def refuse(_: ControlKind) -> ControlResult:
            return ControlResult(ok=False, detail="550-5.7.1 does not meet IPv6 sending guidelines", refused=True)

        w.way._probing = SimpleNamespace(ask_control=refuse)  # type: ignore[assignment]
        await w.way.ask(ControlKind.SMTP6)
        assert w.halts == []


async def test_an_answer_that_was_cut_off_counts_against_tcp_until_the_next_control(database: DatabaseDsns) -> None:
    """Port 53 may be closed to TCP at any moment, and a control counts for ten minutes."""
    async with worker(database) as w:
        await w.ask_all()
        assert w.way.lacks(ControlKind.DNS_TCP) is None
        wait = w.way.lost_tcp("its answer does not fit into UDP")
        assert (wait.reason, wait.waits_on) == (WaitReason.ANOTHER_MACHINE, "way:dns_tcp")
        await w.way.look()
        assert w.way.lacks(ControlKind.DNS_TCP) is not None
        assert "way:dns_tcp" not in w.way.take_over
        w.broken = {ControlKind.DNS_TCP}
        await w.way.ask(ControlKind.DNS_TCP)
        assert w.way.lacks(ControlKind.DNS_TCP) is not None
        w.broken = set()
        await w.way.ask(ControlKind.DNS_TCP)
        assert w.way.lacks(ControlKind.DNS_TCP) is None


async def test_a_failed_control_holds_before_the_database_knows_of_it(database: DatabaseDsns) -> None:
    async with worker(database, window_s=0.001) as w:
        await w.ask_all()
        heard, known, record = w.heard(), asyncio.Event(), w.controls.failed

        async def slow(kind: ControlKind, detail: str) -> None:
            await known.wait()
            await record(kind, detail)

        w.controls.failed = slow  # type: ignore[method-assign]
        w.broken = {ControlKind.SMTP}
        asking = asyncio.create_task(w.way.ask(ControlKind.SMTP))
        await asyncio.sleep(0.2)
        await w.way.look()
        assert w.trouble() is not None
        assert w.way.astray(heard) is not None
        known.set()
        await asking
        assert w.trouble() is not None


async def test_no_verdict_is_recorded_and_nothing_asked_long_after_the_last_control(database: DatabaseDsns) -> None:
    """Postgres was away, or this process stopped: the next look may come later than what was waiting for it."""
    async with worker(database) as w:
        await w.ask_all()
        heard = w.heard()
        assert w.db._clock_base is not None
        base, looked_at = w.db._clock_base
        w.db._clock_base = (base + timedelta(hours=2), looked_at)
        assert w.trouble() is not None
        assert w.way.astray(heard) is not None
        assert w.way.astray(heard[:0]) is None, "what needed no network"


async def test_a_clock_of_postgres_that_was_set_back_makes_nothing_true(database: DatabaseDsns) -> None:
    async with worker(database, window_s=0.001) as w:
        await w.ask_all()
        heard = w.heard()
        w.broken = {ControlKind.SMTP}
        await w.way.ask(ControlKind.SMTP)
        stamps = ("started_at", "ok_begun_at", "failed_at", "proven_at", "control_at", "trouble_from", "proven_since")
        ahead = ", ".join(f"{name} = {name} + interval '1 hour'" for name in stamps)
        async with w.db.connection() as connection:
            await connection.execute(f"UPDATE outreach.ct_controls SET {ahead}")
            await w.way.look()
            now = w.db.now()
            asked = f"SELECT outreach.ct_was_astray(ARRAY['{ME}'], $1, $2)"
            assert await connection.fetchval(asked, now - timedelta(minutes=1), now)
        assert w.way.astray(heard) is not None


@pytest.mark.parametrize(
    ("is_welcome", "is_authentic", "halts"), [(True, False, 0), (True, True, 1), (False, False, 1)]
)
async def test_who_refuses_us_before_tls_halts_no_address_at_which_others_are_welcome(
    database: DatabaseDsns, is_welcome: bool, is_authentic: bool, halts: int
) -> None:
    """It may be a proxy on this machine's way. Alone, nobody can tell."""
    async with worker(database) as w:
        if is_welcome:
            await seen(w.db, "other/1/b")
        await w.way.look()

        async def refuse(_: ControlKind) -> ControlResult:
            return ControlResult(ok=False, detail="554 go away", refused=True, is_authentic=is_authentic)

        w.way._probing = SimpleNamespace(ask_control=refuse)  # type: ignore[assignment]
        await w.way.ask(ControlKind.SMTP)
        assert len(w.halts) == halts
        assert w.trouble() is not None


async def test_a_worker_asks_its_controls_once_more_before_it_ends(database: DatabaseDsns) -> None:
    """Or what it wrote since the last ones would be forgotten: nobody can ask them for it later."""
    async with worker(database) as w:
        await w.ask_all()
        heard_at = w.db.now()
        over_ipv6 = Attempt(host="mx", ip="2001:db8::1", stage=Stage.RCPT, reply=Reply(code=250, text="ok"))
        heard = [
            *w.heard(),
            Exchange(key="rcpt:info", answer=MailboxAnswer(attempts=(over_ipv6,)), at=heard_at.isoformat(), by=ME),
        ]
        await w.way.last_word(5.0)
        known = (await ControlLedger(w.db, 1.0, "other/1/b").of_runs([ME]))[ME]
        ended = {kind: replace(way, is_gone=True) for kind, way in known.ways.items()}
        assert before_astray(heard, {ME: ended}) == heard
        async with w.db.connection() as connection:
            asked = f"SELECT outreach.ct_was_astray(ARRAY['{ME}'], $1, $1)"
            assert not await connection.fetchval(asked, heard_at), "it has ended, and has proven it"
            assert await connection.fetchval(asked, w.db.now() + timedelta(minutes=1)), "what came after is anybody's"


async def test_a_slow_last_control_takes_no_time_from_the_others(database: DatabaseDsns) -> None:
    async with worker(database) as w:
        await w.ask_all()
        ask_control = w.way._probing.ask_control

        async def slowly(kind: ControlKind) -> ControlResult:
            if kind is ControlKind.DNS:
                await asyncio.sleep(60)
            return await ask_control(kind)

        w.way._probing = SimpleNamespace(ask_control=slowly)  # type: ignore[assignment]
        before = await w.way._controls.own()
        await w.way.last_word(1.0)
        after = await w.way._controls.own()
        assert {kind for kind in ControlKind if after[kind].control_at > before[kind].control_at} == {
            ControlKind.SMTP,
            ControlKind.SMTP6,
            ControlKind.DNS_TCP,
        }


async def test_a_company_that_waits_for_our_ipv6_is_not_left_waiting_when_we_lose_it(database: DatabaseDsns) -> None:
    """Its server has an IPv4 address too, and this is the only worker. It was silent over both."""
    async with worker(database, window_s=0.001) as w, running(w.parked.park):
        await seen(w.db, ME)
        assert await w.ask_all() is None
        company = parked(after_s=None, waits_on="control:smtp6", reason=WaitReason.CONTROL, failed=FailedAt.NOW)
        await w.parked.park(company)
        w.broken = {ControlKind.SMTP6}
        for _ in range(3):
            assert await w.ask_all() is None, "it works on without IPv6"
            await w.parked.wake_sleepers(10)
        due = await w.parked.claim_due(10, take_over=w.way.take_over)
        assert [one.origin.outreach_id for one in due] == [company.origin.outreach_id], "nobody ever takes it"


async def test_a_machine_with_ipv6_alone_goes_on_while_its_control_of_ipv4_fails_again(
    database: DatabaseDsns, caplog: pytest.LogCaptureFixture
) -> None:
    async with worker(database, window_s=0.001) as w:
        w.broken = {ControlKind.SMTP}
        assert await w.ask_all() is None
        caplog.clear()
        stored, seen_meanwhile = w.controls.failed, []

        async def failed(kind: ControlKind, detail: str) -> None:
            seen_meanwhile.append(w.way.trouble)
            await stored(kind, detail)

        w.controls.failed = failed  # type: ignore[method-assign]
        await w.way.ask(ControlKind.SMTP)
        assert w.way.trouble is None
        assert seen_meanwhile == [None], "companies under way are parked each time that IPv4 is tried"
        assert "This worker asks nobody" not in caplog.text, "which is not true"


async def test_a_company_whose_hosts_are_remembered_asks_nothing_before_the_way_is_proven(
    database: DatabaseDsns,
) -> None:
    """It has no look-up of its MX, which would have met the closed way."""
    async with worker(database) as w:
        await w.way.look()
        assert w.way.trouble is not None
        asked: list[str] = []

        async def lookup_addresses(host: str) -> tuple[str, ...]:
            asked.append(host)
            return ("192.0.2.1",)

        nothing: Any = None
        permits = Permits(nothing, w.way, nothing, nothing, waited_s=lambda: 0.0)
        prober = MailboxProber(
            resolver=SimpleNamespace(lookup_addresses=lookup_addresses),
            permits=permits,
            settings=SmtpSettings(helo="probe.example", mail_from=""),
            stopwatch=Stopwatch(90.0),
        )
        wait = await prober.ask(Address(local_part="info", domain="acme.example"), ("mx1.acme.example",))
        assert isinstance(wait, Wait)
        assert (wait.waits_on, w.way.parked_for_it) == ("way", 1), "not counted, so this worker reads on and on"
        assert asked == [], "resolvers that are not proven were asked"


async def test_a_halted_worker_takes_nobody_over_for_its_ipv6(database: DatabaseDsns) -> None:
    """It would park that company for its halt, and another one take it for that, back and forth."""
    async with worker(database) as w:
        assert await w.ask_all() is None
        assert {"way", "way:smtp", "way:smtp6", "way:dns", "way:dns_tcp"} <= set(w.way.take_over)
        w.halted = {w.smtp_rail: "listed"}
        await w.way.look()
        assert {"way", "way:dns", "way:dns_tcp"} == {name for name in w.way.take_over if name.startswith("way")}
