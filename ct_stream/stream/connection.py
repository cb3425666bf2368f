"""A connection of aiokafka's that tells when it is gone, and that goes at once when it is closed.

aiokafka expects OSError. If the transport has just closed, uvloop raises RuntimeError instead (aiokafka issue 1038).
That silently ends the task that keeps the brokers' addresses up to date. After all brokers have restarted at once, a
producer then waits for that task for ever, and Faust's commit waits for the producer.

Over TLS, asyncio closes a socket only when the peer has said goodbye too, and gives it 30 s. aiokafka waits for that
only where it shuts a whole client down; any other connection may still be open when a short command's loop ends.
"""

from __future__ import annotations

from typing import Any

import aiokafka.conn
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError


class Connection(AIOKafkaConnection):  # type: ignore[misc]  # aiokafka has no types
    """A connection that reports itself as broken if its transport is closed, and waits for no peer to close it."""

    def close(self, reason: CloseReason | None = None, exc: BaseException | None = None) -> Any:
        """Close it, and return the future of its end; only a client that shuts down may have something left to say."""
        transport = None if self._writer is None else self._writer.transport
        closed = super().close(reason, exc)
        if transport is not None and reason is not CloseReason.SHUTDOWN:
            transport.abort()
        return closed

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Send a request and return its future response. Raises KafkaError."""
        self._require_open()
        return super().send(request, expect_response)

    def _send_sasl_token(self, payload: bytes, expect_response: bool = True) -> Any:
        self._require_open()
        return super()._send_sasl_token(payload, expect_response)

    def _require_open(self) -> None:
        # Checked before, not caught afterwards: aiokafka's own errors are RuntimeErrors too.
        if self._writer is not None and self._writer.transport.is_closing():
            self.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"Connection at {self.host}:{self.port} broken: its transport is closed")


def install() -> None:
    """Make all clients of this process use such connections; aiokafka has no setting for it (contract-tested)."""
    aiokafka.conn.AIOKafkaConnection = Connection
