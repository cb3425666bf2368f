"""Which disagreements are there, which promise does each one break, and what does a person do next?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_REPUBLISH = "ct-stream publish --undecided --older-than 1h"
_ENGINEERING = "send this output to Engineering. It does not repair itself, and no row may be changed by hand"


class Kind(StrEnum):
    """One kind of disagreement; the values are stable."""

    EVENT_LOST = "event_lost"
    EVENT_NOT_TAKEN_UP = "event_not_taken_up"
    EVENTS_REMOVED_UNREAD = "events_removed_unread"
    COMMITTED_PAST_END = "committed_past_end"
    UNREADABLE_NOT_REJECTED = "unreadable_not_rejected"
    REJECTED_WITHOUT_SOURCE = "rejected_without_source"
    SPINE_WITHOUT_OUTCOME = "spine_without_outcome"
    RECORD_WITHOUT_ROW = "record_without_row"
    PASS_AND_FAIL = "pass_and_fail"
    COPIES_DIFFER = "copies_differ"
    DIFFERS_FROM_LEDGER = "differs_from_ledger"
    NOT_ON_TOPIC = "not_on_topic"
    UNPUBLISHED = "unpublished"
    ERRORS_ROW = "errors_row"
    TARGET_ROW = "target_row"
    FINAL_WITHOUT_ROW = "final_without_row"
    FOREIGN_ROW = "foreign_row"
    GUARD_ALTERED = "guard_altered"

    STUCK = "stuck"
    WAITING_LONG = "waiting_long"
    OVERDUE = "overdue"
    SPINE_OF_UNKNOWN_AGE = "spine_of_unknown_age"
    NOT_COMMITTED = "not_committed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """What a kind says to a person."""

    invariant: int | None  #: its number in the README's list of promises; None: a note, no violation
    sentence: str
    todo: str


MEANINGS: dict[Kind, Meaning] = {
    Kind.EVENT_LOST: Meaning(
        invariant=2,
        sentence="committed events without outcome, wait or reject",
        todo=f"upstream sends them again: {_REPUBLISH}; then tell Engineering that they were committed too early",
    ),
    Kind.EVENT_NOT_TAKEN_UP: Meaning(
        invariant=1,
        sentence="old events that no worker has finished",
        todo="check that workers run, and what /readyz of each one says; the number of `ct-stream lag` should fall",
    ),
    Kind.EVENTS_REMOVED_UNREAD: Meaning(
        invariant=2,
        sentence="offsets that the topic's retention removed before the gate had committed them",
        todo=f"upstream sends what is undecided again: {_REPUBLISH}; keep spine.created for longer",
    ),
    Kind.COMMITTED_PAST_END: Meaning(
        invariant=2,
        sentence="partitions whose committed offset is past their end: new events there are skipped",
        todo="was spine.created deleted and created again, or is this another cluster? Delete the offsets of the group "
        "ct-stream while no worker runs, then start one with --first-start",
    ),
    Kind.UNREADABLE_NOT_REJECTED: Meaning(
        invariant=2,
        sentence="committed records that cannot be read and are not on ct.rejected",
        todo=_ENGINEERING,
    ),
    Kind.REJECTED_WITHOUT_SOURCE: Meaning(
        invariant=2,
        sentence="rejected records whose source is not in spine.created",
        todo="was spine.created deleted and created again? Then ct.rejected is about the old one; if not, "
        "tell Engineering",
    ),
    Kind.SPINE_WITHOUT_OUTCOME: Meaning(
        invariant=1,
        sentence="old spine rows without an event, an outcome or a wait",
        todo=f"upstream sends their events again: {_REPUBLISH}",
    ),
    Kind.RECORD_WITHOUT_ROW: Meaning(
        invariant=4,
        sentence="published records without a ledger row",
        todo="was the database restored from a backup, or does something else write to the topic? Stop the workers "
        "before more is decided twice, and tell Engineering",
    ),
    Kind.PASS_AND_FAIL: Meaning(
        invariant=3,
        sentence="companies on both ct.pass and ct.fail",
        todo="tell Engineering, and tell the hubs which one counts: the ledger's, which `ct-stream show ID` prints",
    ),
    Kind.COPIES_DIFFER: Meaning(
        invariant=3, sentence="copies of one ce_id that differ in bytes or headers", todo=_ENGINEERING
    ),
    Kind.DIFFERS_FROM_LEDGER: Meaning(
        invariant=3, sentence="published records that are not what the ledger holds", todo=_ENGINEERING
    ),
    Kind.NOT_ON_TOPIC: Meaning(
        invariant=4,
        sentence="outcomes that are stamped as published and are not on their topic",
        todo="was the topic created again, cleaned or given a retention, or is this another cluster? The hubs miss "
        "these companies; Engineering publishes the ledger's bytes again",
    ),
    Kind.UNPUBLISHED: Meaning(
        invariant=4,
        sentence="outcomes that were not published within 5 minutes",
        todo="check that a worker runs, and `kafka` on its /readyz; the worker publishes them by itself",
    ),
    Kind.ERRORS_ROW: Meaning(
        invariant=5,
        sentence="outcomes with wrong errors rows: a FAIL has exactly one, of its own known code, a PASS has none",
        todo=_ENGINEERING,
    ),
    Kind.TARGET_ROW: Meaning(
        invariant=5, sentence="outcomes whose company_target row is missing or says something else", todo=_ENGINEERING
    ),
    Kind.FINAL_WITHOUT_ROW: Meaning(
        invariant=5,
        sentence="final rows of company_target or company_target_errors without a ledger row",
        todo="the gate did not make them, and only the first `ct-stream migrate` adopts: find out what writes there, "
        "and set execution_status back to 'pending', or delete the errors row, if the gate is to decide them",
    ),
    Kind.FOREIGN_ROW: Meaning(
        invariant=5,
        sentence="outcomes whose company_target row was final before, by something else, and says otherwise",
        todo="find out what writes there; the outcome counts (`ct-stream show ID`), the row may be corrected by hand",
    ),
    Kind.GUARD_ALTERED: Meaning(
        invariant=6,
        sentence="triggers, functions or rights that are not as `ct-stream migrate` made them",
        todo="find out who changed them, and since when; then do what each line says",
    ),
    Kind.STUCK: Meaning(
        invariant=None,
        sentence="companies are stuck: our bug, no verdict",
        todo="send Engineering the traceback of `ct-stream show ID`; a worker of another version tries them again",
    ),
    Kind.WAITING_LONG: Meaning(
        invariant=None,
        sentence="companies have waited for a long time",
        todo="`ct-stream held` says why, and what ends it",
    ),
    Kind.OVERDUE: Meaning(
        invariant=None,
        sentence="companies whose wait ended, or whose worker went silent, more than 5 minutes ago",
        todo="check that workers run; they continue with these companies by themselves",
    ),
    Kind.SPINE_OF_UNKNOWN_AGE: Meaning(
        invariant=None,
        sentence="spine rows have no event, no outcome and no wait; how old they are is not known",
        todo="new rows need nothing; for old ones run `ct-stream publish --undecided --all`",
    ),
    Kind.NOT_COMMITTED: Meaning(
        invariant=None,
        sentence="companies have events that a worker has in hand or has not read yet",
        todo="nothing, as long as the number falls",
    ),
}


def is_note(kind: Kind) -> bool:
    """Return whether a kind breaks no promise."""
    return MEANINGS[kind].invariant is None
