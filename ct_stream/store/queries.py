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


#: The users' tables. Our functions touch them only in queries that name one of them.
_USERS = re.compile(r"\boutreach\.(outreach|company_target|company_target_errors)\b")


#: The statements that run with the path of the login, on which others may have functions; see the head of queries.sql.
ON_LOGINS_PATH = frozenset({"look_up", "record", "spine_control", "rehearsal_companies"})


@cache
def meets_users(name: str) -> bool:
    """Return whether the statement called `name` touches a table of the users'. Raises KeyError if there is none."""
    return _USERS.search(query(name)) is not None


def query(name: str) -> str:
    """Return the statement called `name`. Raises KeyError if there is none."""
    return _all()[name]
