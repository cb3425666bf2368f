"""How old is a spine row? The spine is upstream's: its `created_at` may be missing, or closed to our login."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ct_stream.problems import Problem
from ct_stream.store.queries import query

if TYPE_CHECKING:
    from ct_stream.ops.reader import Reader

_STAND_IN = "NULL::timestamptz AS spine_at"
_COLUMN = "u.created_at::timestamptz AS spine_at"


async def why_ageless(read: Reader) -> Problem | None:
    """Return why the age of spine rows cannot be known, or None when it can."""
    row = await read.row("spine_has_age")
    assert row is not None
    if not row["has_column"]:
        return Problem(
            what="the spine outreach.outreach has no timestamp column created_at",
            action="ask upstream to add one",
        )
    if not row["may_read"]:
        return Problem(
            what="CT_POSTGRES_OPS_DSN may not read outreach.outreach.created_at",
            action="run `ct-stream migrate` (grants)",
        )
    return None


def query_with_age(name: str, *, has_age: bool) -> str:
    """Return the named query, with the spine's created_at where it can be read and NULL where not."""
    statement = query(name)
    assert _STAND_IN in statement
    return statement.replace(_STAND_IN, _COLUMN) if has_age else statement
