"""Keeps undecided companies with their reasons and answers, and leases them to the worker that resumes them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import orjson

from ct_stream.gate.egress import DEFAULT
from ct_stream.gate.output_stage import Origin
from ct_stream.gate.records import Parked, Resumed
from ct_stream.gate.transcript import from_json, to_json
from ct_stream.gate.waits import WaitsOn
from ct_stream.store.batches import Batches
from ct_stream.store.worker_record import ALIVE_S

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from ct_stream.store.database import Database

_AT_ONCE = 1000  #: companies in one statement
LEASE_S = 20.0  #: how long a worker that went silent keeps its companies and domains; renewed four times as often


log = logging.getLogger(__name__)


class ParkedCompanies:
    """The undecided companies in Postgres. Once a wait is stored here, its event may be acked."""

    def __init__(self, database: Database, owner: str, worker_version: str, egress: str = DEFAULT) -> None:
        self._database = database
        self._owner = owner
        self._egress = egress
        self._version = worker_version
        self.park: Batches[Parked, None] = Batches(
            "park", self._park, order=lambda parked: parked.origin.outreach_id, outages=database
        )

    async def claim_due(
        self,
        limit: int,
        *,
        may_ask: bool = True,
        take_over: Collection[str] = ("way",),
        others_ask: bool = False,
    ) -> list[Resumed]:
        """Lease up to `limit` companies whose wait is over, and as many of those that others had to park.

        `may_ask`: this worker's own way is proven. Otherwise it takes only companies that need no network.
        `take_over`: what is in the way of other workers alone. `others_ask`: another egress is at work, which looks
        first at who met silence at this one.
        """
        first = self._egress if others_ask else None
        rows = await self._database.persist(
            "claim_due", self._owner, limit, LEASE_S, may_ask, list(take_over), first, self._egress
        )
        return [resumed for resumed in map(_readable, rows) if resumed is not None]

    async def count_for_own_way(self, most: int) -> int:
        """Return how many companies wait, at most `most`, that this worker parked because its own way is not proven."""
        return int((await self._database.persist("count_for_own_way", self._owner, most))[0]["companies"])

    async def to_take_over(self) -> list[str]:
        """Return the names of what companies wait for that only another worker has in its way."""
        return [row["what"] for row in await self._database.persist("to_take_over", self._owner, ALIVE_S, self._egress)]

    async def at_work(self) -> dict[str, str | None]:
        """Return the other workers that can decide companies now, with their egress; None where that is on trial."""
        rows = await self._database.persist("at_work", self._owner, ALIVE_S)
        return {row["worker"]: None if row["on_trial"] else row["egress"] for row in rows}

    async def renew_leases(self, ids: Collection[UUID], leases: Mapping[UUID, str]) -> None:
        """Renew the leases of these companies, and these leases of domains and places, if they are still held."""
        await self._database.persist(
            "renew_leases", self._owner, LEASE_S, list(ids), list(leases.values()), list(leases)
        )

    async def give_back(self, ids: Sequence[UUID]) -> None:
        """End the leases of these companies without any other change."""
        await self._database.persist("give_back", self._owner, list(ids))

    async def forget(self, outreach_id: UUID) -> None:
        """Remove the wait of a company that has an outcome."""
        await self._database.persist("forget", [outreach_id])

    async def retry_stuck(self) -> None:
        """Make companies due that are stuck since a worker of another version tried them."""
        while await self._database.persist("retry_stuck", self._version, _AT_ONCE):
            pass

    async def count_exception(
        self, origin: Origin, event_at: datetime | None, detail: str, traceback: str
    ) -> tuple[int, str]:
        """Count an exception in our own code for the company; return (exceptions so far, state)."""
        rows = await self._database.persist(
            "count_exception",
            origin.outreach_id,
            detail,
            traceback,
            origin.topic,
            origin.partition,
            origin.offset,
            event_at,
            origin.correlation_id,
            origin.traceparent,
            origin.correlation_header,
            self._version,
        )
        return (int(rows[0]["exceptions"]), str(rows[0]["state"]))

    async def stuck_lately(self) -> tuple[list[str], int]:
        """Return the tracebacks of companies that became stuck within the last hour, and how many were decided since.

        Of either at most 100; "since" is when the first of those companies became stuck.
        """
        row = (await self._database.persist("stuck_lately"))[0]
        return list(row["tracebacks"]), int(row["decided"])

    async def waiting_by_reason(self) -> list[tuple[str, str, int, datetime]]:
        """Return (state, reason, companies, oldest) for all undecided companies.

        Reads an entry of the index for each of them. Raises the errors of `outage.AGAIN` and `outage.OUTAGE`: nobody
        needs to wait for a count.
        """
        rows = await self._database.fetch("waiting_by_reason")
        return [(row["state"], row["reason"], row["companies"], row["oldest"]) for row in rows]

    async def wake_sleepers(self, sessions_per_provider: int) -> None:
        """Wake companies that a crash or a race left waiting."""
        await self._database.persist("wake_sleepers", sessions_per_provider, ALIVE_S)

    async def _park(self, parked: Sequence[Parked]) -> list[None]:
        last = {p.origin.outreach_id: p for p in parked}  # a statement can write the row of a company only once
        *columns, met_by, met_at, first_at, refused_at = (
            list(column)
            for column in zip(*(_row(one, self._owner, self._egress) for one in last.values()), strict=True)
        )
        await self._database.run("park", *columns, self._version, self._owner, met_by, met_at, first_at, refused_at)
        return [None] * len(parked)


def _row(parked: Parked, owner: str, egress: str) -> tuple[Any, ...]:
    """Return one company in the order of the arrays of the query `park`, and by whom its last failed answer was met."""
    origin, wait = parked.origin, parked.wait
    met_by = parked.met_by or owner
    return (
        origin.outreach_id,
        parked.domain,
        wait.reason.value,
        wait.detail,
        f"{wait.waits_on}:{met_by}" if wait.waits_on.is_control else wait.waits_on,
        -1.0 if wait.after_s is None else max(0.0, wait.after_s),
        orjson.dumps(to_json(parked.exchanges)).decode(),
        orjson.dumps(to_json([parked.pending])).decode() if parked.pending else None,
        round(parked.spent_s * 1000),
        parked.asked_at,
        parked.failed.value,
        origin.topic,
        origin.partition,
        origin.offset,
        parked.event_at,
        origin.correlation_id,
        origin.traceparent,
        origin.correlation_header,
        parked.looks,
        met_by,
        parked.met_at or egress,
        parked.first_at,
        parked.refused_at,
    )


def _readable(row: Any) -> Resumed | None:
    """Return what waits, or None for a row that no worker wrote, so that it does not hold up the others."""
    try:
        return _resumed(row)
    except Exception as error:
        log.error(
            "The wait of company %s in outreach.ct_passes cannot be read: %r",
            row["outreach_id"],
            error,
            extra={"action": "wait_unreadable", "outreach_id": str(row["outreach_id"])},
        )
        return None


def _resumed(row: Any) -> Resumed:
    pending = from_json(orjson.loads(row["pending"])) if row["pending"] else []
    return Resumed(
        origin=Origin(
            outreach_id=row["outreach_id"],
            topic=row["event_topic"] or "",
            partition=-1 if row["event_partition"] is None else row["event_partition"],
            offset=-1 if row["event_offset"] is None else row["event_offset"],
            correlation_id=row["correlation_id"],
            traceparent=row["traceparent"],
            correlation_header=row["correlation_header"],
        ),
        event_at=row["event_at"],
        domain=row["domain"],
        reason=row["reason"],
        exchanges=tuple(from_json(orjson.loads(row["answers"]))),
        pending=pending[0] if pending else None,
        spent_s=row["spent_ms"] / 1000,
        asked_at=row["asked_at"],
        failed_at=row["failed_at"],
        since=row["since"],
        exceptions=row["exceptions"],
        looks=row["looks"],
        waits_on=_waits_on(row["waits_on"] or ""),
        met_by=row["met_by"] or "",
        met_at=row["met_at"] or "",
        refused_at=row["refused_at"] or "",
    )


def _waits_on(name: str) -> WaitsOn:
    """Return what a company waits for; of a control without the run that has to ask it, which `met_by` names."""
    kind, _, rest = name.partition(":")
    return WaitsOn(f"control:{rest.partition(':')[0]}" if kind == "control" else name)
