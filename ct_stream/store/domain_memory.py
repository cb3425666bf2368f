"""Reads what a domain answered lately, whichever company and worker asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from ct_stream.gate.memory import FAIL_KEPT, MX_KEPT, PASS_KEPT, Memory, mx_alone, recalled
from ct_stream.gate.transcript import from_json
from ct_stream.store.batches import Batches
from ct_stream.store.guardrails import EVIDENCE_KEPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from ct_stream.store.database import Database

_AT_ONCE = 5000  #: rows of each table that one statement removes


class DomainMemory:
    """The domain memory, shared by all workers. The ledger writes it, together with the outcomes."""

    def __init__(self, database: Database, rules_version: str) -> None:
        self._database = database
        self._rules_version = rules_version
        self.recall: Batches[str, Memory] = Batches("recall", self._recall, outages=database)

    async def tidy(self) -> None:
        """Remove what nobody may use any more, in slices: no statement takes long, however much there is."""
        while (await self._database.persist("tidy", _AT_ONCE, PASS_KEPT, EVIDENCE_KEPT))[0]["is_more_left"]:
            pass

    async def _recall(self, domains: Sequence[str]) -> list[Memory]:
        rows = await self._database.fetch(
            "recall", list(set(domains)), self._rules_version, PASS_KEPT, FAIL_KEPT, MX_KEPT
        )
        found = {row["domain"]: read_memory(row) for row in rows}
        return [found[domain] for domain in domains]


def read_memory(row: asyncpg.Record) -> Memory:
    """Return what a row of ct_recall holds."""
    exchanges = recalled(from_json(orjson.loads(row["answers"]))) if row["answers"] else ()
    return Memory(
        answers=exchanges if row["is_current"] else (),
        mx=mx_alone(exchanges) if row["is_mx_current"] else (),
        answered_at=row["answered_at"],
        is_busy=row["is_busy"],
        has_begun=row["has_begun"],
    )
