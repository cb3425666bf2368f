"""What the probes need of the world, joined to what the store keeps: one company's way through the gate."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ct_stream.gate.company import FailedAt
from ct_stream.gate.domains import canonical_domain
from ct_stream.gate.middle_stage import refusals
from ct_stream.gate.questions import ControlAnswer, ControlKind, MailboxAnswer, SpineAnswer, Trouble
from ct_stream.gate.replies import Stage
from ct_stream.gate.transcript import (
    Exchange,
    answered,
    met_name_trouble,
    met_trouble,
    without_trouble,
)
from ct_stream.gate.verdicts import HeldBy
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.probes.answer import PassDriver, Waiting, World
from ct_stream.probes.providers import is_own_server, provider_of, registrable_domain
from ct_stream.probes.world import Met
from ct_stream.store.controls import control_wait
from ct_stream.store.limits import Looked

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from ct_stream.gate.company import Known, Resumed
    from ct_stream.gate.memory import Memory
    from ct_stream.gate.output_stage import Origin
    from ct_stream.gate.patterns import Address
    from ct_stream.gate.questions import VerifyAnswer
    from ct_stream.gate.rules import Rules
    from ct_stream.gate.verdicts import Failed, Held, Passed
    from ct_stream.metrics import Metrics
    from ct_stream.probes.world import TurnedOff
    from ct_stream.store.controls import ControlLedger
    from ct_stream.store.guardrails import Guardrails, SpineControl
    from ct_stream.store.limits import DomainLease, SharedLimits
    from ct_stream.store.memory import DomainMemory
    from ct_stream.wiring.probing import Probing
    from ct_stream.wiring.tier2 import PaidCalls

log = logging.getLogger(__name__)

_SPINE_POLL_S = 30.0
PLACE_PAUSES_S = (0.25, 0.5, 1.0, 2.0)  #: between the looks for a place at the next host's provider
_AGAIN_S, _AGAIN_MOST_S = 60.0, 21_600.0  #: between two tries of a company that waits at its second provider
_LOOKED_UP_S = 0.5  #: a look at the memory that came with the company's row is good for so long
_LOOKS = 1  #: how often silence is looked at again once our own way is proven


@dataclass(frozen=True, slots=True, kw_only=True)
class GateParts:
    """What all passes of a worker share."""

    rules: Rules
    probing: Probing
    limits: SharedLimits
    memory: DomainMemory
    controls: ControlLedger
    guardrails: Guardrails
    spine_control: SpineControl
    paid_calls: PaidCalls
    metrics: Metrics
    now: Callable[[], datetime]
    age_s: Callable[[datetime], float]  #: of a moment of the database; no more than this process has lived through
    own_trouble: Callable[[], Wait | None]  #: while a control fails nothing is asked, so that no limit is wasted
    stalled_since: Callable[[float], float]  #: did this process stand still since (monotonic)? 0.0, or seconds to rest
    pass_deadline_s: float
    spine_grace_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What an undecided company brings back from its wait."""

    exchanges: Sequence[Exchange] = ()
    answered: Sequence[Exchange] = ()  #: what servers said behind a void answer: not asked again
    asked_at: datetime | None = None  #: a proof of our own way must have come before it
    failed_at: datetime | None = None  #: and one must have begun after it
    is_void: bool = False  #: some answers were dropped and are asked for anew
    is_dropped: bool = False  #: an answer about us was, and is asked for anew
    in_chain: bool = False  #: that they lay in a chain of proofs of port 25 was found before this wait
    in_both_chains: bool = False  #: and in one of our resolvers, where that matters
    looks: int = 0
    wait: Wait | None = None  #: nothing may be asked yet: it waits on, with all that it has


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
        """Return the answers that still count, and since when a proof is needed."""
        kept, failed_at, asked_at = list(resumed.exchanges), resumed.failed_at, resumed.asked_at or resumed.since
        is_dropped = resumed.pending is not None
        if failed_at is None or (resumed.pending is None and len(without_trouble(kept)) == len(kept)):
            # Nothing failed: it was put away while a control failed, before anything was asked.
            return Kept(exchanges=kept, looks=resumed.looks, is_dropped=is_dropped)
        states = {kind: await self._parts.controls.state(kind) for kind in ControlKind}
        awaited = [state for kind, state in states.items() if resumed.waits_on == f"control:{kind}"]
        if any(state.voids(asked_at, failed_at) for state in states.values()):
            # Our own way was broken around these answers: they say nothing about the company.
            return _void(resumed)
        if resumed.looks < _LOOKS and met_trouble(kept if resumed.pending is None else [*kept, resumed.pending]):
            # Silence is believed between two proofs only: an outage that came and went between two controls looks
            # just like a dead server (ADR-CT-IMO-013), and one that broke a session like one that hung up.
            return _void(resumed, looks=resumed.looks + 1)
        if any(state.proves(failed_at) and not state.unbroken(asked_at) for state in awaited):
            # Nothing proved our own way shortly before (ADR-CT-IMO-023): they may be of a time in which it was broken.
            return _void(resumed)
        if resumed.reason == WaitReason.PROVIDER_CLOSED and met_trouble(kept):
            # The one try of a closed provider has to ask: its silence was heard before it closed.
            return _void(resumed)
        if resumed.pending is not None and states[ControlKind.SMTP].proves(failed_at):
            dns = states[ControlKind.DNS]
            if resumed.reason != WaitReason.REFUSED and met_name_trouble([*kept, resumed.pending]):
                # Found now: in the long wait until it is settled nobody asks for proofs.
                if not dns.proves(failed_at):
                    wait = control_wait(ControlKind.DNS, "its first host's name may be silent by our resolvers' fault")
                    return Kept(exchanges=kept, asked_at=asked_at, failed_at=failed_at, looks=resumed.looks, wait=wait)
                if not dns.unbroken(asked_at):
                    return _void(resumed)
            # Its own server refuses us while others talk to us: its private policy, inconclusive (domain scope).
            answer = resumed.pending.answer
            assert isinstance(answer, MailboxAnswer)
            helds = refusals(answer)  # none by rules that are newer than the answer
            own = [h for h in helds if h.by is HeldBy.REFUSED and is_own_server(h.host, resumed.domain or "")]
            if not helds or own != helds:
                return Kept(exchanges=kept, looks=resumed.looks, is_dropped=True)  # a provider is asked again
            await self._parts.guardrails.refresh(now=True)  # another worker may have halted the tool just now
            age_s = self._parts.age_s(failed_at)
            unsettled = self._parts.guardrails.unsettled(age_s, f"{helds[0].host} refuses us")
            if unsettled is not None:
                return Kept(exchanges=kept, asked_at=asked_at, failed_at=failed_at, looks=resumed.looks, wait=unsettled)
            kept.append(replace(resumed.pending, answer=replace(answer, settled=True)))
            is_dropped = False
        return Kept(
            exchanges=kept,
            asked_at=asked_at,
            failed_at=failed_at,
            looks=resumed.looks,
            is_dropped=is_dropped,
            in_chain=resumed.reason == WaitReason.PROVIDER_SILENT,
            in_both_chains=resumed.reason == WaitReason.REFUSED and resumed.pending is not None,
        )


def _void(resumed: Resumed, looks: int | None = None) -> Kept:
    """Return what is left of answers that say nothing about the company."""
    return Kept(
        exchanges=without_trouble(resumed.exchanges),
        answered=answered(resumed.exchanges),
        is_void=True,
        looks=resumed.looks if looks is None else looks,
    )


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
        self._asked_at, self._failed_at = kept.asked_at, kept.failed_at
        self._farewells = farewells
        self._begun_at = time.monotonic()
        self._kept = len(kept.exchanges)
        self._in_chain, self._in_both_chains = kept.in_chain, kept.in_both_chains
        # Kept answers that failed keep their age; where all is well so far, or void, what fails is of this run.
        has_failed = kept.wait is not None or len(without_trouble(kept.exchanges)) < len(kept.exchanges)
        self._is_aged = has_failed and resumed is not None and resumed.asked_at is not None
        self._is_repeat = resumed is not None and resumed.reason == WaitReason.SPINE_CONTROL
        self.failed = FailedAt.NONE if kept.failed_at is None else FailedAt.ON_RECORD
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
            spent_s=_spent_s(resumed, kept),
            kept=kept.exchanges,
            answered=kept.answered,
            see_off=farewells.take,
            stalled_since=parts.stalled_since,
        )
        if len(self._driver.exchanges) < self._kept:
            # They were given under other rules: all is asked anew, and nothing is on record about that.
            self._kept = len(self._driver.exchanges)
            self._asked_at = self._failed_at = None
            self._is_aged = False
            self.failed = FailedAt.NONE

    async def run(self) -> Passed | Failed | Wait:
        """Go on until there is a verdict, or a wait."""
        if self._wait is not None:
            return self._wait
        result: Passed | Failed | Waiting | None = None
        try:
            result = await self._driver.run()
        except asyncio.CancelledError:
            self._note_failure()
            raise
        finally:
            if result is None or isinstance(result, Waiting):
                self.leave()
        if isinstance(result, Waiting):
            self.pending = result.pending
            self._note_failure()
            if result.wait.waits_on.startswith("control:"):
                if self._is_fresh():
                    self.failed = FailedAt.NOW
            elif self.pending is not None:
                self.failed = FailedAt.NONE  # a provider's word: asked again, and settled by its next talk
            return result.wait
        return result

    def leave(self) -> None:
        """Let another company ask the domain; after a verdict, once it is on record with the answers that serve."""
        if self._domain is not None and self._chains.get(self._domain) is self:
            del self._chains[self._domain]

    def _note_failure(self) -> None:
        """See that no proof from before an answer of this run that failed counts for it."""
        if self._failed_at is not None and met_trouble(self._driver.exchanges[self._kept :]):
            self.failed = FailedAt.NOW

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
        return None if self._is_aged else self._parts.now() - timedelta(seconds=time.monotonic() - self._begun_at)

    def _is_fresh(self) -> bool:
        """Tell if the last failed answer is of this run, so that only a proof from now on counts."""
        answers = [e for e in self._driver.exchanges[self._kept :] if not isinstance(e.answer, ControlAnswer)]
        return self._failed_at is None or bool(answers) or self.pending is not None

    # ---------------------------------------------------------------- the world's protocols (probes/world.py)

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
        trouble = await parts.spine_control.trouble()
        if trouble is not None:
            halted = parts.spine_control.RAIL in parts.guardrails.halted
            return Wait(
                reason=WaitReason.SPINE_CONTROL,
                detail=f"a missing spine row is not believed: {trouble}",
                after_s=None if halted else _SPINE_POLL_S,
                waits_on=parts.spine_control.RAIL,
            )
        return SpineAnswer(found=known.in_spine, domain=known.domain)

    def _saw_spine(self, *, usable: bool) -> None:
        """Count this company's look-up once, however often it comes back from waiting for the spine control."""
        if not self._is_repeat:
            self._parts.spine_control.saw(usable=usable)

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
                waits_on=f"domain:{domain}",
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
        asked = None
        if self._asked_at is not None and self._failed_at is not None and not self._is_fresh():
            asked = (self._asked_at, self._failed_at)
        in_chain = self._in_both_chains or (self._in_chain and kind is ControlKind.SMTP)
        answer = await self._parts.controls.confirm(kind, asked, in_chain=in_chain)
        if isinstance(answer, Wait) or kind is not ControlKind.SMTP:
            return answer
        for provider in sorted(self._silent_providers()):
            assert self._failed_at is not None  # a proof was begun after it
            wait = await self._parts.guardrails.unreached(provider, self._parts.age_s(self._failed_at))
            if wait is not None:
                return wait
        return answer

    def _silent_providers(self) -> set[str]:
        """Return the shared providers of which no server said a word to this pass, whatever other servers said."""
        silent: set[str] = set()
        talking: set[str] = set()
        for exchange in self._driver.exchanges:
            if not isinstance(exchange.answer, MailboxAnswer):
                continue
            domain = exchange.asked.rpartition("@")[2]
            for attempt in exchange.answer.attempts:
                if not attempt.ip or attempt.trouble is Trouble.DEADLINE or is_own_server(attempt.host, domain):
                    continue
                said = attempt.reply is not None or attempt.stage not in (Stage.CONNECT, Stage.BANNER)
                (talking if said else silent).add(provider_of(attempt.host, domain))
        return silent - talking

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


def _spent_s(resumed: Resumed | None, kept: Kept) -> float:
    """Return how much of its pass deadline a company has used up.

    Nothing of it by answers that are void or about us, and nothing by sessions that a drain or a stop of ours broke
    off: the time for which servers are waited for once more is our fault, and would fail the company in the end.
    """
    is_ours = kept.is_void or kept.is_dropped
    if resumed is None or is_ours or resumed.reason in (WaitReason.DRAIN, WaitReason.OUR_MACHINE):
        return 0.0
    return resumed.spent_s


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
        return replace(wait, waits_on="", after_s=min(after_s, _AGAIN_MOST_S) * random.uniform(1.0, 1.5))

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
