"""The limits of a `ct-stream check` without a database: kept in this process, for this run."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from ct_stream.gate.memory import Memory
from ct_stream.gate.providers import is_own_server
from ct_stream.gate.questions import ControlAnswer, ControlKind, SpineAnswer
from ct_stream.gate.verdicts import HeldBy
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.probes.control_probe import first_success

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from uuid import UUID

    from ct_stream.gate.patterns import Address
    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.verdicts import Held
    from ct_stream.probes.control_probe import ControlResolver, SmtpControl
    from ct_stream.probes.mx import ControlResult
    from ct_stream.probes.needs import Brought, Met
    from ct_stream.probes.toolbox import Toolbox

_RATE_PAUSE_S = 60.0  #: after a reply about our rate


def next_slot(tat: float, per_second: float, now: float) -> tuple[float, float]:
    """Return (seconds to wait, the next theoretical arrival time) for one more unit at `per_second`.

    This is the generic cell rate algorithm without bursts. `tat` is the moment from which a unit need not wait, 0 at
    first.
    """
    begin = max(tat, now)
    return begin - now, begin + 1 / per_second


class NoMemory:
    """No memory: a person who checks a domain wants to know what it says now."""

    async def recall(self, domain: str) -> Memory | Wait:  # noqa: ARG002
        """Remember nothing."""
        return Memory()


class LocalPermits:
    """The toolbox's limits, counted in this process. `clock` gives seconds that never go back."""

    def __init__(
        self,
        toolbox: Toolbox,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.clock = clock
        self.sleep = sleep
        self.pause_s = toolbox.smtp.domain_pause_s
        self._toolbox = toolbox
        self._mx_tat = 0.0
        self._mx_today = 0
        self._sessions_today = 0
        self._busy_domains: set[str] = set()
        self._free_at: dict[str, float] = {}  #: by domain: when its pause is over
        self._open: dict[str, int] = {}  #: sessions by provider

    async def mx_lookup(self) -> Wait | None:
        """Take one MXLookup unit, after the few milliseconds that its rate may ask for."""
        if self._mx_today >= self._toolbox.mx.per_day:
            return _daily_cap("TOOL-004", self._toolbox.mx.per_day)
        self._mx_today += 1
        wait_s, self._mx_tat = next_slot(self._mx_tat, self._toolbox.mx.per_second, self.clock())
        await self.sleep(wait_s)
        return None

    async def begin_probe(self, domain: str, provider: str) -> LocalLease | Wait:
        """Take the domain's slot, a place at the provider and one SMTPCheck unit, or none of them."""
        pause_s = self._free_at.get(domain, 0.0) - self.clock()
        if domain in self._busy_domains or pause_s > 0:
            return Wait(
                reason=WaitReason.DOMAIN_BUSY,
                detail=f"{domain} is being asked, or was asked less than {self.pause_s:g} s ago",
                after_s=max(pause_s, 0.0) or None,
                waits_on=WaitsOn.domain(domain),
            )
        wait = self._no_place(provider) or self.take_session()
        if wait is not None:
            return wait
        self._busy_domains.add(domain)
        self._open[provider] = self._open.get(provider, 0) + 1
        return LocalLease(self, domain, provider)

    def _no_place(self, provider: str) -> Wait | None:
        places = self._toolbox.smtp.sessions_per_provider
        if self._open.get(provider, 0) < places:
            return None
        return Wait(
            reason=WaitReason.PROVIDER_BUSY,
            detail=f"{places} sessions are open to {provider}",
            waits_on=WaitsOn.provider(provider),
        )

    def move(self, provider: str, to_provider: str) -> Wait | None:
        """Take a place at `to_provider` and give the one at `provider` back, or do neither."""
        wait = self._no_place(to_provider)
        if wait is None:
            self._open[to_provider] = self._open.get(to_provider, 0) + 1
            self._leave(provider)
        return wait

    def _leave(self, provider: str) -> None:
        self._open[provider] -= 1
        if not self._open[provider]:
            del self._open[provider]

    def take_session(self) -> Wait | None:
        """Take one SMTPCheck unit of the day."""
        if self._sessions_today >= self._toolbox.smtp.per_day:
            return _daily_cap("TOOL-005", self._toolbox.smtp.per_day)
        self._sessions_today += 1
        return None

    def give_back(self, domain: str, provider: str, free_at: float) -> None:
        """End a lease."""
        self._busy_domains.discard(domain)
        self._free_at[domain] = free_at
        self._leave(provider)


class LocalLease:
    """The right to probe one domain, in this process."""

    def __init__(self, permits: LocalPermits, domain: str, provider: str) -> None:
        self._permits = permits
        self._domain = domain
        self._provider = provider
        self._first = True
        self._free_at = 0.0
        self._released = False

    async def enter(self, provider: str) -> Wait | None:
        """Exchange the held place for one at another provider."""
        wait = self._permits.move(self._provider, provider)
        if wait is None:
            self._provider = provider
        return wait

    async def next_session(self) -> Wait | None:
        """Take one SMTPCheck unit and sleep until the domain's pause is over. The first call returns at once."""
        if self._first:
            self._first = False
            return None
        wait = self._permits.take_session()
        if wait is None:
            await self._permits.sleep(max(0.0, self._free_at - self._permits.clock()))
        return wait

    def session_ended(self) -> None:
        """Start the domain's pause."""
        self._free_at = self._permits.clock() + self._permits.pause_s

    def greeted(self, begun_at: float) -> None:
        """Do nothing: no other worker needs to know."""

    async def release(self, *, met: Mapping[str, Met], refused: Sequence[Held]) -> None:  # noqa: ARG002 - no provider is remembered
        """Give the domain and the provider's place back, once."""
        if not self._released:
            self._released = True
            self._permits.give_back(self._domain, self._provider, self._free_at)


class LocalControls:
    """Asks controls at once: each one begins after the failed answer that needs it."""

    def __init__(self, resolver: ControlResolver, smtp: SmtpControl, domains: Sequence[str]) -> None:
        self._resolver = resolver
        self._smtp = smtp
        self._domains = tuple(domains)

    async def confirm(self, kind: ControlKind, exchanges: Sequence[Exchange]) -> ControlAnswer | Wait:  # noqa: ARG002 - it is asked now, after them all
        """Return the first control domain's success, or a wait if all of them fail."""
        ask = self._resolver.dns_control if kind is ControlKind.DNS else self._smtp.smtp_control
        result = await first_success(ask, self._domains)
        if result.ok:
            return ControlAnswer(detail=result.detail)
        return Wait(
            reason=WaitReason.RESOLVER if kind is ControlKind.DNS else WaitReason.CONTROL,
            detail=f"no control succeeded: {result.detail}",
            waits_on=WaitsOn.control(kind),
        )


class LocalRefusals:
    """Judges replies about us one at a time: nothing is known about other companies' servers."""

    def __init__(self, smtp: SmtpControl, domains: Sequence[str]) -> None:
        self._smtp = smtp
        self._domains = tuple(domains)

    async def judge(self, held: Held, domain: str, provider: str) -> Wait | None:
        """Return None if a company's own server refuses us while a control domain's server takes MAIL FROM."""
        if held.by is HeldBy.RATE:
            return Wait(
                reason=WaitReason.OUR_RATE,
                detail=f"{provider} says that we ask too fast: {held.reason}",
                after_s=_RATE_PAUSE_S,
                waits_on=WaitsOn.provider(provider),
            )

        async def up_to_mail(control: str) -> ControlResult:
            return await self._smtp.smtp_control(control, up_to_mail=True)

        result = await first_success(up_to_mail, self._domains)
        if not result.ok:
            return Wait(
                reason=WaitReason.HALTED,
                detail=f"no control domain takes mail from us either: {result.detail}; first refusal: {held.reason}",
                waits_on=WaitsOn.tool("TOOL-005"),
            )
        if is_own_server(held.host, domain):
            return None
        return Wait(
            reason=WaitReason.PROVIDER_CLOSED,
            detail=f"{provider} refuses us while a control talks normally: {held.reason}",
            waits_on=WaitsOn.provider(provider),
        )

    async def note(self, held: Held, domain: str, provider: str) -> None:
        """Do nothing: no other company needs to know."""


class Tier2Off:
    """No vendor is asked."""

    def __init__(self, because: str = "Tier-2 is off") -> None:
        self._because = because

    def off_because(self) -> str | None:
        """Return why."""
        return self._because

    async def verify(self, outreach_id: UUID, address: Address) -> Brought:
        """Raise RuntimeError: the gate does not ask a tool that is off."""
        raise RuntimeError(f"Tier-2 is off, yet {outreach_id} asked for an address at {address.domain}")


class NoSpine:
    """The spine of a run without a database: it is given the domain instead."""

    def __init__(self, domain: str) -> None:
        self._domain = domain

    async def lookup(self, outreach_id: UUID) -> SpineAnswer | Wait:  # noqa: ARG002 - one company only
        """Return a row with the domain that a person typed."""
        return SpineAnswer(found=True, domain=self._domain)


def _daily_cap(tool: str, per_day: int) -> Wait:
    return Wait(
        reason=WaitReason.DAILY_CAP,
        detail=f"{tool} has used up its {per_day} units of the day",
        waits_on=WaitsOn.tool(tool),
    )
