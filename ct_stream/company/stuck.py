"""Stops the worker when so many companies are stuck that this version itself must be broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ct_stream.gate.broken import why_broken

if TYPE_CHECKING:
    from collections.abc import Callable

    from ct_stream.store.parked import ParkedCompanies


class StuckBreaker:
    """Stops the worker when too many companies became stuck within an hour."""

    def __init__(self, parked: ParkedCompanies, on_fatal: Callable[[str], None]) -> None:
        self._parked = parked
        self._on_fatal = on_fatal

    async def look(self) -> None:
        """Look at them; to be called whenever another one became stuck. Raises nothing."""
        try:
            why = why_broken(*await self._parked.stuck_lately())
        except Exception as error:
            why = f"the companies that are stuck cannot be counted: {error!r}"
        if why is not None:
            self._on_fatal(why)
