"""Carries connections between a worker's loopback and the world's: settings and broker speak of 127.0.0.1 only."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.ways.namespaces import Namespace

_PIECE_BYTES = 65536


async def forward(namespace: Namespace, ports: Iterable[int]) -> list[asyncio.Server]:
    """Let each of these ports of the namespace's 127.0.0.1 lead to the same port of ours."""
    servers = []
    for port in ports:
        with namespace.inside():
            listening = socket.create_server(("127.0.0.1", port), backlog=256)

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = port) -> None:
            try:
                there = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                writer.transport.abort()
                return
            await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))

        servers.append(await asyncio.start_server(carry, sock=listening))
    return servers


async def get(namespace: Namespace, port: int, path: str, within_s: float = 3.0) -> tuple[int, bytes] | None:
    """Return the status and the body of a page that is served on the namespace's loopback; None where none is."""
    with namespace.inside():
        sock = socket.socket()
    sock.setblocking(False)
    try:
        async with asyncio.timeout(within_s):
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            return int(head.split()[1]), body
    except (OSError, TimeoutError, IndexError):
        sock.close()
        return None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await reader.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    with suppress(OSError):
        writer.close()
