"""What a domain answered serves other companies, for as long as it may, and nobody lengthens it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg
import pytest

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.memory import Memory, recalled
from ct_stream.gate.output_stage import Outcome, output_stage
from ct_stream.gate.questions import ControlKind
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.verdicts import Failed, Passed
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.store.control_ledger import ControlLedger
from ct_stream.store.domain_memory import DomainMemory
from ct_stream.store.ledger import Ledger
from ct_stream.store.limits import DomainLease, Looked, SharedLimits
from ct_stream.store.parked import ParkedCompanies
from tests.gate.world import NO, YES
from tests.store.parts import EXCHANGES, LIMITS, PASSED, opened, origin, parked, running, seen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.conftest import DatabaseDsns

ANSWERS = (*EXCHANGES, Exchange(key="rcpt:info", answer=YES), Exchange(key="rcpt:random", answer=NO))
NO_PATTERN = Failed(code=FailureCode.NO_PATTERN, reason="refused", domain="acme.example")
VERSION = "1+test"


def decided(
    verdict: Passed | Failed = PASSED,
    exchanges: Sequence[Exchange] = ANSWERS,
    *,
    ago: timedelta = timedelta(0),
    of: UUID | None = None,
) -> Outcome:
    """Return an outcome whose answers came so long ago."""
    now = datetime.now(UTC)
    at = (now - ago).isoformat()
    return output_stage(
        origin(of), verdict, [replace(e, at=e.at or at) for e in exchanges], rules_version=VERSION,
        decided_at=now, duration_ms=1,
    )  # fmt: skip


async def remembered(dsn: str, *outcomes: Outcome, version: str = VERSION, domain: str = "acme.example") -> Memory:
    """Record outcomes one after the other; return what is remembered then."""
    async with opened(dsn) as db:
        ledger, memory = Ledger(db), DomainMemory(db, version)
        async with running(*ledger.batches, memory.recall):
            for outcome in outcomes:
                assert await ledger.record(outcome)
            return await memory.recall(domain)


async def test_a_pass_comes_back_marked_and_without_the_companys_own_row(database: DatabaseDsns) -> None:
    outcome = decided()
    memory = await remembered(database.gate, outcome)
    assert memory.answers == recalled(outcome.exchanges[1:])
    assert memory.mx == memory.answers[:1]
    assert all(exchange.remembered for exchange in memory.answers)


@pytest.mark.parametrize(
    ("verdict", "ago", "answers", "mx"),
    [
        (PASSED, timedelta(hours=23), True, True),
        (PASSED, timedelta(hours=25), True, False),
        (PASSED, timedelta(hours=167), True, False),
        (PASSED, timedelta(hours=169), False, False),
        (NO_PATTERN, timedelta(minutes=9), True, True),
        (NO_PATTERN, timedelta(minutes=11), False, True),
        (NO_PATTERN, timedelta(hours=25), False, False),
    ],
)
async def test_each_kind_of_answer_is_remembered_for_its_own_time(
    database: DatabaseDsns, verdict: Passed | Failed, ago: timedelta, answers: bool, mx: bool
) -> None:
    memory = await remembered(database.gate, decided(verdict, ago=ago))
    assert (bool(memory.answers), bool(memory.mx)) == (answers, mx)


async def test_a_company_is_looked_up_with_what_its_domain_answered(database: DatabaseDsns) -> None:
    outcome = decided(NO_PATTERN)
    ids = {domain: uuid4() for domain in ("acme.example", "ACME.example", "other.example", None)}
    admin = await asyncpg.connect(database.admin)
    await admin.executemany(
        "INSERT INTO outreach.outreach (outreach_id, domain) VALUES ($1, $2)", [(i, d) for d, i in ids.items()]
    )
    await admin.close()
    async with opened(database.gate) as db:
        ledger, memory = Ledger(db, VERSION), DomainMemory(db, VERSION)
        async with running(*ledger.batches, memory.recall):
            assert await ledger.record(outcome)
            known = {domain: await ledger.look_up(i) for domain, i in ids.items()}
            for domain in ("acme.example", "ACME.example"):
                assert known[domain].recalled == "acme.example"
                assert known[domain].memory == await memory.recall("acme.example")
            assert known["other.example"].memory == Memory()
            assert (known[None].recalled, known[None].memory) == (None, None)
            assert (await ledger.look_up(uuid4())).memory is None
        strangers = Ledger(db, "2+test")
        async with running(*strangers.batches):
            assert (await strangers.look_up(ids["acme.example"])).memory == Memory()


async def test_other_domains_and_other_rules_know_nothing(database: DatabaseDsns) -> None:
    assert await remembered(database.gate, decided(), domain="other.example") == Memory()
    assert await remembered(database.gate, decided(), version="2+test") == Memory()


async def test_a_company_that_took_its_answers_from_memory_does_not_lengthen_it(database: DatabaseDsns) -> None:
    first = decided(NO_PATTERN, ago=timedelta(minutes=9))
    again = decided(NO_PATTERN, [first.exchanges[0], *recalled(first.exchanges[1:])])
    memory = await remembered(database.gate, first, again)
    assert {e.at for e in memory.answers} == {first.exchanges[1].at}
    admin = await asyncpg.connect(database.admin)
    age = await admin.fetchval("SELECT clock_timestamp() - answered_at FROM outreach.ct_memory")
    await admin.close()
    assert age > timedelta(minutes=8)


async def test_remembered_hosts_keep_their_age_beside_new_answers(database: DatabaseDsns) -> None:
    old = decided(NO_PATTERN, ago=timedelta(hours=20))
    new = decided(PASSED, [EXCHANGES[0], *recalled(old.exchanges[1:2]), *ANSWERS[2:]])
    await remembered(database.gate, old, new)
    admin = await asyncpg.connect(database.admin)
    row = await admin.fetchrow("SELECT outcome, clock_timestamp() - mx_at AS age FROM outreach.ct_memory")
    await admin.close()
    assert row is not None
    assert row["outcome"] == "PASS"
    assert row["age"] > timedelta(hours=19)


async def test_a_company_that_lost_the_race_is_not_remembered(database: DatabaseDsns) -> None:
    outcome = decided()
    loser = decided(NO_PATTERN, of=outcome.outreach_id)
    async with opened(database.gate) as db:
        ledger, memory = Ledger(db), DomainMemory(db, VERSION)
        async with running(*ledger.batches, memory.recall):
            assert await ledger.record(outcome)
            assert not await ledger.record(loser)
            assert (await memory.recall("acme.example")).answers == recalled(outcome.exchanges[1:])


async def test_a_clock_that_runs_ahead_does_not_lengthen_a_memory(database: DatabaseDsns) -> None:
    await remembered(database.gate, decided(ago=timedelta(hours=-5)))
    admin = await asyncpg.connect(database.admin)
    assert await admin.fetchval("SELECT answered_at <= clock_timestamp() FROM outreach.ct_memory")
    await admin.close()


async def test_writers_in_any_order_do_not_deadlock(database: DatabaseDsns) -> None:
    def batch() -> list[Outcome]:
        domains = [f"d{n}.example" for n in range(40)]
        return [decided(replace(PASSED, domain=domain)) for domain in domains]

    async with opened(database.gate) as db, opened(database.gate) as other_db:
        one, other = Ledger(db), Ledger(other_db)
        async with running(*one.batches, *other.batches):
            async with asyncio.timeout(20):
                won = await asyncio.gather(
                    *(one.record(o) for o in batch()), *(other.record(o) for o in reversed(batch()))
                )
        assert all(won)


async def test_the_end_of_a_chain_wakes_all_who_wait_for_its_domain(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        passes, ledger = ParkedCompanies(db, "a", "test"), Ledger(db)
        async with running(passes.park, *ledger.batches):
            here = [parked(after_s=None, waits_on="domain:acme.example") for _ in range(30)]
            there = parked(after_s=None, waits_on="domain:other.example")
            await asyncio.gather(*(passes.park(company) for company in (*here, there)))
            assert await passes.claim_due(100) == []
            assert await ledger.record(decided(NO_PATTERN))
            woken = await passes.claim_due(100)
    assert {r.origin.outreach_id for r in woken} == {p.origin.outreach_id for p in here}


async def test_a_fail_with_old_answers_wakes_nobody(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        passes, ledger = ParkedCompanies(db, "a", "test"), Ledger(db)
        async with running(passes.park, *ledger.batches):
            await passes.park(parked(after_s=None, waits_on="domain:acme.example"))
            assert await ledger.record(decided(NO_PATTERN, ago=timedelta(minutes=30)))
            assert await passes.claim_due(100) == []


async def test_a_domain_that_is_being_probed_is_known_to_be_busy(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        limits, memory = SharedLimits(db, "another worker", LIMITS), DomainMemory(db, VERSION)
        async with running(*limits.batches, memory.recall):
            lease = await limits.begin_probe("acme.example", "acme.example")
            assert isinstance(lease, DomainLease)
            assert (await memory.recall("acme.example")).is_busy
            await lease.release(talked=True)
            assert not (await memory.recall("acme.example")).is_busy


async def test_what_nobody_may_use_any_more_is_removed(database: DatabaseDsns) -> None:
    await remembered(database.gate, decided(replace(PASSED, domain="old.example"), ago=timedelta(hours=170)), decided())
    async with opened(database.gate) as db:
        await DomainMemory(db, VERSION).tidy()
    admin = await asyncpg.connect(database.admin)
    rows = await admin.fetch("SELECT domain FROM outreach.ct_memory")
    await admin.close()
    assert [row["domain"] for row in rows] == ["acme.example"]


async def test_who_looked_before_the_domain_answered_begins_no_probe(database: DatabaseDsns) -> None:
    """Its own MX and address look-ups took so long that another company asked the domain meanwhile, to the end."""
    async with opened(database.gate) as db:
        ledger, memory, shared = Ledger(db), DomainMemory(db, VERSION), SharedLimits(db, "worker", LIMITS)
        async with running(*ledger.batches, memory.recall, *shared.batches):

            async def look() -> Looked:
                return Looked(rules_version=VERSION, answered_at=(await memory.recall("acme.example")).answered_at)

            early = await look()
            assert early.answered_at is None
            assert await ledger.record(decided(NO_PATTERN, ago=timedelta(minutes=11)))
            old = await look()
            assert await ledger.record(decided())
            for looked in (early, old):
                wait = await shared.begin_probe("acme.example", "acme.example", looked)
                assert isinstance(wait, Wait)
                assert (wait.reason, wait.after_s, wait.waits_on) == (WaitReason.DOMAIN_BUSY, 0.0, "")
            async with db.connection() as connection:
                assert not await connection.fetchval("SELECT sum(used) FROM outreach.ct_usage")
            other_rules = Looked(rules_version="2+test", answered_at=None)
            for domain, looked in (("acme.example", await look()), ("other.example", early)):
                lease = await shared.begin_probe(domain, domain, looked)
                assert isinstance(lease, DomainLease), "what it saw it could not use"
                await lease.release(talked=False)
            await asyncio.sleep(LIMITS.smtp_domain_pause_s)
            assert isinstance(await shared.begin_probe("acme.example", "acme.example", other_rules), DomainLease)


@pytest.mark.parametrize("by", ["astray/1/a", "whole/1/b"])
async def test_what_a_worker_heard_astray_is_no_memory(database: DatabaseDsns, by: str) -> None:
    """A resolver that names hosts of its own, or a proxy on port 25, would make a PASS of everybody for a week."""
    async with opened(database.gate) as db:
        await seen(db, "astray/1/a", "whole/1/b")
        for run in ("astray/1/a", "whole/1/b"):
            begun_at = db.now() - timedelta(seconds=5)
            await ControlLedger(db, 0.0, run).succeeded(ControlKind.SMTP, begun_at, "takes MAIL FROM")
    before = await remembered(database.gate, decided(exchanges=[replace(e, by=by) for e in ANSWERS]))
    assert before.answers
    async with opened(database.gate) as db:
        await ControlLedger(db, 0.0, "astray/1/a").failed(ControlKind.SMTP, "somebody answers in its place")
    after = await remembered(database.gate)
    assert bool(after.answers) is bool(after.mx) is (by == "whole/1/b")
    assert after.answered_at == before.answered_at, "or whoever asks again would wait for what it has seen already"
    again = decided(exchanges=[replace(e, by="whole/1/b") for e in ANSWERS])
    assert (await remembered(database.gate, again)).answers, "another worker has heard it since"


async def test_what_a_worker_heard_after_its_last_control_is_no_memory_once_it_is_gone(database: DatabaseDsns) -> None:
    """It would have been found out by its next control, which nobody asks any more."""
    async with opened(database.gate) as db:
        await seen(db, "killed/1/a")
        ledger = ControlLedger(db, 0.0, "killed/1/a")
        await ledger.succeeded(ControlKind.SMTP, db.now() - timedelta(seconds=5), "takes MAIL FROM")
    heard = decided(exchanges=[replace(e, by="killed/1/a") for e in ANSWERS])
    assert (await remembered(database.gate, heard)).answers
    admin = await asyncpg.connect(database.admin)
    await admin.execute("SET session_replication_role = replica")
    await admin.execute("UPDATE outreach.ct_workers SET seen_at = now() - interval '1 minute'")
    await admin.close()
    assert not (await remembered(database.gate)).answers
