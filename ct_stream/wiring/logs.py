"""How does the worker speak? A sentence for people, or with CT_LOG=json one object a line for machines."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

import orjson

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
#: What tells more than an operator can use, Faust in our app's name too; warnings stay.
_NOISY = ("aiokafka", "faust", "mode", "asyncio", "kafka", "ct_stream.stream.app")


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
        return orjson.dumps(body, default=str).decode()


def set_up_logs(*, json: bool, level: int = logging.INFO) -> None:
    """Log to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
