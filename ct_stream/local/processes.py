"""Run child processes that end when this process ends, however it ends.

A child runs in a session of its own, so Ctrl-C at the terminal reaches only the parent, which stops its children in
order. If the parent is killed, the kernel sends each child its death signal: no orphans either way.
"""

import asyncio
import contextlib
import fcntl
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

#: How long a killed child may take to be reaped; the kernel ends it at once unless it hangs in a system call.
_KILL_S = 5.0


class LocalError(Exception):
    """The embedded stack cannot run here; the message is one line that says what to do."""


class ChildProcess:
    """Run one program as a supervised child.

    Start it from the main thread: the kernel ties the death signal to the thread that forked, and sends it when that
    thread ends (prctl(2), PR_SET_PDEATHSIG).
    """

    def __init__(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        name: str,
        log_path: Path,
        stop_signal: signal.Signals = signal.SIGTERM,
        death_signal: signal.Signals = signal.SIGKILL,
        uid: int | None = None,
        gid: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.argv = [os.fspath(part) for part in argv]
        self.name = name
        self.log_path = log_path
        self._stop_signal = stop_signal
        self._death_signal = death_signal
        self._uid = uid
        self._gid = gid
        self._env = env
        self._cwd = cwd
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program; its output is appended to the log file."""
        if threading.current_thread() is not threading.main_thread():
            raise LocalError(f"{self.name} must be started from the main thread: it would end with any other one")
        # setpriv sets the death signal after the change of user (which would clear it) and then becomes the program.
        # A preexec_fn could do the same but may deadlock in a process with threads.
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise LocalError("setpriv is not installed; install util-linux 2.33 or newer")
        with self.log_path.open("ab") as log:
            self._popen = subprocess.Popen(
                [setpriv, "--pdeathsig", self._death_signal.name.removeprefix("SIG"), *self.argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self._uid,
                group=self._gid,
                extra_groups=None if self._uid is None else [],
                env=self._env,
                cwd=self._cwd,
            )

    @property
    def pid(self) -> int:
        """Return the id of the started process."""
        return self._started().pid

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        return self._started().poll()

    def check_running(self) -> None:
        """Raise LocalError with the log's last line if the process has ended."""
        code = self.exit_code()
        if code is not None:
            raise LocalError(f"{self.name} ended with exit code {code}: {self.last_log_line()} (see {self.log_path})")

    def last_log_line(self) -> str:
        """Return the last line that the process wrote, for error messages."""
        with contextlib.suppress(OSError):
            lines = self.log_path.read_bytes()[-4096:].decode(errors="backslashreplace").split("\n")
            return next((line.strip() for line in reversed(lines) if line.strip()), "it wrote nothing")
        return "its log cannot be read"

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        self._started().send_signal(number)

    async def wait(self) -> int:
        """Return the exit code once the process has ended."""
        popen = self._started()
        code = popen.poll()
        if code is not None:
            return code
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        pidfd = os.pidfd_open(popen.pid)
        loop.add_reader(pidfd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return popen.wait(_KILL_S)

    async def stop(self, deadline_s: float = 10.0) -> int:
        """Ask the process to end, kill it after `deadline_s`, and return its exit code."""
        self.send(self._stop_signal)
        try:
            async with asyncio.timeout(deadline_s):
                return await self.wait()
        except TimeoutError:
            return await self.kill()
        except asyncio.CancelledError:
            # A second Ctrl-C: whoever asks twice does not want to wait, and must not leave an orphan.
            self.send(signal.SIGKILL)
            raise

    async def kill(self) -> int:
        """Kill the process and return its exit code."""
        self.send(signal.SIGKILL)
        async with asyncio.timeout(_KILL_S):
            return await self.wait()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._popen is None:
            raise LocalError(f"{self.name} was not started")
        return self._popen


def in_a_shell(*, here: bool = False) -> str:
    """Return how a shell calls ct-stream: by its name if that finds this installation, otherwise by its path.

    `here`: the shell is in this process's directory, so that a shorter path will do.
    """
    program = Path(sys.executable).with_name("ct-stream")
    if not program.exists() or shutil.which("ct-stream") == str(program):
        return "ct-stream"
    if here and program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return shlex.quote(str(program))


def require_free_port(port: int, name: str) -> None:
    """Raise LocalError if somebody listens on that port of 127.0.0.1: a child would fail later and less clearly."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a former server left does not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            reason = error.strerror
            raise LocalError(f"port {port} of 127.0.0.1 cannot be used for {name}: {reason}; choose another") from error


def remove_tree(folder: Path) -> None:
    """Remove a folder, though a process that is just ending may still write in it."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def raise_descriptor_limit() -> None:
    """Allow this process as many open files as the system lets it: each connection and each address is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def lock_holder(file: Path) -> int | None:
    """Return the process that holds the lock on a file with its id in it, or None where nobody does."""
    try:
        lock = file.open("r")
    except FileNotFoundError:
        return None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = lock.read().strip()
            return int(text) if text.isdigit() else None
    return None
