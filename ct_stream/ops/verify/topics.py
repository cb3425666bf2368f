"""Read the topics without a group, up to where they ended when the comparison began."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from ct_stream.gate.events import Unreadable, read_spine_created
from ct_stream.ops.troubles import ServiceTrouble
from ct_stream.ops.verify.judge import TOPICS
from ct_stream.ops.verify.spill import digest_of
from ct_stream.stream.position import committed_offsets
from ct_stream.stream.producer import supports_idempotence
from ct_stream.stream.topology import (
    CT_FAIL,
    CT_PASS,
    CT_REJECTED,
    SPINE_CREATED,
    kafka_options,
    names_of,
    partition_counts,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from ct_stream.ops.verify.spill import Spill
    from ct_stream.settings import Settings

_ORDER = (CT_REJECTED, CT_PASS, CT_FAIL, SPINE_CREATED)  #: a rejected record's source is read after it
_IDLE_S = 1.0  #: how long a topic must be silent to count as read, where end offsets cannot be trusted
_STALL_S = 20.0  #: where they can be trusted: how long a broker may be silent before the end
_BATCH = 5000
_ODD_KEPT = 1000
_PARTITION_BYTES = 256 * 1024


class Topics:
    """The four topics, each read from its beginning to an end that was taken first, and later on from there.

    They are named without prefix.
    """

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer, *, is_kafka: bool) -> None:
        self._settings = settings
        self.names = names_of(settings)
        self._consumer = consumer
        self.is_kafka = is_kafka  #: its end offsets and configurations can be trusted
        self.committed: dict[int, int] = {}
        self.begins: dict[TopicPartition, int] = {}
        self.ends: dict[TopicPartition, int] = {}  #: where they cannot be trusted, more may come after them
        self.first_read: dict[tuple[str, int], int] = {}
        self.rejected_from_ms: int | None = None  #: the time of the oldest rejected record
        self.odd: dict[str, list[tuple[int, int]]] = {}  #: records of no company, by topic: the first few places
        self.odd_count: Counter[str] = Counter()
        self.read_count: dict[str, int] = dict.fromkeys(_ORDER, 0)
        self._partitions: dict[str, list[TopicPartition]] = {}
        self._positions: dict[TopicPartition, int] = {}

    async def mark(self) -> None:
        """Note what the group has committed, then where the topics end: what is committed will then be read."""
        self.committed = await committed_offsets(self._settings)
        counts = await self._counts()
        for topic in _ORDER:
            named = self.names.on_cluster(topic)
            if named not in counts:
                raise ServiceTrouble(f"topic {named} is missing", "create it with `ct-stream topics`")
            self._partitions[topic] = [TopicPartition(named, number) for number in range(counts[named])]
        for tps in self._partitions.values():
            self.begins |= await self._consumer.beginning_offsets(tps)
        await self.mark_again()

    async def mark_again(self) -> None:
        """Move the ends to where they are now."""
        for tps in self._partitions.values():
            self.ends |= await self._consumer.end_offsets(tps)

    async def _counts(self) -> dict[str, int]:
        """Return the partitions of each topic: a consumer that subscribes to nothing may know no topic."""
        admin = AIOKafkaAdminClient(**kafka_options(self._settings), client_id="ct-stream-verify")
        await admin.start()
        try:
            return await partition_counts(admin, tuple(map(self.names.on_cluster, _ORDER)))
        finally:
            await admin.close()

    async def kept_s(self) -> dict[str, float | None]:
        """Return for how long ct.pass and ct.fail keep a company's last record: None: for ever, as we make them."""
        kept: dict[str, float | None] = dict.fromkeys(TOPICS)
        if not self.is_kafka:
            return kept
        admin = AIOKafkaAdminClient(**kafka_options(self._settings), client_id="ct-stream-verify")
        await admin.start()
        try:
            topics = {self.names.on_cluster(topic): topic for topic in TOPICS}
            answers = await admin.describe_configs(
                [ConfigResource(ConfigResourceType.TOPIC, named) for named in topics]
            )
        except KafkaError:
            return kept  # not allowed to look: as we make them
        finally:
            await admin.close()
        for answer in answers:
            for resource in answer.resources:
                name, entries = resource[3], {entry[0]: entry[1] for entry in resource[4]}
                if "delete" in (entries.get("cleanup.policy") or ""):
                    kept_ms = int(entries.get("retention.ms") or -1)
                    kept[topics[name]] = None if kept_ms < 0 else kept_ms / 1000
        return kept

    async def read(self, spill: Spill, on_records: Callable[[int], None]) -> None:
        """Read what is not read yet, topic by topic."""
        for topic in _ORDER:
            await self._read(topic, spill, on_records)
        spill.flush()

    async def _read(self, topic: str, spill: Spill, on_records: Callable[[int], None]) -> None:
        consumer = self._consumer
        tps = [tp for tp in self._partitions[topic] if not self.is_kafka or self._position(tp) < self.ends[tp]]
        consumer.assign(tps)
        for tp in tps:
            consumer.seek(tp, self._position(tp))
        begun_ms, heard_at = time.time() * 1000, time.monotonic()
        open_tps = set(tps)
        while open_tps:
            found = await consumer.getmany(*open_tps, timeout_ms=200, max_records=_BATCH)
            count = 0
            for tp, records in found.items():
                for record in records:
                    if self.is_kafka and record.offset >= self.ends[tp]:
                        break
                    self._take(topic, record, spill)
                    self._positions[tp] = record.offset + 1
                    # A busy topic never falls silent: what came after we began is not waited for.
                    count += self.is_kafka or record.timestamp < begun_ms
            on_records(count)
            self.read_count[topic] += count
            now = time.monotonic()
            if count:
                heard_at = now
            before_end = {tp for tp in open_tps if await consumer.position(tp) < self.ends[tp]}
            if before_end and now - heard_at > _STALL_S:
                named = self.names.on_cluster(topic)
                raise ServiceTrouble(f"Kafka returned no record of {named} for {_STALL_S:g} s before the topic's end")
            if self.is_kafka:
                open_tps = before_end
            elif not before_end and now - heard_at > _IDLE_S:
                return

    def _position(self, tp: TopicPartition) -> int:
        return self._positions.get(tp, self.begins[tp])

    def _take(self, topic: str, record: Any, spill: Spill) -> None:
        self.first_read.setdefault((topic, record.partition), record.offset)
        if topic == SPINE_CREATED:
            created = read_spine_created(record.key, record.value)
            if isinstance(created, Unreadable):
                spill.add("unreadable", record.partition, record.offset, record.timestamp)
            else:
                spill.add("events", created.outreach_id.bytes, record.partition, record.offset, record.timestamp)
        elif topic == CT_REJECTED:
            self.rejected_from_ms = min(record.timestamp, self.rejected_from_ms or record.timestamp)
            source = _source(dict(record.headers or ()))
            if source is None:
                self._odd(topic, record)
            else:
                spill.add("rejected", record.partition, record.offset, *source)
        else:
            outreach_id = _uuid(record.key)
            if outreach_id is None:
                self._odd(topic, record)
            else:
                digest = digest_of(record.key, record.value, record.headers or ())
                spill.add("records", outreach_id, TOPICS.index(topic), record.partition, record.offset, digest)

    def _odd(self, topic: str, record: Any) -> None:
        self.odd_count[topic] += 1
        places = self.odd.setdefault(topic, [])
        if len(places) < _ODD_KEPT:
            places.append((record.partition, record.offset))


def _uuid(key: bytes | None) -> bytes | None:
    try:
        return UUID((key or b"").decode()).bytes
    except ValueError:  # UnicodeDecodeError too
        return None


def _source(headers: dict[str, bytes | None]) -> tuple[int, int] | None:
    """Return the partition and offset that a rejected record came from."""
    try:
        return int(headers["ct_source_partition"] or b""), int(headers["ct_source_offset"] or b"")
    except (KeyError, ValueError):
        return None


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Topics]:
    """Connect without a group. Raises KafkaError."""
    is_kafka = await supports_idempotence(settings)
    consumer = AIOKafkaConsumer(
        **kafka_options(settings),
        client_id="ct-stream-verify",
        group_id=None,
        enable_auto_commit=False,
        isolation_level="read_committed",  # as the worker's: what upstream took back was never there
        max_partition_fetch_bytes=_PARTITION_BYTES,  # a greater record still comes, alone
        fetch_max_bytes=16 * _PARTITION_BYTES,
    )
    try:
        await consumer.start()
        yield Topics(settings, consumer, is_kafka=is_kafka)
    finally:
        await consumer.stop()
