"""The name of this process, and the version of the program that it runs."""

from __future__ import annotations

import os
import socket
import uuid
from importlib.metadata import PackageNotFoundError, version


def our_version() -> str:
    """Return the installed version, or `0+source` from a source tree that is not installed."""
    try:
        return version("ct-stream")
    except PackageNotFoundError:
        return "0+source"


def new_owner() -> str:
    """Return a name for the leases of this process that no other process has: host/pid/random."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
