"""The ledger arbitrates: the first verdict wins, whoever comes, and its rows and bytes are the only ones."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from ct_stream.gate.output_stage import output_stage
from ct_stream.gate.questions import SpineAnswer
from ct_stream.gate.records import Publication
from ct_stream.gate.transcript import Exchange
from ct_stream.store.ledger import Ledger, headers_from_json, headers_to_json
from tests.store.parts import EXCHANGES, NO_MX, NOT_FOUND, PASSED, opened, origin, outcome, running

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns


async def rows(dsn: str, sql: str, *args: Any) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        return list(await connection.fetch(sql, *args))
    finally:
        await connection.close()


async def test_of_eight_workers_with_opposite_verdicts_exactly_one_wins_and_all_rows_are_its_own(
    database: DatabaseDsns,
) -> None:
    ids = [uuid4() for _ in range(40)]

    async def worker(number: int) -> list[bool]:
        async with opened(database.gate) as db:
            ledger = Ledger(db)
            async with running(*ledger.batches):
                verdict = PASSED if number % 2 else NO_MX
                order = ids if number % 3 else list(reversed(ids))
                won = await asyncio.gather(*(ledger.record(outcome(i, verdict)) for i in order))
                return [won[order.index(i)] for i in ids]

    results = await asyncio.gather(*(worker(n) for n in range(8)))
    assert all(sum(result[n] for result in results) == 1 for n in range(40))
    found = await rows(
        database.admin,
        """
        SELECT o.outcome, t.execution_status, count(e.error_id) AS errors
        FROM outreach.ct_outcomes AS o
        JOIN outreach.company_target AS t USING (outreach_id)
        LEFT JOIN outreach.company_target_errors AS e USING (outreach_id)
        GROUP BY o.outreach_id, o.outcome, t.execution_status
        """,
    )
    assert len(found) == 40
    assert {tuple(row) for row in found} <= {("PASS", "ready", 0), ("FAIL", "failed", 1)}


async def test_of_two_workers_with_the_very_same_outcome_one_wins(database: DatabaseDsns) -> None:
    """Both came to the same bytes in the same millisecond; only one may publish them."""
    same = outcome()

    async def worker() -> bool:
        async with opened(database.gate) as db:
            ledger = Ledger(db)
            async with running(*ledger.batches):
                return await ledger.record(same)

    assert sorted(await asyncio.gather(worker(), worker())) == [False, True]


async def test_a_company_that_waited_for_months_is_recorded(database: DatabaseDsns) -> None:
    """A provider may be closed, or all SMTP halted, for as long as nobody resumes it."""
    took_ms = 120 * 86_400_000
    late = output_stage(
        origin(), NO_MX, EXCHANGES, rules_version="1+test", decided_at=datetime.now(UTC), duration_ms=took_ms
    )
    async with opened(database.gate) as db:
        ledger = Ledger(db)
        async with running(*ledger.batches):
            assert await ledger.record(late)
        async with db.connection() as connection:
            assert await connection.fetchval("SELECT o.duration_ms FROM outreach.ct_outcomes AS o") == took_ms


async def test_a_not_found_has_an_errors_row_and_no_company_target_row(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        ledger = Ledger(db)
        async with running(*ledger.batches):
            assert await ledger.record(outcome(verdict=NOT_FOUND))
    assert await rows(database.admin, "SELECT outreach_id FROM outreach.company_target") == []
    [error] = await rows(
        database.admin, "SELECT failure_code, imo_stage, retry_allowed FROM outreach.company_target_errors"
    )
    assert tuple(error) == ("CT-I-NOT-FOUND", "I", False)


async def test_a_pending_row_is_taken_over_and_a_final_one_is_not(database: DatabaseDsns) -> None:
    company = outcome()
    connection = await asyncpg.connect(database.admin)
    await connection.execute("INSERT INTO outreach.company_target (outreach_id) VALUES ($1)", company.outreach_id)
    await connection.close()
    async with opened(database.gate) as db:
        ledger = Ledger(db)
        async with running(*ledger.batches):
            assert await ledger.record(company)
            assert not await ledger.record(outcome(company.outreach_id, NO_MX))
    [row] = await rows(database.admin, "SELECT execution_status, method_type FROM outreach.company_target")
    assert tuple(row) == ("ready", "info")


async def test_a_batch_whose_answer_was_lost_finds_that_it_has_won(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(database.gate) as db:
        fetch, asked = db.fetch, []

        async def losing(name: str, *args: object) -> list[asyncpg.Record]:
            rows = await fetch(name, *args)
            asked.append(name)
            if name == "record" and asked.count(name) == 1:
                raise ConnectionResetError("the answer to COMMIT was lost")
            return rows

        monkeypatch.setattr(db, "fetch", losing)
        ledger = Ledger(db)
        async with running(*ledger.batches):
            assert await ledger.record(outcome())
        assert asked.count("record") == 2


async def test_an_outcome_is_published_under_one_claim_and_never_again_once_stamped(database: DatabaseDsns) -> None:
    company = outcome(traceparent=b"00-4bf9", correlation_header=b"\xff\x00raw")
    async with opened(database.gate) as db:
        ledger = Ledger(db)
        async with running(*ledger.batches):
            await ledger.record(company)
            assert await ledger.claim(company.outreach_id) is None, "the recording took the claim"
            assert await ledger.claim_unpublished(10) == []
            await _expire_claims(database)
            claims = await asyncio.gather(*(ledger.claim(company.outreach_id) for _ in range(5)))
            [publication] = [claim for claim in claims if isinstance(claim, Publication)]
            assert (publication.topic, publication.key) == (company.topic, company.key)
            assert (publication.value, publication.headers) == (company.value, company.headers), "byte for byte"
            await _expire_claims(database)
            assert len(await ledger.claim_unpublished(10)) == 1, "the sweeper takes what a crash left"
            await _end_claims(database, "now() + interval '1 hour'")
            assert await ledger.claim(company.outreach_id) is not None, "no claim holds so long: the clock was set back"
            await _end_claims(database, "now() + interval '1 hour'")
            assert len(await ledger.claim_unpublished(10)) == 1
            assert (await ledger.look_up(company.outreach_id)).needs_publishing
            await ledger.stamp(company.outreach_id)
            await _expire_claims(database)
            assert await ledger.claim_unpublished(10) == []
            assert not (await ledger.look_up(company.outreach_id)).needs_publishing


async def _expire_claims(database: DatabaseDsns) -> None:
    await _end_claims(database, "now() - interval '1 s'")


async def _end_claims(database: DatabaseDsns, when: str) -> None:
    connection = await asyncpg.connect(database.admin)
    await connection.execute(f"UPDATE outreach.ct_outcomes SET publish_until = {when} WHERE published_at IS NULL")
    await connection.close()


async def test_what_the_database_refuses_is_charged_to_its_company_alone(database: DatabaseDsns) -> None:
    good, bad = outcome(), outcome(verdict=PASSED)
    answer = SpineAnswer(found=True, domain="\x00")  # jsonb takes no NUL
    object.__setattr__(bad, "exchanges", (Exchange(key="spine", answer=answer),))
    async with opened(database.gate) as db:
        ledger = Ledger(db)
        async with running(*ledger.batches):
            results = await asyncio.gather(ledger.record(good), ledger.record(bad), return_exceptions=True)
    assert results[0] is True
    assert isinstance(results[1], asyncpg.PostgresError)


@pytest.mark.parametrize(
    "headers", [(), (("a", b"text"), ("a", b"again")), (("b", b"\x00\xff"),), (("c", "ü".encode()),), (("d", b""),)]
)
def test_headers_survive_the_ledger_byte_for_byte(headers: tuple[tuple[str, bytes], ...]) -> None:
    assert headers_from_json(headers_to_json(headers)) == headers


async def test_a_hub_that_holds_rows_delays_their_companies_alone(database: DatabaseDsns) -> None:
    """A transaction that somebody left open, with all rows that wait for the gate."""
    ids = [uuid4() for _ in range(12)]
    hub = await asyncpg.connect(database.admin)
    await hub.executemany("INSERT INTO outreach.company_target (outreach_id) VALUES ($1)", [(i,) for i in ids[:3]])
    await hub.execute("BEGIN; UPDATE outreach.company_target SET updated_at = now()")
    try:
        async with opened(database.gate) as db:
            ledger = Ledger(db)
            async with running(*ledger.batches):
                async with asyncio.timeout(15):
                    held = [asyncio.ensure_future(ledger.record(outcome(i))) for i in ids[:3]]
                    assert await asyncio.gather(*(ledger.record(outcome(i)) for i in ids[3:9])) == [True] * 6
                    assert await asyncio.gather(*(ledger.record(outcome(i)) for i in ids[9:])) == [True] * 3
                assert not any(one.done() for one in held)
                assert db.trouble is None, "the database is well"
                await hub.execute("COMMIT")
                async with asyncio.timeout(15):
                    assert await asyncio.gather(*held) == [True] * 3
    finally:
        await hub.close()
    found = await rows(database.admin, "SELECT execution_status FROM outreach.company_target")
    assert [row["execution_status"] for row in found] == ["ready"] * 12


async def test_where_a_hub_and_a_batch_wait_for_each_other_the_batch_gives_way(database: DatabaseDsns) -> None:
    """A hub's update of many rows goes in another order than ours; it must not be the one that ends in a deadlock."""
    low, middle, high = (UUID(int=2**n) for n in (1, 64, 127))
    hub, other = await asyncpg.connect(database.admin), await asyncpg.connect(database.admin)
    made = [(i,) for i in (low, middle, high)]
    await hub.executemany("INSERT INTO outreach.company_target (outreach_id) VALUES ($1)", made)
    touch = "UPDATE outreach.company_target SET updated_at = now() WHERE outreach_id = $1"
    try:
        async with opened(database.gate) as db:
            ledger = Ledger(db)
            async with running(*ledger.batches), asyncio.timeout(20):
                for who, row in ((hub, high), (other, middle)):
                    await who.execute("BEGIN")
                    await who.execute(touch, row)
                recordings = [asyncio.ensure_future(ledger.record(outcome(i))) for i in (low, middle, high)]
                await asyncio.sleep(0.1)  # the batch has the lowest by now, and waits for the next
                waiting = asyncio.ensure_future(hub.execute(touch, low))
                await asyncio.sleep(0.2)
                await other.execute("COMMIT")  # now the batch waits for the hub, which began to wait before it
                await waiting
                await hub.execute("COMMIT")
                assert await asyncio.gather(*recordings) == [True, True, True]
    finally:
        await hub.close()
        await other.close()
