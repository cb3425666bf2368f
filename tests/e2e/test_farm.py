"""Every kind of company that the farm plays comes out as it should, through the whole of `check`."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ct_stream.local.farm import SCENARIOS
from ct_stream.local.farm.remote import FarmProcess

if TYPE_CHECKING:
    from ct_stream.local.farm.scenarios import Expected

ROOT = Path(__file__).parents[2]
DEADLINE_S = 45.0  #: no tarpit of the farm is waited for longer
PAUSES_S = 9 * 2.5  #: a server that limits each session costs nine, and their pauses do not count


OWN = {f"{name}-alone.example": scenario.expected for name, scenario in SCENARIOS.items() if name != "idn"}
IDN = {"idn-bücher.example": SCENARIOS["idn"].expected}
#: Behind a host of another registrable domain, where that makes a difference.
TENANTS = {
    f"{name}-tenant.example": (name, f"{name}-host.example", scenario.at_provider)
    for name, scenario in SCENARIOS.items()
    if scenario.at_provider is not None
}


async def test_every_scenario_comes_out_right_in_little_memory_and_inside_its_deadline(tmp_path: Path) -> None:
    expected = OWN | IDN | {domain: right for domain, (_, _, right) in TENANTS.items()}
    async with FarmProcess(tmp_path) as farm:
        for domain, (scenario, provider, _) in TENANTS.items():
            await farm.add(domain, scenario, provider)
        env = {name: value for name, value in os.environ.items() if not name.startswith("CT_")}
        asker = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.e2e.check_all",
            *expected,
            cwd=ROOT,
            env=env | farm.env | {"CT_PASS_DEADLINE_S": str(DEADLINE_S)},
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await asyncio.wait_for(asker.communicate(), 120)
    assert asker.returncode == 0
    answer = orjson.loads(told)
    checked: dict[str, tuple[Any, float]] = answer["checked"]
    wrong = {
        domain: checked[domain][0] for domain, right in expected.items() if not is_right(checked[domain][0], right)
    }
    assert wrong == {}
    late = {domain: seconds for domain, (_, seconds) in checked.items() if seconds > DEADLINE_S + PAUSES_S}
    assert late == {}
    assert answer["peak_mb"] < 100


def is_right(checked: Any, right: Expected) -> bool:
    """Return whether a result is the expected one, with method, confidence and catch-all."""
    if not isinstance(checked, dict):
        return False
    outcome = checked["failure_code"] or checked["outcome"]
    if outcome in right.also:
        return True
    method = (checked["method_type"], checked["confidence_score"], bool(checked["is_catchall"]))
    return outcome == right.outcome and (
        right.outcome != "PASS" or method == (right.method_type, right.confidence, right.is_catchall)
    )
