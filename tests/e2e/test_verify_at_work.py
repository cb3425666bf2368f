"""The outside checker calls nothing broken while workers decide, are killed, and when all is done."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import timedelta
from pathlib import Path  # noqa: TC003 - pytest reads the annotation

from ct_stream.ops.verify import Limits, Report, verify
from ct_stream.settings import load_settings
from tests.faults.harness import Stack

_COMPANIES = 400


async def test_work_in_flight_is_no_violation(tmp_path: Path) -> None:
    async with Stack(tmp_path, reply_delay_s=0.02, CT_IN_FLIGHT="50") as stack:
        await stack.admin.execute("ALTER ROLE ct_ops LOGIN PASSWORD 'ops'")
        settings = replace(load_settings(stack.env), postgres_ops_dsn=stack.postgres.dsn("postgres", "ct_ops", "ops"))

        async def compare() -> Report:
            report = await verify(settings, Limits(grace=timedelta(seconds=1)), lambda _what, _count: None)
            assert report.violations == {}, report.told()
            return report

        first, second = stack.start_worker(), stack.start_worker()
        domains: list[str | None] = [
            f"{kind}-{n}.example" for n in range(_COMPANIES // 2) for kind in ("contact", "info")
        ]
        ids = await stack.mint(domains)
        await stack.publish(ids, values=[b"{" if n % 50 == 0 else b'{"outreach_id":"%s"}' % str(i).encode()
                                         for n, i in enumerate(ids)])  # fmt: skip
        readable = _COMPANIES - _COMPANIES // 50
        await stack.wait_decided(40)
        assert (await compare()).checked["companies"] >= _COMPANIES
        stack.end_worker(first, signal.SIGKILL)
        await compare()
        assert await stack.wait_decided(readable, 120) == readable
        assert await stack.wait_published(90) == 0
        report = await compare()
        assert report.checked["ct.pass"] + report.checked["ct.fail"] >= readable
        assert report.checked["ct.rejected"] >= _COMPANIES // 50
        stack.end_worker(second)
