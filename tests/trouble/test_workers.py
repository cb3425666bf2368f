"""Two workers with different limits on one ledger: the second one refuses to start, and a person lets it in."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from importlib.resources import files
from typing import TYPE_CHECKING

from tests.faults.harness import Stack
from tests.trouble.test_watchdog import ends

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_worker_with_other_limits_refuses_to_start_until_they_are_accepted(tmp_path: Path) -> None:
    text = files("ct_stream.probes").joinpath("SNAP_ON_TOOLBOX.yaml").read_text("utf-8")
    mine, copy, other = (tmp_path / f"{name}.yaml" for name in ("mine", "copy", "other"))
    mine.write_text(text, "utf-8")
    copy.write_text(text, "utf-8")
    assert "per_day: 10000" in text
    other.write_text(text.replace("per_day: 10000", "per_day: 20000"), "utf-8")
    async with Stack(tmp_path, CT_TOOLBOX=str(mine)) as stack:
        first = stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        same = stack.start_worker(CT_TOOLBOX=str(copy))
        assert await stack.wait_said("Ready", 60), "another file with the same values"
        stack.end_worker(same)

        stack.start_worker(CT_TOOLBOX=str(other))
        assert await ends(stack, 30) == 78, stack.worker_log()
        assert "smtp.per_day: 20000, not 10000" in stack.worker_log()

        accept = ("toolbox", "accept", "--toolbox", str(other), "--reason", "a higher cap")
        ops = {"CT_POSTGRES_OPS_DSN": stack.postgres.admin_dsn}
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "ct_stream",
            *accept,
            env=stack.env | ops,
            stdout=PIPE,
        )
        assert (await program.communicate())[0] == b"accepted; smtp.per_day: 20000, not 10000\n"
        stack.start_worker(CT_TOOLBOX=str(other))
        assert await stack.wait_said("Ready", 60), stack.worker_log()
        rows = await stack.admin.fetch("SELECT partitions, troubles FROM outreach.ct_workers WHERE ended_at IS NULL")
        assert len(rows) == 2
        assert first.poll() is None
