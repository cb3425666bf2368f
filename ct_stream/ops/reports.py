"""The reports of the gate's tables, each failure with the runbook's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ct_stream.gate.failures import FAILURE_MEANINGS, FailureCode
from ct_stream.ops.reader import reader
from ct_stream.ops.troubles import WrongInput

if TYPE_CHECKING:
    from datetime import timedelta

    from ct_stream.settings import Settings

Row = dict[str, Any]


async def held(settings: Settings, *, reason: str | None, limit: int) -> tuple[list[Row], list[Row]]:
    """Return how many companies are undecided for each reason, and the longest waiting ones."""
    async with reader(settings) as read:
        groups = [dict(row) for row in await read.rows("waiting_by_reason")]
        companies = [dict(row) for row in await read.rows("held", reason, limit)]
    return [group for group in groups if reason in (None, group["reason"])], companies


async def failures(settings: Settings, *, since: timedelta, code: str | None, limit: int) -> list[Row]:
    """Return the failures of the last `since`, newest first, each with the runbook's words."""
    async with reader(settings) as read:
        return [_explained(dict(row)) for row in await read.rows("recent_failures", since, code, limit)]


async def distribution(settings: Settings, *, since: timedelta) -> list[Row]:
    """Return how often each code failed a company, each with the runbook's words."""
    async with reader(settings) as read:
        return [_explained(dict(row)) for row in await read.rows("failure_distribution", since)]


async def pass_rate(settings: Settings, *, since: timedelta) -> Row:
    """Return passed, failed and pass_rate in per cent; the rate is None when nothing was decided."""
    async with reader(settings) as read:
        row = await read.row("pass_rate", since)
    assert row is not None
    return dict(row)


async def guardrails(settings: Settings) -> list[Row]:
    """Return the state of each tool and provider that was ever closed or halted."""
    async with reader(settings) as read:
        return [dict(row) for row in await read.rows("guardrails")]


async def resume_guardrail(settings: Settings, key: str, reason: str) -> str:
    """Open a guardrail by the audited function; return what changed. Raises WrongInput if there is no such key."""
    async with reader(settings, read_only=False) as write:
        keys = {row["key"]: row["state"] for row in await write.rows("guardrails")}
        if key not in keys:
            closed = [f"{name} ({state})" for name, state in keys.items() if state != "open"]
            raise WrongInput([f"there is no guardrail {key!r}; not open are: {', '.join(closed) or 'none'}"])
        row = await write.change("resume_guardrail", key, reason)
    assert row is not None
    return str(row["change"])


def _explained(row: Row) -> Row:
    """Add the runbook's meaning, action and escalation to a row with a failure_code."""
    try:
        said = FAILURE_MEANINGS[FailureCode(row["failure_code"])]
    except ValueError:  # adopted: a code from before the gate
        return row | {"meaning": "", "action": "", "escalate_to": "Engineering (check logs)"}
    return row | {"meaning": said.meaning, "action": said.action, "escalate_to": said.escalate_to}
