"""Asks a resolver over UDP alone, to see whether its answer is cut off (TC) because it does not fit into a datagram.

c-ares fetches such an answer over TCP. Where TCP/53 is closed it reports only that the resolver cannot be reached. With
ARES_FLAG_IGNTC it hands over what the datagram holds, mostly nothing, which reads as "no data", and pycares drops the
header. So this question is written, and the header of its answer is read, here.
"""

from __future__ import annotations

import asyncio
import secrets
import struct

from ct_stream.problems import RUN_OUT

_MX, _IN, _OPT = 15, 1, 41
_RECURSE, _RESPONSE, _CUT = 0x0100, 0x8000, 0x0200  #: flags of the header, RFC 1035 section 4.1.1
_HEADER_BYTES = 12
_MAX_UDP_BYTES = 1232  #: that c-ares offers to take, too


async def is_cut_off(server: str, domain: str, wait_s: float) -> bool:
    """Return whether the resolver says that its answer about the MX of `domain` does not fit into a datagram.

    False too if it says nothing within `wait_s`. Raises OSError if this machine has run out of something.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[bool] = loop.create_future()
    question = _question(domain)
    transport = None
    try:
        async with asyncio.timeout(wait_s):
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Asking(question, answered), remote_addr=_address(server)
            )
            # The OPT record at the end (RFC 6891) says how much fits.
            transport.sendto(question + struct.pack("!BHHIH", 0, _OPT, _MAX_UDP_BYTES, 0, 0))
            return await answered
    except TimeoutError:
        return False
    except OSError as error:
        if error.errno in RUN_OUT:
            raise
        return False
    finally:
        if transport is not None:
            transport.close()


class _Asking(asyncio.DatagramProtocol):
    """Takes the first datagram that repeats the question. The socket is connected: only the resolver's come."""

    def __init__(self, question: bytes, answered: asyncio.Future[bool]) -> None:
        self._question = question
        self._answered = answered

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:  # noqa: ARG002
        asked = self._question
        repeats = data[:2] == asked[:2] and data[_HEADER_BYTES : len(asked)].lower() == asked[_HEADER_BYTES:].lower()
        if not repeats or self._answered.done():
            return
        (flags,) = struct.unpack_from("!H", data, 2)
        if flags & _RESPONSE:
            self._answered.set_result(bool(flags & _CUT))

    def error_received(self, exc: Exception) -> None:
        if not self._answered.done():
            self._answered.set_exception(exc)


def _question(domain: str) -> bytes:
    """Return a message that asks for the MX of `domain`, and announces the OPT record that follows it."""
    name = b"".join(bytes([len(label)]) + label for label in domain.rstrip(".").encode("ascii").split(b"."))
    header = struct.pack("!HHHHHH", secrets.randbits(16), _RECURSE, 1, 0, 0, 1)
    return header + name + b"\0" + struct.pack("!HH", _MX, _IN)


def _address(server: str) -> tuple[str, int]:
    """Return host and port of "192.0.2.1:53", "[2001:db8::1]:53" or an address alone."""
    if server.startswith("["):
        host, _, rest = server[1:].partition("]")
        port, _, zone = rest.removeprefix(":").partition("%")  # c-ares puts an interface behind the port
        return (f"{host}%{zone}" if zone else host), int(port or 53)
    host, colon, port = server.rpartition(":")
    return (host, int(port)) if colon and ":" not in host else (server, 53)
