"""The table of faults names tests that exist, and the document is what it renders."""

from __future__ import annotations

from tests.faults.rows import DOC, ROOT, ROWS, render


def test_every_test_that_the_table_names_exists() -> None:
    assert len(ROWS) == 36
    for row in ROWS:
        assert row.tests or row.open or "does not arise" in row.behaviour
        for name in row.tests:
            file, _, function = name.partition("::")
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"def {function}" in text, f"{name} is not there"


def test_the_document_is_up_to_date() -> None:
    assert DOC.read_text(encoding="utf-8") == render(), "run python -m tests.faults.rows"
