"""The gate's topics: how they are created, and whether they fit together."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
)

from ct_stream.kafka_tls import tls_context
from ct_stream.problems import Problem, ProblemError

if TYPE_CHECKING:
    from ct_stream.settings import Settings

# Without the prefix (CT_KAFKA_PREFIX): `Names` has them as the cluster knows them.
GROUP = "ct-stream"
SPINE_CREATED = "spine.created"
CT_PASS = "ct.pass"
CT_FAIL = "ct.fail"
CT_REJECTED = "ct.rejected"
TABLE = "decided"
#: Faust's own rule: <app id>-<table>-changelog.
CHANGELOG = f"{GROUP}-{TABLE}-changelog"
DEFAULT_PARTITIONS = 12
#: The brokers date each record: one that its producer has dated too far back would be beyond the retention when it
#: arrives, and Kafka 4 refuses one that is more than an hour ahead.
_TIMES = {"message.timestamp.type": "LogAppendTime"}
_DAYS_30_MS = str(30 * 24 * 3600 * 1000)
_KNOWN_S = 15.0  #: how long a new topic may take to be known to all brokers; measured: 0.1 s on a busy machine
_MISSING_S = 2.0  #: after which a topic that was not just created counts as missing
_KNOWN_POLL_S = 0.05


_OURS = re.compile(
    rf"(?<![\w.-])(?:{'|'.join(map(re.escape, (SPINE_CREATED, CT_PASS, CT_FAIL, CT_REJECTED, CHANGELOG)))}"
    rf"|(?<=group ){GROUP})(?![\w-])"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Our topics and our group, as the cluster knows them: two gates on one cluster have different prefixes."""

    prefix: str = ""

    def on_cluster(self, name: str) -> str:
        """Return the full name of a topic or group."""
        return f"{self.prefix}{name}"

    def named(self, text: str) -> str:
        """Return a text with the full names of the topics and the group that it speaks of."""
        return _OURS.sub(lambda found: self.on_cluster(found[0]), text) if self.prefix else text

    @property
    def spine_created(self) -> str:
        """Return where the events come from."""
        return self.on_cluster(SPINE_CREATED)

    @property
    def ct_pass(self) -> str:
        """Return where the PASSes go."""
        return self.on_cluster(CT_PASS)

    @property
    def ct_fail(self) -> str:
        """Return where the FAILs go."""
        return self.on_cluster(CT_FAIL)

    @property
    def ct_rejected(self) -> str:
        """Return where unreadable records go."""
        return self.on_cluster(CT_REJECTED)

    @property
    def changelog(self) -> str:
        """Return the topic of the dedupe table."""
        return self.on_cluster(CHANGELOG)

    @property
    def group(self) -> str:
        """Return the group of the workers."""
        return self.on_cluster(GROUP)


UNPREFIXED = Names()


def names_of(settings: Settings) -> Names:
    """Return the names that these settings give to our topics and our group."""
    return Names(prefix=settings.kafka_prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicPlan:
    """One topic as we create it."""

    name: str
    partitions: int
    config: dict[str, str] = field(default_factory=dict)


class TopologyError(ProblemError):
    """Topics are missing or do not fit; the action names the command that mends it."""


def kafka_options(settings: Settings) -> dict[str, Any]:
    """Return the options of every aiokafka client of this program."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.kafka_bootstrap,
        "security_protocol": settings.kafka_security_protocol,
    }
    if settings.kafka_security_protocol.endswith("SSL"):
        options["ssl_context"] = tls_context(
            settings.kafka_ssl_cafile,
            settings.kafka_ssl_certfile,
            settings.kafka_ssl_keyfile,
            settings.kafka_ssl_password,
        )
    if settings.kafka_security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": settings.kafka_sasl_mechanism,
            "sasl_plain_username": settings.kafka_sasl_username,
            "sasl_plain_password": settings.kafka_sasl_password,
        }
    return options


def topic_plans(partitions: int, *, min_insync: int | None, names: Names = UNPREFIXED) -> tuple[TopicPlan, ...]:
    """Return all topics. Changelog and source must have the same number of partitions, or the table cannot work."""
    durable = {"min.insync.replicas": str(min_insync)} if min_insync else {}
    durable |= _TIMES
    kept = {"cleanup.policy": "compact", "retention.ms": "-1"} | durable
    for_30_days = {"cleanup.policy": "delete", "retention.ms": _DAYS_30_MS} | durable
    return (
        TopicPlan(name=names.spine_created, partitions=partitions, config=for_30_days),
        TopicPlan(name=names.ct_pass, partitions=partitions, config=kept),
        TopicPlan(name=names.ct_fail, partitions=partitions, config=kept),
        TopicPlan(name=names.ct_rejected, partitions=partitions, config=for_30_days),
        TopicPlan(name=names.changelog, partitions=partitions, config={"cleanup.policy": "compact"} | durable),
    )


async def partition_counts(admin: AIOKafkaAdminClient, names: tuple[str, ...]) -> dict[str, int]:
    """Return the number of partitions of each topic that exists."""
    existing = set(await admin.list_topics())
    described = await admin.describe_topics([name for name in names if name in existing]) if existing else []
    return {topic["topic"]: len(topic["partitions"]) for topic in described if not topic["error_code"]}


async def create_topics(settings: Settings, *, replication: int | None = None) -> tuple[list[str], dict[str, int]]:
    """Create what is missing; return the names of the topics, and the number of partitions of all topics.

    A changelog with fewer partitions than `spine.created` gets the missing ones: upstream has added some.
    An existing `spine.created` sets the number of partitions, since upstream may have created it. `replication`
    defaults to 3, or to the number of brokers if there are fewer.
    """
    admin = AIOKafkaAdminClient(**kafka_options(settings), client_id="ct-stream-topics")
    await admin.start()
    try:
        ours = names_of(settings)
        names = tuple(plan.name for plan in topic_plans(1, min_insync=None, names=ours))
        counts = await partition_counts(admin, names)
        if replication is None:
            cluster = await admin.describe_cluster()
            replication = min(3, max(1, len(cluster["brokers"])))
        partitions = counts.get(ours.spine_created, DEFAULT_PARTITIONS)
        made = []
        for plan in topic_plans(partitions, min_insync=2 if replication >= 3 else None, names=ours):
            if plan.name in counts:
                continue
            topic = NewTopic(plan.name, plan.partitions, replication, topic_configs=plan.config)
            try:
                await _create(admin, topic)
            except TopicAlreadyExistsError:
                continue  # somebody else has created it meanwhile
            made.append(plan.name)
        if counts.get(ours.changelog, partitions) < partitions:
            await admin.create_partitions({ours.changelog: NewPartitions(partitions)})
            made.append(ours.changelog)
        counts = await _counts_of_all(admin, names, within_s=_KNOWN_S, changelog=(ours.changelog, partitions))
        _require_fit(counts, ours)
        return made, counts
    finally:
        await admin.close()


async def _counts_of_all(
    admin: AIOKafkaAdminClient, names: tuple[str, ...], *, within_s: float, changelog: tuple[str, int] | None = None
) -> dict[str, int]:
    """Return the partitions of all topics, once the brokers know each of them, or time is up.

    `changelog`: its name, and the partitions that it should have by then.

    The controller answers when a topic is created; the brokers learn of it a moment later (KRaft's metadata log).
    """
    deadline = time.monotonic() + within_s
    while True:
        counts = await partition_counts(admin, names)
        are_known = not set(names) - set(counts)
        has_grown = changelog is None or counts.get(changelog[0], 0) >= changelog[1]
        if (are_known and has_grown) or time.monotonic() > deadline:
            return counts
        await asyncio.sleep(_KNOWN_POLL_S)


async def _create(admin: AIOKafkaAdminClient, topic: NewTopic) -> None:
    response = await admin.create_topics([topic])
    for entry in response.topic_errors:
        code, message = entry[1], entry[2] if len(entry) > 2 else ""
        if code == TopicAlreadyExistsError.errno:
            raise TopicAlreadyExistsError
        if code in (TopicAuthorizationFailedError.errno, ClusterAuthorizationFailedError.errno):
            raise TopologyError(
                f"our Kafka login may not create topic {entry[0]}",
                f"grant it CREATE with `kafka-acls.sh --add --operation CREATE --topic {entry[0]}`, or run "
                "`ct-stream topics` with another login",
            )
        if code:
            raise TopologyError(f"topic {entry[0]} could not be created: error {code} {message or ''}".rstrip())


def misfit(counts: dict[str, int], names: Names = UNPREFIXED) -> Problem | None:
    """Return what is wrong with the topics, or None."""
    missing = [plan.name for plan in topic_plans(1, min_insync=None, names=names) if plan.name not in counts]
    if missing:
        return Problem(what=f"topics are missing: {', '.join(missing)}", action="create them with `ct-stream topics`")
    source, changelog = counts[names.spine_created], counts[names.changelog]
    if source > changelog:
        return Problem(
            what=f"{names.spine_created} has {source} partitions and {names.changelog} has {changelog}; they must be "
            "equal",
            action=f"stop the workers, then add the missing partitions to {names.changelog} with `ct-stream topics`",
        )
    if source < changelog:
        return Problem(
            what=f"{names.spine_created} has {source} partitions and {names.changelog} has {changelog}; they must be "
            "equal",
            action=f"delete {names.changelog}, which is only a cache, and run `ct-stream topics`",
        )
    return None


def _require_fit(counts: dict[str, int], names: Names) -> None:
    problem = misfit(counts, names)
    if problem is not None:
        raise TopologyError(problem.what, problem.action)


async def partitions_now(settings: Settings) -> int | None:
    """Return how many partitions `spine.created` has, None if it is missing. Raises KafkaError."""
    admin = AIOKafkaAdminClient(**kafka_options(settings), client_id="ct-stream-check")
    try:
        await admin.start()
        topic = names_of(settings).spine_created
        return (await partition_counts(admin, (topic,))).get(topic)
    finally:
        await admin.close()


async def check_topics(settings: Settings) -> dict[str, int]:
    """Return the partitions of our topics. Raises TopologyError, or KafkaError if no broker answers."""
    admin = AIOKafkaAdminClient(**kafka_options(settings), client_id="ct-stream-check")
    try:
        await admin.start()
        ours = names_of(settings)
        names = tuple(plan.name for plan in topic_plans(1, min_insync=None, names=ours))
        counts = await _counts_of_all(admin, names, within_s=_MISSING_S)
    finally:
        await admin.close()
    _require_fit(counts, ours)
    return counts
