"""Rehearses the recording of a PASS, a FAIL and a NOT-FOUND in the users' own tables, and leaves nothing behind.

The statements are those of production, on companies of the spine that are undecided. Each outcome has a transaction of
its own that is rolled back, so that a worker that decides the same company waits for milliseconds. Only the sequences
move on: a gap in a serial number is all that is left.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from random import sample
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from uuid import UUID, uuid4

import asyncpg

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.memory import FAIL_KEPT, MX_KEPT, PASS_KEPT
from ct_stream.gate.output_stage import Origin, Outcome, output_stage
from ct_stream.gate.patterns import CATCH_ALL_CONFIDENCE, PATTERNS, email_method
from ct_stream.gate.questions import SpineAnswer
from ct_stream.gate.records import CLAIM_S
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.verdicts import Failed, Passed, VerifiedBy
from ct_stream.store.connecting import OWN_PATH, without_own_schema
from ct_stream.store.fit import check_fit
from ct_stream.store.ledger import attempt_arguments, record_arguments
from ct_stream.store.misfit import KEEP, Misfit, explain, runs_foreign_code
from ct_stream.store.outage import AGAIN
from ct_stream.store.queries import ON_LOGINS_PATH, query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

log = logging.getLogger(__name__)

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

_TRIES = 3
_LIMITS = "SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '10s'"
#: A worker holds the company that was chosen, or many do: another one is tried.
_BUSY = (
    *AGAIN,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InternalServerError,  # "tuple concurrently updated", beside a migrate
    asyncpg.InvalidCachedStatementError,
    asyncpg.InFailedSQLTransactionError,
)
#: Nothing that the tables could help: to be waited for, as everywhere else.
_OUTAGE = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.PostgresSystemError,
)
_RULES = "rehearsal"
#: As long as the runbook's own email_method (varchar(100)) allows with the longest template.
_DOMAIN_LENGTH = 85
#: The longest reason that is published.
_REASON = "rehearsal ".ljust(1000, ".")

#: The statements that are run for each outcome, in their order.
STATEMENTS = (
    "rehearsal_companies", "look_up", "record", "recorded_attempts", "forget", "wake_domains", "claim_unpublished_of",
    "stamp", "rehearsed",
)  # fmt: skip


class Cast(Protocol):
    """Who runs the statements of a rehearsal."""

    async def fetch(self, name: str, *args: Any) -> Sequence[Mapping[str, Any]]:
        """Run a named statement."""
        ...

    async def settle(self) -> None:
        """Check deferred constraints, and run deferred triggers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What came of a rehearsal that met no misfit."""

    not_rehearsed: str | None = None  #: why nothing was rehearsed

    def __str__(self) -> str:
        if self.not_rehearsed is not None:
            return f"not rehearsed: {self.not_rehearsed}"
        return "recording a PASS, a FAIL and a NOT-FOUND was rehearsed, and nothing of it kept"


NO_SPINE = Rehearsal(not_rehearsed="the spine outreach.outreach is missing")


async def has_spine(connection: Connection) -> bool:
    """Return whether there is a spine at all; without it the statements cannot even be read."""
    return bool(await connection.fetchval("SELECT pg_catalog.to_regclass('outreach.outreach') IS NOT NULL"))


class OneSelf:
    """The login of the connection itself: a worker's, or the doctor's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def fetch(self, name: str, *args: Any) -> Sequence[Mapping[str, Any]]:
        """Run a named statement."""
        async with self._path(is_theirs=name in ON_LOGINS_PATH):
            return [dict(row) for row in await self._connection.fetch(query(name), *args)]

    async def settle(self) -> None:
        """Check deferred constraints, and run deferred triggers."""
        async with self._path(is_theirs=True):
            await self._connection.execute("SET CONSTRAINTS ALL IMMEDIATE")

    @asynccontextmanager
    async def _path(self, *, is_theirs: bool) -> AsyncIterator[None]:
        """Have the path that a worker has at this step, and then our own again; after an error a rollback does that."""
        if is_theirs:
            begun = "SELECT s.reset_val FROM pg_catalog.pg_settings AS s WHERE s.name = 'search_path'"
            await self._set(without_own_schema(str(await self._connection.fetchval(begun))))
        yield
        if is_theirs:
            await self._set(OWN_PATH)

    async def _set(self, path: str) -> None:
        await self._connection.execute("SELECT pg_catalog.set_config('search_path', $1, true)", path)


async def rehearse(connection: Connection, cast: Cast | None = None) -> Rehearsal:
    """Rehearse in a transaction (within another one: a savepoint) that is rolled back. Raises Misfit."""
    actor = cast or OneSelf(connection)
    why = "others were at work on the same rows each time"
    for _ in range(_TRIES):
        transaction = connection.transaction()
        await transaction.start()
        try:
            await connection.execute(f"SET LOCAL search_path = {OWN_PATH}")
            await connection.execute(_LIMITS)
            return await _rehearse(connection, actor)
        except _BUSY as error:
            log.debug("The rehearsal met others at work: %s", error)
            if isinstance(error, asyncpg.PostgresError) and runs_foreign_code(error):
                why = str(explain(error, "the recording of an outcome"))
            elif isinstance(error, asyncpg.QueryCanceledError):
                why = "recording took more than 10 s; look for slow triggers and policies of company_target"
        finally:
            await _undo(connection, transaction)
    return Rehearsal(not_rehearsed=why)


async def _rehearse(connection: Connection, cast: Cast) -> Rehearsal:
    await check_fit(connection)
    if not await has_spine(connection):
        return NO_SPINE
    with_row: list[UUID] = []
    without_row: list[UUID] = []
    try:
        for row in await cast.fetch("rehearsal_companies"):
            (with_row if row["has_row"] else without_row).append(row["outreach_id"])
    except (*_BUSY, *_OUTAGE):
        raise
    except asyncpg.PostgresError as error:
        raise explain(error, "reading the spine") from error
    if not with_row and not without_row:
        return Rehearsal(not_rehearsed="the spine outreach.outreach is empty, or each of its companies is decided")
    had: set[str] = set()
    for name, verdict in _verdicts():
        rows = (with_row or without_row) if name == "PASS" else (without_row or with_row)
        # Two at once, as of one domain: users may have made unique what need not be.
        companies = [uuid4()] if name == "NOT-FOUND" else sorted(sample(rows, min(2, len(rows))))
        outcomes = [_outcome(company, verdict) for company in companies]
        await _record(connection, cast, name, outcomes, in_full=name not in had)
        had.add(name)
    return Rehearsal()


async def _record(connection: Connection, cast: Cast, name: str, outcomes: list[Outcome], *, in_full: bool) -> None:
    """Record equal outcomes as the gate does, look at what was kept, and take it back."""
    domain = outcomes[0].verdict.domain
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("SET LOCAL synchronous_commit = on")  # the administrator may have it off
        ids = [outcome.outreach_id for outcome in outcomes]
        if in_full:
            await cast.fetch("look_up", ids, _RULES, PASS_KEPT, FAIL_KEPT, MX_KEPT)
        attempts = [(outcome, uuid4()) for outcome in outcomes]
        won = await cast.fetch("record", *record_arguments(attempts))
        if len(won) < len(outcomes):
            return  # a worker has decided one of them meanwhile
        if in_full:
            await cast.fetch("recorded_attempts", *attempt_arguments(attempts))
            await cast.fetch("forget", ids)
            await cast.fetch("wake_domains", [domain] if domain else [])
            await cast.fetch("claim_unpublished_of", ids, CLAIM_S)
            await cast.fetch("stamp", ids)
        await cast.settle()
        kept = [(await cast.fetch("rehearsed", company))[0] for company in ids]
    except (*_BUSY, *_OUTAGE):
        raise
    except asyncpg.PostgresError as error:
        raise explain(error, f"the recording of a {_named(name, outcomes[0])}") from error
    finally:
        await _undo(connection, transaction)
    for outcome, row in zip(outcomes, kept, strict=True):
        if row["is_not_durable"]:
            raise Misfit(
                "a trigger of outreach.company_target or outreach.company_target_errors sets synchronous_commit, so a "
                "crash of the server could lose an outcome that is published already",
                "let it leave this setting as it is",
            )
        _compare(outcome, row)


def _named(name: str, outcome: Outcome) -> str:
    code = outcome.failure_code
    return name if code is None or name == "NOT-FOUND" else f"{name} ({code.value})"


async def _undo(connection: Connection, transaction: asyncpg.transaction.Transaction) -> None:
    if not connection.is_closed():
        await transaction.rollback()


# ---------------------------------------------------------------- what is recorded


def _verdicts() -> Iterator[tuple[str, Passed | Failed]]:
    """Yield each word that the gate may write: users' tables may know some of them only."""
    domain = f"{uuid4().hex}.{'r' * (_DOMAIN_LENGTH - 41)}.invalid"
    for pattern in PATTERNS:
        yield (
            "PASS",
            Passed(
                domain=domain,
                method_type=pattern.name,
                email_method=email_method(pattern, domain),
                confidence=pattern.confidence,
                is_catchall=False,
                verified_by=VerifiedBy.SMTP,
            ),
        )
    yield (
        "PASS",
        Passed(
            domain=domain,
            method_type=PATTERNS[0].name,
            email_method=email_method(PATTERNS[0], domain),
            confidence=CATCH_ALL_CONFIDENCE,
            is_catchall=True,
            verified_by=VerifiedBy.CATCH_ALL,
        ),
    )
    for code in FailureCode:
        if code not in (FailureCode.ALREADY_PROCESSED, FailureCode.NOT_FOUND):
            yield "FAIL", Failed(code=code, reason=_REASON, domain=domain)
    yield "NOT-FOUND", Failed(code=FailureCode.NOT_FOUND, reason=_REASON)


def _outcome(company: UUID, verdict: Passed | Failed) -> Outcome:
    answer = SpineAnswer(found=verdict.domain is not None, domain=verdict.domain)
    return output_stage(
        Origin(outreach_id=company),
        verdict,
        [Exchange(key="spine", answer=answer)],
        rules_version=_RULES,
        decided_at=datetime.now(UTC),
        duration_ms=0,
    )


# ---------------------------------------------------------------- what was kept


def _compare(outcome: Outcome, kept: Mapping[str, Any]) -> None:
    """Compare the rows with what was written: a trigger, a rule or a type may change it, or swallow a row."""
    for table, wanted in _wanted(outcome, errors_are_bound=kept["errors_are_bound"]).items():
        for column, value in wanted.items():
            found = kept[column]
            if value is None and found is None:
                continue
            if isinstance(value, float) and found is not None and abs(value - found) < 1e-6:
                continue
            if found != value:
                raise Misfit(
                    f"outreach.{table} does not keep what the gate writes: {column} is {found!r}, not {value!r}",
                    KEEP,
                )


def _wanted(outcome: Outcome, *, errors_are_bound: bool) -> dict[str, dict[str, Any]]:
    verdict = outcome.verdict
    if isinstance(verdict, Passed):
        return {
            "company_target": {
                "execution_status": "ready",
                "email_method": verdict.email_method,
                "method_type": verdict.method_type,
                "confidence_score": verdict.confidence,
                "is_catchall": str(verdict.is_catchall).lower(),
                "has_completed": True,
            },
            "company_target_errors": {"failure_code": None},
        }
    is_not_found = verdict.code is FailureCode.NOT_FOUND
    errors = {
        "failure_code": verdict.code.value,
        "blocking_reason": verdict.reason,
        "pipeline_stage": "company_target_imo",
        "severity": "blocking",
        "imo_stage": verdict.code.imo_stage,
    }
    return {
        "company_target": {"execution_status": None if is_not_found else "failed"},
        "company_target_errors": {"failure_code": None} if is_not_found and errors_are_bound else errors,
    }
