"""Each world of these tests runs a broker of its own."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _broker() -> None:
    """Start none for the session."""
