"""Run a command and leave nothing of it behind: python tools/no_orphans.py COMMAND...

Tests start servers, and servers that start servers, some in sessions of their own. Whatever loses its parent becomes a
child of this process (prctl(2), PR_SET_CHILD_SUBREAPER) and is ended when the command has ended, however that came
about. A command that ends by itself and leaves a process behind has failed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
_GOES_BY_ITSELF_S = 5.0
_AFTER_TERM_S = 5.0
_POLL_S = 0.05


def main(argv: list[str]) -> int:
    """Run the command; return its exit code."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_SET_CHILD_SUBREAPER")
    stopped: list[int] = []
    command = os.posix_spawnp(argv[0], argv, os.environ)

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        if number == signal.SIGTERM:
            os.kill(command, signal.SIGINT)  # pytest cleans up after SIGINT only; a terminal's Ctrl-C reaches it anyway

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    exit_code = wait_for(command)
    left = [] if stopped else those_left_after(_GOES_BY_ITSELF_S)
    end_all()
    for line in left:
        print(f"left behind: {line}", file=sys.stderr)
    return exit_code or (1 if left else 0)


def wait_for(command: int) -> int:
    """Reap every child, as init does, until the command has ended; return its exit code."""
    while True:
        pid, status = os.wait()
        if pid == command:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def those_left_after(wait_s: float) -> list[str]:
    """Return the command lines of what still runs when `wait_s` is over, or nothing as soon as nothing does."""
    deadline = time.monotonic() + wait_s
    while (pids := children()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace") for pid in pids]


def end_all() -> None:
    """End all children, and theirs as they become ours: SIGTERM, later SIGKILL."""
    kill_at: dict[int, float] = {}
    while pids := children():
        for pid in pids:
            if pid not in kill_at:
                kill_at[pid] = time.monotonic() + _AFTER_TERM_S
                os.kill(pid, signal.SIGTERM)
            elif kill_at[pid] < time.monotonic():
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)


def children() -> list[int]:
    """Reap those who have ended; return the others. None of these can vanish before it is reaped here."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                break
        except ChildProcessError:
            return []
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _is_ours(entry)]


def _is_ours(entry: Path) -> bool:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
    except (OSError, ValueError):  # ended meanwhile, and somebody else's
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
