"""Which workers run, and with which limits and patterns? A person may let new ones in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from ct_stream.gate.toolbox_change import differences
from ct_stream.ops.reader import reader
from ct_stream.store.worker_record import ALIVE_S

if TYPE_CHECKING:
    from ct_stream.probes.toolbox import Toolbox
    from ct_stream.settings import Settings

Row = dict[str, Any]


async def workers(settings: Settings) -> list[Row]:
    """Return the worker runs of the last day, the running ones first."""
    async with reader(settings) as read:
        return [_told(row) for row in await read.rows("workers", ALIVE_S)]


async def accept_toolbox(settings: Settings, toolbox: Toolbox, reason: str) -> list[str]:
    """Let workers start with this toolbox beside others; return how it differs from those that run, a line each."""
    values = orjson.loads(orjson.dumps(toolbox.values()))
    async with reader(settings, read_only=False) as write:
        running = [_told(row) for row in await write.rows("workers", ALIVE_S)]
        await write.change("accept_toolbox", orjson.dumps(values).decode(), reason)
    changes = {change for row in running if row["is_running"] for change in differences(values, row["toolbox"])}
    return sorted(changes)


def _told(row: Any) -> Row:
    read = {name: orjson.loads(row[name]) for name in ("toolbox", "troubles", "notes")}
    return dict(row) | {
        name: value if isinstance(value, dict) else {"unreadable": value} for name, value in read.items()
    }
