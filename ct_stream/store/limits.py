"""The toolbox's limits over all workers: who may look up or probe now, and who waits for what?

One call of a function in Postgres serves a whole batch; durations are by the database's clock.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.store.batches import Batches
from ct_stream.store.outage import AGAIN, OUTAGE
from ct_stream.store.passes import LEASE_S

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import date

    from ct_stream.store.database import Database

#: A slot of the per-second rate is waited for in the task as long as it is near; else the company is put away.
_MAX_SLOT_WAIT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The numbers of the toolbox that Postgres enforces."""

    mx_per_second: float
    mx_per_day: int
    smtp_per_day: int
    smtp_domain_pause_s: float
    smtp_per_provider: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """When what was granted may go, or why it may not."""

    delay_s: float = 0.0
    wait: Wait | None = None
    day: date | None = None  #: as in Begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The database's answer to the begin of a probe chain."""

    answer: str  #: granted, halted, trial, provider_closed, provider_busy, domain_busy, cap
    retry_s: float | None
    detail: str | None
    day: date | None = None  #: to which the unit goes back when it is not used


class SharedLimits:
    """The limits as all workers share them."""

    def __init__(self, database: Database, owner: str, limits: Limits) -> None:
        self._database = database
        self._owner = owner
        self.limits = limits
        self.held: set[str] = set()  #: domains that passes of this worker are probing
        #: Domains whose lease ends, until the database said so: an end that runs again after a lost answer would end
        #: the next lease too, because both are this worker's.
        self._ending: set[str] = set()
        retrying = database.retrying
        self.take_mx: Batches[None, Slot] = Batches("take-mx", self._take_mx, retrying=retrying)
        self.take_smtp: Batches[None, Slot] = Batches("take-smtp", self._take_smtp, retrying=retrying)
        self.begin: Batches[tuple[str, str], Begun] = Batches(
            "begin-probes", self._begin, order=lambda pair: (pair[1], pair[0]), retrying=retrying
        )
        self.end: Batches[_Ended, None] = Batches(
            "end-probes", self._end, order=lambda ended: ended.domain, retrying=retrying
        )

    @property
    def batches(self) -> tuple[Batches[Any, Any], ...]:
        """Return the queues, to be started and stopped with the program."""
        return (self.take_mx, self.take_smtp, self.begin, self.end)

    async def mx_lookup(self) -> Wait | None:
        """Take one MXLookup unit; None when the look-up may go now."""
        slot = await self.take_mx(None)
        if slot.wait is None and slot.delay_s > 0:
            await asyncio.sleep(slot.delay_s)
        return slot.wait

    async def begin_probe(self, domain: str, provider: str) -> DomainLease | Wait:
        """Take the domain's slot, a place at the provider and one SMTPCheck unit, or none of them."""

        def granted(begun: Begun) -> DomainLease:
            self.held.add(domain)
            return DomainLease(self, domain, unused=begun.day)

        async def unclaimed(begun: Begun) -> None:
            if begun.answer == "granted":
                await granted(begun).release(talked=False)

        if domain not in self._ending:
            begun = await self.begin((domain, provider), unclaimed=unclaimed)
        if domain in self._ending:  # meanwhile too: then the end that is under way may have taken this lease with it
            begun = Begun(answer="domain_busy", retry_s=None, detail=None)
        if begun.answer == "granted":
            return granted(begun)
        wait = _wait(begun, domain, provider, self.limits)
        # Who waits between two hosts is not woken for a unit: the first one would be asked again for each.
        return replace(wait, waits_on="cap:TOOL-005") if begun.answer == "cap" else wait

    async def enter_provider(self, domain: str, provider: str, *, is_own: bool, is_known: bool) -> Wait | None:
        """Go on at another provider for a domain that is ours: see ct_enter_provider."""
        limits = self.limits
        rows = await self._database.persist(
            "enter_provider",
            self._owner,
            domain,
            provider,
            is_own,
            is_known,
            limits.smtp_per_day,
            limits.smtp_per_provider,
        )
        begun = Begun(**rows[0])
        if begun.answer == "granted":
            return None
        wait = _wait(begun, domain, provider, limits)
        return replace(wait, after_s=begun.retry_s) if begun.answer == "provider_closed" else wait

    def ends(self, domain: str) -> None:
        """Begin no probe of a domain before the end of its lease is on record."""
        self.held.discard(domain)
        self._ending.add(domain)

    async def wake_capped(self) -> None:
        """Wake who waits for midnight, as far as units are left: see ct_wake_capped."""
        await self._database.persist("wake_capped", self.limits.smtp_per_day)

    # ---------------------------------------------------------------- batches

    async def _take_mx(self, wanted: Sequence[None]) -> list[Slot]:
        limits = self.limits
        row = await self._database.fetch_one(
            "take_mx", len(wanted), limits.mx_per_second, limits.mx_per_day, _MAX_SLOT_WAIT_S
        )
        assert row is not None
        granted: int = row["granted"]
        slots = [Slot(delay_s=row["delay_s"] + n / limits.mx_per_second) for n in range(granted)]
        for n in range(len(wanted) - granted):
            if row["refusal"] == "cap":
                wait = Wait(
                    reason=WaitReason.DAILY_CAP,
                    detail=f"all {limits.mx_per_day} MX look-ups of the UTC day (TOOL-004) are used up",
                    after_s=row["retry_s"],
                )
            else:
                # Put away until its turn is near: in the order refused, one slot apart.
                wait = Wait(
                    reason=WaitReason.RATE_LIMIT,
                    detail=f"{limits.mx_per_second:g} MX look-ups a second (TOOL-004) are allowed",
                    after_s=row["retry_s"] + n / limits.mx_per_second,
                )
            slots.append(Slot(wait=wait))
        return slots

    async def _take_smtp(self, wanted: Sequence[None]) -> list[Slot]:
        row = await self._database.fetch_one("take_smtp", len(wanted), self.limits.smtp_per_day)
        assert row is not None
        refused = Slot(wait=_cap_wait(self.limits, row["retry_s"]))
        granted = Slot(day=row["day"])
        return [granted if n < row["granted"] else refused for n in range(len(wanted))]

    async def _begin(self, pairs: Sequence[tuple[str, str]]) -> list[Begun]:
        rows = await self._database.fetch(
            "begin_probes",
            self._owner,
            [domain for domain, _ in pairs],
            [provider for _, provider in pairs],
            LEASE_S,
            self.limits.smtp_per_day,
            self.limits.smtp_per_provider,
        )
        begun = {row["place"]: row for row in rows}
        return [
            Begun(**{name: begun[n][name] for name in ("answer", "retry_s", "detail", "day")})
            for n in range(1, len(pairs) + 1)
        ]

    async def _end(self, ended: Sequence[_Ended]) -> list[None]:
        now = time.monotonic()
        try:
            await self._database.run(
                "end_probes",
                self._owner,
                [one.domain for one in ended],
                [now - one.ended_at for one in ended],
                [one.talked for one in ended],
                [one.unused for one in ended],
                self.limits.smtp_domain_pause_s,
            )
        except (*AGAIN, *OUTAGE):
            raise  # it runs again
        except Exception:
            if len(ended) == 1:  # for good; of several each runs alone
                self._ending.discard(ended[0].domain)
            raise
        self._ending.difference_update(one.domain for one in ended)
        return [None] * len(ended)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """The end of a lease; `ended_at` is that of its last session, in monotonic seconds."""

    domain: str
    ended_at: float
    talked: bool
    unused: date | None


class DomainLease:
    """The right to probe one domain, from the first session of a pass to its last."""

    def __init__(self, shared: SharedLimits, domain: str, *, unused: date | None) -> None:
        self._shared = shared
        self._domain = domain
        self._sessions = 0
        self._unused = unused  # the day of a unit with which no session was begun yet
        self._ended_at = time.monotonic()
        self._released = False

    async def enter(self, provider: str, *, is_own: bool = False, is_known: bool = False) -> Wait | None:
        """Take a place at another provider for the one that is held; a company's own servers need none.

        `is_known`: its rail has let this lease in before, so that its one try is ours.
        """
        return await self._shared.enter_provider(self._domain, provider, is_own=is_own, is_known=is_known)

    async def next_session(self) -> Wait | None:
        """Take the next session's unit, and come back when the domain's pause is over."""
        self._sessions += 1
        if self._sessions > 1:
            slot = await self._shared.take_smtp(None, unclaimed=self._keep)
            if slot.wait is not None:
                return slot.wait
            await self._keep(slot)
            pause = self._ended_at + self._shared.limits.smtp_domain_pause_s - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
        self._unused = None
        return None

    async def _keep(self, slot: Slot) -> None:
        """Have a unit, until a session begins with it."""
        self._unused = slot.day

    def session_ended(self) -> None:
        """Start the domain's pause."""
        self._ended_at = time.monotonic()

    async def release(self, *, talked: bool) -> None:
        """Give the domain, the place and a unit that was not used back; the pause counts from the last session's end.

        `talked`: a server of the provider at which it has its place talked to us normally, which is evidence about it.
        """
        if not self._released:
            self._released = True
            self._shared.ends(self._domain)
            await self._shared.end(
                _Ended(domain=self._domain, ended_at=self._ended_at, talked=talked, unused=self._unused)
            )


def _wait(begun: Begun, domain: str, provider: str, limits: Limits) -> Wait:
    match begun.answer:
        case "halted":
            return Wait(
                reason=WaitReason.HALTED, detail=f"TOOL-005 is halted: {begun.detail}", waits_on="tool:TOOL-005"
            )
        case "trial":
            return Wait(
                reason=WaitReason.HALTED,
                detail=f"TOOL-005 comes back carefully, one company at a time: {begun.detail}",
                waits_on="tool:TOOL-005",
            )
        case "provider_closed":
            return Wait(
                reason=WaitReason.PROVIDER_CLOSED,
                detail=f"provider {provider} is closed: {begun.detail}",
                waits_on=f"provider:{provider}",
            )
        case "provider_busy":
            return Wait(
                reason=WaitReason.PROVIDER_BUSY,
                detail=f"all sessions allowed at provider {provider} are open",
                waits_on=f"places:{provider}",
            )
        case "domain_busy":
            return Wait(
                reason=WaitReason.DOMAIN_BUSY,
                detail=f"another company of {domain} is being probed, or was just now",
                after_s=begun.retry_s,
                waits_on=f"domain:{domain}",
            )
        case "cap":
            return _cap_wait(limits, begun.retry_s)
    raise AssertionError(begun.answer)


def _cap_wait(limits: Limits, retry_s: float | None) -> Wait:
    return Wait(
        reason=WaitReason.DAILY_CAP,
        detail=f"all {limits.smtp_per_day} SMTP sessions of the UTC day (TOOL-005) are used up",
        after_s=retry_s,
    )
