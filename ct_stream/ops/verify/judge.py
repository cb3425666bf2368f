"""Does all that is known of one company agree? Pure: rows and records in, disagreements out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.output_stage import FAIL_TOPIC, PASS_TOPIC
from ct_stream.ops.verify.kinds import Kind
from ct_stream.ops.verify.report import Example

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TOPICS = (PASS_TOPIC, FAIL_TOPIC)
_KNOWN_CODES = {code.value for code in FailureCode} - {FailureCode.ALREADY_PROCESSED.value}
_STATUS = {"PASS": ("ready",), "FAIL": ("failed",)}
_FINAL = ("ready", "failed", "blocked")  #: any other word is one that waits for the gate


class Event(NamedTuple):
    """A readable record of spine.created."""

    partition: int
    offset: int
    at_ms: int


class Published(NamedTuple):
    """A record of ct.pass or ct.fail."""

    topic: int  #: index in TOPICS
    partition: int
    offset: int
    digest: bytes


class Recorded(NamedTuple):
    """All that Postgres has of one company, in the order of the query `verify_companies`."""

    id: bytes
    outcome: str | None = None
    source: str | None = None
    failure_code: str | None = None
    topic: str | None = None
    digest: bytes | None = None  #: of the bytes to publish, see spill.digest_of
    must_be_there: bool | None = None  #: it was stamped before the topics' ends were read, and is kept for ever
    is_unpublished: bool | None = None  #: and should be published by now
    pass_state: str | None = None
    pass_reason: str | None = None
    is_waiting_long: bool | None = None
    is_overdue: bool | None = None
    status: str | None = None  #: of company_target
    errors: int = 0
    first_code: str | None = None  #: of the errors rows, in their alphabet's order
    in_spine: bool = False
    is_spine_old: bool | None = None  #: None: its age is not known
    says_otherwise: bool = False  #: its company_target row was final before, was not written, and does not agree
    has_no_errors_row: bool = False  #: a foreign key binds errors rows to companies, and it is a NOT-FOUND
    says_instead: str | None = None  #: the other final columns of company_target, where they differ from the ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What the group had done when the comparison began."""

    committed: Mapping[int, int]  #: partition of spine.created to offset; what is below is done with
    old_ms: int  #: an event of before that time should be decided


def judge(row: Recorded, events: Sequence[Event], records: Sequence[Published], marks: Marks) -> Iterator[Example]:
    """Yield what does not agree about one company; notes too."""
    if row.outcome is not None:
        if row.source == "gate":
            yield from _rows_of_ours(row)
        elif not _is_adopted_status(row.outcome, row.status):
            yield _of(row, Kind.TARGET_ROW, f"{row.source} {row.outcome}, but company_target says {row.status}")
        if row.is_unpublished:
            yield _of(row, Kind.UNPUBLISHED, f"{row.outcome} for {row.topic}")
    else:
        yield from _undecided(row, events, marks)
    if records:
        yield from _records(row, records)
    if row.must_be_there and not any(TOPICS[record.topic] == row.topic for record in records):
        yield _of(row, Kind.NOT_ON_TOPIC, f"{row.outcome}, marked as published, but not on {row.topic}")


def _rows_of_ours(row: Recorded) -> Iterator[Example]:
    """A row goes with its company, where a foreign key says so: without a spine row none must be there."""
    is_not_found = row.failure_code == FailureCode.NOT_FOUND.value
    is_gone = not row.in_spine and not is_not_found
    yield from _errors_rows(row, may_have_none=row.has_no_errors_row or is_gone)
    if row.says_otherwise:
        yield _of(row, Kind.FOREIGN_ROW, f"{row.failure_code or row.outcome}, but company_target says {row.status}")
    elif is_not_found:
        if row.status in _FINAL:  # a row that waited there stays as it was
            yield _of(row, Kind.TARGET_ROW, f"FAIL {row.failure_code}, but company_target says {row.status}")
    elif row.status not in _STATUS[row.outcome or ""] and not (is_gone and row.status is None):
        has = "has no row" if row.status is None else f"says {row.status}"
        yield _of(row, Kind.TARGET_ROW, f"{row.failure_code or row.outcome}, but company_target {has}")
    elif row.says_instead is not None:
        what = row.failure_code or row.outcome
        yield _of(row, Kind.TARGET_ROW, f"{what}, but company_target says {row.says_instead}")


def _is_adopted_status(outcome: str, status: str | None) -> bool:
    """Return whether a row may say so; one with an errors row alone is adopted as a FAIL, whatever it says."""
    return status != "ready" if outcome == "FAIL" else status in ("ready", None)


def _errors_rows(row: Recorded, *, may_have_none: bool) -> Iterator[Example]:
    if row.outcome == "PASS":
        if row.errors:
            yield _of(row, Kind.ERRORS_ROW, f"PASS with {row.errors} errors rows, the first {row.first_code}")
    elif row.failure_code not in _KNOWN_CODES:
        yield _of(row, Kind.ERRORS_ROW, f"FAIL with the unknown code {row.failure_code}")
    elif row.errors == 0 and may_have_none:
        return
    elif row.errors != 1:
        yield _of(row, Kind.ERRORS_ROW, f"FAIL {row.failure_code} with {row.errors} errors rows")
    elif row.first_code != row.failure_code:
        yield _of(row, Kind.ERRORS_ROW, f"FAIL {row.failure_code}, but its errors row says {row.first_code}")


def _undecided(row: Recorded, events: Sequence[Event], marks: Marks) -> Iterator[Example]:
    if row.status in _FINAL:
        yield _of(row, Kind.FINAL_WITHOUT_ROW, f"company_target says {row.status}")
    if row.errors:
        yield _of(row, Kind.FINAL_WITHOUT_ROW, f"{row.errors} errors rows, the first {row.first_code}")
    if row.pass_state == "stuck":
        yield _of(row, Kind.STUCK, row.pass_reason or "")
        return
    if row.pass_state is not None:
        if row.is_overdue:
            yield _of(row, Kind.OVERDUE, row.pass_reason or "")
        elif row.is_waiting_long:
            yield _of(row, Kind.WAITING_LONG, row.pass_reason or "")
        return
    if not events:
        if row.in_spine and row.is_spine_old:
            yield _of(row, Kind.SPINE_WITHOUT_OUTCOME, "no readable event of this company is on the topic")
        elif row.in_spine and row.is_spine_old is None:
            yield _of(row, Kind.SPINE_OF_UNKNOWN_AGE, "no readable event of this company is on the topic")
        return
    for event in events:
        if event.offset < marks.committed.get(event.partition, 0):
            yield _at(row, Kind.EVENT_LOST, event, "committed, but without an outcome, a wait or a reject")
            return
    oldest = min(events, key=lambda event: event.at_ms)
    if oldest.at_ms < marks.old_ms:
        yield _at(row, Kind.EVENT_NOT_TAKEN_UP, oldest, "old, and still not committed")
    else:
        yield _at(row, Kind.NOT_COMMITTED, oldest, "in hand or not read yet")


def _records(row: Recorded, records: Sequence[Published]) -> Iterator[Example]:
    first = records[0]
    if row.outcome is None or row.topic is None:
        said = "no ledger row" if row.outcome is None else f"{row.source}: never to be published"
        yield _on(row, Kind.RECORD_WITHOUT_ROW, first, said)
    both = {record.topic for record in records} == {0, 1}
    if both:
        other = next(record for record in records if record.topic != first.topic)
        yield _on(row, Kind.PASS_AND_FAIL, first, f"and {_place(other)}; the ledger says {row.outcome or 'nothing'}")
    for topic in range(len(TOPICS)):
        copies = [record for record in records if record.topic == topic]
        if not copies:
            continue
        right = next((record for record in copies if record.digest == row.digest), None)
        odd = next((record for record in copies if record.digest != (right or copies[0]).digest), None)
        if odd is not None:
            whose = ", which is the ledger's" if right else ""
            said = f"other bytes or headers than {_place(right or copies[0])}{whose}"
            yield _on(row, Kind.COPIES_DIFFER, odd, said)
        if row.topic is None or (both and TOPICS[topic] != row.topic):
            continue  # told above
        if TOPICS[topic] != row.topic:
            yield _on(row, Kind.DIFFERS_FROM_LEDGER, copies[0], f"the ledger has {row.outcome} for {row.topic}")
        elif all(record.digest != row.digest for record in copies):
            yield _on(row, Kind.DIFFERS_FROM_LEDGER, copies[0], "other bytes, headers or key than the ledger's")


def _place(record: Published) -> str:
    return f"{TOPICS[record.topic]} partition {record.partition} offset {record.offset}"


def _of(row: Recorded, kind: Kind, detail: str) -> Example:
    return Example(kind=kind, outreach_id=row.id, detail=detail)


def _at(row: Recorded, kind: Kind, event: Event, detail: str) -> Example:
    return Example(
        kind=kind,
        outreach_id=row.id,
        topic="spine.created",
        partition=event.partition,
        offset=event.offset,
        detail=detail,
    )


def _on(row: Recorded, kind: Kind, record: Published, detail: str) -> Example:
    return Example(
        kind=kind,
        outreach_id=row.id,
        topic=TOPICS[record.topic],
        partition=record.partition,
        offset=record.offset,
        detail=detail,
    )
