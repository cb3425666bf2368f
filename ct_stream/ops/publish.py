"""Publish `spine.created` events by hand; all are checked before the first one is sent."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import InvalidTimestampError, KafkaError

from ct_stream.gate.events import Unreadable, read_spine_created
from ct_stream.metrics import Health
from ct_stream.ops.troubles import ServiceTrouble, WrongInput, kafka_answers
from ct_stream.problems import said_by
from ct_stream.stream.producer import Producer
from ct_stream.stream.topology import SPINE_CREATED, kafka_options, names_of, partition_counts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from ct_stream.settings import Settings

SENT_AT_ONCE = 500  #: events that wait for the broker together
_SHOWN_PROBLEMS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One record of spine.created: key and value."""

    key: bytes
    value: bytes


def read_events(lines: Iterable[str], *, ids: bool) -> list[Event]:
    """Return the event of each line: a JSON object with an outreach_id, or with `ids` a bare UUID.

    Empty lines are skipped. Raises WrongInput that names the wrong lines.
    """
    events: list[Event] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("\ufeff")
        if not text:
            continue
        # A byte that is no UTF-8 came in as half a surrogate pair; the reader of events says what is wrong with it.
        as_event = f'{{"outreach_id":{json.dumps(text, ensure_ascii=False)}}}' if ids else text
        value = as_event.encode("utf-8", "surrogateescape")
        read = read_spine_created(None, value)
        if isinstance(read, Unreadable):
            problems.append(f"line {number}: {read.reason}")
        else:
            # The key in its canonical spelling, so that all events of a company go to one partition.
            events.append(Event(key=str(read.outreach_id).encode(), value=value))
    if problems:
        hidden = len(problems) - _SHOWN_PROBLEMS
        raise WrongInput(
            [
                *problems[:_SHOWN_PROBLEMS],
                *([f"and {hidden} more wrong lines"] if hidden > 0 else []),
                "nothing was sent; correct these lines, each "
                + ("a UUID" if ids else 'an object such as {"outreach_id": "4b0c2f5e-6a0b-4f57-9d4e-0f6f3b0c7a11"}'),
            ]
        )
    return events


async def publish(settings: Settings, events: Sequence[Event]) -> int:
    """Send the events, each confirmed by all in-sync replicas; return their number. Raises ServiceTrouble."""
    async with sending(settings) as sender:
        for begin in range(0, len(events), SENT_AT_ONCE):
            await sender.send(events[begin : begin + SENT_AT_ONCE])
    return sender.sent


class Sender:
    """Sends events and counts those that the broker has."""

    def __init__(self, producer: Producer) -> None:
        self._producer = producer
        self.sent = 0

    async def send(self, events: Sequence[Event]) -> None:
        """Send some events at once. Raises ServiceTrouble with the number that Kafka took before."""
        results = await asyncio.gather(
            *(self._producer.send(SPINE_CREATED, event.key, event.value, ()) for event in events),
            return_exceptions=True,
        )
        failed = [result for result in results if isinstance(result, BaseException)]
        self.sent += len(events) - len(failed)
        if failed:
            if not isinstance(failed[0], KafkaError | TimeoutError | OSError):
                raise failed[0]
            if isinstance(failed[0], InvalidTimestampError):
                raise ServiceTrouble(
                    f"Kafka accepted {self.sent} events, and refuses the time of another: this machine's clock says "
                    f"{datetime.now(UTC):%Y-%m-%d %H:%MZ}",
                    "correct the clock, then send the same events again: the gate decides each company once",
                )
            raise ServiceTrouble(
                f"Kafka accepted {self.sent} events, then one failed: {said_by(failed[0])}",
                "send the same events again: the gate decides each company once",
            )


@asynccontextmanager
async def sending(settings: Settings) -> AsyncIterator[Sender]:
    """Lend a sender to spine.created, which must exist. Raises SettingsError or ServiceTrouble."""
    settings.require("kafka_bootstrap")
    async with kafka_answers(settings):
        await _require_topic(settings)
        producer = Producer(settings, Health())
        await producer.start()
    try:
        yield Sender(producer)
    finally:
        await producer.stop()


async def _require_topic(settings: Settings) -> None:
    """Raise ServiceTrouble where spine.created is missing: a broker might make it with one partition."""
    admin = AIOKafkaAdminClient(**kafka_options(settings), client_id="ct-stream-publish")
    try:
        await admin.start()
        topic = names_of(settings).spine_created
        if topic not in await partition_counts(admin, (topic,)):
            raise ServiceTrouble(f"topic {topic} is missing", "create it with `ct-stream topics`")
    finally:
        await admin.close()
