"""A host that is asked chooses the ICMP message that it answers our SYN with: none of them is our own trouble."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mta.icmp_host import MESSAGES
from tools.needs import lacks

ROOT = Path(__file__).parents[2]
MISSING = lacks("unshare", "ip", root=True) or (None if Path("/dev/net/tun").exists() else "lacks /dev/net/tun")


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_every_icmp_message_makes_a_host_unreachable_and_none_is_our_bug() -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-m", "tests.mta.icmp_host"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert set(told) == {f"{kind}/{code}" for kind, code in MESSAGES}
    assert set(told.values()) <= {"unreachable", "refused", "timeout"}, told
    assert told["3/3"] == "refused"
    assert told["3/5"] == told["3/8"] == told["12/0"] == "unreachable"
