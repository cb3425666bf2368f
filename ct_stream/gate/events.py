"""Reads a `spine.created` record, or says why it cannot be read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

import orjson

from ct_stream.gate.contracts import SPINE_CREATED

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_VALUE_BYTES = 256 * 1024  #: of a spine.created value; an upstream that sends more sends something else
_SCHEMA_VERSION = 1
_MOST_REASON = 300
#: When more than half of the last 200 records (of at least 50) cannot be read, the whole input counts as broken.
INPUT_WINDOW, INPUT_LEAST = 200, 50


@dataclass(frozen=True, slots=True, kw_only=True)
class SpineCreated:
    """A readable event: the company, and what is carried through to its outcome."""

    outreach_id: UUID
    correlation_id: str | None = None
    key_missing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """Input that could not be read: it goes to `ct.rejected`, never to a FAIL."""

    reason: str  #: starts with a fixed word, so that reasons can be counted; one line of printable ASCII


def read_spine_created(key: bytes | None, value: bytes | None) -> SpineCreated | Unreadable:
    """Read one record of `spine.created`.

    Unknown fields are ignored. A missing key is accepted. A key that differs from the value's outreach_id is not: one
    of the two is wrong, so the partition may be wrong as well.
    """
    if value is None:
        return _unreadable("tombstone: the record has no value")
    if len(value) > MAX_VALUE_BYTES:
        return _unreadable(f"too-large: {len(value)} bytes, at most {MAX_VALUE_BYTES} are read")
    try:
        body = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        return _unreadable(f"not-json: {error}")
    if not isinstance(body, dict):
        return _unreadable(f"not-an-object: the value is a JSON {type(body).__name__}")
    version = body.get("schema_version", _SCHEMA_VERSION)
    if isinstance(version, int) and not isinstance(version, bool) and version > _SCHEMA_VERSION:
        return _unreadable(f"schema-version: {version} is newer than {_SCHEMA_VERSION}, which this gate reads")
    problem = SPINE_CREATED.problem(body)
    if problem is not None:
        return _unreadable(f"schema: {problem}")
    try:
        twice = _name_that_comes_twice(value, len(body))
    except RecursionError:  # deeper than the json module reads, though orjson could
        return _unreadable("too-deep: nested too deeply to be read")
    if twice is not None:
        return _unreadable(f"duplicate-key: {twice} appears more than once, and readers disagree on which one counts")
    outreach_id = UUID(body["outreach_id"])
    if key is not None and _key_text(key) != str(outreach_id):
        return _unreadable("key-mismatch: the record's key differs from the value's outreach_id")
    return SpineCreated(outreach_id=outreach_id, correlation_id=body.get("correlation_id"), key_missing=key is None)


def too_many_unreadable(readable: Sequence[bool]) -> str | None:
    """Return why the input as a whole counts as broken, or None.

    `readable` says for each record so far, oldest first, whether it could be read.
    """
    last = readable[-INPUT_WINDOW:]
    unreadable = last.count(False)
    if len(last) < INPUT_LEAST or unreadable * 2 <= len(last):
        return None
    return f"{unreadable} of the last {len(last)} records of spine.created cannot be read"


def _unreadable(reason: str) -> Unreadable:
    # A reason quotes the record, and goes to the log and to a header.
    plain = reason.encode("ascii", "backslashreplace").decode()
    return Unreadable(reason="".join(c if c.isprintable() else " " for c in plain)[:_MOST_REASON])


def _name_that_comes_twice(value: bytes, distinct: int) -> str | None:
    """Return a name that is read here and appears twice in the outermost object (RFC 8259 section 4), or None.

    `distinct` is how many different names that object has. Raises RecursionError.
    """
    if value.count(b":") == distinct:
        return None  # each member has a colon of its own, so there are no more members than names
    members: object = json.loads(value, object_pairs_hook=_Members, parse_int=str, parse_float=str)
    assert isinstance(members, _Members)
    names = [name for name, _ in members]
    return next((name for name in SPINE_CREATED.schema["properties"] if names.count(name) > 1), None)


class _Members(list[tuple[str, object]]):
    """An object's members as written, including repeated names. A JSON array is a plain list instead."""


def _key_text(key: bytes) -> str:
    return key.decode("utf-8", errors="replace").strip().lower()
