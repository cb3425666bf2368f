"""Single companies that are stuck, or a version that is broken?"""

from __future__ import annotations

from typing import Any

import pytest

from ct_stream.company.stuck import StuckBreaker


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        pytest.param(19, None, id="single companies"),
        pytest.param(20, "this version has a bug", id="twenty within an hour"),
        pytest.param(KeyError("x"), "cannot be counted", id="our own bug here"),
    ],
)
async def test_too_many_stuck_companies_stop_the_worker(answer: int | Exception, told: str | None) -> None:
    class Parked:
        async def stuck_lately(self) -> int:
            if isinstance(answer, Exception):
                raise answer
            return answer

    fatal: list[str] = []
    parked: Any = Parked()
    await StuckBreaker(parked, fatal.append).look()
    assert [told in why for why in fatal if told] == ([True] if told else [])
