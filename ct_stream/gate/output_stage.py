"""Stage O: turns a verdict into its outcome, with the exact event to publish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import UUID, uuid5

import orjson

from ct_stream.gate.contracts import CT_FAIL, CT_PASS
from ct_stream.gate.transcript import Exchange, tools_used
from ct_stream.gate.verdicts import Failed, Passed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from ct_stream.gate.failures import FailureCode

PASS_TOPIC = "ct.pass"
FAIL_TOPIC = "ct.fail"
_CE_NAMESPACE = UUID("7d0a4c0e-5b8f-4a53-9d6e-2f1c8e9b7a10")
_CE_SOURCE = "/outreach/company-target"
_SCHEMA_VERSION = 1
_TRACEPARENT, _CORRELATION_ID = "traceparent", "correlation_id"  #: upstream's headers, handed on

#: In order; names may repeat.
Headers: TypeAlias = tuple[tuple[str, bytes], ...]


class ContractBroken(Exception):
    """An outcome does not fit its own schema. That is our own bug, so there is no outcome."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The event that a company came from, and what is copied from it to the outcome."""

    outreach_id: UUID
    topic: str = ""
    partition: int = -1
    offset: int = -1
    correlation_id: str | None = None
    traceparent: bytes | None = None
    correlation_header: bytes | None = None  #: the record's `correlation_id` header, byte for byte


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Everything that is kept of a decided company: its rows and the exact bytes to publish."""

    origin: Origin
    verdict: Passed | Failed
    rules_version: str
    decided_at: datetime
    duration_ms: int
    exchanges: tuple[Exchange, ...]
    topic: str
    key: bytes
    value: bytes
    headers: Headers

    @property
    def outreach_id(self) -> UUID:
        """Return the company's id."""
        return self.origin.outreach_id

    @property
    def failure_code(self) -> FailureCode | None:
        """Return the code of a FAIL."""
        return self.verdict.code if isinstance(self.verdict, Failed) else None


def output_stage(
    origin: Origin,
    verdict: Passed | Failed,
    exchanges: Sequence[Exchange],
    *,
    rules_version: str,
    decided_at: datetime,
    duration_ms: int,
) -> Outcome:
    """Return the outcome of `verdict`; `decided_at` is in UTC. Raises ContractBroken when its event fits no schema."""
    decided = rfc3339(decided_at)
    passed = isinstance(verdict, Passed)
    body = _pass_body(verdict) if isinstance(verdict, Passed) else _fail_body(verdict)
    body |= {
        "schema_version": _SCHEMA_VERSION,
        "outreach_id": str(origin.outreach_id),
        "tools_used": tools_used(exchanges),
        "correlation_id": origin.correlation_id,
        "decided_at": decided,
        "duration_ms": duration_ms,
    }
    problem = (CT_PASS if passed else CT_FAIL).problem(body)
    if problem is not None:
        raise ContractBroken(f"{PASS_TOPIC if passed else FAIL_TOPIC} event of {origin.outreach_id}: {problem}")
    return Outcome(
        origin=origin,
        verdict=verdict,
        rules_version=rules_version,
        decided_at=decided_at,
        duration_ms=duration_ms,
        exchanges=tuple(exchanges),
        topic=PASS_TOPIC if passed else FAIL_TOPIC,
        key=str(origin.outreach_id).encode(),
        value=orjson.dumps(body),
        headers=_headers(origin, passed=passed, decided=decided),
    )


def rfc3339(moment: datetime) -> str:
    """Return a UTC moment with milliseconds and Z."""
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def _pass_body(verdict: Passed) -> dict[str, Any]:
    return {
        "domain": verdict.domain,
        "email_method": verdict.email_method,
        "method_type": verdict.method_type,
        "confidence_score": verdict.confidence,
        "is_catchall": verdict.is_catchall,
        "verified_by": verdict.verified_by.value,
    }


def _fail_body(verdict: Failed) -> dict[str, Any]:
    return {
        "domain": verdict.domain,
        "failure_code": verdict.code.value,
        "imo_stage": verdict.code.imo_stage,
        "blocking_reason": verdict.reason[:1000],
        "retry_allowed": False,
    }


def are_headers_of(headers: Headers, outreach_id: UUID, topic: str, value: bytes) -> bool:
    """Return whether headers are those of this company's event on this topic. Raises if the event cannot be read.

    No name is there twice: of two, readers differ in which they take.
    """
    wanted = dict(_own_headers(outreach_id, passed=topic == PASS_TOPIC, decided=orjson.loads(value)["decided_at"]))
    said = dict(headers)
    return (
        len(said) == len(headers)
        and said.keys() <= wanted.keys() | {_TRACEPARENT, _CORRELATION_ID}
        and all(said.get(name) == content for name, content in wanted.items())
    )


def _own_headers(outreach_id: UUID, *, passed: bool, decided: str) -> Headers:
    """Return the headers that do not come from upstream."""
    return (
        ("ce_specversion", b"1.0"),
        ("ce_id", str(uuid5(_CE_NAMESPACE, f"{outreach_id}/outcome")).encode()),
        ("ce_type", b"outreach.ct.pass.v1" if passed else b"outreach.ct.fail.v1"),
        ("ce_source", _CE_SOURCE.encode()),
        ("ce_subject", str(outreach_id).encode()),
        ("ce_time", decided.encode()),
        ("content-type", b"application/json"),
    )


def _headers(origin: Origin, *, passed: bool, decided: str) -> Headers:
    """Return CloudEvents 1.0 headers in Kafka's binary mode. A repeat has the same `ce_id`."""
    headers = [*_own_headers(origin.outreach_id, passed=passed, decided=decided)]
    if origin.traceparent is not None:
        headers.append((_TRACEPARENT, origin.traceparent))
    if origin.correlation_header is not None:
        headers.append((_CORRELATION_ID, origin.correlation_header))
    return tuple(headers)
