"""Keeps what controls have shown of our own way, for all workers, and lets one worker ask the next control.

Postgres keeps the proofs, their chain and the last stretch of trouble. gate/evidence.py decides what they mean.
"""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ct_stream.gate.evidence import Way, confirmed, unproven
from ct_stream.store.parked import LEASE_S

if TYPE_CHECKING:
    from ct_stream.gate.evidence import Window
    from ct_stream.gate.questions import ControlAnswer, ControlKind
    from ct_stream.gate.waits import Wait
    from ct_stream.store.database import Database

_SIGN_EVERY_S = 1.0
_CHAIN_SLACK_S = 3.0  #: beyond two intervals, for a poll and a slow statement


class ControlLedger:
    """The controls, shared by all workers."""

    def __init__(self, database: Database, interval_s: float) -> None:
        self._database = database
        self._interval_s = interval_s
        #: How far apart two proofs of one chain may be. While somebody waits, a control is asked in each interval.
        self._most_apart_s = 2 * interval_s + _CHAIN_SLACK_S
        self._next: dict[str, float] = {}  # by kind of sign: when the next one is worth a statement

    async def state(self, kind: ControlKind) -> Way:
        """Return what is known of our own way of `kind`."""
        row = (await self._database.persist("control", kind.value))[0]
        self._database.saw_clock(row["now"])
        return Way(
            ok_begun_at=row["ok_begun_at"],
            ok_detail=row["ok_detail"],
            failed_at=row["failed_at"],
            failed_detail=row["failed_detail"],
            trouble_from=row["trouble_from"],
            trouble_until=row["trouble_until"],
            proven_since=row["proven_since"],
        )

    async def confirm(
        self, kind: ControlKind, window: Window | None, *, in_chain: bool = False
    ) -> ControlAnswer | Wait:
        """Return the proof for an answer that failed in this window (None: just now), or the wait for one."""
        if window is None:
            return unproven(kind)
        return confirmed(kind, await self.state(kind), window, in_chain=in_chain)

    async def begin(self, kind: ControlKind) -> datetime | None:
        """Take the right to ask a control now, if somebody waits for one; return when it began, None: not now."""
        rows = await self._database.persist("begin_control", kind.value, self._interval_s, LEASE_S)
        return rows[0]["started_at"] if rows else None

    async def succeeded(self, kind: ControlKind, begun_at: datetime, detail: str) -> None:
        """Record a proof, and wake the companies that it serves."""
        await self._database.persist("control_succeeded", kind.value, begun_at, detail, self._most_apart_s)

    async def failed(self, kind: ControlKind, detail: str) -> None:
        """Record that our own way is broken."""
        await self._database.persist("control_failed", kind.value, detail)

    def is_due(self, sign: str) -> bool:
        """Return whether a sign of this kind ("greeting", "good_talk") is worth a statement: at most one a second."""
        now = time.monotonic()
        if now < self._next.get(sign, 0.0):
            return False
        self._next[sign] = now + _SIGN_EVERY_S
        return True

    async def greeting(self, begun_at_monotonic: float) -> None:
        """Record a server's greeting as a sign that port 25 is open."""
        await self._database.persist("greeting", self._moment(begun_at_monotonic), self._most_apart_s)

    async def good_talk(self, begun_at_monotonic: float, host: str) -> None:
        """Record a company's normal session as a proof, at most one a second."""
        if self.is_due("good_talk"):
            detail = f"{host} greeted a session begun later"
            await self._database.persist("good_talk", self._moment(begun_at_monotonic), detail, self._most_apart_s)

    def _moment(self, monotonic: float) -> datetime:
        # Computed once, not at each try: an outage of Postgres must not make a session look later than it was.
        return self._database.now() - timedelta(seconds=time.monotonic() - monotonic)
