"""The embedded stack in the background: up, status, env, down, and no orphan whatever happens."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import orjson
import pytest

from ct_stream.local.stack import running, supervisor_pid
from ct_stream.settings import load_settings
from ct_stream.stream.topology import check_topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def data_dir(tmp_path: Path) -> Iterator[Path]:
    """Lend a directory, and leave no process that runs on it."""
    yield tmp_path
    pid = supervisor_pid(tmp_path)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
    postgres = tmp_path / "postgres"
    if postgres.exists():
        assert becomes_true(lambda: not processes_of(postgres.resolve()))
        shutil.rmtree(postgres.resolve())


def ct_stream(data_dir: Path, *args: str, **settings: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("CT_")}
    return subprocess.run(
        [sys.executable, "-m", "ct_stream", *args],
        env=own | {"CT_DATA_DIR": str(data_dir), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | settings,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def processes_of(data_dir: Path) -> list[int]:
    """Return the living processes whose command line names the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            argv = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(data_dir) in argv:
            found.append(int(entry.name))
    return found


def becomes_true(condition: Callable[[], bool], deadline_s: float = 15.0) -> bool:
    deadline = time.monotonic() + deadline_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def env_of(data_dir: Path) -> dict[str, str]:
    result = ct_stream(data_dir, "local", "env", "--json")
    assert result.returncode == 0, result.stderr
    env: dict[str, str] = orjson.loads(result.stdout)
    return env


async def looks_right(env: dict[str, str]) -> None:
    """Look at the stack as a gate and a person would."""
    await check_topics(load_settings(env))
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(env["CT_POSTGRES_DSN"])
    try:
        assert await connection.fetchval("SELECT count(*) FROM (SELECT s.domain FROM outreach.outreach AS s) AS x") == 0
        for forbidden in ("SELECT sovereign_id FROM outreach.outreach", "SELECT company_name FROM cl.company_identity"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.fetch(forbidden)
    finally:
        await connection.close()


def test_up_env_status_down(data_dir: Path) -> None:
    assert ct_stream(data_dir, "local", "status").returncode == 1
    assert ct_stream(data_dir, "local", "env").returncode == 69
    up = ct_stream(data_dir, "local", "up")
    assert up.returncode == 0, up.stderr
    assert up.stdout.startswith("started: broker on 127.0.0.1:")
    assert ct_stream(data_dir, "local", "up").stdout.startswith("it runs already: ")
    assert ct_stream(data_dir, "local", "status").returncode == 0

    env = env_of(data_dir)
    exported = ct_stream(data_dir, "local", "env").stdout.splitlines()
    assert [line.partition("=")[0] for line in exported] == [f"export {name}" for name in env]
    asyncio.run(looks_right(env))
    for name in ("stack.json", "logins.json"):
        assert (data_dir / name).stat().st_mode & 0o777 == 0o600
    assert ct_stream(data_dir, "held", **env).stdout == "no company waits or is stuck\n"

    assert ct_stream(data_dir, "local", "down").stdout == "stopped\n"
    assert running(data_dir) is None
    assert processes_of((data_dir / "postgres").resolve()) == []
    assert ct_stream(data_dir, "local", "down").stdout == "nothing runs\n"
    # The same logins lead to the same data after the next start.
    assert ct_stream(data_dir, "local", "up").returncode == 0
    assert env_of(data_dir)["CT_POSTGRES_DSN"].partition("@")[0] == env["CT_POSTGRES_DSN"].partition("@")[0]
    assert ct_stream(data_dir, "local", "down").returncode == 0


def test_a_killed_supervisor_leaves_no_orphan_and_up_starts_again(data_dir: Path) -> None:
    assert ct_stream(data_dir, "local", "up").returncode == 0
    bootstrap = env_of(data_dir)["CT_KAFKA_BOOTSTRAP"]
    pid = supervisor_pid(data_dir)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert becomes_true(lambda: not processes_of(data_dir) and not processes_of((data_dir / "postgres").resolve()))
    assert becomes_true(lambda: not any(bootstrap.encode() in argv for argv in command_lines().values()))
    assert ct_stream(data_dir, "local", "status").returncode == 1
    assert ct_stream(data_dir, "local", "up").stdout.startswith("started: ")
    assert ct_stream(data_dir, "local", "down").returncode == 0


def test_the_stack_ends_when_one_of_its_processes_ends(data_dir: Path) -> None:
    assert ct_stream(data_dir, "local", "up").returncode == 0
    bootstrap = env_of(data_dir)["CT_KAFKA_BOOTSTRAP"]
    (broker,) = [pid for pid, argv in command_lines().items() if b"tansu" in argv and bootstrap.encode() in argv]
    os.kill(broker, signal.SIGKILL)
    assert becomes_true(lambda: supervisor_pid(data_dir) is None)
    assert "broker ended with exit code -9" in (data_dir / "stack.log").read_text()
    assert processes_of((data_dir / "postgres").resolve()) == []


def command_lines() -> dict[int, bytes]:
    """Return the command line of each living process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = (entry / "cmdline").read_bytes()
            except OSError:
                continue
    return found
