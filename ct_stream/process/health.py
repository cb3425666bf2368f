"""Serves /livez and /readyz for the supervisor, and /metrics.

Whoever reaches the port may open connections and send nothing, or half a request. So each connection ends after a few
seconds whatever it did, and when there are too many the oldest one is closed: a probe that asks now is answered.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from aiohttp import web
from prometheus_client import generate_latest

from ct_stream.cancelling import end_all
from ct_stream.texts import for_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ct_stream.metrics import Health, Metrics

MOST_CONNECTIONS = 32
LIFETIME_S = 15.0  #: of a connection; clients that keep one open connect again
_BACKLOG = 128


@asynccontextmanager
async def health_server(host: str, port: int, health: Health, metrics: Metrics) -> AsyncIterator[int]:
    """Serve on host:port (0: any free port) and yield the port. Raises OSError if it is taken.

    The host `::` serves IPv4 too, and a name serves each of its addresses: clients try `localhost` as ::1 first.
    """

    async def livez(_: web.Request) -> web.Response:
        return _json({"alive": True}, 200)

    async def readyz(_: web.Request) -> web.Response:
        body = {"ready": health.is_ready, "troubles": health.troubles, "notes": health.notes}
        return _json(body, 200 if health.is_ready else 503)

    async def expose(_: web.Request) -> web.Response:
        metrics.ready.set(1 if health.is_ready else 0)
        return web.Response(
            body=generate_latest(metrics.registry),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    listening = _listen(host, port)
    try:
        is_loopback = all(_is_loopback(each.getsockname()[0]) for each in listening)
        middlewares = [_for_this_machine_alone] if is_loopback else []
        app = web.Application(middlewares=middlewares)
        app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", expose)])
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, keepalive_timeout=LIFETIME_S, lingering_time=0, max_headers=100
        )
        await runner.setup()
        assert runner.server is not None
        open_ones: list[asyncio.Transport] = []
        accepting = [
            asyncio.create_task(_accept(each, runner.server, open_ones), name=f"web:{number}")
            for number, each in enumerate(listening)
        ]
        try:
            yield int(listening[0].getsockname()[1])
        finally:
            await end_all(accepting)
            for transport in open_ones:
                _end(transport)
            await runner.cleanup()
    finally:
        _close(listening)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each address of the host, all with one port. Raises OSError."""
    if host == "::" and socket.has_dualstack_ipv6():
        both = socket.create_server((host, port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
        both.setblocking(False)
        return [both]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listening: list[socket.socket] = []
    lacking: OSError | None = None
    for family, address in dict.fromkeys((family, address[0]) for family, _, _, _, address in found):
        its_port = listening[0].getsockname()[1] if listening else port
        try:
            each = socket.create_server((str(address), its_port), family=family, backlog=_BACKLOG)
        except OSError as error:
            # /etc/hosts often names ::1 on a machine without IPv6.
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                lacking = error
                continue
            _close(listening)
            if port == 0 and listening and error.errno == errno.EADDRINUSE:
                return _listen(host, port)  # the port that was free at the first address is taken at this one
            raise
        each.setblocking(False)
        listening.append(each)
    if not listening:
        raise lacking or OSError(errno.EADDRNOTAVAIL, f"{host} has no address")
    return listening


def _close(listening: list[socket.socket]) -> None:
    for each in listening:
        each.close()


async def _accept(listening: socket.socket, server: web.Server, open_ones: list[asyncio.Transport]) -> None:
    """Hand connections to the server, until cancelled. `open_ones`: those of all sockets."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            connection, _ = await loop.sock_accept(listening)
        except OSError:  # it is gone again, or no descriptor is free
            await asyncio.sleep(0.1)
            continue
        open_ones[:] = [transport for transport in open_ones if not transport.is_closing()]
        while len(open_ones) >= MOST_CONNECTIONS:
            _end(open_ones.pop(0))
        with suppress(OSError):
            transport: asyncio.Transport
            transport, _ = await loop.connect_accepted_socket(server, connection)
            open_ones.append(transport)
            loop.call_later(LIFETIME_S, _end, transport)


def _end(transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        transport.abort()


@web.middleware
async def _for_this_machine_alone(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer no page that a browser here was led to under another name (DNS rebinding): RFC 9110, 15.5.20."""
    name = request.url.host or ""
    if name != "localhost" and not _is_loopback(name):
        return web.Response(
            status=421, text="this address serves this machine alone; set CT_WEB_HOST to serve others\n"
        )
    return await handler(request)


def _is_loopback(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _json(body: object, status: int) -> web.Response:
    return web.Response(text=for_json(body) + "\n", status=status, content_type="application/json")
