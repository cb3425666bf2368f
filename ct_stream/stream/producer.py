"""Sends records to Kafka, and reports whether the broker accepts them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    IncompatibleBrokerVersion,
    InvalidProducerEpoch,
    KafkaError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    ProducerFenced,
    RecordListTooLargeError,
    RequestTimedOutError,
    UnknownProducerId,
    UnsupportedVersionError,
    for_code,
)
from aiokafka.protocol.transaction import InitProducerIdRequest

from ct_stream.gate.records import PRODUCE_S
from ct_stream.problems import said_by
from ct_stream.stream.retrying import retried
from ct_stream.stream.rights import refused_write
from ct_stream.stream.topology import kafka_options, names_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from ct_stream.metrics import Health
    from ct_stream.settings import Settings

log = logging.getLogger(__name__)

_RETRY_S = 1.0
_PRODUCER_ID_S = 5.0
_MAX_REQUEST = 1024 * 1024 + 64 * 1024


#: The broker misses a record of this producer id, or knows the id no longer, and refuses all that follow (KIP-98).
#: aiokafka numbers a batch before it knows whether it will ever be sent (its issue 1017), and keeps its id.
_SEQUENCE_LOST = (OutOfOrderSequenceNumber, UnknownProducerId, InvalidProducerEpoch, ProducerFenced, ProducerClosed)


class RecordTooLarge(Exception):
    """The broker or the topic will never accept a record of this size: it is poison, not an outage."""


class Producer:
    """Sends records and waits for the broker's ack: acks=all, idempotent if the broker supports it."""

    def __init__(self, settings: Settings, health: Health, now: Callable[[], datetime] | None = None) -> None:
        """`now`: the clock that dates records, in place of this machine's, which may be wrong."""
        self._now = now
        self._settings = settings
        self.names = names_of(settings)
        self._health = health
        self._producer: AIOKafkaProducer | None = None
        self._renewing = asyncio.Lock()
        self._retired: set[asyncio.Task[bool]] = set()
        self._is_stopped = False
        self.is_idempotent = False

    async def start(self) -> None:
        """Connect. Raises KafkaError if no broker answers."""
        self.is_idempotent = await supports_idempotence(self._settings)
        self._producer = await self._connected()
        if not self.is_idempotent:
            log.info("This broker does not support idempotent producers: a record may come twice, with the same bytes")

    async def _connected(self) -> AIOKafkaProducer:
        """Return a producer with a producer id of its own. Raises KafkaError if no broker answers."""
        producer = AIOKafkaProducer(
            **kafka_options(self._settings),
            client_id="ct-stream-outbox",
            acks="all",
            enable_idempotence=self.is_idempotent,
            request_timeout_ms=int(PRODUCE_S * 1000),
            max_request_size=_MAX_REQUEST,
        )
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        return producer

    async def _renew(self, refused: AIOKafkaProducer) -> AIOKafkaProducer:
        """Return a producer with a new producer id, in place of one that the broker refuses. Raises KafkaError."""
        async with self._renewing:
            if self._is_stopped:
                raise ProducerClosed
            if self._producer is refused:
                self._producer = await self._connected()
                log.info("The broker misses a record of this producer; continuing under a new producer id")
                # What it still holds is refused as well, and comes again through `deliver`.
                task = asyncio.create_task(_close(refused))
                self._retired.add(task)
                task.add_done_callback(self._retired.discard)
            assert self._producer is not None
            return self._producer

    async def stop(self) -> None:
        """Send what is buffered, and close."""
        self._is_stopped = True
        closing = [] if self._producer is None else [_close(self._producer)]
        if not all(await asyncio.gather(*closing, *self._retired)):
            log.warning("Kafka did not take the last records in time; they stay in the ledger")

    async def send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
    ) -> None:
        """Send one record and wait for the broker's ack. Raises KafkaError or TimeoutError.

        `topic` is the name without prefix, as the ledger keeps it.
        """
        producer = self._producer
        assert producer is not None
        topic = self.names.on_cluster(topic)
        at_ms = None if self._now is None else int(self._now().timestamp() * 1000)
        record: dict[str, Any] = {"timestamp_ms": at_ms, "value": value, "key": key, "headers": list(headers)}
        async with asyncio.timeout(PRODUCE_S):
            try:
                await producer.send_and_wait(topic, **record)
            except _SEQUENCE_LOST:
                producer = await self._renew(producer)
                await producer.send_and_wait(topic, **record)

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
                    raise RecordTooLarge(said_by(error)) from error
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
        text = f"Kafka does not accept records: {refused_write(self._settings, error) or said_by(error)}"
        if self._health.troubles.get("kafka") != text:
            log.warning("%s", text, extra={"action": "kafka_down"})
        self._health.set("kafka", text)


async def _close(producer: AIOKafkaProducer) -> bool:
    """Let a producer send what it holds, and close it; return whether it was done in time."""
    try:
        async with asyncio.timeout(PRODUCE_S):
            await producer.stop()
    except TimeoutError:
        return False
    return True


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
    if response.error_code == ClusterAuthorizationFailedError.errno:
        return 0  # it knows what a producer id is; we may only read here
    if response.error_code and for_code(response.error_code).retriable:
        raise for_code(response.error_code)
    return int(response.error_code)
