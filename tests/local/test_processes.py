"""A child process lives no longer than its parent."""

import asyncio
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ct_stream.local.processes import ChildProcess, LocalError, free_port, require_free_port

IGNORES_TERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)

STARTS_BOTH = """
import asyncio, sys
from pathlib import Path
from ct_stream.local.broker import EmbeddedBroker
from ct_stream.local.postgres import EmbeddedPostgres

async def main(data_dir):
    async with EmbeddedBroker(data_dir) as broker, EmbeddedPostgres(data_dir, durable=False) as postgres:
        print(broker.pid, postgres.pid, flush=True)
        await asyncio.sleep(60)

asyncio.run(main(Path(sys.argv[1])))
"""


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return False
    return state != "Z"  # nobody may be there to reap it


async def becomes_true(condition: Callable[[], bool], deadline_s: float = 10.0) -> bool:
    deadline = time.monotonic() + deadline_s
    while not condition() and time.monotonic() < deadline:  # noqa: ASYNC110  other processes tell us no event
        await asyncio.sleep(0.02)
    return condition()


def child(tmp_path: Path, *argv: str) -> ChildProcess:
    return ChildProcess(argv, name="child", log_path=tmp_path / "child.log")


async def test_a_child_that_ignores_the_stop_signal_is_killed_after_the_deadline(tmp_path: Path) -> None:
    process = child(tmp_path, sys.executable, "-c", IGNORES_TERM)
    process.start()
    assert await becomes_true(lambda: "up" in process.log_path.read_text())
    assert await process.stop(deadline_s=0.1) == -signal.SIGKILL


async def test_a_child_that_ended_is_reported_with_its_last_line(tmp_path: Path) -> None:
    process = child(tmp_path, sys.executable, "-c", "print('no room left'); raise SystemExit(3)")
    process.start()
    assert await process.wait() == 3
    with pytest.raises(LocalError, match="child ended with exit code 3: no room left"):
        process.check_running()


async def test_a_child_is_in_a_session_of_its_own_so_that_ctrl_c_reaches_the_parent_first(tmp_path: Path) -> None:
    process = child(tmp_path, "/bin/sleep", "60")
    process.start()
    assert os.getsid(process.pid) == process.pid
    assert await process.stop() == -signal.SIGTERM


async def test_a_child_is_started_from_the_main_thread_only(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def start() -> None:
        try:
            child(tmp_path, "/bin/true").start()
        except LocalError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


async def test_a_missing_setpriv_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalError, match="install util-linux"):
        child(tmp_path, "/bin/true").start()


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LocalError, match=f"port {port} of 127.0.0.1 cannot be used for postgres"):
            require_free_port(port, "postgres")


def test_two_free_ports_differ() -> None:
    assert free_port() != free_port()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
async def test_no_child_outlives_its_parent(tmp_path: Path, number: signal.Signals) -> None:
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", STARTS_BOTH, str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    broker_pid, postgres_pid = map(int, (await parent.stdout.readline()).split())
    assert is_alive(broker_pid)
    assert is_alive(postgres_pid)
    parent.send_signal(number)
    await parent.communicate()
    assert await becomes_true(lambda: not is_alive(broker_pid))
    assert await becomes_true(lambda: not is_alive(postgres_pid))
    shutil.rmtree((tmp_path / "postgres").resolve())
