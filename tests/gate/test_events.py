"""What of spine.created can be read, and what goes to ct.rejected with which reason."""

from __future__ import annotations

from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct_stream.gate.events import (
    MAX_VALUE_BYTES,
    SpineCreated,
    Unreadable,
    read_spine_created,
    too_many_unreadable,
)

ID = "3f0c6f0e-6f5e-4f6e-9a53-1f3c2f0f9a10"
OTHER = "0b9dbd0e-3c5e-4f55-8a52-6a1a8c5c9d11"


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
        (ID.encode(), f'{{"outreach_id": "{ID}", "unknown": 1, "unknown": 2}}'.encode(), None),
        (ID.encode(), body(unknown=[{"a": 1, "b": "x:y"}, {"a": 2}]), None),
        (ID.encode(), f'{{"outreach_id": "{ID}", "huge": {"9" * 300}}}'.encode(), None),
    ],
    ids=[
        "plain",
        "upper case",
        "no key",
        "optional fields",
        "null correlation id",
        "unknown twice",
        "equal keys below",
        "a huge number",
    ],
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
        (ID.encode(), f'{{"outreach_id": "{OTHER}", "outreach_id": "{ID}"}}'.encode(), "duplicate-key"),
        (ID.encode(), f'{{"outreach\\u005fid": "{OTHER}", "outreach_id": "{ID}"}}'.encode(), "duplicate-key"),
        (ID.encode(), f'{{"outreach_id": "{ID}", "schema_version": 2, "schema_version": 1}}'.encode(), "duplicate-key"),
        (ID.encode(), f'{{"outreach_id": "{ID}", "x": {"[" * 1010}{"]" * 1010}, "y": ":"}}'.encode(), "too-deep"),
        (ID.encode(), body(outreach_id=ID.replace("3", "\uff13")), "schema"),
        (ID.encode(), body(outreach_id=f"{ID}\r\n"), "schema"),
        (ID.encode(), body(schema_version=1e23), "schema"),
    ],
)
def test_what_cannot_be_read_is_rejected_with_a_word_that_can_be_counted(
    key: bytes, value: bytes | None, word: str
) -> None:
    event = read_spine_created(key, value)
    assert isinstance(event, Unreadable)
    assert event.reason.partition(":")[0] == word
    assert len(event.reason) <= 300


@pytest.mark.parametrize("strange", ["a\u2028b", "\u202ereversed", "\uff13", "line\r\nfeed\u0000", "\x1b[31mred"])
def test_a_reason_is_one_line_of_plain_ascii_whatever_stands_in_the_record(strange: str) -> None:
    """It goes to the log and to a header."""
    event = read_spine_created(None, body(outreach_id=strange))
    assert isinstance(event, Unreadable)
    assert event.reason.isascii()
    assert event.reason.isprintable()


@given(st.one_of(st.none(), st.binary(max_size=64)), st.one_of(st.none(), st.binary(max_size=200)))
def test_reading_never_raises(key: bytes | None, value: bytes | None) -> None:
    assert isinstance(read_spine_created(key, value), SpineCreated | Unreadable)


@pytest.mark.parametrize(
    ("readable", "is_halted"),
    [
        ([False] * 49, False),
        ([False] * 50, True),
        ([True, False] * 100, False),
        ([True, False] * 100 + [False, False], True),
        ([False] * 25 + [True] * 25, False),
        ([False] * 26 + [True] * 24, True),
        ([False] * 300 + [True] * 100, False),
        ([True] * 1000 + [False] * 100, False),
        ([True] * 1000 + [False] * 101, True),
    ],
    ids=["too few to tell", "all of 50", "half", "more than half", "half of 50", "26 of 50", "long ago", "half of 200",
         "101 of 200"],
)  # fmt: skip
def test_the_input_is_not_believed_when_most_of_it_cannot_be_read(readable: list[bool], is_halted: bool) -> None:
    assert (too_many_unreadable(readable) is not None) is is_halted
