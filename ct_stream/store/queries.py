"""Finds SQL statements in `queries.sql` by name."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def _all() -> dict[str, str]:
    parts = _NAME.split(files("ct_stream.store").joinpath("queries.sql").read_text("utf-8"))
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def query(name: str) -> str:
    """Return the statement called `name`. Raises KeyError if there is none."""
    return _all()[name]
