"""A worker tells of its own way's end and return, and of its own end by a bug."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pytest reads the annotation

from ct_stream.gate.contracts import ALERT
from tests.faults.harness import Stack
from tests.wiring.receiver import receiving

# Its background task fails: our own bug ends the worker.
_BROKEN = """
from ct_stream.company.own_way import OwnWay
async def broken(self):
    raise KeyError("a bug")
OwnWay.look = broken
"""


async def test_a_blocked_port_and_its_return_are_told(tmp_path: Path) -> None:
    async with receiving() as receiver, Stack(tmp_path, CT_ALERT_WEBHOOK=receiver.url) as stack:
        await stack.farm.block_smtp("refused")
        stack.start_worker(CT_EGRESS="dc2")
        await stack.publish(await stack.mint(["info-a.example", "info-b.example"]))
        await receiver.wait_for(1, 60)
        await stack.farm.block_smtp(None)
        await receiver.wait_for(2, 60)
        assert [(body["rail"], body["state"]) for body in receiver.bodies] == [
            ("control:smtp", "failing"),
            ("control:smtp", "working"),
        ]
        assert {(body["about_worker"], body["egress"]) for body in receiver.bodies} == {
            (receiver.bodies[0]["worker"], "dc2")
        }
        assert [ALERT.problem(body) for body in receiver.bodies] == [None, None]
        assert stack.end_worker(stack.workers[-1]) == 0
        assert "very-secret" not in stack.worker_log()


async def test_the_end_by_a_bug_is_told_before_the_process_ends(tmp_path: Path) -> None:
    async with receiving() as receiver, Stack(tmp_path, CT_ALERT_WEBHOOK=receiver.url) as stack:
        worker = stack.start_worker(prelude=_BROKEN)
        await receiver.wait_for(1, 60)
        assert worker.wait(30) == 70
    (body,) = receiver.bodies
    assert (body["event"], body["state"], body["severity"]) == ("worker", "stopping", "critical")
    assert "KeyError" in body["text"]
