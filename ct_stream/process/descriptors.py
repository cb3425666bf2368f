"""How many companies may be in flight with the descriptors that the system lets this process open?

A socket that cannot be made looks like a network that refuses us: c-ares calls it a refused connection. So there must
always be one left (FAULTS row 26).
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

LEAST = 192  #: descriptors without which a worker does not start
_RESERVED = 128  #: Kafka, Postgres, the page, Python's own files; about 60 are open at rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What fits into so many descriptors."""

    in_flight: int
    asking: int  #: DNS questions at once


def room(wanted: int, descriptors: int, *, most_asking: int) -> Room:
    """Return how many of the wanted running passes fit, each with a session and another one that still says QUIT.

    `most_asking`: DNS questions at once, where there is room enough.
    """
    asking = max(1, min(most_asking, (descriptors - _RESERVED) // 8))
    return Room(in_flight=max(1, min(wanted, (descriptors - _RESERVED - 2 * asking) // 2)), asking=asking)


def raise_limit() -> int:
    """Let this process open as many files as the system allows it; return how many that are."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
