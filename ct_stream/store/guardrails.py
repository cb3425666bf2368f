"""A server refuses us: is it this company's policy, a provider that closed, or all of us?

Three companies of one provider that end within 24 hours in a refusal of us, in "too fast" or in silence, with no good
talk between, close that provider; five of the last 20 providers halt the tool until a person resumes it. What concerns
one company alone is settled by a control and by time: long enough for the others to show what it was (ADR-CT-IMO-019).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING

from ct_stream.gate.events import INPUT_WINDOW, too_many_unreadable
from ct_stream.gate.questions import ControlKind
from ct_stream.gate.verdicts import Held, HeldBy
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.store.controls import control_wait

if TYPE_CHECKING:
    from datetime import datetime

    from ct_stream.store.database import Database

log = logging.getLogger(__name__)

CLOSE_AFTER_COMPANIES = 3
HALT_AFTER_PROVIDERS, OF_PROVIDERS = 5, 20  #: so many of the last so many
EVIDENCE_KEPT = timedelta(hours=24)  #: how far a refusal or a good talk counts back
FIRST_TRY_S = 600.0  #: of a closed provider; then twice as long each time, see ct_count_try
RATE_PAUSE_S = 60.0  #: of a provider that says that we ask too fast; then twice as long each time
_REFRESH_S = 5.0
_HOURS = EVIDENCE_KEPT // timedelta(hours=1)
SMTP_RAIL = "tool:TOOL-005"
TIER2_RAIL = "tool:TOOL-019"
TIER2_BUDGET = "budget:TOOL-019"  #: in the log of guardrails only: the month opens it


def say_guardrail(rail: str, state: str, reason: str) -> None:
    """Log a change of a guardrail: the alert, when it closes or halts."""
    level = {"open": logging.INFO, "paused": logging.WARNING}.get(state, logging.ERROR)
    log.log(level, "Guardrail %s is %s: %s", rail, state, reason, extra={"action": "guardrail", "rail": rail})


class Guardrails:
    """The guardrail table as all workers share it."""

    def __init__(self, database: Database, settle_s: float) -> None:
        self._database = database
        self._settle_s = settle_s
        self._suspects: set[str] = set()  # providers whose next good talk is news
        self._on_trial = False
        self._refresh_at = 0.0
        self._changes = 0
        self.halted: dict[str, str] = {}  #: rail to reason, as last read
        self.opened: dict[str, datetime] = {}  #: rail to when it was opened again, as last read

    async def judge(self, held: Held, domain: str, provider: str, *, is_own_server: bool) -> Wait:
        """Record a reply about us, draw what follows for all companies, and return the wait for this one."""
        if held.by is HeldBy.RATE:
            await self._note(provider, domain, "rate", held.host, held.reason)
            await self.set_state(
                f"provider:{provider}", "paused", f"says that we ask too fast: {held.reason}", RATE_PAUSE_S
            )
            await self._close_where_due(provider, held.reason)
            return Wait(
                reason=WaitReason.OUR_RATE,
                detail=f"{provider} says that we ask too fast: {held.reason}",
                waits_on=f"provider:{provider}",
            )
        await self._note(provider, domain, "refused", held.host, held.reason)
        rows = await self._database.persist("refusing_providers", EVIDENCE_KEPT, OF_PROVIDERS)
        if rows[0]["refusing"] >= HALT_AFTER_PROVIDERS:
            of_last = f"{rows[0]['refusing']} of the last {OF_PROVIDERS} providers"
            reason = f"{of_last} refuse us, the last one {provider}: {held.reason}"
            await self.set_state(SMTP_RAIL, "halted", reason, None)
        if is_own_server:
            # Its own policy, if a control talks to us normally: the scope is settled by that proof.
            return control_wait(ControlKind.SMTP, f"{held.host} refuses us; a control must show whether all do")
        await self._close_where_due(provider, held.reason)
        return Wait(
            reason=WaitReason.REFUSED,
            detail=f"{provider} refuses us: {held.reason}",
            after_s=FIRST_TRY_S,
            waits_on=f"provider:{provider}",
        )

    def unsettled(self, age_s: float, what: str) -> Wait | None:
        """Return why a refusal by one company's own server, so many seconds old, is not its private policy yet."""
        if SMTP_RAIL in self.halted:
            return Wait(
                reason=WaitReason.HALTED,
                detail=f"TOOL-005 is halted: {self.halted[SMTP_RAIL]}",
                waits_on=SMTP_RAIL,
            )
        age_s = max(0.0, age_s)
        if age_s >= self._settle_s:
            return None
        return Wait(
            reason=WaitReason.REFUSED,
            detail=f"{what}; counts as its own policy when others have not refused us for {self._settle_s:g} s",
            after_s=self._settle_s - age_s,
        )

    async def silent(self, provider: str, domain: str) -> None:
        """Record that no server of a shared provider could be reached for this company."""
        await self._note(provider, domain, "silent", "", "no server of it could be reached")

    async def unreached(self, provider: str, age_s: float) -> Wait | None:
        """Return why a shared provider's silence, so many seconds old, is not its company's failure (yet)."""
        if await self._close_where_due(provider, "no server of it could be reached"):
            return Wait(
                reason=WaitReason.PROVIDER_CLOSED,
                detail=f"several companies at {provider} end without an answer: the provider, or its view of us",
                waits_on=f"provider:{provider}",
            )
        age_s = max(0.0, age_s)
        if age_s >= self._settle_s:
            return None
        return Wait(
            reason=WaitReason.PROVIDER_SILENT,
            detail=f"no server of {provider} could be reached; counts once {self._settle_s:g} s have shown that it is "
            "not the provider as a whole",
            after_s=self._settle_s - age_s,
        )

    async def note_talk(self, provider: str) -> None:
        """Record that a provider talked normally to a company that has its place at another one."""
        await self._database.persist("note_talk", provider)

    async def talked(self, provider: str) -> None:
        """Open a closed provider that talked normally; count the talk in a careful resume."""
        if provider in self._suspects:
            self._suspects.discard(provider)
            await self.set_state(f"provider:{provider}", "open", "talks normally again", None)
        if self._on_trial and (await self._database.persist("end_trial"))[0]["opened"]:
            self._on_trial = False
            say_guardrail(SMTP_RAIL, "open", "enough providers have talked normally")

    async def set_state(self, rail: str, state: str, reason: str, next_try_s: float | None) -> None:
        """Pause, close, halt or open a guardrail; a change is logged as an alert."""
        rows = await self._database.persist(
            "set_guardrail", rail, state, reason, -1.0 if next_try_s is None else next_try_s
        )
        if state == "halted":
            self._changes += 1
            self.halted.setdefault(rail, reason)
        if rows[0]["changed"]:
            say_guardrail(rail, state, reason)

    async def refresh(self, *, now: bool = False) -> None:
        """Read the table, at most every few seconds unless `now`."""
        if not now and time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + _REFRESH_S
        changes = self._changes
        rows = await self._database.persist("guardrails")
        if changes != self._changes:
            return  # halted meanwhile: what was read may be older than that
        self.halted = {row["key"]: row["reason"] for row in rows if row["state"] == "halted"}
        self.opened = {row["key"]: row["since"] for row in rows if row["state"] == "open"}
        self._on_trial = any(row["key"] == SMTP_RAIL and row["state"] == "trial" for row in rows)
        self._suspects |= {
            row["key"].removeprefix("provider:")
            for row in rows
            if row["state"] != "open" and row["key"].startswith("provider:")
        }

    async def _note(self, provider: str, domain: str, kind: str, host: str, reason: str) -> None:
        await self._database.persist("note_refusal", provider, domain, kind, host, reason)
        self._suspects.add(provider)

    async def _close_where_due(self, provider: str, reason: str) -> bool:
        rows = await self._database.persist("refusals_at_provider", provider, EVIDENCE_KEPT)
        if rows[0]["companies"] < CLOSE_AFTER_COMPANIES:
            return False
        why = f"{rows[0]['companies']} companies within {_HOURS} h and no good talk between, the last one: {reason}"
        await self.set_state(f"provider:{provider}", "closed", why, FIRST_TRY_S)
        return True


class InputControl:
    """May unreadable records be put on `ct.rejected`?

    Not when most of the last ones are: an upstream that changed its format would empty the topic into it. A person
    looks, and resumes the rail `input`; records from before that moment count no more, so that what lies there goes.
    """

    RAIL = "input"

    def __init__(self, guardrails: Guardrails) -> None:
        self._guardrails = guardrails
        self._records: deque[tuple[datetime | None, bool]] = deque(maxlen=INPUT_WINDOW)
        self._lock = asyncio.Lock()

    @property
    def is_halted(self) -> bool:
        """Tell if a person must look first, as last read."""
        return self.RAIL in self._guardrails.halted

    def saw(self, at: datetime | None, *, readable: bool) -> None:
        """Count one record, with its timestamp."""
        self._records.append((at, readable))

    async def trouble(self) -> str | None:
        """Return why an unreadable record must not be let go of now, or None."""
        async with self._lock:
            await self._guardrails.refresh()
            if self.is_halted:
                return self._guardrails.halted[self.RAIL]
            resumed_at = self._guardrails.opened.get(self.RAIL)
            counted = [
                readable for at, readable in self._records if at is None or resumed_at is None or at > resumed_at
            ]
            reason = too_many_unreadable(counted)
            if reason is not None:
                await self._guardrails.set_state(self.RAIL, "halted", reason, None)
            return reason


class SpineControl:
    """May a missing spine row be believed?

    Not when too many of the last look-ups missed: a wrong database, a lagging replica or a lost grant looks just
    like that. A person looks, and resumes the rail `spine`.
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

    async def trouble(self) -> str | None:
        """Return why a miss must not be believed now, or None."""
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
            if row["row_security"]:
                return "row security hides spine rows from the gate's role; exempt ct_gate from it"
            if not row["has_rows"]:
                return "the spine holds no company at all: is this the right database?"
            misses = self._lookups.count(False)
            if misses > self.MOST_MISSES:
                reason = f"{misses} of the last {len(self._lookups)} spine look-ups found no usable row"
                await self._guardrails.set_state(self.RAIL, "halted", reason, None)
                return reason
            return None
