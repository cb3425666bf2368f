"""Sends records to Kafka, and reports whether the broker accepts them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    IncompatibleBrokerVersion,
    KafkaError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
    RecordListTooLargeError,
    RequestTimedOutError,
    UnsupportedVersionError,
    for_code,
)
from aiokafka.protocol.transaction import InitProducerIdRequest

from ct_stream.gate.records import PRODUCE_S
from ct_stream.stream.position import retried
from ct_stream.stream.topology import kafka_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ct_stream.metrics import Health
    from ct_stream.settings import Settings

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_PRODUCER_ID_S = 5.0
_MAX_REQUEST = 1024 * 1024 + 64 * 1024


class RecordTooLarge(Exception):
    """The broker or the topic will never accept a record of this size: it is poison, not an outage."""


class Producer:
    """Sends records and waits for the broker's ack: acks=all, idempotent if the broker supports it."""

    def __init__(self, settings: Settings, health: Health) -> None:
        self._settings = settings
        self._health = health
        self._producer: AIOKafkaProducer | None = None
        self.is_idempotent = False

    async def start(self) -> None:
        """Connect. Raises KafkaError if no broker answers."""
        self.is_idempotent = await supports_idempotence(self._settings)
        self._producer = AIOKafkaProducer(
            **kafka_options(self._settings),
            client_id="ct-stream-outbox",
            acks="all",
            enable_idempotence=self.is_idempotent,
            request_timeout_ms=int(PRODUCE_S * 1000),
            max_request_size=_MAX_REQUEST,
        )
        await self._producer.start()
        if not self.is_idempotent:
            log.info("This broker has no idempotent producers; if a record is sent twice, the two are identical")

    async def stop(self) -> None:
        """Send what is buffered, and close."""
        if self._producer is not None:
            try:
                async with asyncio.timeout(PRODUCE_S):
                    await self._producer.stop()
            except TimeoutError:
                log.warning("Kafka did not take the last records in time; they stay in the ledger")

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """Send one record and wait for the broker's ack. Raises KafkaError or TimeoutError."""
        assert self._producer is not None
        async with asyncio.timeout(PRODUCE_S):
            future = await self._producer.send(topic, value=value, key=key, headers=list(headers))
            await future

    async def deliver(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]],
        *,
        even_if_too_large: bool = False,
    ) -> None:
        """Send one record, again and again until the broker has it.

        Raises RecordTooLarge if it never will, unless the caller has nothing smaller to send (`even_if_too_large`).
        """
        while True:
            try:
                await self.send(topic, key, value, headers)
            except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
                if not even_if_too_large:
                    raise RecordTooLarge(str(error) or type(error).__name__) from error
                self.note_failure(error)
                await asyncio.sleep(_RETRY_S)
            except (KafkaError, TimeoutError, OSError) as error:
                self.note_failure(error)
                await asyncio.sleep(_RETRY_S)
            else:
                self.note_success()
                return

    def note_success(self) -> None:
        """Report that the broker accepts records."""
        self._health.set("kafka", None)

    def note_failure(self, error: BaseException) -> None:
        """Report that the broker does not accept records."""
        text = f"Kafka does not accept records: {error or type(error).__name__}"
        if self._health.troubles.get("kafka") != text:
            log.warning("%s", text, extra={"action": "kafka_down"})
        self._health.set("kafka", text)


async def supports_idempotence(settings: Settings) -> bool:
    """Ask the broker for a producer id (KIP-98); a broker that has none answers with an error. Raises KafkaError.

    A broker that is starting or away does not answer, and another one is asked. If its silence counted as a no, the
    worker would run without idempotence and lag, and with the embedded broker's short timeouts.
    """
    client = AIOKafkaClient(**kafka_options(settings), client_id="ct-stream-capabilities")
    try:
        await client.bootstrap()
        code = await retried(lambda: _ask_for_producer_id(client))
        if code:
            log.debug("No idempotent producer: error %d", code)
        return code == 0
    finally:
        await client.close()


async def _ask_for_producer_id(client: AIOKafkaClient) -> int:
    """Return the error code of one broker's answer, 0 for a producer id. Raises KafkaError if there is no answer."""
    request = InitProducerIdRequest(transactional_id=None, transaction_timeout_ms=0)
    node = client.get_random_node()
    if node is None:
        raise NodeNotReadyError("no broker is known")
    try:
        async with asyncio.timeout(_PRODUCER_ID_S):
            response: Any = await client.send(node, request)
    except TimeoutError as error:
        raise RequestTimedOutError(f"broker {node} gave no producer id in {_PRODUCER_ID_S:g} s") from error
    except IncompatibleBrokerVersion:
        return int(UnsupportedVersionError.errno)
    if response.error_code and for_code(response.error_code).retriable:
        raise for_code(response.error_code)
    return int(response.error_code)
