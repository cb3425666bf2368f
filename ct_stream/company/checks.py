"""Checks whether a missing spine row or an unreadable record may count; if most are like that, a person looks first."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from ct_stream.gate.domains import canonical_domain
from ct_stream.gate.events import INPUT_WINDOW, too_many_unreadable
from ct_stream.gate.questions import SpineAnswer
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.store.row_security import hides_companies

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from ct_stream.gate.records import Known
    from ct_stream.store.database import Database
    from ct_stream.store.guardrails import Guardrails

_SPINE_POLL_S = 30.0


class InputCheck:
    """May unreadable records be put on `ct.rejected`?

    Not if most of the last records are unreadable: otherwise an upstream that changed its format would empty the topic
    into it. A person looks, and resumes the guardrail `input`. What has arrived by then no longer counts, whatever its
    timestamp says, nor do records with an older timestamp, so that the ones in the topic can be rejected.
    """

    RAIL = "input"

    def __init__(self, guardrails: Guardrails) -> None:
        self._guardrails = guardrails
        self._records: deque[tuple[datetime | None, bool]] = deque(maxlen=INPUT_WINDOW)
        self._opened_at: datetime | None = None
        self._lock = asyncio.Lock()

    @property
    def is_halted(self) -> bool:
        """Return whether a person must look first, according to the last look at the guardrails."""
        return self.RAIL in self._guardrails.halted

    def saw(self, at: datetime | None, *, readable: bool) -> None:
        """Count one record, with its timestamp."""
        self._records.append((at, readable))

    async def trouble(self) -> str | None:
        """Return why an unreadable record must not be rejected now, or None."""
        async with self._lock:
            await self._guardrails.refresh()
            if self.is_halted:
                return self._guardrails.halted[self.RAIL]
            resumed_at = self._guardrails.opened.get(self.RAIL)
            if resumed_at != self._opened_at:
                self._opened_at = resumed_at
                self._records.clear()
            counted = [
                readable for at, readable in self._records if at is None or resumed_at is None or at > resumed_at
            ]
            reason = too_many_unreadable(counted)
            if reason is not None:
                await self._guardrails.set_state(self.RAIL, "halted", reason, None)
            return reason


class SpineCheck:
    """May a missing spine row be believed?

    Not if too many of the last look-ups found nothing: a wrong database, a lagging replica or a lost grant looks just
    like that. A person looks, and resumes the guardrail `spine`.
    """

    WINDOW = 50
    MOST_MISSES = 20
    RAIL = "spine"

    def __init__(self, database: Database, guardrails: Guardrails) -> None:
        self._database = database
        self._guardrails = guardrails
        self._lookups: list[bool] = []
        self._was_halted = False
        self._lock = asyncio.Lock()

    def saw(self, *, usable: bool) -> None:
        """Count one company's look-up: a row with a domain, or a miss."""
        self._lookups.append(usable)
        del self._lookups[: -self.WINDOW]

    async def disbelief(self) -> Wait | None:
        """Return the wait of a company whose missing row must not be believed now, or None."""
        trouble = await self.trouble()
        if trouble is None:
            return None
        return Wait(
            reason=WaitReason.SPINE_CONTROL,
            detail=f"a missing spine row does not count now: {trouble}",
            after_s=None if self.RAIL in self._guardrails.halted else _SPINE_POLL_S,
            waits_on=WaitsOn.spine(),
        )

    async def trouble(self) -> str | None:
        """Return why a missing row must not be believed now, or None."""
        async with self._lock:
            await self._guardrails.refresh()
            halted = self._guardrails.halted.get(self.RAIL)
            if halted is not None:
                self._was_halted = True
                return halted
            if self._was_halted:  # a person resumed it: the window starts empty
                self._was_halted = False
                self._lookups.clear()
            row = (await self._database.persist("spine_control"))[0]
            if row["in_recovery"]:
                return "the spine is read from a standby; CT_POSTGRES_DSN must name the primary"
            if await self._database.persist_look("row_security", hides_companies):
                return (
                    "row security, of the spine or of a table below it, may hide rows from the gate's login; "
                    "exempt that login, or the view's owner, from it"
                )
            if not row["has_rows"]:
                return "the spine holds no companies: is this the right database?"
            misses = self._lookups.count(False)
            if misses > self.MOST_MISSES:
                reason = f"{misses} of the last {len(self._lookups)} spine look-ups found no usable row"
                await self._guardrails.set_state(self.RAIL, "halted", reason, None)
                return reason
            return None


class SpineRow:
    """One company's row in the spine, as it was read with the company, and the grace before its absence counts."""

    def __init__(
        self,
        check: SpineCheck,
        known: Known,
        *,
        since: datetime,
        is_repeat: bool,
        age_s: Callable[[datetime], float],
        grace_s: float,
    ) -> None:
        """`since`: when we first saw the company. `is_repeat`: it has waited for the spine check before."""
        self._check = check
        self._known = known
        self._since = since
        self._is_repeat = is_repeat
        self._age_s = age_s
        self._grace_s = grace_s

    async def lookup(self, outreach_id: UUID) -> SpineAnswer | Wait:
        """Return the row, or that it is missing for good, or the wait until that can be believed."""
        known = self._known
        if known.in_spine and isinstance(canonical_domain(known.domain), str):
            self._saw(usable=True)
            return SpineAnswer(found=True, domain=known.domain)
        if not known.in_spine:
            # Not from the event's timestamp: an outbox, a mirror or a clock that is wrong makes any age there.
            age_s = max(0.0, self._age_s(self._since))
            if age_s < self._grace_s:
                return Wait(
                    reason=WaitReason.SPINE_GRACE,
                    detail=f"{outreach_id} is not in the spine; looked up again for {self._grace_s:g} s",
                    after_s=min(self._grace_s - age_s, max(1.0, age_s)),
                )
        self._saw(usable=False)
        return await self._check.disbelief() or SpineAnswer(found=known.in_spine, domain=known.domain)

    def _saw(self, *, usable: bool) -> None:
        """Count this company's look-up once, however often it waits for the spine check."""
        if not self._is_repeat:
            self._check.saw(usable=usable)
