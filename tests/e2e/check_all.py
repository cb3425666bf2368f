"""Ask about every scenario of a farm at once, in one process, and print what came out: a child of test_farm.py."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

import orjson

from ct_stream.ops.check import Checked, check
from ct_stream.ops.troubles import ServiceTrouble
from ct_stream.probes.probing import make_probing
from ct_stream.probes.toolbox import load_toolbox
from ct_stream.settings import load_settings


async def main(domains: list[str]) -> None:
    """Print {domain: [outcome, seconds]} and the peak memory in MB."""
    settings = load_settings(os.environ)
    toolbox, probing = load_toolbox(), make_probing(settings)

    async def ask(domain: str) -> tuple[Checked | str, float]:
        begun = time.monotonic()
        try:
            checked: Checked | str = await check(settings, toolbox, probing, domain)
        except ServiceTrouble as trouble:
            checked = str(trouble)
        return checked, time.monotonic() - begun

    results = await asyncio.gather(*(ask(domain) for domain in domains))
    peak_mb = peak_kb() / 1024
    told = {domain: [checked, seconds] for domain, (checked, seconds) in zip(domains, results, strict=True)}
    sys.stdout.buffer.write(orjson.dumps({"peak_mb": peak_mb, "checked": told}))


def peak_kb() -> int:
    """Return this program's own peak; getrusage(2) hands on that of the process that started it (exec_mmap)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
