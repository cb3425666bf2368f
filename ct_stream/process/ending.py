"""Ends a worker's process: by a signal, or by force, so that it always ends.

Ending hard (os._exit) is safe at any moment: events that are not acked are delivered again. It is needed, because the
interpreter waits for every thread before it exits, and Faust's consumer thread may never end.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

EXIT_OK, EXIT_REFUSED, EXIT_BUG, EXIT_AGAIN, EXIT_NOW = 0, 78, 70, 75, 143  # sysexits.h has 70, 75 and 78
_STOP_SLACK_S = 4.5  #: beyond CT_DRAIN_S; after that the process ends hard, which is safe
_LEAVE_S = 10.0  #: for the loop and the interpreter to close, after the worker's work is over


@dataclass(slots=True)
class StopSignals:
    """SIGTERM and SIGINT: the first one drains, the second one ends the process now."""

    drain_s: float
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    exit_code: int = EXIT_OK

    def install(self) -> None:
        """Listen to both signals."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        if self.asked.is_set():
            _say("second signal: exiting now; events that are not acked are delivered again")
            os._exit(EXIT_NOW)
        self.stop(EXIT_OK)

    def stop(self, exit_code: int) -> None:
        """Ask for the end; it is forced if the drain takes too long."""
        if not self.asked.is_set():
            self.exit_code = exit_code
            self.asked.set()
            asyncio.get_running_loop().call_later(self.drain_s + _STOP_SLACK_S, self._force)

    def _force(self) -> None:
        _say("the drain is over and something still hangs: exiting; events that are not acked are delivered again")
        os._exit(self.exit_code)


def run_to_the_end(
    main: Coroutine[Any, Any, int], new_loop: Callable[[], asyncio.AbstractEventLoop], leave_s: float = _LEAVE_S
) -> int:
    """Run `main` in a loop of its own and return its exit code.

    If the loop itself breaks (above all without memory), the process ends at once with 70: otherwise its threads would
    keep it alive while nothing works. Once `main` is over, loop and interpreter have `leave_s` seconds to close.
    """
    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            code = runner.run(main)
        except BaseException as error:  # whatever it is, nothing works any more
            _end_broken(error)
        timer = threading.Timer(leave_s, _leave, [code])
        timer.daemon = True
        with suppress(RuntimeError, MemoryError):  # if no thread can be made, the interpreter must exit by itself
            timer.start()
    return code


def _leave(code: int) -> None:
    _say("the worker has stopped and a thread still hangs: exiting; events that are not acked are delivered again")
    os._exit(code)


def _end_broken(error: BaseException) -> NoReturn:
    """Say what broke, as far as that is possible without memory, and end the process."""
    try:
        traceback.print_exception(error)
        name = type(error).__name__
        _say(f"the worker's event loop broke ({name}): exiting; events that are not acked are delivered again")
    finally:
        os._exit(EXIT_BUG)


def _say(text: str) -> None:
    """Say it, if anybody listens: after this the process must end, whatever becomes of its standard error."""
    with suppress(Exception):
        sys.stderr.write(f"ct-stream: {text}\n")
        sys.stderr.flush()
