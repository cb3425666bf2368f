"""What an error says of itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ct_stream.problems import said_by

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("error", "said"), [(TimeoutError(), "TimeoutError"), (OSError(" \n"), "OSError"), (ValueError("no\n"), "no")]
)
def test_an_error_without_words_gives_its_type(error: Exception, said: str) -> None:
    assert said_by(error) == said


def test_nobody_asks_an_error_whether_it_is_empty() -> None:
    """An exception is always true: `error or ...` shows an empty text for a time-out."""
    asks = re.compile(r"\b(?:err|error|exc|exception|failed\[0\]) or ")
    files = [file for folder in ("ct_stream", "tools") for file in sorted((ROOT / folder).rglob("*.py"))]
    assert [str(file.relative_to(ROOT)) for file in files if asks.search(file.read_text())] == []
