"""A hoster's mail servers bear the names of its customers. When it refuses us, none of them fails for it.

Over the real statements, guardrails, prober and sockets; the controls always succeed.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.verdicts import Failed
from ct_stream.gate.waits import Wait, WaitReason
from tests.company.test_two_providers import NET, REFUSES, Gate, Servers, converse
from tests.store.parts import opened, origin, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import DatabaseDsns

SETTLED_S = 1000.0  #: older than what is settled
MACHINE, BESIDE, THIRD = (f"127.{NET}.20.{n}" for n in (7, 8, 9))
ELSEWHERE = f"127.{NET}.21.7"
HOSTER = f"127.{NET}.20.0/24"


class World(Servers):
    """Customers and their addresses; what the server at each address says to a recipient."""

    def __init__(self) -> None:
        super().__init__({})
        self.refusing: set[str] = set()  #: addresses
        self.silent: set[str] = set()
        self.sessions: list[str] = []  #: addresses

    async def serve(self, ip: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sessions.append(ip)
        if ip in self.silent:
            writer.close()
            return
        await converse(partial(self.says, ip), reader, writer)

    def says(self, ip: str, line: bytes) -> bytes | None:
        if line[:4].upper() != b"RCPT":
            return None
        return REFUSES if ip in self.refusing else b"550 5.1.1 User unknown\r\n"


class Hosted:
    """A worker's gate, beside another one that has not read the guardrails since it started, and the administrator."""

    def __init__(self, world: World, gate: Gate, other: Gate, admin: Any) -> None:
        self.world, self.gate, self.other, self.admin = world, gate, other, admin

    async def begin(self, domain: str, ip: str, *, gate: Gate | None = None) -> Any:
        """Take in a company with a server of its own name at this address."""
        self.world.ips[f"mx.{domain}"] = ip
        company = origin()
        for one in (self.gate, self.other):
            one.domains[company.outreach_id] = domain
        return await (gate or self.gate).go_on(company, None)

    async def continue_all(self, rounds: int = 6) -> dict[str, Any]:
        """Continue with all that is due, with a proof and the workers' upkeep before each round; return the ends."""
        ends: dict[str, Any] = {}
        for _ in range(rounds):
            await self.gate.prove()
            await self.gate.guardrails.refresh(now=True)
            await self.gate.passes.wake_sleepers(10)
            for resumed in await self.gate.passes.claim_due(10):
                result = await self.gate.go_on(resumed.origin, resumed)
                await self.gate.farewells.wait()
                ends[self.gate.domains[resumed.origin.outreach_id]] = result
                if not isinstance(result, Wait):
                    await self.admin.execute(
                        "DELETE FROM outreach.ct_passes WHERE outreach_id = $1", resumed.origin.outreach_id
                    )
        return ends

    async def time_passes(self) -> None:
        """Make what is waited for until a fixed time due, and a provider's next try."""
        for gate in (self.gate, self.other):
            gate.gate._parts.age_s = lambda _: SETTLED_S  # type: ignore[misc]  # a SimpleNamespace
        await self.admin.execute("UPDATE outreach.ct_passes SET not_before = now() WHERE not_before < 'infinity'")
        await self.admin.execute("UPDATE outreach.ct_guardrails SET next_try_at = now() WHERE state = 'closed'")

    async def state(self, provider: str) -> str | None:
        state: str | None = await self.admin.fetchval(
            "SELECT state FROM outreach.ct_guardrails WHERE key = $1", f"provider:{provider}"
        )
        return state


@pytest.fixture
async def hosted(database: DatabaseDsns) -> AsyncIterator[Hosted]:
    async with _hosted(database) as one:
        yield one


@asynccontextmanager
async def _hosted(database: DatabaseDsns) -> AsyncIterator[Hosted]:
    world, servers, port = World(), [], 0
    for ip in (MACHINE, BESIDE, THIRD, ELSEWHERE):
        servers.append(await asyncio.start_server(partial(world.serve, ip), ip, port))
        port = servers[0].sockets[0].getsockname()[1]
    admin = await asyncpg.connect(database.admin)
    async with opened(database.gate) as db, opened(database.gate) as second:
        gate, other = (
            Gate(database_, owner, ("mx.{domain}",), world, port, 600.0)
            for database_, owner in ((db, "one"), (second, "two"))
        )
        async with running(*gate.limits.batches, gate.passes.park, *other.limits.batches, other.passes.park):
            await gate.prove()
            yield Hosted(world, gate, other, admin)
    await admin.close()
    for server in servers:
        server.close()


@pytest.mark.parametrize(
    ("ips", "closed"),
    [
        pytest.param((MACHINE, MACHINE), MACHINE, id="two at one address"),
        pytest.param((MACHINE, BESIDE, THIRD), HOSTER, id="three in one network"),
    ],
)
async def test_a_hoster_that_refuses_us_fails_none_of_its_customers(
    hosted: Hosted, ips: tuple[str, ...], closed: str
) -> None:
    hosted.world.refusing = {*ips}
    first = [await hosted.begin(f"customer{n}.example", ip) for n, ip in enumerate(ips)]
    assert [wait.waits_on for wait in first[:-1]] == ["control:smtp"] * (len(ips) - 1)
    assert (first[-1].reason, first[-1].waits_on) == (WaitReason.REFUSED, f"provider:{closed}")
    assert await hosted.state(closed) == "closed"

    await hosted.time_passes()
    asked = len(hosted.world.sessions)
    ends = await hosted.continue_all()
    assert {type(end) for end in ends.values()} == {Wait}, "a customer failed for the hoster's refusal"
    assert len(hosted.world.sessions) == asked + 1, "one company at a time may try"
    assert {end.waits_on for end in ends.values()} == {f"provider:{closed}"}
    assert await hosted.state(closed) == "closed", "the try was refused"

    hosted.world.refusing.clear()
    await hosted.time_passes()
    ends = await hosted.continue_all()
    assert await hosted.state(closed) == "open"
    assert {domain: end.code for domain, end in ends.items()} == {
        f"customer{n}.example": FailureCode.NO_PATTERN for n in range(len(ips))
    }, "decided by what their servers say now"


async def test_a_company_alone_with_a_server_that_refuses_us_is_decided_by_that(hosted: Hosted) -> None:
    hosted.world.refusing = {MACHINE}
    await hosted.begin("alone.example", MACHINE)
    assert isinstance(await hosted.begin("neighbour.example", BESIDE), Failed), "decided by its own answers"
    await hosted.time_passes()
    ends = await hosted.continue_all()
    assert ends["alone.example"].code is FailureCode.SMTP_FAIL


async def test_companies_elsewhere_do_not_wait_for_a_network(hosted: Hosted) -> None:
    hosted.world.refusing = {MACHINE, BESIDE, THIRD}
    for n, ip in enumerate((MACHINE, BESIDE, THIRD)):
        await hosted.begin(f"customer{n}.example", ip)
    assert await hosted.state(HOSTER) == "closed"
    assert isinstance(await hosted.begin("other.example", ELSEWHERE), Failed)
    late = await hosted.begin("late.example", MACHINE)
    assert (late.reason, late.waits_on) == (WaitReason.PROVIDER_CLOSED, f"provider:{HOSTER}")
    assert len(hosted.world.sessions) == 4, "a closed network was asked"


async def test_a_worker_that_has_not_read_of_a_closed_network_fails_nobody_there(hosted: Hosted) -> None:
    hosted.world.refusing = {MACHINE}
    await hosted.begin("a.example", MACHINE)
    await hosted.begin("b.example", MACHINE)
    hosted.world.refusing.clear()
    talks = await hosted.begin("talks.example", MACHINE, gate=hosted.other)
    assert isinstance(talks, Failed)
    assert talks.code is FailureCode.NO_PATTERN
    await hosted.other.farewells.wait()

    hosted.world.refusing = {MACHINE}
    late = await hosted.begin("late.example", MACHINE, gate=hosted.other)
    assert late.waits_on == f"provider:{MACHINE}", "others have their mail there: it is no policy of its own"
    assert await hosted.state(MACHINE) == "closed", "opened by the next normal session of a worker that knows"
    await hosted.time_passes()
    ends = await hosted.continue_all()
    assert {type(end) for end in ends.values()} == {Wait}
    assert ends["late.example"].waits_on == f"provider:{MACHINE}"

    hosted.world.refusing.clear()
    await hosted.time_passes()
    ends = await hosted.continue_all()
    assert {end.code for end in ends.values()} == {FailureCode.NO_PATTERN}
    assert len(ends) == 3


async def test_an_own_server_that_is_silent_in_a_closed_network_is_not_failed(hosted: Hosted) -> None:
    """A hoster that refuses us may drop our packets next."""
    hosted.world.refusing = {MACHINE}
    for n in range(2):
        await hosted.begin(f"customer{n}.example", MACHINE)
    hosted.world.silent = {MACHINE}
    for _ in range(3):
        await hosted.time_passes()
        ends = await hosted.continue_all()
        assert {type(end) for end in ends.values()} == {Wait}, ends
    assert await hosted.state(MACHINE) == "closed"


async def test_a_session_that_is_refused_opens_nothing_though_the_server_greeted_us(hosted: Hosted) -> None:
    hosted.world.refusing = {MACHINE}
    for n in range(2):
        await hosted.begin(f"customer{n}.example", MACHINE)
    for number in range(3):
        await hosted.time_passes()
        await hosted.continue_all()
        assert await hosted.state(MACHINE) == "closed"
        tries = await hosted.admin.fetchval("SELECT max(tries) FROM outreach.ct_guardrails")
        assert tries == number + 1
    assert await hosted.admin.fetchval("SELECT count(*) FROM outreach.ct_domains WHERE talked_at IS NOT NULL") == 0


async def test_silence_in_a_network_that_another_worker_has_just_closed_fails_nobody(hosted: Hosted) -> None:
    """This worker looked at the guardrails before; it looks again before a silence counts."""
    other = hosted.other
    hosted.world.silent = {THIRD}
    first = await hosted.begin("late.example", THIRD, gate=other)
    assert first.waits_on == "control:smtp"
    hosted.world.refusing = {MACHINE, BESIDE}
    for n, ip in enumerate((MACHINE, MACHINE, BESIDE)):
        await hosted.begin(f"customer{n}.example", ip)
    assert await hosted.state(HOSTER) == "closed"
    await hosted.time_passes()
    told: list[str] = []
    for _ in range(4):
        await other.prove()
        for resumed in await other.passes.claim_due(10):
            if other.domains[resumed.origin.outreach_id] != "late.example":
                continue
            result = await other.go_on(resumed.origin, resumed)
            assert isinstance(result, Wait), result
            told.append(result.waits_on)
    assert told[-1:] == [f"provider:{HOSTER}"]
