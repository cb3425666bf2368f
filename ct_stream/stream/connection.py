"""What does aiokafka learn where a connection to a broker is gone? The error that it expects.

aiokafka expects OSError. uvloop says RuntimeError where the transport closed a moment ago (aiokafka issue 1038), and
that ends, without a word, the task that keeps the brokers' addresses up to date: after all brokers restarted at once a
producer waits for that task for ever, and Faust's commit for the producer.
"""

from __future__ import annotations

from typing import Any

import aiokafka.conn
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError


class Connection(AIOKafkaConnection):  # type: ignore[misc]  # aiokafka has no types
    """A connection that is broken, not wrong, where its transport is closed."""

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Send a request and return what will be its response. Raises KafkaError."""
        self._require_open()
        return super().send(request, expect_response)

    def _send_sasl_token(self, payload: bytes, expect_response: bool = True) -> Any:
        self._require_open()
        return super()._send_sasl_token(payload, expect_response)

    def _require_open(self) -> None:
        # Asked before, and not caught after: aiokafka's own errors are RuntimeErrors too.
        if self._writer is not None and self._writer.transport.is_closing():
            self.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError(f"Connection at {self.host}:{self.port} broken: its transport is closed")


def install() -> None:
    """Let all clients of this process connect like that; aiokafka has no setting for it (contract-tested)."""
    aiokafka.conn.AIOKafkaConnection = Connection
