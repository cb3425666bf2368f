"""Undecided companies wait in Postgres with their answers, and exactly one worker resumes each of them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from ct_stream.gate.output_stage import Origin
from ct_stream.gate.records import FailedAt
from ct_stream.gate.waits import WaitReason
from ct_stream.store.ledger import Ledger
from ct_stream.store.limits import DomainLease, SharedLimits
from ct_stream.store.parked import ParkedCompanies
from tests.store.parts import EXCHANGES, LIMITS, opened, outcome, parked, running

if TYPE_CHECKING:
    from ct_stream.store.database import Database
    from tests.conftest import DatabaseDsns

A_MOMENT = timedelta(seconds=0.1)


async def test_a_company_is_resumed_as_it_was_parked(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        asked_at = db.now() - timedelta(seconds=2)
        kept = parked(spent_s=1.5, looks=1, asked_at=asked_at, failed=FailedAt.NOW, pending=EXCHANGES[1])
        passes = ParkedCompanies(db, "a", "test")
        async with running(passes.park):
            before = db.now()
            await passes.park(kept)
            [back] = await passes.claim_due(10)
            after = db.now()
    assert (back.origin, back.exchanges, back.pending) == (kept.origin, EXCHANGES, EXCHANGES[1])
    assert (back.spent_s, back.looks, back.domain) == (1.5, 1, "acme.example")
    assert back.asked_at == asked_at
    assert back.failed_at is not None
    assert before - A_MOMENT < back.failed_at < after + A_MOMENT, "by Postgres's clock, of which we know as much"


async def test_a_wait_for_a_control_has_a_moment_that_a_proof_can_be_later_than(database: DatabaseDsns) -> None:
    """A frozen worker comes back with a wait as on a record that another worker has replaced meanwhile."""
    async with opened(database.gate) as db:
        passes = ParkedCompanies(db, "a", "test")
        async with running(passes.park):
            await passes.park(parked(failed=FailedAt.ON_RECORD, reason=WaitReason.CONTROL))
            [back] = await passes.claim_due(10)
    assert back.failed_at is not None


async def test_when_it_was_asked_stays_on_record_until_it_is_asked_again(database: DatabaseDsns) -> None:
    """Otherwise answers from our own trouble would seem to be newer than it after being parked twice."""
    async with opened(database.gate) as db:
        passes = ParkedCompanies(db, "a", "test")
        async with running(passes.park):
            asked_at = db.now() - timedelta(seconds=500)
            company = parked(asked_at=asked_at, failed=FailedAt.NOW)
            await passes.park(company)
            (first,) = await passes.claim_due(10)
            await passes.park(parked(company.origin.outreach_id, asked_at=None, failed=FailedAt.ON_RECORD))
            (again,) = await passes.claim_due(10)
            assert (again.asked_at, again.failed_at) == (asked_at, first.failed_at)
            ahead = db.now() + timedelta(hours=1)
            await passes.park(parked(company.origin.outreach_id, asked_at=ahead, failed=FailedAt.ON_RECORD))
            (last,) = await passes.claim_due(10)
            assert last.asked_at is not None
            assert last.asked_at < ahead, "a worker's clock ran ahead"


async def test_answers_from_before_a_clock_was_set_back_have_no_known_time(database: DatabaseDsns) -> None:
    """Proofs of an hour later would speak for them, once the clock has caught up."""
    async with opened(database.gate) as db:
        passes = ParkedCompanies(db, "a", "test")
        admin = await asyncpg.connect(database.admin)
        async with running(passes.park):
            company = parked(asked_at=db.now(), failed=FailedAt.NOW)
            await passes.park(company)
            await passes.park(parked(failed=FailedAt.NONE))
            await admin.execute(
                "UPDATE outreach.ct_passes SET asked_at = asked_at + interval '1 hour', "
                "failed_at = failed_at + interval '1 hour'"
            )
            came_back = {back.origin.outreach_id: back for back in await passes.claim_due(10)}
            first = came_back.pop(company.origin.outreach_id)
            (other,) = came_back.values()
            assert other.failed_at is None
            assert first.asked_at is not None
            assert first.asked_at.year == 1970
            assert first.failed_at is not None
            assert first.failed_at <= db.now() + timedelta(seconds=1)
            await passes.park(parked(company.origin.outreach_id, asked_at=None, failed=FailedAt.ON_RECORD))
            (again,) = await passes.claim_due(10)
            assert (again.asked_at, again.failed_at) == (first.asked_at, first.failed_at)
        await admin.close()


async def test_each_company_is_resumed_by_only_one_of_two_workers(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db, opened(database.gate) as other_db:
        one, other = ParkedCompanies(db, "one", "test"), ParkedCompanies(other_db, "other", "test")
        async with running(one.park):
            companies = [parked() for _ in range(50)]
            await asyncio.gather(*(one.park(company) for company in companies))
            claims = await asyncio.gather(*((one, other)[n % 2].claim_due(10) for n in range(8)))
    claimed = [resumed.origin.outreach_id for claim in claims for resumed in claim]
    assert sorted(claimed) == sorted(company.origin.outreach_id for company in companies)


async def test_a_wait_with_a_time_is_not_over_before_it(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        passes = ParkedCompanies(db, "a", "test")
        async with running(passes.park):
            await passes.park(parked(after_s=2.0))
            assert await passes.claim_due(10) == []
            await asyncio.sleep(2.05)
            assert len(await passes.claim_due(10)) == 1


async def test_a_worker_that_lost_its_lease_cannot_park_the_company(database: DatabaseDsns) -> None:
    company = parked()
    async with opened(database.gate) as db:
        slow, quick = ParkedCompanies(db, "slow", "test"), ParkedCompanies(db, "quick", "test")
        async with running(slow.park, quick.park):
            await slow.park(company)
            await slow.claim_due(10)
            admin = await asyncpg.connect(database.admin)
            await admin.execute("UPDATE outreach.ct_passes SET lease_until = now() - interval '1 s'")
            assert len(await quick.claim_due(10)) == 1
            await slow.park(parked(company.origin.outreach_id, after_s=999.0))
            assert await admin.fetchval("SELECT lease_owner FROM outreach.ct_passes") == "quick"
            await admin.close()


async def test_the_third_exception_makes_a_company_stuck_and_another_version_tries_again(
    database: DatabaseDsns,
) -> None:
    company = Origin(outreach_id=parked().origin.outreach_id)
    async with opened(database.gate) as db:
        passes = ParkedCompanies(db, "a", "1.0")
        counts = [await passes.count_exception(company, None, "KeyError: 'x'", "trace") for _ in range(3)]
        assert counts == [(1, "waiting"), (2, "waiting"), (3, "stuck")]
        assert await passes.stuck_lately() == (["trace"], 0)
        await passes.retry_stuck()
        assert await passes.claim_due(10) == [], "this version would only fail again"
        newer = ParkedCompanies(db, "b", "1.1")
        await newer.retry_stuck()
        assert len(await newer.claim_due(10)) == 1


async def test_only_a_company_with_an_outcome_is_forgotten(database: DatabaseDsns) -> None:
    decided, undecided = parked(), parked()
    async with opened(database.gate) as db:
        passes, ledger = ParkedCompanies(db, "a", "test"), Ledger(db)
        async with running(passes.park, *ledger.batches):
            await asyncio.gather(passes.park(decided), passes.park(undecided))
            await ledger.record(outcome(decided.origin.outreach_id))
            await db.run("forget", [undecided.origin.outreach_id])
            [left] = await passes.claim_due(10)
    assert left.origin == undecided.origin


async def test_a_lease_that_its_worker_does_not_know_of_runs_out(database: DatabaseDsns) -> None:
    """As when the connection broke before the answer that granted it; renewed by its owner, it would never end."""
    async with opened(database.gate) as db:
        one, other = ParkedCompanies(db, "one", "test"), ParkedCompanies(db, "other", "test")
        limits = SharedLimits(db, "one", LIMITS)
        admin = await asyncpg.connect(database.admin)
        async with running(one.park, *limits.batches):
            known, unknown = parked(), parked()
            for company in (known, unknown):
                await one.park(company)
            await one.claim_due(10)
            leases = [await limits.begin_probe(domain, domain) for domain in ("known.example", "unknown.example")]
            assert isinstance(leases[0], DomainLease)
            for table in ("ct_passes", "ct_domains"):
                await admin.execute(f"UPDATE outreach.{table} SET lease_until = now() + interval '0.2 s'")
            await one.renew_leases([known.origin.outreach_id], {leases[0].lease: "known.example"})
            await asyncio.sleep(0.25)
            assert [resumed.origin for resumed in await other.claim_due(10)] == [unknown.origin]
            kept = await admin.fetch("SELECT domain FROM outreach.ct_domains WHERE lease_until > now()")
            assert [row["domain"] for row in kept] == ["known.example"]
        await admin.close()


async def test_who_waits_for_a_person_is_woken_though_it_was_parked_just_after_the_person_came(
    database: DatabaseDsns,
) -> None:
    """A worker knows a halt for five seconds longer than it lasts; what it parks then, nobody else would wake."""
    async with opened(database.gate) as db:
        passes = ParkedCompanies(db, "a", "test")
        admin = await asyncpg.connect(database.admin)
        async with running(passes.park):
            late = [
                parked(after_s=None, waits_on=name) for name in ("spine", "tool:TOOL-005", "provider:bigmail.example")
            ]
            await asyncio.gather(*map(passes.park, late))
            for company in late:
                await admin.execute(
                    "INSERT INTO outreach.ct_guardrails (key, state, reason) VALUES ($1, 'halted', 'test')"
                    " ON CONFLICT (key) DO UPDATE SET state = 'halted', next_try_at = NULL", company.wait.waits_on
                )  # fmt: skip
            await passes.wake_sleepers(10)
            assert await passes.claim_due(10) == [], "halted"
            await admin.execute("UPDATE outreach.ct_guardrails SET state = 'open'")
            await passes.wake_sleepers(10)
            woken = {resumed.origin.outreach_id for resumed in await passes.claim_due(10)}
        await admin.close()
    assert woken == {company.origin.outreach_id for company in late}


async def test_a_providers_try_goes_to_whoever_has_waited_longest_since_its_last_one(database: DatabaseDsns) -> None:
    """A try that is refused comes back to the end of the queue: the same company would keep all others from a turn."""
    rail = "provider:bigmail.example"
    companies = [parked(after_s=None, waits_on=rail) for _ in range(3)]
    turns = []
    async with opened(database.gate) as db:
        passes = ParkedCompanies(db, "a", "test")
        admin = await asyncpg.connect(database.admin)
        await admin.execute(
            "INSERT INTO outreach.ct_guardrails (key, state, reason, next_try_at) VALUES ($1, 'closed', 'test', now())",
            rail,
        )
        async with running(passes.park):
            for company in companies:
                await passes.park(company)
            for _ in range(4):
                await passes.wake_sleepers(10)
                (tried,) = await passes.claim_due(10)
                turns.append(next(n for n, one in enumerate(companies) if one.origin == tried.origin))
                await passes.park(companies[turns[-1]])
        await admin.close()
    assert turns == [0, 1, 2, 0]


async def test_a_wait_that_cannot_be_read_keeps_no_other_company_waiting(database: DatabaseDsns) -> None:
    """It would be claimed with them each time."""
    company = parked()
    async with opened(database.gate) as db:
        passes = ParkedCompanies(db, "a", "test")
        async with running(passes.park):
            await passes.park(company)
            for answers, pending in (("5", None), ("[]", '"x"'), ("[5]", None)):
                async with db.connection() as connection:
                    await connection.execute(
                        "INSERT INTO outreach.ct_passes"
                        " (outreach_id, state, reason, detail, not_before, answers, pending)"
                        " VALUES (gen_random_uuid(), 'waiting', 'drain', 'x', '-infinity', $1, $2)", answers, pending
                    )  # fmt: skip
            (claimed,) = await passes.claim_due(10)
            assert claimed.origin == company.origin
            await run_exceptions(db)


async def run_exceptions(db: Database) -> None:
    """Count one more exception of a company that has had as many as the column holds."""
    async with db.connection() as connection:
        await connection.execute("UPDATE outreach.ct_passes SET exceptions = 2147483647")
        company = await connection.fetchval("SELECT outreach_id FROM outreach.ct_passes LIMIT 1")
    passes = ParkedCompanies(db, "a", "test")
    _, state = await passes.count_exception(Origin(outreach_id=company), None, "why", "trace")
    assert state == "stuck"
