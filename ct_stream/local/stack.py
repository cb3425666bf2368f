"""Keep the embedded stack up after the shell that started it has ended, under its own supervisor.

    python -m ct_stream.local.stack --data-dir DIR

The supervisor owns broker and Postgres: they die with it (see `processes`), and it ends when one of them dies. A lock
on `stack.lock` says that it lives, whatever files a crash left behind; `stack.json` appears when both serve.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

import asyncpg
import orjson

from ct_stream.local.broker import EmbeddedBroker
from ct_stream.local.postgres import EmbeddedPostgres
from ct_stream.local.processes import LocalError, lock_holder
from ct_stream.settings import Settings
from ct_stream.store.migrate import MigrationError, migrate
from ct_stream.stream.topology import TopologyError, create_topics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DATABASE = "outreach"
_LOCK, _STATE, _LOG = "stack.lock", "stack.json", "stack.log"
_UP_S = 90.0  #: a first start makes a cluster, a start after a crash replays its log
_DOWN_S = 40.0  #: Postgres writes a checkpoint
_POLL_S = 0.05
_WATCH_S = 1.0  #: how soon the end of a child is noticed

#: What upstream owns: the spine, and a schema that the gate's role must never read.
_UPSTREAM = """
CREATE SCHEMA IF NOT EXISTS outreach;
CREATE TABLE IF NOT EXISTS outreach.outreach (
    outreach_id uuid PRIMARY KEY,
    domain text,
    sovereign_id uuid,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE SCHEMA IF NOT EXISTS cl;
CREATE TABLE IF NOT EXISTS cl.company_identity (
    sovereign_id uuid PRIMARY KEY,
    company_name text
);
REVOKE ALL ON SCHEMA cl FROM PUBLIC;
"""
_LOGINS = ("ct_gate", "ct_ops")


@dataclass(frozen=True, slots=True, kw_only=True)
class StackState:
    """Where a running stack is; it holds passwords, so its file is for its owner only."""

    pid: int
    bootstrap: str
    postgres_dsn: str
    postgres_ops_dsn: str
    postgres_admin_dsn: str
    data_dir: str

    def env(self) -> dict[str, str]:
        """Return the settings that lead to this stack."""
        return {
            "CT_KAFKA_BOOTSTRAP": self.bootstrap,
            "CT_POSTGRES_DSN": self.postgres_dsn,
            "CT_POSTGRES_OPS_DSN": self.postgres_ops_dsn,
            "CT_POSTGRES_ADMIN_DSN": self.postgres_admin_dsn,
            "CT_DATA_DIR": self.data_dir,
        }

    def to_json(self) -> bytes:
        """Return the state as its file holds it."""
        return orjson.dumps(self, option=orjson.OPT_INDENT_2)

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Read what `to_json` gave."""
        return cls(**orjson.loads(text))


def export_lines(env: dict[str, str]) -> str:
    """Return `export NAME=value` lines for a shell."""
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in env.items())


class LocalStack:
    """Broker and Postgres, migrated and with topics, for as long as the `async with` lasts."""

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        self._data_dir = data_dir
        self._durable = durable

    async def __aenter__(self) -> StackState:
        self._stack = AsyncExitStack()
        try:
            return await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def check_running(self) -> None:
        """Raise LocalError when the broker or Postgres has ended."""
        self._broker.check_running()
        self._postgres.check_running()

    async def _start(self) -> StackState:
        self._data_dir.mkdir(parents=True, exist_ok=True)
        self._broker = await self._stack.enter_async_context(EmbeddedBroker(self._data_dir))
        self._postgres = await self._stack.enter_async_context(EmbeddedPostgres(self._data_dir, durable=self._durable))
        passwords = _passwords(self._data_dir / "logins.json")
        admin_dsn = self._postgres.dsn(DATABASE)
        with suppress(asyncpg.DuplicateDatabaseError):
            await self._postgres.create_database(DATABASE)
        async with _connected(admin_dsn) as connection:
            await connection.execute(_UPSTREAM)
        await migrate(admin_dsn)
        async with _connected(admin_dsn) as connection:
            for role in _LOGINS:
                await connection.execute(f"ALTER ROLE {role} LOGIN PASSWORD '{passwords[role]}'")
        await create_topics(Settings(kafka_bootstrap=self._broker.bootstrap))
        return StackState(
            pid=os.getpid(),
            bootstrap=self._broker.bootstrap,
            postgres_dsn=self._postgres.dsn(DATABASE, "ct_gate", passwords["ct_gate"]),
            postgres_ops_dsn=self._postgres.dsn(DATABASE, "ct_ops", passwords["ct_ops"]),
            postgres_admin_dsn=admin_dsn,
            data_dir=str(self._data_dir),
        )


def _passwords(path: Path) -> dict[str, str]:
    """Return the password of each login, made at the first start and readable by their owner only."""
    try:
        found = orjson.loads(path.read_bytes())
        return {role: str(found[role]) for role in _LOGINS}
    except FileNotFoundError:
        made = {role: secrets.token_hex(16) for role in _LOGINS}
        _write_private(path, orjson.dumps(made))
        return made


def _write_private(path: Path, contents: bytes) -> None:
    """Write a file for its owner only, in one step: a reader finds all of it or none."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(contents)
    partial.rename(path)


@asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn, timeout=10)
    try:
        yield connection
    finally:
        await connection.close()


# ---------------------------------------------------------------- the supervisor's process


async def _supervise(data_dir: Path) -> None:
    """Keep the stack up until a signal, or until one of its processes ends."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked.set)
    stack = LocalStack(data_dir)
    starting = asyncio.create_task(stack.__aenter__())
    stopping = asyncio.create_task(asked.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        return
    state_path = data_dir / _STATE
    try:
        _write_private(state_path, starting.result().to_json())
        while not asked.is_set():
            stack.check_running()
            with suppress(TimeoutError):
                await asyncio.wait_for(asked.wait(), _WATCH_S)
    finally:
        state_path.unlink(missing_ok=True)
        stopping.cancel()
        if not starting.cancelled() and starting.exception() is None:
            await stack.__aexit__(None, None, None)


def main() -> int:
    """Run the supervisor."""
    parser = argparse.ArgumentParser(prog="python -m ct_stream.local.stack", description=_supervise.__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    data_dir: Path = parser.parse_args().data_dir
    data_dir.mkdir(parents=True, exist_ok=True)
    with (data_dir / _LOCK).open("a+") as lock:
        if not _locked(lock):
            print("another supervisor runs on this directory", file=sys.stderr)
            return 1
        # The state file of a supervisor that was killed is out of date.
        (data_dir / _STATE).unlink(missing_ok=True)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        try:
            asyncio.run(_supervise(data_dir))
        except (LocalError, MigrationError, TopologyError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def _locked(lock: TextIO) -> bool:
    """Take the lock if no supervisor holds it; somebody who only checks it holds it for a moment, so try again."""
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_S)
        else:
            return True
    return False


# ---------------------------------------------------------------- from a shell


def running(data_dir: Path) -> StackState | None:
    """Return the stack that serves from this directory, or None."""
    pid = supervisor_pid(data_dir)
    if pid is None:
        return None
    try:
        state = StackState.from_json((data_dir / _STATE).read_bytes())
    except FileNotFoundError:
        return None  # it is coming up, or going down
    return state if state.pid == pid else None


def supervisor_pid(data_dir: Path) -> int | None:
    """Return the process that holds the directory's lock, or None."""
    return lock_holder(data_dir / _LOCK)


def up(data_dir: Path) -> tuple[StackState, bool]:
    """Start the stack in the background; return it and whether it was started now. Raises LocalError."""
    state = running(data_dir)
    if state is not None:
        return state, False
    data_dir.mkdir(parents=True, exist_ok=True)
    log_path = data_dir / _LOG
    with log_path.open("ab") as log:
        log_from = log.tell()
        # A session of its own: neither Ctrl-C nor the end of the terminal reaches it.
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "ct_stream.local.stack", "--data-dir", str(data_dir)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    deadline = time.monotonic() + _UP_S
    try:
        while time.monotonic() < deadline:
            state = running(data_dir)
            if state is not None:
                return state, state.pid == supervisor.pid
            if supervisor.poll() is not None and supervisor_pid(data_dir) is None:
                said = log_path.read_bytes()[log_from:].decode(errors="backslashreplace").strip()
                raise LocalError(f"the local stack did not start: {said.rpartition(chr(10))[2]} (see {log_path})")
            time.sleep(_POLL_S)
        raise LocalError(f"the local stack does not serve after {_UP_S:g} s; see {log_path}")
    except BaseException:
        if supervisor.poll() is None:
            supervisor.terminate()
            supervisor.wait(_DOWN_S)
        raise
    finally:
        if supervisor.poll() is None:
            supervisor.returncode = 0  # it outlives us on purpose: no warning at the end


def down(data_dir: Path) -> bool:
    """Stop the stack and return when all of it has ended; False when none ran. Raises LocalError."""
    pid = supervisor_pid(data_dir)
    if pid is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _DOWN_S
    while supervisor_pid(data_dir) is not None:
        if time.monotonic() > deadline:
            raise LocalError(
                f"the local stack (process {pid}) has not ended after {_DOWN_S:g} s; see {data_dir / _LOG}"
            )
        time.sleep(_POLL_S)
    return True


if __name__ == "__main__":
    sys.exit(main())
