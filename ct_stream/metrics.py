"""The worker's metrics, and the troubles that make it not ready."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from math import inf

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)


class Metrics:
    """The worker's metrics in a registry of their own; names are stable."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.received = Counter("ct_received_total", "Records of spine.created taken for processing", registry=r)
        self.passed = Counter("ct_pass_total", "Outcomes PASS recorded by this worker", ["verified_by"], registry=r)
        self.failed = Counter("ct_fail_total", "Outcomes FAIL recorded by this worker", ["code"], registry=r)
        self.already = Counter("ct_already_processed_total", "Events of companies that had an outcome", registry=r)
        self.rejected = Counter("ct_rejected_total", "Unreadable records sent to ct.rejected", ["reason"], registry=r)
        self.keyless = Counter("ct_keyless_total", "Records without a key", registry=r)
        self.parked = Counter("ct_parked_total", "Times that an undecided company was parked", ["reason"], registry=r)
        self.resumed = Counter("ct_resumed_total", "Times that an undecided company was resumed", registry=r)
        self.exceptions = Counter("ct_exceptions_total", "Exceptions raised by bugs in ct-stream", registry=r)
        self.stuck = Counter("ct_stuck_total", "Companies that became stuck", registry=r)
        self.published = Counter("ct_published_total", "Outcomes published to Kafka", ["topic"], registry=r)
        self.swept = Counter("ct_swept_total", "Outcomes published by the sweeper after a crash", registry=r)
        self.table_hits = Counter(
            "ct_table_hits_total", "Events whose company was found in the dedupe table", registry=r
        )
        self.tool_calls = Counter("ct_tool_calls_total", "Calls of a toolbox tool by this worker", ["tool"], registry=r)
        self.tier2_answers = Counter(
            "ct_tier2_answers_total", "Answers to paid calls of this worker", ["status"], registry=r
        )
        self.tier2_usd = Counter("ct_tier2_usd_total", "US dollars reserved for paid calls of this worker", registry=r)
        self.acked = Counter("ct_acked_total", "Offsets acked", registry=r)
        self.runtime = Histogram(
            "ct_runtime_seconds",
            "From when a worker first took a company up to its outcome",
            buckets=_BUCKETS,
            registry=r,
        )
        self.running = Gauge(
            "ct_running_passes", "Companies being decided in this worker, resumed ones included", registry=r
        )
        self.unacked = Gauge("ct_unacked_events", "Events taken and not yet acked", registry=r)
        self.oldest_unacked = Gauge(
            "ct_oldest_unacked_seconds", "Age of the oldest event that is not acked", registry=r
        )
        self.waiting = Gauge("ct_undecided", "Undecided companies in Postgres", ["state", "reason"], registry=r)
        self.unpublished = Gauge("ct_unpublished", "Outcomes recorded and not yet published", registry=r)
        self.lag = Gauge("ct_lag", "Records of spine.created not yet committed; -1: unknown", registry=r)
        self.alerts = Counter(
            "ct_alerts_total", "Alerts, by what happened to them: sent, failed, dropped", ["result"], registry=r
        )
        self.ready = Gauge("ct_ready", "1 when the worker is ready", registry=r)
        self.way_proven = Gauge(
            "ct_way_proven",
            "1 while this worker's controls prove its way: resolvers (dns, over TCP dns_tcp), port 25 (smtp, smtp6)",
            ["kind"],
            registry=r,
        )
        self.parked_for_own_way = Gauge(
            "ct_parked_for_own_way",
            "Companies that wait because this worker's own way is not proven; counted up to CT_IN_FLIGHT",
            registry=r,
        )
        self.worker_info = Gauge(
            "ct_worker_info", "1: the run of this worker, and its egress", ["worker", "egress"], registry=r
        )


@dataclass(slots=True)
class Health:
    """Why the worker is not ready: a sentence for each part in trouble."""

    troubles: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  #: worth saying, but no trouble
    _ended_at: dict[str, float] = field(default_factory=dict)

    def set(self, part: str, trouble: str | None) -> None:
        """Say what is wrong with `part`, or that nothing is."""
        if trouble is None:
            if self.troubles.pop(part, None) is not None:
                self._ended_at[part] = time.monotonic()
        else:
            self.troubles[part] = trouble

    def troubled_until(self, *parts: str) -> float:
        """Return until when one of these parts was in trouble: now, a moment of the monotonic clock, or -inf."""
        if any(part in self.troubles for part in parts):
            return time.monotonic()
        return max((self._ended_at.get(part, -inf) for part in parts), default=-inf)

    @property
    def is_ready(self) -> bool:
        """Return whether no part is in trouble."""
        return not self.troubles
