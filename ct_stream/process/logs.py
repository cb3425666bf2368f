"""Sets up the worker's log: sentences for people, or with CT_LOG=json one object a line for machines."""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ct_stream.texts import for_json, for_terminal

if TYPE_CHECKING:
    from collections.abc import Callable

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: Loggers that say more than an operator can use (Faust also logs in our app's name). Their warnings are kept.
_NOISY = ("aiokafka", "faust", "mode", "asyncio", "kafka", "ct_stream.stream.app")


#: While brokers are away, aiokafka says so ten times a second for each of them.
_SAID_AGAIN_S = 30.0


class Sparing(logging.Filter):
    """Let a library say the same thing once in 30 s."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._said_at: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is worth a line."""
        if not record.name.startswith(_NOISY):
            return True
        said, now = (record.name, str(record.msg)), self._clock()
        if now - self._said_at.get(said, float("-inf")) < _SAID_AGAIN_S:
            return False
        self._said_at[said] = now
        return True


class JsonLines(logging.Formatter):
    """One JSON object a record, with the `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line."""
        body: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        body |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            body["traceback"] = self.formatException(record.exc_info)
        return for_json(body)


class TextLines(logging.Formatter):
    """One record a line; further lines of it, and its traceback, are indented, so that none can pass for a record."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines."""
        record.message = record.getMessage()
        record.asctime = self.formatTime(record)
        text = self.formatMessage(record)
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return for_terminal(text).replace("\n", "\n    ")


def set_up_logs(*, json: bool, level: int = logging.INFO) -> None:
    """Log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if json else TextLines())
    handler.addFilter(Sparing())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
