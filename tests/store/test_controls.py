"""Whose word is good: proofs of our own way, as all workers share them."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import asyncpg
import pytest

from ct_stream.gate.evidence import Way
from ct_stream.gate.questions import ControlAnswer, ControlKind
from ct_stream.gate.records import FailedAt
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.store.control_ledger import ControlLedger
from ct_stream.store.parked import ParkedCompanies
from tests.store.parts import opened, parked, running, seen

if TYPE_CHECKING:
    from uuid import UUID

    from ct_stream.store.database import Database
    from tests.conftest import DatabaseDsns

NOW = datetime(2026, 1, 7, 9, 30, tzinfo=UTC)


async def database_says(db: Database, statement: str) -> None:
    async with db.connection() as connection:
        await connection.execute(statement)


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def state(ok: float, trouble: tuple[float, float]) -> Way:
    return Way(
        ok_begun_at=at(ok), ok_detail="", failed_at=at(0), failed_detail="", trouble_from=at(trouble[0]),
        trouble_until=at(trouble[1]), proven_since=at(0),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "failed", "void"),
    [(-20, -15, False), (-15, -5, True), (5, 8, True), (295, 299, True), (299, 301, True), (305, 310, False)],
)
def test_an_answer_from_inside_our_own_trouble_is_void(asked: float, failed: float, void: bool) -> None:
    outage = state(ok=300, trouble=(-10, 300))
    assert outage.voids(at(asked), at(failed)) is void


def test_a_control_proves_only_what_failed_before_it_began() -> None:
    assert state(ok=10, trouble=(0, 0)).proves(at(9))
    assert not state(ok=10, trouble=(0, 0)).proves(at(10))
    assert not state(ok=10, trouble=(0, 0)).proves(at(11))


async def test_a_control_is_asked_once_for_all_that_wait_and_wakes_them(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        passes, controls = ParkedCompanies(db, "worker", "test"), ControlLedger(db, interval_s=0.0)
        async with running(passes.park):
            for kind in ControlKind:
                first = await controls.begin(kind)
                assert first is not None, "a worker asks nobody before its first controls"
                await controls.succeeded(kind, first, "works")
            assert await controls.begin(ControlKind.DNS) is None, "nobody waits"
            before = db.now() - timedelta(seconds=1)
            companies = [
                parked(
                    after_s=None,
                    waits_on="control:dns",
                    reason=WaitReason.CONTROL,
                    asked_at=before,
                    failed=FailedAt.NOW,
                )
                for _ in range(3)
            ]
            await asyncio.gather(*(passes.park(company) for company in companies))
            begun = await asyncio.gather(*(controls.begin(ControlKind.DNS) for _ in range(4)))
            [begun_at] = [moment for moment in begun if moment is not None]
            assert await passes.claim_due(10) == []
            await controls.succeeded(ControlKind.DNS, begun_at, "control.example resolves")
            due = await passes.claim_due(10)
            assert len(due) == 3
            assert {company.waits_on for company in due} == {"control:dns"}
            asked_at, failed_at = due[0].asked_at, due[0].failed_at
            assert asked_at is not None
            assert failed_at is not None
            again = await controls.confirm(ControlKind.DNS, (asked_at, failed_at))
            assert isinstance(again, Wait), "nothing proved our way before it was asked"
            assert (again.after_s, again.waits_on) == (0.0, "control:dns")
            assert await controls.begin(ControlKind.DNS) is not None, "who asks again needs the next proof"
            assert await controls.begin(ControlKind.SMTP) is not None, "who needs both waits for one after the other"
            await controls.succeeded(ControlKind.DNS, begun_at, "control.example resolves")
            proof = await controls.confirm(ControlKind.DNS, (begun_at, failed_at))
            assert isinstance(proof, ControlAnswer)
            assert isinstance(await controls.confirm(ControlKind.DNS, None), Wait), "what failed just now needs another"
            assert isinstance(await controls.confirm(ControlKind.SMTP, (begun_at, failed_at)), Wait)


async def test_a_failed_control_marks_the_stretch_back_to_the_last_proof(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=0.0)
        before = db.now()
        await controls.succeeded(ControlKind.SMTP, before, "greets")
        await controls.failed(ControlKind.SMTP, "no answer")
        broken = await controls.state(ControlKind.SMTP)
        assert broken.is_failing
        assert broken.trouble_from == before
        assert broken.voids(db.now(), db.now())
        await controls.succeeded(ControlKind.SMTP, db.now(), "greets again")
        mended = await controls.state(ControlKind.SMTP)
        assert not mended.is_failing
        assert mended.voids(before, before + timedelta(milliseconds=1))
        assert not mended.voids(mended.trouble_until, mended.trouble_until + timedelta(seconds=1))


# ---------------------------------------------------------------- the chain of proofs (ADR-CT-IMO-024)


@pytest.mark.parametrize(
    ("since", "failed", "asked", "unbroken"),
    [(0, -1, 1, True), (0, -1, 0, True), (5, -1, 1, False), (0, 3, 1, False), (0, 3, 4, False)],
)
def test_a_chain_covers_what_was_asked_after_it_began(
    since: float, failed: float, asked: float, unbroken: bool
) -> None:
    chain = Way(
        ok_begun_at=at(10), ok_detail="", failed_at=at(failed), failed_detail="", trouble_from=at(-100),
        trouble_until=at(-100), proven_since=at(since),
    )  # fmt: skip
    assert chain.unbroken(at(asked)) is unbroken


async def test_proofs_that_follow_each_other_closely_are_one_chain(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=1.0)
        assert not (await controls.state(ControlKind.DNS)).unbroken(db.now())
        first = db.now() - timedelta(seconds=60)
        at_once = "UPDATE outreach.ct_controls SET proven_at = ok_begun_at WHERE kind = 'dns'"
        await controls.succeeded(ControlKind.DNS, first, "resolves")
        await database_says(db, at_once)
        asked = first + timedelta(seconds=1)
        await controls.succeeded(ControlKind.DNS, first + timedelta(seconds=4.9), "resolves")
        await database_says(db, at_once)
        assert (await controls.state(ControlKind.DNS)).unbroken(asked)
        await controls.succeeded(ControlKind.DNS, first + timedelta(seconds=30), "resolves")
        apart = await controls.state(ControlKind.DNS)
        assert apart.proven_since == first + timedelta(seconds=30), "nothing is known of the time between"
        assert not apart.unbroken(asked)


async def test_a_failure_breaks_the_chain_and_an_older_proof_does_not_mend_it(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=1.0)
        before = db.now()
        await controls.succeeded(ControlKind.SMTP, before, "greets")
        await controls.failed(ControlKind.SMTP, "no answer")
        await controls.succeeded(ControlKind.SMTP, before + timedelta(microseconds=1), "greets, begun before that")
        assert not (await controls.state(ControlKind.SMTP)).unbroken(db.now())
        mended = db.now()
        await controls.succeeded(ControlKind.SMTP, mended, "greets again")
        state = await controls.state(ControlKind.SMTP)
        assert state.proven_since == mended
        assert not state.unbroken(before)


async def test_a_good_talk_after_a_gap_begins_a_chain_of_its_own(database: DatabaseDsns) -> None:
    """Its greeting says so too, in a statement of its own, which may come later."""
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=1.0)
        long_ago = db.now() - timedelta(seconds=60)
        await controls.succeeded(ControlKind.SMTP, long_ago, "greets")
        await database_says(db, "UPDATE outreach.ct_controls SET proven_at = proven_since WHERE kind = 'smtp'")
        begun_at = db.now()
        await controls.good_talk(time.monotonic(), "mx.acme.example")
        state = await controls.state(ControlKind.SMTP)
        assert state.proves(begun_at - timedelta(seconds=30))
        assert not state.unbroken(begun_at - timedelta(seconds=30)), "nothing is known of the time between"


async def test_a_greeting_extends_the_chain_but_confirms_no_failed_answer(database: DatabaseDsns) -> None:
    """A server may greet us, and refuse us at the next command: port 25 is open, and no more is known."""
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=0.0)
        await controls.greeting(asyncio.get_running_loop().time() - 0.5)
        state = await controls.state(ControlKind.SMTP)
        assert state.unbroken(db.now())
        assert not state.unbroken(db.now() - timedelta(seconds=1))
        assert not state.proves(db.now() - timedelta(seconds=1))


async def test_a_clock_of_postgres_that_was_set_back_makes_no_proof_and_hides_no_failure(
    database: DatabaseDsns,
) -> None:
    """What we stamp by our own clock lies in its future then, and so does what it stamped before."""
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=30.0)
        assert db._clock_base is not None
        base, looked_at = db._clock_base
        db._clock_base = (base + timedelta(hours=1), looked_at)
        await controls.greeting(time.monotonic())
        await controls.good_talk(time.monotonic(), "mx.acme.example")
        await controls.failed(ControlKind.SMTP, "port 25 is blocked")
        state = await controls.state(ControlKind.SMTP)
        assert state.is_failing
        db._clock_base = (base, looked_at)
        before = db.now()
        hour = "ok_begun_at = ok_begun_at + interval '1 hour', proven_since = ok_begun_at + interval '1 hour'"
        await controls.succeeded(ControlKind.SMTP, db.now(), "greets")
        await database_says(db, f"UPDATE outreach.ct_controls SET {hour} WHERE kind = 'smtp'")
        state = await controls.state(ControlKind.SMTP)
        assert not state.proves(before)
        assert not state.unbroken(before)
        again = db.now()
        await controls.succeeded(ControlKind.SMTP, again, "greets")
        state = await controls.state(ControlKind.SMTP)
        assert state.ok_begun_at == again
        assert state.unbroken(db.now()), "a new chain begins at once"


async def test_a_clock_of_postgres_that_was_set_back_is_no_failure_of_last_week(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=30.0)
        await controls.failed(ControlKind.SMTP, "port 25 was blocked")
        await controls.succeeded(ControlKind.SMTP, db.now(), "greets")
        ahead = ", ".join(f"{name} = {name} + interval '5 min'" for name in ("ok_begun_at", "started_at", "proven_at"))
        await database_says(
            db,
            f"UPDATE outreach.ct_controls SET {ahead}, failed_at = failed_at - interval '7 days' WHERE kind = 'smtp'",
        )
        assert not (await controls.state(ControlKind.SMTP)).is_failing
        await controls.failed(ControlKind.SMTP, "and now it is again")
        assert (await controls.state(ControlKind.SMTP)).is_failing
        begun_at = await controls.begin(ControlKind.SMTP)
        assert begun_at is not None, "it must be asked again"
        await controls.succeeded(ControlKind.SMTP, begun_at, "greets")
        assert not (await controls.state(ControlKind.SMTP)).is_failing


_STAMPS = ("started_at", "ok_begun_at", "failed_at", "proven_since", "proven_at", "trouble_from", "trouble_until")


async def server_now(db: Database) -> datetime:
    """Return the server's time: ours lags behind by what its last answer took, on a busy machine by tens of ms.

    A proof that begins so soon after a failure would count as begun before it.
    """
    async with db.connection() as connection:
        moment: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return moment


@pytest.mark.parametrize("has_failed", [False, True])
async def test_after_a_clock_was_set_back_companies_are_decided_again_at_once(
    database: DatabaseDsns, has_failed: bool
) -> None:
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=30.0)
        await controls.succeeded(ControlKind.SMTP, await server_now(db), "greets")
        if has_failed:
            await controls.failed(ControlKind.SMTP, "port 25 is blocked")
            await controls.succeeded(ControlKind.SMTP, await server_now(db), "greets")
        before = await server_now(db)
        ahead = ", ".join(f"{name} = {name} + interval '1 hour'" for name in _STAMPS)
        await database_says(db, f"UPDATE outreach.ct_controls SET {ahead} WHERE kind = 'smtp'")
        state = await controls.state(ControlKind.SMTP)
        assert not state.is_failing
        assert not state.proves(before - timedelta(hours=1)), "no proof at all is left"
        assert state.voids(before, await server_now(db))
        await controls.succeeded(ControlKind.SMTP, await server_now(db), "greets")
        asked_at = await server_now(db)
        await controls.greeting(time.monotonic())
        await controls.succeeded(ControlKind.SMTP, await server_now(db), "greets")
        state = await controls.state(ControlKind.SMTP)
        assert state.unbroken(asked_at)
        assert not state.unbroken(before)
        assert not state.voids(asked_at, await server_now(db))


async def test_a_clock_that_catches_up_brings_no_old_proof_back(database: DatabaseDsns) -> None:
    """What lies ahead is forgotten by whoever reads it: nobody may write until it lies behind."""
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=30.0)
        await controls.succeeded(ControlKind.SMTP, db.now(), "greets")
        ahead = ", ".join(f"{name} = {name} + interval '1 hour'" for name in _STAMPS)
        await database_says(db, f"UPDATE outreach.ct_controls SET {ahead} WHERE kind = 'smtp'")
        assert not (await controls.state(ControlKind.SMTP)).unbroken(db.now())
        async with db.connection() as connection:
            row = await connection.fetchrow(
                "SELECT proven_since = 'infinity' AS forgotten, outreach.ct_control_is_ahead(c) AS is_ahead "
                "FROM outreach.ct_controls AS c WHERE kind = 'smtp'"
            )
        assert row is not None
        assert (row["forgotten"], row["is_ahead"]) == (True, False)


async def test_what_was_broken_before_a_clock_was_set_back_is_mended_by_the_first_proof(
    database: DatabaseDsns,
) -> None:
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=30.0)
        await controls.succeeded(ControlKind.SMTP, db.now(), "greets")
        await controls.failed(ControlKind.SMTP, "port 25 is blocked")
        ahead = ", ".join(f"{name} = {name} + interval '1 hour'" for name in _STAMPS)
        await database_says(db, f"UPDATE outreach.ct_controls SET {ahead} WHERE kind = 'smtp'")
        assert (await controls.state(ControlKind.SMTP)).is_failing
        begun_at = await controls.begin(ControlKind.SMTP)
        assert begun_at is not None
        await controls.succeeded(ControlKind.SMTP, begun_at + timedelta(hours=1), "begun before the clock was set back")
        assert (await controls.state(ControlKind.SMTP)).is_failing
        await controls.succeeded(ControlKind.SMTP, begun_at, "greets")
        assert not (await controls.state(ControlKind.SMTP)).is_failing


async def test_a_clock_that_was_set_is_followed_at_the_next_look(database: DatabaseDsns) -> None:
    """Else a refusal of this minute would be an hour old, and settled."""
    async with opened(database.gate) as db:
        assert db._clock_base is not None
        base, looked_at = db._clock_base
        db._clock_base = (base + timedelta(hours=1), looked_at)
        await ControlLedger(db, interval_s=30.0).state(ControlKind.DNS)
        assert abs(db.now() - base) < timedelta(minutes=1)


async def test_a_proof_that_ends_in_the_future_bridges_no_gap(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=1.0)
        await controls.succeeded(ControlKind.SMTP, db.now(), "greets")
        stamps = ("started_at", "ok_begun_at", "proven_since")
        back = ", ".join(f"{name} = {name} - interval '10 min'" for name in stamps)
        await database_says(
            db, f"UPDATE outreach.ct_controls SET {back}, proven_at = proven_at + interval '50 min' WHERE kind = 'smtp'"
        )
        await controls.good_talk(time.monotonic(), "mx.acme.example")
        state = await controls.state(ControlKind.SMTP)
        assert not state.unbroken(db.now() - timedelta(minutes=5)), "nothing proved those ten minutes"


async def test_a_talk_from_before_a_failure_ends_no_trouble(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=30.0)
        await controls.succeeded(ControlKind.SMTP, db.now() - timedelta(seconds=60), "greets")
        begun_at = time.monotonic()
        await asyncio.sleep(0.05)
        await controls.failed(ControlKind.SMTP, "port 25 is blocked")
        await controls.good_talk(begun_at, "mx.acme.example")
        asked_at = db.now()
        state = await controls.state(ControlKind.SMTP)
        assert state.is_failing
        assert state.voids(asked_at, asked_at + timedelta(seconds=5)), "it is not over"
        await controls.succeeded(ControlKind.SMTP, db.now(), "greets")
        state = await controls.state(ControlKind.SMTP)
        assert state.voids(asked_at, db.now())
        assert not state.voids(db.now(), db.now() + timedelta(seconds=5))


def test_a_sign_is_worth_a_statement_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("ct_stream.store.control_ledger.time", SimpleNamespace(monotonic=lambda: now))
    controls = ControlLedger(cast("Any", None), 30.0)
    assert (controls.is_due("greeting"), controls.is_due("good_talk")) == (True, True), "each kind for itself"
    now = 100.9
    assert (controls.is_due("greeting"), controls.is_due("good_talk")) == (False, False)
    now = 101.1
    assert (controls.is_due("greeting"), controls.is_due("greeting")) == (True, False)


# ---------------------------------------------------------------- whose way it is (ADR-CT-IMO-033)


async def test_the_way_of_one_worker_says_nothing_of_another_ones(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        one, two = ControlLedger(db, 0.0, "one/1/a"), ControlLedger(db, 0.0, "two/1/b")
        await seen(db, "one/1/a")
        before = db.now()
        await one.succeeded(ControlKind.SMTP, await server_now(db), "takes MAIL FROM")
        await two.failed(ControlKind.SMTP, "no answer")
        ways = await two.of_runs(["one/1/a", "two/1/b", "three/1/c"])
        assert ways.keys() == {"one/1/a", "two/1/b"}
        assert ways["one/1/a"].ways[ControlKind.SMTP].proves(before)
        assert not ways["one/1/a"].ways[ControlKind.SMTP].is_failing
        assert ways["two/1/b"].ways[ControlKind.SMTP].is_failing
        assert (ways["one/1/a"].is_gone, ways["two/1/b"].is_gone) == (False, False), "itself is never gone"
        assert (await one.of_runs(["two/1/b"]))["two/1/b"].is_gone, "nobody has seen it"


@pytest.mark.parametrize("sign", ["a good talk", "a greeting"])
async def test_a_good_talk_mends_no_way(database: DatabaseDsns, sign: str) -> None:
    """Whoever answers in the place of others talks as well as they do."""
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=0.0)
        await controls.succeeded(ControlKind.SMTP, await server_now(db), "takes MAIL FROM")
        await controls.failed(ControlKind.SMTP, "somebody answers in its place")
        await asyncio.sleep(0.02)
        if sign == "a greeting":
            await controls.greeting(time.monotonic())
        else:
            await controls.good_talk(time.monotonic(), "mx.acme.example")
        state = await controls.state(ControlKind.SMTP)
        assert state.is_failing
        assert not state.proves(state.failed_at)
        assert state.was_astray(db.now())


async def test_a_good_talk_is_no_control_so_nothing_heard_since_the_last_one_counts_when_the_next_fails(
    database: DatabaseDsns,
) -> None:
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=0.0)
        begun_at = await server_now(db)
        await controls.succeeded(ControlKind.SMTP, begun_at, "takes MAIL FROM")
        await asyncio.sleep(0.02)
        heard_at = await server_now(db)
        await asyncio.sleep(0.02)
        await controls.good_talk(time.monotonic(), "mx.acme.example")
        await controls.failed(ControlKind.SMTP, "somebody answers in its place")
        state = await controls.state(ControlKind.SMTP)
        assert state.control_at == begun_at
        assert state.was_astray(heard_at)
        assert not state.was_astray(begun_at - timedelta(seconds=1))


async def test_an_earlier_stretch_is_not_forgotten(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=0.0)
        await controls.succeeded(ControlKind.SMTP, await server_now(db), "takes MAIL FROM")
        await asyncio.sleep(0.01)
        await controls.failed(ControlKind.SMTP, "no answer")
        an_hour = ", ".join(
            f"{name} = {name} - interval '1 hour'"
            for name in ("control_at", "ok_begun_at", "failed_at", "trouble_from")
        )
        ended = "trouble_until = clock_timestamp() - interval '50 minutes'"
        await database_says(db, f"UPDATE outreach.ct_controls SET {an_hour}, {ended} WHERE kind = 'smtp'")
        await controls.succeeded(ControlKind.SMTP, await server_now(db), "takes MAIL FROM")
        await controls.failed(ControlKind.SMTP, "no answer again")
        state = await controls.state(ControlKind.SMTP)
        [(begin, end)] = state.earlier
        assert timedelta(minutes=9) < end - begin < timedelta(minutes=11)
        assert state.was_astray(begin + timedelta(minutes=1))
        assert not state.was_astray(end + timedelta(minutes=1))
        async with db.connection() as connection:
            asked = "SELECT outreach.ct_was_astray(ARRAY['worker'], $1, $2)"
            minute = timedelta(minutes=1)
            assert await connection.fetchval(asked, begin + minute, begin + 2 * minute)
            assert not await connection.fetchval(asked, end + minute, end + 2 * minute)
            assert not await connection.fetchval(asked.replace("worker", "x"), begin + minute, end)


async def test_a_way_that_breaks_soon_after_its_first_success_is_astray_since_that(database: DatabaseDsns) -> None:
    """Its first control had failed; both are one stretch, but before the success nothing was heard."""
    async with opened(database.gate) as db:
        controls = ControlLedger(db, interval_s=0.0)
        await controls.failed(ControlKind.SMTP, "no answer")
        await asyncio.sleep(0.01)
        begun_at = await server_now(db)
        await controls.succeeded(ControlKind.SMTP, begun_at, "takes MAIL FROM")
        await asyncio.sleep(0.01)
        heard_at = await server_now(db)
        await controls.failed(ControlKind.SMTP, "no answer")
        assert (await controls.state(ControlKind.SMTP)).was_astray(heard_at)
        async with db.connection() as connection:
            asked = "SELECT outreach.ct_was_astray(ARRAY['worker'], $1, $1)"
            assert await connection.fetchval(asked, heard_at)


async def test_a_control_is_due_at_first_and_then_each_time_its_window_is_over(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        controls = ControlLedger(db, 0.0, window_s=600.0)
        for _ in range(2):
            begun_at = await controls.begin(ControlKind.SMTP)
            assert begun_at is not None
            await controls.succeeded(ControlKind.SMTP, begun_at, "takes MAIL FROM")
            assert await controls.begin(ControlKind.SMTP) is None, "its window is not over"
            await controls.good_talk(time.monotonic(), "mx.acme.example")
            later = "control_at = control_at - interval '601 seconds'"
            await database_says(db, f"UPDATE outreach.ct_controls SET {later} WHERE kind = 'smtp'")


# ---------------------------------------------------------------- who waits for it


async def waiting(db: Database, by: str, *, waits_on: str = "control:smtp") -> UUID:
    """Park a company as this worker run does; return its id."""
    passes = ParkedCompanies(db, by, "test")
    company = parked(after_s=None, waits_on=waits_on, reason=WaitReason.CONTROL, asked_at=db.now(), failed=FailedAt.NOW)
    async with running(passes.park):
        await passes.park(company)
    return company.origin.outreach_id


async def test_a_proof_wakes_only_who_waits_for_the_worker_that_proved(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        mine, theirs = await waiting(db, "one/1/a"), await waiting(db, "two/1/b")
        await asyncio.sleep(0.01)
        await ControlLedger(db, 0.0, "one/1/a").succeeded(ControlKind.SMTP, await server_now(db), "takes MAIL FROM")
        [due] = await ParkedCompanies(db, "three/1/c", "test").claim_due(10)
        assert (due.origin.outreach_id, due.met_by, due.waits_on) == (mine, "one/1/a", "control:smtp")
        assert theirs != mine


async def test_who_waits_for_a_worker_whose_way_is_broken_is_taken_over(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        company = await waiting(db, "broken/1/a")
        broken, whole = ControlLedger(db, 0.0, "broken/1/a"), ParkedCompanies(db, "whole/1/b", "test")
        await broken.succeeded(ControlKind.SMTP, await server_now(db) - timedelta(seconds=9), "takes MAIL FROM")
        await seen(db, "broken/1/a", "whole/1/b")
        assert await whole.to_take_over() == []
        await broken.failed(ControlKind.SMTP, "no answer")
        names = await whole.to_take_over()
        assert await ParkedCompanies(db, "broken/1/a", "test").to_take_over() == [], "its own are not taken from itself"
        assert await whole.claim_due(10, may_ask=False, take_over=names) == [], "a broken one takes nobody's"
        assert [c.origin.outreach_id for c in await whole.claim_due(10, take_over=names)] == [company]


async def test_who_waits_for_a_worker_that_is_gone_is_woken(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        company = await waiting(db, "gone/1/a")
        await seen(db, "gone/1/a")
        passes = ParkedCompanies(db, "other/1/b", "test")
        await passes.wake_sleepers(10)
        assert await passes.claim_due(10) == []
        admin = await asyncpg.connect(database.admin)
        await admin.execute("SET session_replication_role = replica")  # a trigger dates what is written
        await admin.execute("UPDATE outreach.ct_workers SET seen_at = clock_timestamp() - interval '31 seconds'")
        await admin.close()
        await passes.wake_sleepers(10)
        assert [c.origin.outreach_id for c in await passes.claim_due(10)] == [company]


async def test_what_a_worker_puts_away_for_its_own_way_is_for_those_whose_way_is_proven(
    database: DatabaseDsns,
) -> None:
    async with opened(database.gate) as db:
        company = await waiting(db, "broken/1/a", waits_on="way")
        broken, whole = ParkedCompanies(db, "broken/1/a", "test"), ParkedCompanies(db, "whole/1/b", "test")
        assert (await broken.count_for_own_way(10), await whole.count_for_own_way(10)) == (1, 0)
        assert await broken.claim_due(10, may_ask=False, take_over=[]) == []
        assert [c.origin.outreach_id for c in await whole.claim_due(10)] == [company]


async def test_a_worker_whose_way_is_broken_goes_on_with_what_needs_no_network(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        passes = ParkedCompanies(db, "broken/1/a", "test")
        async with running(passes.park):
            quiet = {WaitReason.SPINE_GRACE, WaitReason.SPINE_CONTROL, WaitReason.ROW_HELD}
            for reason in WaitReason:
                await passes.park(parked(reason=reason))
            assert {c.reason for c in await passes.claim_due(100, may_ask=False)} == quiet
            assert len(await passes.claim_due(100)) == len(WaitReason) - len(quiet)
