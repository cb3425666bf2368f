"""The worker stops when this version is broken, and when nobody can say whether it is."""

from __future__ import annotations

from typing import Any

import pytest

from ct_stream.company.stuck import StuckBreaker

OURS = 'File "/x/ct_stream/store/ledger.py", line 12, in f'


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(([OURS] * 19, 0), None, id="single companies"),
        pytest.param(([OURS] * 20, 0), "ct_stream/store/ledger.py:12", id="twenty within an hour"),
        pytest.param(KeyError("x"), "cannot be counted", id="our own bug here"),
    ],
)
async def test_too_many_stuck_companies_stop_the_worker(answer: Any, told: str | None) -> None:
    class Parked:
        async def stuck_lately(self) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

    fatal: list[str] = []
    parked: Any = Parked()
    await StuckBreaker(parked, fatal.append).look()
    assert [told in why for why in fatal if told] == ([True] if told else [])
