"""A refusal concerns one company, a provider or all of us, and nothing comes back in a rush."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from ct_stream.company.checks import InputCheck
from ct_stream.gate.providers import registrable_domain
from ct_stream.gate.verdicts import Held, HeldBy
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.store import guardrails as rails
from ct_stream.store.exits import Exit, hung_again, record_exit
from ct_stream.store.guardrails import FIRST_TRY_S, SMTP_RAIL, Guardrails
from ct_stream.store.limits import DomainLease, SharedLimits
from ct_stream.store.parked import ParkedCompanies
from ct_stream.store.queries import query
from tests.store.parts import EXCHANGES, LIMITS, opened, parked, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import DatabaseDsns

SETTLE_S = 60.0
REFUSED = Held(by=HeldBy.REFUSED, host="mx1.bigmail.example", reason="550 5.7.1 your IP is listed")
TOO_FAST = Held(by=HeldBy.RATE, host="mx1.bigmail.example", reason="421 4.7.0 too many connections from your IP")


class Parts:
    """Two workers' guardrails and limits, and the administrator."""

    def __init__(
        self, admin: asyncpg.Connection[Any], rails: list[Guardrails], limits: SharedLimits, passes: ParkedCompanies
    ):
        self.admin = admin
        self.one, self.two = rails
        self.limits = limits
        self.passes = passes

    async def state(self, rail: str) -> str | None:
        state: str | None = await self.admin.fetchval("SELECT state FROM outreach.ct_guardrails WHERE key = $1", rail)
        return state

    async def next_try_s(self, rail: str) -> float:
        query = "SELECT extract(epoch FROM next_try_at - clock_timestamp()) FROM outreach.ct_guardrails WHERE key = $1"
        return float(await self.admin.fetchval(query, rail))

    async def due_now(self, rail: str) -> None:
        await self.admin.execute("UPDATE outreach.ct_guardrails SET next_try_at = now() WHERE key = $1", rail)

    async def resume(self, rail: str) -> str:
        return str(await self.admin.fetchval("SELECT outreach.resume_guardrail($1, 'because')", rail))

    async def refuse(self, domain: str, ip: str, *, rails: Guardrails | None = None) -> Wait:
        """Let a company's own server at this address refuse us; return the company's wait."""
        held = Held(by=HeldBy.REFUSED, host=f"mx.{domain}", reason="550 5.7.1 your IP is listed", ip=ip)
        return await (rails or self.one).judge(held, domain, registrable_domain(domain))

    async def talk(self, domain: str, provider: str, ip: str = "") -> Wait | None:
        """Talk normally with a server of a provider, or return what stands in the way."""
        lease = await self.limits.begin_probe(domain, provider)
        if isinstance(lease, Wait):
            return lease
        lease.session_ended()
        await lease.release(talked=True, talked_at=ip)
        await self.one.talked(provider, ip)
        return None


@asynccontextmanager
async def parts(database: DatabaseDsns) -> AsyncIterator[Parts]:
    admin = await asyncpg.connect(database.admin)
    async with opened(database.gate) as db, opened(database.gate) as other:
        limits, passes = SharedLimits(db, "one", LIMITS), ParkedCompanies(db, "one", "test")
        async with running(*limits.batches, passes.park):
            yield Parts(admin, [Guardrails(db, SETTLE_S), Guardrails(other, SETTLE_S)], limits, passes)
    await admin.close()


async def test_the_third_company_closes_its_provider_whatever_each_of_them_met(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        first = await p.one.judge(REFUSED, "a.example", "bigmail.example")
        await p.two.silent("bigmail.example", "b.example")
        assert (first.reason, await p.state("provider:bigmail.example")) == (WaitReason.REFUSED, None)
        assert (await p.two.judge(TOO_FAST, "c.example", "bigmail.example")).reason is (WaitReason.OUR_RATE)
        assert await p.state("provider:bigmail.example") == "closed"
        assert 590 < await p.next_try_s("provider:bigmail.example") <= 600
        wait = await p.one.unreached("bigmail.example", age_s=SETTLE_S * 2)
        assert wait is not None
        assert wait.reason is WaitReason.PROVIDER_CLOSED


async def test_a_good_talk_between_them_keeps_a_provider_open(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        await p.one.judge(REFUSED, "a.example", "bigmail.example")
        await p.one.judge(REFUSED, "b.example", "bigmail.example")
        assert await p.talk("c.example", "bigmail.example") is None
        await p.one.judge(REFUSED, "d.example", "bigmail.example")
        assert await p.state("provider:bigmail.example") in (None, "open")


async def test_a_pass_that_moves_to_another_provider_obeys_its_guardrail_and_its_places(database: DatabaseDsns) -> None:
    rail = "provider:bigmail.example"
    async with parts(database) as p:
        lease = await p.limits.begin_probe("acme.example", "acme.example")
        assert isinstance(lease, DomainLease)
        await p.one.set_state(rail, "closed", "three were refused", 600.0)
        wait = await lease.enter("bigmail.example")
        assert wait is not None
        assert (wait.reason, wait.waits_on) == (WaitReason.PROVIDER_CLOSED, rail)
        await p.due_now(rail)
        assert await lease.enter("bigmail.example") is None, "its one try"
        assert 1190 < await p.next_try_s(rail) <= 1200
        other = await p.limits.begin_probe("other.example", "other.example")
        assert isinstance(other, DomainLease)
        assert await other.enter("bigmail.example") is not None
        lease.session_ended()
        await lease.release(talked=True)
        await p.one.refresh()
        await p.one.talked("bigmail.example")
        assert await p.state(rail) == "open"

        others = [await p.limits.begin_probe(f"c{n}.example", "bigmail.example") for n in range(3)]
        waiting = parked(after_s=None, waits_on="places:bigmail.example")
        await p.passes.park(waiting)
        busy = await other.enter("bigmail.example")
        assert busy is not None
        assert busy.reason is WaitReason.PROVIDER_BUSY
        assert isinstance(others[0], DomainLease)
        assert await others[0].enter("hoster.example") is None
        assert [resumed.origin for resumed in await p.passes.claim_due(10)] == [waiting.origin], "a place came free"
        assert await other.enter("bigmail.example") is None
        await p.one.set_state(SMTP_RAIL, "halted", "listed everywhere", None)
        halted = await other.enter("third.example")
        assert halted is not None
        assert halted.reason is WaitReason.HALTED


async def test_a_good_talk_stays_with_the_provider_that_it_was_with(database: DatabaseDsns) -> None:
    """Its domain may be asked at another provider next: that one has not talked to us."""
    talks = "SELECT count(*) FROM outreach.ct_domains WHERE provider = $1 AND talked_at IS NOT NULL"
    async with parts(database) as p:
        assert await p.talk("acme.example", "bigmail.example") is None
        assert await p.admin.fetchval(talks, "bigmail.example") == 1
        await asyncio.sleep(LIMITS.smtp_domain_pause_s)
        lease = await p.limits.begin_probe("acme.example", "hoster.example")
        assert isinstance(lease, DomainLease)
        assert await p.admin.fetchval(talks, "hoster.example") == 0
        lease.session_ended()
        await lease.release(talked=True)
        await asyncio.sleep(LIMITS.smtp_domain_pause_s)
        lease = await p.limits.begin_probe("acme.example", "hoster.example")
        assert isinstance(lease, DomainLease)
        assert await p.admin.fetchval(talks, "hoster.example") == 1
        assert await lease.enter("third.example") is None
        await lease.release(talked=False)
        assert await p.admin.fetchval(talks, "third.example") == 0


async def test_the_tries_of_a_closed_provider_come_later_and_later_up_to_six_hours(database: DatabaseDsns) -> None:
    rail = "provider:bigmail.example"
    async with parts(database) as p:
        await p.one.set_state(rail, "closed", "three were refused", 600.0)
        later = []
        for number in range(8):
            await p.due_now(rail)
            begun = await asyncio.gather(
                *(p.limits.begin_probe(f"c{number}x{n}.example", "bigmail.example") for n in range(3))
            )
            [lease] = [lease for lease in begun if isinstance(lease, DomainLease)]
            await lease.release(talked=False)
            later.append(round(await p.next_try_s(rail) / 60))
        assert later == [20, 40, 80, 160, 320, 360, 360, 360]
        await p.due_now(rail)
        await p.one.refresh()
        assert await p.talk("last.example", "bigmail.example") is None
        assert await p.state(rail) == "open"


async def test_a_rate_reply_pauses_for_a_minute_then_two(database: DatabaseDsns) -> None:
    rail = "provider:bigmail.example"
    async with parts(database) as p:
        await p.one.judge(TOO_FAST, "a.example", "bigmail.example")
        assert await p.state(rail) == "paused"
        assert 55 < await p.next_try_s(rail) <= 60
        paused = await p.limits.begin_probe("b.example", "bigmail.example")
        assert isinstance(paused, Wait)
        await p.due_now(rail)
        assert isinstance(await p.limits.begin_probe("b.example", "bigmail.example"), DomainLease)
        await p.two.judge(TOO_FAST, "b.example", "bigmail.example")
        assert 115 < await p.next_try_s(rail) <= 120


async def test_silence_while_our_own_way_was_broken_closes_nobody(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        for n in range(5):
            await p.one.silent("bigmail.example", f"c{n}.example")
        await p.admin.execute(
            "INSERT INTO outreach.ct_controls (worker, kind, trouble_from, trouble_until)"
            " SELECT unnest(ARRAY['worker', 'another']), 'smtp', now() - interval '1 minute', clock_timestamp()"
        )
        assert await p.one.unreached("bigmail.example", age_s=SETTLE_S) is None
        assert await p.state("provider:bigmail.example") is None
        early = await p.one.unreached("bigmail.example", age_s=1.0)
        assert early is not None
        assert (early.reason, early.after_s) == (WaitReason.PROVIDER_SILENT, SETTLE_S - 1.0)


async def test_the_fifth_refusing_provider_of_the_last_20_halts_the_tool_for_all_workers(
    database: DatabaseDsns,
) -> None:
    async with parts(database) as p:
        for n in range(15):
            assert await p.talk(f"good{n}.example", f"good{n}.example") is None
        for n in range(5):
            assert SMTP_RAIL not in p.one.halted
            held = Held(by=HeldBy.REFUSED, host=f"mx.bad{n}.example", reason="554 listed")
            await p.one.judge(held, f"bad{n}.example", f"bad{n}.example")
        assert await p.state(SMTP_RAIL) == "halted"
        await p.two.refresh()
        halted = p.two.settling(SETTLE_S * 2).refusal("mx.bad0.example refuses us")
        assert halted is not None
        assert halted.reason is WaitReason.HALTED, "what looked like five private policies is about us"
        refused = await p.limits.begin_probe("other.example", "other.example")
        assert isinstance(refused, Wait)
        assert refused.reason is WaitReason.HALTED


async def test_the_names_of_one_machine_do_not_halt_the_tool_and_hide_no_other_refusals(database: DatabaseDsns) -> None:
    """A stranger registers as many domains as he likes, each with a mail server of its own name, at his machine."""
    async with parts(database) as p:
        for n in range(40):
            assert await p.talk(f"good{n}.example", f"good{n}.example", f"198.18.{n}.1") is None
        for n in range(5):
            await p.refuse(f"stranger{n}.example", f"203.0.113.{n + 1}")
        assert await p.state(SMTP_RAIL) is None, "five names of one owner halt the tool for everybody"
        for n in range(4):
            assert await p.state(SMTP_RAIL) is None
            await p.refuse(f"honest{n}.example", f"198.51.{n}.1")
        assert await p.state(SMTP_RAIL) == "halted", "refused in five networks"

        await p.resume(SMTP_RAIL)
        for n in range(4):
            await p.refuse(f"other{n}.example", f"192.0.{n + 2}.1")
        for n in range(30):
            await p.refuse(f"name{n}.example", f"203.0.113.{n + 1}")
        assert await p.state(SMTP_RAIL) == "halted", "thirty names in one network push four others out of the window"


async def test_a_refusal_from_an_unknown_address_counts_by_its_provider(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        for n in range(5):
            assert await p.state(SMTP_RAIL) is None
            await p.refuse(f"bad{n}.example", "")
        assert await p.state(SMTP_RAIL) == "halted"


HOSTER, MACHINE, BESIDE, THIRD = "203.0.113.0/24", "203.0.113.7", "203.0.113.8", "203.0.113.9"


async def test_the_own_servers_of_two_companies_at_one_address_are_one_machine_that_refuses_us(
    database: DatabaseDsns,
) -> None:
    async with parts(database) as p:
        alone = await p.refuse("eu.acme.example", MACHINE)
        assert alone.waits_on == "control:smtp", "one company's own server"
        assert (await p.refuse("us.acme.example", MACHINE)).waits_on == "control:smtp", "of the same company"
        second = await p.refuse("other.example", MACHINE, rails=p.two)
        assert (second.reason, second.waits_on) == (WaitReason.REFUSED, f"provider:{MACHINE}")
        assert await p.state(f"provider:{MACHINE}") == "closed"
        assert 590 < await p.next_try_s(f"provider:{MACHINE}") <= 600
        assert await p.state(f"provider:{HOSTER}") is None, "one machine says nothing about those beside it"
        assert await p.admin.fetchval("SELECT count(*) FROM outreach.ct_alerts WHERE rail = $1", f"provider:{MACHINE}")

        await p.one.refresh(now=True)
        assert p.one.closed == {MACHINE}
        for n in range(3):  # workers that have not read it yet
            late = await p.refuse(f"late{n}.example", MACHINE, rails=p.two)
            assert late.waits_on == f"provider:{MACHINE}"
        assert await p.state(f"provider:{HOSTER}") is None, "however many names it has"


async def test_the_own_servers_of_three_companies_in_one_network_close_it(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        await p.refuse("a.example", MACHINE)
        await p.refuse("b.example", BESIDE)
        assert await p.state(f"provider:{HOSTER}") is None
        assert (await p.refuse("c.example", "198.51.100.9")).waits_on == "control:smtp", "elsewhere"
        third = await p.refuse("c.example", THIRD)
        assert (third.reason, third.waits_on) == (WaitReason.REFUSED, f"provider:{HOSTER}")
        assert await p.state(f"provider:{HOSTER}") == "closed"


async def test_a_normal_session_in_between_keeps_a_network_open_and_one_with_the_machine_itself_its_address(
    database: DatabaseDsns,
) -> None:
    async with parts(database) as p:
        await p.refuse("a.example", MACHINE)
        await p.refuse("b.example", BESIDE)
        assert await p.talk("good.example", "good.example", "203.0.113.200") is None
        await p.refuse("c.example", THIRD)
        assert await p.state(f"provider:{HOSTER}") is None, "the network talks to others"
        assert (await p.refuse("d.example", MACHINE)).waits_on == f"provider:{MACHINE}", "this machine to nobody"

        assert await p.talk("e.example", "e.example", BESIDE) is None
        assert await p.state(f"provider:{BESIDE}") is None


async def test_a_server_shared_by_companies_has_no_private_policy_whatever_its_names(database: DatabaseDsns) -> None:
    """Shared hosting gives each customer a mail server's name of its own."""
    async with parts(database) as p:
        assert await p.talk("neighbour.example", "neighbour.example", MACHINE) is None
        refused = await p.refuse("acme.example", MACHINE)
        assert (refused.reason, refused.waits_on) == (WaitReason.REFUSED, f"provider:{MACHINE}")
        assert refused.after_s == 600.0
        assert await p.state(f"provider:{MACHINE}") is None, "one company"
        assert (await p.refuse("acme.example", MACHINE)).waits_on == f"provider:{MACHINE}", "asked again, and refused"
        assert (await p.refuse("alone.example", BESIDE)).waits_on == "control:smtp", "nobody else is there"
        assert await p.talk("another.example", "another.example", MACHINE) is None
        assert (await p.refuse("acme.example", MACHINE)).waits_on == "control:smtp", "others are welcome meanwhile"


async def test_a_refusal_at_a_shared_server_is_settled_after_a_day(database: DatabaseDsns) -> None:
    """Or a company would wait for ever for the word of neighbours that nobody asks for."""
    async with parts(database) as p:
        assert await p.talk("neighbour.example", "neighbour.example", MACHINE) is None
        assert (await p.refuse("acme.example", MACHINE)).waits_on == f"provider:{MACHINE}"
        await p.admin.execute("SET session_replication_role = replica")
        await p.admin.execute("UPDATE outreach.ct_refusals SET at = at - interval '25 hours'")
        assert (await p.refuse("acme.example", MACHINE)).waits_on == "control:smtp"


async def test_two_names_of_one_company_share_no_server_with_others(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        assert await p.talk("eu.acme.example", "acme.example", MACHINE) is None
        assert (await p.refuse("us.acme.example", MACHINE)).waits_on == "control:smtp"


async def test_a_normal_session_opens_the_network_and_the_address_of_its_server(database: DatabaseDsns) -> None:
    rails = [f"provider:{HOSTER}", f"provider:{MACHINE}", f"provider:{BESIDE}"]
    async with parts(database) as p:
        for rail in rails:
            await p.one.set_state(rail, "closed", "refused", 600.0)
        waiting = parked(after_s=None, waits_on=rails[0], reason=WaitReason.PROVIDER_CLOSED)
        await p.passes.park(waiting)
        closed = await p.limits.begin_probe("acme.example", HOSTER)
        assert isinstance(closed, Wait)
        assert (closed.reason, closed.waits_on) == (WaitReason.PROVIDER_CLOSED, rails[0])
        await p.due_now(rails[0])
        await p.one.refresh(now=True)
        assert await p.talk("acme.example", HOSTER, MACHINE) is None, "its one try"
        assert [await p.state(rail) for rail in rails] == ["open", "open", "closed"]
        assert [resumed.origin for resumed in await p.passes.claim_due(10)] == [waiting.origin]
        await p.one.refresh(now=True)
        assert set(p.one.settling(0.0).opened) == {HOSTER, MACHINE}
        # After the session, the window is empty.
        await p.refuse("a.example", MACHINE)
        assert await p.state(f"provider:{MACHINE}") == "open"


async def test_a_session_with_a_second_provider_keeps_where_the_first_one_talked(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        assert await p.talk("acme.example", "acme.example", MACHINE) is None
        await asyncio.sleep(LIMITS.smtp_domain_pause_s)
        assert await p.talk("acme.example", "hoster.example", "198.51.100.1") is None
        await p.one.note_talk("third.example", "2001:db8::1")
        rows = await p.admin.fetch("SELECT domain, address, network FROM outreach.ct_domains ORDER BY domain")
        assert [tuple(row) for row in rows] == [
            ("@acme.example", MACHINE, HOSTER),
            ("@third.example", "2001:db8::1", "2001:db8::/48"),
            ("acme.example", "198.51.100.1", "198.51.100.0/24"),
        ]


async def test_who_resumes_a_network_makes_the_refusals_there_void(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        for domain, ip in (("a.example", MACHINE), ("b.example", BESIDE), ("c.example", THIRD)):
            await p.refuse(domain, ip)
        assert await p.resume(f"provider:{HOSTER}") == "closed -> open"
        await p.refuse("d.example", MACHINE)
        assert await p.state(f"provider:{HOSTER}") == "open"
        await p.refuse("e.example", MACHINE)
        assert await p.resume(f"provider:{MACHINE}") == "closed -> open"
        await p.refuse("f.example", MACHINE)
        assert await p.state(f"provider:{MACHINE}") == "open"


async def test_each_company_that_waits_for_a_network_gets_its_turn_to_try(database: DatabaseDsns) -> None:
    """Else the one that has waited longest would be tried each time, and its server may be the one that refuses us."""
    rail = f"provider:{HOSTER}"
    async with parts(database) as p:
        await p.one.set_state(rail, "closed", "refused", 600.0)
        companies = [parked(after_s=None, waits_on=rail, reason=WaitReason.PROVIDER_CLOSED) for _ in range(3)]
        for company in companies:
            await p.passes.park(replace(company, asked_at=await p.admin.fetchval("SELECT clock_timestamp()")))
        tried = []
        for _ in range(4):
            await p.due_now(rail)
            await p.passes.wake_sleepers(10)
            [resumed] = await p.passes.claim_due(10)
            tried.append(resumed.origin.outreach_id)
            company = next(company for company in companies if company.origin == resumed.origin)
            await p.passes.park(replace(company, asked_at=await p.admin.fetchval("SELECT clock_timestamp()")))
        assert tried == [company.origin.outreach_id for company in (*companies, companies[0])]


async def test_silence_in_a_closed_network_fails_no_company(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        wait = await p.one.unreached(HOSTER, age_s=SETTLE_S * 2)
        assert wait is not None
        assert (wait.reason, wait.waits_on) == (WaitReason.PROVIDER_CLOSED, f"provider:{HOSTER}")


async def test_one_companys_refusal_is_its_own_policy_only_after_a_while(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        wait = p.one.settling(10.0).refusal("mx.acme.example refuses us")
        assert wait is not None
        assert (wait.reason, wait.after_s) == (WaitReason.REFUSED, SETTLE_S - 10.0)
        assert p.one.settling(SETTLE_S).refusal("mx.acme.example refuses us") is None


async def test_a_resumed_tool_tries_one_company_at_a_time_until_three_providers_talk(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        await p.one.set_state(SMTP_RAIL, "halted", "of the last 20 providers, those in 5 networks refuse us", None)
        for _ in range(20):
            company = parked(after_s=None, waits_on=SMTP_RAIL, reason=WaitReason.HALTED, pending=EXCHANGES[1])
            await p.passes.park(company)
        assert await p.resume(SMTP_RAIL) == "halted -> trial"
        await p.one.refresh()
        assert SMTP_RAIL not in p.one.halted
        resumed_at = p.one.settling(0.0).resumed_at
        assert resumed_at is not None, "what was said before is void"
        assert resumed_at > datetime.now(UTC) - timedelta(minutes=1)
        await p.passes.wake_sleepers(10)

        for number in range(3):
            assert len(await p.passes.claim_due(100)) == 1, f"more than one was woken for try {number}"
            begun = await asyncio.gather(
                *(p.limits.begin_probe(f"c{number}x{n}.example", f"p{number}x{n}.example") for n in range(4))
            )
            [lease] = [lease for lease in begun if isinstance(lease, DomainLease)]
            assert {wait.reason for wait in begun if isinstance(wait, Wait)} == {WaitReason.HALTED}
            assert await p.state(SMTP_RAIL) == "trial"
            provider = await p.admin.fetchval("SELECT provider FROM outreach.ct_domains WHERE lease_owner IS NOT NULL")
            await lease.release(talked=True)
            await p.one.talked(provider)
        assert await p.state(SMTP_RAIL) == "open"
        assert len(await p.passes.claim_due(100)) == 17, "all the others go on"
        begun = await asyncio.gather(*(p.limits.begin_probe(f"d{n}.example", f"d{n}.example") for n in range(4)))
        assert all(isinstance(lease, DomainLease) for lease in begun)


async def test_who_was_refused_itself_is_woken_when_a_person_resumes_its_provider(database: DatabaseDsns) -> None:
    """It waits for the first try, 600 s, not for ever; the gate's own opening wakes it too."""
    rail = "provider:bigmail.example"
    async with parts(database) as p:
        refused = parked(after_s=FIRST_TRY_S, waits_on=rail, reason=WaitReason.REFUSED)
        await p.passes.park(refused)
        await p.one.set_state(rail, "closed", "refuses us", FIRST_TRY_S)
        await p.passes.wake_sleepers(10)
        assert await p.passes.claim_due(10) == []
        await p.resume(rail)
        again = parked(after_s=FIRST_TRY_S, waits_on="provider:other.example", reason=WaitReason.REFUSED)
        await p.passes.park(again)
        await p.passes.wake_sleepers(10)
        assert [one.origin for one in await p.passes.claim_due(10)] == [refused.origin]
        await p.passes.park(refused)  # refused again: that is no reason to ask at once
        await p.passes.wake_sleepers(10)
        assert await p.passes.claim_due(10) == []


async def test_after_a_resume_the_window_of_refusals_starts_empty(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        for n in range(4):
            held = Held(by=HeldBy.REFUSED, host=f"mx.bad{n}.example", reason="554 listed")
            await p.one.judge(held, f"bad{n}.example", f"bad{n}.example")
        await p.one.set_state(SMTP_RAIL, "halted", "by a control", None)
        await p.resume(SMTP_RAIL)
        held = Held(by=HeldBy.REFUSED, host="mx.bad9.example", reason="554 listed")
        await p.one.judge(held, "bad9.example", "bad9.example")
        assert await p.state(SMTP_RAIL) == "trial"


async def test_a_try_that_was_lost_in_a_crash_is_followed_by_another(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        await p.one.set_state(SMTP_RAIL, "halted", "refused", None)
        for _ in range(3):
            await p.passes.park(parked(after_s=None, waits_on=SMTP_RAIL, reason=WaitReason.HALTED))
        await p.resume(SMTP_RAIL)
        await p.passes.wake_sleepers(10)
        assert len(await p.passes.claim_due(100)) == 1
        assert isinstance(await p.limits.begin_probe("a.example", "a.example"), DomainLease)
        await p.passes.wake_sleepers(10)
        assert await p.passes.claim_due(100) == []
        await p.admin.execute("UPDATE outreach.ct_domains SET lease_until = now() - interval '1 s'")
        await p.passes.wake_sleepers(10)
        assert len(await p.passes.claim_due(100)) == 1


@pytest.mark.parametrize("state", ["open", "trial"])
async def test_the_gate_itself_cannot_resume_a_tool(database: DatabaseDsns, state: str) -> None:
    async with opened(database.gate) as db:
        await Guardrails(db, SETTLE_S).set_state(SMTP_RAIL, "halted", "refused", None)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with db.connection() as connection:
                await connection.execute(f"SELECT outreach.ct_set_guardrail('{SMTP_RAIL}', '{state}', 'x', NULL)")


async def test_an_input_that_cannot_be_read_is_halted_for_all_workers_until_a_person_resumes_it(
    database: DatabaseDsns,
) -> None:
    async with parts(database) as p:
        one, two = InputCheck(p.one), InputCheck(p.two)
        now = datetime.now(UTC)
        for number in range(60):
            one.saw(now, readable=number % 2 == 0)
            assert await one.trouble() is None
        one.saw(now, readable=False)
        assert await one.trouble() == "31 of the last 61 records of spine.created cannot be read"
        assert await p.state("input") == "halted"
        await p.two.refresh(now=True)
        assert two.is_halted, "another worker, or this one after a restart"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await p.two._database.fetch("set_guardrail", "input", "open", "by itself", -1.0)

        assert await p.resume("input") == "halted -> open"
        await p.one.refresh(now=True)
        for _ in range(200):
            one.saw(now, readable=False)
        assert await one.trouble() is None, "what came before the resume counts again"
        for number in range(50):
            assert (await one.trouble() is None) is (number < 50)
            one.saw(now + timedelta(minutes=1), readable=False)
        assert await one.trouble() == "50 of the last 50 records of spine.created cannot be read"


@pytest.mark.parametrize("at", [None, datetime.now(UTC) + timedelta(days=3650)], ids=["none", "ahead"])
async def test_a_resume_of_the_input_counts_whatever_timestamps_the_records_have(
    database: DatabaseDsns, at: datetime | None
) -> None:
    async with parts(database) as p:
        check = InputCheck(p.one)
        for _ in range(50):
            check.saw(at, readable=False)
        assert await check.trouble() is not None
        assert await p.resume("input") == "halted -> open"
        await p.one.refresh(now=True)
        assert await check.trouble() is None, "what had arrived counts again"
        for _ in range(50):
            check.saw(at, readable=False)
        assert await check.trouble() == "50 of the last 50 records of spine.created cannot be read"


async def test_an_opening_counts_though_our_view_of_the_databases_clock_is_a_little_behind(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with parts(database) as p:
        await p.one.set_state("input", "halted", "garbage", None)
        await p.resume("input")
        behind = p.one._database.now() - timedelta(seconds=0.3)
        monkeypatch.setattr(p.one._database, "now", lambda: behind)
        await p.one.refresh(now=True)
        assert "input" in p.one.opened


async def test_a_resume_counts_from_when_it_was_seen_if_its_transaction_ended_late(database: DatabaseDsns) -> None:
    """What was said between the call and its COMMIT would otherwise count as a company's policy."""
    async with parts(database) as p:
        await p.one.set_state(SMTP_RAIL, "halted", "refused by 5", None)
        await p.one.refresh(now=True)
        person = await asyncpg.connect(database.ops)
        await person.execute("BEGIN")
        await person.fetchval("SELECT outreach.resume_guardrail($1, 'delisted')", SMTP_RAIL)
        await asyncio.sleep(0.3)
        said_meanwhile = p.one._database.now()
        await asyncio.sleep(0.1)
        await person.execute("COMMIT")
        await person.close()
        await p.one.refresh(now=True)
        resumed_at = p.one.settling(0.0).resumed_at
        assert resumed_at is not None
        assert resumed_at > said_meanwhile


async def test_a_table_that_was_read_before_a_halt_does_not_undo_it(database: DatabaseDsns) -> None:
    async with parts(database) as p:
        fetch = p.one._database.persist

        async def slowly(name: str, *args: Any) -> Any:
            rows = await fetch(name, *args)
            if name == "guardrails":
                await p.one.set_state("input", "halted", "meanwhile", None)
            return rows

        p.one._database.persist = slowly  # type: ignore[method-assign]
        await p.one.refresh(now=True)
        assert "input" in p.one.halted


async def test_three_hangs_at_one_place_in_the_window_are_told_until_a_person_resumes(database: DatabaseDsns) -> None:
    async with parts(database) as p, opened(database.gate) as db:
        for places in (["a", "b"], ["b"], ["c"], ["b", "c"]):
            assert await hung_again(db, 600, 3) is None
            await record_exit(database.gate, Exit(places=places, reason="hangs", worker="w", version="1"))
        again = await hung_again(db, 600, 3)
        assert again == "a worker hung 3 times within 10 minutes at b: hangs"
        await p.one.set_state("watchdog", "halted", again, None)
        assert await p.resume("watchdog") == "halted -> open"
        assert await hung_again(db, 600, 3) is None
        await p.admin.execute("UPDATE outreach.ct_guardrails SET since = '-infinity'")
        assert await hung_again(db, 600, 3) == again
        await p.admin.execute(
            "UPDATE outreach.ct_watchdog_exits SET at = at - interval '11 minutes'"
            " WHERE exit_id = (SELECT min(e.exit_id) FROM outreach.ct_watchdog_exits AS e)"
        )
        assert await hung_again(db, 600, 3) is None


async def test_what_this_worker_halts_while_it_reads_is_read_again(database: DatabaseDsns) -> None:
    """Another one has closed a provider meanwhile, which must not stay unknown until the next look."""
    async with parts(database) as p:
        await p.two.set_state("provider:bigmail.example", "closed", "silent to three companies", 600.0)
        persist, halts = p.one._database.persist, [SMTP_RAIL, "mail_from"]

        async def and_halts(name: str, *args: Any) -> Any:
            rows = await persist(name, *args)
            if name == "guardrails" and halts:
                await p.one.set_state(halts.pop(), "halted", "listed", None)
            return rows

        p.one._database.persist = and_halts  # type: ignore[method-assign]
        await p.one.refresh(now=True)
        assert p.one.closed == {"bigmail.example"}
        assert set(p.one.halted) == {SMTP_RAIL, "mail_from"}


async def test_a_long_log_is_not_read_for_what_was_closed(database: DatabaseDsns) -> None:
    """Every five seconds each worker asks for that. Providers that now and then find us too fast have a long log."""
    async with parts(database) as p:
        await p.admin.execute(
            """
            INSERT INTO outreach.ct_workers (worker, machine, egress, version, toolbox, troubles, partitions, running)
                VALUES ('one', '', 'default', '', '{}', '{}', '{}', 0);
            INSERT INTO outreach.ct_guardrails (key, state, reason)
                SELECT 'provider:p' || n || '.example', 'open', '' FROM generate_series(1, 5) AS n;
            INSERT INTO outreach.ct_guardrail_log (key, state, reason)
                SELECT 'provider:p' || n % 5 + 1 || '.example',
                CASE WHEN n <= 3 THEN 'closed' WHEN n % 2 = 0 THEN 'open' ELSE 'paused' END, ''
                FROM generate_series(1, 20000) AS n ORDER BY n;
            """
        )
        await p.admin.execute("ANALYZE outreach.ct_guardrail_log")
        explained = await p.admin.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query('shut_providers')}")
        plan = json.loads(explained)[0]["Plan"]
        assert plan["Actual Rows"] == 3
        assert read_by(plan) < 200


def read_by(plan: dict[str, Any]) -> int:
    """Return how many rows a plan's parts have read, those that they dropped too."""
    rows = plan["Actual Rows"] + plan.get("Rows Removed by Filter", 0)
    return int(rows * plan["Actual Loops"]) + sum(map(read_by, plan.get("Plans", ())))


async def test_a_worker_that_meets_very_many_servers_that_refuse_it_remembers_so_many(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rails, "_MOST_SUSPECTS", 3)
    async with parts(database) as p:
        for n in range(5):
            await p.one.silent(f"p{n}.example", "acme.example")
        assert list(p.one._suspects) == ["p2.example", "p3.example", "p4.example"]
        for n in range(5):
            await p.two.set_state(f"provider:p{n}.example", "closed", "silent to three companies", 600.0)
        await p.one.refresh(now=True)
        for n in range(5):
            await p.one.talked(f"p{n}.example")
            assert await p.state(f"provider:p{n}.example") == "open", "whatever it remembers"
