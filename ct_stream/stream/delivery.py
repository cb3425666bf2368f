"""Finds records that wait in Kafka for us and are not delivered.

Faust has lost its place before without saying so (offset_guard.py): such a worker is ready and idle. The guard sees a
hole only when the next record comes. If none comes, only a look from outside the group shows it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from faust.types import TP

#: Since the last wait for room; by then everything that was fetched has been taken.
_QUIET_S = 20.0
_ON_ITS_WAY_S = 2.0
_NOWHERE = -1


class Delivery:
    """Compares, look by look, how far each partition is here with what there is to read."""

    def __init__(
        self,
        *,
        positions: Callable[[], Mapping[TP, int | None]],
        busy_at: Callable[[], float],
        first_records: Callable[[Mapping[TP, int | None]], Awaitable[Mapping[TP, int]]],
        on_its_way_s: float = _ON_ITS_WAY_S,
    ) -> None:
        self._positions = positions  # the next offset of each of our partitions, None if it is not known yet
        self._busy_at = busy_at  # when this worker last had no room for records, on the monotonic clock
        self._first_records = first_records  # the first at or after these offsets; None: the committed offset
        self._on_its_way_s = on_its_way_s
        self._before: Mapping[TP, int | None] = {}

    async def undelivered(self) -> dict[TP, int]:
        """Return the offset of the record that waits, for each partition that has not advanced since the last look.

        Raises KafkaError, OSError or TimeoutError.
        """
        before, self._before = self._before, dict(self._positions())
        stood = {tp: at for tp, at in self._before.items() if before.get(tp, _NOWHERE) == at}
        if not stood or time.monotonic() - self._busy_at() < _QUIET_S:
            return {}
        found = await self._first_records(stood)
        if found:
            await asyncio.sleep(self._on_its_way_s)
        positions = self._positions()
        return {tp: offset for tp, offset in found.items() if positions.get(tp, _NOWHERE) == stood[tp]}
