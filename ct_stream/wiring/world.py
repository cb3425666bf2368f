"""What the probes need of the world, joined to what the store keeps: one company's way through the gate."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ct_stream.gate.domains import canonical_domain
from ct_stream.gate.evidence import Kept, Moments, nothing_failed, silent_providers, spent_s, weigh
from ct_stream.gate.providers import is_own_server, provider_of, registrable_domain
from ct_stream.gate.questions import ControlAnswer, ControlKind, SpineAnswer
from ct_stream.gate.waits import NOTHING, Wait, WaitReason, WaitsOn
from ct_stream.probes.answer import PassDriver, Waiting, World
from ct_stream.probes.needs import Met
from ct_stream.store.limits import Looked

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from ct_stream.gate.memory import Memory
    from ct_stream.gate.output_stage import Origin
    from ct_stream.gate.patterns import Address
    from ct_stream.gate.questions import VerifyAnswer
    from ct_stream.gate.records import FailedAt, Known, Resumed
    from ct_stream.gate.rules import Rules
    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.verdicts import Failed, Held, Passed
    from ct_stream.metrics import Metrics
    from ct_stream.probes.needs import TurnedOff
    from ct_stream.probes.probing import Probing
    from ct_stream.store.control_ledger import ControlLedger
    from ct_stream.store.domain_memory import DomainMemory
    from ct_stream.store.guardrails import Guardrails, SpineCheck
    from ct_stream.store.limits import DomainLease, SharedLimits
    from ct_stream.wiring.tier2 import PaidCalls

log = logging.getLogger(__name__)

_SPINE_POLL_S = 30.0
PLACE_PAUSES_S = (0.25, 0.5, 1.0, 2.0)  #: between the looks for a place at the next host's provider
_AGAIN_S, _AGAIN_MOST_S = 60.0, 21_600.0  #: between two tries of a company that waits at its second provider
_LOOKED_UP_S = 0.5  #: a look at the memory that came with the company's row is good for so long


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
    paid_calls: PaidCalls
    metrics: Metrics
    now: Callable[[], datetime]
    age_s: Callable[[datetime], float]  #: of a moment of the database; no more than this process has lived through
    own_trouble: Callable[[], Wait | None]  #: while a control fails nothing is asked, so that no limit is wasted
    stalled_since: Callable[[float], float]  #: did this process stand still since (monotonic)? 0.0, or seconds to rest
    pass_deadline_s: float
    spine_grace_s: float


class Farewells:
    """Owns what a pass does not wait for: the end of its last session, and what it tells the controls."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, closing: Coroutine[Any, Any, None]) -> None:
        """See a session to its end."""
        task = asyncio.create_task(closing, name="farewell")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    async def wait(self) -> None:
        """Come back when all sessions have ended."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # No answer is lost by it, and a lease runs out by itself.
            log.error("A session did not end well: %r", error, exc_info=error, extra={"action": "our_bug"})


class WorkerGate:
    """Makes the passes of a worker."""

    def __init__(self, parts: GateParts) -> None:
        self._parts = parts
        self._chains: dict[str, CompanyPass] = {}  # by domain: who asks it, of this worker
        self.farewells = Farewells()
        self.rules_version = parts.rules.version

    async def begin(
        self, origin: Origin, event_at: datetime | None, known: Known, resumed: Resumed | None
    ) -> CompanyPass:
        """Return the pass of a company, with its kept answers where it was put away."""
        kept = Kept() if resumed is None else await self._kept(resumed)
        return CompanyPass(self._parts, self._chains, self.farewells, origin, event_at, known, resumed, kept)

    async def _kept(self, resumed: Resumed) -> Kept:
        """Return the answers that still count; the proofs and the guardrails are read only where something failed."""
        parts = self._parts
        if nothing_failed(resumed):
            return weigh(resumed, {}, parts.guardrails.settling(0.0))
        ways = {kind: await parts.controls.state(kind) for kind in ControlKind}
        if resumed.pending is not None:
            await parts.guardrails.refresh(now=True)  # another worker may have halted the tool just now
        assert resumed.failed_at is not None
        return weigh(resumed, ways, parts.guardrails.settling(parts.age_s(resumed.failed_at)))


class CompanyPass:
    """One company's way through the gate, as the stream runs it."""

    def __init__(
        self,
        parts: GateParts,
        chains: dict[str, CompanyPass],
        farewells: Farewells,
        origin: Origin,
        event_at: datetime | None,
        known: Known,
        resumed: Resumed | None,
        kept: Kept,
    ) -> None:
        self._parts = parts
        self._chains = chains
        self._known = known
        self._event_at = event_at
        self._is_new = resumed is None
        self._looked: Looked | None = None
        self._since = resumed.since if resumed else parts.now()
        self._farewells = farewells
        self._begun_at = time.monotonic()
        self._is_repeat = resumed is not None and resumed.reason == WaitReason.SPINE_CONTROL
        self.looks = kept.looks
        self.pending: Exchange | None = resumed.pending if resumed and kept.wait else None
        self._wait = kept.wait
        self._domain = resumed.domain if resumed else None
        world = World(
            spine=self,
            memory=self,
            resolver=parts.probing.resolver,
            permits=self,
            controls=self,
            refusals=self,
            tier2=self,
            probers=lambda stopwatch: parts.probing.prober(self, stopwatch),
        )
        self._driver = PassDriver(
            origin.outreach_id,
            parts.rules,
            world,
            deadline_s=parts.pass_deadline_s,
            spent_s=spent_s(resumed, kept),
            kept=kept.exchanges,
            answered=kept.answered,
            see_off=farewells.take,
            stalled_since=parts.stalled_since,
        )
        self._moments = Moments.of(resumed, kept, taken=len(self._driver.exchanges))
        self._ended_by: Wait | None = None

    async def run(self) -> Passed | Failed | Wait:
        """Go on until there is a verdict, or a wait."""
        if self._wait is not None:
            return self._wait
        result: Passed | Failed | Waiting | None = None
        try:
            result = await self._driver.run()
        finally:
            if result is None or isinstance(result, Waiting):
                self.leave()
        if isinstance(result, Waiting):
            self.pending = result.pending
            self._ended_by = result.wait
            return result.wait
        return result

    def leave(self) -> None:
        """Let another company ask the domain; after a verdict, once it is on record with the answers that serve."""
        if self._domain is not None and self._chains.get(self._domain) is self:
            del self._chains[self._domain]

    @property
    def failed(self) -> FailedAt:
        """Return when its last failed answer came."""
        return self._moments.failed(self.exchanges, self._ended_by, self.pending)

    @property
    def exchanges(self) -> Sequence[Exchange]:
        """Return the answers so far."""
        return self._driver.exchanges

    @property
    def domain(self) -> str | None:
        """Return the canonical domain, once it is known."""
        return self._domain

    @property
    def spent_s(self) -> float:
        """Return how much of the pass deadline is used up."""
        return self._driver.spent_s

    @property
    def asked_at(self) -> datetime | None:
        """Return when its first question was put, or None when that is on record."""
        return (
            None if self._moments.is_aged else self._parts.now() - timedelta(seconds=time.monotonic() - self._begun_at)
        )

    # ---------------------------------------------------------------- the world's protocols (probes/needs.py)

    async def lookup(self, outreach_id: UUID) -> SpineAnswer | Wait:
        """Return the spine row that was read with the company, or why its absence cannot be believed yet."""
        known, parts = self._known, self._parts
        domain = canonical_domain(known.domain) if known.in_spine else None
        if isinstance(domain, str):
            self._domain = domain
            self._saw_spine(usable=True)
            return SpineAnswer(found=True, domain=known.domain)
        if not known.in_spine:
            age_s = parts.age_s(self._event_at or self._since)
            # A clock of another machine may run ahead: the grace also counts from when we first saw the company.
            age_s = max(0.0, parts.age_s(self._since)) if age_s < 0 else age_s
            if age_s < parts.spine_grace_s:
                return Wait(
                    reason=WaitReason.SPINE_GRACE,
                    detail=f"{outreach_id} is not in the spine yet; looked up again until the event is "
                    f"{parts.spine_grace_s:g} s old",
                    after_s=min(parts.spine_grace_s - age_s, max(1.0, age_s)),
                )
        self._saw_spine(usable=False)
        trouble = await parts.spine_check.trouble()
        if trouble is not None:
            halted = parts.spine_check.RAIL in parts.guardrails.halted
            return Wait(
                reason=WaitReason.SPINE_CONTROL,
                detail=f"a missing spine row is not believed: {trouble}",
                after_s=None if halted else _SPINE_POLL_S,
                waits_on=WaitsOn.spine(),
            )
        return SpineAnswer(found=known.in_spine, domain=known.domain)

    def _saw_spine(self, *, usable: bool) -> None:
        """Count this company's look-up once, however often it comes back from waiting for the spine control."""
        if not self._is_repeat:
            self._parts.spine_check.saw(usable=usable)

    async def recall(self, domain: str) -> Memory | Wait:
        """Return what is remembered of the domain; when nothing decides, be the one who asks it, or wait for that one.

        Without this, all companies of a domain that come together would each look up its MX.
        """
        memory = self._looked_up(domain) or await self._parts.memory.recall(domain)
        self._looked = Looked(rules_version=self._parts.rules.version, answered_at=memory.answered_at)
        if memory.answers:
            return memory
        asker = self._chains.setdefault(domain, self)
        # Only a new company stands behind one that has begun and waits: those that come back would wait for each other.
        if asker is not self or memory.is_busy or (memory.has_begun and self._is_new):
            return Wait(
                reason=WaitReason.DOMAIN_BUSY,
                detail=f"another company of {domain} is asking it; its answers will serve",
                waits_on=WaitsOn.domain(domain),
            )
        return memory

    def _looked_up(self, domain: str) -> Memory | None:
        """Return what was looked up with the company, once, and only while it is about as good as a look of now."""
        known, self._known = self._known, replace(self._known, memory=None)
        is_fresh = time.monotonic() - known.looked_up_at < _LOOKED_UP_S
        return known.memory if is_fresh and known.recalled == domain else None

    async def mx_lookup(self) -> Wait | None:
        """Take one MXLookup unit."""
        wait = self._parts.own_trouble() or await self._parts.limits.mx_lookup()
        if wait is None:
            self._parts.metrics.tool_calls.labels(tool="TOOL-004").inc()
        return wait

    async def begin_probe(self, domain: str, provider: str) -> Lease | Wait:
        """Take the domain's slot, a place at the provider and one SMTPCheck unit."""
        granted = self._parts.own_trouble() or await self._parts.limits.begin_probe(domain, provider, self._looked)
        if isinstance(granted, Wait):
            return granted
        self._parts.metrics.tool_calls.labels(tool="TOOL-005").inc()
        waited_s = (self._parts.now() - self._since).total_seconds()
        return Lease(self._parts, self._farewells, granted, domain, provider, waited_s)

    async def confirm(self, kind: ControlKind) -> ControlAnswer | Wait:
        """Return a proof that was begun after this pass's last failed answer."""
        moments = self._moments
        answer = await self._parts.controls.confirm(
            kind, moments.window(self.exchanges), in_chain=moments.is_in_chain(kind)
        )
        if isinstance(answer, Wait) or kind is not ControlKind.SMTP:
            return answer
        for provider in sorted(silent_providers(self.exchanges)):
            assert moments.failed_at is not None  # a proof was begun after it
            wait = await self._parts.guardrails.unreached(provider, self._parts.age_s(moments.failed_at))
            if wait is not None:
                return wait
        return answer

    async def judge(self, held: Held, domain: str, provider: str) -> Wait | None:
        """Record a reply about us and return the wait that follows."""
        own = is_own_server(held.host, domain)
        return await self._parts.guardrails.judge(held, domain, provider, is_own_server=own)

    async def note(self, held: Held, domain: str, provider: str) -> None:
        """Record a reply about us that puts no wait on this company."""
        await self.judge(held, domain, provider)

    def off_because(self) -> str | None:
        """Return why Tier-2 is not asked; a company that has spent its attempt takes what it brought all the same."""
        return None if self._known.is_paid else self._parts.paid_calls.off_because()

    async def verify(self, outreach_id: UUID, address: Address) -> VerifyAnswer | Wait | TurnedOff:
        """Spend the one attempt; only the wait for the vendor's answer counts for the pass deadline."""
        brought = await self._parts.paid_calls.verify(outreach_id, address)
        self._driver.count_waiting(brought.waited_s)
        return brought.result


class Lease:
    """The right to probe one domain; tells the controls and the guardrails how the talk went."""

    def __init__(
        self, parts: GateParts, farewells: Farewells, lease: DomainLease, domain: str, place: str, waited_s: float
    ) -> None:
        self._parts = parts
        self._farewells = farewells
        self._lease = lease
        self._domain = domain
        self._own = registrable_domain(domain)
        self._place = place  # the provider at which it counts as a session
        self._entered = {place}  # whose rails let it in
        self._waited_s = waited_s
        self._begun_at = time.monotonic()
        self._sessions = 0

    async def enter(self, provider: str) -> Wait | None:
        """Go on at a host of another provider, once there is a place; its own servers leave the place as it is.

        For a place it waits a moment. Where there is none, or the provider is closed, it comes back by time, each time
        later, and is woken by nothing: the hosts before are asked again then, and must not be for each place that comes
        free, or whenever a provider opens and closes.
        """
        if provider == self._place:
            return None
        known = provider in self._entered
        wait: Wait | None = None
        for pause_s in (*PLACE_PAUSES_S, 0.0):
            wait = await self._lease.enter(provider, is_own=provider == self._own, is_known=known)
            if wait is None:
                self._entered.add(provider)
                self._place = self._place if provider == self._own else provider
                return None
            if wait.reason is not WaitReason.PROVIDER_BUSY:
                break
            await asyncio.sleep(pause_s)
        return self._by_time(wait)

    def _by_time(self, wait: Wait | None) -> Wait | None:
        """Have a company that waits for a provider behind another host come back by time."""
        if wait is None or wait.reason not in (WaitReason.PROVIDER_BUSY, WaitReason.PROVIDER_CLOSED):
            return wait
        after_s = max(_AGAIN_S, self._waited_s, wait.after_s or 0.0)
        # Spread, so that those who met the same moment do not meet again.
        return replace(wait, waits_on=NOTHING, after_s=min(after_s, _AGAIN_MOST_S) * random.uniform(1.0, 1.5))

    async def next_session(self) -> Wait | None:
        """Take the next session's unit and wait for the domain's slot."""
        self._sessions += 1
        wait = await self._lease.next_session()
        if wait is None and self._sessions > 1:
            self._parts.metrics.tool_calls.labels(tool="TOOL-005").inc()
        return wait if len(self._entered) == 1 else self._by_time(wait)

    def greeted(self, begun_at: float) -> None:
        """Tell the controls, off the pass's way: a slow database must not try a server's patience."""
        if self._parts.controls.is_due("greeting"):
            self._farewells.take(self._parts.controls.greeting(begun_at))

    def session_ended(self) -> None:
        """Start the domain's pause."""
        self._lease.session_ended()

    async def release(self, *, met: Mapping[str, Met], refused: Sequence[Held]) -> None:
        """Give the domain and the place back."""
        refusing = {provider_of(held.host, self._domain) for held in refused}
        stalled = bool(self._parts.stalled_since(self._begun_at))
        talking = [provider for provider, how in met.items() if how is Met.GREETED and provider not in refusing]
        for provider, how in met.items():
            if how is Met.SILENT and provider != self._own and not stalled:
                await self._parts.guardrails.silent(provider, self._domain)
        await self._lease.release(talked=self._place in talking)
        if talking:
            await self._parts.controls.good_talk(self._begun_at, self._domain)
        for provider in talking:
            if provider != self._place:
                await self._parts.guardrails.note_talk(provider)
            await self._parts.guardrails.talked(provider)
