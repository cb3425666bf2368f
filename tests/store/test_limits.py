"""The limits hold over all workers, exactly, by the database's clock."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest

from ct_stream.gate.toolbox_limits import ProbeLimits
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.store import batches
from ct_stream.store import limits as limits_module
from ct_stream.store.limits import DomainLease, SharedLimits
from ct_stream.store.parked import ParkedCompanies
from tests.store.parts import LIMITS, opened, parked, running

if TYPE_CHECKING:
    from ct_stream.store.database import Database
    from tests.conftest import DatabaseDsns


def limits(**changed: float) -> ProbeLimits:
    values = {name: getattr(LIMITS, name) for name in ProbeLimits.__slots__}
    return ProbeLimits(**(values | changed))


async def test_eight_workers_take_exactly_the_days_sessions(database: DatabaseDsns) -> None:
    async def worker(number: int) -> int:
        async with opened(database.gate) as db:
            shared = SharedLimits(db, f"worker-{number}", limits(smtp_per_day=100))
            async with running(*shared.batches):
                begun = await asyncio.gather(
                    *(shared.begin_probe(f"w{number}x{n}.example", f"w{number}x{n}.example") for n in range(30))
                )
                waits = [wait for wait in begun if isinstance(wait, Wait)]
                assert {wait.reason for wait in waits} <= {WaitReason.DAILY_CAP}
                return len(begun) - len(waits)

    assert sum(await asyncio.gather(*(worker(n) for n in range(8)))) == 100


async def test_mx_look_ups_of_all_workers_keep_to_the_rate(database: DatabaseDsns) -> None:
    together = asyncio.Barrier(4)

    begun: list[float] = []
    refused: list[float] = []

    async def worker(number: int) -> list[float]:
        async with opened(database.gate) as db:
            shared = SharedLimits(db, f"worker-{number}", limits(mx_per_second=40.0))
            async with running(*shared.batches):
                moments: list[float] = []

                async def look_up() -> None:
                    taken = moments if await shared.mx_lookup() is None else refused
                    taken.append(time.monotonic())

                await together.wait()
                begun.append(time.monotonic())
                await asyncio.gather(*(look_up() for _ in range(60)))
                return moments

    moments = sorted(moment for some in await asyncio.gather(*(worker(n) for n in range(4))) for moment in some)
    # The workers' statements come one after the other; each second between the first and the last has 40 slots more.
    most = 41 + 40 * (max(refused) - min(begun))
    assert 38 <= len(moments) <= most, "what has no slot within a second waits in Postgres"
    assert moments[-1] - moments[0] >= 0.9


async def test_slots_from_before_a_clock_was_set_back_delay_nobody(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "worker", limits(mx_per_second=40.0))
        async with running(*shared.batches):
            assert await shared.mx_lookup() is None
            async with db.connection() as connection:
                await connection.execute("UPDATE outreach.ct_rates SET tat = tat + interval '1 hour'")
            assert await shared.mx_lookup() is None
            wants = await asyncio.gather(*(shared.mx_lookup() for _ in range(60)))
            assert 35 <= wants.count(None) < 60, "and the rate is kept"


async def test_the_days_look_ups_end_at_midnight_utc(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "worker", limits(mx_per_day=5))
        async with running(*shared.batches):
            waits = await asyncio.gather(*(shared.mx_lookup() for _ in range(8)))
    refused = [wait for wait in waits if wait is not None]
    assert len(refused) == 3
    assert all(wait.reason is WaitReason.DAILY_CAP and 0 < (wait.after_s or 0) <= 86400 for wait in refused)


async def test_a_domain_has_one_session_at_a_time_and_a_pause_after_it(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db, opened(database.gate) as other_db:
        paused_2_s = limits(smtp_domain_pause_s=2.0)
        shared, other = SharedLimits(db, "a", paused_2_s), SharedLimits(other_db, "b", paused_2_s)
        async with running(*shared.batches, *other.batches):
            lease = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(lease, DomainLease)
            for again in (shared, other):
                busy = await again.begin_probe("acme.example", "acme.example")
                assert isinstance(busy, Wait)
                assert (busy.reason, busy.waits_on, busy.after_s) == (
                    WaitReason.DOMAIN_BUSY, "domain:acme.example", None,
                )  # fmt: skip
            lease.session_ended()
            await lease.release(talked=True)
            paused = await other.begin_probe("acme.example", "acme.example")
            assert isinstance(paused, Wait)
            assert 0 < (paused.after_s or 0) <= 2.0
            await asyncio.sleep(2.01)
            assert isinstance(await other.begin_probe("acme.example", "acme.example"), DomainLease)


async def test_the_next_session_of_a_pass_waits_for_the_pause(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "a", LIMITS)
        async with running(*shared.batches):
            lease = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(lease, DomainLease)
            assert await lease.next_session() is None
            lease.session_ended()
            begin = time.monotonic()
            assert await lease.next_session() is None
            assert time.monotonic() - begin >= 0.29


async def test_a_providers_places_are_limited_over_all_workers_and_an_end_wakes_who_waits(
    database: DatabaseDsns,
) -> None:
    async with opened(database.gate) as db, opened(database.gate) as other_db:
        shared, other = SharedLimits(db, "a", LIMITS), SharedLimits(other_db, "b", LIMITS)
        passes = ParkedCompanies(db, "a", "test")
        async with running(*shared.batches, *other.batches, passes.park):
            begun = await asyncio.gather(
                *((shared, other)[n % 2].begin_probe(f"c{n}.example", "bigmail.example") for n in range(10))
            )
            leases = [lease for lease in begun if isinstance(lease, DomainLease)]
            waits = [wait for wait in begun if isinstance(wait, Wait)]
            assert len(leases) == 3
            assert Counter(wait.waits_on for wait in waits) == {"places:bigmail.example": 7}
            company = parked(after_s=None, waits_on="places:bigmail.example")
            await passes.park(company)
            assert await passes.claim_due(10) == []
            await leases[0].release(talked=True)
            assert [resumed.origin for resumed in await passes.claim_due(10)] == [company.origin]


async def test_a_closed_provider_makes_only_its_companies_wait_and_lets_one_try(database: DatabaseDsns) -> None:
    admin = await asyncpg.connect(database.admin)
    await admin.execute(
        "INSERT INTO outreach.ct_guardrails (key, state, reason, next_try_at)"
        " VALUES ('provider:bigmail.example', 'closed', '3 companies were refused', now() - interval '1 s')"
    )
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "a", LIMITS)
        async with running(*shared.batches):
            first, second, elsewhere = await asyncio.gather(
                shared.begin_probe("a.example", "bigmail.example"),
                shared.begin_probe("b.example", "bigmail.example"),
                shared.begin_probe("c.example", "other.example"),
            )
    assert isinstance(first, DomainLease), "one company is tried"
    assert isinstance(second, Wait)
    assert second.reason is WaitReason.PROVIDER_CLOSED
    assert isinstance(elsewhere, DomainLease)
    next_try = await admin.fetchval("SELECT next_try_at - now() FROM outreach.ct_guardrails")
    assert 1190 < next_try.total_seconds() <= 1200, "twice as late as the first"
    await admin.close()


async def test_a_dead_workers_domain_is_free_once_its_lease_is_over(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        dead, alive = SharedLimits(db, "dead", LIMITS), SharedLimits(db, "alive", LIMITS)
        async with running(*dead.batches, *alive.batches):
            assert isinstance(await dead.begin_probe("acme.example", "acme.example"), DomainLease)
            admin = await asyncpg.connect(database.admin)
            await admin.execute("UPDATE outreach.ct_domains SET lease_until = now() - interval '1 s'")
            await admin.close()
            assert isinstance(await alive.begin_probe("acme.example", "acme.example"), DomainLease)


async def test_entering_a_provider_and_beginning_probes_do_not_deadlock(database: DatabaseDsns) -> None:
    """Another worker's batch of begins: the same domain at its first provider, then somebody at the second one."""
    begin = (
        "SELECT answer FROM outreach.ct_begin_probes("
        "$1, $2, $3, array_fill(false, ARRAY[cardinality($2::text[])]), $4, NULL, NULL, 20, 1000000, 10)"
    )
    enter = (
        "SELECT answer FROM outreach.ct_enter_provider("
        "'one', $1, 'acme.example', 'bbb.example', false, false, 1000000, 10)"
    )
    lease = uuid4()
    one, two, blocker = [await asyncpg.connect(database.gate) for _ in range(3)]
    await one.fetch(begin, "one", ["acme.example"], ["aaa.example"], [lease])
    async with blocker.transaction():  # holds the second provider for a moment, so that both stand behind it
        await blocker.execute("SELECT outreach.ct_lock_rate('TOOL-005')")
        entering = asyncio.create_task(one.fetch(enter, lease))
        await asyncio.sleep(0.1)
        beginning = asyncio.create_task(
            two.fetch(begin, "two", ["acme.example", "x.example"], ["aaa.example", "bbb.example"], [uuid4(), uuid4()])
        )
        await asyncio.sleep(0.1)
    entered, begun = await asyncio.gather(entering, beginning)
    assert [row["answer"] for row in entered] == ["granted"]
    assert [row["answer"] for row in begun] == ["domain_busy", "granted"]
    for connection in (one, two, blocker):
        await connection.close()


async def used(db: Database) -> int:
    """Return how many SMTPCheck units of the day are taken."""
    async with db.connection() as connection:
        taken: int = await connection.fetchval(
            "SELECT coalesce(sum(used), 0) FROM outreach.ct_usage WHERE tool_id = 'TOOL-005'"
        )
    return taken


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let who is cancelled wait for a slow Postgres."""
    monkeypatch.setattr(batches, "_UNCLAIMED_S", 60.0)


async def at_the_server(queue: batches.Batches[Any, Any]) -> None:
    """Come back when what was queued is under way."""
    await asyncio.sleep(0)
    assert len(queue) == 1
    for _ in range(10):
        if not len(queue):
            return
        await asyncio.sleep(0)
    raise AssertionError("nothing was sent")


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("is_sent", [True, False])
async def test_who_is_cancelled_before_the_answer_comes_takes_nothing(database: DatabaseDsns, is_sent: bool) -> None:
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "worker", LIMITS)
        async with running(*shared.batches):
            beginning = asyncio.create_task(shared.begin_probe("acme.example", "acme.example"))
            if is_sent:
                await at_the_server(shared.begin)
            else:
                await asyncio.sleep(0)
            await cancelled(beginning)
            assert (await used(db), shared.held) == (0, {})
            await asyncio.sleep(LIMITS.smtp_domain_pause_s)
            lease = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(lease, DomainLease), "the domain stayed taken"
            assert await used(db) == 1


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize(
    ("cap", "when", "taken"),
    [
        pytest.param(9, "in its pause", 1, id="in its pause"),
        pytest.param(9, "at the server", 1, id="while it takes its unit"),
        pytest.param(1, "at the server", 1, id="while it is refused one"),
    ],
)
async def test_a_further_session_that_is_cancelled_before_it_begins_takes_no_unit(
    database: DatabaseDsns, cap: int, when: str, taken: int
) -> None:
    async with opened(database.gate) as db:
        pause_s = 30.0 if when == "in its pause" else 0.0
        shared = SharedLimits(db, "worker", limits(smtp_domain_pause_s=pause_s, smtp_per_day=cap))
        async with running(*shared.batches):
            lease = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(lease, DomainLease)
            assert await lease.next_session() is None
            lease.session_ended()
            going_on = asyncio.create_task(lease.next_session())
            if when == "at the server":
                await at_the_server(shared.go_on)
            else:
                await asyncio.sleep(0.3)
                assert await used(db) == 1, "the unit is taken when the session may begin"
            await cancelled(going_on)
            await lease.release(talked=False)
            assert await used(db) == taken, "a session was had for a unit of another"


async def test_a_further_session_whose_answer_was_lost_takes_one_unit(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "worker", limits(smtp_domain_pause_s=0.0))
        fetch, lost = db.fetch, list[str]()

        async def fetch_and_lose(name: str, *args: Any) -> list[asyncpg.Record]:
            rows = await fetch(name, *args)
            if name == "go_on" and not lost:
                lost.append(name)
                raise ConnectionResetError("its answer was lost")
            return rows

        monkeypatch.setattr(db, "fetch", fetch_and_lose)
        async with running(*shared.batches):
            lease = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(lease, DomainLease)
            for session in (1, 2, 3):
                assert await lease.next_session() is None
                assert await used(db) == session
                lease.session_ended()
        assert lost


async def test_a_lease_that_began_no_session_gives_its_unit_to_one_that_waits_for_midnight(
    database: DatabaseDsns,
) -> None:
    async with opened(database.gate) as db:
        shared, passes = SharedLimits(db, "worker", limits(smtp_per_day=1)), ParkedCompanies(db, "worker", "test")
        async with running(*shared.batches, passes.park):
            lease = await shared.begin_probe("acme.example", "acme.example")
            capped = await shared.begin_probe("other.example", "other.example")
            assert isinstance(lease, DomainLease)
            assert isinstance(capped, Wait)
            assert (capped.reason, capped.waits_on) == (WaitReason.DAILY_CAP, "cap:TOOL-005")
            await passes.park(parked(after_s=capped.after_s, waits_on=capped.waits_on))
            assert await passes.claim_due(10) == []
            await lease.release(talked=False)
            assert len(await passes.claim_due(10)) == 1
            assert isinstance(await shared.begin_probe("other.example", "other.example"), DomainLease)


async def test_who_waits_for_midnight_is_woken_when_the_cap_is_raised(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        shared, passes = SharedLimits(db, "worker", limits(smtp_per_day=1)), ParkedCompanies(db, "worker", "test")
        raised = SharedLimits(db, "worker", limits(smtp_per_day=3))
        async with running(*shared.batches, passes.park):
            await raised.wake_capped()  # before the first unit of the day
            assert isinstance(await shared.begin_probe("acme.example", "acme.example"), DomainLease)
            for number in range(4):
                capped = await shared.begin_probe(f"{number}.example", f"{number}.example")
                assert isinstance(capped, Wait)
                await passes.park(parked(after_s=capped.after_s, waits_on=capped.waits_on))
            await shared.wake_capped()
            assert await passes.claim_due(10) == [], "the cap is as it was"
            await raised.wake_capped()
            await raised.wake_capped()  # of another worker
            assert len(await passes.claim_due(10)) == 2, "as many as the day has units left"


async def test_a_company_that_meets_the_cap_between_two_hosts_is_not_woken_for_a_unit(database: DatabaseDsns) -> None:
    """Its first host would be asked again each time, with the unit."""
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "worker", limits(smtp_per_day=1))
        async with running(*shared.batches):
            lease = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(lease, DomainLease)
            assert await lease.next_session() is None
            for wait in (await lease.enter("backup.example"), await lease.next_session()):
                assert wait is not None
                assert (wait.reason, wait.waits_on) == (WaitReason.DAILY_CAP, "")


END = (
    "SELECT outreach.ct_end_probes("
    "'worker', ARRAY['acme.example'], ARRAY[$1::uuid], ARRAY[0.0], ARRAY[false], ARRAY[NULL], ARRAY[NULL], ARRAY[0],"
    " 0.0)"
)


async def test_a_unit_goes_back_once_and_to_its_own_day(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db, opened(database.gate) as other:
        shared, quick = SharedLimits(db, "worker", LIMITS), SharedLimits(other, "quick", LIMITS)
        async with running(*shared.batches, *quick.batches), db.connection() as connection:
            today = await connection.fetchval("SELECT outreach.ct_utc_day()")
            for day, left in ((today, 1), (today - timedelta(days=1), 3)):
                await connection.execute("UPDATE outreach.ct_domains SET free_at = now()")
                assert isinstance(await shared.begin_probe("acme.example", "acme.example"), DomainLease)
                lease = await connection.fetchval("SELECT lease FROM outreach.ct_domains WHERE domain = 'acme.example'")
                assert isinstance(await quick.begin_probe(f"{left}.example", f"{left}.example"), DomainLease)
                await connection.execute("UPDATE outreach.ct_domains SET unit_day = $1 WHERE lease = $2", day, lease)
                for _ in range(2):  # the answer to the first was lost
                    await connection.execute(END, lease)
                assert await used(db) == left, "the new day has not paid for a unit of before midnight"
            await connection.execute(
                "UPDATE outreach.ct_domains SET lease_owner = 'worker', lease = $1 WHERE lease_owner IS NULL", lease
            )
            await connection.execute(END, uuid4())
            assert await used(db) == 3, "a lease that ran out is another worker's, with its unit"


async def test_an_end_whose_answer_was_lost_leaves_the_next_lease_of_the_same_worker_alone(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs again: the next lease of the domain would end with it, and a unit would come back twice."""
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "worker", limits(smtp_domain_pause_s=0.0))
        run, meanwhile = db.run, list[DomainLease | Wait]()

        async def lost(name: str, *args: Any) -> None:
            await run(name, *args)
            if name == "end_probes" and not meanwhile:
                meanwhile.append(await shared.begin_probe("acme.example", "acme.example"))
                raise ConnectionResetError("its answer was lost")

        monkeypatch.setattr(db, "run", lost)
        async with running(*shared.batches):
            first = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(first, DomainLease)
            await first.release(talked=False)
            [second] = meanwhile
            assert isinstance(second, DomainLease)
            assert await used(db) == 1
            busy = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(busy, Wait), "the second lease ended with the first"
            assert await second.next_session() is None
            second.session_ended()
            assert await second.next_session() is None


async def test_a_begin_whose_answer_was_lost_finds_its_lease_and_pays_no_second_unit(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "worker", LIMITS)
        fetch, begins = db.fetch, 0

        async def lost(name: str, *args: Any) -> list[asyncpg.Record]:
            nonlocal begins
            rows = await fetch(name, *args)
            begins += name == "begin_probes"
            if name == "begin_probes" and begins == 1:
                raise ConnectionResetError("its answer was lost")
            return rows

        monkeypatch.setattr(db, "fetch", lost)
        async with running(*shared.batches):
            begun = await asyncio.gather(*(shared.begin_probe("acme.example", "acme.example") for _ in range(2)))
            assert sorted(type(one).__name__ for one in begun) == ["DomainLease", "Wait"]
            assert (begins, await used(db)) == (2, 1)


@pytest.mark.parametrize("taken_by", ["other", "worker"])
async def test_a_pass_that_lost_its_domain_in_an_outage_begins_no_session_beside_the_one_that_has_it(
    database: DatabaseDsns, taken_by: str
) -> None:
    """A worker that was frozen, or whose Postgres was away, for longer than its lease."""
    async with opened(database.gate) as db, db.connection() as connection:
        shared, other = SharedLimits(db, "worker", LIMITS), SharedLimits(db, "other", LIMITS)
        takers = {"worker": shared, "other": other}
        passes = ParkedCompanies(db, "worker", "test")
        async with running(*shared.batches, *other.batches):
            late = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(late, DomainLease)
            assert await late.next_session() is None
            late.session_ended()
            await connection.execute("UPDATE outreach.ct_domains SET lease_until = now() - interval '1 s'")
            holder = await takers[taken_by].begin_probe("acme.example", "acme.example")
            assert isinstance(holder, DomainLease)
            assert await holder.next_session() is None
            for wait in (await late.next_session(), await late.enter("backup.example")):
                assert wait is not None
                assert (wait.reason, wait.waits_on) == (WaitReason.DOMAIN_BUSY, "domain:acme.example")
            assert await used(db) == 2, "nothing is paid for a session that does not begin"
            await connection.execute("UPDATE outreach.ct_domains SET lease_until = now() + interval '1 s'")
            await passes.renew_leases([], {late.lease: "acme.example"})
            await late.release(talked=True)
            row = await connection.fetchrow(
                "SELECT lease_owner, provider, talked_at, lease_until < now() + interval '2 s' AS as_it_was"
                " FROM outreach.ct_domains"
            )
            assert tuple(row or ()) == (taken_by, "acme.example", None, True), (
                "its end and its renewal are not the holder's"
            )
            holder.session_ended()
            assert await holder.next_session() is None
            holder.session_ended()
            await holder.release(talked=False)
            paused = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(paused, Wait)
            assert (paused.after_s or 0) > 0


async def test_a_lease_that_ran_out_and_was_taken_by_nobody_is_continued(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db, db.connection() as connection:
        shared = SharedLimits(db, "worker", LIMITS)
        async with running(*shared.batches):
            lease = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(lease, DomainLease)
            assert await lease.next_session() is None
            lease.session_ended()
            await connection.execute("UPDATE outreach.ct_domains SET lease_until = now() - interval '1 s'")
            assert await lease.next_session() is None
            assert await connection.fetchval("SELECT lease_until > now() + interval '10 s' FROM outreach.ct_domains")


async def test_a_lease_that_ran_out_takes_no_place_that_another_has(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db, db.connection() as connection:
        shared = SharedLimits(db, "worker", limits(smtp_per_provider=1, smtp_domain_pause_s=0.0))
        async with running(*shared.batches):
            late = await shared.begin_probe("a.example", "bigmail.example")
            assert isinstance(late, DomainLease)
            assert await late.next_session() is None
            late.session_ended()
            await connection.execute("UPDATE outreach.ct_domains SET lease_until = now() - interval '1 s'")
            assert isinstance(await shared.begin_probe("b.example", "bigmail.example"), DomainLease)
            await ParkedCompanies(db, "worker", "test").renew_leases([], dict(shared.held))
            wait = await late.next_session()
            assert wait is not None
            assert (wait.reason, wait.waits_on) == (WaitReason.PROVIDER_BUSY, "places:bigmail.example")


async def test_a_providers_own_company_stops_nobody_who_has_a_place_there(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "worker", limits(smtp_per_provider=2, smtp_domain_pause_s=0.0))
        async with running(*shared.batches):
            leases = [
                await shared.begin_probe(domain, "bigmail.example")
                for domain in ("a.example", "b.example", "bigmail.example")
            ]
            for session in (1, 2):
                for lease in leases:
                    assert isinstance(lease, DomainLease)
                    assert await lease.next_session() is None, session
                    lease.session_ended()


@pytest.mark.parametrize("session", [1, 2])
async def test_no_session_begins_when_the_grant_may_be_over(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch, session: int
) -> None:
    """This process was frozen between the grant and the connection: another may have the domain."""
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "worker", limits(smtp_domain_pause_s=0.0))
        async with running(*shared.batches):
            lease = await shared.begin_probe("acme.example", "acme.example")
            assert isinstance(lease, DomainLease)
            if session == 2:
                assert await lease.next_session() is None
                lease.session_ended()
            fetch = db.fetch

            async def answer_late(name: str, *args: Any) -> list[asyncpg.Record]:
                rows = await fetch(name, *args)
                await asyncio.sleep(0.3)
                return rows

            monkeypatch.setattr(db, "fetch", answer_late)
            monkeypatch.setattr(limits_module, "_SURE_S", 0.2)
            if session == 1:
                await asyncio.sleep(0.3)
            wait = await lease.next_session()
            assert wait is not None
            assert (wait.reason, wait.waits_on) == (WaitReason.OUR_MACHINE, "")
            await lease.release(talked=False)
            assert await used(db) == session - 1, "its unit comes back"


async def test_begins_ends_and_renewals_of_the_same_domains_do_not_deadlock(
    database: DatabaseDsns, caplog: pytest.LogCaptureFixture
) -> None:
    """Begins go by provider, ends by domain: in two orders, where companies share providers."""
    together = [(f"{n}.example", f"{7 - n}.shared.example") for n in range(8)]

    async def over_and_over(shared: SharedLimits, passes: ParkedCompanies) -> None:
        for _ in range(60):
            for begun in await asyncio.gather(*(shared.begin_probe(*pair) for pair in together)):
                if isinstance(begun, DomainLease):
                    await begun.next_session()
                    begun.session_ended()
                    await begun.next_session()
                    await passes.renew_leases([], dict(shared.held))
                    endings.append(asyncio.create_task(begun.release(talked=False)))
            await asyncio.sleep(0)

    endings: list[asyncio.Task[None]] = []
    free = limits(smtp_domain_pause_s=0.0, smtp_per_provider=100)
    async with AsyncExitStack() as stack:
        workers = []
        for number in range(4):
            db = await stack.enter_async_context(opened(database.gate))
            workers.append(
                (SharedLimits(db, f"worker-{number}", free), ParkedCompanies(db, f"worker-{number}", "test"))
            )
            await stack.enter_async_context(running(*workers[-1][0].batches))
        with caplog.at_level(logging.INFO):
            await asyncio.gather(*(over_and_over(*one) for one in workers))
            await asyncio.gather(*endings)
    assert "deadlock" not in caplog.text


async def test_the_servers_of_a_companys_own_domain_need_no_place_whatever_name_the_spine_has(
    database: DatabaseDsns,
) -> None:
    """eu.acme.example and us.acme.example at mx.acme.example: the company itself, as for evidence and guardrails."""
    async with opened(database.gate) as db:
        shared = SharedLimits(db, "worker", limits(smtp_per_provider=1))
        async with running(*shared.batches):
            eu = await shared.begin_probe("eu.acme.example", "acme.example")
            us = await shared.begin_probe("us.acme.example", "acme.example")
            assert isinstance(eu, DomainLease)
            assert isinstance(us, DomainLease), "a place at its own server was asked for"
            assert await eu.next_session() is None
            assert await eu.enter("bigmail.example") is None
            busy = await shared.begin_probe("other.example", "bigmail.example")
            assert isinstance(busy, Wait), "the place at the shared provider is taken"
            assert busy.reason is WaitReason.PROVIDER_BUSY
