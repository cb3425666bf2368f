"""Debian's packages, unpacked into a folder of the checkout: nothing of the system is changed, no service is started.

Postfix and Exim cannot be installed side by side (both are the mail-transport-agent); unpacked, each has its own root.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2] / ".mta"
GROUPS = {
    "postfix": ["postfix", "postgrey"],
    "exim": ["exim4-config", "exim4-base", "exim4-daemon-light"],
    "dns": ["nsd", "unbound", "ldnsutils"],
    "wrap": ["libnss-wrapper", "libresolv-wrapper"],
    "pgbouncer": ["pgbouncer"],
}
#: For tests/ways, where the machine has none.
OTHERS = {"nft": ["nftables"]}


class CannotRun(Exception):
    """These tests cannot run here; the message says why."""


def unpacked(*others: str) -> Path:
    """Return the folder with one root for each group, after unpacking what is missing. Raises CannotRun.

    All groups of tests/mta, or these of OTHERS.
    """
    groups = {name: OTHERS[name] for name in others} or GROUPS
    _check_machine()
    ROOT.mkdir(exist_ok=True)
    with (ROOT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all((ROOT / group / ".ready").exists() for group in groups):
            _run("apt-get", "-qq", "update")
        for group, packages in groups.items():
            if not (ROOT / group / ".ready").exists():
                _unpack(group, packages)
    return ROOT


def _check_machine() -> None:
    try:
        release = Path("/etc/os-release").read_text()
    except OSError:
        release = ""
    if "ID=debian" not in release.splitlines() or shutil.which("apt-get") is None:
        raise CannotRun("needs Debian: these tests unpack its packages")
    if os.geteuid() != 0:
        raise CannotRun("needs root: the servers change their user ids")


def _unpack(group: str, packages: list[str]) -> None:
    folder = ROOT / group
    shutil.rmtree(folder, ignore_errors=True)
    debs = folder / "debs"
    debs.mkdir(parents=True)
    # Everything that they depend on and this machine lacks; what it has, in whatever version, is used from there.
    plan = _run("apt-get", "--simulate", "--no-install-recommends", "install", *packages)
    steps = [line.split() for line in plan.splitlines() if line.startswith("Inst ")]
    missing = {step[1] for step in steps if not step[2].startswith("[")}  # [version]: an upgrade of what is here
    _run("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *sorted(missing | set(packages)), cwd=debs)
    for deb in sorted(debs.iterdir()):
        _run("dpkg-deb", "--extract", str(deb), str(folder))
    shutil.rmtree(debs)
    (folder / ".ready").touch()


def _run(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=cwd, check=False, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}, timeout=300
    )
    if done.returncode:
        raise CannotRun(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")
    return done.stdout
