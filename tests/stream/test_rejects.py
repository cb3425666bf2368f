"""A record that cannot be read always fits ct.rejected, and says where it came from and what it was whole."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from ct_stream.stream.producer import RecordTooLarge
from ct_stream.stream.rejects import MAX_BYTES, MAX_HEADERS, reject, rejected_headers
from ct_stream.stream.topology import UNPREFIXED


def message(value: bytes | None, key: bytes | None = b"k", headers: Any = ()) -> SimpleNamespace:
    return SimpleNamespace(topic="spine.created", partition=4, offset=99, key=key, value=value, headers=headers)


class Producer:
    """Keeps what it is told to deliver."""

    def __init__(self, most_bytes: int = 1024 * 1024) -> None:
        self.most_bytes = most_bytes
        self.names = UNPREFIXED
        self.sent: list[tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]]]] = []
        self.waited = False

    async def deliver(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        *,
        even_if_too_large: bool = False,
    ) -> None:
        size = len(key or b"") + len(value or b"") + sum(len(name) + len(data) for name, data in headers)
        if size > self.most_bytes and not even_if_too_large:
            raise RecordTooLarge("too large")
        self.waited = size > self.most_bytes
        self.sent.append((topic, key, value, headers))


@pytest.mark.parametrize(
    "value", [b"{nonsense", b"x" * (1024 * 1024), b"", None], ids=["short", "1 MiB", "empty", "tombstone"]
)
async def test_the_original_is_kept_up_to_a_bound_with_its_size_and_digest(value: bytes | None) -> None:
    producer = Producer()
    await reject(producer, message(value), "not-json: what it says")  # type: ignore[arg-type]
    [(topic, key, kept, pairs)] = producer.sent
    headers = dict(pairs)
    assert (topic, key) == ("ct.rejected", b"k")
    assert kept == (value[:MAX_BYTES] if value is not None else None)
    assert headers["ct_reject_reason"] == b"not-json: what it says"
    assert (headers["ct_source_partition"], headers["ct_source_offset"]) == (b"4", b"99")
    assert headers["ct_original_size"] == str(len(value or b"")).encode()
    assert headers["ct_original_sha256"] == hashlib.sha256(value or b"").hexdigest().encode()


def test_ten_thousand_headers_are_cut_and_the_record_fits_a_broker() -> None:
    many = [("h" * 1000, b"v" * 10_000)] * 10_000
    headers = rejected_headers(message(b"x", headers=many), "reason")
    assert len(headers) == MAX_HEADERS + 8
    size = MAX_BYTES + 4096 + sum(len(name) + len(value) for name, value in headers)
    assert size < 1024 * 1024, "message.max.bytes is 1 MiB by default"


@pytest.mark.parametrize("headers", [None, {}, {"a": b"1"}, [("a", None)]])
def test_headers_of_any_form_are_read(headers: Any) -> None:
    assert rejected_headers(message(b"x", headers=headers), "reason")


@pytest.mark.parametrize(
    ("most_bytes", "kept"),
    [(1024 * 1024, 512 * 1024), (300_000, 64 * 1024), (8_000, 4 * 1024), (1_000, 0)],
    ids=["1 MiB", "300 kB", "8 kB", "1 kB"],
)
async def test_less_is_kept_where_the_topic_takes_less_and_a_header_says_so(most_bytes: int, kept: int) -> None:
    producer, value = Producer(most_bytes), b"x" * 1_000_000
    await reject(producer, message(value, headers=[("h", b"v" * 4000)] * 100), "too-large: what it says")  # type: ignore[arg-type]
    [(_, _, sent, pairs)] = producer.sent
    headers = dict(pairs)
    assert (sent, headers["ct_kept_size"]) == (value[:kept], str(kept).encode())
    assert headers["ct_original_size"] == b"1000000"
    assert headers["ct_original_sha256"] == hashlib.sha256(value).hexdigest().encode()
    assert headers["ct_original_headers"] == b"100"
    assert not producer.waited


async def test_a_topic_that_takes_nothing_at_all_is_waited_for() -> None:
    producer = Producer(10)
    await reject(producer, message(b"x"), "not-json: what it says")  # type: ignore[arg-type]
    assert producer.waited
