"""Ends a worker because of its own fault."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ct_stream.process.ending import EXIT_BUG

if TYPE_CHECKING:
    from ct_stream.process.ending import StopSignals
    from ct_stream.wiring.alerts import Alerts

log = logging.getLogger(__name__)


class Fatal:
    """Logs the reason, sends an alert, and drains the worker, which ends with 70."""

    def __init__(self, stop: StopSignals, alerts: Alerts) -> None:
        self._stop = stop
        self._alerts = alerts

    def __call__(self, why: str) -> None:
        """End the worker for this reason; the first reason counts."""
        log.critical("Stopping: %s", why, extra={"action": "fatal"})
        if not self._stop.asked.is_set():
            self._alerts.worker_stops(why)
        self._stop.stop(EXIT_BUG)
