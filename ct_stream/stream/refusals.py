"""Finds out why Kafka refuses us, one step of a connection after the other: name, address, TLS, login, rights.

aiokafka says "Unable to bootstrap" for all of it. It keeps the reason to itself, and for some it has none: a broker
that expects TLS simply closes a connection without it.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiokafka.errors import (
    IllegalSaslStateError,
    InconsistentGroupProtocolError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.admin import SaslHandShakeRequest
from aiokafka.protocol.metadata import MetadataRequest

from ct_stream.problems import Problem, said_by
from ct_stream.stream.connection import Connection
from ct_stream.stream.rights import is_denied, login, missing_rights
from ct_stream.stream.topology import kafka_options

if TYPE_CHECKING:
    from ct_stream.settings import Settings

_STEP_S = 5.0
_LOOK_S = 20.0
#: What OpenSSL says of a certificate (X509_V_ERR_*): which one it is decides what to do.
_EXPIRED, _NOT_YET_VALID = 10, 9
_OTHER_NAME = (62, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Address:
    """Where a broker should be, and who says so."""

    host: str
    port: int
    node: int | None = None  #: the broker that the cluster advertises there; None: an address of CT_KAFKA_BOOTSTRAP

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def named(self) -> str:
        """Return the address with its origin, for a sentence."""
        return f"{self} (CT_KAFKA_BOOTSTRAP)" if self.node is None else f"{self} (broker {self.node})"

    @property
    def correct(self) -> str:
        """Return what to do where the address itself is wrong."""
        if self.node is None:
            return "correct CT_KAFKA_BOOTSTRAP"
        return f"correct advertised.listeners of broker {self.node}"


async def explain(settings: Settings, error: BaseException) -> Problem:
    """Return why Kafka cannot be used, after an error of a client."""
    try:
        async with asyncio.timeout(_LOOK_S):
            found = await _connection_trouble(settings)
            if found is None and is_denied(error):
                found = await missing_rights(settings) or Problem(
                    what=f"{login(settings)} is not allowed to do this: {said_by(error)}",
                    action="grant it with kafka-acls.sh --add",
                )
    except (KafkaError, OSError, TimeoutError):
        found = None
    return found or Problem(
        what=f"Kafka at {settings.kafka_bootstrap} does not answer: {said_by(error)}",
        action="see whether its brokers run, and check CT_KAFKA_BOOTSTRAP",
    )


def refused_by_group(group: str, error: BaseException) -> Problem:
    """Return why the group does not take this worker in, after an error of its coordinator."""
    if isinstance(error, InconsistentGroupProtocolError):
        return Problem(
            what=f"the group {group} does not take this worker in: a program of another kind is a member of it",
            action=f"end that program, or give it a group of its own (kafka-consumer-groups.sh --describe --members "
            f"--group {group} names it)",
        )
    return Problem(
        what=f"the group {group} does not take this worker in: {said_by(error)}",
        action="see the log of the broker that coordinates it; it may have as many members as group.max.size allows",
    )


async def _connection_trouble(settings: Settings) -> Problem | None:
    """Return what is wrong on the way to the brokers, or None."""
    troubles = []
    for server in (settings.kafka_bootstrap or "").split(","):
        host, _, port = server.rpartition(":")
        address = _Address(host=host.strip("[]"), port=int(port))
        reached = await _reach(settings, address)
        if isinstance(reached, Problem):
            troubles.append(reached)
            continue
        for broker in reached:
            if (broker.host, broker.port) != (address.host, address.port):
                there = await _reach(settings, broker)
                if isinstance(there, Problem):
                    return there
        return None
    return troubles[0]


async def unusable_addresses(settings: Settings) -> list[Problem]:
    """Return what is wrong with each address of CT_KAFKA_BOOTSTRAP whose name does not resolve."""
    found = []
    for server in (settings.kafka_bootstrap or "").split(","):
        host, _, port = server.rpartition(":")
        problem = await _resolve(_Address(host=host.strip("[]"), port=int(port)))
        if problem is not None:
            found.append(problem)
    return found


async def _reach(settings: Settings, address: _Address) -> list[_Address] | Problem:
    """Return the brokers that the one at an address knows of, or why it cannot be used."""
    problem = await _resolve(address) or await _connect(address)
    if problem is not None:
        return problem
    connection = _connection(settings, address)
    try:
        await connection.connect()
        answer = await connection.send(MetadataRequest([]))
    except ssl.SSLCertVerificationError as error:
        return _certificate(settings, address, error)
    except SaslAuthenticationFailed as error:
        return Problem(
            what=f"{address.named} refuses {login(settings)}: {_text(error)}",
            action="correct CT_KAFKA_SASL_USERNAME or CT_KAFKA_SASL_PASSWORD",
        )
    except UnsupportedSaslMechanismError as error:
        return Problem(
            what=f"{address.named} does not support the login mechanism {settings.kafka_sasl_mechanism}: "
            f"{_text(error)}",
            action="set CT_KAFKA_SASL_MECHANISM to one that it supports",
        )
    except IllegalSaslStateError:
        return Problem(
            what=f"{address.named} takes no login, but CT_KAFKA_SECURITY_PROTOCOL is "
            f"{settings.kafka_security_protocol}",
            action="name the broker's port for logins, or set CT_KAFKA_SECURITY_PROTOCOL to "
            f"{settings.kafka_security_protocol.removeprefix('SASL_')}",
        )
    except (KafkaError, OSError, TimeoutError) as error:
        return await _mismatch(settings, address, error)
    finally:
        connection.close()
    return [_Address(host=host, port=port, node=node) for node, host, port, *_ in answer.brokers]


async def _resolve(address: _Address) -> Problem | None:
    try:
        async with asyncio.timeout(_STEP_S):
            await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:  # a timeout too
        why = f": {error.strerror}" if isinstance(error, socket.gaierror) and error.strerror else ""
        if address.node is None:
            what = f"the name {address.host} in CT_KAFKA_BOOTSTRAP does not resolve{why}"
        else:
            what = f"the cluster advertises broker {address.node} as {address}, a name that does not resolve here{why}"
        return Problem(what=what, action=f"{address.correct}, or let this machine resolve the name")
    return None


async def _connect(address: _Address) -> Problem | None:
    try:
        async with asyncio.timeout(_STEP_S):
            _, writer = await asyncio.open_connection(address.host, address.port)
    except ConnectionRefusedError:
        if address.node is None:
            what = f"Kafka at {address} does not answer: nobody listens there"
        else:
            what = f"the cluster advertises broker {address.node} as {address}, where nobody listens"
        return Problem(what=what, action=f"start the broker, or {address.correct}")
    except TimeoutError:
        return Problem(
            what=f"{address.named} takes no connection within {_STEP_S:g} s",
            action=f"look for a firewall on the way, or {address.correct}",
        )
    except OSError as error:
        return Problem(
            what=f"{address.named} cannot be reached: {said_by(error)}",
            action=f"see to the network, or {address.correct}",
        )
    writer.close()
    return None


def _certificate(settings: Settings, address: _Address, error: ssl.SSLCertVerificationError) -> Problem:
    said = error.verify_message
    if error.verify_code in _OTHER_NAME:
        return Problem(
            what=f"the certificate of {address.named} is for another name: {said}",
            action=f"{address.correct} to a name in the certificate",
        )
    if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        return Problem(
            what=f"the certificate of {address.named} is not valid today: {said}",
            action="renew it, or correct this machine's clock",
        )
    trusted = f"CT_KAFKA_SSL_CAFILE {settings.kafka_ssl_cafile}" if settings.kafka_ssl_cafile else "this system"
    return Problem(
        what=f"the certificate of {address.named} is from an authority that {trusted} does not know: {said}",
        action="set CT_KAFKA_SSL_CAFILE to the file with the certificate of the cluster's authority",
    )


async def _mismatch(settings: Settings, address: _Address, error: BaseException) -> Problem:
    """Return what a broker expects that ends connections without a word."""
    protocol = settings.kafka_security_protocol
    speaks_tls = await _speaks_tls(address)
    if protocol.endswith("SSL") and not speaks_tls:
        return Problem(
            what=f"{address.named} does not speak TLS, but CT_KAFKA_SECURITY_PROTOCOL is {protocol}",
            action="name the broker's TLS port, or set CT_KAFKA_SECURITY_PROTOCOL to "
            + ("SASL_PLAINTEXT" if protocol == "SASL_SSL" else "PLAINTEXT"),
        )
    if speaks_tls and not protocol.endswith("SSL"):
        return Problem(
            what=f"{address.named} speaks TLS, but CT_KAFKA_SECURITY_PROTOCOL is {protocol}",
            action="set CT_KAFKA_SECURITY_PROTOCOL to " + ("SASL_SSL" if protocol.startswith("SASL") else "SSL"),
        )
    mechanisms = await _login_mechanisms(settings, address)
    if mechanisms and not protocol.startswith("SASL"):
        return Problem(
            what=f"{address.named} requires a login ({', '.join(mechanisms)}), but CT_KAFKA_SECURITY_PROTOCOL is "
            f"{protocol}",
            action="set CT_KAFKA_SECURITY_PROTOCOL to " + ("SASL_SSL" if speaks_tls else "SASL_PLAINTEXT"),
        )
    if speaks_tls and mechanisms is None:
        if settings.kafka_ssl_certfile is None:
            return Problem(
                what=f"{address.named} ends our TLS connection: it seems to require a client certificate",
                action="set CT_KAFKA_SSL_CERTFILE and CT_KAFKA_SSL_KEYFILE",
            )
        return Problem(
            what=f"{address.named} ends our TLS connection: it seems not to accept the client certificate",
            action="set CT_KAFKA_SSL_CERTFILE to one from an authority that the brokers trust",
        )
    return Problem(
        what=f"{address.named} takes our connection and does not answer as a broker of Kafka: {said_by(error)}",
        action=f"look at the broker's log, or {address.correct}",
    )


async def _speaks_tls(address: _Address) -> bool:
    """Return whether whoever listens there answers the first message of TLS in kind."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent over it
    try:
        async with asyncio.timeout(_STEP_S):
            _, writer = await asyncio.open_connection(address.host, address.port, ssl=context)
    except ssl.SSLError as error:
        return "_ALERT_" in (error.reason or "")
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True


async def _login_mechanisms(settings: Settings, address: _Address) -> list[str] | None:
    """Return how one may log in there, empty where there is no login; None if the connection does not last."""
    protocol = settings.kafka_security_protocol.removeprefix("SASL_")
    connection = _connection(settings, address, security_protocol=protocol)
    try:
        await connection.connect()
        answer = await connection.send(SaslHandShakeRequest("PLAIN"))
    except (KafkaError, OSError, TimeoutError):
        return None
    finally:
        connection.close()
    return list(answer.enabled_mechanisms or ())


def _connection(settings: Settings, address: _Address, **more: Any) -> Connection:
    options = kafka_options(settings) | {"client_id": "ct-stream-look", "request_timeout_ms": int(_STEP_S * 1000)}
    del options["bootstrap_servers"]
    return Connection(address.host, address.port, **(options | more))


def _text(error: BaseException) -> str:
    """Return the broker's own words, without aiokafka's number and class."""
    return said_by(error).rpartition("Error: ")[2] if "Error: " in said_by(error) else said_by(error)
