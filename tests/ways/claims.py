"""Did one worker's broken way harm anybody? Judged by the outcomes, and by what the mail servers said to whom."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from uuid import UUID

    from ct_stream.local.farm import FarmLog
    from tests.ways.fleet import Fleet

DECIDED_S = 60.0  #: from being produced to the outcome

_COMPANIES = """
SELECT s.domain, o.failure_code, o.reason, convert_from(o.value, 'UTF8')::jsonb ->> 'method_type' AS method_type,
    extract(epoch FROM o.recorded_at - s.created_at)::float AS took_s,
    extract(epoch FROM clock_timestamp() - s.created_at)::float AS age_s,
    p.reason AS waits_for
FROM outreach.outreach AS s LEFT JOIN outreach.ct_outcomes AS o USING (outreach_id)
    LEFT JOIN outreach.ct_passes AS p USING (outreach_id)
WHERE s.outreach_id = ANY ($1) ORDER BY s.created_at
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """A living company, whose info@ exists and nobody else, and what has become of it."""

    domain: str
    code: str | None  #: PASS or the failure's; None: undecided
    reason: str | None
    method: str | None
    took_s: float | None
    age_s: float
    waits_for: str | None


async def companies(fleet: Fleet, ids: Sequence[UUID]) -> list[Company]:
    """Return what has become of these companies."""
    rows = await fleet.stack.admin.fetch(_COMPANIES, ids)
    return [
        Company(
            domain=row["domain"],
            code=None if row["took_s"] is None else row["failure_code"] or "PASS",
            reason=row["reason"], method=row["method_type"], took_s=row["took_s"], age_s=row["age_s"],
            waits_for=row["waits_for"],
        )
        for row in rows
    ]  # fmt: skip


def wrong(found: Iterable[Company], log: FarmLog, trusted: Collection[str]) -> list[str]:
    """Return what does not hold of outcomes: all are living companies, and a PASS has its yes from a trusted way.

    `trusted` are the addresses of workers that can learn the truth.
    """
    accepted_from: dict[str, set[str]] = defaultdict(set)
    for session in log.sessions():
        for recipient, reply in session.recipients:
            local, _, domain = recipient.rpartition("@")
            if local == "info" and reply.startswith("2"):
                accepted_from[domain].add(session.peer)
    decided = [company for company in found if company.code is not None]
    failed = [company for company in decided if company.code != "PASS"]
    passed = [company for company in decided if company.code == "PASS"]
    invented = [company for company in passed if company.method != "info"]
    untrusted = [company for company in passed if not accepted_from[company.domain] & set(trusted)]
    broken = []
    if failed:
        broken.append(
            f"{len(failed)} of {len(decided)} decided companies failed, and all of them live: {_some(failed)}"
        )
    if invented:
        broken.append(f"{len(invented)} passed with {invented[0].method!r}, which no mail server accepts")
    if untrusted:
        broken.append(
            f"{len(untrusted)} passed with no yes that a worker with a whole way heard, such as {untrusted[0].domain}"
        )
    return broken


def late(found: Iterable[Company]) -> list[str]:
    """Return what does not hold of the time that companies took."""
    undecided = [company for company in found if company.took_s is None]
    slow = sorted(company.took_s for company in found if company.took_s is not None and company.took_s > DECIDED_S)
    broken = []
    if undecided:
        waits = sorted({company.waits_for or "nothing that Postgres knows of" for company in undecided})
        broken.append(
            f"{len(undecided)} undecided, the oldest for {max(company.age_s for company in undecided):.0f} s; they wait"
            f" for: {' | '.join(waits)[:600]}"
        )
    if slow:
        broken.append(f"{len(slow)} decided only after more than {DECIDED_S:g} s, the slowest after {slow[-1]:.0f} s")
    return broken


def took(found: Iterable[Company]) -> dict[str, float | int]:
    """Return figures of how long companies took, for people."""
    times = sorted(company.took_s for company in found if company.took_s is not None)
    if not times:
        return {"decided": 0}
    parts = {"median_s": 0.5, "p70_s": 0.7, "p95_s": 0.95}
    of_parts = {name: round(times[int(len(times) * part)], 2) for name, part in parts.items()}
    return {"decided": len(times), **of_parts, "slowest_s": round(times[-1], 2)}


def _some(failed: Sequence[Company]) -> str:
    by_code: dict[str, list[str]] = defaultdict(list)
    for company in failed:
        by_code[company.code or ""].append(company.reason or "")
    return "; ".join(f"{len(reasons)} {code} ({reasons[0][:200]})" for code, reasons in by_code.items())
