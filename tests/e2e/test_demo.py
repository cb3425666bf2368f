"""The demo decides as planned, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ct_stream.gate.failures import FailureCode
from ct_stream.local.demo_companies import LEAST, make_plan


def start(tmp_path: Path, *args: str) -> subprocess.Popen[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CT_")}
    return subprocess.Popen(
        [sys.executable, "-m", "ct_stream", "demo", *args],
        env=own | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def descendants(session_of: Path) -> list[int]:
    """Return the living processes whose environment or command line names the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            told = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            state = (entry / "stat").read_text().rpartition(") ")[2][0]
        except OSError:
            continue
        if os.fsencode(session_of) in told and state != "Z":
            found.append(int(entry.name))
    return found


def test_planned_and_decided_agree_for_every_company(tmp_path: Path) -> None:
    with start(tmp_path, "--companies", str(LEAST)) as demo:
        out, _ = demo.communicate(timeout=100)
    assert demo.returncode == 0, out
    assert f"{LEAST} of {LEAST} companies were decided as planned" in out
    assert "10 on ct.rejected" in out
    assert "Failure Distribution:" in out
    for code in FailureCode:
        if code not in {FailureCode.VERIFY_FAIL, FailureCode.ALREADY_PROCESSED}:
            assert f"\n{code.value} " in out
    assert descendants(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("until", "number"),
    [
        pytest.param("starting a broker", signal.SIGINT, id="Ctrl-C while it starts"),
        pytest.param("ready after", signal.SIGINT, id="Ctrl-C while it decides"),
        pytest.param("ready after", signal.SIGTERM, id="SIGTERM while it decides"),
    ],
)
def test_a_signal_leaves_no_process_and_no_file(tmp_path: Path, until: str, number: signal.Signals) -> None:
    with start(tmp_path) as demo:
        assert demo.stdout is not None
        while until not in demo.stdout.readline():
            assert demo.poll() is None
        time.sleep(0.5)
        demo.send_signal(number)
        demo.communicate(timeout=40)
    assert demo.returncode == 130
    assert descendants(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_plan_never_looks_like_a_lost_spine() -> None:
    """More than 20 misses among 50 look-ups halt the spine control, and the demo with it."""
    for seed in range(20):
        companies = make_plan(300, seed=seed).companies
        misses = sum(c.expected.outcome in {"CT-I-NOT-FOUND", "CT-I-NO-DOMAIN"} for c in companies)
        assert misses <= 20


def test_the_plan_holds_every_kind_and_is_the_same_each_time() -> None:
    plan = make_plan(300)
    assert plan == make_plan(300)
    assert len(plan.companies) == 300
    outcomes = {company.expected.outcome for company in plan.companies}
    assert outcomes == {"PASS", "CT-I-NOT-FOUND", "CT-I-NO-DOMAIN", "CT-M-NO-MX", "CT-M-NO-PATTERN", "CT-M-SMTP-FAIL"}
    assert {c.expected.method_type for c in plan.companies} > {"first.last", "firstlast", "info", "contact"}
    assert any(company.expected.is_catchall for company in plan.companies)
