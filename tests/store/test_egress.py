"""What servers think of one of our addresses is in the way of that address alone, and nobody slips out of it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from ct_stream.gate.evidence import shunned_elsewhere
from ct_stream.gate.providers import network_of, provider_at, registrable_domain
from ct_stream.gate.records import FailedAt
from ct_stream.gate.verdicts import Held, HeldBy
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.store.guardrails import Guardrails
from ct_stream.store.limits import DomainLease, SharedLimits
from ct_stream.store.parked import ParkedCompanies
from ct_stream.store.worker_record import Beat, WorkerRecord
from tests.store.parts import LIMITS, opened, parked, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from ct_stream.store.database import Database
    from tests.conftest import DatabaseDsns

REFUSED = Held(by=HeldBy.REFUSED, host="mx1.bigmail.example", reason="550 5.7.1 your IP is listed")
TOO_FAST = Held(by=HeldBy.RATE, host="mx1.bigmail.example", reason="421 too many connections from your IP")
PROVIDER, TOOL = "provider:bigmail.example", "tool:TOOL-005"


@dataclass
class Worker:
    """One worker, and the address that it asks from."""

    db: Database
    egress: str

    def __post_init__(self) -> None:
        self.name = f"{self.egress}/1/a"
        self.rails = Guardrails(self.db, 60.0, self.name, self.egress)
        self.limits = SharedLimits(self.db, self.name, LIMITS, self.egress)
        self.parked = ParkedCompanies(self.db, self.name, "test", self.egress)
        self.record = WorkerRecord(
            self.db, worker=self.name, machine="host", egress=self.egress, version="test", toolbox={}
        )

    async def refused_by(self, *domains: str, held: Held = REFUSED) -> None:
        for domain in domains:
            await self.rails.judge(held, domain, registrable_domain(held.host))

    async def listed(self, *numbers: int, is_sender: bool = False) -> None:
        """Let providers in so many networks refuse us."""
        for n in numbers:
            held = Held(
                by=HeldBy.REFUSED, host=f"mx.p{n}.example", reason="550 no", ip=f"198.51.{n}.1", is_sender=is_sender
            )
            await self.rails.judge(held, f"c{n}.example", f"p{n}.example")

    async def asks(self, domain: str, provider: str = "bigmail.example", *, talks: bool = False) -> WaitReason | None:
        """Ask a server of this provider; return what is in the way."""
        lease = await self.limits.begin_probe(domain, provider)
        if isinstance(lease, Wait):
            return lease.reason
        assert isinstance(lease, DomainLease)
        lease.session_ended()
        await lease.release(talked=talks)
        if talks:
            await self.rails.talked(provider)
        return None


@dataclass
class Fleet:
    """Three workers on three addresses, and the administrator."""

    admin: asyncpg.Connection[Any]
    one: Worker  #: egress `default`
    two: Worker
    three: Worker

    async def state(self, rail: str) -> str | None:
        state: str | None = await self.admin.fetchval("SELECT state FROM outreach.ct_guardrails WHERE key = $1", rail)
        return state

    async def resume(self, rail: str) -> str:
        return str(await self.admin.fetchval("SELECT outreach.resume_guardrail($1, 'because')", rail))


@asynccontextmanager
async def fleet(database: DatabaseDsns, *, at_work: bool = True) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(opened(database.gate))
        admin: asyncpg.Connection[Any] = await asyncpg.connect(database.admin)
        stack.push_async_callback(admin.close)
        workers = [Worker(db, egress) for egress in ("default", "dc2", "dc3")]
        for worker in workers:
            await stack.enter_async_context(running(*worker.limits.batches, worker.parked.park))
            if at_work:
                assert await worker.record.begin() is None
                await worker.record.beat(Beat(troubles={}, partitions=(), running=0))
        yield Fleet(admin, *workers)


async def test_a_halt_of_one_address_leaves_the_others_at_work(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.two.listed(1, 2, 3, 4)
        await f.one.listed(5)
        assert await f.state(f"{TOOL}@dc2") is None, "the refusals of two addresses are not those of one"
        await f.two.listed(6)
        assert (await f.state(f"{TOOL}@dc2"), await f.state(TOOL)) == ("halted", None)
        assert await f.two.asks("a.example") is WaitReason.HALTED
        assert await f.one.asks("b.example") is None
        for worker, halted in ((f.one, set()), (f.two, {f"{TOOL}@dc2"})):
            await worker.rails.refresh(now=True)
            assert worker.rails.halted.keys() == halted
        assert f.two.rails.settling(0.0).halted_by is not None
        assert f.one.rails.settling(0.0).halted_by is None


async def test_a_halted_address_comes_back_by_its_own_talks(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.two.rails.set_state(f.two.rails.smtp_rail, "halted", "listed", None)
        assert await f.resume(f"{TOOL}@dc2") == "halted -> trial"
        await f.two.rails.refresh(now=True)
        for n in range(3):
            assert await f.one.asks(f"one{n}.example", f"q{n}.example", talks=True) is None, "no trial of its own"
        assert await f.state(f"{TOOL}@dc2") == "trial"
        held = await f.one.limits.begin_probe("slow.example", "slow.example")
        assert isinstance(held, DomainLease)
        for n in range(3):
            assert await f.two.asks(f"two{n}.example", f"q{n}.example", talks=True) is None, (
                "others' sessions are no part"
            )
        assert await f.state(f"{TOOL}@dc2") == "open"
        await held.release(talked=False)


async def test_one_company_at_a_time_is_tried_from_an_address_on_trial(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.two.rails.set_state(f.two.rails.smtp_rail, "halted", "listed", None)
        await f.resume(f"{TOOL}@dc2")
        held = await f.two.limits.begin_probe("slow.example", "slow.example")
        assert isinstance(held, DomainLease)
        assert await f.two.asks("next.example") is WaitReason.HALTED
        await held.release(talked=False)
        assert await f.two.asks("next.example") is None


async def test_a_provider_closed_at_one_address_is_open_at_the_others(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.one.refused_by("a.example", "b.example")
        await f.two.refused_by("c.example")
        assert await f.state(PROVIDER) is None
        await f.one.refused_by("d.example")
        assert (await f.state(PROVIDER), await f.state(f"{PROVIDER}@dc2")) == ("closed", None)
        assert await f.one.asks("e.example") is WaitReason.PROVIDER_CLOSED
        assert await f.two.asks("f.example") is None


async def test_a_provider_closed_at_two_addresses_is_closed_at_all(database: DatabaseDsns) -> None:
    """A third one must not be spent on finding out, as who sends unwanted mail does."""
    async with fleet(database) as f:
        await f.one.refused_by("a.example", "b.example", "c.example")
        await f.two.refused_by("d.example", "e.example", "f.example")
        assert await f.state(f"{PROVIDER}@dc3") == "closed"
        assert await f.three.asks("g.example") is WaitReason.PROVIDER_CLOSED


async def test_a_normal_session_from_one_address_is_no_evidence_for_another(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.one.refused_by("a.example", "b.example")
        assert await f.two.asks("c.example", talks=True) is None
        await f.one.refused_by("d.example")
        assert await f.state(PROVIDER) == "closed"
        assert await f.two.asks("e.example", talks=True) is None
        assert await f.state(PROVIDER) == "closed", "the other address talks; this one is refused"


async def test_a_session_from_another_address_at_the_same_domain_hides_no_earlier_one(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.one.refused_by("a.example", "b.example")
        assert await f.one.asks("c.example", talks=True) is None
        await asyncio.sleep(LIMITS.smtp_domain_pause_s + 0.05)
        assert await f.two.asks("c.example", talks=True) is None
        await f.one.refused_by("d.example")
        assert await f.state(PROVIDER) in (None, "open"), "it had talked normally with the first one in between"


async def test_too_fast_from_one_address_pauses_that_one(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.two.refused_by("a.example", held=TOO_FAST)
        assert await f.two.asks("b.example") is WaitReason.PROVIDER_CLOSED
        assert await f.one.asks("c.example") is None


async def test_what_many_say_of_our_sender_halts_every_address(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.one.listed(1, 2, is_sender=True)
        await f.two.listed(3, 4, is_sender=True)
        assert await f.state("mail_from") is None
        await f.one.listed(5, is_sender=True)
        assert (await f.state("mail_from"), await f.state(TOOL)) == ("halted", None)
        for worker in (f.one, f.two, f.three):
            wait = await worker.limits.begin_probe(f"{worker.egress}.example", "x.example")
            assert isinstance(wait, Wait)
            assert (wait.reason, wait.waits_on) == (WaitReason.HALTED, WaitsOn.mail_from())
            assert worker.rails.settling(0.0).halted_by is not None or worker is not f.one
        assert await f.resume("mail_from") == "halted -> open"
        assert [await f.state(rail) for rail in (TOOL, f"{TOOL}@dc2", f"{TOOL}@dc3")] == ["trial"] * 3
        await f.one.rails.refresh(now=True)
        await f.one.listed(6, is_sender=True)
        assert await f.state("mail_from") == "open", "what was said before counts no more"


# ---------------------------------------------------------------- names


def restarted(worker: Worker) -> WorkerRecord:
    """Return the record of its next run."""
    return WorkerRecord(
        worker.db, worker=f"{worker.egress}/2/b", machine="host", egress=worker.egress, version="test", toolbox={}
    )


@pytest.mark.parametrize("state", ["halted", "trial"])
async def test_nobody_slips_out_of_a_halt_by_a_restart_under_a_new_name(database: DatabaseDsns, state: str) -> None:
    async with fleet(database, at_work=False) as f:
        for worker in (f.one, f.two):
            await worker.record.begin()
        await f.one.rails.set_state(TOOL, "halted", "listed", None)
        if state == "trial":
            await f.resume(TOOL)
        await f.one.refused_by("a.example", "b.example", "c.example")
        assert await restarted(f.two).begin() is None
        assert await f.state(f"{TOOL}@dc2") is None, "its name was known before the halt"
        assert await f.three.record.begin() is None
        assert (await f.state(f"{TOOL}@dc3"), await f.state(f"{PROVIDER}@dc3")) == ("halted", "closed")
        assert await f.three.asks("d.example") is WaitReason.HALTED
        assert await f.resume(f"{TOOL}@dc3") == "halted -> trial"
        await restarted(f.three).begin()
        assert await f.state(f"{TOOL}@dc3") == "trial", "it is resumed for good"


async def test_a_first_worker_meets_only_what_was_halted_before_it(database: DatabaseDsns) -> None:
    async with fleet(database, at_work=False) as f:
        await f.one.rails.set_state(TOOL, "halted", "listed", None)
        assert await f.one.record.begin() is None
        assert await f.admin.fetchval("SELECT count(*) FROM outreach.ct_guardrails") == 1


# ---------------------------------------------------------------- who takes whose companies


async def park(worker: Worker, waits_on: str, reason: WaitReason, after_s: float | None = None, **more: Any) -> UUID:
    company = parked(after_s=after_s, waits_on=waits_on, reason=reason, failed=FailedAt.NOW, **more)
    await worker.parked.park(company)
    return company.origin.outreach_id


async def taken(worker: Worker, *, others_ask: bool = False) -> set[UUID]:
    names = ["way", *await worker.parked.to_take_over()]
    due = await worker.parked.claim_due(50, take_over=names, others_ask=others_ask)
    await worker.parked.give_back([company.origin.outreach_id for company in due])
    return {company.origin.outreach_id for company in due}


async def test_companies_that_wait_for_another_address_are_taken_where_nothing_is_in_the_way(
    database: DatabaseDsns,
) -> None:
    async with fleet(database) as f:
        await f.one.rails.set_state(TOOL, "halted", "listed", None)
        halted = await park(f.one, TOOL, WaitReason.HALTED)
        await f.one.rails.set_state(PROVIDER, "closed", "refuses us", 600.0)
        closed = await park(f.one, PROVIDER, WaitReason.PROVIDER_CLOSED)
        await f.two.rails.set_state(f"{PROVIDER}@dc2", "paused", "too fast", 60.0)
        assert await taken(f.two) == {halted}
        assert await taken(f.three) == {halted, closed}
        assert await taken(f.one) == set()
        await f.three.rails.set_state(f"{TOOL}@dc3", "halted", "listed", None)
        assert await taken(f.three) == set(), "it could only park whom it takes"


async def test_who_was_refused_is_taken_by_another_address_at_once(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        company = await park(f.one, WaitsOn.other_than("default"), WaitReason.REFUSED, 600.0, refused_at="default")
        assert await taken(f.one) == set()
        assert await taken(f.two) == {company}
        [back] = await f.two.parked.claim_due(10, take_over=["egress:default"])
        assert back.refused_at == "default"


@pytest.mark.parametrize("met", ["first_at", "refused_at"])
async def test_what_one_address_met_is_looked_at_again_by_another_if_there_is_one(
    database: DatabaseDsns, met: str
) -> None:
    async with fleet(database) as f:
        company = await park(f.one, "", WaitReason.CONTROL, 0.0, **{met: "default"})
        assert await taken(f.one, others_ask=True) == set(), "the others have five seconds"
        assert await taken(f.one) == {company}, "there is no other"
        assert await taken(f.two, others_ask=True) == {company}
        await f.admin.execute("UPDATE outreach.ct_passes SET not_before = now() - interval '6 seconds'")
        assert await taken(f.one, others_ask=True) == {company}, "nobody came"


async def test_only_addresses_of_workers_whose_way_is_proven_can_ask_in_the_place_of_others(
    database: DatabaseDsns,
) -> None:
    async with fleet(database) as f:
        assert await f.one.parked.at_work() == {"dc2/1/a": "dc2", "dc3/1/a": "dc3"}
        await f.two.record.beat(Beat(troubles={"control_smtp": "no answer"}, partitions=(), running=0))
        await f.three.rails.set_state(f"{TOOL}@dc3", "halted", "listed", None)
        assert await f.one.parked.at_work() == {}
        assert await f.two.parked.at_work() == {"default/1/a": "default"}
        await f.three.rails.set_state("mail_from", "halted", "many networks refuse our sender", None)
        assert await f.two.parked.at_work() == {}, "whatever address it is sent from"


async def test_what_is_polite_to_strangers_holds_over_all_addresses(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        held = await f.one.limits.begin_probe("a.example", "bigmail.example")
        assert isinstance(held, DomainLease)
        assert await f.two.asks("a.example") is WaitReason.DOMAIN_BUSY
        more = [await f.two.limits.begin_probe(f"b{n}.example", "bigmail.example") for n in range(3)]
        assert [isinstance(one, Wait) for one in more] == [False, False, True], "three places at a provider, for all"
        for lease in (held, *more):
            if isinstance(lease, DomainLease):
                await lease.release(talked=False)


async def test_who_is_refused_at_one_address_and_closed_at_another_goes_in_no_circle(database: DatabaseDsns) -> None:
    """It would be asked every few seconds, from the address that is refused."""
    async with fleet(database) as f:
        await f.two.rails.set_state(f"{PROVIDER}@dc2", "closed", "three refused", 600.0)
        company = await park(f.two, f"{PROVIDER}@dc2", WaitReason.PROVIDER_CLOSED, refused_at="default")
        assert await taken(f.one) == set()
        assert await taken(f.three) == {company}, "a third one was not refused"
        other = await park(f.two, "way:smtp6", WaitReason.ANOTHER_MACHINE, refused_at="default")
        names = [*await f.one.parked.to_take_over(), "way:smtp6"]
        assert [c.origin.outreach_id for c in await f.one.parked.claim_due(9, take_over=names)] == [other]


async def test_a_new_name_slips_out_of_no_halt_however_its_workers_start(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.one.rails.set_state(TOOL, "halted", "listed", None)
        many = [new_run("dc8", n, f.one.db) for n in range(3)]
        await asyncio.gather(*(record.begin() for record in many))
        assert await f.state(f"{TOOL}@dc8") == "halted", "all at once"
        refused = new_run("dc9", 1, f.one.db, toolbox={"smtp": 1})
        assert await refused.begin() is not None, "it has another toolbox"
        await new_run("dc9", 2, f.one.db).begin()
        assert await f.state(f"{TOOL}@dc9") == "halted", "after one that was turned away"


def new_run(egress: str, number: int, db: Database, toolbox: dict[str, int] | None = None) -> WorkerRecord:
    """Return the record of a run at an egress that nobody has seen."""
    return WorkerRecord(
        db, worker=f"{egress}/{number}/x", machine="host", egress=egress, version="test", toolbox=toolbox or {}
    )


@pytest.mark.parametrize("name", ["dc2@x", "a b", "x" * 65, "tool:TOOL-005"])
async def test_a_name_that_would_be_another_guardrail_is_refused(database: DatabaseDsns, name: str) -> None:
    async with fleet(database, at_work=False) as f:
        with pytest.raises(asyncpg.CheckViolationError):
            await f.one.db.fetch(
                "worker_beat", *new_run(name, 1, f.one.db)._row(Beat(troubles={}, partitions=(), running=0))
            )


async def test_who_is_closed_at_one_address_is_not_taken_by_one_that_is_halted(database: DatabaseDsns) -> None:
    """Each would put it away again at once, and the other would take it: as fast as both can."""
    async with fleet(database) as f:
        await f.one.rails.set_state(TOOL, "halted", "listed", None)
        await f.two.rails.set_state(f"{PROVIDER}@dc2", "closed", "three refused", 600.0)
        await f.three.record.end()
        company = await park(f.two, f"{PROVIDER}@dc2", WaitReason.PROVIDER_CLOSED)
        rounds = 0
        for _ in range(5):
            for worker in (f.one, f.two):
                for resumed in await worker.parked.claim_due(9, take_over=["way", *await worker.parked.to_take_over()]):
                    assert resumed.origin.outreach_id == company
                    wait = await worker.limits.begin_probe("acme.example", "bigmail.example")
                    assert isinstance(wait, Wait)
                    await worker.parked.park(parked(company, after_s=None, waits_on=wait.waits_on, reason=wait.reason))
                    rounds += 1
        assert rounds <= 1, "passed back and forth"


async def test_who_was_taken_over_and_parked_again_is_taken_later_each_time(database: DatabaseDsns) -> None:
    """Whatever two workers may pass back and forth, they do not do it as fast as they can."""
    async with fleet(database) as f:
        company = await park(f.two, f"{TOOL}@dc2", WaitReason.HALTED)
        await f.two.rails.set_state(f"{TOOL}@dc2", "halted", "listed", None)
        for age_s, parked_s, is_taken in (
            (0.0, 0.0, True),
            (100.0, 1.0, False),
            (100.0, 11.0, True),
            (9000.0, 59.0, False),
        ):
            await f.admin.execute(
                "UPDATE outreach.ct_passes SET since = now() - $1::float8 * interval '1 s',"
                " parked_at = now() - $2::float8 * interval '1 s'",
                age_s,
                parked_s,
            )
            assert await taken(f.one) == ({company} if is_taken else set()), (age_s, parked_s)


async def test_a_halted_address_does_not_take_who_was_refused_elsewhere(database: DatabaseDsns) -> None:
    """It cannot ask, and the first one may not take it back: it waits for a person, or for an address that is gone."""
    async with fleet(database) as f:
        await f.two.rails.set_state(f"{TOOL}@dc2", "halted", "listed", None)
        await f.three.record.end()
        company = await park(f.one, WaitsOn.other_than("default"), WaitReason.REFUSED, 60.0, refused_at="default")
        for resumed in await f.two.parked.claim_due(9, take_over=["way", *await f.two.parked.to_take_over()]):
            wait = await f.two.limits.begin_probe("acme.example", "acme.example")
            assert isinstance(wait, Wait)
            await f.two.parked.park(
                parked(
                    resumed.origin.outreach_id,
                    after_s=wait.after_s,
                    waits_on=wait.waits_on,
                    reason=wait.reason,
                    refused_at=resumed.refused_at,
                )
            )
        await f.two.record.end()
        # The minute is over.
        await f.admin.execute(
            "UPDATE outreach.ct_passes SET not_before = now() - interval '9 s' WHERE not_before < 'infinity'"
        )
        await f.one.parked.wake_sleepers(10)
        assert await taken(f.one) == {company}, "the first address asks again after a minute, as it was told"


async def test_an_unsettled_refusal_waits_for_the_halt_that_is_in_its_way(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.two.rails.set_state(f.two.rails.smtp_rail, "halted", "listed", None)
        wait = f.two.rails.settling(0.0).refusal("mx1.acme.example refuses us")
        assert wait is not None
        assert wait.waits_on == f"{TOOL}@dc2"


async def test_an_unsettled_refusal_waits_for_our_sender_if_that_is_halted(database: DatabaseDsns) -> None:
    """Named by a tool that is not halted, it is woken every five seconds, and parked again."""
    async with fleet(database) as f:
        await f.one.rails.set_state("mail_from", "halted", "five networks", None)
        wait = f.one.rails.settling(0.0).refusal("mx1.acme.example refuses us")
        assert wait is not None
        company = await park(f.one, wait.waits_on, wait.reason, wait.after_s)
        await f.one.parked.wake_sleepers(10)
        assert await taken(f.one) == set(), f"{company} is woken though our sender is halted"


async def test_a_worker_whose_paid_vendor_is_halted_can_still_ask_in_the_place_of_others(
    database: DatabaseDsns,
) -> None:
    """A vendor without credit is halted for days; a beat names all halts by one word."""
    async with fleet(database) as f:
        await f.two.rails.set_state("tool:TOOL-019", "halted", "402 no credit", None)
        await f.two.record.beat(Beat(troubles={"guardrails": "tool:TOOL-019 is halted: 402"}, partitions=(), running=0))
        assert "dc2/1/a" in await f.one.parked.at_work()


async def test_a_hoster_closed_as_a_network_here_and_as_an_address_there_sends_nobody_in_circles(
    database: DatabaseDsns,
) -> None:
    """Three customers at three of its machines refuse `one`, two at one machine refuse `two`."""
    network, address = "203.0.113.0/24", "203.0.113.7"
    async with fleet(database) as f:
        await f.three.record.end()

        def own(domain: str, ip: str) -> Held:
            return Held(by=HeldBy.REFUSED, host=f"mx.{domain}", reason="550 no", ip=ip)

        for n, ip in enumerate((address, "203.0.113.8", "203.0.113.9")):
            await f.one.rails.judge(own(f"a{n}.example", ip), f"a{n}.example", f"a{n}.example")
        for n in range(2):
            await f.two.rails.judge(own(f"b{n}.example", address), f"b{n}.example", f"b{n}.example")
        for worker in (f.one, f.two):
            await worker.rails.refresh(now=True)
        company = await park(f.one, f"provider:{network}", WaitReason.PROVIDER_CLOSED)
        rounds = 0
        for _ in range(5):
            for worker in (f.two, f.one):
                for resumed in await worker.parked.claim_due(9, take_over=["way", *await worker.parked.to_take_over()]):
                    assert resumed.origin.outreach_id == company
                    where = provider_at("mx.acme.example", address, "acme.example", worker.rails.closed)
                    wait = await worker.limits.begin_probe("acme.example", where)
                    assert isinstance(wait, Wait)
                    await worker.parked.park(parked(company, after_s=None, waits_on=wait.waits_on, reason=wait.reason))
                    rounds += 1
        assert rounds <= 1, "passed back and forth"


async def test_an_address_that_is_closed_elsewhere_is_no_other_one_in_its_network(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.three.record.end()
        await f.one.rails.set_state("provider:203.0.113.9", "closed", "refuses us", 600.0)
        await f.two.rails.set_state("provider:203.0.113.7@dc2", "closed", "refuses us", 600.0)
        company = await park(f.two, "provider:203.0.113.7@dc2", WaitReason.PROVIDER_CLOSED)
        assert await taken(f.one) == {company}
        await f.one.rails.set_state("provider:203.0.113.0/24", "closed", "refuses us", 600.0)
        assert await taken(f.one) == set(), "closed here too, with its network"


async def test_who_says_that_we_ask_too_fast_is_not_asked_at_once_from_another_address(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await f.two.refused_by("a.example", held=TOO_FAST)
        assert await f.state(f"{PROVIDER}@dc2") == "paused"
        assert f"{PROVIDER}@dc2" not in await f.one.parked.to_take_over()
        await f.two.refused_by("b.example", "c.example")
        assert await f.state(f"{PROVIDER}@dc2") == "closed"
        assert f"{PROVIDER}@dc2" in await f.one.parked.to_take_over()


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.0/24"),
        ("2001:db8:0:1::5", "2001:db8::/48"),
        ("2001:db8:7:1::5", "2001:db8:7::/48"),
        ("2001:db8::5", "2001:db8::/48"),
    ],
)
async def test_who_waits_for_an_address_is_not_taken_over_where_its_network_is_closed(
    database: DatabaseDsns, address: str, network: str
) -> None:
    assert network_of(address) == network
    async with fleet(database) as f:
        await f.one.rails.set_state(f"provider:{address}", "closed", "two companies there refuse us", 600.0)
        assert f"provider:{address}" in await f.two.parked.to_take_over()
        await f.two.rails.set_state(f"provider:{network}@dc2", "closed", "three companies there refuse us", 600.0)
        assert f"provider:{address}" not in await f.two.parked.to_take_over()


async def test_a_provider_that_only_looks_like_an_address_breaks_nothing(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        for name in ("999.1.2.3", "1.2.3.4.example", "a:b:c", "2001:db8::zz", "10.0.0.0/99"):
            await f.one.rails.set_state(f"provider:{name}", "closed", "refuses us", 600.0)
            assert f"provider:{name}" in await f.two.parked.to_take_over()


async def test_a_normal_talk_with_a_neighbour_wakes_who_was_refused_at_their_address(database: DatabaseDsns) -> None:
    """Their own servers share one machine: what it says of us is no company's own policy (ADR-CT-IMO-036)."""
    ip = "192.0.2.7"
    held = Held(by=HeldBy.REFUSED, host="mx.acme.example", reason="550 5.7.1 listed", ip=ip)
    async with fleet(database) as f:

        async def a_neighbour_talks(domain: str) -> None:
            lease = await f.two.limits.begin_probe(domain, domain)
            assert isinstance(lease, DomainLease)
            lease.session_ended()
            await lease.release(talked=True, talked_at=ip)
            await f.two.rails.talked(domain, ip)

        await a_neighbour_talks("b.example")
        wait = await f.two.rails.judge(held, "acme.example", "acme.example")
        assert wait.waits_on == f"provider:{ip}@dc2"
        await f.two.parked.park(parked(after_s=wait.after_s, waits_on=wait.waits_on, reason=wait.reason))
        assert not await f.two.parked.claim_due(9)
        await a_neighbour_talks("c.example")
        assert len(await f.two.parked.claim_due(9)) == 1


async def test_held_names_the_guardrail_of_the_address_that_a_silent_provider_is_closed_to(
    database: DatabaseDsns,
) -> None:
    async with fleet(database) as f:
        await f.two.rails.set_state(f"{PROVIDER}@dc2", "closed", "silent to three companies", 600.0)
        wait = shunned_elsewhere("bigmail.example", "dc2", 0.0)
        await f.one.parked.park(parked(after_s=wait.after_s, waits_on=wait.waits_on, reason=wait.reason))
        ends = await f.admin.fetchval("SELECT what_ends_it FROM outreach.ct_held")
        assert f"ct-stream guardrails resume {PROVIDER}@dc2" in ends
        assert "bigmail.example is open to egress dc2 again" in ends
        assert not await f.two.parked.claim_due(9, take_over=await f.two.parked.to_take_over())
        await f.resume(f"{PROVIDER}@dc2")
        await f.two.parked.wake_sleepers(10)
        assert len(await f.two.parked.claim_due(9)) == 1


async def test_which_of_our_addresses_a_provider_shuns_or_shunned_a_while_ago(database: DatabaseDsns) -> None:
    async with fleet(database) as f:

        async def shut() -> dict[str, dict[str, bool]]:
            """Return, by egress and provider, whether it is closed still."""
            await f.one.rails.refresh(now=True)
            return {e: {p: at is None for p, at in its.items()} for e, its in f.one.rails.shut.items()}

        await f.two.rails.set_state(f"{PROVIDER}@gone", "closed", "an address that no worker has", 600.0)
        await f.one.rails.set_state(PROVIDER, "paused", "says that we ask too fast", 60.0)
        await f.one.rails.set_state(PROVIDER, "open", "talks normally again", None)
        assert await shut() == {}, "a pause says nothing of silence"
        await f.two.rails.set_state(f"{PROVIDER}@dc2", "closed", "silent to three companies", 600.0)
        await f.two.rails.set_state("provider:192.0.2.0/24@dc2", "closed", "three companies there refuse us", 600.0)
        assert await shut() == {"dc2": {"bigmail.example": True, "192.0.2.0/24": True}}
        before = f.one.db.now()
        await asyncio.sleep(0.05)
        await f.resume(f"{PROVIDER}@dc2")
        assert await shut() == {"dc2": {"bigmail.example": False, "192.0.2.0/24": True}}
        opened_at = f.one.rails.shut["dc2"]["bigmail.example"]
        assert opened_at is not None
        assert before < opened_at < f.one.db.now()
        for state in ("paused", "open"):  # it has just opened, and finds us too fast
            await f.two.rails.set_state(f"{PROVIDER}@dc2", state, "because", 60.0 if state == "paused" else None)
            assert (await shut())["dc2"]["bigmail.example"] is False
            assert f.one.rails.shut["dc2"]["bigmail.example"] == opened_at
