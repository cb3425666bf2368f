"""Puts together one company's pass through the gate, and says what is kept of it if the company has to wait."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from ct_stream.company.checks import SpineRow
from ct_stream.company.lease import Permits, Tellings
from ct_stream.company.paid_calls import CompanysCall
from ct_stream.company.proofs import Proofs
from ct_stream.company.recall import Askers, Recall
from ct_stream.gate.domains import canonical_domain
from ct_stream.gate.evidence import Kept, Moments, is_about_address, met_trouble, spent_s
from ct_stream.gate.questions import SpineAnswer
from ct_stream.gate.records import FailedAt, Parked
from ct_stream.gate.waits import WaitReason
from ct_stream.probes.answer import PassDriver, Waiting, World

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from ct_stream.company.checks import SpineCheck
    from ct_stream.company.farewells import Farewells
    from ct_stream.company.own_way import OwnWay
    from ct_stream.company.paid_calls import PaidCalls
    from ct_stream.gate.output_stage import Origin
    from ct_stream.gate.records import Known, Resumed
    from ct_stream.gate.rules import Rules
    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.verdicts import Failed, Passed
    from ct_stream.gate.waits import Wait
    from ct_stream.metrics import Metrics
    from ct_stream.probes.probing import Probing
    from ct_stream.store.control_ledger import ControlLedger
    from ct_stream.store.domain_memory import DomainMemory
    from ct_stream.store.guardrails import Guardrails
    from ct_stream.store.limits import SharedLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class GateParts:
    """What all passes of a worker share."""

    rules: Rules
    probing: Probing
    limits: SharedLimits
    memory: DomainMemory
    controls: ControlLedger
    guardrails: Guardrails
    spine_check: SpineCheck
    own_way: OwnWay
    paid_calls: PaidCalls
    farewells: Farewells
    metrics: Metrics
    now: Callable[[], datetime]
    age_s: Callable[[datetime], float]  #: of a moment of the database, at most as long as this process has been running
    stalled_since: Callable[[float], float]  #: 0.0, or seconds to rest if this process was paused since (monotonic)
    pass_deadline_s: float
    spine_grace_s: float


class WorkerGate:
    """Makes the passes of a worker."""

    def __init__(self, parts: GateParts) -> None:
        self._parts = parts
        self._askers = Askers()
        self._tellings = Tellings(
            controls=parts.controls,
            guardrails=parts.guardrails,
            farewells=parts.farewells,
            metrics=parts.metrics,
            stalled_since=parts.stalled_since,
        )
        self.rules_version = parts.rules.version

    async def begin(self, origin: Origin, known: Known, resumed: Resumed | None) -> CompanyPass:
        """Return the pass of a company, with its kept answers if it has waited before."""
        parts = self._parts
        since = resumed.since if resumed else parts.now()
        proofs = Proofs(parts.controls, parts.guardrails, parts.age_s, parts.own_way)
        kept = Kept() if resumed is None else await proofs.weigh(resumed)
        recall = Recall(parts.memory, self._askers, known, rules_version=parts.rules.version, is_new=resumed is None)
        permits = Permits(
            parts.limits,
            parts.own_way,
            self._tellings,
            recall,
            waited_s=lambda: (parts.now() - since).total_seconds(),
        )
        world = World(
            spine=SpineRow(
                parts.spine_check,
                known,
                since=since,
                is_repeat=resumed is not None and resumed.reason == WaitReason.SPINE_CONTROL,
                age_s=parts.age_s,
                grace_s=parts.spine_grace_s,
            ),
            memory=recall,
            resolver=parts.probing.resolver,
            permits=permits,
            controls=proofs,
            refusals=parts.guardrails,
            tier2=CompanysCall(parts.paid_calls, is_paid=known.is_paid),
            probers=lambda stopwatch: parts.probing.prober(permits, stopwatch),
        )
        driver = PassDriver(
            origin.outreach_id,
            parts.rules,
            world,
            deadline_s=parts.pass_deadline_s,
            spent_s=spent_s(resumed, kept),
            kept=kept.exchanges,
            answered=kept.answered,
            asks_mx_itself=kept.looks > 0,
            see_off=parts.farewells.take,
            stalled_since=parts.stalled_since,
            by=parts.controls.worker,
            now=parts.now,
        )
        proofs.moments = Moments.of(resumed, kept, taken=len(driver.exchanges))
        return CompanyPass(driver, recall, proofs, kept, resumed, own_way=parts.own_way, now=parts.now)


class CompanyPass:
    """One company's pass through the gate, up to a verdict or a wait."""

    def __init__(
        self,
        driver: PassDriver,
        recall: Recall,
        proofs: Proofs,
        kept: Kept,
        resumed: Resumed | None,
        *,
        own_way: OwnWay,
        now: Callable[[], datetime],
    ) -> None:
        self._driver = driver
        self._recall = recall
        self._proofs = proofs
        self._moments = proofs.moments
        self._kept = kept
        self._resumed = resumed
        self._own_way = own_way
        self._now = now
        self._begun_at = time.monotonic()
        self._ended: Waiting | None = None
        self._refused_at = kept.refused_at or (resumed.refused_at if resumed is not None else "")

    async def run(self) -> Passed | Failed | Wait:
        """Run until there is a verdict or a wait."""
        if self._kept.wait is not None:
            return self._kept.wait
        result: Passed | Failed | Waiting | None = None
        try:
            result = await self._driver.run()
        finally:
            if result is None or isinstance(result, Waiting):
                self.leave()
        if isinstance(result, Waiting):
            self._ended = self._passed_on(result)
            return self._ended.wait
        wait = await self._proofs.astray(self.exchanges)
        if wait is not None:
            self.leave()
            return wait
        return result

    def _passed_on(self, ended: Waiting) -> Waiting:
        """Return how the pass ends if a server refused us: another egress may ask in our place, if none has yet."""
        if ended.pending is None or self._refused_at or not is_about_address(ended.pending):
            return ended
        wait = self._own_way.elsewhere(ended.wait)
        if wait is None:
            return ended
        self._refused_at = self._own_way.egress
        return replace(ended, wait=wait)

    def leave(self) -> None:
        """Let another company ask the domain. After a verdict, call it only once that is recorded and can serve."""
        self._recall.leave()

    @property
    def exchanges(self) -> Sequence[Exchange]:
        """Return the answers so far."""
        return self._driver.exchanges

    def parked(self, origin: Origin, event_at: datetime | None, wait: Wait) -> Parked:
        """Return the company as it is parked: its wait, its answers, and when those that failed were asked and came."""
        failed = self._failed()
        on_record = self._resumed if failed is FailedAt.ON_RECORD else None
        first_at = (on_record.met_at if on_record is not None else "") or self._own_way.egress
        return Parked(
            origin=origin,
            event_at=event_at,
            wait=wait,
            domain=self._domain(),
            exchanges=(*self.exchanges, *(replace(exchange, aside=True) for exchange in self._driver.aside)),
            pending=self._pending(),
            spent_s=self._driver.spent_s,
            asked_at=self._asked_at(),
            failed=failed,
            looks=self._kept.looks,
            met_by=on_record.met_by if on_record is not None else "",
            met_at=on_record.met_at if on_record is not None else "",
            first_at=first_at if self._kept.looks == 0 and met_trouble(self.exchanges) else "",
            refused_at=self._refused_at,
        )

    def _domain(self) -> str | None:
        """Return the canonical domain, once it is known."""
        spine = next((e.answer for e in self.exchanges if isinstance(e.answer, SpineAnswer)), None)
        domain = canonical_domain(spine.domain) if spine is not None and spine.found else None
        if isinstance(domain, str):
            return domain
        return self._resumed.domain if self._resumed is not None else None

    def _pending(self) -> Exchange | None:
        """Return an answer about us whose scope is not settled."""
        if self._ended is not None:
            return self._ended.pending
        return self._resumed.pending if self._resumed is not None and self._kept.wait is not None else None

    def _asked_at(self) -> datetime | None:
        """Return when its first question was asked, or None if that is on record."""
        if self._moments.is_aged:
            return None
        return self._now() - timedelta(seconds=time.monotonic() - self._begun_at)

    def _failed(self) -> FailedAt:
        """Return when its last failed answer came."""
        ended_by = self._ended.wait if self._ended is not None else None
        return self._moments.failed(self.exchanges, ended_by, self._pending())
