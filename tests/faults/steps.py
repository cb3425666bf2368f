"""Where in the way of one event does a fault strike? Loaded into a worker's process; the product knows nothing of it.

Each named step of docs/flow.md is a function of the product that is wrapped here: when it has been passed so many
times, the process is killed or stopped on the spot.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from faust.events import Event

from ct_stream.company.checks import SpineRow
from ct_stream.company.one_pass import CompanyPass
from ct_stream.probes.mx import Resolver
from ct_stream.store.database import Database
from ct_stream.store.ledger import Ledger
from ct_stream.stream.agents import GateAgent
from ct_stream.stream.producer import Producer

if TYPE_CHECKING:
    from collections.abc import Callable

#: In the order in which one event passes them.
STEPS = (
    "received",
    "spine read",
    "mx done",
    "smtp done",
    "recording",
    "recorded",
    "published",
    "stamped",
    "acked",
)
#: Passed once for all companies of a statement.
BATCH_STEPS = frozenset({"recording", "stamped"})


def strike(step: str, times: int, how: int = signal.SIGKILL) -> None:
    """Send `how` to this process when `step` has been passed for the `times`th time."""
    passed = 0

    def count(*_: object) -> None:
        nonlocal passed
        passed += 1
        if passed == times:
            sys.stderr.write(f"STRUCK at {step!r}\n")
            sys.stderr.flush()
            os.kill(os.getpid(), how)

    _WRAP[step](count)


def _before(owner: Any, name: str, count: Callable[..., None], when: Callable[..., bool] = lambda *_: True) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            count()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def _after(owner: Any, name: str, count: Callable[..., None], when: Callable[..., bool] = lambda *_: True) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = await original(*args, **kwargs)
        if when(*args):
            count()
        return result

    setattr(owner, name, wrapped)


def _while_recording(count: Callable[..., None]) -> None:
    """Strike while the transaction that records outcomes is at the server: its fate is unknown to us."""
    original = Database.fetch

    async def wrapped(self: Database, name: str, *args: Any) -> Any:
        if name != "record":
            return await original(self, name, *args)
        recording = asyncio.create_task(original(self, name, *args))
        await asyncio.sleep(0.002)
        count()
        return await recording

    Database.fetch = wrapped  # type: ignore[method-assign]


def _is_outcome(*args: Any) -> bool:
    return args[1] in ("ct.pass", "ct.fail")


_WRAP: dict[str, Callable[[Callable[..., None]], None]] = {
    "received": lambda count: _before(GateAgent, "_handle", count),
    "spine read": lambda count: _after(SpineRow, "lookup", count),
    "mx done": lambda count: _after(Resolver, "lookup_mx", count),
    "smtp done": lambda count: _after(CompanyPass, "run", count, lambda run: len(run.exchanges) > 3),
    "recording": _while_recording,
    "recorded": lambda count: _after(Ledger, "record", count),
    "published": lambda count: _after(Producer, "send", count, _is_outcome),
    "stamped": lambda count: _after(Database, "run", count, lambda _, name, *__: name == "stamp"),
    "acked": lambda count: _before(Event, "ack", count),
}
