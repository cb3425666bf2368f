"""One worker's way out is broken and those of others are whole: no company fails or passes by it, or waits for it.

Each plays in a world of its own (`python -m tests.ways.play WAY` shows one), which takes a minute, and up to five where
it does not hold. The workers of a world share its broker, Postgres and mail servers. The marker `short` is on those
that `.ci/run` plays: silence, a lie that says yes, one that says no, a refusal, and something that a machine lacks.
"""

from __future__ import annotations

import pytest

from tests.ways.breaking import WAYS
from tests.ways.namespaces import missing
from tests.ways.play import run
from tools.kafka.cluster import LIBS

_LONGEST_S = 480.0
_SHORT = ("proxy-with-tls", "resolver-denies", "no-ipv6", "listed-at-rcpt")


@pytest.fixture(scope="module")
def _can_run() -> None:
    if sentence := missing():
        pytest.skip(sentence)


@pytest.mark.long
@pytest.mark.timeout(_LONGEST_S + 60)
@pytest.mark.usefixtures("_can_run")
@pytest.mark.parametrize(
    ("way", "whole"),
    [
        pytest.param(way, whole, id=f"{way}-beside-{words}", marks=[pytest.mark.short] if is_short else [])
        for way in WAYS
        for whole, words, is_short in ((3, "three", False), (1, "one", way in _SHORT))
    ],
)
def test_one_broken_way_harms_no_company_and_its_worker_says_so_and_comes_back(
    way: str, whole: int, request: pytest.FixtureRequest
) -> None:
    broker = request.config.getoption("--broker")
    figures = run(way, "--whole", str(whole), "--broker", broker, within_s=_LONGEST_S)
    assert not figures["broken"], "\n".join([WAYS[way].shows, *figures.pop("broken"), str(figures)])


@pytest.mark.short
@pytest.mark.long
@pytest.mark.timeout(_LONGEST_S + 60)
@pytest.mark.usefixtures("_can_run")
def test_a_blocked_port_25_of_one_worker_harms_no_company_on_apache_kafka() -> None:
    if not any(LIBS.glob("kafka_*.jar")):
        pytest.skip("lacks Apache Kafka: make .kafka/.ready")
    figures = run("port-25-refused", "--whole", "1", "--broker", "kafka", within_s=_LONGEST_S)
    assert not figures["broken"], "\n".join([*figures.pop("broken"), str(figures)])
