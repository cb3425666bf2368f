"""Did a control succeed after a company's last failed answer, and was our own way broken around it?

A failed answer counts only between proofs: the control that confirms it was begun after it, and no control failed
between the last proof before it and that one. An answer from inside a stretch of our own trouble is void.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ct_stream.gate.questions import ControlAnswer, ControlKind
from ct_stream.gate.waits import Wait, WaitReason

if TYPE_CHECKING:
    from ct_stream.store.database import Database

_GOOD_TALK_EVERY_S = 1.0

_WAIT_SENTENCES = {
    ControlKind.DNS: "our resolvers must prove that they work (control domain) before its DNS answer is believed",
    ControlKind.SMTP: "our way out to port 25 must prove to work (control) before its silence is believed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlState:
    """The proofs and the last stretch of trouble of one kind, by the database's clock."""

    ok_begun_at: datetime
    ok_detail: str
    failed_at: datetime
    failed_detail: str
    trouble_from: datetime
    trouble_until: datetime

    def proves(self, failed_at: datetime) -> bool:
        """Tell if a proof was begun after an answer that failed at `failed_at`."""
        return self.ok_begun_at > failed_at

    def voids(self, asked_at: datetime, failed_at: datetime) -> bool:
        """Tell if an answer asked and failed in this window met a stretch of our own trouble."""
        return self.trouble_from < failed_at and asked_at < self.trouble_until

    @property
    def is_failing(self) -> bool:
        """Tell if the last control failed, with no proof since."""
        return self.failed_at > self.ok_begun_at


class ControlLedger:
    """The controls as all workers share them."""

    def __init__(self, database: Database, interval_s: float) -> None:
        self._database = database
        self._interval_s = interval_s
        self._next_good_talk = 0.0

    async def state(self, kind: ControlKind) -> ControlState:
        """Return what is known of our own way of `kind`."""
        row = (await self._database.persist("control", kind.value))[0]
        return ControlState(
            ok_begun_at=_utc(row["ok_begun_at"]),
            ok_detail=row["ok_detail"],
            failed_at=_utc(row["failed_at"]),
            failed_detail=row["failed_detail"],
            trouble_from=_utc(row["trouble_from"]),
            trouble_until=_utc(row["trouble_until"]),
        )

    async def confirm(self, kind: ControlKind, failed_at: datetime | None) -> ControlAnswer | Wait:
        """Return a proof begun after `failed_at`; None means that the answer failed just now."""
        if failed_at is not None:
            state = await self.state(kind)
            if state.proves(failed_at):
                return ControlAnswer(detail=state.ok_detail)
            if state.is_failing:
                return control_wait(kind, f"{_WAIT_SENTENCES[kind]}; the last one failed: {state.failed_detail}")
        return control_wait(kind, _WAIT_SENTENCES[kind])

    async def begin(self, kind: ControlKind) -> datetime | None:
        """Take the right to ask a control now, when somebody waits for it; return when it was begun."""
        rows = await self._database.persist("begin_control", kind.value, self._interval_s)
        return rows[0]["started_at"] if rows else None

    async def succeeded(self, kind: ControlKind, begun_at: datetime, detail: str) -> None:
        """Record a proof, and wake whom it serves."""
        await self._database.persist("control_succeeded", kind.value, begun_at, detail)

    async def failed(self, kind: ControlKind, detail: str) -> None:
        """Record that our own way is broken."""
        await self._database.persist("control_failed", kind.value, detail)

    async def good_talk(self, begun_at_monotonic: float, host: str) -> None:
        """Count a company's greeting as a proof, at most one a second."""
        now = time.monotonic()
        if now < self._next_good_talk:
            return
        self._next_good_talk = now + _GOOD_TALK_EVERY_S
        await self._database.persist("good_talk", now - begun_at_monotonic, f"{host} greeted a session begun later")


def _utc(moment: datetime) -> datetime:
    """Return a moment that can be compared: asyncpg gives the infinities without a time zone."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def control_wait(kind: ControlKind, detail: str) -> Wait:
    """Return the wait that a proof of `kind` ends."""
    return Wait(reason=WaitReason.CONTROL, detail=detail, waits_on=f"control:{kind}")
