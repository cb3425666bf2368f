"""The protocols of what the stream needs: who takes each company, and when another event may be taken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    from ct_stream.gate.output_stage import Origin


class Companies(Protocol):
    """Where an event's company goes."""

    async def from_event(
        self, origin: Origin, event_at: datetime | None, remembered: str | None = None, /
    ) -> str | None:
        """Return when its event may be acked, with its outcome if one is published."""


class Admission(Protocol):
    """Whether another event may be taken."""

    def may_pull(self, running: int, /) -> bool:
        """Return whether there is room beside so many running events, and nothing is in the way."""


class InputCheck(Protocol):
    """Whether only single records are unreadable, or most of what upstream sends now."""

    def saw(self, at: datetime | None, /, *, readable: bool) -> None:
        """Count one record, with its timestamp."""

    async def trouble(self) -> str | None:
        """Return why an unreadable record must not be rejected now, or None."""
