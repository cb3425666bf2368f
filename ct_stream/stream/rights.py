"""Finds out what our login may not do, by asking the brokers (KIP-430), before Faust or a producer runs into it.

Kafka hides topics that a login may not describe: without this question they look as if they were missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IncompatibleBrokerVersion,
    NodeNotReadyError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from ct_stream.problems import Problem, ProblemError, said_by
from ct_stream.stream.retrying import retried
from ct_stream.stream.topology import Names, kafka_options, names_of

if TYPE_CHECKING:
    from ct_stream.settings import Settings

#: What a broker answers to whom it denies something.
DENIED = (TopicAuthorizationFailedError, GroupAuthorizationFailedError, ClusterAuthorizationFailedError)

_BITS = {"READ": 3, "WRITE": 4}  #: of the operations, as Kafka numbers them (AclOperation)
_NOT_TOLD = -(2**31)
_ASK_MS = 10_000


class Denied(ProblemError):
    """Our login may not do what a worker must. Somebody may grant it meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """Something that a worker must be allowed to do."""

    operation: str  #: READ or WRITE
    kind: str  #: topic or group
    name: str

    def __str__(self) -> str:
        return f"{self.operation} {self.kind} {self.name}"


def needed_rights(names: Names) -> tuple[Right, ...]:
    """Return what a worker needs; the right to describe a topic or group comes with each."""
    return (
        Right(operation="READ", kind="topic", name=names.spine_created),
        *(
            Right(operation="WRITE", kind="topic", name=name)
            for name in (names.ct_pass, names.ct_fail, names.ct_rejected)
        ),
        Right(operation="READ", kind="topic", name=names.changelog),
        Right(operation="WRITE", kind="topic", name=names.changelog),
        Right(operation="READ", kind="group", name=names.group),
    )


def is_denied(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, says that our login may not do something."""
    while error is not None:
        if isinstance(error, DENIED):
            return True
        error = error.__cause__
    return False


def login(settings: Settings) -> str:
    """Return who we are for the brokers, for a sentence."""
    if settings.kafka_security_protocol.startswith("SASL"):
        return f"the Kafka login '{settings.kafka_sasl_username}' (CT_KAFKA_SASL_USERNAME)"
    if settings.kafka_ssl_certfile:
        return "the owner of the client certificate (CT_KAFKA_SSL_CERTFILE)"
    return "a client without a login"


def principal(settings: Settings) -> str:
    """Return the name under which access rules know us."""
    if settings.kafka_security_protocol.startswith("SASL"):
        return f"User:{settings.kafka_sasl_username}"
    return "'User:CN=...'" if settings.kafka_ssl_certfile else "User:ANONYMOUS"


async def missing_rights(settings: Settings) -> Problem | None:
    """Return what this login may not do and a worker must, or None; also None where the brokers do not say.

    Raises KafkaError, OSError or TimeoutError.
    """
    names = names_of(settings)
    needed = needed_rights(names)
    client = AIOKafkaClient(**kafka_options(settings), client_id="ct-stream-rights", request_timeout_ms=_ASK_MS)
    try:
        await client.bootstrap()
        topics = await _topic_rights(client, sorted({right.name for right in needed if right.kind == "topic"}))
        denied = [right for right in needed if right.kind == "topic" and not _allows(topics, right)]
        groups = await _group_rights(client, names.group)
        denied += [right for right in needed if right.kind == "group" and not _allows(groups, right)]
    finally:
        await client.close()
    return denial(settings, denied) if denied else None


async def require_rights(settings: Settings) -> None:
    """Raise Denied if this login may not do what a worker must; or KafkaError, OSError or TimeoutError."""
    problem = await missing_rights(settings)
    if problem is not None:
        raise Denied(problem.what, problem.action)


def refused_write(settings: Settings, error: BaseException) -> Problem | None:
    """Return the sentence about a producer's error, if it was refused the right to write."""
    if not is_denied(error):
        return None
    said = said_by(error)
    named = [right for right in needed_rights(names_of(settings)) if right.operation == "WRITE" and right.name in said]
    return denial(settings, named) if named else None


def denial(settings: Settings, denied: list[Right]) -> Problem:
    """Return the sentence about rights that this login lacks."""
    first = denied[0]
    others = ", and the same for the others" if len(denied) > 1 else ""
    return Problem(
        what=f"{login(settings)} may not {', '.join(map(str, denied))}",
        action=f"grant it with `kafka-acls.sh --bootstrap-server BROKER:9092 --add --allow-principal "
        f"{principal(settings)} --operation {first.operation} --{first.kind} {first.name}`{others}",
    )


def _allows(told: dict[str, int], right: Right) -> bool:
    """Return whether the broker allows it, or does not say."""
    bits = told.get(right.name, _NOT_TOLD)
    return bits == _NOT_TOLD or bool(bits >> _BITS[right.operation] & 1)


async def _topic_rights(client: AIOKafkaClient, names: list[str]) -> dict[str, int]:
    """Return what we may do with each topic, in bits; 0 for one that we may not even see."""
    try:
        answer = await client.send(_some_node(client), _TopicRights(names))
    except (IncompatibleBrokerVersion, NotImplementedError):
        return {}
    denied = TopicAuthorizationFailedError.errno
    told = {topic["topic"]: (topic["error_code"], topic["operations"]) for topic in answer.to_object()["topics"]}
    return {name: 0 if code == denied else bits for name, (code, bits) in told.items() if code in (0, denied)}


async def _group_rights(client: AIOKafkaClient, group_id: str) -> dict[str, int]:
    """Return what we may do with our group, in bits."""
    try:
        # A cluster that never had a group creates the offsets topic first.
        return {group_id: await retried(lambda: _ask_group(client, group_id))}
    except GroupAuthorizationFailedError:
        return {group_id: 0}
    except (IncompatibleBrokerVersion, NotImplementedError):
        return {}


async def _ask_group(client: AIOKafkaClient, group_id: str) -> int:
    coordinator = await client.coordinator_lookup(CoordinationType.GROUP, group_id)
    answer = await client.send(coordinator, _GroupRights([group_id]))
    [group] = answer.to_object()["groups"]
    if group["error_code"]:
        raise for_code(group["error_code"])
    return int(group["authorized_operations"])


def _some_node(client: AIOKafkaClient) -> Any:
    node = client.get_random_node()
    if node is None:
        raise NodeNotReadyError("no broker is known")
    return node


# aiokafka knows these questions only in versions that do not ask about rights, or reads the answer as an older one.


class _TopicRightsResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            Array(("node_id", Int32), ("host", String("utf-8")), ("port", Int32), ("rack", String("utf-8"))),
        ),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("operations", Int32),
            ),
        ),
        ("cluster_operations", Int32),
    )


class _TopicRightsStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _TopicRightsResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_operations", Boolean),
        ("include_topic_operations", Boolean),
    )


class _TopicRights(Request[_TopicRightsStruct]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[_TopicRightsStruct]) -> _TopicRightsStruct:
        return request_struct_class(self._names, False, False, True)


class _GroupRightsStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 15
    API_VERSION = 3
    RESPONSE_TYPE = DescribeGroupsResponse_v3
    SCHEMA = Schema(("groups", Array(String("utf-8"))), ("include_authorized_operations", Boolean))


class _GroupRights(Request[_GroupRightsStruct]):  # type: ignore[misc]
    API_KEY = 15

    def __init__(self, groups: list[str]) -> None:
        self._groups = groups

    def build(self, request_struct_class: type[_GroupRightsStruct]) -> _GroupRightsStruct:
        return request_struct_class(self._groups, True)
