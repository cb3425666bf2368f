"""Runs Debian's PgBouncer before a Postgres."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ct_stream.local.processes import free_port
from tests.mta.packages import unpacked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_READY_S = 10.0
_CONFIG = """\
[databases]
* = host={host} port={port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own_port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users.txt
pool_mode = {mode}
logfile = {folder}/pgbouncer.log
user = nobody
default_pool_size = 20
max_client_conn = 200
{more}
"""


@contextmanager
def pgbouncer(mode: str, dsns: Sequence[str], **more: str) -> Iterator[dict[str, str]]:
    """Run PgBouncer in a pool mode before the server of these DSNs, and lend each DSN as it leads through it."""
    root, own_port = unpacked() / "pgbouncer", free_port()
    logins = {dsn: urlsplit(dsn) for dsn in dsns}
    server = next(iter(logins.values()))
    # Not below pytest's folder: the server's own user may not enter it.
    folder = Path(tempfile.mkdtemp(prefix="ct-stream-pgbouncer-"))
    (folder / "users.txt").write_text("".join(f'"{at.username}" "{at.password}"\n' for at in logins.values()))
    lines = "\n".join(f"{name} = {value}" for name, value in more.items())
    (folder / "pgbouncer.ini").write_text(
        _CONFIG.format(host=server.hostname, port=server.port, own_port=own_port, folder=folder, mode=mode, more=lines)
    )
    for path in (folder, *folder.iterdir()):
        os.chown(path, 65534, 65534)
    process = subprocess.Popen(
        [str(root / "usr/sbin/pgbouncer"), "-q", str(folder / "pgbouncer.ini")],
        env=os.environ | {"LD_LIBRARY_PATH": str(root / "usr/lib/x86_64-linux-gnu")},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait(process, own_port, folder)
        yield {
            dsn: at._replace(netloc=f"{at.username}:{at.password}@127.0.0.1:{own_port}").geturl()
            for dsn, at in logins.items()
        }
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def _wait(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            log = folder / "pgbouncer.log"
            said = log.read_text() if log.exists() else ""
            assert process.poll() is None, f"pgbouncer ended: {said}"
            assert time.monotonic() < deadline, f"pgbouncer does not listen: {said}"
            time.sleep(0.05)
        else:
            return
