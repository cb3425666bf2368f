"""Publishes recorded outcomes to Kafka: once if nothing breaks, and always the same bytes."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from aiokafka.errors import KafkaError

from ct_stream.process.loops import Loop

if TYPE_CHECKING:
    from ct_stream.gate.records import Publication
    from ct_stream.metrics import Metrics
    from ct_stream.store.database import Database
    from ct_stream.store.ledger import Ledger
    from ct_stream.stream.producer import Producer

log = logging.getLogger(__name__)

_SWEEP_EVERY_S = 2.0
_SWEEP_MANY = 200


class Outbox:
    """Publishes outcomes under a claim, and stamps them."""

    def __init__(self, producer: Producer, database: Database, ledger: Ledger, metrics: Metrics) -> None:
        self._producer = producer
        self._database = database
        self._ledger = ledger
        self._metrics = metrics

    async def publish(self, publication: Publication) -> bool:
        """Publish claimed bytes and stamp them; return False if the broker did not take them (the claim runs out)."""
        try:
            await self._producer.send(publication.topic, publication.key, publication.value, publication.headers)
        except (KafkaError, TimeoutError, OSError) as error:
            self._producer.note_failure(error)
            return False
        self._producer.note_success()
        self._metrics.published.labels(topic=publication.topic).inc()
        await self._ledger.stamp(publication.outreach_id)
        return True

    def loop(self) -> Loop:
        """Return the loop of the sweeper."""
        return Loop(name="outbox:sweep", step=self.sweep, every_s=_SWEEP_EVERY_S, rests_first=True)

    async def sweep(self) -> None:
        """Publish what a crash or an outage of Kafka has left unpublished."""
        await self._database.wait_up()
        claimed = await self._ledger.claim_unpublished(_SWEEP_MANY)
        # All at once: one after the other, the last claims would run out before their turn.
        results = await asyncio.gather(*map(self.publish, claimed), return_exceptions=True)
        for publication, result in zip(claimed, results, strict=True):
            if isinstance(result, Exception):  # one row that cannot be sent must not end each worker that meets it
                log.error(
                    "The outcome of company %s could not be published: %r",
                    publication.outreach_id,
                    result,
                    extra={"action": "not_published", "outreach_id": str(publication.outreach_id)},
                )
            elif isinstance(result, BaseException):
                raise result
        self._metrics.swept.inc(sum(result is True for result in results))
