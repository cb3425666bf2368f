"""Do the brokers answer, and are the topics set up as the gate needs them?"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from ct_stream.ops.doctor.part import Check, Part, Seen, verdict
from ct_stream.ops.troubles import kafka_answers
from ct_stream.stream.producer import supports_idempotence
from ct_stream.stream.refusals import unusable_addresses
from ct_stream.stream.rights import missing_rights
from ct_stream.stream.topology import Names, kafka_options, misfit, names_of, partition_counts, topic_plans

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from ct_stream.settings import Settings

_MOST_COPIES = 3  #: of each partition, where there are as many brokers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cluster:
    """What was asked of the brokers for all checks, and the way to ask more."""

    settings: Settings
    admin: AIOKafkaAdminClient
    brokers: int
    partitions: dict[str, int]  #: by topic, of those that exist

    @property
    def ours(self) -> Names:
        """Return the names of our topics."""
        return names_of(self.settings)

    @property
    def copies(self) -> int:
        """Return how many copies each partition should have."""
        return min(_MOST_COPIES, self.brokers)


@asynccontextmanager
async def _cluster(settings: Settings) -> AsyncIterator[_Cluster]:
    async with kafka_answers(settings):
        admin = AIOKafkaAdminClient(**kafka_options(settings), client_id="ct-stream-doctor")
        try:
            await admin.start()
            brokers = len((await admin.describe_cluster())["brokers"])
            partitions = await partition_counts(admin, _topic_names(settings))
            yield _Cluster(settings=settings, admin=admin, brokers=brokers, partitions=partitions)
        finally:
            await admin.close()


async def _addresses(cluster: _Cluster) -> Seen:
    """A name of several that does not resolve is found only when the others are down."""
    return [
        Check(name="Kafka addresses", ok=False, detail=problem.what, action=problem.action)
        for problem in await unusable_addresses(cluster.settings)
    ]


async def _rights(cluster: _Cluster) -> Seen:
    problem = await missing_rights(cluster.settings)
    if problem is not None:
        return Check(name="Kafka rights", ok=False, detail=problem.what, action=problem.action)
    return Check(name="Kafka rights", ok=True, detail="this login may do what a worker does")


async def _brokers(cluster: _Cluster) -> Check:
    detail = f"{cluster.settings.kafka_bootstrap} answers, {cluster.brokers} brokers"
    return Check(name="Kafka", ok=True, detail=detail)


async def _topics(cluster: _Cluster) -> Check:
    problem = misfit(cluster.partitions, cluster.ours)
    if problem is not None:
        return Check(name="topics", ok=False, detail=problem.what, action=problem.action)
    counts = " or ".join(map(str, sorted(set(cluster.partitions.values()))))
    return Check(name="topics", ok=True, detail=f"all {len(cluster.partitions)} are there, with {counts} partitions")


async def _replication(cluster: _Cluster) -> Seen:
    if not cluster.partitions:
        return ()
    copies = {
        topic["topic"]: min(len(partition["replicas"]) for partition in topic["partitions"])
        for topic in await cluster.admin.describe_topics(_present(cluster))
        if topic["partitions"]  # none: this broker has not heard of the topic yet
    }
    few = [f"{name} {copies[name]}" for name in copies if copies[name] < cluster.copies]
    return verdict(
        "replication",
        ok=not few,
        good=f"each partition has at least {cluster.copies} copies, on {cluster.brokers} brokers",
        bad=f"fewer than {cluster.copies} copies: {', '.join(few)}",
        action="move them to more brokers with kafka-reassign-partitions",
    )


async def _topic_settings(cluster: _Cluster) -> Seen:
    if not cluster.partitions:
        return ()
    try:
        configs = await _configs(cluster.admin, _present(cluster))
    except (KafkaError, ValueError, IndexError) as error:
        return Check(name="topic settings", ok=None, detail=f"this broker does not say: {error}")
    wrong = []
    for plan in topic_plans(1, min_insync=2 if cluster.copies == _MOST_COPIES else None, names=cluster.ours):
        found = configs.get(plan.name, {})
        for key in ("cleanup.policy", "min.insync.replicas"):
            value, wish = found.get(key), plan.config.get(key)
            if value is None or wish is None:
                continue
            # Compaction beside deletion would delete outcomes that a new hub is to read.
            enough = int(value) >= int(wish) if key == "min.insync.replicas" else value == wish or wish != "compact"
            if not enough:
                wrong.append(f"{plan.name} has {key}={value}, not {wish}")
    return verdict(
        "topic settings",
        ok=not wrong,
        good="compaction and min.insync.replicas are as they must be",
        bad="; ".join(wrong),
        action="change them with kafka-configs --alter --entity-type topics",
    )


async def _record_times(cluster: _Cluster) -> Seen:
    """A topic that upstream has made may keep what its producers say, who may be late or wrong."""
    topic = cluster.ours.spine_created
    try:
        config = (await _configs(cluster.admin, [topic])).get(topic, {}) if topic in cluster.partitions else {}
    except (KafkaError, ValueError, IndexError):
        return ()  # `topic settings` says so
    if config.get("message.timestamp.type") != "CreateTime" or config.get("retention.ms") == "-1":
        return ()
    detail = (
        f"{topic} keeps the timestamps of its producers: an event that is older than the topic's retention may be "
        "removed unread, and Kafka 4 refuses one from a clock that is an hour ahead; kafka-configs --alter "
        f"--entity-type topics --entity-name {topic} --add-config message.timestamp.type=LogAppendTime prevents both"
    )
    return Check(name="record times", ok=None, detail=detail)


async def _idempotent_producer(cluster: _Cluster) -> Check:
    if await supports_idempotence(cluster.settings):
        return Check(name="idempotent producer", ok=True, detail="supported")
    detail = "not supported by this broker, and neither are lag and replay by time; good enough to try things out"
    return Check(name="idempotent producer", ok=None, detail=detail)


KAFKA = Part(
    name="Kafka",
    setting="kafka_bootstrap",
    connect=_cluster,
    checks=(_addresses, _brokers, _rights, _topics, _replication, _topic_settings, _record_times, _idempotent_producer),
)


def _topic_names(settings: Settings) -> tuple[str, ...]:
    return tuple(plan.name for plan in topic_plans(1, min_insync=None, names=names_of(settings)))


def _present(cluster: _Cluster) -> list[str]:
    return [name for name in _topic_names(cluster.settings) if name in cluster.partitions]


async def _configs(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return each topic's settings. Raises KafkaError or ValueError where the broker does not tell them."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(asked):
        for code, message, _kind, name, entries, *_ in response.resources:
            if code:
                raise ValueError(message or f"error {code}")
            found[name] = {entry[0]: entry[1] for entry in entries}
    if not any(found.values()):
        raise ValueError("an empty answer")
    return found
