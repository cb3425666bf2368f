"""Run one broker of Apache Kafka that refuses people: with TLS, passwords and access rules, and misleading addresses.

Whoever comes to its plain port may do everything, so that a test can prepare it. Whoever logs in may do what `allow`
has granted.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trustme
from aiokafka.protocol.admin import CreateAclsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String

from tools.kafka.cluster import KafkaCluster, free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

USER, PASSWORD = "gate", "gate-pw-4711"
#: A name that never resolves (RFC 6761), as a broker's own in a cluster that advertises it to the outside.
LOST_NAME = "kafka-7.internal.invalid"

_TOPIC, _GROUP, _CLUSTER = 2, 3, 4
_LITERAL = 3
_ALLOW = 3
OPERATIONS = {"READ": 3, "WRITE": 4, "CREATE": 5, "DESCRIBE": 8}
RESOURCES = {"topic": _TOPIC, "group": _GROUP, "cluster": _CLUSTER}

_PROPERTIES = """\
listeners=PLAINTEXT://127.0.0.1:{{port}},CONTROLLER://127.0.0.1:{{controller_port}},{listeners}
advertised.listeners=PLAINTEXT://127.0.0.1:{{port}},{advertised}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,CERT:SSL,LOGIN:SASL_PLAINTEXT,\
BOTH:SASL_SSL,LOST:PLAINTEXT,MOVED:PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={truststore}
listener.name.cert.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN
listener.name.login.plain.sasl.jaas.config={jaas}
listener.name.both.plain.sasl.jaas.config={jaas}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
offsets.topic.num.partitions=2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """A broker that refuses people, and its addresses: each is a way in."""

    cluster: KafkaCluster
    cafile: Path  #: of the authority that signed its certificate
    other_cafile: Path  #: of another one
    ports: dict[str, int]
    nobody: int  #: a port where nobody listens, at which one listener is advertised

    def at(self, listener: str) -> str:
        """Return the bootstrap address of a listener."""
        return f"127.0.0.1:{self.ports[listener]}"

    @property
    def plain(self) -> str:
        """Return the address where everybody may do everything."""
        return self.cluster.bootstrap

    async def allow(self, operation: str, resource: str, name: str) -> None:
        """Let the user do something."""
        async with self.cluster.admin() as admin:
            answer = await admin._send_request(CreateAclsRequest(*_rule(operation, resource, name)))
        assert not any(entry[0] for entry in answer.creation_responses), answer

    async def forbid(self, operation: str, resource: str, name: str) -> None:
        """Take it back."""
        async with self.cluster.admin() as admin:
            answer = await admin._send_request(_DeleteAclsRequest([_rule(operation, resource, name)]))
        assert [len(entry[2]) for entry in answer.results] == [1], answer

    async def allow_gate(self, prefix: str = "") -> None:
        """Let the user do all that a worker does."""
        await self.allow("READ", "topic", f"{prefix}spine.created")
        for topic in ("ct.pass", "ct.fail", "ct.rejected"):
            await self.allow("WRITE", "topic", f"{prefix}{topic}")
        for operation in ("READ", "WRITE"):
            await self.allow(operation, "topic", f"{prefix}ct-stream-decided-changelog")
        await self.allow("READ", "group", f"{prefix}ct-stream")


@asynccontextmanager
async def guarded_broker(folder: Path) -> AsyncIterator[Guarded]:
    """Run the broker, fresh, in a folder that exists."""
    authority, other = trustme.CA(), trustme.CA()
    cafile, other_cafile, keystore = folder / "ca.pem", folder / "other-ca.pem", folder / "keystore.pem"
    authority.cert_pem.write_to_path(str(cafile))
    other.cert_pem.write_to_path(str(other_cafile))
    certificate = authority.issue_cert("127.0.0.1", key_type=trustme.KeyType.RSA)
    keystore.write_bytes(
        _pkcs8(certificate.private_key_pem.bytes()) + b"".join(part.bytes() for part in certificate.cert_chain_pems)
    )
    names = ("TLS", "CERT", "LOGIN", "BOTH", "LOST", "MOVED")
    *free, nobody = free_ports(len(names) + 1)
    ports = dict(zip(names, free, strict=True))
    advertised = {name: f"127.0.0.1:{port}" for name, port in ports.items()}
    advertised |= {"LOST": f"{LOST_NAME}:9092", "MOVED": f"127.0.0.1:{nobody}"}
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    more = _PROPERTIES.format(
        listeners=",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items()),
        advertised=",".join(f"{name}://{address}" for name, address in advertised.items()),
        keystore=keystore,
        truststore=cafile,
        jaas=f'{module} required user_{USER}="{PASSWORD}";',
    )
    async with KafkaCluster(folder / "kafka", nodes=(1,), more=more) as cluster:
        yield Guarded(cluster=cluster, cafile=cafile, other_cafile=other_cafile, ports=ports, nobody=nobody)


def _pkcs8(key: bytes) -> bytes:
    """Return a private key in the one form that Kafka reads."""
    from cryptography.hazmat.primitives import serialization

    read = serialization.load_pem_private_key(key, password=None)
    return read.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _rule(operation: str, resource: str, name: str) -> tuple[int, str, int, str, str, int, int]:
    return RESOURCES[resource], name, _LITERAL, f"User:{USER}", "*", OPERATIONS[operation], _ALLOW


class _DeleteAclsResponse(Response):  # type: ignore[misc]
    API_KEY = 31
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                (
                    "matching",
                    Array(
                        ("error_code", Int16),
                        ("error_message", String("utf-8")),
                        ("resource_type", Int8),
                        ("resource_name", String("utf-8")),
                        ("pattern_type", Int8),
                        ("principal", String("utf-8")),
                        ("host", String("utf-8")),
                        ("operation", Int8),
                        ("permission_type", Int8),
                    ),
                ),
            ),
        ),
    )


class _DeleteAcls(RequestStruct):  # type: ignore[misc]
    API_KEY = 31
    API_VERSION = 1
    RESPONSE_TYPE = _DeleteAclsResponse
    SCHEMA = Schema(
        (
            "filters",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                ("pattern_type", Int8),
                ("principal", String("utf-8")),
                ("host", String("utf-8")),
                ("operation", Int8),
                ("permission_type", Int8),
            ),
        )
    )


class _DeleteAclsRequest(Request[_DeleteAcls]):  # type: ignore[misc]
    API_KEY = 31

    def __init__(self, filters: list[tuple[int, str, int, str, str, int, int]]) -> None:
        self._filters = filters

    def build(self, request_struct_class: type[_DeleteAcls]) -> _DeleteAcls:
        return request_struct_class(self._filters)
