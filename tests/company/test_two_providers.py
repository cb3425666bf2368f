"""A company whose hosts stand at two providers: each one has its own evidence, its own rail and its own tries.

Over the real statements, guardrails, prober and sockets; the controls always succeed.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from ct_stream.company.farewells import Farewells
from ct_stream.company.one_pass import WorkerGate
from ct_stream.gate.memory import Memory
from ct_stream.gate.patterns import render
from ct_stream.gate.questions import ControlKind, MxAnswer, MxStatus
from ct_stream.gate.records import Known
from ct_stream.gate.toolbox_limits import ProbeLimits
from ct_stream.gate.verdicts import Failed, Passed
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.probes.mailbox import MailboxProber
from ct_stream.probes.smtp import SmtpSettings
from ct_stream.store.control_ledger import ControlLedger
from ct_stream.store.guardrails import Guardrails
from ct_stream.store.limits import SharedLimits
from ct_stream.store.parked import ParkedCompanies
from tests.company.ways import proven_way
from tests.gate.world import RULES
from tests.store.parts import LIMITS, opened, origin, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import DatabaseDsns

NET = 10 + os.getpid() % 200  #: of this process alone, so that tests side by side have ports of their own
FAST = ProbeLimits(**({name: getattr(LIMITS, name) for name in ProbeLimits.__slots__} | {"smtp_domain_pause_s": 0.0}))


class Servers:
    """Addresses of hosts; a host without one in `banners` refuses the connection."""

    def __init__(self, banners: dict[str, bytes]) -> None:
        self.banners, self.connections = banners, 0
        self.ips = {host: f"127.{NET}.9.{n + 2}" for n, host in enumerate(banners)}

    async def lookup_addresses(self, host: str) -> tuple[str, ...]:
        return (self.ips.get(host, f"127.{NET}.9.200"),)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        async def serve(banner: bytes, _reader: Any, writer: asyncio.StreamWriter) -> None:
            self.connections += 1
            writer.write(banner)
            writer.close()

        port, servers = 0, []
        for host, banner in self.banners.items():
            server = await asyncio.start_server(partial(serve, banner), self.ips[host], port)
            port = server.sockets[0].getsockname()[1]
            servers.append(server)
        yield port or 9
        for server in servers:
            server.close()


async def converse(says: Callable[[bytes], bytes | None], reader: asyncio.StreamReader, writer: Any) -> None:
    """Greet, and answer each command as `says` does, or with a plain yes."""
    writer.write(b"220 hello ESMTP\r\n")
    while line := await reader.readline():
        if line[:4].upper() == b"QUIT":
            writer.write(b"221 bye\r\n")
            break
        writer.write(says(line) or b"250 ok\r\n")
    writer.close()


class Gate:
    """A worker's gate over real parts; the controls always succeed."""

    def __init__(self, db: Any, owner: str, mx: tuple[str, ...], servers: Servers, port: int, settle_s: float) -> None:
        self.db = db
        self.limits, self.passes = SharedLimits(db, owner, FAST), ParkedCompanies(db, owner, "test")
        self.controls, self.guardrails = ControlLedger(db, 0.0, owner), Guardrails(db, settle_s, owner)
        self.controls._most_apart_s = 600.0
        self.domains: dict[Any, str] = {}
        self.farewells = Farewells()
        settings = SmtpSettings(helo="probe.example", mail_from="", port=port, connect_s=1.0, command_s=1.0)

        async def recall(_: str) -> Memory:
            return Memory()

        async def lookup_mx(domain: str) -> MxAnswer:
            return MxAnswer(status=MxStatus.FOUND, hosts=tuple(host.format(domain=domain) for host in mx))

        def prober(permits: Any, stopwatch: Any) -> MailboxProber:
            return MailboxProber(resolver=servers, permits=permits, settings=settings, stopwatch=stopwatch)

        count = SimpleNamespace(labels=lambda **_: SimpleNamespace(inc=lambda: None))
        self.gate = WorkerGate(
            SimpleNamespace(
                rules=RULES, controls=self.controls, limits=self.limits, guardrails=self.guardrails,
                probing=SimpleNamespace(resolver=SimpleNamespace(lookup_mx=lookup_mx), prober=prober),
                paid_calls=SimpleNamespace(off_because=lambda: "of"), memory=SimpleNamespace(recall=recall),
                own_way=proven_way(), farewells=self.farewells,
                metrics=SimpleNamespace(tool_calls=count),
                spine_check=SimpleNamespace(saw=lambda **_: None), pass_deadline_s=90.0, spine_grace_s=1.0,
                stalled_since=lambda _: 0.0, now=db.now, age_s=db.age_s,
            )  # type: ignore[arg-type]
        )  # fmt: skip

    async def go_on(self, company: Any, resumed: Any) -> Passed | Failed | Wait:
        known = Known(outcome=None, pass_state=None, in_spine=True, domain=self.domains[company.outreach_id])
        run = await self.gate.begin(company, known, resumed)
        result = await run.run()
        if isinstance(result, Wait):
            await self.passes.park(run.parked(company, None, result))
        return result

    async def prove(self) -> None:
        for kind in ControlKind:
            begun_at = await self.controls.begin(kind)
            if begun_at is not None:
                await self.controls.succeeded(kind, begun_at, "works")


@asynccontextmanager
async def worker(
    database: DatabaseDsns, mx: tuple[str, ...], servers: Servers, settle_s: float = 0.0
) -> AsyncIterator[Gate]:
    async with opened(database.gate) as db, servers.serving() as port:
        gate = Gate(db, "one", mx, servers, port, settle_s)
        async with running(*gate.limits.batches, gate.passes.park):
            for kind in ControlKind:
                await gate.controls.succeeded(kind, db.now(), "works")
            yield gate


async def decide(gate: Gate, rounds: int = 12) -> Passed | Failed | Wait:
    """Bring whatever is due on, with a proof before each round; return what became of the last company."""
    result: Any = None
    for _ in range(rounds):
        await gate.prove()
        for resumed in await gate.passes.claim_due(10):
            result = await gate.go_on(resumed.origin, resumed)
            if isinstance(result, Passed | Failed):
                await gate.db.run("give_back", "one", [resumed.origin.outreach_id])
                async with gate.db.connection() as c:
                    await c.execute(
                        "UPDATE outreach.ct_passes SET not_before = 'infinity', waits_on = 'done' "
                        "WHERE outreach_id = $1",
                        resumed.origin.outreach_id,
                    )
                return result
        await asyncio.sleep(0.02)
    waits: Wait = result
    return waits


@pytest.mark.parametrize(
    "mx",
    [
        pytest.param(("mx1.hoster.net", "mx2.hoster.net"), id="one provider"),
        pytest.param(("mx1.hoster.net", "mx2.hoster-backup.com"), id="a hoster with two names"),
        pytest.param(("mx1.{domain}", "mx2.hoster.net"), id="own first host dead, shared backup drops us"),
    ],
)
async def test_the_third_silent_company_of_a_provider_is_not_failed(
    database: DatabaseDsns, mx: tuple[str, ...]
) -> None:
    """Nobody listens on any host: to us the hoster is silent. Five of its companies, one after the other."""
    became = []
    async with opened(database.gate) as db:
        for n in range(5):
            domain = f"company{n}.example"
            hosts = tuple(host.format(domain=domain) for host in mx)
            servers = Servers({})
            gate = Gate(db, "one", hosts, servers, 9, 0.0)
            async with running(*gate.limits.batches, gate.passes.park):
                for kind in ControlKind:
                    await gate.controls.succeeded(kind, db.now(), "works")
                company = origin()
                gate.domains[company.outreach_id] = domain
                result = await gate.go_on(company, None)
                if isinstance(result, Wait) and result.waits_on.startswith("control:"):
                    result = await decide(gate)
                became.append(result.code if isinstance(result, Failed) else getattr(result, "reason", result))
                async with db.connection() as c:  # the next company alone is looked at
                    await c.execute("UPDATE outreach.ct_passes SET not_before = 'infinity', waits_on = 'done'")
    assert "CT-M-SMTP-FAIL" not in [str(b) for b in became[2:]], f"{[str(b) for b in became]}"


@pytest.mark.parametrize(
    "mx",
    [
        pytest.param(("mx1.bigmail.net",), id="alone"),
        pytest.param(("mx1.acme.example", "mx1.bigmail.net"), id="behind an own host that is dead"),
    ],
)
async def test_a_provider_that_says_too_fast_is_left_alone_longer_each_time(
    database: DatabaseDsns, mx: tuple[str, ...]
) -> None:
    servers = Servers({"mx1.bigmail.net": b"421 4.7.0 Too many connections from your IP\r\n"})
    admin = await asyncpg.connect(database.admin)
    async with worker(database, mx, servers) as gate:
        company = origin()
        gate.domains[company.outreach_id] = "acme.example"
        first = await gate.go_on(company, None)
        assert isinstance(first, Wait)
        assert first.reason is WaitReason.OUR_RATE
        seen = [servers.connections]
        # The minute of the first pause is over, once. From here on no time passes but the rounds of the safety net.
        await admin.execute("UPDATE outreach.ct_guardrails SET next_try_at = now() - interval '1 second'")
        begin = time.monotonic()
        for _ in range(6):
            await gate.passes.wake_sleepers(10)  # every 5 s in each worker
            for resumed in await gate.passes.claim_due(10):
                await gate.go_on(resumed.origin, resumed)
            seen.append(servers.connections)
        took = time.monotonic() - begin
    await admin.close()
    assert seen[-1] - seen[0] <= 1, f"connections by round {seen}, within {took:.1f} s, though a pause of 120 s is due"


REFUSES = b"554 5.7.1 Service unavailable; client host blocked using zen.spamhaus.org\r\n"


@pytest.mark.parametrize(
    "mx",
    [
        pytest.param(("mx2.hoster.net",), id="alone"),
        pytest.param(("mx1.acme.example", "mx2.hoster.net"), id="behind an own host that refuses us"),
        pytest.param(("mx3.acme.example", "mx2.hoster.net"), id="behind an own host that is dead"),
    ],
)
async def test_a_closed_providers_silence_fails_no_company(database: DatabaseDsns, mx: tuple[str, ...]) -> None:
    """The provider is closed (it drops our packets, three companies have shown it). Its host is asked all the same."""
    servers = Servers({"mx1.acme.example": REFUSES})
    async with worker(database, mx, servers) as gate:
        for n in range(3):
            await gate.guardrails.silent("hoster.net", f"other{n}.example")
        await gate.guardrails.set_state("provider:hoster.net", "closed", "three were silent", 600.0)
        company = origin()
        gate.domains[company.outreach_id] = "acme.example"
        result: Any = await gate.go_on(company, None)
        if isinstance(result, Wait) and result.reason is not WaitReason.PROVIDER_CLOSED:
            result = await decide(gate)
    assert not isinstance(result, Failed), f"{result}"


async def test_a_clock_of_postgres_that_jumps_ahead_settles_no_refusal(database: DatabaseDsns) -> None:
    """FAULTS row 25. Its own server refuses us; seconds later Postgres's clock is set an hour ahead."""
    servers = Servers({"mx1.acme.example": REFUSES})
    async with worker(database, ("mx1.acme.example",), servers, settle_s=600.0) as gate:
        company = origin()
        gate.domains[company.outreach_id] = "acme.example"
        begin = time.monotonic()
        result: Any = await gate.go_on(company, None)
        result = await decide(gate, rounds=4)
        assert isinstance(result, Wait)
        assert result.reason is WaitReason.REFUSED, result
        assert 590 < (result.after_s or 0) <= 600
        async with gate.db.connection() as c:  # the clock jumps ahead: to Postgres all stamps are an hour old
            await c.execute(
                "UPDATE outreach.ct_passes SET failed_at = failed_at - interval '1 hour', "
                "asked_at = asked_at - interval '1 hour', not_before = not_before - interval '1 hour'"
            )
            await c.execute(
                "UPDATE outreach.ct_controls SET started_at = started_at - interval '1 hour', "
                "ok_begun_at = ok_begun_at - interval '1 hour', proven_at = proven_at - interval '1 hour', "
                "proven_since = proven_since - interval '1 hour'"
            )
        [resumed] = await gate.passes.claim_due(10)
        result = await gate.go_on(company, resumed)
    assert not isinstance(result, Failed), f"{result.code} {time.monotonic() - begin:.1f} s after the refusal: {result}"


@pytest.mark.parametrize("stage", ["banner", "mail"])
@pytest.mark.parametrize("takes", ["nobody", "the first"])
async def test_a_refusal_of_us_counts_even_if_a_backup_answers(database: DatabaseDsns, stage: str, takes: str) -> None:
    """The first host's provider refuses us; a backup elsewhere denies each mailbox, or takes one."""
    hosts = {"mx1.bigmail.net": f"127.{NET}.9.2", "mx2.backup.org": f"127.{NET}.9.3"}
    first = [render(RULES.patterns[0], RULES.probe_name, "acme.example").local_part.encode()]

    def says(refusing: bool, line: bytes) -> bytes | None:
        word = line[:4].upper()
        if word == b"MAIL" and refusing:
            return REFUSES
        unknown = word == b"RCPT" and (takes == "nobody" or first[0] not in line)
        return b"550 5.1.1 User unknown\r\n" if unknown else None

    async def serve(refusing: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if refusing and stage == "banner":
            writer.write(REFUSES)
            writer.close()
            return
        await converse(partial(says, refusing), reader, writer)

    port, servers, lookup = 0, [], Servers({})
    lookup.ips = hosts
    for n, ip in enumerate(hosts.values()):
        server = await asyncio.start_server(partial(serve, n == 0), ip, port)
        port = server.sockets[0].getsockname()[1]
        servers.append(server)
    async with opened(database.gate) as db:
        gate = Gate(db, "one", tuple(hosts), lookup, port, 600.0)
        async with running(*gate.limits.batches, gate.passes.park):
            company = origin()
            gate.domains[company.outreach_id] = "acme.example"
            result = await gate.go_on(company, None)
            await gate.farewells.wait()
            async with db.connection() as c:
                kinds = [tuple(r) for r in await c.fetch("SELECT kind, provider FROM outreach.ct_refusals")]
                found = await c.fetch("SELECT provider FROM outreach.ct_domains WHERE talked_at IS NOT NULL")
                talked = [row["provider"] for row in found]
    for server in servers:
        server.close()
    assert kinds == [("refused", "bigmail.net")]
    assert talked == ["backup.org"], "who refuses us has not talked normally"
    assert isinstance(result, Passed if takes == "the first" else Wait)


@pytest.mark.parametrize(
    "mx",
    [
        pytest.param(("mx1.bigmail.net",), id="alone"),
        pytest.param(("mx1.acme.example", "mx1.bigmail.net"), id="behind an own host that is dead"),
    ],
)
async def test_a_provider_that_talks_normally_again_is_opened(database: DatabaseDsns, mx: tuple[str, ...]) -> None:
    """Else all who wait for it are woken one by one, every five seconds."""
    too_fast = [True]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"421 4.7.0 Too many connections from your IP\r\n" if too_fast[0] else b"220 hello\r\n")
        while not too_fast[0] and (line := await reader.readline()):
            word = line[:4].upper()
            writer.write({b"RCPT": b"550 5.1.1 User unknown\r\n", b"QUIT": b"221 bye\r\n"}.get(word, b"250 ok\r\n"))
        writer.close()

    lookup = Servers({})
    lookup.ips = {"mx1.bigmail.net": f"127.{NET}.9.2"}
    server = await asyncio.start_server(serve, f"127.{NET}.9.2", 0)
    async with opened(database.gate) as db:
        gate = Gate(db, "one", mx, lookup, server.sockets[0].getsockname()[1], 0.0)
        async with running(*gate.limits.batches, gate.passes.park):
            company = origin()
            gate.domains[company.outreach_id] = "acme.example"
            wait = await gate.go_on(company, None)
            assert isinstance(wait, Wait)
            assert wait.reason is WaitReason.OUR_RATE
            too_fast[0] = False
            admin = await asyncpg.connect(database.admin)
            await admin.execute("UPDATE outreach.ct_guardrails SET next_try_at = now() - interval '1 second'")
            await gate.passes.wake_sleepers(10)
            [resumed] = await gate.passes.claim_due(10)
            result = await gate.go_on(company, resumed)
            await gate.farewells.wait()
            state = await admin.fetchval("SELECT state FROM outreach.ct_guardrails WHERE key = 'provider:bigmail.net'")
            await admin.close()
    server.close()
    assert state == "open", f"{state}, though it answered all 8 questions ({result})"
