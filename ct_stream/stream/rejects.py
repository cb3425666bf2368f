"""Sends unreadable records to `ct.rejected`: their first bytes, their first headers, and the reason."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Any

from ct_stream.stream.producer import RecordTooLarge
from ct_stream.stream.topology import CT_REJECTED

if TYPE_CHECKING:
    from ct_stream.stream.producer import Producer

log = logging.getLogger(__name__)

MAX_BYTES = 512 * 1024
MAX_HEADERS = 64
# By default a broker accepts 1 MiB for each record, and the rejected record must fit whatever the original was.
_MAX_HEADER_BYTES = 4096
_MAX_KEY_BYTES = 4096
_MAX_NAME = 249
#: How many bytes of the value and how many headers are kept: fewer each time the broker finds the record too large.
_KEPT = ((MAX_BYTES, MAX_HEADERS), (64 * 1024, 8), (4 * 1024, 0), (0, 0))


def rejected_headers(
    message: Any, reason: str, *, max_bytes: int = MAX_BYTES, max_headers: int = MAX_HEADERS
) -> list[tuple[str, bytes]]:
    """Return the original's first headers, and ours: the reason, its place, its whole size, and what is kept of it."""
    value = message.value or b""
    headers = header_pairs(message.headers)
    original = [(name[:_MAX_NAME], (data or b"")[:_MAX_HEADER_BYTES]) for name, data in headers[:max_headers]]
    return [
        *original,
        ("ct_reject_reason", reason.encode("utf-8", "replace")),
        ("ct_source_topic", message.topic.encode()),
        ("ct_source_partition", str(message.partition).encode()),
        ("ct_source_offset", str(message.offset).encode()),
        ("ct_original_size", str(len(value)).encode()),
        ("ct_original_sha256", hashlib.sha256(value).hexdigest().encode()),
        ("ct_original_headers", str(len(headers)).encode()),
        ("ct_kept_size", str(min(len(value), max_bytes)).encode()),
    ]


def header_pairs(headers: Any) -> list[tuple[str, bytes | None]]:
    """Return a record's headers as Faust gives them: a mapping, a list of pairs, or None."""
    if headers is None:
        return []
    return list(headers.items()) if isinstance(headers, dict) else list(headers)


async def reject(producer: Producer, message: Any, reason: str) -> None:
    """Send a record to `ct.rejected`, and return when the broker has it, however long that takes.

    If the topic's max.message.bytes is small, less of the original is sent, so that no record holds up its partition.
    """
    for max_bytes, max_headers in _KEPT:
        key = message.key[: min(_MAX_KEY_BYTES, max_bytes)] if message.key is not None else None
        value = message.value[:max_bytes] if message.value is not None else None
        headers = rejected_headers(message, reason, max_bytes=max_bytes, max_headers=max_headers)
        try:
            await producer.deliver(CT_REJECTED, key, value, headers)
        except RecordTooLarge as error:
            log.warning(
                "%s accepts no record with %d bytes of the original, sending less of it: %s",
                producer.names.ct_rejected,
                max_bytes,
                error,
            )
        else:
            return
    # Not even its place fits (about 500 bytes). That is the topic's fault: wait as for a broker that is away.
    await producer.deliver(CT_REJECTED, None, None, headers, even_if_too_large=True)
