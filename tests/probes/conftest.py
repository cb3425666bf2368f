"""Scripted DNS and SMTP servers on loopback: what they were not told to expect fails the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeAlias, cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

Zone: TypeAlias = dict[tuple[str, str], "list[str] | str"]


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
        self._truncate_udp = truncate_udp
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tcp = await asyncio.start_server(self._serve_tcp, "127.0.0.1", 0)
        self.port: int = self._tcp.sockets[0].getsockname()[1]
        self._udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self), ("127.0.0.1", self.port))

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

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
        elif found == "DROP":
            return None
        elif isinstance(found, str) and found != "NODATA":
            response.set_rcode(dns.rcode.from_text(found))
        elif transport == "udp" and self._truncate_udp:
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
