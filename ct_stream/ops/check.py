"""Run stage M on one domain now: no event, no outcome, and no trace in any table but those of the limits."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from ct_stream.gate.domains import NotADomain, canonical_domain
from ct_stream.gate.middle_stage import middle_stage
from ct_stream.gate.providers import provider_at
from ct_stream.gate.transcript import to_json
from ct_stream.gate.verdicts import Failed, Passed
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.ops.troubles import ServiceTrouble, WrongInput, postgres_answers
from ct_stream.probes.answer import PassDriver, Waiting, World
from ct_stream.probes.solo import NoMemory, NoSpine, SoloControls, SoloPermits, SoloRefusals, Tier2Off, needs_tcp
from ct_stream.store.database import Database
from ct_stream.store.guardrails import Guardrails
from ct_stream.store.limits import DomainLease, SharedLimits
from ct_stream.store.outage import UnfitDatabase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence, Set

    from ct_stream.gate.questions import ControlKind
    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.verdicts import Held
    from ct_stream.probes.answer import Ending
    from ct_stream.probes.control_probe import SmtpControl
    from ct_stream.probes.mx import Resolver
    from ct_stream.probes.needs import MailboxAsker, Met, Permits, ProbeLease
    from ct_stream.probes.stopwatch import Stopwatch
    from ct_stream.probes.toolbox import Toolbox
    from ct_stream.settings import Settings

_SLACK_S = 120.0  #: for limits, leases and controls, which the pass deadline leaves out
_SHORT_S = 5.0
_SLOTS = (WaitReason.RATE_LIMIT, WaitReason.DOMAIN_BUSY)
_TIER2_OFF = "Tier-2 is never asked by `check`"


class Probing(Protocol):
    """The way to the world, as the settings give it."""

    @property
    def resolver(self) -> Resolver:
        """Return who is asked for names."""

    @property
    def smtp_control(self) -> SmtpControl:
        """Return the proof that port 25 is open for us."""

    def prober(self, permits: Permits, stopwatch: Stopwatch) -> MailboxAsker:
        """Return the prober of one pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """The result as `--json` prints it."""

    domain: str
    outcome: str  #: PASS, FAIL or HELD
    failure_code: str | None = None
    method_type: str | None = None
    email_method: str | None = None
    is_catchall: bool | None = None
    confidence_score: float | None = None
    reason: str | None = None
    held_by: str | None = None  #: gate/waits.py, when HELD
    transcript: list[dict[str, Any]]


async def check(settings: Settings, toolbox: Toolbox, probing: Probing, typed: str) -> Checked:
    """Run stage M on a domain as a person typed it. Raises WrongInput or ServiceTrouble."""
    domain = canonical_domain(typed)
    if isinstance(domain, NotADomain):
        raise WrongInput([f"{domain.reason}, so the gate fails it with CT-I-NO-DOMAIN; give one such as example.com"])
    outreach_id = uuid4()
    rules = toolbox.rules()
    async with _permits(settings, toolbox) as permits:
        world = World(
            spine=NoSpine(domain),
            memory=NoMemory(),
            resolver=probing.resolver,
            permits=permits,
            controls=SoloControls(probing.resolver, probing.smtp_control, settings.control_domains),
            refusals=SoloRefusals(probing.smtp_control, settings.control_domains),
            tier2=Tier2Off(_TIER2_OFF),
            probers=lambda stopwatch: probing.prober(permits, stopwatch),
        )
        kept: tuple[Exchange, ...] = ()
        spent_s = 0.0
        try:
            async with asyncio.timeout(settings.pass_deadline_s + _SLACK_S):
                while True:
                    driver = PassDriver(
                        outreach_id,
                        rules,
                        world,
                        deadline_s=settings.pass_deadline_s,
                        spent_s=spent_s,
                        kept=kept,
                        flow=lambda: middle_stage(outreach_id, domain, rules, tier2_off=_TIER2_OFF),
                    )
                    ending = await driver.run()
                    if not isinstance(ending, Waiting) or not _is_short(ending.wait):
                        return _checked(domain, ending, driver.exchanges)
                    await asyncio.sleep(ending.wait.after_s or 0.0)
                    kept, spent_s = ending.exchanges, ending.spent_s
        except TimeoutError as error:
            raise ServiceTrouble(
                "no result in time",
                "check that Postgres (CT_POSTGRES_DSN) answers, and try again when no worker asks this domain",
            ) from error


def _is_short(wait: Wait) -> bool:
    """Return whether a person would rather wait than ask again: for a slot or a domain's pause, never for a cap."""
    return wait.reason in _SLOTS and wait.after_s is not None and wait.after_s <= _SHORT_S


def _checked(domain: str, ending: Ending, exchanges: Sequence[Exchange]) -> Checked:
    transcript = to_json(exchanges)
    match ending:
        case Passed():
            return Checked(
                domain=domain,
                outcome="PASS",
                method_type=ending.method_type,
                email_method=ending.email_method,
                is_catchall=ending.is_catchall,
                confidence_score=ending.confidence,
                reason=ending.note or None,
                transcript=transcript,
            )
        case Failed():
            return Checked(
                domain=domain,
                outcome="FAIL",
                failure_code=ending.code.value,
                reason=ending.reason,
                transcript=transcript,
            )
    if ending.pending is not None:
        transcript += to_json([ending.pending])
    return Checked(
        domain=domain,
        outcome="HELD",
        reason=ending.wait.detail,
        held_by=ending.wait.reason.value,
        transcript=transcript,
    )


@asynccontextmanager
async def _permits(settings: Settings, toolbox: Toolbox) -> AsyncIterator[Permits]:
    """Lend the limits of all workers where CT_POSTGRES_DSN is set; without it only the pause between two sessions."""
    if settings.postgres_dsn is None:
        yield SoloPermits(toolbox.smtp.domain_pause_s)
        return
    database = Database(settings.postgres_dsn, application_name="ct-stream check", pool_size=2)
    try:
        with postgres_answers("CT_POSTGRES_DSN"):
            try:
                await database.open()
            except UnfitDatabase as error:
                raise ServiceTrouble(f"CT_POSTGRES_DSN: {error.problem.what}", error.problem.action) from error
        async with _limits(database, toolbox, settings.egress) as permits:
            yield permits
    finally:
        await database.close()


@asynccontextmanager
async def _limits(database: Database, toolbox: Toolbox, egress: str) -> AsyncIterator[Permits]:
    guardrails = Guardrails(database, toolbox.controls.settle_s, egress=egress)
    owner = f"check/{uuid4().hex[:8]}"
    await database.persist("begin_egress", owner, egress)  # a new name slips out of no halt
    await guardrails.refresh(now=True)
    limits = SharedLimits(
        database,
        owner,
        toolbox.probe_limits(),
        egress,
    )
    for batches in limits.batches:
        batches.start()
    try:
        yield _SharedPermits(limits, guardrails.closed)
    finally:
        for batches in limits.batches:
            await batches.stop()


class _SharedPermits:
    """The shared limits, as a pass takes them."""

    def __init__(self, limits: SharedLimits, closed: Set[str]) -> None:
        """`closed`: the providers whose guardrail is not open."""
        self._limits = limits
        self._closed = closed

    def lacks(self, kind: ControlKind) -> Wait | None:  # noqa: ARG002 - what fails is proven when it fails
        """Try every way."""
        return None

    def cut_off(self, detail: str) -> Wait:
        """Say so: this machine cannot fetch all of the answer."""
        return needs_tcp(detail)

    async def mx_lookup(self) -> Wait | None:
        """Take one MXLookup unit."""
        return await self._limits.mx_lookup()

    def provider_at(self, host: str, ip: str, domain: str) -> str:
        """Return the provider that a host at this address counts as."""
        return provider_at(host, ip, domain, self._closed)

    async def begin_probe(self, domain: str, provider: str) -> ProbeLease | Wait:
        """Take the domain's slot, a place at the provider and one SMTPCheck unit."""
        lease = await self._limits.begin_probe(domain, provider)
        return lease if isinstance(lease, Wait) else _SharedLease(lease)


class _SharedLease:
    """A shared lease that records nothing: a person's check is no evidence for workers."""

    def __init__(self, lease: DomainLease) -> None:
        self._lease = lease

    async def enter(self, provider: str) -> Wait | None:
        """Continue at another provider."""
        return await self._lease.enter(provider)

    async def next_session(self) -> Wait | None:
        """Take the next session's unit and wait for the domain's slot."""
        return await self._lease.next_session()

    def session_ended(self) -> None:
        """Start the domain's pause."""
        self._lease.session_ended()

    def greeted(self, begun_at: float, ip: str) -> None:
        """Nobody is told."""

    async def release(
        self,
        *,
        met: Mapping[str, Met],  # noqa: ARG002 - see the class
        greeted_at: Mapping[str, str],  # noqa: ARG002
        refused: Sequence[Held],  # noqa: ARG002
    ) -> None:
        """Give the domain and the place back."""
        await self._lease.release(talked=False)
