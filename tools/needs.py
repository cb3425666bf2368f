"""Say in one sentence what of this machine a command lacks, and which packages of Debian bring it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

#: What each program is in.
PACKAGES = {
    "ip": "iproute2",
    "java": "default-jre-headless",
    "mount": "mount",
    "mvn": "maven",
    "nft": "nftables",
    "unshare": "util-linux",
}


def lacks(*programs: str, root: bool = False, memory_gb: float = 0.0) -> str | None:
    """Return all that is missing, with the command that installs it; None when nothing is."""
    absent = [program for program in programs if shutil.which(program) is None]
    missing = ["root"] if root and os.geteuid() != 0 else []
    missing += absent
    if free_memory_gb() < memory_gb:
        missing.append(f"{memory_gb:g} GB of free memory")
    if not missing:
        return None
    packages = " ".join(PACKAGES[program] for program in absent)
    return f"lacks {', '.join(missing)}" + (f": apt-get install {packages}" if packages else "")


def free_memory_gb() -> float:
    """Return how much memory processes can still take (proc(5), MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1e6
    return float("inf")
