"""A worker's process ends when its work does, whatever its threads do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from ct_stream.process import ending

if TYPE_CHECKING:
    import pytest

#: A thread as Faust's consumer has one, that nobody can join any more.
_HUNG_THREAD = """
import asyncio, sys, threading
from ct_stream.process.ending import run_to_the_end
threading.Thread(target=threading.Event().wait).start()
"""


def end_of(code: str) -> tuple[int, str, float]:
    """Run code in a process; return its exit code, what it said, and the seconds it took."""
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _HUNG_THREAD + code], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr, time.monotonic() - begin


def test_a_loop_that_breaks_without_memory_ends_the_process_at_once() -> None:
    """An event loop raises what its own code met, with no task that could catch it."""
    code, said, took_s = end_of("""
class Broken(asyncio.SelectorEventLoop):
    def run_until_complete(self, future):
        asyncio.ensure_future(future, loop=self)
        raise MemoryError
async def main():
    await asyncio.sleep(3600)
sys.exit(run_to_the_end(main(), Broken, 3000.0))
""")
    assert code == 70
    assert "the worker's event loop broke (MemoryError)" in said
    assert took_s < 30, "before its watchdog would"


def test_a_thread_that_hangs_at_the_end_does_not_keep_the_process() -> None:
    code, said, _ = end_of("""
async def main():
    return 78
sys.exit(run_to_the_end(main(), asyncio.new_event_loop, 0.5))
""")
    assert code == 78, "as the worker had said"
    assert "a thread still hangs" in said


def test_a_worker_that_ends_well_says_nothing() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import asyncio, sys\nfrom ct_stream.process.ending import run_to_the_end\n"
            "async def main():\n    return 0\nsys.exit(run_to_the_end(main(), asyncio.new_event_loop, 30.0))",
        ],
        capture_output=True, text=True, timeout=25,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_nobody_needs_to_listen_to_the_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error may be a pipe that nobody reads any more; what comes after the words is the end of the process."""

    class Broken:
        def write(self, _text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Broken())
    ends: list[int] = []
    monkeypatch.setattr(os, "_exit", ends.append)
    ending._leave(7)
    assert ends == [7]
