"""How long a company may be missing from the spine before that counts, whatever its event's timestamp says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from ct_stream.company.checks import SpineRow
from ct_stream.gate.questions import SpineAnswer
from ct_stream.gate.records import Known
from ct_stream.gate.waits import Wait, WaitReason

NOW = datetime(2026, 1, 7, 12, tzinfo=UTC)


async def looked_up(*, seen_s_ago: float, in_spine: bool = False, domain: str | None = None) -> SpineAnswer | Wait:
    async def believed() -> None:
        return None

    check: Any = SimpleNamespace(saw=lambda **_: None, disbelief=believed)
    row = SpineRow(
        check,
        Known(outcome=None, pass_state=None, in_spine=in_spine, domain=domain),
        since=NOW - timedelta(seconds=seen_s_ago),
        is_repeat=False,
        age_s=lambda moment: (NOW - moment).total_seconds(),
        grace_s=60.0,
    )
    return await row.lookup(uuid4())


@pytest.mark.parametrize(("seen_s_ago", "after_s"), [(-3600.0, 1.0), (0.0, 1.0), (2.0, 2.0), (40.0, 20.0), (59.0, 1.0)])
async def test_the_grace_counts_from_when_we_first_saw_the_company(seen_s_ago: float, after_s: float) -> None:
    wait = await looked_up(seen_s_ago=seen_s_ago)
    assert isinstance(wait, Wait)
    assert (wait.reason, wait.after_s) == (WaitReason.SPINE_GRACE, after_s)


async def test_after_the_grace_it_is_missing_for_good() -> None:
    assert await looked_up(seen_s_ago=60.0) == SpineAnswer(found=False)


async def test_a_row_needs_no_grace() -> None:
    assert await looked_up(seen_s_ago=0.0, in_spine=True, domain="acme.example") == SpineAnswer(
        found=True, domain="acme.example"
    )
