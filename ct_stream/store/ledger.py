"""The ledger: looks companies up, records outcomes, and hands out what is to be published."""

from __future__ import annotations

import base64
import logging
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import asyncpg
import orjson

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.memory import FAIL_KEPT, MX_KEPT, PASS_KEPT, is_unpaid, memorable
from ct_stream.gate.output_stage import are_headers_of
from ct_stream.gate.records import CLAIM_S, Known, NotOurs, Publication
from ct_stream.gate.transcript import to_json
from ct_stream.gate.verdicts import Passed
from ct_stream.store.batches import Alone, Batches
from ct_stream.store.domain_memory import read_memory
from ct_stream.store.misfit import explain, is_of_others
from ct_stream.store.outage import UnfitDatabase

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ct_stream.gate.output_stage import Headers, Outcome
    from ct_stream.gate.transcript import Exchange
    from ct_stream.store.database import Database


log = logging.getLogger(__name__)

#: For rows that others hold; the second for one outcome alone. Less than deadlock_timeout (1 s by default): where a hub
#: and a batch wait for each other, the batch gives way, and the hub never hears of it.
_PATIENCE_MS, _LITTLE_PATIENCE_MS = 500, 200


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """One attempt to record an outcome, with a token that no other attempt has."""

    outcome: Outcome
    token: UUID = field(default_factory=uuid4)


class Ledger:
    """The one arbiter of outcomes (law 1), with one statement for each batch."""

    def __init__(self, database: Database, rules_version: str = "") -> None:
        """With a rules version, a look-up of a company also returns what its domain answered under these rules."""
        self._database = database
        self._rules_version = rules_version
        self.look_up: Batches[UUID, Known] = Batches("look-up", self._look_up, outages=database)
        self._recordings: Batches[_Attempt, bool] = Batches(
            "record",
            self._record,
            alone=Alone(run=self._record_alone, why=_others_do),
            order=lambda attempt: attempt.outcome.outreach_id,
            outages=database,
        )
        self.stamp: Batches[UUID, None] = Batches("stamp", self._stamp, order=lambda i: i, outages=database)
        self.claim: Batches[UUID, Publication | NotOurs | None] = Batches(
            "claim", self._claim, order=lambda i: i, outages=database
        )

    @property
    def batches(self) -> tuple[Batches[Any, Any], ...]:
        """Return the queues, to be started and stopped with the program."""
        return (self.look_up, self._recordings, self.stamp, self.claim)

    async def record(self, outcome: Outcome) -> bool:
        """Record an outcome; return True if it is the one that counts. Cancelling the caller does not stop it.

        Raises RowHeld if others keep the company's rows from being written.
        """
        return await self._recordings(_Attempt(outcome=outcome))

    async def claim_unpublished(self, limit: int) -> list[Publication]:
        """Claim outcomes that a crash left unpublished, oldest first."""
        rows = await self._database.persist("claim_unpublished", limit, CLAIM_S)
        return [one for one in map(_publication, rows) if isinstance(one, Publication)]

    async def count_unpublished(self) -> int:
        """Return how many outcomes are recorded and not yet published."""
        rows = await self._database.persist("count_unpublished")
        return int(rows[0]["unpublished"])

    async def _look_up(self, ids: Sequence[UUID]) -> list[Known]:
        now = time.monotonic()
        rows = await self._database.fetch("look_up", list(set(ids)), self._rules_version, PASS_KEPT, FAIL_KEPT, MX_KEPT)
        known = {
            row["outreach_id"]: Known(
                outcome=row["outcome"],
                needs_publishing=row["outcome"] is not None and not row["settled"],
                pass_state=row["pass_state"],
                in_spine=row["in_spine"],
                domain=row["domain"],
                is_paid=row["is_paid"],
                recalled=row["recalled"] if row["outcome"] is None else None,
                memory=read_memory(row) if row["outcome"] is None and row["recalled"] is not None else None,
                looked_up_at=now,
            )
            for row in rows
        }
        return [known[i] for i in ids]

    async def _record_alone(self, attempts: Sequence[_Attempt]) -> list[bool]:
        return await self._record(attempts, patience_ms=_LITTLE_PATIENCE_MS)

    async def _record(self, attempts: Sequence[_Attempt], patience_ms: int = _PATIENCE_MS) -> list[bool]:
        """Record outcomes, and forget their undecided passes; True for each that won.

        A batch that runs again because the answer to COMMIT was lost finds its own rows by their attempt.
        """
        first: dict[UUID, _Attempt] = {}
        for attempt in attempts:
            first.setdefault(attempt.outcome.outreach_id, attempt)
        arguments = record_arguments([(attempt.outcome, attempt.token) for attempt in first.values()], patience_ms)
        won_rows = await self._database.fetch("record", *arguments)
        for row in won_rows:
            if row["in_conflict"]:
                log.warning(
                    "company_target has a final row of company %s that the gate did not make; it is left as it is",
                    row["outreach_id"],
                    extra={"action": "row_in_conflict", "outreach_id": str(row["outreach_id"])},
                )
        won = await self._read_back(list(first.values()))
        await self._database.run("forget", list(first))
        served = {first[i].outcome.verdict.domain for i in won if _serves_others(first[i].outcome)}
        if served:
            await self._database.run("wake_domains", sorted(domain for domain in served if domain is not None))
        return [
            attempt.outcome.outreach_id in won and first[attempt.outcome.outreach_id] is attempt for attempt in attempts
        ]

    async def _read_back(self, attempts: Sequence[_Attempt]) -> set[UUID]:
        """Return the companies whose outcome is that of these attempts, with the bytes that are to be published.

        Raises UnfitDatabase if one has no outcome at all.
        """
        tried = [(attempt.outcome, attempt.token) for attempt in attempts]
        rows = await self._database.fetch("recorded_attempts", *attempt_arguments(tried))
        self._database.saw_ordinal(max((row["ordinal"] for row in rows), default=0))
        is_it = {row["outreach_id"]: row["is_it"] for row in rows}
        if missing := [outcome.outreach_id for outcome, _ in tried if outcome.outreach_id not in is_it]:
            raise UnfitDatabase(
                f"the outcome of company {missing[0]} was recorded without an error, but is not in the ledger",
                "look through the triggers of outreach.company_target and outreach.company_target_errors",
            )
        return {outreach_id for outreach_id, is_ours in is_it.items() if is_ours}

    async def _stamp(self, ids: Sequence[UUID]) -> list[None]:
        await self._database.run("stamp", list(ids))
        return [None] * len(ids)

    async def _claim(self, ids: Sequence[UUID]) -> list[Publication | NotOurs | None]:
        rows = await self._database.fetch("claim_unpublished_of", list(set(ids)), CLAIM_S)
        claimed = {one.outreach_id: one for one in map(_publication, rows)}
        return [claimed.pop(i, None) for i in ids]


def _others_do(error: asyncpg.PostgresError) -> str | None:
    """Return what others do that keeps an outcome from being recorded; None: it is trouble of the database, or ours."""
    if isinstance(error, asyncpg.LockNotAvailableError):
        return "an open transaction of somebody else holds its row of company_target"
    return str(explain(error, "recording it")) if is_of_others(error) else None


def record_arguments(attempts: Sequence[tuple[Outcome, UUID]], patience_ms: int = _PATIENCE_MS) -> tuple[Any, ...]:
    """Return the arguments of the query `record`; each outcome comes with the token of the attempt to record it.

    `patience_ms`: how long it waits for a row that somebody else holds.
    """
    columns = [(*_row(outcome), token) for outcome, token in attempts]
    runs = [" ".join(sorted({e.by for e in outcome.exchanges if e.by})) for outcome, _ in attempts]
    return (*map(list, zip(*columns, strict=True)), CLAIM_S, str(patience_ms), runs)


def attempt_arguments(attempts: Sequence[tuple[Outcome, UUID]]) -> tuple[Any, ...]:
    """Return the arguments of the query `recorded_attempts`."""
    return (
        [outcome.outreach_id for outcome, _ in attempts],
        [token for _, token in attempts],
        [outcome.value for outcome, _ in attempts],
        [outcome.topic for outcome, _ in attempts],
        [outcome.key for outcome, _ in attempts],
    )


def _publication(row: asyncpg.Record) -> Publication | NotOurs:
    """Return what a claimed row says."""
    outreach_id = row["outreach_id"]
    try:
        headers = headers_from_json(row["headers"])
        is_ours = are_headers_of(headers, outreach_id, row["topic"], row["value"])
    except (ValueError, TypeError, KeyError, AttributeError):
        is_ours = False
    if is_ours:
        return Publication(
            outreach_id=outreach_id, topic=row["topic"], key=row["key"], value=row["value"], headers=headers
        )
    log.error(
        "The outcome of company %s is not published: its headers in outreach.ct_outcomes are not the gate's",
        outreach_id,
        extra={"action": "not_our_bytes", "outreach_id": str(outreach_id)},
    )
    return NotOurs(outreach_id=outreach_id)


def headers_to_json(headers: Headers) -> str:
    """Return headers as the ledger keeps them: in order, text where printable ASCII, else base64."""
    return orjson.dumps(
        [
            [name, value.decode() if value.isascii() and value.decode().isprintable() else {"base64": _b64(value)}]
            for name, value in headers
        ]
    ).decode()


def headers_from_json(text: str) -> Headers:
    """Return the headers that `headers_to_json` gave, byte for byte."""
    return tuple(
        (name, value.encode() if isinstance(value, str) else base64.b64decode(value["base64"]))
        for name, value in orjson.loads(text)
    )


def _b64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _row(outcome: Outcome) -> tuple[Any, ...]:
    """Return one outcome in the order of the arrays of the query `record`."""
    verdict = outcome.verdict
    passed = isinstance(verdict, Passed)
    origin = outcome.origin
    told = memorable(outcome.exchanges) if verdict.domain is not None else ()
    transcript = to_json(outcome.exchanges)
    begin = sum(exchange.key == "spine" for exchange in outcome.exchanges)
    code = outcome.failure_code
    raw_input = {
        "topic": origin.topic,
        "partition": origin.partition,
        "offset": origin.offset,
        "correlation_id": origin.correlation_id,
    }
    return (
        outcome.outreach_id,
        "PASS" if passed else "FAIL",
        code.value if isinstance(code, FailureCode) else None,
        verdict.note if isinstance(verdict, Passed) else verdict.reason,
        verdict.domain,
        outcome.rules_version,
        orjson.dumps(transcript).decode(),
        outcome.decided_at,
        outcome.duration_ms,
        origin.topic,
        origin.partition,
        origin.offset,
        outcome.topic,
        outcome.key,
        outcome.value,
        headers_to_json(outcome.headers),
        verdict.email_method if isinstance(verdict, Passed) else None,
        verdict.method_type if isinstance(verdict, Passed) else None,
        verdict.confidence if isinstance(verdict, Passed) else None,
        verdict.is_catchall if isinstance(verdict, Passed) else None,
        code.imo_stage if code is not None else None,
        orjson.dumps(raw_input).decode() if not passed else None,
        orjson.dumps(transcript[begin : begin + len(told)]).decode() if told else None,
        _answered_at(outcome, told[1:] or told),  # the hosts may be remembered: they have a time of their own
        _answered_at(outcome, told[:1]),
    )


def _serves_others(outcome: Outcome) -> bool:
    """Return whether companies that wait for the same domain can be decided by what is remembered now."""
    told = [exchange for exchange in outcome.exchanges if exchange.key != "spine"]
    if is_unpaid(told):
        return False
    age = outcome.decided_at - _answered_at(outcome, told[1:] or told)
    return bool(told) and (isinstance(outcome.verdict, Passed) or age < FAIL_KEPT / 2)


def _answered_at(outcome: Outcome, exchanges: Sequence[Exchange]) -> datetime:
    """Return when the oldest answer came."""
    times = [datetime.fromisoformat(exchange.at) for exchange in exchanges if exchange.at]
    return min([*times, outcome.decided_at])
