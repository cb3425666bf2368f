"""Real servers as processes that end with the tests: loopback only, files in one folder, each ended by its own id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.mta.packages import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_START_S = 20.0
_STOP_S = 5.0
#: Users that the servers change to, beside those of this machine; found through nss_wrapper, not made here.
_PASSWD = """\
postfix:x:64001:64001::/nonexistent:/usr/sbin/nologin
postgrey:x:64002:64002::/nonexistent:/usr/sbin/nologin
Debian-exim:x:64003:64003::/nonexistent:/usr/sbin/nologin
nsd:x:64004:64004::/nonexistent:/usr/sbin/nologin
unbound:x:64005:64005::/nonexistent:/usr/sbin/nologin
info:x:64010:64010::/nonexistent:/usr/sbin/nologin
"""
_GROUP = """\
postfix:x:64001:
postdrop:x:64011:
postgrey:x:64002:
Debian-exim:x:64003:
nsd:x:64004:
unbound:x:64005:
info:x:64010:
"""


class Server:
    """One server in the foreground, with its own process group."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """Return what it has written so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, *addresses: tuple[str, int]) -> None:
        """Come back when somebody accepts connections at each address."""
        deadline = time.monotonic() + _START_S
        for address in addresses:
            while True:
                if self._process.poll() is not None:
                    raise AssertionError(f"{self.name} ended with {self._process.returncode}: {self.said[-2000:]}")
                with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
                    break
                assert time.monotonic() < deadline, f"{self.name} does not listen at {address}: {self.said[-2000:]}"
                time.sleep(0.05)

    def stop(self) -> None:
        """End it with all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def environment(group: str, folder: Path, *, nameserver: str | None = None) -> dict[str, str]:
    """Return the environment for programs of one group: its libraries, our users, and our resolver if one is named."""
    root = ROOT / group
    (folder / "passwd").write_text(_PASSWD + Path("/etc/passwd").read_text())
    (folder / "group").write_text(_GROUP + Path("/etc/group").read_text())
    wrap = ROOT / "wrap/usr/lib/x86_64-linux-gnu"
    wrap = wrap if wrap.exists() else next((ROOT / "wrap/usr/lib").glob("*-linux-gnu*"))
    preload = [wrap / "libnss_wrapper.so"]
    env = {
        "PATH": f"{root}/usr/sbin:{root}/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C",
        "LD_LIBRARY_PATH": f"{root}/usr/lib/{wrap.name}:{root}/usr/lib/postfix",
        "NSS_WRAPPER_PASSWD": str(folder / "passwd"),
        "NSS_WRAPPER_GROUP": str(folder / "group"),
    }
    if nameserver is not None:
        (folder / "resolv.conf").write_text(f"nameserver {nameserver}\n")
        env["RESOLV_WRAPPER_CONF"] = str(folder / "resolv.conf")
        preload.append(wrap / "libresolv_wrapper.so")
    return env | {"LD_PRELOAD": " ".join(map(str, preload))}


def output(command: Sequence[str], env: Mapping[str, str], cwd: Path) -> str:
    """Run a program to its end and return what it printed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=dict(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-500:]} {done.stderr[-1000:]}"
    return done.stdout
