"""Stops the worker when so many companies are stuck that this version itself must be broken."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from ct_stream.store.parked import ParkedCompanies

_STUCK_AN_HOUR = 20


class StuckBreaker:
    """Stops the worker when too many companies became stuck within an hour."""

    def __init__(self, parked: ParkedCompanies, on_fatal: Callable[[str], None]) -> None:
        self._parked = parked
        self._on_fatal = on_fatal

    async def look(self) -> None:
        """Count them; to be called whenever another one became stuck. Raises nothing."""
        try:
            stuck = await self._parked.stuck_lately()
        except Exception as error:
            self._on_fatal(f"the companies that are stuck cannot be counted: {error!r}")
            return
        if stuck >= _STUCK_AN_HOUR:
            self._on_fatal(f"{_STUCK_AN_HOUR} companies became stuck within an hour: this version has a bug")
