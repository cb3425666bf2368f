"""Serves /livez and /readyz for the supervisor, and /metrics."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import orjson
from aiohttp import web
from prometheus_client import generate_latest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ct_stream.metrics import Health, Metrics


@asynccontextmanager
async def health_server(host: str, port: int, health: Health, metrics: Metrics) -> AsyncIterator[int]:
    """Serve on host:port (0: any free port) and yield the port. Raises OSError if it is taken."""

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

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", expose)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port, shutdown_timeout=1.0)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _json(body: object, status: int) -> web.Response:
    return web.Response(body=orjson.dumps(body) + b"\n", status=status, content_type="application/json")
