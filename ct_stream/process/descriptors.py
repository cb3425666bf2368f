"""Computes how many companies may be in flight with the descriptors that this process may open.

If no socket can be made, that looks like a network that refuses us: c-ares calls it a refused connection. So one must
always be left (FAULTS row 26).
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

LEAST = 192  #: descriptors; with fewer a worker does not start
_RESERVED = 128  #: for Kafka, Postgres, the health page, Python's own files; about 60 are open at rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What fits into the descriptors."""

    in_flight: int
    asking: int  #: DNS questions at once


def room(wanted: int, descriptors: int, *, most_asking: int) -> Room:
    """Return how many of the wanted passes fit, each with its session and an earlier one that still says QUIT.

    `most_asking`: DNS questions at a time, if there is room enough.
    """
    asking = max(1, min(most_asking, (descriptors - _RESERVED) // 8))
    return Room(in_flight=max(1, min(wanted, (descriptors - _RESERVED - 2 * asking) // 2)), asking=asking)


def raise_limit() -> int:
    """Let this process open as many files as the system allows; return how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
