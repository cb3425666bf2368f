"""Did a control succeed after a company's last failed answer, and was our own way broken around it?

A failed answer counts only between proofs: the control that confirms it was begun after it, no control failed between
the last proof before it and that one, and the proofs follow each other closely all the time (ADR-CT-IMO-023). An answer
from inside a stretch of our own trouble, or from a time without proofs, is void.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from ct_stream.gate.questions import ControlAnswer, ControlKind
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.store.passes import LEASE_S

if TYPE_CHECKING:
    from ct_stream.store.database import Database

_SIGN_EVERY_S = 1.0
_CHAIN_SLACK_S = 3.0  #: beyond two intervals, for a poll and a slow statement

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
    proven_since: datetime  #: since when proofs have followed each other without a gap, up to the last one

    def proves(self, failed_at: datetime) -> bool:
        """Tell if a proof was begun after an answer that failed at `failed_at`."""
        return self.ok_begun_at > failed_at

    def voids(self, asked_at: datetime, failed_at: datetime) -> bool:
        """Tell if an answer asked and failed in this window met a stretch of our own trouble."""
        return self.trouble_from < failed_at and asked_at < self.trouble_until

    def unbroken(self, asked_at: datetime) -> bool:
        """Tell if proofs have followed each other without a gap since before a question was put."""
        return self.proven_since <= asked_at and self.failed_at < self.proven_since

    @property
    def is_failing(self) -> bool:
        """Tell if the last control failed, with no proof since."""
        return self.failed_at > self.ok_begun_at


class ControlLedger:
    """The controls as all workers share them."""

    def __init__(self, database: Database, interval_s: float) -> None:
        self._database = database
        self._interval_s = interval_s
        #: How far apart two proofs of one chain may be. While somebody waits, one is asked for each interval.
        self._most_apart_s = 2 * interval_s + _CHAIN_SLACK_S
        self._next: dict[str, float] = {}  # by kind of sign: when another is worth a statement

    async def state(self, kind: ControlKind) -> ControlState:
        """Return what is known of our own way of `kind`."""
        row = (await self._database.persist("control", kind.value))[0]
        self._database.saw_clock(row["now"])
        return ControlState(
            ok_begun_at=_utc(row["ok_begun_at"]),
            ok_detail=row["ok_detail"],
            failed_at=_utc(row["failed_at"]),
            failed_detail=row["failed_detail"],
            trouble_from=_utc(row["trouble_from"]),
            trouble_until=_utc(row["trouble_until"]),
            proven_since=_utc(row["proven_since"]),
        )

    async def confirm(
        self, kind: ControlKind, asked: tuple[datetime, datetime] | None, *, in_chain: bool = False
    ) -> ControlAnswer | Wait:
        """Return a proof begun after an answer that was asked for and failed at these moments; None: just now.

        `in_chain`: that it lay in an unbroken chain was found before, and it has waited for something else since.
        """
        if asked is not None:
            asked_at, failed_at = asked
            state = await self.state(kind)
            if state.proves(failed_at):
                if in_chain or state.unbroken(asked_at):
                    return ControlAnswer(detail=state.ok_detail)
                sentence = f"{_WAIT_SENTENCES[kind]}; nothing proved that when it was asked, so it is asked again"
                return control_wait(kind, sentence, after_s=0.0)
            if state.is_failing:
                return control_wait(kind, f"{_WAIT_SENTENCES[kind]}; the last one failed: {state.failed_detail}")
        return control_wait(kind, _WAIT_SENTENCES[kind])

    async def begin(self, kind: ControlKind) -> datetime | None:
        """Take the right to ask a control now, when somebody waits for it; return when it was begun."""
        rows = await self._database.persist("begin_control", kind.value, self._interval_s, LEASE_S)
        return rows[0]["started_at"] if rows else None

    async def succeeded(self, kind: ControlKind, begun_at: datetime, detail: str) -> None:
        """Record a proof, and wake whom it serves."""
        await self._database.persist("control_succeeded", kind.value, begun_at, detail, self._most_apart_s)

    async def failed(self, kind: ControlKind, detail: str) -> None:
        """Record that our own way is broken."""
        await self._database.persist("control_failed", kind.value, detail)

    def is_due(self, sign: str) -> bool:
        """Tell if a sign of this kind ("greeting", "good_talk") is worth a statement; at most one a second is."""
        now = time.monotonic()
        if now < self._next.get(sign, 0.0):
            return False
        self._next[sign] = now + _SIGN_EVERY_S
        return True

    async def greeting(self, begun_at_monotonic: float) -> None:
        """Count a server's greeting as a sign that port 25 is open."""
        await self._database.persist("greeting", self._moment(begun_at_monotonic), self._most_apart_s)

    async def good_talk(self, begun_at_monotonic: float, host: str) -> None:
        """Count a company's greeting as a proof, at most one a second."""
        if self.is_due("good_talk"):
            detail = f"{host} greeted a session begun later"
            await self._database.persist("good_talk", self._moment(begun_at_monotonic), detail, self._most_apart_s)

    def _moment(self, monotonic: float) -> datetime:
        # Once, not at each try: an outage of Postgres must not make a talk younger than it is.
        return self._database.now() - timedelta(seconds=time.monotonic() - monotonic)


def _utc(moment: datetime) -> datetime:
    """Return a moment that can be compared: asyncpg gives the infinities without a time zone."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def control_wait(kind: ControlKind, detail: str, *, after_s: float | None = None) -> Wait:
    """Return the wait that a proof of `kind` ends, or time if that is sooner."""
    return Wait(reason=WaitReason.CONTROL, detail=detail, after_s=after_s, waits_on=f"control:{kind}")
