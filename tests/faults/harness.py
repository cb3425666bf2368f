"""A whole gate on real parts, with the worker as a process that can be killed: for end-to-end and fault tests."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import asyncpg
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from ct_stream.gate.evidence import WINDOW_S
from ct_stream.local.farm import FarmClient, FarmProcess
from ct_stream.local.postgres import EmbeddedPostgres
from ct_stream.settings import load_settings
from ct_stream.store.migrate import migrate
from ct_stream.stream.position import partitions_of
from ct_stream.stream.topology import CT_FAIL, CT_PASS, CT_REJECTED, Names, create_topics, names_of
from tests.brokers import kafka, lend_broker, wait_topics

if TYPE_CHECKING:
    from collections.abc import Sequence

TOOLBOX = """
version: 1
probe_name: {first: jordan, last: whitfield}
tools:
  - {id: TOOL-004, name: MXLookup, tier: 0, package: aiodns, guardrail: none,
     limits: {per_second: 100000, per_day: 100000000}}
  - {id: TOOL-005, name: SMTPCheck, tier: 0, package: aiosmtplib, guardrail: none,
     limits: {per_day: %(smtp_per_day)s, sessions_per_domain: 1, domain_pause_s: %(pause)s, sessions_per_provider: 10}}
  - {id: TOOL-019, name: EmailVerifier, tier: 2, gated: true, guardrail: none,
     limits: {per_second: 50, per_month: 10000, attempts_per_outreach_id: 1},
     budget: {usd_per_month: 50, usd_per_call: 0.004}}
controls: {interval_s: %(control)s, window_s: %(window)s, settle_s: %(settle)s}
"""

_WORKER = """
import os, sys
from ct_stream.settings import load_settings
from ct_stream.process.logs import set_up_logs
from ct_stream.wiring.worker import run_worker
set_up_logs(json=False)
import ct_stream.stream.app as app
app.SESSION_TIMEOUT_S = float(os.environ["CT_TEST_SESSION_S"])
environ = {k: v for k, v in os.environ.items() if not k.startswith("CT_TEST_")}
%s
sys.exit(run_worker(load_settings(environ), first_start=True))
"""


#: As upstream makes it; the gate makes its own tables.
SPINE = """
CREATE SCHEMA outreach;
CREATE TABLE outreach.outreach (
    outreach_id uuid PRIMARY KEY, domain text, sovereign_id uuid, created_at timestamptz DEFAULT now()
);
"""


class Stack:
    """Broker, Postgres, mail farm; workers as processes."""

    def __init__(
        self,
        folder: Path,
        *,
        reply_delay_s: float = 0.0,
        pause_s: float = 0.2,
        control_s: float = 1.0,
        partitions: int | None = None,
        settle_s: float = 2.0,
        window_s: float = WINDOW_S,
        smtp_per_day: int = 100_000_000,
        tables: str = SPINE,
        farm_networks: Sequence[str] = (),
        **env: str,
    ) -> None:
        self.folder = folder
        self._reply_delay_s = reply_delay_s
        self._partitions = partitions
        self._toolbox = TOOLBOX % {
            "pause": pause_s, "control": control_s, "window": window_s, "settle": settle_s,
            "smtp_per_day": smtp_per_day,
        }  # fmt: skip
        self._tables = tables
        self._farm_networks = farm_networks
        self._extra_env = env
        self._stack = AsyncExitStack()
        self.workers: list[subprocess.Popen[bytes]] = []
        self.farm: FarmClient
        self.postgres: EmbeddedPostgres
        self.admin: asyncpg.Pool[Any]
        self.env: dict[str, str] = {}

    async def __aenter__(self) -> Stack:
        bootstrap = await self._stack.enter_async_context(lend_broker(self.folder / "broker"))
        self.postgres = await self._stack.enter_async_context(EmbeddedPostgres(durable=False))
        self.farm = await self._stack.enter_async_context(
            FarmProcess(self.folder / "farm", reply_delay_s=self._reply_delay_s, networks=self._farm_networks)
        )
        dsn = self.postgres.admin_dsn
        connection = await asyncpg.connect(dsn)
        await connection.execute(self._tables)
        await connection.close()
        await migrate(dsn)
        await self.connect()
        await self.admin.execute("ALTER ROLE ct_gate LOGIN PASSWORD 'gate'")
        toolbox = self.folder / "toolbox.yaml"
        toolbox.write_text(self._toolbox)
        self.env = {
            "CT_KAFKA_BOOTSTRAP": bootstrap,
            "CT_POSTGRES_DSN": self.postgres.dsn("postgres", "ct_gate", "gate"),
            "CT_TOOLBOX": str(toolbox),
            "CT_DATA_DIR": str(self.folder / "data"),
            "CT_WEB_PORT": "0",
            "CT_PASS_DEADLINE_S": "20",
            "CT_SPINE_GRACE_S": "2",
            "CT_DRAIN_S": "3",
            **self.farm.env,
            **self._extra_env,
        }
        if self._partitions is not None:
            await self._create_source(self._partitions)
        await create_topics(load_settings(self.env))
        return self

    @property
    def names(self) -> Names:
        """Return the names of the topics and the group."""
        return names_of(load_settings(self.env))

    async def _create_source(self, partitions: int) -> None:
        """Make spine.created as upstream does: the other topics follow it."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.env["CT_KAFKA_BOOTSTRAP"])
        await admin.start()
        try:
            await admin.create_topics([NewTopic(self.names.spine_created, partitions, 1 if kafka() is None else 3)])
            await wait_topics(admin, lambda known: self.names.spine_created in known)
        finally:
            await admin.close()

    async def connect(self) -> None:
        """Connect the test itself, as the superuser."""
        self.admin = await asyncpg.create_pool(self.postgres.admin_dsn, min_size=1, max_size=3)

    async def __aexit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
        if hasattr(self, "admin"):
            self.admin.terminate()
        await self._stack.aclose()

    # ---------------------------------------------------------------- workers

    def start_worker(
        self, *, prelude: str = "", session_s: float = 6.0, enter: Sequence[str] = (), **env: str
    ) -> subprocess.Popen[bytes]:
        """Start a worker; `prelude` is code that runs in its process first (how faults are injected).

        `enter` is a command that becomes the worker's, such as `ip netns exec NAME`.
        `session_s` is how soon Apache Kafka misses a killed one; the product's own 45 s would make every test wait.
        """
        log = (self.folder / f"worker-{len(self.workers)}.log").open("wb")
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CT_")} | self.env | env
        environ["CT_TEST_SESSION_S"] = str(session_s)
        worker = subprocess.Popen(
            [*enter, sys.executable, "-c", _WORKER % prelude],
            env=environ,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=_ROOT,
        )
        log.close()
        self.workers.append(worker)
        return worker

    def worker_log(self, number: int = -1) -> str:
        """Return what a worker has said."""
        number = number % len(self.workers)
        return (self.folder / f"worker-{number}.log").read_text(errors="replace")

    async def readyz(self) -> tuple[int, dict[str, str]]:
        """Return what the newest worker's /readyz answers: the status and the troubles that it names."""
        served = re.search(r"Health and metrics on (http://\S+)", self.worker_log())
        assert served is not None
        async with aiohttp.ClientSession() as session, session.get(f"{served[1]}/readyz") as response:
            return response.status, (await response.json())["troubles"]

    async def wait_ready(self, status: int, within_s: float) -> dict[str, str]:
        """Wait until /readyz answers so; return the troubles that it names."""
        deadline = time.monotonic() + within_s
        while (answer := await self.readyz())[0] != status:
            assert time.monotonic() < deadline, (
                f"/readyz says {answer} after {within_s:g} s: {self.worker_log()[-2000:]}"
            )
            await asyncio.sleep(0.3)
        return answer[1]

    async def wait_trouble(self, part: str, words: str, within_s: float) -> None:
        """Wait until /readyz says these words of a part."""
        deadline = time.monotonic() + within_s
        while words not in (answer := await self.readyz())[1].get(part, ""):
            assert time.monotonic() < deadline, (
                f"/readyz says {answer} after {within_s:g} s: {self.worker_log()[-2000:]}"
            )
            await asyncio.sleep(0.3)

    async def wait_said(self, words: str, within_s: float) -> bool:
        """Wait until the newest worker has said something, or has ended."""
        deadline = time.monotonic() + within_s
        while words not in self.worker_log():
            if time.monotonic() > deadline or self.workers[-1].poll() is not None:
                return False
            await asyncio.sleep(0.1)
        return True

    def end_worker(self, worker: subprocess.Popen[bytes], how: int = signal.SIGTERM, within_s: float = 30) -> int:
        """Signal a worker and wait for its end; return its exit code."""
        worker.send_signal(how)
        return worker.wait(within_s)

    async def wait_end(self, worker: subprocess.Popen[bytes], within_s: float) -> int | None:
        """Wait until a worker has ended by itself; return its exit code, or None when it has not."""
        with suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(worker.wait, within_s)
        return worker.poll()

    # ---------------------------------------------------------------- companies

    async def mint(self, domains: Sequence[str | None]) -> list[uuid.UUID]:
        """Write companies into the spine."""
        ids = [uuid.uuid4() for _ in domains]
        await self.admin.executemany(
            "INSERT INTO outreach.outreach (outreach_id, domain) VALUES ($1, $2)", list(zip(ids, domains, strict=True))
        )
        return ids

    async def publish(self, ids: list[uuid.UUID], *, values: list[bytes] | None = None) -> None:
        """Produce spine.created, as upstream does."""
        producer = AIOKafkaProducer(bootstrap_servers=self.env["CT_KAFKA_BOOTSTRAP"], linger_ms=5, acks="all")
        await producer.start()
        try:
            bodies = values or [orjson.dumps({"outreach_id": str(i)}) for i in ids]
            futures = [
                await producer.send(self.names.spine_created, key=str(i).encode(), value=body)
                for i, body in zip(ids, bodies, strict=True)
            ]
            await asyncio.gather(*futures)
        finally:
            await producer.stop()

    async def count_decided(self) -> int:
        """Return how many companies have an outcome."""
        return int(await self.admin.fetchval("SELECT count(*) FROM outreach.ct_outcomes"))

    async def wait_decided(
        self, number: int, within_s: float = 60, *, by: subprocess.Popen[bytes] | None = None
    ) -> int:
        """Wait until so many companies have an outcome; return how many have when that is so, or time is up.

        Not longer than the worker lives that is to decide them: `by`, or the newest.
        """
        workers = [by] if by else self.workers[-1:]
        deadline = time.monotonic() + within_s
        while (decided := await self.count_decided()) < number and time.monotonic() < deadline:
            if any(worker.poll() is not None for worker in workers):
                break
            await asyncio.sleep(0.05)
        return decided

    async def wait_published(self, within_s: float = 60) -> int:
        """Wait until all outcomes are stamped; return how many are not when that is so, or time is up."""
        deadline = time.monotonic() + within_s
        query = "SELECT count(*) FROM outreach.ct_outcomes WHERE published_at IS NULL AND topic IS NOT NULL"
        while True:
            left = int(await self.admin.fetchval(query))
            if left == 0 or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.1)

    async def records(self, *topics: str, quiet_s: float = 1.0) -> list[Any]:
        """Read topics from their beginning until nothing has come for `quiet_s`."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.env["CT_KAFKA_BOOTSTRAP"], group_id=None, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            settings = load_settings(self.env)
            tps = [
                tp
                for t in topics or (CT_PASS, CT_FAIL, CT_REJECTED)
                for tp in await partitions_of(settings, self.names.on_cluster(t))
            ]
            ends = None if kafka() is None else await consumer.end_offsets(tps)  # the embedded broker knows none
            consumer.assign(tps)
            for tp in tps:
                consumer.seek(tp, 0)
            found: list[Any] = []
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                batch = await consumer.getmany(timeout_ms=int(quiet_s * 1000))
                found.extend(record for records in batch.values() for record in records)
                if ends is None:
                    if not batch:
                        return found
                elif all([await consumer.position(tp) >= ends[tp] for tp in tps]):
                    return found
            raise AssertionError("Kafka does not give all records of its topics")
        finally:
            with suppress(Exception):
                await consumer.stop()

    async def committed(self) -> dict[int, int]:
        """Return the gate's committed offset of each partition."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.env["CT_KAFKA_BOOTSTRAP"])
        await admin.start()
        try:
            partitions = await partitions_of(load_settings(self.env), self.names.spine_created)
            offsets = await admin.list_consumer_group_offsets(self.names.group, partitions=partitions)
            return {tp.partition: meta.offset for tp, meta in offsets.items()}
        finally:
            await admin.close()

    async def members(self) -> int:
        """Return how many members the gate's group has."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.env["CT_KAFKA_BOOTSTRAP"])
        await admin.start()
        try:
            (answer,) = await admin.describe_consumer_groups([self.names.group])
            ((_, _, _, _, _, members, *_),) = answer.groups
            return len(members)
        finally:
            await admin.close()

    async def wait_committed(self, count: int, within_s: float) -> int:
        """Wait until the gate's group has committed so many records, or time is up; return how many it has."""
        deadline = time.monotonic() + within_s
        while True:
            stands = sum(max(0, at) for at in (await self.committed()).values())
            if stands >= count or time.monotonic() > deadline:
                return stands
            await asyncio.sleep(0.3)


_ROOT = Path(__file__).resolve().parents[2]


async def said(stack: Stack, number: int, words: str, within_s: float = 40) -> None:
    """Wait until a worker has said something."""
    deadline = time.monotonic() + within_s
    while words not in stack.worker_log(number):
        assert time.monotonic() < deadline, f"worker {number} did not say {words!r}: {stack.worker_log(number)[-2000:]}"
        await asyncio.sleep(0.1)
