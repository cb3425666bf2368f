"""The toolbox's limits over all workers: who may look up or probe now, and who waits for what.

One call of a function in Postgres serves a whole batch. Durations are by the database's clock.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from ct_stream.gate.egress import DEFAULT
from ct_stream.gate.providers import address_of, is_own_provider, network_of
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.store.batches import Batches
from ct_stream.store.outage import ANY_TROUBLE
from ct_stream.store.parked import LEASE_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from ct_stream.gate.toolbox_limits import ProbeLimits
    from ct_stream.store.database import Database

#: For a slot of the per-second rate that is nearer than this, the task waits; otherwise the company is parked.
_MAX_SLOT_WAIT_S = 1.0
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_AGAIN_S = 5.0  #: for a process that was paused to recover
_SURE_S = LEASE_S - 5.0  #: for so long after the grant a session may begin, since a server may be slow to accept it


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """When a granted look-up may start, or why it may not."""

    delay_s: float = 0.0
    wait: Wait | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What a pass saw in the domain memory. If newer answers are there by now, it need not ask (ADR-CT-IMO-014)."""

    rules_version: str
    answered_at: datetime | None  #: None: nothing was remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A domain that a pass wants to start or continue probing, and the name of its lease there."""

    domain: str
    provider: str
    lease: UUID
    session: int = 1  #: its number under the lease
    looked: Looked | None = None  #: None: it did not look at the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The database's answer to a request to start probing, or to start a further session."""

    answer: str  #: granted, halted, trial, provider_closed, provider_busy, domain_busy, answered, cap
    retry_s: float | None
    detail: str | None
    asked_at: float = 0.0  #: by our monotonic clock: the lease ends no earlier than LEASE_S after it


class SharedLimits:
    """The limits, shared by all workers."""

    def __init__(self, database: Database, owner: str, limits: ProbeLimits, egress: str = DEFAULT) -> None:
        """`egress` names the address that this worker's sessions come from."""
        self._database = database
        self._owner = owner
        self._egress = egress
        self.limits = limits
        self.held: dict[UUID, str] = {}  #: the domains that passes of this worker are probing, by lease
        self.take_mx: Batches[None, Slot] = Batches("take-mx", self._take_mx, outages=database)
        self.begin: Batches[Wanted, Begun] = Batches(
            "begin-probes", self._begin, order=lambda wanted: (wanted.provider, wanted.domain), outages=database
        )
        self.go_on: Batches[Wanted, Begun] = Batches(
            "go-on", self._go_on, order=lambda wanted: wanted.domain, outages=database
        )
        self.end: Batches[_Ended, None] = Batches(
            "end-probes", self._end, order=lambda ended: ended.domain, outages=database
        )

    @property
    def batches(self) -> tuple[Batches[Any, Any], ...]:
        """Return the queues, to be started and stopped with the program."""
        return (self.take_mx, self.begin, self.go_on, self.end)

    async def mx_lookup(self) -> Wait | None:
        """Take one MXLookup unit; None if the look-up may start now."""
        slot = await self.take_mx(None)
        if slot.wait is None and slot.delay_s > 0:
            await asyncio.sleep(slot.delay_s)
        return slot.wait

    async def begin_probe(self, domain: str, provider: str, looked: Looked | None = None) -> DomainLease | Wait:
        """Take the domain's slot, a place at the provider and one SMTPCheck unit, or none of them.

        Nothing is taken if the domain has answered another company since this one `looked`.
        """
        wanted = Wanted(domain=domain, provider=provider, lease=uuid4(), looked=looked)

        def granted(begun: Begun) -> DomainLease:
            self.held[wanted.lease] = domain
            return DomainLease(self, wanted, begun.asked_at)

        async def unclaimed(begun: Begun) -> None:
            if begun.answer == "granted":
                await granted(begun).release(talked=False)

        begun = await self.begin(wanted, unclaimed=unclaimed)
        if begun.answer == "granted":
            return granted(begun)
        wait = self._wait(begun, domain, provider)
        # Only here a free unit wakes the company: between two hosts, the first one would be asked again for each unit.
        return replace(wait, waits_on=WaitsOn.cap("TOOL-005")) if begun.answer == "cap" else wait

    async def enter_provider(self, held: Wanted, provider: str, *, is_known: bool) -> Wait | None:
        """Continue at another provider with a domain that is held: see ct_enter_provider."""
        limits = self.limits
        rows = await self._database.persist(
            "enter_provider",
            self._owner,
            held.lease,
            held.domain,
            provider,
            is_own_provider(provider, held.domain),
            is_known,
            limits.smtp_per_day,
            limits.smtp_per_provider,
            self._egress,
        )
        begun = Begun(**rows[0])
        if begun.answer == "granted":
            return None
        wait = self._wait(begun, held.domain, provider)
        return replace(wait, after_s=begun.retry_s) if begun.answer == "provider_closed" else wait

    async def next_session(self, held: Wanted) -> float | Wait:
        """Take the unit of a further session under a lease that is still held: see ct_go_on. Return `asked_at`."""
        begun = await self.go_on(held)
        if begun.answer != "granted":
            return self._wait(begun, held.domain, held.provider)
        return begun.asked_at

    async def wake_capped(self) -> None:
        """Wake companies that wait for midnight, as many as units are left: see ct_wake_capped."""
        await self._database.persist("wake_capped", self.limits.smtp_per_day)

    async def release_owner(self) -> None:
        """Give back all leases of this worker. Without a database they run out by themselves."""
        with suppress(*ANY_TROUBLE):
            await self._database.run("release_owner", self._owner, self.limits.smtp_domain_pause_s)

    def _wait(self, begun: Begun, domain: str, provider: str) -> Wait:
        limits, egress = self.limits, self._egress
        match begun.answer:
            case "halted":
                return Wait(
                    reason=WaitReason.HALTED,
                    detail=f"TOOL-005 is halted: {begun.detail}",
                    waits_on=WaitsOn.tool("TOOL-005", egress),
                )
            case "sender":
                return Wait(
                    reason=WaitReason.HALTED,
                    detail=f"our sender is halted: {begun.detail}",
                    waits_on=WaitsOn.mail_from(),
                )
            case "trial":
                return Wait(
                    reason=WaitReason.HALTED,
                    detail=f"TOOL-005 was resumed and is tried with one company at a time: {begun.detail}",
                    waits_on=WaitsOn.tool("TOOL-005", egress),
                )
            case "provider_closed":
                return Wait(
                    reason=WaitReason.PROVIDER_CLOSED,
                    detail=f"provider {provider} is closed: {begun.detail}",
                    waits_on=WaitsOn.provider(provider, egress),
                )
            case "provider_busy":
                return Wait(
                    reason=WaitReason.PROVIDER_BUSY,
                    detail=f"all sessions allowed at provider {provider} are in use",
                    waits_on=WaitsOn.place(provider),
                )
            case "domain_busy":
                return Wait(
                    reason=WaitReason.DOMAIN_BUSY,
                    detail=f"another company of {domain} is being probed, or was just now",
                    after_s=begun.retry_s,
                    waits_on=WaitsOn.domain(domain),
                )
            case "answered":
                return Wait(
                    reason=WaitReason.DOMAIN_BUSY,
                    detail=f"another company of {domain} has just been decided; this one will use its answers",
                    after_s=0.0,
                )
            case "cap":
                return Wait(
                    reason=WaitReason.DAILY_CAP,
                    detail=f"all {limits.smtp_per_day} SMTP sessions of the UTC day (TOOL-005) are used up",
                    after_s=begun.retry_s,
                )
        raise AssertionError(begun.answer)

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
                # Parked until its turn is near: in the order of refusal, one slot apart.
                wait = Wait(
                    reason=WaitReason.RATE_LIMIT,
                    detail=f"only {limits.mx_per_second:g} MX look-ups a second (TOOL-004) are allowed",
                    after_s=row["retry_s"] + n / limits.mx_per_second,
                )
            slots.append(Slot(wait=wait))
        return slots

    async def _begin(self, wanted: Sequence[Wanted]) -> list[Begun]:
        asked_at = time.monotonic()
        rows = await self._database.fetch(
            "begin_probes",
            self._owner,
            [one.domain for one in wanted],
            [one.provider for one in wanted],
            [is_own_provider(one.provider, one.domain) for one in wanted],
            [one.lease for one in wanted],
            [one.looked and one.looked.rules_version for one in wanted],
            [one.looked and (one.looked.answered_at or _NEVER) for one in wanted],
            LEASE_S,
            self.limits.smtp_per_day,
            self.limits.smtp_per_provider,
            self._egress,
        )
        return _in_order(rows, asked_at)

    async def _go_on(self, wanted: Sequence[Wanted]) -> list[Begun]:
        asked_at = time.monotonic()
        rows = await self._database.fetch(
            "go_on",
            self._owner,
            [one.domain for one in wanted],
            [one.lease for one in wanted],
            [one.session for one in wanted],
            LEASE_S,
            self.limits.smtp_per_day,
            self.limits.smtp_per_provider,
        )
        return _in_order(rows, asked_at)

    async def _end(self, ended: Sequence[_Ended]) -> list[None]:
        now = time.monotonic()
        await self._database.run(
            "end_probes",
            self._owner,
            [one.domain for one in ended],
            [one.lease for one in ended],
            [now - one.ended_at for one in ended],
            [one.talked for one in ended],
            [address_of(one.talked_at) or None for one in ended],
            [network_of(one.talked_at) or None for one in ended],
            [one.begun for one in ended],
            self.limits.smtp_domain_pause_s,
            self._egress,
        )
        return [None] * len(ended)


def _in_order(rows: Sequence[asyncpg.Record], asked_at: float) -> list[Begun]:
    return [
        Begun(answer=row["answer"], retry_s=row["retry_s"], detail=row["detail"], asked_at=asked_at)
        for row in sorted(rows, key=lambda row: row["place"])
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """The end of a lease; `ended_at` is that of its last session, in monotonic seconds."""

    domain: str
    lease: UUID
    ended_at: float
    talked: bool
    talked_at: str  #: the address of the server that talked; "": unknown
    begun: int  #: sessions


class DomainLease:
    """The right to probe one domain, from the first session of a pass to its last."""

    def __init__(self, shared: SharedLimits, held: Wanted, granted_at: float) -> None:
        self._shared = shared
        self._held = held
        self._granted_at = granted_at  # as Begun.asked_at
        self._begun = 0
        self._ended_at = time.monotonic()
        self._released = False

    @property
    def lease(self) -> UUID:
        """Return its name, which no other lease has."""
        return self._held.lease

    async def enter(self, provider: str, *, is_known: bool = False) -> Wait | None:
        """Exchange the held place for one at another provider; a company's own servers need none.

        `is_known`: the provider's guardrail has let this lease in before, so its one try is already ours.
        """
        wait = await self._shared.enter_provider(self._held, provider, is_known=is_known)
        if wait is None and not is_own_provider(provider, self._held.domain):
            self._held = replace(self._held, provider=provider)
        return wait

    async def next_session(self) -> Wait | None:
        """Return when the domain's pause is over, with the unit of a session that may begin at once.

        After an outage or a freeze that was longer than the lease, another pass may hold the domain. Then nothing is
        taken.
        """
        if self._begun:
            pause = self._ended_at + self._shared.limits.smtp_domain_pause_s - time.monotonic()
            if pause > 0:
                await asyncio.sleep(pause)
            granted_at = await self._shared.next_session(replace(self._held, session=self._begun + 1))
            if isinstance(granted_at, Wait):
                return granted_at
            self._granted_at = granted_at
        if time.monotonic() - self._granted_at > _SURE_S:
            return Wait(
                reason=WaitReason.OUR_MACHINE,
                detail=f"its lease on {self._held.domain} may have ended: this process was paused, or Postgres slow",
                after_s=_AGAIN_S,
            )
        self._begun += 1
        return None

    def session_ended(self) -> None:
        """Start the domain's pause."""
        self._ended_at = time.monotonic()

    async def release(self, *, talked: bool, talked_at: str = "") -> None:
        """Give back the domain, the place and an unused unit. The domain's pause counts from the last session's end.

        `talked`: a server of the provider at which the lease has its place talked to us normally, which is evidence.
        `talked_at`: the address of that server.
        """
        if not self._released:
            self._released = True
            held = self._held
            self._shared.held.pop(held.lease, None)
            await self._shared.end(
                _Ended(
                    domain=held.domain,
                    lease=held.lease,
                    ended_at=self._ended_at,
                    talked=talked,
                    talked_at=talked_at,
                    begun=self._begun,
                )
            )
