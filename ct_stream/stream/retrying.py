"""Asks a broker again that will have an answer soon."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from aiokafka.errors import KafkaError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

_RETRIED_S = 15.0
_RETRY_S = 0.2


async def retried(ask: Callable[[], Awaitable[T]], within_s: float = _RETRIED_S) -> T:
    """Return the answer, asking again while the broker says that it will have one soon. Raises KafkaError."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return await ask()
        except KafkaError as error:
            if not error.retriable or time.monotonic() > deadline:
                raise
        await asyncio.sleep(_RETRY_S)
