"""/livez, /readyz and /metrics answer who asks, whatever others do with the port."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from ct_stream.metrics import Health, Metrics
from ct_stream.process import health as serving
from ct_stream.process.health import MOST_CONNECTIONS, health_server
from tests.texts import NASTIEST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def served(host: str = "127.0.0.1", health: Health | None = None) -> AsyncIterator[int]:
    async with health_server(host, 0, health or Health(), Metrics()) as port:
        yield port


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def ask(port: int, path: str = "/readyz", *, to: str = "127.0.0.1", name: str = "localhost") -> tuple[int, str]:
    async with asyncio.timeout(3):
        reader, writer = await asyncio.open_connection(to, port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), body


async def test_a_thousand_half_requests_keep_nobody_from_asking() -> None:
    halves = [
        b"",
        b"GET /readyz HTT",
        b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        b"POST /readyz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx",
    ]
    async with served() as port:
        before, clients = open_files(), []
        for number in range(1000):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(halves[number % len(halves)])
            clients.append(client)
            if number % 100 == 99:
                assert (await ask(port))[0] == 200
        assert open_files() - before <= len(clients) + MOST_CONNECTIONS
        for client in clients:
            client.close()


async def test_a_connection_that_asks_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LIFETIME_S", 0.3)
    async with served() as port, asyncio.timeout(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nX: ")
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()


async def test_another_name_than_this_machines_is_refused_on_loopback() -> None:
    async with served() as port:
        for name in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}"):
            assert (await ask(port, name=name))[0] == 200
        assert (await ask(port, name="rebound.evil.example"))[0] == 421
        assert (await ask(port, "/metrics", name=f"rebound.evil.example:{port}"))[0] == 421


async def test_whoever_serves_others_is_asked_by_any_name() -> None:
    async with served("0.0.0.0") as port:
        assert (await ask(port, name="ct-stream.outreach.svc"))[0] == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_two_colons_serve_both_families() -> None:
    async with served("::") as port:
        assert (await ask(port, to="127.0.0.1"))[0] == 200
        assert (await ask(port, to="::1"))[0] == 200


def has_ipv6_loopback() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


def resolve(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let /etc/hosts name `localhost` so, in this order and once for each line."""

    def found(_: object, port: int, **__: object) -> list[tuple[object, ...]]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [(f, socket.SOCK_STREAM, 6, "", (a, port)) for f, a in zip(families, addresses, strict=True)]

    monkeypatch.setattr("socket.getaddrinfo", found)


@pytest.mark.skipif(not has_ipv6_loopback(), reason="this machine has no ::1")
@pytest.mark.parametrize("addresses", [("::1", "127.0.0.1"), ("127.0.0.1", "::1", "127.0.0.1")])
async def test_a_name_serves_all_its_addresses(monkeypatch: pytest.MonkeyPatch, addresses: tuple[str, ...]) -> None:
    resolve(monkeypatch, *addresses)
    async with served("localhost") as port:
        monkeypatch.undo()
        assert (await ask(port, to="127.0.0.1"))[0] == 200
        assert (await ask(port, to="::1"))[0] == 200
        assert (await ask(port, to="::1", name="rebound.evil.example"))[0] == 421


async def test_a_name_serves_the_address_that_this_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where /etc/hosts names ::1 though there is no IPv6."""
    resolve(monkeypatch, "2001:db8::1", "127.0.0.1")
    async with served("localhost") as port:
        monkeypatch.undo()
        assert (await ask(port))[0] == 200


async def test_a_port_that_is_taken_at_one_address_of_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        resolve(monkeypatch, "127.0.0.1", "127.0.0.2")
        with pytest.raises(OSError, match="in use"):
            async with health_server("localhost", taken.getsockname()[1], Health(), Metrics()):
                pass
        with socket.create_server(("127.0.0.1", taken.getsockname()[1])):
            pass  # nothing is left behind


async def test_a_strangers_words_in_a_trouble_break_no_answer() -> None:
    health = Health()
    health.set("kafka", NASTIEST)
    async with served(health=health) as port:
        status, body = await ask(port)
    assert status == 503
    assert "CRITICAL" in json.loads(body)["troubles"]["kafka"]
