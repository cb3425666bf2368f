"""Ends a worker: because of its own fault, because a new process is needed, or because only a person can help."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ct_stream.process.ending import EXIT_AGAIN, EXIT_BUG, EXIT_REFUSED

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
            self._alerts.worker_stops(f"because of a bug: {why}")
        self._stop.stop(EXIT_BUG)

    def again(self, why: str) -> None:
        """End the worker, drained, with 75: a new process waits for what is missing, and this one cannot."""
        if not self._stop.asked.is_set():
            log.error("Stopping: %s", why, extra={"action": "start_again"})
            self._stop.stop(EXIT_AGAIN)

    def refuse(self, why: str) -> None:
        """End the worker, drained, with 78 for a reason that is not its fault; the first reason counts."""
        if self._stop.asked.is_set():
            return
        log.error("Stopping: %s", why, extra={"action": "refused"})
        self._alerts.worker_stops(why)
        self._stop.stop(EXIT_REFUSED)
