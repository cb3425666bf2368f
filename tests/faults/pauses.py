"""How long did a domain rest between two sessions, as its servers can tell?"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ct_stream.local.farm.log import Session


def last_sign(session: Session) -> float:
    """Return when a server last knew that the client was there, in monotonic seconds.

    The end of a session is none: a loop may see it late, and then the pause looks short. A reply that the client waited
    for is one; that to QUIT it need not have waited for, least of all where it was told to stop.
    """
    return max(command.read_at if command.text == "QUIT" else command.at for command in session.commands)


def pauses(sessions: Sequence[Session]) -> Iterator[float]:
    """Yield the seconds between each session at one domain and the next; 0 where they overlap."""
    for one, after in pairwise(sorted(sessions, key=lambda session: session.opened)):
        is_over = one.closed is not None and one.closed <= after.opened
        yield after.opened - last_sign(one) if is_over else 0.0
