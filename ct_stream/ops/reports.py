"""The reports of the gate's tables, each failure with the runbook's words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ct_stream.gate.egress import DEFAULT, base_of, egress_of, is_of_an_egress
from ct_stream.gate.failures import FAILURE_MEANINGS, FailureCode
from ct_stream.ops.reader import reader
from ct_stream.ops.troubles import WrongInput
from ct_stream.store.guardrails import MAIL_FROM_RAIL

if TYPE_CHECKING:
    from datetime import timedelta

    from ct_stream.settings import Settings

Row = dict[str, Any]

WORKING = ("open", "trial")  #: states of a guardrail that need no person


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
    """Return the state of each tool and provider that was ever closed or halted.

    `base` is its key without the egress, and `egress` the one that it holds; None: it holds all of them.
    """
    async with reader(settings) as read:
        return [_placed(dict(row)) for row in await read.rows("guardrails")]


def _placed(row: Row) -> Row:
    key = row["key"]
    if not is_of_an_egress(key):
        return row | {"base": key, "egress": None}
    return row | {"base": base_of(key), "egress": egress_of(key)}


async def resume_guardrail(settings: Settings, key: str, reason: str) -> str:
    """Open a guardrail by the audited function; return what changed, and what else is in the way.

    Only what `key` names is resumed: without an egress, the guardrail of the egress `default`. Raises WrongInput if
    that one is open and another egress's is not, or if there is no such key.
    """
    key = full_key(key)
    async with reader(settings, read_only=False) as write:
        states = {row["key"]: row["state"] for row in await write.rows("guardrails")}
        others = [other for other, state in states.items() if _is_beside(other, key) and state not in WORKING]
        is_known = key in states or egress_of(key) == DEFAULT
        if others and is_known and states.get(key, "open") in WORKING:
            raise WrongInput([_not_this_one(key, others, states)])
        if key not in states:
            closed = _listed([name for name, state in states.items() if state != "open"], states)
            raise WrongInput([f"there is no guardrail {key!r}; not open are: {closed or 'none'}"])
        row = await write.change("resume_guardrail", key, reason)
    assert row is not None
    said = str(row["change"])
    if key == MAIL_FROM_RAIL and said.endswith("-> open"):
        said += "; TOOL-005 goes on trial on every egress where it is open"
    if others:
        said += f"; still not open: {_listed(others, states)}"
    return said


def full_key(typed: str) -> str:
    """Return the key of a guardrail that a person typed: TOOL-005@dc2 is short for tool:TOOL-005@dc2."""
    base, at, egress = typed.partition("@")
    if re.fullmatch(r"(?:tool:)?TOOL-[0-9]{3}", base, re.IGNORECASE):
        typed = f"tool:{base[-8:].upper()}{at}{egress}"
    return base_of(typed) if is_of_an_egress(typed) and egress_of(typed) == DEFAULT else typed


def _short_key(key: str) -> str:
    """Return a key as people type it."""
    return key.removeprefix("tool:")


def _is_beside(other: str, key: str) -> bool:
    """Return whether these are the same guardrail of two egresses."""
    return other != key and is_of_an_egress(other) and base_of(other) == base_of(key)


def _not_this_one(key: str, others: list[str], states: dict[str, str]) -> str:
    state = "on trial" if states.get(key) == "trial" else "open"
    commands = [f"`ct-stream guardrails resume {_short_key(other)} --reason ...`" for other in others]
    return (
        f"{base_of(key)} is {state} for egress {egress_of(key)}; not open {'is' if len(others) == 1 else 'are'} "
        f"{_listed(others, states)}: {' or '.join(commands)}"
    )


def _listed(keys: list[str], states: dict[str, str]) -> str:
    return ", ".join(f"{key} ({states[key]})" for key in keys)


def _explained(row: Row) -> Row:
    """Add the runbook's meaning, action and escalation to a row with a failure_code."""
    try:
        said = FAILURE_MEANINGS[FailureCode(row["failure_code"])]
    except ValueError:  # adopted: a code from before the gate
        return row | {"meaning": "", "action": "", "escalate_to": "Engineering (check logs)"}
    return row | {"meaning": said.meaning, "action": said.action, "escalate_to": said.escalate_to}
