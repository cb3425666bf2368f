"""Reads the group's committed offsets, and what is in the topic, from outside the group."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from ct_stream.problems import ProblemError
from ct_stream.stream.refusals import explain
from ct_stream.stream.retrying import retried
from ct_stream.stream.topology import UNPREFIXED, Names, kafka_options, names_of, partition_counts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from faust.types import TP

    from ct_stream.problems import Problem
    from ct_stream.settings import Settings

_LOOK_TIMEOUT_S = 10.0
_FIRST_RECORDS_S = 2.0
_ASKED_S = 20.0  #: for Kafka to answer one question


@asynccontextmanager
async def outside_consumer(settings: Settings) -> AsyncIterator[AIOKafkaConsumer]:
    """Yield a consumer without a group: it commits nothing and takes part in no rebalance."""
    consumer = AIOKafkaConsumer(
        **kafka_options(settings),
        client_id="ct-stream-look",
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",  # if retention has removed what we look for
        isolation_level="read_committed",  # like the worker: records that upstream aborted do not exist
    )
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def next_offsets(settings: Settings, tp: TP, offset: int) -> list[int]:
    """Return the offsets of the records at or after `offset`, in order, as many as come at once.

    Empty if none came in time. Raises KafkaError.
    """
    async with outside_consumer(settings) as consumer:
        partition = TopicPartition(tp.topic, tp.partition)
        consumer.assign([partition])
        consumer.seek(partition, offset)
        deadline = time.monotonic() + _LOOK_TIMEOUT_S
        while time.monotonic() < deadline:
            # A fetch with nothing but transaction markers returns empty.
            found = await consumer.getmany(partition, timeout_ms=200)
            # If the log ends before `offset`, aiokafka starts again at the first record.
            if offsets := [int(record.offset) for record in found.get(partition, ()) if record.offset >= offset]:
                return offsets
        return []


async def first_records(settings: Settings, positions: Mapping[TP, int | None]) -> dict[TP, int]:
    """Return the offset of the first record at or after each position (None: the committed offset), if there is one.

    Raises KafkaError.
    """
    committed = await committed_offsets(settings) if None in positions.values() else {}
    async with outside_consumer(settings) as consumer:
        partitions = {TopicPartition(tp.topic, tp.partition): tp for tp in positions}
        consumer.assign(list(partitions))
        for partition, tp in partitions.items():
            position = positions[tp]
            offset = committed.get(tp.partition) if position is None else position
            if offset is None:
                await consumer.seek_to_beginning(partition)
            else:
                consumer.seek(partition, offset)
        found: dict[TP, int] = {}
        deadline = time.monotonic() + _FIRST_RECORDS_S
        while (looking := [p for p, tp in partitions.items() if tp not in found]) and time.monotonic() < deadline:
            records = await consumer.getmany(*looking, timeout_ms=200)
            found |= {partitions[partition]: batch[0].offset for partition, batch in records.items() if batch}
        return found


async def partitions_of(settings: Settings, topic: str) -> list[TopicPartition]:
    """Return the partitions of a topic in order, none if it is missing. Raises KafkaError.

    An admin client is asked: on Apache Kafka a consumer that subscribes to nothing knows no topics.
    """
    admin = AIOKafkaAdminClient(**kafka_options(settings), client_id="ct-stream-look")
    await admin.start()
    try:
        count = (await partition_counts(admin, (topic,))).get(topic, 0)
        return [TopicPartition(topic, number) for number in range(count)]
    finally:
        await admin.close()


async def committed_offsets(settings: Settings) -> dict[int, int]:
    """Return the group's committed offset for each partition of spine.created that has one. Raises KafkaError."""
    names = names_of(settings)
    partitions = await partitions_of(settings, names.spine_created)
    admin = AIOKafkaAdminClient(**kafka_options(settings), client_id="ct-stream-look")
    await admin.start()
    try:
        # A cluster that never had a group creates the offsets topic first; one that lost a broker moves it.
        offsets = await retried(lambda: admin.list_consumer_group_offsets(names.group, partitions=partitions))
        return {tp.partition: meta.offset for tp, meta in offsets.items() if meta.offset >= 0}
    finally:
        await admin.close()


async def end_of(settings: Settings, tp: TP) -> int:
    """Return the offset that the partition's next record will have. Raises KafkaError."""
    async with outside_consumer(settings) as consumer:
        partition = TopicPartition(tp.topic, tp.partition)
        return int((await consumer.end_offsets([partition]))[partition])


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOff:
    """A partition that ends before the group's committed offset: the cluster lost records, or the offset is another's.

    A topic that was deleted and created again is no reason: Kafka deletes a group's offsets with the topic.
    """

    partition: int
    stands: int
    ends: int
    names: Names = UNPREFIXED

    def __str__(self) -> str:
        """Return what a person needs to know, and do."""
        return (
            f"{self.names.spine_created}[{self.partition}] ends at {self.ends}, but the group {self.names.group} has "
            f"committed up to {self.stands}: did the cluster lose records, or do the offsets come from another "
            "cluster? New records below that offset would count as read and never be decided. Stop all workers and run "
            "kafka-consumer-groups.sh --bootstrap-server BROKER:9092 "
            f"--group {self.names.group} --topic {self.names.spine_created} "
            "--reset-offsets --to-earliest --execute (no company is decided twice)"
        )


async def cut_off(settings: Settings) -> list[CutOff]:
    """Return the partitions of spine.created that end before the group's committed offset. Raises KafkaError.

    Only for brokers whose end offsets are right, like `lag`.
    """
    names = names_of(settings)
    committed = await committed_offsets(settings)
    if not committed:
        return []
    async with outside_consumer(settings) as consumer:
        ends = await consumer.end_offsets([TopicPartition(names.spine_created, partition) for partition in committed])
    return _cut_off(committed, ends, names)


def _cut_off(committed: Mapping[int, int], ends: Mapping[TopicPartition, int], names: Names) -> list[CutOff]:
    return [
        CutOff(partition=tp.partition, stands=committed[tp.partition], ends=end, names=names)
        for tp, end in sorted(ends.items())
        if end < committed.get(tp.partition, 0)
    ]


class LagUnknown(ProblemError):
    """What is not committed cannot be counted: the topic is missing, or ends before the group's offset."""


async def lag(settings: Settings) -> int:
    """Return how many records of spine.created the group has not committed. Raises KafkaError or LagUnknown.

    Only for brokers whose end offsets are right; the embedded one's are not. Transaction markers have offsets too:
    after the first record that is not committed they count, but if nothing else is left they do not.
    """
    committed = await committed_offsets(settings)
    names = names_of(settings)
    partitions = await partitions_of(settings, names.spine_created)
    if not partitions:
        # Each broker learns of changed rights by itself: the one that is asked now may hide what another one showed.
        raise LagUnknown(
            f"topic {names.spine_created} is missing, or our Kafka login may not see it",
            "create it with `ct-stream topics`",
        )
    async with outside_consumer(settings) as consumer:
        ends = await consumer.end_offsets(partitions)
        begins = await consumer.beginning_offsets(partitions)
        if cut := _cut_off(committed, ends, names):
            raise LagUnknown(str(cut[0]))
        starts = {tp: max(committed.get(tp.partition, 0), begins[tp]) for tp in partitions}
        behind = {tp for tp in partitions if starts[tp] < ends[tp]}
        consumer.assign(sorted(behind))
        for tp in behind:
            consumer.seek(tp, starts[tp])
        seen: set[TopicPartition] = set()
        deadline = time.monotonic() + _LOOK_TIMEOUT_S
        while looking := {tp for tp in behind - seen if await consumer.position(tp) < ends[tp]}:
            if time.monotonic() > deadline:
                seen |= looking  # a broker in trouble: better to count markers than to miss a record
                break
            found = await consumer.getmany(*looking, timeout_ms=200, max_records=len(looking))
            seen |= {tp for tp, records in found.items() if records}
    return sum(ends[tp] - starts[tp] for tp in seen)


class OutsideView:
    """The group and its topics seen from outside, for callers that must not use the group's own consumer.

    Raises KafkaError (a RuntimeError), OSError or TimeoutError.
    """

    def __init__(self, settings: Settings, *, tells_ends: bool) -> None:
        """`tells_ends`: False for the embedded broker, whose end offsets are wrong."""
        self._settings = settings
        self._tells_ends = tells_ends
        self.names = names_of(settings)

    async def committed(self) -> dict[int, int]:
        """Return the group's committed offsets by partition, within 20 s."""
        async with asyncio.timeout(_ASKED_S):
            return await committed_offsets(self._settings)

    async def explain(self, error: BaseException) -> Problem:
        """Return why Kafka cannot be used, after an error of these."""
        return await explain(self._settings, error)

    async def next_offsets(self, tp: TP, offset: int) -> list[int]:
        """Return the offsets of the records at or after `offset`, in order, as many as come at once."""
        return await next_offsets(self._settings, tp, offset)

    async def first_records(self, positions: Mapping[TP, int | None]) -> dict[TP, int]:
        """Return the offset of the first record at or after each position, within 20 s."""
        async with asyncio.timeout(_ASKED_S):
            return await first_records(self._settings, positions)

    async def end_of(self, tp: TP) -> int:
        """Return the offset of a partition's next record, within 20 s; a huge one if the broker cannot tell."""
        if not self._tells_ends:
            return sys.maxsize
        async with asyncio.timeout(_ASKED_S):
            return await end_of(self._settings, tp)
