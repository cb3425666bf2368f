"""Decides whether a worker's own version is broken, from the companies that became stuck lately.

A company is stuck when our own code raised three times while deciding it. One stranger's server can do that to its own
companies, if it says what our code cannot read. It must not be able to stop everybody else's (docs/faults.md), so what
counts is how many places of the code raised, and whether other companies were decided meanwhile.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ENOUGH = 20  #: companies that became stuck within an hour
MOST_A_PLACE = 5  #: of them that count for one place where strangers' words are read
#: The rooms that read what servers, resolvers and vendors say.
_READ_STRANGERS = ("ct_stream/probes/", "ct_stream/gate/")
_FRAME = re.compile(r'File "[^"]*?(ct_stream/[^"]+)", line (\d+)')


def place_of(traceback: str) -> str:
    """Return where our own code was when it raised, as file and line; "" if no frame is ours."""
    frames = _FRAME.findall(traceback)
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""


def why_broken(tracebacks: Sequence[str], decided: int) -> str | None:
    """Return why this version must be broken, in a sentence; None if it need not be.

    `tracebacks` are those of the companies that became stuck within an hour, and `decided` is how many companies were
    decided since the first of them became stuck.
    """
    if len(tracebacks) < ENOUGH or decided >= len(tracebacks):
        return None
    places = Counter(map(place_of, tracebacks))
    counted = sum(
        min(companies, MOST_A_PLACE) if place.startswith(_READ_STRANGERS) else companies
        for place, companies in places.items()
    )
    if counted < ENOUGH:
        return None
    worst = max(places, key=lambda place: places[place])
    return (
        f"{len(tracebacks)} companies became stuck within an hour at {len(places)} places of our code, most of them at "
        f"{worst or 'a place in a library'}, and {decided} were decided meanwhile: this version has a bug"
    )
