"""What is left of a record that cannot be read? Its first bytes, its first headers, and why."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from ct_stream.stream.topology import CT_REJECTED

if TYPE_CHECKING:
    from ct_stream.stream.outbox import Producer

MAX_BYTES = 512 * 1024
MAX_HEADERS = 64
# A broker takes 1 MiB a record by default, and the rejected record must fit whatever the original was.
_MAX_HEADER_BYTES = 4096
_MAX_KEY_BYTES = 4096
_MAX_NAME = 249


def rejected_headers(message: Any, reason: str) -> list[tuple[str, bytes]]:
    """Return the original's first headers and ours, which say why, from where, and what it was whole."""
    value = message.value or b""
    original = [
        (name[:_MAX_NAME], (data or b"")[:_MAX_HEADER_BYTES])
        for name, data in header_pairs(message.headers)[:MAX_HEADERS]
    ]
    return [
        *original,
        ("ct_reject_reason", reason.encode("utf-8", "replace")),
        ("ct_source_topic", message.topic.encode()),
        ("ct_source_partition", str(message.partition).encode()),
        ("ct_source_offset", str(message.offset).encode()),
        ("ct_original_size", str(len(value)).encode()),
        ("ct_original_sha256", hashlib.sha256(value).hexdigest().encode()),
    ]


def header_pairs(headers: Any) -> list[tuple[str, bytes | None]]:
    """Return a record's headers as Faust gives them: a mapping, a list of pairs, or None."""
    if headers is None:
        return []
    return list(headers.items()) if isinstance(headers, dict) else list(headers)


async def reject(producer: Producer, message: Any, reason: str) -> None:
    """Send a record to `ct.rejected`, and come back when the broker has it, however long that takes."""
    value = message.value
    key = message.key[:_MAX_KEY_BYTES] if message.key is not None else None
    await producer.deliver(
        CT_REJECTED, key, value[:MAX_BYTES] if value is not None else None, rejected_headers(message, reason)
    )
