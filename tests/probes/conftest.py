"""Scripted DNS and SMTP servers on loopback: what they were not told to expect fails the test."""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import trustme

Zone: TypeAlias = dict[tuple[str, str], "list[str] | str"]


_Talk: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def on_one_port(
    datagrams: Callable[[], asyncio.DatagramProtocol], talk: _Talk
) -> tuple[asyncio.DatagramTransport, asyncio.Server]:
    """Listen over UDP and TCP on one free port: one that is free for TCP may be somebody's socket for UDP."""
    loop = asyncio.get_running_loop()
    while True:
        tcp = await asyncio.start_server(talk, "127.0.0.1", 0)
        try:
            udp, _ = await loop.create_datagram_endpoint(datagrams, ("127.0.0.1", tcp.sockets[0].getsockname()[1]))
        except OSError as error:
            tcp.close()
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return udp, tcp


class DnsServer:
    """One resolver on 127.0.0.1, over UDP and TCP.

    `zone` maps (name, type) to records, or to an rcode's name, "NODATA" or "DROP". A name ending in "*." answers all
    names below it. Queries outside the zone are kept in `unexpected`.
    """

    def __init__(self, zone: Zone, *, delay_s: float = 0.0, truncate_udp: bool = False) -> None:
        self.zone = zone
        self.queries: list[tuple[str, str, str]] = []  #: (transport, name, type)
        self.unexpected: list[tuple[str, str]] = []
        self.delay_s = delay_s
        self.lose = 0  #: datagrams that get lost from now on
        self.silent_tcp = False
        self.truncated: set[str] = set()  #: names whose answers fit into no datagram; with `truncate_udp` all
        self._truncate_udp = truncate_udp
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._udp, self._tcp = await on_one_port(lambda: _Datagrams(self), self._serve_tcp)
        self.port: int = self._tcp.sockets[0].getsockname()[1]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close_tcp(self) -> None:
        self._tcp.close()

    async def stop(self) -> None:
        self._udp.close()
        self._tcp.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def answer(self, wire: bytes, transport: str) -> bytes | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name, kind = question.name.to_text().lower(), dns.rdatatype.to_text(question.rdtype)
        self.queries.append((transport, name, kind))
        found = self.zone.get((name, kind))
        if found is None:
            found = self.zone.get(("*." + name.partition(".")[2], kind))
        response = dns.message.make_response(query)
        if found is None:
            self.unexpected.append((name, kind))
            response.set_rcode(dns.rcode.REFUSED)
        elif found == "DROP" or (transport == "tcp" and self.silent_tcp):
            return None
        elif isinstance(found, str) and found != "NODATA":
            response.set_rcode(dns.rcode.from_text(found))
        elif transport == "udp" and (self._truncate_udp or name in self.truncated):
            response.flags |= dns.flags.TC
        elif not isinstance(found, str):
            for line in found:
                owner, _, rest = line.partition(" ") if " IN " in line else (name, "", f"IN {kind} {line}")
                _, rdtype, data = rest.split(" ", 2)
                response.answer.append(dns.rrset.from_text(owner, 60, "IN", rdtype, data))
        return response.to_wire(max_size=65535)

    def later(self, reply: Callable[[], None]) -> None:
        delay_s = self.delay_s

        async def wait() -> None:
            await asyncio.sleep(delay_s)
            reply()

        task = asyncio.create_task(wait())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(2), "big")
                answer = self.answer(await reader.readexactly(size), "tcp")
                if answer is not None:
                    writer.write(len(answer).to_bytes(2, "big") + answer)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            writer.close()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._server.answer(data, "udp")
        if self._server.lose:
            self._server.lose -= 1
            return
        if answer is not None:
            self._server.later(lambda: self._transport.sendto(answer, addr))


DnsFactory: TypeAlias = Callable[..., Awaitable[DnsServer]]


@pytest.fixture
async def dns_server() -> AsyncIterator[DnsFactory]:
    """Start scripted resolvers; a question that none was told to expect fails the test."""
    servers: list[DnsServer] = []

    async def start(zone: Zone, *, delay_s: float = 0.0, truncate_udp: bool = False) -> DnsServer:
        server = DnsServer(zone, delay_s=delay_s, truncate_udp=truncate_udp)
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop()
    assert [question for server in servers for question in server.unexpected] == []


# ---------------------------------------------------------------- SMTP

Step: TypeAlias = "str | bytes | tuple[str, str | bytes | Callable[[SmtpServer], Awaitable[bytes]] | None]"
Dialogue: TypeAlias = "Sequence[Step]"


@dataclass
class SmtpServer:
    """One mail server on a loopback address: each connection plays the next dialogue.

    A dialogue's first step may be what is said at once; the others are (expected command, reply). A reply of None
    hangs up without one; after the last step the server says nothing more. QUIT is always answered, and ends it.
    """

    ip: str
    dialogues: list[Dialogue]
    tls: ssl.SSLContext | None = None
    connections: int = 0
    commands: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    hang_up_after: bool = False  #: when a dialogue is over
    answers_quit: bool = True
    sent: int = 0

    async def start(self, port: int) -> int:
        self._handlers: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, self.ip, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        self._server.close()
        for task in list(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)
        try:
            await self._play(reader, writer)
        except (ConnectionError, ssl.SSLError):
            pass
        finally:
            writer.transport.abort()

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if not self.dialogues:
            self.unexpected.append("a connection")
            return None
        for step in self.dialogues.pop(0):
            if not isinstance(step, tuple):
                await self._say(writer, step)
                continue
            expected, reply = step
            line = (await reader.readline()).decode().rstrip("\r\n")
            if line in ("", "QUIT"):
                return await self._bye(writer, line)
            self.commands.append(line)
            if line != expected:
                self.unexpected.append(f"{line} (expected {expected})")
                return None
            if reply is None:
                return None
            if callable(reply):
                reply = await reply(self)
            await self._say(writer, reply)
            if expected == "STARTTLS" and self.tls is not None:
                await writer.start_tls(self.tls)
        if not self.hang_up_after:
            while line := (await reader.readline()).decode().rstrip("\r\n"):
                if line == "QUIT":
                    return await self._bye(writer, line)
                self.unexpected.append(line)
        return None

    async def _bye(self, writer: asyncio.StreamWriter, line: str) -> None:
        self.commands.append(line or "EOF")
        if line == "QUIT":
            await (self._say(writer, "221 bye") if self.answers_quit else asyncio.sleep(30))

    async def _say(self, writer: asyncio.StreamWriter, reply: str | bytes) -> None:
        data = reply if isinstance(reply, bytes) else reply.replace("\n", "\r\n").encode() + b"\r\n"
        writer.write(data)
        await writer.drain()
        self.sent += len(data)


class MailFarm:
    """Scripted mail servers that share one port on 127.0.0.1, 127.0.0.2 and so on."""

    port = 0

    def __init__(self) -> None:
        self.servers: list[SmtpServer] = []

    async def server(self, *dialogues: Dialogue, tls: ssl.SSLContext | None = None) -> SmtpServer:
        server = SmtpServer(f"127.0.0.{len(self.servers) + 1}", list(dialogues), tls)
        self.port = await server.start(self.port)
        self.servers.append(server)
        return server

    @staticmethod
    def hello(*more: Step, mail: str = "250 2.1.0 ok", ehlo: str = "250 mx.example") -> list[Step]:
        """Return a dialogue up to MAIL FROM, and `more`."""
        start: list[Step] = ["220 mx.example ESMTP", ("EHLO gate.example", ehlo)]
        return [*start, ("MAIL FROM:<probe@gate.example>", mail), *more]

    @staticmethod
    def rcpt(local_part: str, reply: str | bytes | None) -> Step:
        return (f"RCPT TO:<{local_part}@acme.example>", reply)

    def no_answer_ip(self) -> str:
        """Return a loopback address at which nothing listens."""
        return "127.0.0.250"

    @staticmethod
    def self_signed() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("elsewhere.example").configure_cert(context)
        return context


@pytest.fixture
async def farm() -> AsyncIterator[MailFarm]:
    """Start scripted mail servers; a command or connection that none was told to expect fails the test."""
    farm = MailFarm()
    yield farm
    for server in farm.servers:
        await server.stop()
    assert [line for server in farm.servers for line in server.unexpected] == []
