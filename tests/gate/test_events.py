"""What of spine.created can be read, and what goes to ct.rejected with which reason."""

from __future__ import annotations

from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct_stream.gate.events import MAX_VALUE_BYTES, SpineCreated, Unreadable, read_spine_created

ID = "3f0c6f0e-6f5e-4f6e-9a53-1f3c2f0f9a10"


def body(**fields: object) -> bytes:
    return orjson.dumps({"outreach_id": ID} | fields)


@pytest.mark.parametrize(
    ("key", "value", "correlation_id"),
    [
        (ID.encode(), body(), None),
        (ID.upper().encode(), body(outreach_id=ID.upper()), None),
        (None, body(), None),
        (ID.encode(), body(schema_version=1, correlation_id="import-7", unknown={"deep": [1]}), "import-7"),
        (ID.encode(), body(correlation_id=None), None),
    ],
    ids=["plain", "upper case", "no key", "optional fields", "null correlation id"],
)
def test_an_event_is_read(key: bytes | None, value: bytes, correlation_id: str | None) -> None:
    event = read_spine_created(key, value)
    assert event == SpineCreated(outreach_id=UUID(ID), correlation_id=correlation_id, key_missing=key is None)


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        (ID.encode(), None, "tombstone"),
        (ID.encode(), b"{nonsense", "not-json"),
        (ID.encode(), b"\xff\xfe", "not-json"),
        (ID.encode(), b"", "not-json"),
        (ID.encode(), b"[]", "not-an-object"),
        (ID.encode(), b"null", "not-an-object"),
        (ID.encode(), b"[" * 100_000, "not-json"),
        (ID.encode(), b"{}", "schema"),
        (ID.encode(), body(outreach_id="not-a-uuid"), "schema"),
        (ID.encode(), body(outreach_id=7), "schema"),
        (ID.encode(), body(outreach_id=ID.replace("-", "")), "schema"),
        (ID.encode(), body(schema_version=2), "schema-version"),
        (ID.encode(), body(schema_version="1"), "schema"),
        (ID.encode(), body(schema_version=0), "schema"),
        (ID.encode(), body(correlation_id=["a"]), "schema"),
        (ID.encode(), body(correlation_id="a\0b"), "schema"),
        (b"another-key", body(), "key-mismatch"),
        (b"\xff", body(), "key-mismatch"),
        (ID.encode(), body(filler="x" * MAX_VALUE_BYTES), "too-large"),
    ],
)
def test_what_cannot_be_read_is_rejected_with_a_word_that_can_be_counted(
    key: bytes, value: bytes | None, word: str
) -> None:
    event = read_spine_created(key, value)
    assert isinstance(event, Unreadable)
    assert event.reason.partition(":")[0] == word
    assert len(event.reason) <= 300


@given(st.one_of(st.none(), st.binary(max_size=64)), st.one_of(st.none(), st.binary(max_size=200)))
def test_reading_never_raises(key: bytes | None, value: bytes | None) -> None:
    assert isinstance(read_spine_created(key, value), SpineCreated | Unreadable)
