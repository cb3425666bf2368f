"""What does a `spine.created` record say, and when can it not be read?"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import orjson

from ct_stream.gate.contracts import SPINE_CREATED

MAX_VALUE_BYTES = 256 * 1024  #: of a spine.created value; an upstream that sends more sends something else
_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpineCreated:
    """A readable event: the company, and what is carried through to its outcome."""

    outreach_id: UUID
    correlation_id: str | None = None
    key_missing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """Input that could not be read: it goes to `ct.rejected`, never to a FAIL."""

    reason: str  #: starts with a fixed word, so that reasons can be counted


def read_spine_created(key: bytes | None, value: bytes | None) -> SpineCreated | Unreadable:
    """Read one record of `spine.created`.

    Unknown fields are ignored. A missing key is accepted; a key that differs from the value's outreach_id is not:
    one of the two is wrong, and the partition cannot be trusted.
    """
    if value is None:
        return Unreadable(reason="tombstone: the record has no value")
    if len(value) > MAX_VALUE_BYTES:
        return Unreadable(reason=f"too-large: {len(value)} bytes, at most {MAX_VALUE_BYTES} are read")
    try:
        body = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        return Unreadable(reason=f"not-json: {error}"[:300])
    if not isinstance(body, dict):
        return Unreadable(reason=f"not-an-object: the value is a JSON {type(body).__name__}")
    version = body.get("schema_version", _SCHEMA_VERSION)
    if isinstance(version, int) and not isinstance(version, bool) and version > _SCHEMA_VERSION:
        return Unreadable(reason=f"schema-version: {version} is newer than {_SCHEMA_VERSION}, which this gate reads")
    problem = SPINE_CREATED.problem(body)
    if problem is not None:
        return Unreadable(reason=f"schema: {problem}"[:300])
    outreach_id = UUID(body["outreach_id"])
    if key is not None and _key_text(key) != str(outreach_id):
        return Unreadable(reason="key-mismatch: the record's key differs from the value's outreach_id")
    return SpineCreated(outreach_id=outreach_id, correlation_id=body.get("correlation_id"), key_missing=key is None)


def _key_text(key: bytes) -> str:
    return key.decode("utf-8", errors="replace").strip().lower()
