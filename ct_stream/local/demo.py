"""Run the whole gate on an empty machine: broker, Postgres, mail farm and worker as child processes."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import asyncpg
import yaml
from aiokafka.errors import KafkaError
from prometheus_client.parser import text_string_to_metric_families

from ct_stream.local.farm import FarmProcess
from ct_stream.local.processes import ChildProcess, LocalError, free_port, remove_tree
from ct_stream.local.stack import LocalStack
from ct_stream.metrics import Health
from ct_stream.settings import Settings
from ct_stream.store.queries import query
from ct_stream.stream.position import outside_consumer, partitions_of
from ct_stream.stream.producer import Producer
from ct_stream.stream.topology import CT_FAIL, CT_PASS, CT_REJECTED, SPINE_CREATED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from ct_stream.local.demo_companies import Plan, Planned, Record
    from ct_stream.local.stack import StackState

PASS_DEADLINE_S = 10  #: instead of 90: the demo has silent servers, and nobody wants to wait for them
SPINE_GRACE_S = 3  #: instead of 60
_READY_S = 30.0
_TOPIC_S = 10.0
_IDLE_S = 0.3
_SENT_AT_ONCE = 200

Row = dict[str, Any]


def toolbox() -> dict[str, Any]:
    """Return the demo's own limits: nothing but the mail farm is asked, so they may be high."""
    return {
        "version": 1,
        "probe_name": {"first": "jordan", "last": "whitfield"},
        "tools": [
            {"id": "TOOL-004", "limits": {"per_second": 2000, "per_day": 1_000_000}},
            {
                "id": "TOOL-005",
                "limits": {
                    "per_day": 1_000_000,
                    "sessions_per_domain": 1,
                    "domain_pause_s": 0.1,
                    "sessions_per_provider": 10,
                },
            },
            {
                "id": "TOOL-019",
                "limits": {"per_second": 50, "per_month": 10_000, "attempts_per_outreach_id": 1},
                "budget": {"usd_per_month": 50, "usd_per_call": 0.004},
            },
        ],
        "controls": {"interval_s": 1, "settle_s": 3},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How many companies the gate has decided so far."""

    at_s: float  #: since the events were published
    planned: int
    passed: int
    failed: dict[str, int]  #: by code
    waiting: dict[str, int]  #: by reason
    published: int

    @property
    def decided(self) -> int:
        """Return how many companies have an outcome."""
        return self.passed + sum(self.failed.values())

    @property
    def is_complete(self) -> bool:
        """Return whether every company has an outcome and every outcome is published."""
        return self.decided >= self.planned and self.published >= self.planned


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """A company whose outcome is not the planned one."""

    company: Planned
    decided: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The result of the demo."""

    planned: int
    agreed: int
    disagreements: tuple[Disagreement, ...]
    problems: tuple[str, ...]  #: what database, topics and plan do not agree on
    by_outcome: dict[str, tuple[int, int]]  #: planned and decided
    on_topics: dict[str, int]
    already_processed: int
    recent_failures: list[Row]
    failure_distribution: list[Row]
    pass_rate: Row
    p50_s: float
    p95_s: float
    span_s: float

    @property
    def is_good(self) -> bool:
        """Return whether everything agrees."""
        return not self.disagreements and not self.problems


class Demo:
    """Everything that the demo runs, for as long as the `async with` lasts; its files are removed after a good end."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.keep_files = False
        self.data_dir = Path(tempfile.mkdtemp(prefix="ct-stream-demo-"))
        self.data_dir.chmod(0o711)  # Postgres runs as another user where we are root, and must be able to enter
        self.env: dict[str, str] = {}  #: the settings of the demo's worker
        self._web_port = free_port()
        self._published_at = time.monotonic()

    async def __aenter__(self) -> Self:
        self._exits = AsyncExitStack()
        self._exits.callback(self._remove_files)
        try:
            await self._start()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._exits.aclose()

    async def publish(self) -> None:
        """Send all records to spine.created."""
        self._published_at = time.monotonic()
        records = self.plan.records
        for begin in range(0, len(records), _SENT_AT_ONCE):
            await asyncio.gather(*map(self._send, records[begin : begin + _SENT_AT_ONCE]))

    async def progress(self) -> Progress:
        """Return how far the gate has come. Raises LocalError when one of the processes has ended."""
        self._worker.check_running()
        self._stack.check_running()
        outcomes = await self._rows("progress")
        waits = await self._rows("waiting_by_reason")
        waiting: dict[str, int] = {}
        for row in waits:
            waiting[row["reason"]] = waiting.get(row["reason"], 0) + row["companies"]
        return Progress(
            at_s=time.monotonic() - self._published_at,
            planned=len(self.plan.companies),
            passed=sum(row["companies"] for row in outcomes if row["outcome"] == "PASS"),
            failed={row["failure_code"]: row["companies"] for row in outcomes if row["outcome"] == "FAIL"},
            waiting=waiting,
            published=sum(row["published"] for row in outcomes),
        )

    async def summary(self) -> Summary:
        """Compare what was planned with the ledger, the tables and the topics."""
        decided = {row["outreach_id"]: row for row in await self._rows("decided")}
        disagreements = [d for company in self.plan.companies if (d := _disagreement(company, decided))]
        on_topics = {topic: await self._count(topic) for topic in (CT_PASS, CT_FAIL, CT_REJECTED)}
        latency = (await self._rows("latency"))[0]
        passed = sum(1 for row in decided.values() if row["outcome"] == "PASS")
        expected_on_topics = {
            CT_PASS: passed,
            CT_FAIL: len(decided) - passed,
            CT_REJECTED: self.plan.unreadable,
        }
        problems = [
            f"{topic} holds {on_topics[topic]} records, not {count}"
            for topic, count in expected_on_topics.items()
            if on_topics[topic] != count
        ]
        strangers = decided.keys() - {company.outreach_id for company in self.plan.companies}
        problems += [f"{stranger} was decided, but is not in the plan" for stranger in strangers]
        return Summary(
            planned=len(self.plan.companies),
            agreed=len(self.plan.companies) - len(disagreements),
            disagreements=tuple(disagreements),
            problems=tuple(problems),
            by_outcome=_by_outcome(self.plan.companies, decided),
            on_topics=on_topics,
            already_processed=int((await self._metrics()).get("ct_already_processed_total", 0)),
            recent_failures=await self._rows("runbook_recent_failures"),
            failure_distribution=await self._rows("runbook_failure_distribution"),
            pass_rate=(await self._rows("runbook_pass_rate"))[0],
            p50_s=float(latency["p50_s"] or 0),
            p95_s=float(latency["p95_s"] or 0),
            span_s=float(latency["span_s"] or 0),
        )

    # ---------------------------------------------------------------- start

    async def _start(self) -> None:
        self._stack = LocalStack(self.data_dir, durable=False)
        state = await self._exits.enter_async_context(self._stack)
        farm = await self._exits.enter_async_context(FarmProcess(self.data_dir))
        toolbox_path = self.data_dir / "SNAP_ON_TOOLBOX.yaml"
        toolbox_path.write_text(yaml.safe_dump(toolbox(), sort_keys=False), "utf-8")
        self.env = state.env() | farm.env | self._own_settings(toolbox_path)
        # People's login reads: the runbook's queries must work with it.
        self._reader = await asyncpg.connect(state.postgres_ops_dsn, timeout=10)
        self._exits.push_async_callback(self._reader.close)
        await self._fill_spine(state)
        self._settings = Settings(kafka_bootstrap=state.bootstrap)
        self._producer = Producer(self._settings, Health())
        await self._producer.start()
        self._exits.push_async_callback(self._producer.stop)
        await self._start_worker()

    def _own_settings(self, toolbox_path: Path) -> dict[str, str]:
        return {
            "CT_TOOLBOX": str(toolbox_path),
            "CT_PASS_DEADLINE_S": str(PASS_DEADLINE_S),
            "CT_SPINE_GRACE_S": str(SPINE_GRACE_S),
            "CT_WEB_PORT": str(self._web_port),
        }

    async def _fill_spine(self, state: StackState) -> None:
        rows = [(c.outreach_id, c.domain) for c in self.plan.companies if c.in_spine]
        upstream: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(state.postgres_admin_dsn, timeout=10)
        try:
            await upstream.copy_records_to_table(
                "outreach", schema_name="outreach", columns=["outreach_id", "domain"], records=rows
            )
        finally:
            await upstream.close()

    async def _start_worker(self) -> None:
        own = {name: value for name, value in os.environ.items() if not name.startswith("CT_")}
        self._worker = ChildProcess(
            [sys.executable, "-m", "ct_stream", "worker", "--first-start"],
            name="worker",
            log_path=self.data_dir / "worker.log",
            env=own | self.env | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            cwd=self.data_dir,
        )
        self._worker.start()
        self._exits.push_async_callback(self._worker.stop)
        try:
            async with asyncio.timeout(_READY_S):
                while not await self._is_ready():
                    self._worker.check_running()
                    await asyncio.sleep(0.05)
        except TimeoutError as error:
            self.keep_files = True
            raise LocalError(
                f"the worker is not ready after {_READY_S:g} s: {self._worker.last_log_line()} "
                f"(see {self._worker.log_path})"
            ) from error

    async def _is_ready(self) -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self.web_url}/readyz") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    # ---------------------------------------------------------------- looking

    @property
    def web_url(self) -> str:
        """Return where the worker serves its health and metrics."""
        return f"http://127.0.0.1:{self._web_port}"

    async def _metrics(self) -> dict[str, float]:
        async with aiohttp.ClientSession() as session, session.get(f"{self.web_url}/metrics") as response:
            text = await response.text()
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels
        }

    async def _rows(self, name: str) -> list[Row]:
        return [dict(row) for row in await self._reader.fetch(query(name))]

    async def _send(self, record: Record) -> None:
        try:
            await self._producer.send(SPINE_CREATED, record.key, record.value, ())
        except (KafkaError, TimeoutError, OSError) as error:
            raise LocalError(f"the embedded broker does not take records: {error}") from error

    async def _count(self, topic: str) -> int:
        """Return how many records a topic holds: read to where nothing more comes."""
        partitions = await partitions_of(self._settings, topic)
        async with outside_consumer(self._settings) as consumer:
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            count, silent_s = 0, 0.0
            deadline = time.monotonic() + _TOPIC_S
            while silent_s < _IDLE_S and time.monotonic() < deadline:
                found = await consumer.getmany(timeout_ms=100)
                silent_s = 0.0 if found else silent_s + 0.1
                count += sum(map(len, found.values()))
            return count

    def _remove_files(self) -> None:
        if self.keep_files:
            return
        postgres = self.data_dir / "postgres"
        if postgres.is_symlink():  # where root's directories are closed to Postgres' user, its data lies elsewhere
            remove_tree(postgres.resolve())
        remove_tree(self.data_dir)


def _disagreement(company: Planned, decided: Mapping[UUID, Row]) -> Disagreement | None:
    """Return how a company's outcome differs from the plan, or None."""
    row = decided.get(company.outreach_id)
    if row is None:
        return Disagreement(company=company, decided="nothing", reason="")
    expected = company.expected
    if row["outcome"] in expected.also:
        return None
    wrong = []
    if row["outcome"] != expected.outcome:
        wrong.append(str(row["outcome"]))
    elif expected.outcome == "PASS":
        if row["method_type"] != expected.method_type:
            wrong.append(f"PASS by {row['method_type']}")
        if row["is_catchall"] != expected.is_catchall:
            wrong.append("catch-all" if row["is_catchall"] else "not catch-all")
        if expected.confidence is not None and abs(float(row["confidence_score"]) - expected.confidence) > 1e-6:
            wrong.append(f"confidence {float(row['confidence_score']):g}")
    if not wrong:
        return None
    return Disagreement(company=company, decided=", ".join(wrong), reason=row["reason"] or "")


def _by_outcome(companies: tuple[Planned, ...], decided: Mapping[UUID, Row]) -> dict[str, tuple[int, int]]:
    planned: dict[str, int] = {}
    for company in companies:
        outcome = company.expected.outcome
        row = decided.get(company.outreach_id)
        if row is not None and row["outcome"] in company.expected.also:
            outcome = row["outcome"]  # right as well: it depends on what is read first
        planned[outcome] = planned.get(outcome, 0) + 1
    found: dict[str, int] = {}
    for row in decided.values():
        found[row["outcome"]] = found.get(row["outcome"], 0) + 1
    return {name: (planned.get(name, 0), found.get(name, 0)) for name in sorted(planned | found)}
