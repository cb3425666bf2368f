"""Read a topic, with the outcome of each record, by assign and seek: no group, no commit, nothing is changed."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson
from aiokafka import TopicPartition

from ct_stream.gate.events import Unreadable, read_spine_created
from ct_stream.gate.output_stage import rfc3339
from ct_stream.ops.reader import reader
from ct_stream.ops.troubles import NotSupported, ServiceTrouble, WrongInput, kafka_answers
from ct_stream.stream import position
from ct_stream.stream.producer import supports_idempotence
from ct_stream.stream.topology import CT_FAIL, CT_PASS, CT_REJECTED, SPINE_CREATED, names_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from aiokafka import AIOKafkaConsumer

    from ct_stream.ops.reader import Reader
    from ct_stream.settings import Settings

TOPICS = (SPINE_CREATED, CT_PASS, CT_FAIL, CT_REJECTED)
_IDLE_S = 1.0  #: how long a topic must be silent to count as read, where end offsets cannot be trusted
_STALL_S = 20.0  #: where they can be trusted: how long a broker may be silent before the end
_BATCH = 500

Record = dict[str, Any]


async def replay(
    settings: Settings,
    *,
    topic: str = SPINE_CREATED,
    partition: int | None = None,
    from_offset: int | None = None,
    from_time: datetime | None = None,
    limit: int | None = None,
) -> AsyncGenerator[Record]:
    """Yield each record that is in the topic now, with its outcome where CT_POSTGRES_OPS_DSN is set.

    `topic` is the name without prefix. In order within a partition.

    Raises SettingsError, WrongInput, NotSupported or ServiceTrouble.
    """
    settings.require("kafka_bootstrap")
    async with AsyncExitStack() as stack:
        async with kafka_answers(settings):
            is_kafka = await supports_idempotence(settings)
            if from_time is not None and not is_kafka:
                raise NotSupported("replay from a time")
            consumer = await stack.enter_async_context(position.outside_consumer(settings))
            named = names_of(settings).on_cluster(topic)
            partitions = _chosen(named, await position.partitions_of(settings, named), partition)
            ends = await consumer.end_offsets(partitions) if is_kafka else None
            starts = await _starts(consumer, partitions, ends, from_offset, from_time)
            consumer.assign(partitions)
            for tp, start in starts.items():
                consumer.seek(tp, start)
        ledger = await stack.enter_async_context(reader(settings)) if settings.postgres_ops_dsn else None
        shown = 0
        while limit is None or shown < limit:
            async with kafka_answers(settings):
                records = await _more(consumer, ends, _BATCH if limit is None else min(_BATCH, limit - shown))
            if not records:
                return
            shown += len(records)
            for told in await _with_outcomes(ledger, [_told(record, topic) for record in records]):
                yield told


async def lag(settings: Settings) -> int:
    """Return how many records of spine.created the gate has not committed. Raises NotSupported or ServiceTrouble."""
    settings.require("kafka_bootstrap")
    async with kafka_answers(settings):
        if not await supports_idempotence(settings):
            raise NotSupported("lag")
        try:
            return await position.lag(settings)
        except position.LagUnknown as error:
            raise ServiceTrouble(error.problem.what, error.problem.action) from error


def _chosen(topic: str, all_of_it: list[TopicPartition], partition: int | None) -> list[TopicPartition]:
    """Return the partitions to read. Raises ServiceTrouble when there are none, WrongInput for a number too high."""
    if not all_of_it:
        raise ServiceTrouble(f"topic {topic} is missing", "create it with `ct-stream topics`")
    chosen = [tp for tp in all_of_it if partition in (None, tp.partition)]
    if not chosen:
        raise WrongInput([f"--partition {partition}: {topic} has partitions 0 to {len(all_of_it) - 1}"])
    return chosen


async def _starts(
    consumer: AIOKafkaConsumer,
    partitions: list[TopicPartition],
    ends: dict[TopicPartition, int] | None,
    from_offset: int | None,
    from_time: datetime | None,
) -> dict[TopicPartition, int]:
    """Return the offset to begin at; for anything past the end of a partition its end, where that is known.

    Always a number: from assign() on aiokafka looks up a start by itself, and a seek to "the end", or to an offset
    that does not exist, ends where that look-up leads.
    """
    begins = await consumer.beginning_offsets(partitions)
    wanted = dict.fromkeys(partitions, from_offset or 0)
    if from_time is not None and ends is not None:
        found = await consumer.offsets_for_times({tp: int(from_time.timestamp() * 1000) for tp in partitions})
        wanted = {tp: ends[tp] if at is None else at.offset for tp, at in found.items()}  # None: no record is that new
    starts = {tp: max(begins[tp], wanted[tp]) for tp in partitions}
    return starts if ends is None else {tp: min(start, ends[tp]) for tp, start in starts.items()}


async def _more(consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int] | None, limit: int) -> list[Any]:
    """Return the next records; none when all that was there at the start has been read."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (_IDLE_S if ends is None else _STALL_S)
    while loop.time() < deadline:
        open_partitions = list(consumer.assignment())
        if ends is not None:
            open_partitions = [tp for tp in open_partitions if await consumer.position(tp) < ends[tp]]
            if not open_partitions:
                return []
        found = await consumer.getmany(*open_partitions, timeout_ms=200, max_records=limit)
        records = [record for tp in sorted(found) for record in found[tp]]
        if ends is not None:
            records = [
                record for record in records if record.offset < ends[TopicPartition(record.topic, record.partition)]
            ]
        if records:
            return records
    if ends is not None:
        raise ServiceTrouble(f"Kafka returned no record for {_STALL_S:g} s before the end of the topic")
    return []


def _told(record: Any, topic: str) -> Record:
    """Return a record as people read it."""
    headers = [[name, _text(value)] for name, value in record.headers or ()]
    told: Record = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "time": _time(record.timestamp),
        "key": _text(record.key),
        "value": _value(record.value),
        "headers": headers,
        "outreach_id": None,
        "unreadable": None,
    }
    if topic == SPINE_CREATED:
        read = read_spine_created(record.key, record.value)
        if isinstance(read, Unreadable):
            told["unreadable"] = read.reason
        else:
            told["outreach_id"] = read.outreach_id
    elif topic == CT_REJECTED:
        told["unreadable"] = dict(headers).get("ct_reject_reason")
    elif isinstance(told["value"], dict):
        told["outreach_id"] = _uuid(told["value"].get("outreach_id"))
    return told


async def _with_outcomes(ledger: Reader | None, records: Sequence[Record]) -> list[Record]:
    """Add what the ledger says of each company; `outcome` is absent where no ledger was asked."""
    if ledger is None:
        return list(records)
    ids = [record["outreach_id"] for record in records if record["outreach_id"] is not None]
    rows = {row["outreach_id"]: dict(row) for row in await ledger.rows("outcomes_of", ids)}
    return [record | {"outcome": rows.get(record["outreach_id"])} for record in records]


def _time(timestamp_ms: int | None) -> str | None:
    """Return a record's timestamp; the number where a producer wrote one that is no time."""
    if timestamp_ms is None:
        return None
    try:
        return rfc3339(datetime.fromtimestamp(timestamp_ms / 1000, UTC))
    except (OverflowError, ValueError, OSError):
        return f"{timestamp_ms} ms"


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")


def _value(value: bytes | None) -> object:
    """Return a JSON value as it is, and anything else as text."""
    if value is None:
        return None
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return _text(value)


def _uuid(value: object) -> UUID | None:
    try:
        return UUID(str(value))
    except ValueError:
        return None
