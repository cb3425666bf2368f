"""A paid call runs to its end, whatever becomes of the event that wanted it: real Postgres, a vendor on loopback."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest

from ct_stream.company.paid_calls import PaidCalls
from ct_stream.gate.patterns import Address
from ct_stream.gate.questions import VerifyAnswer, VerifyStatus
from ct_stream.gate.toolbox_limits import PaidLimits
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.metrics import Metrics
from ct_stream.probes.needs import TurnedOff
from ct_stream.probes.tier2_millionverifier import MillionVerifier
from ct_stream.probes.vendor_client import VendorClient
from ct_stream.store.paid_attempts import PaidAttempts
from tests.probes.vendors import KEY, Answer, VendorServer, millionverifier
from tests.store.parts import opened, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import DatabaseDsns

INFO = Address(local_part="info", domain="acme.example")
LIMITS = PaidLimits(per_second=1000.0, per_month=1000, usd_per_month=50.0, usd_per_call=0.004)


class Held:
    """A vendor that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()

    async def __call__(self, email: str) -> Answer:
        self.asked.set()
        await self.go_on.wait()
        return millionverifier("ok", email)


@asynccontextmanager
async def paid_calls(
    database: DatabaseDsns, server: VendorServer | None, *, limits: PaidLimits = LIMITS, workers: int = 1
) -> AsyncIterator[list[PaidCalls]]:
    async with AsyncExitStack() as stack:
        calls = []
        for _ in range(workers):
            db = await stack.enter_async_context(opened(database.gate))
            attempts = PaidAttempts(db, "" if server is None else "millionverifier", limits)
            await stack.enter_async_context(running(attempts.take))
            client = VendorClient(MillionVerifier(secret=KEY, url=f"{server.url}/api/v3/")) if server else None
            calls.append(PaidCalls(attempts, client, Metrics()))
        yield calls


async def test_an_event_that_is_cancelled_leaves_its_call_alone_and_the_answer_serves_the_next_one(
    database: DatabaseDsns,
) -> None:
    held = Held()
    async with VendorServer(held) as server, paid_calls(database, server, workers=2) as (mine, other):
        company = uuid4()
        event = asyncio.create_task(mine.verify(company, INFO))
        await held.asked.wait()
        event.cancel()
        with pytest.raises(asyncio.CancelledError):
            await event
        meets = (await other.verify(company, INFO)).result
        assert isinstance(meets, Wait)
        assert (meets.reason, meets.waits_on) == (WaitReason.TIER2, f"tier2:{company}")
        joins = asyncio.create_task(mine.verify(company, INFO))
        held.go_on.set()
        await mine.drain(10)
        assert (await joins).result == (await other.verify(company, INFO)).result
        result = (await other.verify(company, INFO)).result
        assert isinstance(result, VerifyAnswer)
        assert result.status is VerifyStatus.VALID
        assert server.asked == {str(INFO): 1}


async def test_a_worker_that_stops_waits_for_its_calls_and_begins_no_other(database: DatabaseDsns) -> None:
    held = Held()
    async with VendorServer(held) as server, paid_calls(database, server) as (calls,):
        event = asyncio.create_task(calls.verify(uuid4(), INFO))
        await held.asked.wait()
        drained = asyncio.create_task(calls.drain(10))
        await asyncio.sleep(0)
        late = (await calls.verify(uuid4(), INFO)).result
        assert isinstance(late, Wait)
        assert (late.reason, late.after_s) == (WaitReason.DRAIN, 0.0)
        assert not drained.done()
        held.go_on.set()
        await drained
        assert isinstance((await event).result, VerifyAnswer)
        assert len(server.requests) == 1


async def test_a_call_that_outlasts_the_drain_is_left_to_its_due_time(database: DatabaseDsns) -> None:
    held = Held()
    async with VendorServer(held) as server, paid_calls(database, server, workers=2) as (mine, other):
        company = uuid4()
        event = asyncio.create_task(mine.verify(company, INFO))
        await held.asked.wait()
        await mine.drain(0.05)
        assert event.cancelled() or isinstance(event.exception(), asyncio.CancelledError)
        meets = (await other.verify(company, INFO)).result
        assert isinstance(meets, Wait)
        assert 0 < (meets.after_s or 0) <= 30
        held.go_on.set()


async def test_only_the_wait_for_the_vendor_is_reported(database: DatabaseDsns) -> None:
    async def slow(email: str) -> Answer:
        return Answer(body=millionverifier("ok", email).body, delay_s=0.3)

    async with VendorServer(slow) as server, paid_calls(database, server) as (calls,):
        company = uuid4()
        assert 0.3 <= (await calls.verify(company, INFO)).waited_s < 3
        assert (await calls.verify(company, INFO)).waited_s == 0.0, "a stored answer is not waited for"


async def test_a_spent_budget_turns_it_off_here_until_the_month_turns(database: DatabaseDsns) -> None:
    one = PaidLimits(per_second=1000.0, per_month=1, usd_per_month=50.0, usd_per_call=0.004)
    async with (
        VendorServer(lambda email: millionverifier("ok", email)) as server,
        paid_calls(database, server, limits=one) as (calls,),
    ):
        company = uuid4()
        await calls.verify(company, INFO)
        assert calls.off_because() is None, "the last call that is allowed says nothing yet"
        off = (await calls.verify(uuid4(), INFO)).result
        assert isinstance(off, TurnedOff)
        assert "1 of 1 calls" in off.because
        assert calls.off_because() == off.because
        assert isinstance((await calls.verify(company, INFO)).result, VerifyAnswer), "what is paid for is read"


async def test_without_a_vendor_a_stored_answer_is_read_and_nothing_else(database: DatabaseDsns) -> None:
    async with (
        VendorServer(lambda email: millionverifier("invalid", email)) as server,
        paid_calls(database, server) as (on,),
        paid_calls(database, None) as (off,),
    ):
        company = uuid4()
        paid = (await on.verify(company, INFO)).result
        assert (await off.verify(company, INFO)).result == paid
        assert isinstance((await off.verify(uuid4(), INFO)).result, TurnedOff)
        assert off.off_because() == "Tier-2 is off (CT_TIER2_PROVIDER is none)"


async def test_an_answer_about_another_address_decides_nothing(database: DatabaseDsns) -> None:
    async with (
        VendorServer(lambda email: millionverifier("ok", email)) as server,
        paid_calls(database, server) as (calls,),
    ):
        company = uuid4()
        await calls.verify(company, INFO)
        result = (await calls.verify(company, Address(local_part="contact", domain="acme.example"))).result
        assert isinstance(result, VerifyAnswer)
        assert result.status is VerifyStatus.NO_ANSWER
        assert "info@acme.example" in result.detail
        assert len(server.requests) == 1


async def test_a_wrong_key_costs_one_company_however_many_come_together(database: DatabaseDsns) -> None:
    async with VendorServer(lambda _: Answer(status=401)) as server, paid_calls(database, server, workers=2) as workers:
        results = [(await asyncio.gather(*(workers[n % 2].verify(uuid4(), INFO) for n in range(40)))) for _ in range(2)]
        assert len(server.requests) == 1
    brought = [one.result for some in results for one in some]
    assert sum(isinstance(result, VerifyAnswer) for result in brought) == 1
    waits = [result for result in brought if isinstance(result, Wait)]
    assert {(wait.reason, wait.waits_on) for wait in waits} <= {
        (WaitReason.TIER2, "tier2:turn"),
        (WaitReason.HALTED, "tool:TOOL-019"),
    }
    assert len(waits) == 79
    admin = await asyncpg.connect(database.admin)
    assert await admin.fetchval("SELECT state FROM outreach.ct_guardrails WHERE key = 'tool:TOOL-019'") == "halted"
    await admin.close()
