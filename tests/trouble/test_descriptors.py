"""Too few descriptors for all that is in flight: it is our trouble, and nobody's failure (FAULTS row 26)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults import invariants
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
"""
KINDS = ("info", "allreject", "catchall", "nxdomain")
COMPANIES = 400


async def test_companies_wait_for_descriptors_and_none_is_charged_for_them(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.3) as stack:
        worker = stack.start_worker(prelude=LIMIT)
        assert await stack.wait_said("Ready", 60)
        names: list[str | None] = [f"{KINDS[n % len(KINDS)]}-{n}.example" for n in range(COMPANIES)]
        ids = await stack.mint(names)
        await stack.publish(ids)
        await invariants.wait_at_rest(stack, COMPANIES, 120)
        assert worker.poll() is None, stack.worker_log()[-3000:]
        charged = await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_passes WHERE exceptions > 0")
        assert charged == 0, stack.worker_log()[-3000:]
        found = await invariants.check(stack, dict(zip(ids, names, strict=True)), pause_s=0.2)
        assert found.broken == [], stack.worker_log()[-2000:]
        assert stack.end_worker(worker) == 0
