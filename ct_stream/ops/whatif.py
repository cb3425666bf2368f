"""Recompute recorded outcomes with other rules: which would change, how, and for which can nobody know?

The evidence for a change of the pattern list (the runbook: "High NO-PATTERN rate: review email pattern list").
Reads the ledger, in one read-only transaction; asks nobody and changes nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

from ct_stream.gate.recompute import NeverAsked, recompute
from ct_stream.gate.transcript import from_json
from ct_stream.gate.verdicts import Failed, Held, Passed
from ct_stream.ops.reader import reader

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    import asyncpg

    from ct_stream.gate.rules import Rules
    from ct_stream.settings import Settings

SAME, CHANGED, CANNOT_TELL, UNREADABLE = "same", "changed", "cannot tell", "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recount:
    """One company, as it was decided and as the other rules would decide it."""

    outreach_id: UUID
    domain: str | None
    was: str  #: such as "FAIL CT-M-NO-PATTERN" or "PASS info 0.70"
    would_be: str  #: the same words, or what cannot be told
    kind: str  #: same, changed, cannot tell, unreadable


@dataclass(slots=True, kw_only=True)
class WhatIf:
    """All outcomes of the span, recomputed."""

    rules_version: str
    kinds: Counter[str] = field(default_factory=Counter)
    moves: Counter[tuple[str, str, str]] = field(default_factory=Counter)  #: (kind, was, would_be), not the same ones
    decided_by: Counter[str] = field(default_factory=Counter)  #: versions of the rules that decided
    companies: list[Recount] = field(default_factory=list)  #: those that change, up to a limit

    @property
    def outcomes(self) -> int:
        """Return how many outcomes were looked at."""
        return self.kinds.total()

    def add(self, recount: Recount, rules_version: str, limit: int) -> None:
        """Count one company."""
        self.kinds[recount.kind] += 1
        self.decided_by[rules_version] += 1
        if recount.kind != SAME:
            self.moves[recount.kind, recount.was, recount.would_be] += 1
        if recount.kind == CHANGED and len(self.companies) < limit:
            self.companies.append(recount)


async def whatif(settings: Settings, rules: Rules, *, since: timedelta, limit: int) -> WhatIf:
    """Recompute the gate's own outcomes of the last `since` under `rules`. Raises SettingsError or ServiceTrouble."""
    result = WhatIf(rules_version=rules.version)
    async with reader(settings) as read:
        async for row in read.each("transcripts", since):
            result.add(recount(row, rules), row["rules_version"] or "", limit)
    return result


def recount(row: asyncpg.Record, rules: Rules) -> Recount:
    """Return one row of the query `transcripts`, recomputed."""
    outreach_id: UUID = row["outreach_id"]
    was = _was(row)
    try:
        exchanges = from_json(orjson.loads(row["transcript"]))
        result = recompute(outreach_id, exchanges, rules)
    except (KeyError, ValueError, TypeError):
        kind, would_be = UNREADABLE, "a transcript of another version"
    else:
        match result:
            case NeverAsked(question=question):
                kind, would_be = CANNOT_TELL, f"{question} was never asked"
            case Held(by=by):
                kind, would_be = CHANGED, f"waits ({by})"
            case Passed() | Failed():
                would_be = _words(result)
                kind = SAME if would_be == was else CHANGED
    return Recount(outreach_id=outreach_id, domain=row["domain"], was=was, would_be=would_be, kind=kind)


def _was(row: asyncpg.Record) -> str:
    if row["failure_code"] is not None:
        return f"FAIL {row['failure_code']}"
    try:
        body = orjson.loads(row["value"])
        return _pass_words(body["method_type"], float(body["confidence_score"]), is_catchall=body["is_catchall"])
    except (KeyError, ValueError, TypeError):
        return "PASS"  # nothing was published, or in a form of another version


def _words(verdict: Passed | Failed) -> str:
    if isinstance(verdict, Failed):
        return f"FAIL {verdict.code.value}"
    return _pass_words(verdict.method_type, verdict.confidence, is_catchall=verdict.is_catchall)


def _pass_words(method_type: str, confidence: float, *, is_catchall: bool) -> str:
    return f"PASS {method_type} {confidence:.2f}{' catch-all' if is_catchall else ''}"
