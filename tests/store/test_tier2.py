"""One paid attempt for each company, for ever, and the month's budget to the last call."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID, uuid4

import asyncpg
import pytest

from ct_stream.gate.questions import VerifyAnswer, VerifyStatus
from ct_stream.gate.toolbox_limits import PaidLimits
from ct_stream.gate.waits import WaitReason
from ct_stream.store.ledger import Ledger
from ct_stream.store.paid_attempts import IN_A_ROW, PaidAttempts, Taken, Wanted
from ct_stream.store.parked import ParkedCompanies
from ct_stream.store.queries import query
from tests.store.parts import opened, parked, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ct_stream.store.database import Database
    from tests.conftest import DatabaseDsns

Admin: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

MANY = PaidLimits(per_second=100_000.0, per_month=1_000_000, usd_per_month=1_000_000.0, usd_per_call=0.004)
VALID = VerifyAnswer(status=VerifyStatus.VALID, detail="the vendor says ok")
NO_USE = VerifyAnswer(status=VerifyStatus.NO_ANSWER, detail="the vendor answers HTTP 500")


def limits(**changed: float) -> PaidLimits:
    values = {name: getattr(MANY, name) for name in PaidLimits.__slots__}
    return PaidLimits(**(values | changed))


def wanted(outreach_id: UUID | None = None, address: str = "info@acme.example") -> Wanted:
    return Wanted(outreach_id=outreach_id or uuid4(), address=address, token=uuid4())


@pytest.fixture
async def admin(database: DatabaseDsns) -> AsyncIterator[Admin]:
    connection = await asyncpg.connect(database.admin)
    yield connection
    await connection.close()


async def worked_once(attempts: PaidAttempts) -> None:
    """Let the vendor show that it works: until then calls go one at a time."""
    first = wanted()
    assert (await attempts.take(first)).answer == "granted"
    await attempts.store(first, VALID)


async def counts(attempts: PaidAttempts, number: int) -> Counter[str]:
    return Counter(taken.answer for taken in await asyncio.gather(*(attempts.take(wanted()) for _ in range(number))))


def month(moment: datetime, back: int = 0) -> datetime:
    months = moment.year * 12 + moment.month - 1 - back
    return datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC)


# ---------------------------------------------------------------- the budget


@pytest.mark.parametrize(
    ("budget", "calls", "usd"),
    [
        pytest.param({"per_month": 100}, 100, "0.400000", id="calls"),
        pytest.param({"usd_per_month": 0.4}, 100, "0.400000", id="dollars"),
        pytest.param({"usd_per_month": 0.4035}, 100, "0.400000", id="dollars that do not divide"),
    ],
)
async def test_eight_workers_spend_the_months_budget_and_not_one_call_more(
    database: DatabaseDsns,
    admin: Admin,
    budget: dict[str, float],
    calls: int,
    usd: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def worker(db: Database) -> Counter[str]:
        attempts = PaidAttempts(db, "millionverifier", limits(**budget))
        async with running(attempts.take):
            return await counts(attempts, 30)

    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "millionverifier", limits(**budget))
        async with running(attempts.take):
            await worked_once(attempts)
        with caplog.at_level(logging.ERROR):
            async with opened(database.gate) as other:
                seen = sum(await asyncio.gather(*(worker((db, other)[n % 2]) for n in range(8))), Counter())
    assert seen == {"granted": calls - 1, "budget": 240 - calls + 1}
    row = await admin.fetchrow("SELECT used, usd::text FROM outreach.ct_usage WHERE tool_id = 'TOOL-019'")
    assert tuple(row or ()) == (calls, usd)
    assert await admin.fetchval("SELECT count(*) FROM outreach.ct_tier2_attempts") == calls
    alerts = [record.getMessage() for record in caplog.records if "budget:TOOL-019" in record.getMessage()]
    assert len(alerts) == 1, "one alert a month, over all workers"
    assert f"{calls} of" in alerts[0]
    assert await admin.fetchval("SELECT count(*) FROM outreach.ct_guardrail_log WHERE key = 'budget:TOOL-019'") == 1


async def test_a_month_that_is_over_leaves_nothing_to_the_next(database: DatabaseDsns, admin: Admin) -> None:
    now = await admin.fetchval("SELECT clock_timestamp()")
    for back in (1, 2):
        await admin.execute(
            "INSERT INTO outreach.ct_usage (tool_id, span, begins, used, usd)"
            " VALUES ('TOOL-019', 'month', $1, 5, 0.02)",
            month(now, back).date(),
        )
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "millionverifier", limits(per_month=5))
        async with running(attempts.take):
            await worked_once(attempts)
            assert await counts(attempts, 10) == {"granted": 4, "budget": 6}
            refused = await attempts.take(wanted())
    assert refused.retry_s is not None
    until_next = (month(now, -1) - now).total_seconds()
    assert refused.retry_s == pytest.approx(until_next, abs=30)
    used = await admin.fetch("SELECT used FROM outreach.ct_usage WHERE tool_id = 'TOOL-019' ORDER BY begins")
    assert [row["used"] for row in used] == [5, 5, 5]


async def test_calls_of_a_second_keep_to_the_rate_and_the_rest_waits(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "millionverifier", limits(per_second=50.0))
        async with running(attempts.take):
            await worked_once(attempts)
            taken = await asyncio.gather(*(attempts.take(wanted()) for _ in range(200)))
    granted = sorted(one.delay_s for one in taken if one.answer == "granted")
    late = sorted(one.retry_s or 0.0 for one in taken if one.answer == "rate")
    assert len(granted) + len(late) == 200
    assert 49 <= len(granted) <= 53
    assert all(after - before == pytest.approx(0.02, abs=1e-6) for before, after in pairwise(granted))
    assert late[0] >= 1.0
    assert late[-1] > 3.0, "those that wait come one slot apart"


# ---------------------------------------------------------------- one attempt


async def test_two_workers_that_meet_one_company_make_one_call_and_share_its_answer(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db, opened(database.gate) as other_db:
        mine, other = PaidAttempts(db, "reacher", MANY), PaidAttempts(other_db, "reacher", MANY)
        passes = ParkedCompanies(db, "worker", "test")
        async with running(mine.take, other.take, passes.park):
            first = wanted()
            assert (await mine.take(first)).answer == "granted"
            meets = await other.take(wanted(first.outreach_id))
            assert meets.answer == "under_way"
            assert 29 < (meets.retry_s or 0) <= 30
            await passes.park(
                parked(
                    first.outreach_id, after_s=meets.retry_s, waits_on=f"tier2:{first.outreach_id}",
                    reason=WaitReason.TIER2,
                )
            )  # fmt: skip
            assert await passes.claim_due(10) == []
            stored = await mine.store(first, VALID)
            assert stored.answer == VALID
            assert [one.origin.outreach_id for one in await passes.claim_due(10)] == [first.outreach_id]
            again = await other.take(wanted(first.outreach_id))
    assert again == Taken(answer="answered", stored=VALID, asked="info@acme.example", detail=VALID.detail), (
        "the second worker reads what the first one paid for"
    )


async def test_a_worker_that_died_before_its_answer_costs_the_attempt_and_not_a_second_call(
    database: DatabaseDsns, admin: Admin
) -> None:
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "reacher", MANY)
        async with running(attempts.take):
            lost = wanted()
            assert (await attempts.take(lost)).answer == "granted"
            # Its 30 s pass: the reservation is dated back, which no role but the owner can do.
            await admin.execute("ALTER TABLE outreach.ct_tier2_attempts DISABLE TRIGGER ct_final")
            await admin.execute(
                "UPDATE outreach.ct_tier2_attempts SET answer_due = clock_timestamp() - interval '1 second'"
            )
            await admin.execute("ALTER TABLE outreach.ct_tier2_attempts ENABLE ALWAYS TRIGGER ct_final")
            met = await attempts.take(wanted(lost.outreach_id))
            assert met.answer == "answered"
            assert met.stored is not None
            assert met.stored.status is VerifyStatus.NO_ANSWER
            late = await attempts.store(lost, VALID)
            assert late.answer == met.stored, "an answer that comes too late changes nothing"
            assert late.halted is None
    assert await admin.fetchval("SELECT used FROM outreach.ct_usage WHERE tool_id = 'TOOL-019'") == 1


async def test_a_reservation_whose_commit_was_not_answered_still_belongs_to_the_caller(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "reacher", MANY)
        async with running(attempts.take):
            one = wanted()
            assert [(await attempts.take(one)).answer for _ in range(3)] == ["granted"] * 3
            assert (await attempts.take(wanted(one.outreach_id))).answer == "under_way"


async def test_without_a_provider_only_stored_answers_are_read(database: DatabaseDsns, admin: Admin) -> None:
    async with opened(database.gate) as db:
        on, off = PaidAttempts(db, "reacher", MANY), PaidAttempts(db, "", MANY)
        async with running(on.take, off.take):
            paid = wanted()
            await on.take(paid)
            await on.store(paid, VALID)
            assert (await off.take(wanted(paid.outreach_id))).stored == VALID
            assert (await off.take(wanted())).answer == "off"
    assert await admin.fetchval("SELECT count(*) FROM outreach.ct_tier2_attempts") == 1


async def test_a_company_is_known_to_have_spent_its_attempt(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        attempts, ledger = PaidAttempts(db, "reacher", MANY), Ledger(db)
        async with running(attempts.take, *ledger.batches):
            one = wanted()
            assert not (await ledger.look_up(one.outreach_id)).is_paid
            await attempts.take(one)
            assert (await ledger.look_up(one.outreach_id)).is_paid


# ---------------------------------------------------------------- out of order


async def test_the_vendor_is_tried_by_one_company_first_and_by_few_after_an_answer_of_no_use(
    database: DatabaseDsns,
) -> None:
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "reacher", MANY)
        async with running(attempts.take):
            first = wanted()
            assert (await attempts.take(first)).answer == "granted"
            assert await counts(attempts, 20) == {"turn": 20}, "its first call has shown nothing yet"
            await attempts.store(first, NO_USE)
            granted = [one for one in [wanted() for _ in range(20)] if (await attempts.take(one)).answer == "granted"]
            assert len(granted) == IN_A_ROW - 1, "one more answer of no use after these halts it"
            await attempts.store(granted[0], VALID)
            assert await counts(attempts, 20) == {"granted": 20}


async def test_who_waits_for_its_turn_is_woken_by_the_next_answer(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        attempts, passes = PaidAttempts(db, "reacher", limits(per_second=50.0)), ParkedCompanies(db, "worker", "test")
        async with running(attempts.take, passes.park):
            first = wanted()
            await attempts.take(first)
            for _ in range(60):
                await passes.park(parked(after_s=30.0, waits_on="tier2:turn", reason=WaitReason.TIER2))
            await attempts.store(first, VALID)
            assert len(await passes.claim_due(100)) == 50, "as many as may call within a second"


@pytest.mark.parametrize("halt", [None, "the vendor does not know our key"], ids=["five in a row", "our account"])
async def test_a_vendor_out_of_order_halts_the_tool_until_a_person_resumes_it(
    database: DatabaseDsns, halt: str | None
) -> None:
    ops = await asyncpg.connect(database.ops)
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "reacher", MANY)
        async with running(attempts.take):
            await worked_once(attempts)
            halted: list[str | None] = []
            for _ in range(IN_A_ROW if halt is None else 1):
                assert not any(halted)
                one = wanted()
                assert (await attempts.take(one)).answer == "granted"
                halted.append((await attempts.store(one, NO_USE, halt=halt)).halted)
            assert halted[-1] is not None
            assert (halt or "5 answers in a row were of no use") in halted[-1]
            waits = await attempts.take(wanted())
            assert (waits.answer, waits.detail) == ("halted", halted[-1])
            assert (await attempts.take(wanted(one.outreach_id))).stored == NO_USE, "its own attempt is spent"

            assert (
                await ops.fetchval("SELECT outreach.resume_guardrail('tool:TOOL-019', 'new key')") == "halted -> open"
            )
            assert await counts(attempts, 3) == {"granted": 1, "turn": 2}, "one company is tried first"
    await ops.close()


async def test_answers_of_use_in_between_keep_the_tool_in_order(database: DatabaseDsns, admin: Admin) -> None:
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "reacher", MANY)
        async with running(attempts.take):
            for answer in [*[NO_USE] * (IN_A_ROW - 1), VALID] * 3:
                one = wanted()
                assert (await attempts.take(one)).answer == "granted"
                assert (await attempts.store(one, answer)).halted is None
    assert await admin.fetchval("SELECT count(*) FROM outreach.ct_guardrails") == 0


@pytest.mark.parametrize("login", ["gate", "ops"])
async def test_nobody_reads_the_token_that_has_the_attempt(database: DatabaseDsns, login: str) -> None:
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "reacher", MANY)
        async with running(attempts.take):
            await attempts.take(wanted())
    connection = await asyncpg.connect(getattr(database, login))
    try:
        assert await connection.fetchval("SELECT count(t.outreach_id) FROM outreach.ct_tier2_attempts AS t") == 1
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetchval("SELECT t.token FROM outreach.ct_tier2_attempts AS t")
    finally:
        await connection.close()


async def test_its_token_calls_nobody_any_more_when_the_answer_was_due(database: DatabaseDsns, admin: Admin) -> None:
    """Others have been told by then that its worker ended."""
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "reacher", MANY)
        async with running(attempts.take):
            one = wanted()
            assert (await attempts.take(one)).answer == "granted"
            assert (await attempts.take(one)).answer == "granted"
            async with admin.transaction():
                await admin.execute("ALTER TABLE outreach.ct_tier2_attempts DISABLE TRIGGER USER")
                await admin.execute("UPDATE outreach.ct_tier2_attempts SET answer_due = now() - interval '1 second'")
                await admin.execute("ALTER TABLE outreach.ct_tier2_attempts ENABLE ALWAYS TRIGGER ct_final")
            late = await attempts.take(one)
            assert (late.answer, late.stored and late.stored.status) == ("answered", VerifyStatus.NO_ANSWER)


async def test_answers_that_come_together_halt_it_at_the_fifth(database: DatabaseDsns, admin: Admin) -> None:
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "reacher", MANY)
        async with running(attempts.take):
            await worked_once(attempts)
            *some, fourth, fifth = [wanted() for _ in range(IN_A_ROW)]
            for one in (*some, fourth, fifth):
                assert (await attempts.take(one)).answer == "granted"
            for one in some:
                assert (await attempts.store(one, NO_USE)).halted is None
            async with admin.transaction():
                await admin.execute(
                    "SELECT outreach.ct_answer_tier2($1, $2, 'no_answer', '', NULL, 5, 5)",
                    fourth.outreach_id,
                    fourth.token,
                )
                storing = asyncio.create_task(attempts.store(fifth, NO_USE))
                done, _ = await asyncio.wait({storing}, timeout=0.5)
                assert not done, "it would not see the fourth"
            assert (await storing).halted is not None


async def test_reservations_and_answers_never_run_at_the_same_time(database: DatabaseDsns, admin: Admin) -> None:
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "reacher", MANY)
        async with running(attempts.take):
            first = wanted()
            assert (await attempts.take(first)).answer == "granted"
            async with admin.transaction():
                await admin.execute(
                    "SELECT outreach.ct_answer_tier2($1, $2, 'no_answer', '', 'a wrong key', 5, 5)",
                    first.outreach_id,
                    first.token,
                )
                taking = asyncio.create_task(attempts.take(wanted()))
                done, _ = await asyncio.wait({taking}, timeout=0.5)
                assert not done, "it might see that the first one has ended, and not that the tool is halted"
            assert (await taking).answer == "halted"


async def test_no_second_company_pays_for_a_wrong_key_however_densely_they_come(
    database: DatabaseDsns, admin: Admin
) -> None:
    async def until_halted(attempts: PaidAttempts) -> Counter[str]:
        seen: Counter[str] = Counter()
        while not seen["halted"]:
            seen[(await attempts.take(wanted())).answer] += 1
        return seen

    async with opened(database.gate) as db:
        workers = [PaidAttempts(db, "reacher", MANY) for _ in range(4)]
        async with running(*(one.take for one in workers)):
            for _ in range(100):
                first = wanted()
                assert (await workers[0].take(first)).answer == "granted"
                others = [asyncio.create_task(until_halted(one)) for one in workers]
                await workers[0].store(first, NO_USE, halt="a wrong key")
                seen = sum(await asyncio.gather(*others), Counter[str]())
                assert not seen["granted"]
                await admin.execute("SELECT outreach.resume_guardrail('tool:TOOL-019', 'a new key')")


async def test_resuming_it_leaves_the_evidence_about_mail_servers_alone(admin: Admin) -> None:
    await admin.execute(
        "INSERT INTO outreach.ct_refusals (provider, domain, kind) VALUES ('a.example', 'b.example', 'refused')"
    )
    for rail, refusing in (("tool:TOOL-019", 1), ("tool:TOOL-005", 0)):
        await admin.execute(
            "INSERT INTO outreach.ct_guardrails (key, state, reason) VALUES ($1, 'halted', 'why')", rail
        )
        await admin.fetchval("SELECT outreach.resume_guardrail($1, 'mended')", rail)
        arguments = (timedelta(hours=24), 20, "default", False)
        assert await admin.fetchval(query("refusing_networks"), *arguments) == refusing


async def test_a_company_parked_just_after_its_tool_was_resumed_is_woken(
    database: DatabaseDsns,
) -> None:
    async with opened(database.gate) as db:
        passes = ParkedCompanies(db, "worker", "test")
        async with running(passes.park):
            company = parked(after_s=None, waits_on="tool:TOOL-019", reason=WaitReason.HALTED)
            await passes.park(company)
            assert await passes.claim_due(10) == []
            await passes.wake_sleepers(10)
            assert [one.origin for one in await passes.claim_due(10)] == [company.origin]


# ---------------------------------------------------------------- what the roles may


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("DELETE FROM outreach.ct_tier2_attempts", id="taking attempts back"),
        pytest.param("UPDATE outreach.ct_tier2_attempts SET status = 'valid'", id="making up an answer"),
        pytest.param(
            "INSERT INTO outreach.ct_tier2_attempts (outreach_id, provider, address, token, usd, reserved_at,"
            " answer_due) VALUES (gen_random_uuid(), 'x', 'x', gen_random_uuid(), 0, now(), now())",
            id="making up an attempt",
        ),
    ],
)
@pytest.mark.parametrize("role", ["gate", "ops"])
async def test_attempts_change_through_the_functions_only(database: DatabaseDsns, role: str, statement: str) -> None:
    connection = await asyncpg.connect(getattr(database, role))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(statement)
    assert await connection.fetchval("SELECT count(*) FROM outreach.ct_tier2_attempts") == 0
    await connection.close()


async def test_people_cannot_spend(database: DatabaseDsns) -> None:
    connection = await asyncpg.connect(database.ops)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(
            "SELECT outreach.ct_answer_tier2(gen_random_uuid(), gen_random_uuid(), 'valid', '', NULL, 5, 5)"
        )
    await connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("DELETE FROM outreach.ct_tier2_attempts", id="delete"),
        pytest.param("TRUNCATE outreach.ct_tier2_attempts", id="truncate"),
        pytest.param("UPDATE outreach.ct_tier2_attempts SET status = NULL", id="take an answer back"),
        pytest.param("UPDATE outreach.ct_tier2_attempts SET address = 'x'", id="change what was asked"),
    ],
)
async def test_a_spent_attempt_stays_spent_for_the_administrator_too(
    database: DatabaseDsns, admin: Admin, statement: str
) -> None:
    async with opened(database.gate) as db:
        attempts = PaidAttempts(db, "reacher", MANY)
        async with running(attempts.take):
            await worked_once(attempts)
    with pytest.raises(asyncpg.RestrictViolationError):
        await admin.execute(statement)
