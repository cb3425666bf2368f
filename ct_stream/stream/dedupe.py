"""Remembers decided companies in the Faust table. It is only asked first: the ledger has the last word.

The table is bounded, first in first out for each partition, because each start replays its changelog before it consumes
anything.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ct_stream.stream.topology import TABLE

if TYPE_CHECKING:
    import faust

KEYS_PER_PARTITION = 2_000


class DedupeTable:
    """outreach_id to (ledger epoch, outcome, partition) of companies that were decided and stamped."""

    def __init__(self, app: faust.App, partitions: int, keys_per_partition: int = KEYS_PER_PARTITION) -> None:
        self._table: Any = app.Table(TABLE, partitions=partitions, key_type=str, value_type=str)
        self._most = keys_per_partition
        self._order: dict[int, deque[str]] | None = None

    def outcome(self, outreach_id: str, epoch: str) -> str | None:
        """Return the remembered outcome. One from another epoch is a miss: that ledger was restored or replaced."""
        value = self._table.get(outreach_id)
        if value is None:
            return None
        kept_epoch, outcome, _ = value.split(" ")
        return str(outcome) if kept_epoch == epoch else None

    def remember(self, outreach_id: str, epoch: str, outcome: str, partition: int) -> None:
        """Keep an outcome. To be called in the event's own task, which gives the changelog its partition."""
        if self._order is None:
            self._order = self._recovered()
        order = self._order.setdefault(partition, deque())
        if self._table.get(outreach_id) is None:
            order.append(outreach_id)
        self._table[outreach_id] = f"{epoch} {outcome} {partition}"
        while len(order) > self._most:
            self._table.pop(order.popleft(), None)

    def revoked(self) -> None:
        """Forget the order, because another recovery follows."""
        self._order = None

    def _recovered(self) -> dict[int, deque[str]]:
        order: dict[int, deque[str]] = {}
        for key, value in self._table.items():
            order.setdefault(int(value.split(" ")[2]), deque()).append(key)
        return order
