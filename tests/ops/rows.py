"""Rows as a worker writes them, through the ledger itself."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg

from ct_stream.gate.output_stage import Origin, Outcome, output_stage
from ct_stream.gate.questions import Attempt, MailboxAnswer, MxAnswer, MxStatus, SpineAnswer
from ct_stream.gate.records import Parked
from ct_stream.gate.replies import Reply, Stage
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.verdicts import Failed, Passed, VerifiedBy
from ct_stream.gate.waits import NOTHING, Wait, WaitReason, WaitsOn
from ct_stream.store.database import Database
from ct_stream.store.ledger import Ledger
from ct_stream.store.parked import ParkedCompanies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ct_stream.gate.failures import FailureCode

_EXCHANGES = (
    Exchange(key="spine", answer=SpineAnswer(found=True, domain="acme.example"), asked="acme"),
    Exchange(
        key="mx",
        answer=MxAnswer(status=MxStatus.FOUND, hosts=("mx1.acme.example",), resolver="192.0.2.53:53"),
        asked="acme.example",
    ),
    Exchange(
        key="rcpt:first.last",
        answer=MailboxAnswer(
            attempts=(
                Attempt(
                    host="mx1.acme.example",
                    stage=Stage.RCPT,
                    ip="192.0.2.25",
                    reply=Reply(code=550, enhanced="5.1.1", text="\x1b[31mUser unknown"),
                ),
            )
        ),
        asked="jordan.whitfield@acme.example",
    ),
)
RUN = "gate-1/7/a"  #: the worker run that heard them
EXCHANGES = tuple(replace(exchange, by=RUN) for exchange in _EXCHANGES)


def origin(outreach_id: UUID | None = None) -> Origin:
    return Origin(outreach_id=outreach_id or uuid4(), topic="spine.created", partition=3, offset=41)


def failed(code: FailureCode, *, reason: str = "because", outreach_id: UUID | None = None) -> Outcome:
    return _outcome(Failed(code=code, reason=reason, domain="acme.example"), outreach_id)


def passed(*, outreach_id: UUID | None = None) -> Outcome:
    verdict = Passed(
        domain="acme.example",
        method_type="info",
        email_method="info@acme.example",
        confidence=0.70,
        is_catchall=False,
        verified_by=VerifiedBy.SMTP,
    )
    return _outcome(verdict, outreach_id)


def _outcome(verdict: Passed | Failed, outreach_id: UUID | None) -> Outcome:
    return output_stage(
        origin(outreach_id),
        verdict,
        EXCHANGES,
        rules_version="1+test",
        decided_at=datetime.now(UTC),
        duration_ms=1500,
    )


async def record(gate_dsn: str, *outcomes: Outcome, stamp: bool = True) -> None:
    """Record outcomes as the gate does, and stamp them as published."""
    async with _database(gate_dsn) as database:
        ledger = Ledger(database)
        for batches in ledger.batches:
            batches.start()
        for outcome in outcomes:
            assert await ledger.record(outcome)
            if stamp:
                await ledger.stamp(outcome.outreach_id)
        for batches in ledger.batches:
            await batches.stop()


async def park(
    gate_dsn: str,
    outreach_id: UUID,
    reason: WaitReason,
    detail: str,
    *,
    after_s: float | None = 3600.0,
    waits_on: WaitsOn = NOTHING,
) -> None:
    """Park an undecided company as a worker does, by default for an hour."""
    async with _database(gate_dsn) as database:
        passes = ParkedCompanies(database, "test/1", "1")
        passes.park.start()
        wait = Wait(reason=reason, detail=detail, after_s=after_s, waits_on=waits_on)
        await passes.park(
            Parked(
                origin=origin(outreach_id),
                domain="acme.example",
                wait=wait,
                exchanges=EXCHANGES[:2],
                pending=None,
                spent_s=0.5,
                asked_at=None,
                event_at=datetime.now(UTC),
            )
        )
        await passes.park.stop()


async def execute(dsn: str, statement: str, *args: object) -> None:
    """Run one statement."""
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement, *args)
    finally:
        await connection.close()


@asynccontextmanager
async def _database(dsn: str) -> AsyncIterator[Database]:
    database = Database(dsn, pool_size=2)
    await database.open()
    try:
        yield database
    finally:
        await database.close()
