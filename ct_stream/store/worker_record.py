"""Keeps a row for each worker run: where it runs, with which limits and patterns, and whether it is ready.

All workers take from the same limits, so two with different values would each keep to another limit than the other.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import orjson

from ct_stream.gate.toolbox_change import differences
from ct_stream.store.outage import AGAIN, OUTAGE
from ct_stream.texts import for_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ct_stream.store.database import Database

log = logging.getLogger(__name__)

BEAT_S = 5.0
ALIVE_S = 30.0  #: how long after its last beat a worker that did not say goodbye still counts as running


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What a worker says of itself at one moment."""

    troubles: Mapping[str, str]  #: why it is not ready, by part; empty: it is ready
    partitions: Sequence[int]  #: of spine.created that are assigned to it
    running: int  #: companies in hand
    notes: Mapping[str, str] = field(default_factory=dict)  #: what else is worth knowing, by part
    address: str = ""  #: its address of IPv4, as a control's server last saw it; empty: none has named it


class WorkerRecord:
    """The row of this run."""

    def __init__(
        self, database: Database, *, worker: str, machine: str, egress: str, version: str, toolbox: Mapping[str, Any]
    ) -> None:
        self._database = database
        self._worker = worker
        self._egress = egress
        self._toolbox = toolbox
        self._fixed = (worker, machine, egress, version, orjson.dumps(toolbox).decode())

    async def begin(self) -> str | None:
        """Write the row. Return why this worker must not run beside others, in a sentence; None if it may."""
        # Before the row, which would make the name of our egress one that is known.
        for row in await self._database.persist("begin_egress", self._worker, self._egress):
            log.warning(
                "The egress %s is a new name, and another one is halted or closed there: guardrail %s holds it too",
                self._egress,
                row["rail"],
                extra={"action": "new_egress", "rail": row["rail"]},
            )
        # Without the row nobody could be compared with: this one beat is waited for.
        await self._database.persist(
            "worker_beat", *self._row(Beat(troubles={"start": "starting"}, partitions=(), running=0))
        )
        rows = await self._database.persist("worker_with_another_toolbox", self._worker, ALIVE_S)
        if not rows:
            return None
        other = rows[0]
        changes = differences(self._toolbox, orjson.loads(other["toolbox"]))
        await self.end()
        return (
            f"this worker's toolbox differs from that of {other['worker']}, seen {other['seen_s_ago']:.0f} s ago: "
            f"{'; '.join(changes)}. All workers take from the same limits: give them the same CT_TOOLBOX, or accept "
            "this one with `ct-stream toolbox accept --reason ...` and restart the others"
        )

    async def beat(self, beat: Beat) -> None:
        """Write what this worker says of itself now. An outage costs a beat: nobody waits for one."""
        try:
            await self._database.run("worker_beat", *self._row(beat))
        except (*AGAIN, *OUTAGE) as error:
            log.debug("A heartbeat was not written: %s", error)

    def _row(self, beat: Beat) -> tuple[Any, ...]:
        """Return the parameters of the query `worker_beat`."""
        return (
            *(*self._fixed, _as_json(beat.troubles), _as_json(beat.notes)),
            *(list(beat.partitions), beat.running, beat.address or None),
        )

    async def end(self) -> None:
        """Note that this run has ended; without an answer from Postgres the row ends by its age."""
        try:
            await self._database.run("worker_ended", self._worker)
        except (*AGAIN, *OUTAGE, asyncpg.PostgresError):
            pass


def _as_json(sentences: Mapping[str, str]) -> str:
    return for_json({part: sentence.replace("\0", "") for part, sentence in sentences.items()})
