"""The name of this process, and the version of the program that it runs."""

from __future__ import annotations

import functools
import hashlib
import os
import socket
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ct_stream

_DIGITS = 8
#: What of the package decides anything; not what Python compiles from it.
_OURS = frozenset({".py", ".sql", ".yaml", ".json"})


@functools.cache
def our_version() -> str:
    """Return the installed version and the first digits of a digest of its files, such as `0.1.0+5e1f03c9`.

    The digest is a local version label (PEP 440). Companies that became stuck are tried again by another version, and a
    mended one may be installed from a source tree before its number is another.
    """
    try:
        number = version("ct-stream")
    except PackageNotFoundError:
        number = "0"  # a source tree that is not installed
    return f"{number}+{digest_of(Path(ct_stream.__file__).parent)[:_DIGITS]}"


def digest_of(package: Path) -> str:
    """Return a digest of the files of a package and of their names, in hexadecimal."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*")):
        if file.suffix in _OURS and not file.name.startswith(".") and file.is_file():
            content = file.read_bytes()
            digest.update(f"{file.relative_to(package).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def new_owner() -> str:
    """Return a name for the leases of this process that no other process has: host/pid/random."""
    return f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
