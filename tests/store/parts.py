"""Outcomes and open databases for the store's tests."""

from __future__ import annotations

from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.output_stage import Origin, Outcome, output_stage
from ct_stream.gate.questions import MxAnswer, MxStatus, SpineAnswer
from ct_stream.gate.records import Parked
from ct_stream.gate.toolbox_limits import ProbeLimits
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.verdicts import Failed, Passed, VerifiedBy
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.store.database import POOL_SIZE, Database
from ct_stream.store.ledger import Ledger
from ct_stream.store.worker_record import Beat, WorkerRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ct_stream.store.batches import Batches
    from tests.conftest import DatabaseDsns


def role(name: str) -> str:
    """Return the statement that makes a role; roles belong to the whole server, and another test may have made it."""
    return f"DO $$ BEGIN CREATE ROLE {name}; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"


PASSED = Passed(
    domain="acme.example", method_type="info", email_method="info@acme.example", confidence=0.7, is_catchall=False,
    verified_by=VerifiedBy.SMTP,
)  # fmt: skip
NO_MX = Failed(code=FailureCode.NO_MX, reason="the domain has no MX records", domain="acme.example")
NOT_FOUND = Failed(code=FailureCode.NOT_FOUND, reason="outreach_id is not in the spine outreach.outreach")
EXCHANGES = (
    Exchange(key="spine", answer=SpineAnswer(found=True, domain="acme.example")),
    Exchange(key="mx", answer=MxAnswer(status=MxStatus.FOUND, hosts=("mx1.acme.example",)), asked="acme.example"),
)

LIMITS = ProbeLimits(
    mx_per_second=1000.0, mx_per_day=1_000_000, smtp_per_day=1_000_000, smtp_domain_pause_s=0.3, smtp_per_provider=3
)


def origin(outreach_id: UUID | None = None, **fields: Any) -> Origin:
    return Origin(outreach_id=outreach_id or uuid4(), topic="spine.created", partition=3, offset=7, **fields)


def outcome(
    outreach_id: UUID | None = None,
    verdict: Passed | Failed = PASSED,
    decided_at: datetime | None = None,
    **fields: Any,
) -> Outcome:
    return output_stage(
        origin(outreach_id, **fields), verdict, EXCHANGES, rules_version="1+test",
        decided_at=decided_at or datetime.now(UTC), duration_ms=12,
    )  # fmt: skip


def parked(
    outreach_id: UUID | None = None, *, after_s: float | None = 0.0, waits_on: str = "", **fields: Any
) -> Parked:
    wait = Wait(
        reason=fields.pop("reason", WaitReason.RATE_LIMIT), detail="why", after_s=after_s, waits_on=WaitsOn(waits_on)
    )
    return Parked(
        origin=origin(outreach_id), event_at=None, wait=wait, domain="acme.example", exchanges=EXCHANGES, **fields
    )


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[Database]:
    """Open a database for the length of a block, with half the connections of a worker: each one costs time."""
    database = Database(dsn, pool_size=POOL_SIZE // 2)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def running(*queues: Batches[Any, Any]) -> AsyncIterator[None]:
    """Run batch queues for the length of a block."""
    for queue in queues:
        queue.start()
    try:
        yield
    finally:
        for queue in queues:
            await queue.stop()


async def record(database: DatabaseDsns, *outcomes: Outcome) -> None:
    """Record these outcomes, as a worker does."""
    async with opened(database.gate) as db:
        ledger = Ledger(db)
        async with running(*ledger.batches):
            for one in outcomes:
                assert await ledger.record(one)


async def seen(db: Database, *workers: str) -> None:
    """Let these worker runs be seen now, as by their heartbeats."""
    for worker in workers:
        await WorkerRecord(db, worker=worker, machine="host", egress="default", version="test", toolbox={}).beat(
            Beat(troubles={}, partitions=(), running=0)
        )
