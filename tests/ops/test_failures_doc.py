"""docs/failures.md says what the code says."""

from __future__ import annotations

from pathlib import Path

from ct_stream.gate.failures import FailureCode
from ct_stream.ops.failures_doc import failures_markdown

_FILE = Path(__file__).parents[2] / "docs" / "failures.md"


def test_the_committed_page_is_the_generated_one() -> None:
    """A change of a code's meaning without its page fails here; the module's docstring has the command."""
    assert _FILE.read_text("utf-8") == failures_markdown()


def test_every_code_has_one_row() -> None:
    """A reader of an errors row finds its code, once."""
    rows = [line.split(" | ")[0] for line in failures_markdown().splitlines() if line.startswith("| `")]
    assert rows == [f"| `{code}`" for code in FailureCode]
