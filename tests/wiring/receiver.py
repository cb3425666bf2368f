"""A real HTTP server on loopback that takes alerts, and answers as it is told."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

SECRET = "/services/T0/B0/very-secret"


class Receiver:
    """A real HTTP server on loopback, which answers as it is told."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.arrived = asyncio.Condition()
        self.answer: Callable[[], Awaitable[web.Response]] = self.take
        self.url = ""

    async def take(self) -> web.Response:
        return web.Response(status=204)

    async def handle(self, request: web.Request) -> web.Response:
        assert request.path == SECRET
        async with self.arrived:
            self.bodies.append(orjson.loads(await request.read()))
            self.arrived.notify_all()
        return await self.answer()

    async def wait_for(self, number: int, within_s: float = 20.0) -> None:
        async with asyncio.timeout(within_s), self.arrived:
            await self.arrived.wait_for(lambda: len(self.bodies) >= number)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Run one for the length of a block."""
    made = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{anything:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}{SECRET}"
    try:
        yield made
    finally:
        await runner.cleanup()
