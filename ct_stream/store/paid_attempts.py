"""Reserves each company's one paid attempt, within the month's budget, and keeps its result.

A reservation in Postgres comes before each call and is never removed, so that neither a crash nor another worker pays
twice (ADR-CT-IMO-017). All limits are exact over all workers, by the database's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from ct_stream.gate.questions import VerifyAnswer, VerifyStatus
from ct_stream.store.batches import Batches
from ct_stream.store.guardrails import TIER2_BUDGET, say_guardrail

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from ct_stream.gate.toolbox_limits import PaidLimits
    from ct_stream.store.database import Database

ANSWER_DUE_S = 30.0  #: from the reservation to the stored answer; until then other workers wait for it
IN_A_ROW = 5  #: calls without a usable answer that halt the tool
#: For a slot of the per-second rate that is nearer than this, the task waits; otherwise the company is parked.
_MAX_SLOT_WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One company's attempt, before it is reserved."""

    outreach_id: UUID
    address: str
    token: UUID  #: new for each try to reserve


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The result of a reservation."""

    answer: str  #: granted, answered, under_way, off, budget, halted, turn, rate; see ct_take_tier2
    stored: VerifyAnswer | None = None  #: when answered
    asked: str = ""  #: the address that the stored answer is about
    detail: str = ""
    delay_s: float = 0.0  #: when granted: seconds to wait before the call
    retry_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """The answer on record after one was to be stored, and whether that halted the tool."""

    answer: VerifyAnswer
    halted: str | None = None  #: why


class PaidAttempts:
    """The attempts, shared by all workers. `provider` is empty if no vendor is set."""

    def __init__(self, database: Database, provider: str, limits: PaidLimits) -> None:
        self._database = database
        self._provider = provider
        self.limits = limits
        self.take: Batches[Wanted, Taken] = Batches(
            "take-tier2", self._take, order=lambda wanted: wanted.outreach_id, outages=database
        )

    async def store(self, wanted: Wanted, answer: VerifyAnswer, *, halt: str | None = None) -> Stored:
        """Store the answer, however long the database is away; `halt` says what is wrong with our account.

        If the answer comes too late, its attempt has been written off, and that result counts.
        """
        rows = await self._database.persist(
            "answer_tier2",
            wanted.outreach_id,
            wanted.token,
            answer.status.value,
            answer.detail,
            halt,
            IN_A_ROW,
            max(IN_A_ROW, ceil(self.limits.per_second)) if answer.status is not VerifyStatus.NO_ANSWER else IN_A_ROW,
        )
        row = rows[0]
        final = VerifyAnswer(status=VerifyStatus(row["final_said"]), detail=row["final_detail"])
        return Stored(answer=final, halted=row["halted_now"])

    async def _take(self, wanted: Sequence[Wanted]) -> list[Taken]:
        limits = self.limits
        rows = await self._database.fetch(
            "take_tier2",
            [one.outreach_id for one in wanted],
            [one.address for one in wanted],
            [one.token for one in wanted],
            self._provider,
            limits.per_second,
            limits.per_month,
            limits.usd_per_month,
            limits.usd_per_call,
            ANSWER_DUE_S,
            _MAX_SLOT_WAIT_S,
            IN_A_ROW,
        )
        taken: dict[int, Taken] = {}
        for row in rows:
            if row["is_first"]:
                say_guardrail(TIER2_BUDGET, "closed", row["detail"])
            detail = row["detail"] or ""
            taken[row["place"]] = Taken(
                answer=row["answer"],
                stored=VerifyAnswer(status=VerifyStatus(row["said"]), detail=detail) if row["said"] else None,
                asked=row["asked"] or "",
                detail=detail,
                delay_s=row["delay_s"],
                retry_s=row["retry_s"],
            )
        return [taken[n] for n in range(1, len(wanted) + 1)]
