"""A world in a network namespace of its own, and workers in others, each with an address and rules of its own.

The world has the servers: all addresses of WORLD are its own. A bridge joins it to the workers' namespaces. Its mounts
and process ids are its own too: names clash with nobody's, and whatever runs in it ends with its first process.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.mta.packages import ROOT, CannotRun, unpacked
from tools.needs import lacks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WORLD = ("10.77.0.0/16", "fd77::/32")
_BRIDGE = ("10.78.0.1/16", "fd78::1/64")
_CLONE_NEWNET = 0x40000000
_ENTER = (
    "mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns && ip link set lo up"
    " && echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind"
    ' && exec "$0" "$@"'
)


def missing() -> str | None:
    """Return what this machine lacks, in a sentence; None when nothing is."""
    if sentence := lacks("unshare", "ip", "mount", root=True):
        return sentence
    try:
        nft()
    except CannotRun as reason:
        return str(reason)
    return None


def nft() -> tuple[list[str], dict[str, str]]:
    """Return the command and its environment: this machine's, or Debian's package, unpacked. Raises CannotRun."""
    if lacks("nft") is None:
        return ["nft"], {}
    unpacked("nft")
    libraries = next((ROOT / "nft/usr/lib").glob("*-linux-gnu*"))
    return [str(ROOT / "nft/usr/sbin/nft")], {"LD_LIBRARY_PATH": str(libraries)}


def in_a_world(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a module of ours in a new, empty world."""
    own = ["--net", "--mount", "--mount-proc", "--pid", "--fork", "--kill-child"]
    return ["unshare", *own, "sh", "-c", _ENTER, sys.executable, "-m", module, *arguments]


def build_world(*, ipv6: bool) -> None:
    """Make the addresses and the bridge; called once in a new world."""
    _ip("link add br0 type bridge")
    _ip("link set br0 up")
    for network, bridge in list(zip(WORLD, _BRIDGE, strict=True))[: 2 if ipv6 else 1]:
        _ip(f"route add local {network} dev lo")
        _ip(f"addr add {bridge} dev br0" + (" nodad" if ":" in bridge else ""))


class Namespace:
    """One worker's network: a loopback, a wire to the world, and rules."""

    def __init__(self, number: int, *, ipv6: bool) -> None:
        self.name = f"worker-{number}"
        self.address, self.address6 = f"10.78.1.{number + 1}", f"fd78::{number + 101}"
        _ip(f"netns add {self.name}")
        _ip(f"link add way netns {self.name} type veth peer name to-{self.name}")
        _ip(f"link set to-{self.name} master br0 up")
        self._has_ipv6(False)
        self._ip("link set lo up")
        self._ip(f"addr add {self.address}/16 dev way")
        self._ip("link set way up")
        self._ip("route add default via 10.78.0.1")
        if ipv6:
            self.give_ipv6()

    @property
    def addresses(self) -> set[str]:
        """Return the addresses that servers see."""
        return {self.address, self.address6}

    @property
    def enter(self) -> list[str]:
        """Return what goes before a command that is to run in it."""
        return ["ip", "netns", "exec", self.name]

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be in it: a socket that is made now is of this namespace, whoever uses it later. No await, no thread."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/self/ns/net").open() as home, Path("/run/netns", self.name).open() as there:
            _set(libc, there.fileno())
            try:
                yield
            finally:
                _set(libc, home.fileno())

    def rules(self, *, out: Sequence[str] = (), back: Sequence[str] = (), redirects: Sequence[str] = ()) -> None:
        """Replace its rules: on what goes out, on what comes back, and redirects to ports of its own."""
        chains = {
            "filter hook output priority 0": out,
            "filter hook input priority 0": back,
            "nat hook output priority -100": redirects,
        }
        text = "table inet way\ndelete table inet way\ntable inet way {\n"
        for number, (kind, rules) in enumerate(chains.items()):
            text += "\n".join([f"chain chain{number} {{", f"type {kind};", *rules, "}\n"])
        text += "}\n"
        command, env = nft()
        subprocess.run([*self.enter, *command, "-f", "-"], input=text.encode(), check=True, env=os.environ | env)

    def give_ipv6(self) -> None:
        """Give it an address of IPv6, and a way out."""
        self._has_ipv6(True)
        self._ip(f"addr replace {self.address6}/64 dev way nodad")
        self._ip("-6 route replace default via fd78::1 dev way")

    def take_ipv6(self) -> None:
        """Take IPv6 from it."""
        self._has_ipv6(False)

    def _has_ipv6(self, has_it: bool) -> None:
        files = "/proc/sys/net/ipv6/conf/all/disable_ipv6"
        subprocess.run([*self.enter, "sh", "-c", f"echo {0 if has_it else 1} > {files}"], check=True)

    def _ip(self, words: str) -> None:
        _ip(f"-n {self.name} {words}")


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def _set(libc: ctypes.CDLL, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET):  # os.setns is Python 3.12's
        raise OSError(ctypes.get_errno(), "setns")
