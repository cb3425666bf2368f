"""One company at a time: what agrees, what does not, and what is only in flight. No database, no broker."""

from __future__ import annotations

from typing import Any

import pytest

from ct_stream.ops.verify.judge import Event, Marks, Published, Recorded, judge

ID, DIGEST, OTHER = b"\x01" * 16, b"d" * 32, b"o" * 32
MARKS = Marks(committed={0: 100}, old_ms=1_000_000)
PASS = Recorded(
    ID, "PASS", "gate", None, "ct.pass", DIGEST, True, False, status="ready", in_spine=True, is_spine_old=True
)  # fmt: skip
FAIL = PASS._replace(
    outcome="FAIL", failure_code="CT-M-NO-MX", topic="ct.fail", status="failed", errors=1, first_code="CT-M-NO-MX"
)
UNDECIDED = Recorded(ID, in_spine=True, is_spine_old=True)
DONE, IN_HAND, OLD = Event(0, 99, 2_000_000), Event(0, 100, 2_000_000), Event(0, 100, 999_999)
GOOD = Published(0, 3, 7, DIGEST)
GOOD_FAIL = Published(1, 3, 7, DIGEST)


def kinds(row: Recorded, *, events: tuple[Event, ...] = (), records: tuple[Published, ...] = ()) -> list[str]:
    return [example.kind.value for example in judge(row, events, records, MARKS)]


@pytest.mark.parametrize(
    ("row", "records"),
    [
        pytest.param(PASS, (GOOD,), id="PASS"),
        pytest.param(FAIL, (GOOD_FAIL,), id="FAIL"),
        pytest.param(PASS, (GOOD, GOOD), id="an identical repeat"),
        pytest.param(PASS._replace(must_be_there=False), (), id="published after the ends were taken"),
        pytest.param(PASS._replace(must_be_there=None), (GOOD,), id="published and not stamped yet"),
        pytest.param(
            FAIL._replace(failure_code="CT-I-NOT-FOUND", first_code="CT-I-NOT-FOUND", status=None, in_spine=False),
            (GOOD_FAIL,),
            id="NOT-FOUND has no company_target row",
        ),
        pytest.param(
            FAIL._replace(
                failure_code="CT-I-NOT-FOUND",
                errors=0,
                first_code=None,
                status=None,
                in_spine=False,
                has_no_errors_row=True,
            ),
            (GOOD_FAIL,),
            id="NOT-FOUND where a foreign key binds errors rows",
        ),
        pytest.param(
            FAIL._replace(failure_code="CT-I-NOT-FOUND", first_code="CT-I-NOT-FOUND", status="queued"),
            (GOOD_FAIL,),
            id="NOT-FOUND, and a row with a word of others came later",
        ),
        pytest.param(PASS._replace(status=None, in_spine=False), (GOOD,), id="a PASS whose row went with its company"),
        pytest.param(
            FAIL._replace(status=None, errors=0, first_code=None, in_spine=False),
            (GOOD_FAIL,),
            id="a FAIL whose rows went with its company",
        ),
        pytest.param(
            Recorded(ID, "FAIL", "adopted", "OLD", status="queued", errors=1, first_code="OLD"),
            (),
            id="adopted by its errors row alone",
        ),
        pytest.param(
            Recorded(ID, "FAIL", "adopted", "OLD", status="blocked", errors=3, first_code="OLD"), (), id="adopted"
        ),
    ],
)
def test_verify_reports_nothing_about_a_company_whose_records_agree(
    row: Recorded, records: tuple[Published, ...]
) -> None:
    assert kinds(row, events=(DONE,), records=records) == []


@pytest.mark.parametrize(
    ("row", "given", "found"),
    [
        pytest.param(Recorded(ID), {"events": (DONE,)}, "event_lost", id="committed, and nowhere"),
        pytest.param(UNDECIDED, {"events": (IN_HAND, DONE)}, "event_lost", id="one of its events was committed"),
        pytest.param(UNDECIDED, {"events": (IN_HAND,)}, "not_committed", id="in hand"),
        pytest.param(UNDECIDED, {"events": (OLD,)}, "event_not_taken_up", id="not read for long"),
        pytest.param(UNDECIDED, {"events": (Event(9, 0, 2_000_000),)}, "not_committed", id="a partition of no commit"),
        pytest.param(UNDECIDED, {}, "spine_without_outcome", id="an old spine row"),
        pytest.param(UNDECIDED._replace(is_spine_old=None), {}, "spine_of_unknown_age", id="of unknown age"),
        pytest.param(Recorded(ID), {"records": (GOOD,)}, "record_without_row", id="nothing recorded"),
        pytest.param(PASS, {"records": (GOOD, Published(1, 0, 0, OTHER))}, "pass_and_fail", id="both"),
        pytest.param(PASS, {"records": (GOOD, Published(0, 3, 8, OTHER))}, "copies_differ", id="copies"),
        pytest.param(PASS, {"records": (Published(0, 3, 8, OTHER),)}, "differs_from_ledger", id="other bytes"),
        pytest.param(PASS, {}, "not_on_topic", id="stamped, not there"),
        pytest.param(PASS._replace(must_be_there=None, is_unpublished=True), {}, "unpublished", id="unpublished"),
        pytest.param(FAIL._replace(errors=0, first_code=None), {"records": (GOOD_FAIL,)}, "errors_row", id="no errors"),
        pytest.param(PASS._replace(status="failed"), {"records": (GOOD,)}, "target_row", id="another status"),
        pytest.param(PASS._replace(says_instead="{}"), {"records": (GOOD,)}, "target_row", id="a rewritten method"),
        pytest.param(Recorded(ID, status="blocked"), {}, "final_without_row", id="a final row of nobody"),
        pytest.param(
            PASS._replace(says_otherwise=True), {"records": (GOOD,)}, "foreign_row", id="a final row of others"
        ),
        pytest.param(PASS._replace(status=None), {"records": (GOOD,)}, "target_row", id="no row of a company"),
        pytest.param(UNDECIDED._replace(pass_state="stuck"), {"events": (DONE,)}, "stuck", id="stuck"),
        pytest.param(
            UNDECIDED._replace(pass_state="waiting", is_overdue=True, is_waiting_long=True),
            {"events": (DONE,)},
            "overdue",
            id="overdue",
        ),
    ],
)
def test_verify_reports_each_disagreement_as_exactly_one_finding(
    row: Recorded, given: dict[str, Any], found: str
) -> None:
    assert kinds(row, **given) == [found]


def test_verify_reports_neither_a_new_spine_row_nor_a_wait() -> None:
    assert kinds(UNDECIDED._replace(is_spine_old=False)) == []
    assert kinds(UNDECIDED._replace(pass_state="waiting"), events=(DONE,)) == []


def test_a_record_on_the_wrong_topic_is_reported_there_and_as_missing_from_its_own() -> None:
    assert kinds(PASS, records=(Published(1, 0, 0, DIGEST),)) == ["differs_from_ledger", "not_on_topic"]
