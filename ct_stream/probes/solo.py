"""What a pass needs when it runs alone, without a database: one domain, once, in one process.

One pass cannot reach a cap of the day, of the second or of a provider, so none is counted here; store/functions/ counts
them for workers. It keeps the pause between two sessions, and proves our own way before it blames the domain.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from ct_stream.gate.memory import Memory
from ct_stream.gate.providers import is_own_provider, provider_of
from ct_stream.gate.questions import ControlAnswer, ControlKind, SpineAnswer
from ct_stream.gate.verdicts import HeldBy
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.probes.control_probe import first_success

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from uuid import UUID

    from ct_stream.control_domains import ControlDomain
    from ct_stream.gate.patterns import Address
    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.verdicts import Held
    from ct_stream.probes.control_probe import ControlResolver, SmtpControl
    from ct_stream.probes.mx import Family
    from ct_stream.probes.needs import Brought, Met

_RATE_PAUSE_S = 60.0  #: after a reply about our rate


def needs_tcp(detail: str) -> Wait:
    """Return the wait of a company whose DNS answer this machine can fetch only a part of."""
    return Wait(reason=WaitReason.ANOTHER_MACHINE, detail=detail, waits_on=WaitsOn.way(ControlKind.DNS_TCP))


class SoloPermits:
    """The pause between two sessions of the domain; its own lease. `clock` gives seconds that never go back."""

    def __init__(
        self,
        pause_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._sleep = sleep
        self._free_at = 0.0  #: when the pause is over

    def lacks(self, kind: ControlKind) -> Wait | None:  # noqa: ARG002 - what fails is proven when it fails
        """Try every way."""
        return None

    def cut_off(self, detail: str) -> Wait:
        """Say so: this machine cannot fetch all of the answer."""
        return needs_tcp(detail)

    async def mx_lookup(self) -> Wait | None:
        """Let the look-up go."""
        return None

    def provider_at(self, host: str, ip: str, domain: str) -> str:  # noqa: ARG002 - nobody else was refused there
        """Return whose host it is by its name."""
        return provider_of(host, domain)

    async def begin_probe(self, domain: str, provider: str) -> SoloPermits | Wait:  # noqa: ARG002 - nobody else asks
        """Return the lease."""
        return self

    async def enter(self, provider: str) -> Wait | None:  # noqa: ARG002 - every provider has room for one
        """Continue at another provider."""
        return None

    async def next_session(self) -> Wait | None:
        """Sleep until the pause is over."""
        wait_s = self._free_at - self._clock()
        if wait_s > 0:
            await self._sleep(wait_s)
        return None

    def session_ended(self) -> None:
        """Start the pause."""
        self._free_at = self._clock() + self._pause_s

    def greeted(self, begun_at: float, ip: str) -> None:
        """Nobody is told."""

    async def release(self, *, met: Mapping[str, Met], greeted_at: Mapping[str, str], refused: Sequence[Held]) -> None:
        """Nobody waits for the domain, and no provider is remembered."""


class SoloControls:
    """Controls asked on the spot: each one starts after the failed answer that it is asked for."""

    def __init__(self, resolver: ControlResolver, smtp: SmtpControl, controls: Sequence[ControlDomain]) -> None:
        self._resolver = resolver
        self._smtp = smtp
        self._controls = tuple(controls)

    async def confirm(self, kind: ControlKind, exchanges: Sequence[Exchange]) -> ControlAnswer | Wait:  # noqa: ARG002 - it is asked now, after them all
        """Return the first control domain's success, or the wait that all their failures make."""
        family: Family = 6 if kind is ControlKind.SMTP6 else 4
        if kind is ControlKind.DNS:
            result = await first_success(self._resolver.dns_control, [control.domain for control in self._controls])
        else:
            result = await first_success(partial(self._smtp.smtp_control, family=family), self._controls)
        if result.ok:
            return ControlAnswer(detail=result.detail)
        return Wait(
            reason=WaitReason.RESOLVER if kind is ControlKind.DNS else WaitReason.CONTROL,
            detail=f"no control succeeds: {result.detail}",
            waits_on=WaitsOn.control(kind),
        )

    async def astray(self, exchanges: Sequence[Exchange]) -> Wait | None:  # noqa: ARG002 - one pass, in one moment
        """Nobody has asked a control meanwhile."""
        return None


class SoloRefusals:
    """Replies about us, judged one at a time: nothing is known of what other companies' servers said."""

    def __init__(self, smtp: SmtpControl, controls: Sequence[ControlDomain]) -> None:
        self._smtp = smtp
        self._controls = tuple(controls)

    async def judge(self, held: Held, domain: str, provider: str) -> Wait | None:
        """Return None when a company's own server refuses us while a control talks normally up to MAIL FROM."""
        if held.by is HeldBy.RATE:
            return Wait(
                reason=WaitReason.OUR_RATE,
                detail=f"{provider} says that we ask too fast: {held.reason}",
                after_s=_RATE_PAUSE_S,
                waits_on=WaitsOn.provider(provider),
            )
        result = await first_success(self._smtp.smtp_control, self._controls)
        if not result.ok:
            return Wait(
                reason=WaitReason.HALTED,
                detail=f"a control does not take mail from us either: {result.detail}; first: {held.reason}",
                waits_on=WaitsOn.tool("TOOL-005"),
            )
        if is_own_provider(provider, domain):
            return None
        return Wait(
            reason=WaitReason.PROVIDER_CLOSED,
            detail=f"{provider} refuses us while a control talks normally: {held.reason}",
            waits_on=WaitsOn.provider(provider),
        )

    async def note(self, held: Held, domain: str, provider: str) -> None:
        """Nobody is told."""


class NoMemory:
    """No earlier answer is used: a person who checks a domain wants to know what it says now."""

    async def recall(self, domain: str) -> Memory | Wait:  # noqa: ARG002
        """Remember nothing."""
        return Memory()


class Tier2Off:
    """No vendor is asked."""

    def __init__(self, because: str = "Tier-2 is off") -> None:
        self._because = because

    def off_because(self) -> str | None:
        """Return why."""
        return self._because

    async def verify(self, outreach_id: UUID, address: Address) -> Brought:
        """Raise RuntimeError: the gate asks no tool that is off."""
        raise RuntimeError(f"Tier-2 is off, yet {outreach_id} asked for an address at {address.domain}")


class NoSpine:
    """The domain that a person typed, in place of a spine row."""

    def __init__(self, domain: str) -> None:
        self._domain = domain

    async def lookup(self, outreach_id: UUID) -> SpineAnswer | Wait:  # noqa: ARG002 - one company only
        """Return a row with that domain."""
        return SpineAnswer(found=True, domain=self._domain)
