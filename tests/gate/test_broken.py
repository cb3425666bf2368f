"""One stranger's server stops nobody else's companies, and a broken version stops."""

from __future__ import annotations

import pytest

from ct_stream.gate.broken import place_of, why_broken


def trace(*places: str) -> str:
    lines = [
        f'  File "/opt/venv/lib/{file}", line {line}, in f\n    f()\n' for file, line in (p.split(":") for p in places)
    ]
    return f"Traceback (most recent call last):\n{''.join(lines)}ValueError: no"


READS = trace("ct_stream/company/one_pass.py:80", "ct_stream/probes/smtp.py:368", "asyncio/base.py:1")
DECIDES = trace("ct_stream/company/one_pass.py:80", "ct_stream/gate/replies.py:9")
OURS = trace("ct_stream/company/one_pass.py:80", "ct_stream/store/ledger.py:12", "asyncpg/prepared.py:5")


def places(many: int) -> list[str]:
    return [trace(f"ct_stream/probes/smtp.py:{line}") for line in range(many)]


def test_the_place_is_the_last_frame_of_our_own_code() -> None:
    assert place_of(READS) == "ct_stream/probes/smtp.py:368"
    assert place_of(OURS) == "ct_stream/store/ledger.py:12"
    assert place_of(trace("asyncio/base.py:1")) == ""


@pytest.mark.parametrize(
    ("tracebacks", "decided", "broken"),
    [
        pytest.param([OURS] * 19, 0, False, id="a few"),
        pytest.param([OURS] * 20, 0, True, id="our own code raises for everybody"),
        pytest.param([OURS] * 20, 20, False, id="others are decided meanwhile"),
        pytest.param([OURS] * 20, 19, True, id="fewer are decided than become stuck"),
        pytest.param([READS] * 100, 0, False, id="one place that reads strangers' words"),
        pytest.param([READS, DECIDES] * 50, 0, False, id="two such places"),
        pytest.param(places(20), 0, True, id="twenty such places"),
        pytest.param(places(20), 100, False, id="twenty such places, and others are decided"),
        pytest.param(places(4) * 5, 0, True, id="four such places, five companies each"),
        pytest.param(places(3) * 30, 0, False, id="three such places"),
        pytest.param([trace("asyncio/base.py:1")] * 20, 0, True, id="none of our frames"),
    ],
)
def test_places_and_good_work_say_whether_this_version_is_broken(
    tracebacks: list[str], decided: int, broken: bool
) -> None:
    why = why_broken(tracebacks, decided)
    assert (why is not None) is broken
    assert why is None or (str(len(tracebacks)) in why and str(decided) in why)
