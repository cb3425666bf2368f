"""What is written for people is what the code says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ct_stream.gate.evidence import ROWS
from ct_stream.gate.failures import FailureCode
from tests.documents.decision_doc import INPUT, MIDDLE, decision_markdown, outcome, played
from tests.documents.failures_doc import failures_markdown

if TYPE_CHECKING:
    from collections.abc import Callable

_DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("page", "generate"), [("failures.md", failures_markdown), ("decision.md", decision_markdown)])
def test_the_committed_page_is_the_generated_one(page: str, generate: Callable[[], str]) -> None:
    """A change of the code without its page fails here; the generator's docstring has the command."""
    assert (_DOCS / page).read_text("utf-8") == generate()


def test_every_code_has_one_row() -> None:
    """A reader of an errors row finds its code, once."""
    rows = [line.split(" | ")[0] for line in failures_markdown().splitlines() if line.startswith("| `")]
    assert rows == [f"| `{code}`" for code in FailureCode]


def test_the_page_of_the_decision_shows_each_way_to_fail_and_each_row_of_the_evidence() -> None:
    """A new code, or a new row, does not stay out of the page."""
    outcomes = " ".join(outcome(played(row))[0] for row in (*INPUT, *MIDDLE))
    shown = {code for code in FailureCode if f"`{code}`" in outcomes}
    assert set(FailureCode) - shown == {FailureCode.ALREADY_PROCESSED}
    assert decision_markdown().count("\n| ") >= len(INPUT) + len(MIDDLE) + len(ROWS)


def test_the_same_order_of_questions_leads_to_each_outcome() -> None:
    """Each row is played to its end: none asks on."""
    for row in (*INPUT, *MIDDLE):
        assert len(played(row).exchanges) == len(row.answers), row.found
