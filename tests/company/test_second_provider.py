"""A company that goes on at its second provider: what the first one said counts, and nobody is asked for nothing."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from ct_stream.company import lease
from ct_stream.gate.questions import ControlKind
from ct_stream.gate.toolbox_limits import ProbeLimits
from ct_stream.gate.verdicts import Failed, Held, HeldBy, Passed
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.store.limits import DomainLease
from tests.company import test_two_providers as two
from tests.company.test_two_providers import NET, REFUSES, Gate, Servers, converse, worker
from tests.store.parts import opened, origin, running

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns

REFUSED = Held(by=HeldBy.REFUSED, host="mx1.bigmail.net", reason="blocked", ip=f"127.{NET}.9.2")
TOO_FAST = b"421 4.7.0 Too many connections from your IP\r\n"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places come free between two passes only."""
    monkeypatch.setattr(lease, "PLACE_PAUSES_S", ())


async def _taken(gate: Gate, n: int) -> DomainLease:
    lease = await gate.limits.begin_probe(f"c{n}.example", "hoster.net")
    assert isinstance(lease, DomainLease), lease
    return lease


async def test_a_provider_that_says_too_fast_is_paused_though_the_backups_places_are_taken(
    database: DatabaseDsns,
) -> None:
    servers = Servers({"mx1.bigmail.net": TOO_FAST, "mx2.hoster.net": REFUSES})
    admin = await asyncpg.connect(database.admin)
    async with worker(database, ("mx1.bigmail.net", "mx2.hoster.net"), servers) as gate:
        others = [await _taken(gate, n) for n in range(3)]
        company = origin()
        gate.domains[company.outreach_id] = "acme.example"
        result: Any = await gate.go_on(company, None)
        assert isinstance(result, Wait)
        waits, seen = [result.reason], [servers.connections]
        for n in range(6):  # a session at the backup ends, and the next event of Kafka takes its place at once
            await others.pop(0).release(talked=True)
            others.append(await _taken(gate, 10 + n))
            for resumed in await gate.passes.claim_due(10):
                result = await gate.go_on(resumed.origin, resumed)
                waits.append(result.reason)
            seen.append(servers.connections)
        paused = await admin.fetchval("SELECT state FROM outreach.ct_guardrails WHERE key = 'provider:bigmail.net'")
        noted = await admin.fetchval("SELECT count(*) FROM outreach.ct_refusals")
    await admin.close()
    assert (paused, noted, seen[-1]) == ("paused", 1, 1), (seen, waits)


async def test_a_dead_first_host_is_not_asked_again_for_each_place_that_comes_free(database: DatabaseDsns) -> None:
    """Units of the daily cap that a company burns while the backup's places are taken."""
    servers = Servers({"mx2.hoster.net": REFUSES})
    admin = await asyncpg.connect(database.admin)
    async with worker(database, ("mx1.acme.example", "mx2.hoster.net"), servers) as gate:
        others = [await _taken(gate, n) for n in range(3)]
        company = origin()
        gate.domains[company.outreach_id] = "acme.example"
        await gate.go_on(company, None)
        used = "SELECT used FROM outreach.ct_usage WHERE tool_id = 'TOOL-005'"
        by_others, burnt = 3, [await admin.fetchval(used) - 3]
        for n in range(10):
            await others.pop(0).release(talked=True)
            others.append(await _taken(gate, 10 + n))
            by_others += 1
            for resumed in await gate.passes.claim_due(10):
                await gate.go_on(resumed.origin, resumed)
            burnt.append(await admin.fetchval(used) - by_others)
    await admin.close()
    assert burnt[-1] <= 2, f"sessions of the daily cap that one company used, nothing learnt: {burnt}"


async def test_a_refusal_at_mail_from_is_no_normal_session_even_if_the_backup_makes_the_pass_wait(
    database: DatabaseDsns,
) -> None:
    """The provider is closed (three were refused). Its one try is refused, too; the backup's places are taken."""

    lookup = Servers({})
    lookup.ips = {"mx1.bigmail.net": f"127.{NET}.9.2"}
    server = await asyncio.start_server(
        partial(converse, lambda line: REFUSES if line[:4].upper() == b"MAIL" else None), f"127.{NET}.9.2", 0
    )
    admin = await asyncpg.connect(database.admin)
    async with opened(database.gate) as db:
        mx = ("mx1.bigmail.net", "mx2.hoster.net")
        gate = Gate(db, "one", mx, lookup, server.sockets[0].getsockname()[1], 600.0)
        async with running(*gate.limits.batches, gate.passes.park):
            for n in range(3):
                await gate.guardrails._note_reply(REFUSED, f"other{n}.example")
            await gate.guardrails.set_state("provider:bigmail.net", "closed", "three were refused", 600.0)
            await admin.execute("UPDATE outreach.ct_guardrails SET next_try_at = now() - interval '1 second'")
            for n in range(3):
                await _taken(gate, n)
            company = origin()
            gate.domains[company.outreach_id] = "acme.example"
            result: Any = await gate.go_on(company, None)
            await gate.farewells.wait()
            assert (result.reason, result.waits_on) == (WaitReason.REFUSED, "provider:bigmail.net")
            state = await admin.fetchval("SELECT state FROM outreach.ct_guardrails WHERE key = 'provider:bigmail.net'")
            talked = [r["provider"] for r in await admin.fetch(
                "SELECT provider FROM outreach.ct_domains WHERE talked_at IS NOT NULL")]  # fmt: skip
            refusals = await admin.fetchval("SELECT count(*) FROM outreach.ct_refusals WHERE domain = 'acme.example'")
    await admin.close()
    server.close()
    assert (state, talked, refusals) == ("closed", [], 1)


async def test_a_normal_session_at_the_first_provider_still_counts_after_the_move_to_the_next(
    database: DatabaseDsns,
) -> None:
    """It greets us well, says "later" at MAIL, and the backup answers: that is a normal session in between."""

    def says(first: bool, line: bytes) -> bytes | None:
        word = line[:4].upper()
        if word == b"MAIL" and first:
            return b"451 4.3.2 Try again later\r\n"
        return b"550 5.1.1 User unknown\r\n" if word == b"RCPT" else None

    lookup = Servers({})
    lookup.ips = {"mx1.bigmail.net": f"127.{NET}.9.2", "mx2.hoster.net": f"127.{NET}.9.3"}
    server = await asyncio.start_server(partial(converse, partial(says, True)), f"127.{NET}.9.2", 0)
    port = server.sockets[0].getsockname()[1]
    second = await asyncio.start_server(partial(converse, partial(says, False)), f"127.{NET}.9.3", port)
    admin = await asyncpg.connect(database.admin)
    state = "SELECT state FROM outreach.ct_guardrails WHERE key = 'provider:bigmail.net'"
    async with opened(database.gate) as db:
        gate = Gate(db, "one", tuple(lookup.ips), lookup, port, 600.0)
        async with running(*gate.limits.batches, gate.passes.park):
            for n in range(3):
                await gate.guardrails.silent("bigmail.net", f"other{n}.example")
            await gate.guardrails.set_state("provider:bigmail.net", "closed", "three were silent", 600.0)
            await admin.execute("UPDATE outreach.ct_guardrails SET next_try_at = now() - interval '1 second'")
            company = origin()
            gate.domains[company.outreach_id] = "acme.example"
            result: Any = await gate.go_on(company, None)
            await gate.farewells.wait()
            opened_again = await admin.fetchval(state)
            await gate.guardrails.silent("bigmail.net", "one-more.example")  # one company, after that session
            wait = await gate.guardrails.unreached("bigmail.net", 700.0)
            after = await admin.fetchval(state)
    await admin.close()
    server.close()
    second.close()
    assert isinstance(result, Failed), result
    assert opened_again == "open"
    assert (wait, after) == (None, "open"), f"one silence after the normal session, and it is {after}: {wait}"


async def test_a_provider_that_our_deadline_cut_off_was_not_silent(database: DatabaseDsns) -> None:
    """Three companies' own hosts eat the pass deadline; the shared backup greets well, in 0.4 s, and is given 0.2 s."""

    async def serve(delay_s: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await reader.readline()
                writer.close()
                return
        writer.write(b"220 hello ESMTP\r\n")
        await reader.readline()
        writer.close()

    admin = await asyncpg.connect(database.admin)
    became = []
    own = await asyncio.start_server(partial(serve, 30.0), f"127.{NET}.9.2", 0)
    port = own.sockets[0].getsockname()[1]
    shared = await asyncio.start_server(partial(serve, 0.4), f"127.{NET}.9.3", port)
    async with opened(database.gate) as db:
        for n in range(3):
            lookup = Servers({})
            hosts = (f"mx1.company{n}.example", "mx2.hoster.net")
            lookup.ips = {hosts[0]: f"127.{NET}.9.2", hosts[1]: f"127.{NET}.9.3"}
            gate = Gate(db, "one", hosts, lookup, port, 0.0)
            gate.gate._parts.pass_deadline_s = 1.2  # type: ignore[misc]  # a SimpleNamespace
            async with running(*gate.limits.batches, gate.passes.park):
                company = origin()
                gate.domains[company.outreach_id] = f"company{n}.example"
                became.append(await gate.go_on(company, None))
                await gate.farewells.wait()
        noted = [tuple(r) for r in await admin.fetch("SELECT provider, kind FROM outreach.ct_refusals")]
        wait = await gate.guardrails.unreached("hoster.net", 700.0)
    await admin.close()
    own.close()
    shared.close()
    assert (noted, wait) == ([], None), f"{noted}; {wait}"


async def test_each_provider_that_speaks_about_us_is_judged(database: DatabaseDsns) -> None:
    """The first one refuses us, the second one finds us too fast: it is to be left alone for a minute."""
    servers = Servers(
        {"mx1.bigmail.net": REFUSES, "mx2.hoster.net": b"421 4.7.0 Too many connections from your IP\r\n"}
    )
    admin = await asyncpg.connect(database.admin)
    async with worker(database, tuple(servers.banners), servers) as gate:
        company = origin()
        gate.domains[company.outreach_id] = "acme.example"
        await gate.go_on(company, None)
        state = await admin.fetchval("SELECT state FROM outreach.ct_guardrails WHERE key = 'provider:hoster.net'")
        noted = [tuple(r) for r in await admin.fetch("SELECT provider, kind FROM outreach.ct_refusals")]
    await admin.close()
    assert state == "paused", f"{state}; noted {noted}"


async def test_a_spent_cap_uses_up_no_try_of_a_provider(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The day's sessions end between the first host and the closed provider's one try."""
    one = ProbeLimits(
        mx_per_second=1000.0, mx_per_day=1000, smtp_per_day=1, smtp_domain_pause_s=0.0, smtp_per_provider=3
    )
    monkeypatch.setattr(two, "FAST", one)
    servers = Servers({"mx2.hoster.net": REFUSES})
    admin = await asyncpg.connect(database.admin)
    async with worker(database, ("mx1.acme.example", "mx2.hoster.net"), servers) as gate:
        await gate.guardrails.set_state("provider:hoster.net", "closed", "three were silent", 600.0)
        await admin.execute("UPDATE outreach.ct_guardrails SET next_try_at = now() - interval '1 second'")
        company = origin()
        gate.domains[company.outreach_id] = "acme.example"
        result: Any = await gate.go_on(company, None)
        tries = await admin.fetchval("SELECT tries FROM outreach.ct_guardrails WHERE key = 'provider:hoster.net'")
    await admin.close()
    assert isinstance(result, Wait)
    assert result.reason is WaitReason.DAILY_CAP
    assert (tries, servers.connections) == (0, 0), f"{tries} tries spent, {servers.connections} connections made"


async def test_a_company_between_two_shared_providers_is_resumed_less_and_less_often(database: DatabaseDsns) -> None:
    """Both cannot be held at once: the first one is asked again each time."""
    admin = await asyncpg.connect(database.admin)
    async with worker(database, ("mx1.bigmail.net", "mx2.hoster.net"), Servers({})) as gate:
        for n in range(3):
            await _taken(gate, n)
        company = origin()
        gate.domains[company.outreach_id] = "acme.example"
        waits: list[Any] = [await gate.go_on(company, None)]
        for hours in (1, 100):
            await admin.execute(
                "UPDATE outreach.ct_passes SET not_before = now(), since = now() - $1 * interval '1 hour'", hours
            )
            [resumed] = await gate.passes.claim_due(10)
            waits.append(await gate.go_on(resumed.origin, resumed))
    await admin.close()
    assert {(wait.reason, wait.waits_on) for wait in waits} == {(WaitReason.PROVIDER_BUSY, "")}
    assert 60.0 <= waits[0].after_s <= 90.0
    assert 3600 <= waits[1].after_s < 5600
    assert 21_600.0 <= waits[2].after_s <= 32_400.0


async def _mail(rcpt: list[bytes], reader: asyncio.StreamReader, writer: Any) -> None:
    def says(line: bytes) -> bytes | None:
        if line[:4].upper() != b"RCPT":
            return None
        return rcpt.pop(0) if len(rcpt) > 1 else rcpt[0]

    await converse(says, reader, writer)


async def test_companies_whose_own_servers_are_back_do_not_use_up_the_closed_backups_tries(
    database: DatabaseDsns,
) -> None:
    """Three companies wait at a closed backup; their own servers, preferred, answer again."""
    admin = await asyncpg.connect(database.admin)
    own = await asyncio.start_server(partial(_mail, [b"550 5.1.1 User unknown\r\n"]), f"127.{NET}.9.2", 0)
    port = own.sockets[0].getsockname()[1]
    asked: list[int] = []

    async def hoster(_reader: Any, writer: Any) -> None:
        asked.append(1)
        writer.write(b"220 hello ESMTP\r\n")
        writer.close()

    shared = await asyncio.start_server(hoster, f"127.{NET}.9.3", port)
    became: list[Any] = []
    async with opened(database.gate) as db:
        gates: dict[Any, Gate] = {}
        for n in range(3):
            lookup = Servers({})  # its own server is down: connection refused
            hosts = (f"mx1.company{n}.example", "mx2.hoster.net")
            lookup.ips = {hosts[1]: f"127.{NET}.9.3"}
            gate = Gate(db, "one", hosts, lookup, port, 0.0)
            async with running(*gate.limits.batches, gate.passes.park):
                if n == 0:
                    await gate.guardrails.set_state("provider:hoster.net", "closed", "three were silent", 600.0)
                company = origin()
                gate.domains[company.outreach_id] = f"company{n}.example"
                wait: Any = await gate.go_on(company, None)
                assert (wait.reason, wait.waits_on) == (WaitReason.PROVIDER_CLOSED, "")
                assert 590 < (wait.after_s or 0.0) <= 900, "not before its next try"
                gates[company.outreach_id] = gate
                lookup.ips[hosts[0]] = f"127.{NET}.9.2"  # and now it is up
        for _ in range(6):  # the time that they wait for has come
            await admin.execute("UPDATE outreach.ct_passes SET not_before = now()")
            for resumed in await next(iter(gates.values())).passes.claim_due(10):
                gate = gates[resumed.origin.outreach_id]
                async with running(*gate.limits.batches, gate.passes.park):
                    result = await gate.go_on(resumed.origin, resumed)
                    await gate.farewells.wait()
                    if isinstance(result, Failed | Passed):
                        became.append(result)
                        await admin.execute(
                            "DELETE FROM outreach.ct_passes WHERE outreach_id = $1", resumed.origin.outreach_id
                        )
        tries = await admin.fetchval("SELECT tries FROM outreach.ct_guardrails WHERE key = 'provider:hoster.net'")
    await admin.close()
    own.close()
    shared.close()
    assert (len(became), tries, asked) == (3, 0, [])


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param(("mx1.bigmail.net", "mx2.bigmail-backup.com", "mx3.bigmail.net"), id="a hoster with two names"),
        pytest.param(("mx1.acme.example", "mx2.hoster.net", "mx3.acme.example"), id="own, backup, own"),
    ],
)
async def test_a_paused_provider_stays_open_to_the_company_that_tries_it(
    database: DatabaseDsns, hosts: tuple[str, ...]
) -> None:
    """The first two hosts are dead, the third one talks. Its provider, the first one's too, is paused; a try is due."""
    admin = await asyncpg.connect(database.admin)
    server = await asyncio.start_server(partial(_mail, [b"550 5.1.1 User unknown\r\n"]), f"127.{NET}.9.2", 0)
    lookup = Servers({})
    lookup.ips = {hosts[2]: f"127.{NET}.9.2"}
    provider = ".".join(hosts[0].split(".")[1:])
    seen = []
    result: Any = None
    async with opened(database.gate) as db:
        gate = Gate(db, "one", hosts, lookup, server.sockets[0].getsockname()[1], 0.0)
        async with running(*gate.limits.batches, gate.passes.park):
            for kind in ControlKind:
                await gate.controls.succeeded(kind, db.now(), "works")
            await gate.guardrails.set_state(f"provider:{provider}", "paused", "too fast", 60.0)
            company = origin()
            gate.domains[company.outreach_id] = "acme.example"
            result = await gate.go_on(company, None)
            for _ in range(8):  # hours go by: whatever waits for time is due, the provider's next try too
                await gate.prove()
                await admin.execute("UPDATE outreach.ct_guardrails SET next_try_at = now() - interval '1 second'")
                await admin.execute("UPDATE outreach.ct_passes SET not_before = now()")
                for resumed in await gate.passes.claim_due(10):
                    result = await gate.go_on(resumed.origin, resumed)
                    seen.append(getattr(result, "reason", result))
                if isinstance(result, Failed | Passed):
                    break
        tries = await admin.fetchval("SELECT tries FROM outreach.ct_guardrails WHERE key = $1", f"provider:{provider}")
        used = await admin.fetchval("SELECT used FROM outreach.ct_usage WHERE tool_id = 'TOOL-005'")
    await admin.close()
    server.close()
    assert isinstance(result, Failed | Passed), f"{[str(s) for s in seen]}; tries {tries}, units {used}; {result}"


async def test_a_provider_that_says_too_fast_at_the_random_address_is_left_alone(database: DatabaseDsns) -> None:
    """A paused provider's one try: it takes the first mailbox, and to the next question says that we ask too fast."""
    admin = await asyncpg.connect(database.admin)
    rcpt = [b"250 ok\r\n", b"450 4.7.1 Too many connections from your IP, slow down\r\n"]
    server = await asyncio.start_server(partial(_mail, rcpt), f"127.{NET}.9.2", 0)
    lookup = Servers({})
    lookup.ips = {"mx1.bigmail.net": f"127.{NET}.9.2"}
    state = "SELECT state FROM outreach.ct_guardrails WHERE key = 'provider:bigmail.net'"
    async with opened(database.gate) as db:
        gate = Gate(db, "one", ("mx1.bigmail.net",), lookup, server.sockets[0].getsockname()[1], 600.0)
        async with running(*gate.limits.batches, gate.passes.park):
            await gate.guardrails.set_state("provider:bigmail.net", "paused", "too fast", 60.0)
            await gate.guardrails.refresh(now=True)
            await admin.execute("UPDATE outreach.ct_guardrails SET next_try_at = now() - interval '1 second'")
            company = origin()
            gate.domains[company.outreach_id] = "acme.example"
            result = await gate.go_on(company, None)
            await gate.farewells.wait()
            became = await admin.fetchval(state)
            noted = await admin.fetchval("SELECT count(*) FROM outreach.ct_refusals")
    await admin.close()
    server.close()
    assert isinstance(result, Passed), result
    assert (became, noted) == ("paused", 1), f"{became}, {noted} noted; {result.note}"


async def test_a_pass_waits_a_moment_itself_for_a_place_at_its_next_provider(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "PLACE_PAUSES_S", (0.25,) * 40)
    servers = Servers({"mx2.hoster.net": TOO_FAST})
    async with worker(database, ("mx1.acme.example", "mx2.hoster.net"), servers) as gate:
        others = [await _taken(gate, n) for n in range(3)]
        company = origin()
        gate.domains[company.outreach_id] = "acme.example"
        passing = asyncio.create_task(gate.go_on(company, None))
        await asyncio.sleep(0.5)
        assert not passing.done()
        await others[0].release(talked=True)
        wait = await asyncio.wait_for(passing, 10)
    assert isinstance(wait, Wait)
    assert wait.reason is WaitReason.OUR_RATE, "the second provider's word"
