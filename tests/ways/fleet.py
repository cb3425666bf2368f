"""Whole workers, each with a way out of its own, before one broker, one Postgres and one set of mail servers."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import orjson
from aiokafka import AIOKafkaProducer

from ct_stream.settings import Settings
from tests.faults.harness import Stack
from tests.ways import impostors
from tests.ways.forwarding import forward, get
from tests.ways.namespaces import WORLD, Namespace

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path
    from uuid import UUID

_WEB_PORT = 6066
_READY_S = 60.0
_REPLY_S = 0.02
_LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a worker's /readyz says; no status where it does not answer."""

    status: int | None
    troubles: dict[str, str]
    notes: dict[str, str]

    @property
    def is_ready(self) -> bool:
        """Return whether the worker says that it is ready."""
        return self.status == 200

    @property
    def why(self) -> str:
        """Return why it is not ready."""
        return "; ".join(self.troubles.values())

    @property
    def words(self) -> str:
        """Return all that it says."""
        return "; ".join([*self.troubles.values(), *self.notes.values()])


class Fleet:
    """The workers are numbered from 0; `start` starts one."""

    def __init__(self, folder: Path, workers: int, *, ipv6: bool, own_egress: bool, **stack: Any) -> None:
        """`stack`: what its stack is to have besides."""
        own: dict[str, Any] = {
            "reply_delay_s": _REPLY_S, "control_s": 5.0, "farm_networks": WORLD[: 2 if ipv6 else 1],
            "CT_WEB_PORT": str(_WEB_PORT),
        }  # fmt: skip
        self.stack = Stack(folder, **(own | stack))
        self.namespaces = [Namespace(number, ipv6=ipv6) for number in range(workers)]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        #: Whom impostors on each worker's way have said yes to, and when (time of day).
        self.taken: dict[int, list[tuple[float, str]]] = {number: [] for number in range(workers)}
        self._own_egress = own_egress
        self._exits = AsyncExitStack()
        self._kept: list[object] = []
        self._producer: AIOKafkaProducer

    async def __aenter__(self) -> Fleet:
        stack = await self._exits.enter_async_context(self.stack)
        await stack.admin.execute("ALTER ROLE ct_ops LOGIN PASSWORD 'ops'")
        bootstrap = stack.env["CT_KAFKA_BOOTSTRAP"]
        ports = [int(port) for port in re.findall(r":(\d+)", bootstrap)] + [stack.postgres.port]
        for number, namespace in enumerate(self.namespaces):
            self._kept += await forward(namespace, ports)
            self._kept += await impostors.move_in(namespace, self.taken[number])
        self._producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=5, acks="all")
        await self._producer.start()
        self._exits.push_async_callback(self._producer.stop)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    @property
    def smtp_port(self) -> str:
        """Return the port of all mail servers."""
        return self.stack.env["CT_SMTP_PORT"]

    @property
    def dns_ports(self) -> str:
        """Return the resolvers' ports, as nftables wants them."""
        ports = [server.rpartition(":")[2] for server in self.stack.env["CT_DNS_SERVERS"].split(",")]
        return f"{{ {', '.join(ports)} }}"

    def start(self, number: int, *, prelude: str = "") -> subprocess.Popen[bytes]:
        """Start a worker. Its way out has a name of its own, where the settings know such names."""
        knows = "egress" in {field.name for field in fields(Settings)}
        egress: dict[str, Any] = {"CT_EGRESS": f"way-{number}"} if self._own_egress and knows else {}
        enter = self.namespaces[number].enter
        self.processes[number] = self.stack.start_worker(enter=enter, prelude=prelude, **egress)
        return self.processes[number]

    def log(self, number: int) -> str:
        """Return what a worker has said."""
        return self.stack.worker_log(self.stack.workers.index(self.processes[number]))

    async def said(self, number: int) -> Said:
        """Return what a worker's /readyz says now."""
        answer = await get(self.namespaces[number], _WEB_PORT, "/readyz")
        if answer is None:
            return Said(status=None, troubles={}, notes={})
        body = orjson.loads(answer[1])
        return Said(status=answer[0], troubles=body["troubles"], notes=body["notes"])

    async def wait_ready(self, numbers: Sequence[int], within_s: float = _READY_S) -> dict[int, Said]:
        """Wait until these workers are ready; return what those say that are not when time is up."""
        deadline = time.monotonic() + within_s
        while True:
            all_said = dict(zip(numbers, await asyncio.gather(*map(self.said, numbers)), strict=True))
            late = {number: said for number, said in all_said.items() if not said.is_ready}
            if not late or time.monotonic() > deadline:
                return late
            await asyncio.sleep(_LOOK_EVERY_S)

    async def stream(self, domains: Sequence[str], per_s: float) -> list[UUID]:
        """Mint and produce companies, so many a second; return their ids."""
        ids: list[UUID] = []
        begin = time.monotonic()
        for domain in domains:
            await asyncio.sleep(begin + len(ids) / per_s - time.monotonic())
            ids += await self.stack.mint([domain])
            await self.send(ids[-1])
        return ids

    async def send(self, company: UUID) -> None:
        """Produce a company's event, as upstream does."""
        topic, value = self.stack.names.spine_created, orjson.dumps({"outreach_id": str(company)})
        await self._producer.send_and_wait(topic, key=str(company).encode(), value=value)
