"""Who answers in the servers' place on a worker's broken way: proxies that say yes, and resolvers that lie."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import dns.exception
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trustme

if TYPE_CHECKING:
    from tests.ways.namespaces import Namespace

YES_PORT, YES_TLS_PORT = 10025, 10026
NOTHING_EXISTS_PORT, OWN_MX_PORT = 10053, 10054
OWN_MX = "10.77.254.25"  #: where the lying resolver's MX is

_EHLO = b"250-mx1.control.example\r\n250-PIPELINING\r\n%s250 8BITMIME\r\n"


class YesServer:
    """A mail server that takes every recipient."""

    def __init__(self, taken: list[tuple[float, str]], *, starttls: bool) -> None:
        """`taken`: each recipient that it took, and when (time of day)."""
        self._taken = taken
        self._tls = _own_certificate() if starttls else None

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        tls = self._tls
        with suppress(OSError, ssl.SSLError, ValueError):
            writer.write(b"220 mx1.control.example ESMTP\r\n")
            while line := await reader.readline():
                match line[:4].upper():
                    case b"EHLO":
                        writer.write(_EHLO % (b"250-STARTTLS\r\n" if tls is not None else b""))
                    case b"STAR" if tls is not None:
                        writer.write(b"220 2.0.0 Go on\r\n")
                        await writer.start_tls(tls)
                        tls = None
                    case b"QUIT":
                        writer.write(b"221 2.0.0 Bye\r\n")
                        break
                    case b"RCPT":
                        self._taken.append((time.time(), line.decode(errors="replace")[8:].strip().strip("<>")))
                        writer.write(b"250 2.1.5 Ok\r\n")
                    case _:
                        writer.write(b"250 2.1.5 Ok\r\n")
        writer.close()


def _own_certificate() -> ssl.SSLContext:
    """Return the TLS side of a proxy: the right name, in a certificate of an authority that nobody trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx1.control.example", "control.example").configure_cert(context)
    return context


class LyingResolver(asyncio.DatagramProtocol):
    """A resolver that knows no name, or for each name the same MX."""

    def __init__(self, own_mx: str | None) -> None:
        self._own_mx = own_mx

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Keep the socket to answer with."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Lie."""
        with suppress(dns.exception.DNSException):
            question = dns.message.from_wire(data)
            asked = question.question[0]
            response = dns.message.make_response(question, recursion_available=True)
            kind = dns.rdatatype.to_text(asked.rdtype)
            if self._own_mx is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
            elif record := {"MX": "10 mx.captive.example.", "A": self._own_mx}.get(kind):
                response.answer.append(dns.rrset.from_text(asked.name, 60, "IN", kind, record))
            self._transport.sendto(response.to_wire(), addr)


async def move_in(namespace: Namespace, taken: list[tuple[float, str]]) -> list[asyncio.BaseTransport | asyncio.Server]:
    """Let them all listen in a namespace; nobody meets them until its rules lead there.

    `taken` gets each recipient that one of them says yes to, and when.
    """
    loop = asyncio.get_running_loop()
    inside: list[asyncio.BaseTransport | asyncio.Server] = []
    for port, starttls in ((YES_PORT, False), (YES_TLS_PORT, True)):
        with namespace.inside():
            listening = socket.create_server(("127.0.0.1", port), backlog=256)
        inside.append(await asyncio.start_server(YesServer(taken, starttls=starttls).talk, sock=listening))
    for port, own_mx in ((NOTHING_EXISTS_PORT, None), (OWN_MX_PORT, OWN_MX)):
        with namespace.inside():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", port))
        sock.setblocking(False)
        transport, _ = await loop.create_datagram_endpoint(lambda own_mx=own_mx: LyingResolver(own_mx), sock=sock)  # type: ignore[misc]
        inside.append(transport)
    return inside
