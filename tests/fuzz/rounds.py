"""How long do the fuzzers run? Seconds in `make test`, as many as CT_TEST_FUZZ_S says in `make fuzz`."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SECONDS = float(os.environ.get("CT_TEST_FUZZ_S", "0"))
EXAMPLES = 500 if SECONDS else 120


async def hang_up(server: asyncio.Server, writers: Iterable[asyncio.StreamWriter]) -> None:
    """End a server with its connections, so that no socket outlives the loop of its example."""
    server.close()
    for _ in range(5):  # what is accepted already becomes a connection with a writer first
        await asyncio.sleep(0)
    for writer in writers:
        writer.transport.abort()
    await server.wait_closed()
    for writer in writers:
        with suppress(ConnectionError):
            await writer.wait_closed()


def rounds(one: Callable[[], None]) -> None:
    """Run `one`, some hundred new examples each time, until the time is up; at least once."""
    deadline, examples = time.monotonic() + SECONDS, 0
    while True:
        one()
        examples += EXAMPLES
        if time.monotonic() >= deadline:
            break
    print(f"{one.__name__}: {examples} examples", flush=True)
