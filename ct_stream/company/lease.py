"""Lets one company ask DNS and its mail servers, and reports its sessions to the controls and guardrails."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ct_stream.gate.providers import is_own_provider, provider_at, provider_of
from ct_stream.gate.questions import ControlKind, way_to
from ct_stream.gate.waits import NOTHING, Wait, WaitReason
from ct_stream.probes.needs import Met

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ct_stream.company.farewells import Farewells
    from ct_stream.company.own_way import OwnWay
    from ct_stream.company.recall import Recall
    from ct_stream.gate.verdicts import Held
    from ct_stream.metrics import Metrics
    from ct_stream.store.control_ledger import ControlLedger
    from ct_stream.store.guardrails import Guardrails
    from ct_stream.store.limits import DomainLease, SharedLimits

PLACE_PAUSES_S = (0.25, 0.5, 1.0, 2.0)  #: between tries to get a place at the next host's provider
_AGAIN_S, _AGAIN_MOST_S = 60.0, 21_600.0  #: between two tries of a company that waits for its second provider


@dataclass(frozen=True, slots=True, kw_only=True)
class Tellings:
    """Who is told how a session went."""

    controls: ControlLedger
    guardrails: Guardrails
    farewells: Farewells
    metrics: Metrics
    stalled_since: Callable[[float], float]  #: 0.0, or seconds to rest if this process was paused since (monotonic)


class Permits:
    """What one company may ask: units and places of the toolbox, over all workers."""

    def __init__(
        self,
        limits: SharedLimits,
        own_way: OwnWay,
        tellings: Tellings,
        recall: Recall,
        *,
        waited_s: Callable[[], float],
    ) -> None:
        """`waited_s`: for how long the company has been undecided."""
        self._limits = limits
        self._own_way = own_way
        self._tellings = tellings
        self._recall = recall
        self._waited_s = waited_s
        self._providers: dict[tuple[str, str], str] = {}  # what a provider's servers at an address count as

    def lacks(self, kind: ControlKind) -> Wait | None:
        """Return the wait for a machine that has this way, if this one is not known to.

        Without DNS a worker may ask nothing at all.
        """
        return self._until_proven() if kind is ControlKind.DNS else self._own_way.lacks(kind)

    def cut_off(self, detail: str) -> Wait:
        """Return the wait for a machine whose resolvers answer over TCP: this one's have just not."""
        return self._own_way.lost_tcp(detail)

    async def mx_lookup(self) -> Wait | None:
        """Take one MXLookup unit."""
        wait = self._until_proven() or await self._limits.mx_lookup() or self._until_proven()
        if wait is None:
            self._tellings.metrics.tool_calls.labels(tool="TOOL-004").inc()
        return wait

    def provider_at(self, host: str, ip: str, domain: str) -> str:
        """Return the provider that a host at this address counts as, by the guardrails as this worker last read them.

        The first answer holds for the whole pass: what is said of a session afterwards must bear the name under which
        it was begun. So a pass may finish at a network that was closed meanwhile, as at any provider; what its server
        says is weighed by what is true then (see Guardrails.judge, and gate/evidence.py).
        """
        key = (provider_of(host, domain), ip)
        if key not in self._providers:
            self._providers[key] = provider_at(host, ip, domain, self._tellings.guardrails.closed)
        return self._providers[key]

    async def begin_probe(self, domain: str, provider: str) -> Lease | Wait:
        """Take the domain's slot, a place at the provider and one SMTPCheck unit."""
        granted = self._until_proven() or await self._limits.begin_probe(domain, provider, self._recall.looked)
        if isinstance(granted, Wait):
            return granted
        if (lost := self._until_proven()) is not None:  # while the limits were asked
            await granted.release(talked=False)
            return lost
        self._tellings.metrics.tool_calls.labels(tool="TOOL-005").inc()
        return Lease(
            self._tellings,
            granted,
            domain,
            provider,
            self._waited_s(),
            self.provider_at,
            in_the_way=self._until_proven,
        )

    def _until_proven(self) -> Wait | None:
        """Return the wait while this worker may ask nothing, and count it until the next look at the database."""
        if self._own_way.trouble is not None:
            self._own_way.parked_for_it += 1
        return self._own_way.trouble


class Lease:
    """The right to probe one domain. It tells the controls and the guardrails how the sessions went."""

    def __init__(
        self,
        tellings: Tellings,
        lease: DomainLease,
        domain: str,
        place: str,
        waited_s: float,
        provider_at: Callable[[str, str, str], str],
        *,
        in_the_way: Callable[[], Wait | None] = lambda: None,
    ) -> None:
        """`provider_at`: of a host at an address, for a domain, as in `Permits`; `in_the_way`: of any session."""
        self._in_the_way = in_the_way
        self._tell = tellings
        self._provider_at = provider_at
        self._lease = lease
        self._domain = domain
        self._place = place  # the provider at which it takes up a place
        self._entered = {place}  # the providers whose guardrails have let it in
        self._waited_s = waited_s
        self._begun_at = time.monotonic()
        self._sessions = 0

    async def enter(self, provider: str) -> Wait | None:
        """Continue at a host of another provider, once there is a place. For a company's own servers none is needed.

        It waits a moment for a place. If there is none, or the provider is closed, the company is parked until a fixed
        time, later each time, and nothing else wakes it: its earlier hosts are asked again then, and that must not
        happen for each place that comes free, or whenever a provider opens and closes.
        """
        if provider == self._place:
            return None
        known, is_own = provider in self._entered, is_own_provider(provider, self._domain)
        wait: Wait | None = None
        for pause_s in (*PLACE_PAUSES_S, 0.0):
            wait = await self._lease.enter(provider, is_known=known)
            if wait is None:
                self._entered.add(provider)
                self._place = self._place if is_own else provider
                return None
            if wait.reason is not WaitReason.PROVIDER_BUSY:
                break
            await asyncio.sleep(pause_s)
        return self._by_time(wait)

    def _by_time(self, wait: Wait | None) -> Wait | None:
        """Return the wait of a company that waits for a provider after another host: until a fixed time."""
        if wait is None or wait.reason not in (WaitReason.PROVIDER_BUSY, WaitReason.PROVIDER_CLOSED):
            return wait
        after_s = max(_AGAIN_S, self._waited_s, wait.after_s or 0.0)
        # Random, so that companies that were parked together do not come back together.
        return replace(wait, waits_on=NOTHING, after_s=min(after_s, _AGAIN_MOST_S) * random.uniform(1.0, 1.5))

    async def next_session(self) -> Wait | None:
        """Take the next session's unit and wait for the domain's slot."""
        self._sessions += 1
        wait = self._in_the_way() or await self._lease.next_session() or self._in_the_way()
        if wait is None and self._sessions > 1:
            self._tell.metrics.tool_calls.labels(tool="TOOL-005").inc()
        return wait if len(self._entered) == 1 else self._by_time(wait)

    def greeted(self, begun_at: float, ip: str) -> None:
        """Tell the controls in a task of its own: a slow database must not keep the server waiting."""
        way = way_to(ip)
        if self._tell.controls.is_due(f"greeting:{way}"):
            self._tell.farewells.take(self._tell.controls.greeting(begun_at, way))

    def session_ended(self) -> None:
        """Start the domain's pause."""
        self._lease.session_ended()

    async def release(self, *, met: Mapping[str, Met], greeted_at: Mapping[str, str], refused: Sequence[Held]) -> None:
        """Give the domain and the place back."""
        guardrails = self._tell.guardrails
        refusing = {self._provider_at(held.host, held.ip, self._domain) for held in refused}
        stalled = bool(self._tell.stalled_since(self._begun_at))
        talking = [provider for provider, how in met.items() if how is Met.GREETED and provider not in refusing]
        for provider, how in met.items():
            if how is Met.SILENT and not is_own_provider(provider, self._domain) and not stalled:
                await guardrails.silent(provider, self._domain)
        await self._lease.release(talked=self._place in talking, talked_at=greeted_at.get(self._place, ""))
        for way in {way_to(greeted_at[provider]) for provider in talking}:
            await self._tell.controls.good_talk(self._begun_at, self._domain, way)
        for provider in talking:
            if provider != self._place:
                await guardrails.note_talk(provider, greeted_at[provider])
            await guardrails.talked(provider, greeted_at[provider])
