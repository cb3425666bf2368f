"""Keeps what the controls of a worker run have shown of its own way, for all workers that weigh what it met.

Postgres keeps the proofs, their chain and the stretches of trouble. gate/evidence.py decides what they mean.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ct_stream.gate.evidence import WINDOW_S, Way, confirmed, unproven
from ct_stream.gate.questions import ControlKind
from ct_stream.store.parked import LEASE_S
from ct_stream.store.worker_record import ALIVE_S

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import asyncpg

    from ct_stream.gate.evidence import Window
    from ct_stream.gate.questions import ControlAnswer
    from ct_stream.gate.waits import Wait
    from ct_stream.store.database import Database

_SIGN_EVERY_S = 1.0
_QUIET_S = 12.0  #: two beats and a little: a worker that gives no sign for so long may have ended
_CHAIN_SLACK_S = 3.0  #: beyond two intervals, for a poll and a slow statement


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWays:
    """What a worker run has proven of its own way, and whether it will ever prove anything again."""

    ways: Mapping[ControlKind, Way]
    is_gone: bool
    unsure_s: float = 0.0  #: it may have ended; that is known in so many seconds
    egress: str = ""  #: it asked from; "" if that is not known any more


class ControlLedger:
    """The controls of one worker run, where all others can read them."""

    def __init__(
        self, database: Database, interval_s: float, worker: str = "worker", *, window_s: float = WINDOW_S
    ) -> None:
        """`worker` is the run. It asks a control at most every `interval_s`, and at least every `window_s`."""
        self._database = database
        self._interval_s = interval_s
        self._window_s = window_s
        self.worker = worker
        #: How far apart two proofs of one chain may be. While somebody waits, a control is asked in each interval.
        self._most_apart_s = 2 * interval_s + _CHAIN_SLACK_S
        self._next: dict[str, float] = {}  # by kind of sign: when the next one is worth a statement
        self._is_begun = False

    async def begin_record(self) -> None:
        """Write the rows of this run, once."""
        if not self._is_begun:
            await self._database.persist("make_controls", self.worker, [kind.value for kind in ControlKind])
            self._is_begun = True

    async def own(self) -> Mapping[ControlKind, Way]:
        """Return what is known of this run's own ways."""
        await self.begin_record()
        return (await self.of_runs([self.worker]))[self.worker].ways

    async def state(self, kind: ControlKind) -> Way:
        """Return what is known of this run's own way of `kind`."""
        return (await self.own())[kind]

    async def of_runs(self, runs: Collection[str]) -> dict[str, RunWays]:
        """Return what these runs have proven; one that is not in it has never begun to prove anything.

        One that has given no sign for a while may have ended, or not. And while Postgres is away nobody can give one:
        who has just been connected cannot tell that from an end.
        """
        rows = await self._database.persist("control", list(runs), ALIVE_S)
        found: dict[str, dict[ControlKind, Way]] = {}
        signs: dict[str, asyncpg.Record] = {}
        for row in rows:
            self._database.saw_clock(row["now"])
            found.setdefault(row["worker"], {})[ControlKind(row["kind"])] = _way(row)
            signs[row["worker"]] = row
        return {run: self._of_run(run, ways, signs[run]) for run, ways in found.items()}

    def _of_run(self, run: str, ways: Mapping[ControlKind, Way], sign: asyncpg.Record) -> RunWays:
        is_gone, unsure_s = bool(sign["is_gone"]) and run != self.worker, 0.0
        if is_gone and not sign["has_ended"]:
            unsure_s = max(0.0, ALIVE_S - self._database.heard_for_s)
        elif run != self.worker and not is_gone and sign["quiet_s"] > _QUIET_S:
            unsure_s = max(1.0, ALIVE_S - sign["quiet_s"])
        is_gone = is_gone and not unsure_s
        return RunWays(
            ways={kind: replace(way, is_gone=is_gone) for kind, way in ways.items()},
            is_gone=is_gone,
            unsure_s=unsure_s,
            egress=sign["egress"] or "",
        )

    async def confirm(
        self, kind: ControlKind, window: Window | None, *, in_chain: bool = False
    ) -> ControlAnswer | Wait:
        """Return the proof for an answer that failed in this window (None: just now), or the wait for one."""
        if window is None:
            return unproven(kind)
        return confirmed(kind, await self.state(kind), window, in_chain=in_chain)

    async def begin(self, kind: ControlKind) -> datetime | None:
        """Take the right to ask a control now, if one is due; return when it began, None: not now."""
        await self.begin_record()
        rows = await self._database.persist(
            "begin_control", kind.value, self._interval_s, LEASE_S, self.worker, self._window_s
        )
        return rows[0]["started_at"] if rows else None

    async def succeeded(self, kind: ControlKind, begun_at: datetime, detail: str) -> None:
        """Record a proof, and wake the companies that it serves."""
        await self.begin_record()
        await self._database.persist("control_succeeded", kind.value, begun_at, detail, self._most_apart_s, self.worker)

    async def failed(self, kind: ControlKind, detail: str) -> None:
        """Record that this run's own way is broken."""
        await self.begin_record()
        await self._database.persist("control_failed", kind.value, detail, self.worker)

    def is_due(self, sign: str) -> bool:
        """Return whether a sign such as "greeting:smtp" is worth a statement: at most one of its kind a second."""
        now = time.monotonic()
        if now < self._next.get(sign, 0.0):
            return False
        self._next[sign] = now + _SIGN_EVERY_S
        return True

    async def greeting(self, begun_at_monotonic: float, way: ControlKind = ControlKind.SMTP) -> None:
        """Record a server's greeting as a sign that port 25 is open, over IPv4 or IPv6."""
        moment = self._moment(begun_at_monotonic)
        await self.begin_record()
        await self._database.persist("greeting", moment, self._most_apart_s, self.worker, way.value)

    async def good_talk(self, begun_at_monotonic: float, host: str, way: ControlKind = ControlKind.SMTP) -> None:
        """Record a company's normal session as a proof, at most one a second of each way."""
        if self.is_due(f"good_talk:{way}"):
            detail, moment = f"{host} greeted a session begun later", self._moment(begun_at_monotonic)
            await self.begin_record()
            await self._database.persist("good_talk", moment, detail, self._most_apart_s, self.worker, way.value)

    def _moment(self, monotonic: float) -> datetime:
        # Computed once, not at each try: an outage of Postgres must not make a session look later than it was.
        return self._database.now() - timedelta(seconds=time.monotonic() - monotonic)


def _way(row: asyncpg.Record) -> Way:
    return Way(
        ok_begun_at=row["ok_begun_at"],
        ok_detail=row["ok_detail"],
        failed_at=row["failed_at"],
        failed_detail=row["failed_detail"],
        trouble_from=row["trouble_from"],
        trouble_until=row["trouble_until"],
        proven_since=row["proven_since"],
        control_at=row["control_at"],
        earlier=tuple(zip(row["began"], row["ended"], strict=True)),
    )
