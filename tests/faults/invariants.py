"""Did the promise hold, as seen from outside? Topics, ledger, rows, offsets, and what the mail farm was asked.

The numbers are those of the invariants that `ct-stream verify` and docs/faults.md go by.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

from ct_stream.gate.failures import FailureCode
from ct_stream.local.farm.scenarios import ALL_SCENARIOS
from ct_stream.store.ledger import headers_from_json
from ct_stream.stream.topology import CT_FAIL, CT_PASS, CT_REJECTED, SPINE_CREATED
from tests.faults.pauses import pauses

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from ct_stream.local.farm.log import Session
    from tests.faults.harness import Stack

_SLACK_S = 0.01  #: two processes' looks at one monotonic clock


def planned(domain: str | None) -> str:
    """Return the outcome that a company of this domain must come to, by its name."""
    if domain is None:
        return FailureCode.NO_DOMAIN.value
    return ALL_SCENARIOS[domain.partition("-")[0]].expected.outcome


@dataclass
class Found:
    """What does not hold, and figures for people."""

    broken: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)

    def expect(self, holds: bool, invariant: int, what: str) -> None:
        if not holds:
            self.broken.append(f"invariant {invariant}: {what}")


async def wait_at_rest(stack: Stack, companies: int, within_s: float) -> int:
    """Wait until so many companies have a published outcome and nothing is undecided; return how many have one."""
    deadline = time.monotonic() + within_s
    query = """
    SELECT (SELECT count(*) FROM outreach.ct_outcomes) AS decided,
        (SELECT count(*) FROM outreach.ct_outcomes WHERE published_at IS NULL AND topic IS NOT NULL) AS unpublished,
        (SELECT count(*) FROM outreach.ct_passes) AS undecided
    """
    while True:
        [row] = await stack.admin.fetch(query)
        if (row["decided"] >= companies and not row["unpublished"] and not row["undecided"]) or (
            time.monotonic() > deadline
        ):
            return int(row["decided"])
        await asyncio.sleep(0.2)


async def ledger_hashes(stack: Stack) -> dict[UUID, str]:
    """Return a digest of each final row, to be compared with a later look (invariant 6)."""
    rows = await stack.admin.fetch(
        """
        SELECT o.outreach_id, md5(concat_ws('|', to_jsonb(o) - 'publish_until' - 'published_at', to_jsonb(t),
            (SELECT jsonb_agg(to_jsonb(e)) FROM outreach.company_target_errors AS e
            WHERE e.outreach_id = o.outreach_id))) AS digest
        FROM outreach.ct_outcomes AS o LEFT JOIN outreach.company_target AS t USING (outreach_id)
        """
    )
    return {row["outreach_id"]: row["digest"] for row in rows}


async def check(
    stack: Stack,
    domains: dict[UUID, str | None],
    *,
    kills: int | Mapping[str, int] = 0,
    pause_s: float | None = 0.0,
    before: Sequence[dict[UUID, str]] = (),
    junk: int = 0,
    exposed: Collection[UUID] = (),
    voided: Mapping[str, int] | None = None,
) -> Found:
    """Check what must hold once the stack is at rest.

    `domains` are the companies that were produced. `kills` is how often a worker was killed, over all or while the
    company of a domain was under way: questions whose answers were lost then may have been put again. `before` are
    earlier `ledger_hashes`. `pause_s` is None where a worker was frozen with open sessions, which it cannot close.
    `junk` events have the key b"junk". `exposed` are companies whose outcome rests on a lie that no control could have
    told yet. `voided`: how many answers about a recipient were heard on a broken way, so that they count as none.
    """
    found = Found()
    rows = {row["outreach_id"]: row for row in await stack.admin.fetch("SELECT * FROM outreach.ct_outcomes")}
    records = await stack.records(CT_PASS, CT_FAIL)
    await _rows_and_plan(stack, found, domains, rows, exposed)
    _topics(found, rows, records)
    await _offsets(stack, found, domains, junk)
    now = await ledger_hashes(stack)
    for hashes in before:
        changed = [i for i, digest in hashes.items() if now.get(i) != digest]
        found.expect(not changed, 6, f"{len(changed)} final rows changed or went, such as {changed[:3]}")
    await check_farm(stack, found, domains, rows, kills=kills, pause_s=pause_s, voided=voided)
    return found


async def _rows_and_plan(
    stack: Stack,
    found: Found,
    domains: dict[UUID, str | None],
    rows: dict[UUID, Any],
    exposed: Collection[UUID],
) -> None:
    missing = [i for i in domains if i not in rows]
    found.expect(not missing, 1, f"{len(missing)} companies have no outcome, such as {missing[:3]}")
    invented = [i for i in rows if i not in domains]
    found.expect(not invented, 1, f"{len(invented)} outcomes of nobody, such as {invented[:3]}")
    wrong = [
        (domain, rows[i]["failure_code"] or "PASS", rows[i]["reason"])
        for i, domain in domains.items()
        if i in rows and i not in exposed and (rows[i]["failure_code"] or "PASS") != planned(domain)
    ]
    found.expect(not wrong, 1, f"{len(wrong)} outcomes are not as planned, such as {wrong[:3]}")
    left = [row["outreach_id"] for row in await stack.admin.fetch("SELECT outreach_id FROM outreach.ct_passes")]
    both = [i for i in left if i in rows]
    found.expect(not both, 1, f"{len(both)} companies are decided and still wait, such as {both[:3]}")
    unpublished = [i for i, row in rows.items() if row["published_at"] is None]
    found.expect(not unpublished, 4, f"{len(unpublished)} outcomes are not published, such as {unpublished[:3]}")
    errors: dict[UUID, list[str]] = defaultdict(list)
    for row in await stack.admin.fetch("SELECT outreach_id, failure_code FROM outreach.company_target_errors"):
        errors[row["outreach_id"]].append(row["failure_code"])
    status = {
        row["outreach_id"]: row["execution_status"]
        for row in await stack.admin.fetch("SELECT outreach_id, execution_status FROM outreach.company_target")
    }
    for i, row in rows.items():
        code = row["failure_code"]
        found.expect(errors[i] == ([code] if code else []), 5, f"{i} ({code or 'PASS'}) has the errors {errors[i]}")
        if code != FailureCode.NOT_FOUND.value:
            found.expect(status.get(i) == ("failed" if code else "ready"), 5, f"{i} is {status.get(i)}, code {code}")


def _topics(found: Found, rows: dict[UUID, Any], records: Sequence[Any]) -> None:
    copies: dict[UUID, list[tuple[Any, ...]]] = defaultdict(list)
    for record in records:
        copies[UUID(record.key.decode())].append((record.topic, record.value, tuple(record.headers)))
    for i, row in rows.items():
        kept = (row["topic"], row["value"], headers_from_json(row["headers"]))
        found.expect(i in copies, 4, f"{i} is stamped and on no topic")
        found.expect(set(copies[i]) <= {kept}, 3, f"{i}: a record differs from the ledger's bytes")
    strangers = [i for i in copies if i not in rows]
    found.expect(not strangers, 4, f"{len(strangers)} published without a row, such as {strangers[:3]}")
    found.figures["records"] = len(records)
    found.figures["repeats on the topics"] = len(records) - len(copies)


async def _offsets(stack: Stack, found: Found, domains: dict[UUID, str | None], junk: int) -> None:
    """Invariant 2: every input record is accounted for, and the group stands behind the last one."""
    last: dict[int, int] = {}
    events = 0
    unreadable: set[tuple[int, int]] = set()
    for record in await stack.records(SPINE_CREATED):
        events += 1
        last[record.partition] = max(last.get(record.partition, -1), record.offset)
        if record.key == b"junk":
            unreadable.add((record.partition, record.offset))
            continue
        outreach_id = UUID(orjson.loads(record.value)["outreach_id"])
        found.expect(outreach_id in domains, 2, f"an event of {outreach_id}, which nobody minted")
    rejected = {
        (int(headers["ct_source_partition"]), int(headers["ct_source_offset"]))
        for headers in (dict(record.headers) for record in await stack.records(CT_REJECTED))
    }
    found.expect(
        rejected == unreadable and len(unreadable) >= junk,
        2,
        f"{len(unreadable)} are unreadable, {len(rejected)} rejected",
    )
    deadline = time.monotonic() + 10  # commits follow once a second
    while True:
        committed = await stack.committed()
        behind = {p: (committed.get(p), at) for p, at in last.items() if committed.get(p, -1) < at + 1}
        if not behind or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.3)
    found.expect(not behind, 2, f"the group stands before the last record (partition: committed, last): {behind}")
    found.figures["events"] = events


async def check_farm(
    stack: Stack,
    found: Found,
    domains: dict[UUID, str | None],
    rows: dict[UUID, Any],
    *,
    kills: int | Mapping[str, int],
    pause_s: float | None,
    voided: Mapping[str, int] | None = None,
) -> None:
    """Check what the mail servers and resolvers saw: invariants 7, 8 and 9."""
    log = await stack.farm.log()
    voided = voided or {}
    asked: Counter[str] = Counter()
    refused: set[str] = set()
    sessions: dict[str, list[Session]] = defaultdict(list)
    for session in log.sessions():
        recipients = session.recipients
        for recipient, reply in recipients:
            # 421 closes the session in place of an answer, and silence is none: the question is put again.
            asked[recipient] += bool(reply) and not reply.startswith("421")
            if reply.startswith("55"):
                refused.add(recipient.rpartition("@")[2])
        if recipients and session.domain is not None:
            sessions[session.domain].append(session)
    # 7: a FAIL of stage M has its cause in what a server or a resolver really said.
    absent = {q.name for q in log.queries() if q.rtype == "MX" and q.answer in ("NXDOMAIN", "nodata", "answer")}
    for i, row in rows.items():
        domain = domains.get(i)
        if row["failure_code"] == FailureCode.NO_PATTERN.value:
            found.expect(domain in refused, 7, f"{domain} failed, and no server refused a mailbox of it")
        if row["failure_code"] == FailureCode.NO_MX.value:
            found.expect(domain in absent, 7, f"{domain} failed, and no resolver was asked for it")
    # 9: an answered question is put again only by a crash, and then once, or if a broken way made the answer void.
    often = [
        f"{recipient} {n} times, with {most} kills, {voided.get(recipient, 0)} answers void"
        for recipient, n in asked.items()
        if n - voided.get(recipient, 0)
        > 1 + (most := kills if isinstance(kills, int) else kills.get(recipient.rpartition("@")[2], 0))
    ]
    found.expect(not often, 9, f"{len(often)} mailboxes were asked for too often: {often[:3]}")
    found.figures["mailboxes asked again"] = sum(1 for n in asked.values() if n > 1)
    unexplained = sum(n - voided.get(recipient, 0) > 1 for recipient, n in asked.items())
    found.figures["and for no reason that is known"] = unexplained
    # 8: one session at a domain at a time, and a pause after each.
    for domain, some in sessions.items() if pause_s is not None else ():
        for gap in pauses(some):
            found.expect(
                gap >= (pause_s or 0.0) - _SLACK_S, 8, f"{domain}: two sessions {gap:.3f} s apart, not {pause_s} s"
            )
    found.figures["sessions"] = len(log.sessions())
