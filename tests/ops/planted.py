"""A database and topics full of decided companies, and one of each violation among them: for tests and the bench."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.transcript import to_json
from ct_stream.store.ledger import headers_to_json
from ct_stream.stream.topology import CT_FAIL, CT_PASS, CT_REJECTED, GROUP, SPINE_CREATED
from tests.ops.rows import EXCHANGES, failed, passed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ct_stream.gate.output_stage import Headers, Outcome

NOW = datetime.now(UTC)
_TRANSCRIPT = orjson.dumps(to_json(EXCHANGES)).decode()
_HOUR = timedelta(hours=1)
_AT_ONCE = 20_000
FINALS = ("email_method", "method_type", "confidence_score", "is_catchall")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """One company, as each place has it; by default all agree."""

    id: UUID
    outcome: str = "PASS"
    source: str = "gate"
    failure_code: str | None = None
    value: bytes = b""
    headers: Headers = ()
    has_row: bool = True
    published_at: datetime | None = NOW - 2 * _HOUR
    recorded_at: datetime = NOW - 2 * _HOUR
    status: str | None = "ready"
    final: tuple[Any, ...] | None = None  #: what company_target says besides; None: what was published
    errors: tuple[str, ...] = ()
    in_spine: bool = True
    spine_at: datetime = NOW - 3 * _HOUR
    has_event: bool = True
    records: tuple[tuple[str, bytes], ...] | None = None  #: topic and value; None: what the row says
    wait: dict[str, Any] | None = None

    @property
    def topic(self) -> str | None:
        """Return where its outcome is published."""
        return None if self.source != "gate" else CT_PASS if self.outcome == "PASS" else CT_FAIL

    @property
    def finals(self) -> tuple[Any, ...]:
        """Return what company_target says besides its status."""
        if self.final is not None:
            return self.final
        told = orjson.loads(self.value) if self.source == "gate" and self.status == "ready" else {}
        return tuple(told.get(name) for name in FINALS)

    @property
    def on_topics(self) -> tuple[tuple[str, bytes], ...]:
        """Return what is on the topics."""
        if self.records is not None:
            return self.records
        return ((self.topic, self.value),) if self.topic and self.has_row and self.published_at else ()


_TEMPLATES: dict[str, Outcome] = {"PASS": passed(), "FAIL": failed(FailureCode.NO_MX)}


def company(outcome: str = "PASS", **fields: Any) -> Planted:
    """Return a decided company."""
    template, new = _TEMPLATES[outcome], uuid4()
    old_text, new_text = str(template.outreach_id).encode(), str(new).encode()
    code = None if outcome == "PASS" else FailureCode.NO_MX.value
    made = Planted(
        id=new,
        outcome=outcome,
        failure_code=code,
        value=template.value.replace(old_text, new_text),
        headers=tuple((name, new_text if value == old_text else value) for name, value in template.headers),
        status="ready" if outcome == "PASS" else "failed",
        errors=() if code is None else (code,),
    )
    return replace(made, **fields)


def undecided(**fields: Any) -> Planted:
    """Return a company that nobody decided."""
    return company(**({"has_row": False, "status": None, "records": ()} | fields))


def many(number: int) -> Iterator[Planted]:
    """Yield decided companies, two of five failed."""
    for place in range(number):
        yield company("FAIL" if place % 5 < 2 else "PASS")


@dataclass(slots=True)
class Place:
    """Where companies are planted: a migrated database and a broker with topics."""

    admin_dsn: str
    bootstrap: str
    _ends: dict[TopicPartition, int] = field(default_factory=dict)

    async def plant(self, companies: Iterable[Planted]) -> None:
        """Write rows and records, some thousand companies at a time."""
        connection: asyncpg.Connection[Any] = await asyncpg.connect(self.admin_dsn)
        producer = AIOKafkaProducer(
            # acks: what one replica has is not yet below the high watermark, and not yet there to be read or removed.
            bootstrap_servers=self.bootstrap,
            acks="all",
            linger_ms=20,
            max_batch_size=512 * 1024,
        )
        await producer.start()
        try:
            some: list[Planted] = []
            for one in companies:
                some.append(one)
                if len(some) == _AT_ONCE:
                    await asyncio.gather(_rows(connection, some), self._records(producer, some))
                    some = []
            await asyncio.gather(_rows(connection, some), self._records(producer, some))
        finally:
            await producer.stop()
            await connection.close()

    async def _records(self, producer: AIOKafkaProducer, companies: Sequence[Planted]) -> None:
        sent = []
        for one in companies:
            key = str(one.id).encode()
            if one.has_event:
                sent.append(await producer.send(SPINE_CREATED, key=key, value=b'{"outreach_id":"%s"}' % key))
            for topic, value in one.on_topics:
                sent.append(await producer.send(topic, key=key, value=value, headers=list(one.headers)))
        for done in await asyncio.gather(*sent):
            tp = TopicPartition(done.topic, done.partition)
            self._ends[tp] = max(self._ends.get(tp, 0), done.offset + 1)

    async def send(self, topic: str, **record: Any) -> tuple[int, int]:
        """Send one record as it is; return its place."""
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, acks="all")
        await producer.start()
        try:
            done = await producer.send_and_wait(topic, **record)
        finally:
            await producer.stop()
        tp = TopicPartition(topic, done.partition)
        self._ends[tp] = max(self._ends.get(tp, 0), done.offset + 1)
        return done.partition, done.offset

    async def commit(self) -> None:
        """Commit all that was sent to spine.created so far, as the gate."""
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, group_id=GROUP, enable_auto_commit=False)
        await consumer.start()
        try:
            ends = {tp: end for tp, end in self._ends.items() if tp.topic == SPINE_CREATED}
            consumer.assign(list(ends))
            await consumer.commit(ends)
        finally:
            await consumer.stop()


async def _rows(connection: asyncpg.Connection[Any], companies: Sequence[Planted]) -> None:
    await _copy(connection, "outreach", ["outreach_id", "domain", "created_at"], (
        (c.id, "acme.example", c.spine_at) for c in companies if c.in_spine
    ))  # fmt: skip
    await _copy(
        connection,
        "ct_outcomes",
        [
            *("outreach_id", "outcome", "source", "failure_code", "domain", "transcript", "decided_at", "recorded_at"),
            *("topic", "key", "value", "headers", "publish_until", "published_at"),
        ],
        (
            (
                *(c.id, c.outcome, c.source, c.failure_code, "acme.example", _TRANSCRIPT, c.recorded_at, c.recorded_at),
                *(c.topic, str(c.id).encode(), c.value, headers_to_json(c.headers), c.recorded_at, c.published_at),
            )
            for c in companies
            if c.has_row
        ),
    )
    await _copy(connection, "company_target", ["outreach_id", "execution_status", "imo_completed_at", *FINALS], (
        (c.id, c.status, c.recorded_at, *c.finals) for c in companies if c.status is not None
    ))  # fmt: skip
    await _copy(connection, "company_target_errors", ["outreach_id", "failure_code"], (
        (c.id, code) for c in companies for code in c.errors
    ))  # fmt: skip
    for c in companies:
        if c.wait is not None:
            columns = ", ".join(c.wait)
            places = ", ".join(f"${n}" for n in range(2, len(c.wait) + 2))
            await connection.execute(
                f"INSERT INTO outreach.ct_passes (outreach_id, detail, {columns}) VALUES ($1, 'why', {places})",
                c.id,
                *c.wait.values(),
            )


async def _copy(
    connection: asyncpg.Connection[Any], table: str, columns: list[str], rows: Iterable[tuple[Any, ...]]
) -> None:
    await connection.copy_records_to_table(table, schema_name="outreach", columns=columns, records=list(rows))


def old_wait(**fields: Any) -> dict[str, Any]:
    """Return a wait of two days that is not over."""
    wait = {"state": "waiting", "reason": "daily_cap", "since": NOW - 48 * _HOUR, "not_before": NOW + _HOUR}
    return wait | fields


def _rewritten() -> list[tuple[Any, ...]]:
    """Return what was published, each time with one of the columns changed."""
    true = company().finals
    others = ("x@acme.example", "first.last", 0.1, not true[3])
    return [(*true[:n], other, *true[n + 1 :]) for n, other in enumerate(others)]


async def plant_violations(place: Place) -> dict[str, list[UUID | None]]:
    """Plant each violation and each note that can be told on any broker; return the ids by kind."""
    other = company().value.replace(b"acme", b"emca")
    one, two = company(), company("FAIL")
    by_kind: dict[str, list[Planted]] = {
        "event_lost": [undecided()],
        "spine_without_outcome": [undecided(has_event=False)],
        "record_without_row": [
            undecided(has_event=False, in_spine=False, records=((CT_PASS, other),)),
            company(source="adopted", records=((CT_PASS, other),), status="ready"),
        ],
        "pass_and_fail": [replace(one, records=((CT_PASS, one.value), (CT_FAIL, two.value)))],
        "copies_differ": [replace(c := company(), records=((CT_PASS, c.value), (CT_PASS, other)))],
        "differs_from_ledger": [company(records=((CT_PASS, other),))],
        "not_on_topic": [company(records=()), company("FAIL", records=())],
        "unpublished": [company(published_at=None)],
        "errors_row": [
            company(errors=("CT-M-NO-MX",)),
            company("FAIL", errors=()),
            company("FAIL", errors=("CT-M-NO-MX", "CT-M-NO-MX")),
            company("FAIL", errors=("CT-M-NO-PATTERN",)),
            company("FAIL", failure_code="CT-X", errors=("CT-X",)),
        ],
        "target_row": [
            *(company(status=None), company(status="failed"), company("FAIL", status="pending")),
            *(company(final=rewritten) for rewritten in _rewritten()),
            company("FAIL", final=("info@acme.example", None, None, None)),
        ],
        "final_without_row": [
            undecided(status="ready", has_event=False, spine_at=NOW),
            undecided(errors=("CT-M-NO-MX",), has_event=False, in_spine=False),
        ],
        "stuck": [undecided(wait=old_wait(state="stuck", reason="our_bug"))],
        "waiting_long": [undecided(wait=old_wait())],
        "overdue": [
            undecided(wait=old_wait(not_before=NOW - _HOUR)),
            undecided(wait=old_wait(not_before=NOW - _HOUR, lease_owner="gone", lease_until=NOW - _HOUR)),
        ],
    }
    await place.plant(c for companies in by_kind.values() for c in companies)
    lost = await place.send(SPINE_CREATED, value=b"{", partition=0)
    await place.commit()
    source = [("ct_source_partition", b"3"), ("ct_source_offset", b"1000000000")]
    await place.send(CT_REJECTED, value=b"[", headers=[("ct_source_topic", SPINE_CREATED.encode()), *source])
    assert lost is not None
    for name, age_s in (("event_not_taken_up", 7200), ("not_committed", 0)):
        new = undecided()
        await place.plant([replace(new, has_event=False)])
        key = str(new.id).encode()
        at_ms = int((time.time() - age_s) * 1000)
        await place.send(SPINE_CREATED, key=key, value=b'{"outreach_id":"%s"}' % key, timestamp_ms=at_ms)
        by_kind[name] = [new]
    found: dict[str, list[UUID | None]] = {kind: [c.id for c in some] for kind, some in by_kind.items()}
    return found | {"unreadable_not_rejected": [None], "rejected_without_source": [None]}


def well() -> list[Planted]:
    """Return companies that look odd and are well."""
    return [
        company("FAIL", failure_code="CT-I-NOT-FOUND", errors=("CT-I-NOT-FOUND",), status=None, in_spine=False),
        company("FAIL", failure_code="CT-I-NOT-FOUND", errors=("CT-I-NOT-FOUND",), status="pending", in_spine=False),
        company(source="adopted", has_event=False),
        company("FAIL", source="adopted", failure_code="OLD-1", errors=("OLD-1", "OLD-2"), status="blocked"),
        company("FAIL", source="adopted", failure_code="OLD-1", errors=("OLD-1",), status=None, has_event=False),
        company("FAIL", source="adopted", failure_code=None, errors=(), status="failed", in_spine=False),
        company(published_at=None, recorded_at=datetime.now(UTC)),  # its claim runs
        replace(c := company(), records=((CT_PASS, c.value), (CT_PASS, c.value))),  # an identical repeat
        company(has_event=False),  # its event is older than 30 days
        undecided(has_event=False, spine_at=datetime.now(UTC)),
        undecided(wait=old_wait(since=NOW)),
        undecided(wait=old_wait(since=NOW, not_before=NOW - 2 * _HOUR, lease_until=NOW + _HOUR)),
    ]
