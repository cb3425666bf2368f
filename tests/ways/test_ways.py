"""One worker's way out is broken and those of others are whole: no company fails or passes by it, or waits for it.

Each plays in a world of its own (`python -m tests.ways.play WAY` shows one), which takes a minute, and up to five where
it does not hold. The workers of a world share its broker, Postgres and mail servers.
"""

from __future__ import annotations

import pytest

from tests.ways.breaking import WAYS
from tests.ways.namespaces import missing
from tests.ways.play import run

_LONGEST_S = 480.0


@pytest.fixture(scope="module")
def _can_run() -> None:
    if sentence := missing():
        pytest.skip(sentence)


@pytest.mark.long
@pytest.mark.timeout(_LONGEST_S + 60)
@pytest.mark.usefixtures("_can_run")
@pytest.mark.parametrize("whole", [3, 1], ids=["beside-three", "beside-one"])
@pytest.mark.parametrize("way", WAYS)
def test_one_broken_way_harms_no_company_and_its_worker_says_so_and_comes_back(
    way: str, whole: int, request: pytest.FixtureRequest
) -> None:
    broker = request.config.getoption("--broker")
    figures = run(way, "--whole", str(whole), "--broker", broker, within_s=_LONGEST_S)
    assert not figures["broken"], "\n".join([WAYS[way].shows, *figures.pop("broken"), str(figures)])
