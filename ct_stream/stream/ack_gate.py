"""Acks events in the order of their arrival, so that an offset is committed only when every event before it is done.

If acks come out of order, Faust commits past an unfinished event (its gap guard misses the head; docs/adr has the
measurement). So there is one queue for each partition here, and acks leave it in order.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar


class Ackable(Protocol):
    """What we use of a Faust event."""

    def ack(self) -> bool:
        """Tell the consumer that this offset is done."""


Event = TypeVar("Event", bound=Ackable)


@dataclass(slots=True, eq=False)
class Cell(Generic[Event]):
    """An event's place in its partition's queue."""

    event: Event
    generation: int
    arrived_at: float = field(default_factory=time.monotonic)
    is_done: bool = False


class AckGates(Generic[Event]):
    """The queues of all partitions, bounded, so that one slow event does not make a restart repeat all others."""

    def __init__(self, most_unacked: int = 20_000) -> None:
        self.most_unacked = most_unacked  #: a partition
        self._queues: dict[object, deque[Cell[Event]]] = {}
        self._last_acked: dict[object, Event] = {}
        self._generation = 0

    def has_room(self, partition: object) -> bool:
        """Return whether another event of this partition may be taken."""
        return len(self._queues.get(partition, ())) < self.most_unacked

    def arrive(self, partition: object, event: Event) -> Cell[Event]:
        """Queue an event behind those of its partition that came before."""
        cell = Cell(event=event, generation=self._generation)
        self._queues.setdefault(partition, deque()).append(cell)
        return cell

    def finish(self, partition: object, cell: Cell[Event]) -> int:
        """Mark an event as done, and ack the done events at the head of the queue; return how many.

        After `clear` the event belongs to an earlier assignment: nothing is acked, and it is delivered again.
        """
        cell.is_done = True
        if cell.generation != self._generation:
            return 0
        queue = self._queues[partition]
        acked = 0
        while queue and queue[0].is_done:
            event = queue.popleft().event
            event.ack()
            self._last_acked[partition] = event
            acked += 1
        return acked

    def clear(self) -> None:
        """Forget everything: the partitions are revoked, and events that are not acked are delivered again."""
        self._generation += 1
        self._queues.clear()
        self._last_acked.clear()

    def heads(self) -> list[Cell[Event]]:
        """Return the oldest event in hand of each partition."""
        return [queue[0] for queue in list(self._queues.values()) if queue]

    def last_acked(self) -> list[Event]:
        """Return the newest acked event of each partition."""
        return list(self._last_acked.values())

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def oldest_age_s(self) -> float:
        """Return how long the oldest un-acked event has been here; 0 if there is none."""
        heads = [queue[0].arrived_at for queue in self._queues.values() if queue]
        return time.monotonic() - min(heads) if heads else 0.0
