"""Does this worker's own way to the world work, and may it ask anything now?

It may once a control of its resolvers and one of port 25 have succeeded, and for as long as the next ones succeed too
(ADR-CT-IMO-033). A control is asked when one is due, and when somebody waits for a proof of this worker. What a proof
means for an answer is decided in gate/evidence.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from ct_stream.gate.egress import DEFAULT
from ct_stream.gate.evidence import (
    LONGEST_QUESTION_S,
    PORT_25,
    UNPROVEN,
    WINDOW_S,
    Moments,
    Way,
    Witness,
    asked_addresses,
    asked_afresh,
    askers,
    before_astray,
    closed_provider,
    ever_met_trouble,
    heard_elsewhere,
    met_trouble,
    not_yet,
    nothing_failed,
    open_needs,
    shunned_elsewhere,
    silent_providers,
    weigh,
)
from ct_stream.gate.providers import is_whereabouts, whereabouts
from ct_stream.gate.questions import ControlAnswer, ControlKind
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.process.loops import Loop
from ct_stream.store.guardrails import MAIL_FROM_RAIL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence

    from ct_stream.gate.evidence import Kept
    from ct_stream.gate.records import Resumed
    from ct_stream.gate.transcript import Exchange
    from ct_stream.metrics import Health
    from ct_stream.probes.mx import ControlResult
    from ct_stream.probes.probing import Probing
    from ct_stream.store.control_ledger import ControlLedger, RunWays
    from ct_stream.store.database import Database
    from ct_stream.store.guardrails import Guardrails
    from ct_stream.store.parked import ParkedCompanies

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 0.5
_ASK_EXTRAS_EVERY_S = 2.0
_LATE_S = 60.0  #: for a control that is due: all its servers may be slow, and the one before may not have ended
_NAMES = {
    ControlKind.DNS: "its resolvers",
    ControlKind.SMTP: "its way out to port 25",
    ControlKind.SMTP6: "its way out to port 25 over IPv6",
    ControlKind.DNS_TCP: "its resolvers over TCP",
}
_LACKS = {
    ControlKind.DNS: "whose resolvers answer",
    ControlKind.SMTP: "that reaches port 25 over IPv4",
    ControlKind.SMTP6: "that reaches port 25 over IPv6",
    ControlKind.DNS_TCP: "whose resolvers answer over TCP",
}
#: What a machine may lack: companies that need it are passed on.
_EXTRAS = {
    ControlKind.SMTP6: (
        "this machine does not reach port 25 over IPv6, so it leaves companies whose servers have only IPv6 addresses "
        "to workers on other machines"
    ),
    ControlKind.DNS_TCP: (
        "the resolvers of this machine do not answer over TCP (port 53), so it leaves companies whose DNS answers are "
        "long to workers on other machines"
    ),
}
_ONLY_IPV6 = (
    "this machine reaches port 25 only over IPv6, so it leaves companies whose servers have only IPv4 addresses to "
    "workers on other machines"
)
_ONE_QUESTION = timedelta(seconds=LONGEST_QUESTION_S)
_FOR_EVER = datetime.max.replace(tzinfo=UTC)


class OwnWay:
    """The resolvers and the way out to port 25 of this worker."""

    def __init__(
        self,
        database: Database,
        controls: ControlLedger,
        guardrails: Guardrails,
        probing: Probing,
        health: Health,
        parked: ParkedCompanies,
        *,
        most: int = 1000,
        window_s: float = WINDOW_S,
        egress: str = DEFAULT,
    ) -> None:
        """`most`: of the companies that wait for this way, so many are counted."""
        self._database = database
        self._controls = controls
        self._guardrails = guardrails
        self._probing = probing
        self._health = health
        self._parked = parked
        self._most = most
        self._window = timedelta(seconds=window_s + _LATE_S)
        self._ways: dict[ControlKind, Way] = {}
        self._opened = asyncio.Event()
        self.egress = egress
        self._trouble: Wait | None = self._asks_nobody("its first controls have not succeeded yet")
        self._open_until = _FOR_EVER  #: as the last look saw it
        self._failing: dict[ControlKind, str] = {}  #: controls that failed, which the database does not know yet
        self.parked_for_it = 0  #: how many companies wait because of that
        self.address = ""  #: our address of IPv4, as a control's server last saw it
        self._cut_off: str | None = None  #: of an answer that was cut off since the last control over TCP
        self.take_over: list[str] = []  #: what is in the way of other workers alone
        self._at_work: dict[str, str | None] = {}  #: those, with their egress
        self.healthy: list[str] = []  #: other workers that can decide companies now
        self.others: list[str] = []  #: other egresses from which companies can be asked now
        self.trouble_since: float | None = time.monotonic()  #: since when this worker may ask nothing (monotonic)

    @property
    def trouble(self) -> Wait | None:
        """Return why this worker may ask nothing. Companies are parked before they use up a unit of any limit."""
        if self._trouble is None and self._database.now() > self._open_until:
            return self._asks_nobody("its last controls were too long ago")
        return self._trouble

    def look_loop(self) -> Loop:
        """Return the loop that looks at the controls' state."""
        return Loop(name="own_way", step=self.look, every_s=_LOOK_EVERY_S)

    def ask_loops(self) -> tuple[Loop, ...]:
        """Return the loops that ask controls, one for each kind. An error of this machine only costs one round."""
        return tuple(
            Loop(
                name=f"control:{kind}",
                step=partial(self.ask, kind),
                every_s=_ASK_EXTRAS_EVERY_S if kind in _EXTRAS else _ASK_EVERY_S,
                may_fail=True,
            )
            for kind in ControlKind
        )

    async def opened(self, within_s: float) -> None:
        """Return once this worker may ask, or after `within_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._opened.wait()

    async def look(self) -> None:
        """Read whether our own way works, and what is to be done for workers whose way does not."""
        self._ways = dict(await self._controls.own())
        for kind, detail in self._failing.items():
            self._lost(kind, detail)
        for kind, lacking in _EXTRAS.items():
            if self._in_the_way(kind, self._ways[kind]) is None:
                self._health.notes.pop(kind.value, None)
            else:
                self._health.notes[kind.value] = lacking
        wait = None
        for kind in (ControlKind.DNS, ControlKind.SMTP):
            why = self._in_the_way(kind, self._ways[kind])
            if kind is ControlKind.SMTP and self._has_ipv6_alone():
                self._health.notes[kind.value] = _ONLY_IPV6
                why = None
            elif kind is ControlKind.SMTP:
                self._health.notes.pop(kind.value, None)
            self._health.set(f"control_{kind}", None if why is None else f"this worker asks nobody: {why}")
            if why is not None:
                wait = self._asks_nobody(why)
        if self._failing:
            wait = self._trouble
        self._trouble = wait
        used = (self._ways[kind] for kind in (ControlKind.DNS, ControlKind.SMTP))
        ends = (self._end_of(way) for way in used if way.control_at > UNPROVEN.control_at)
        self._open_until = min(ends, default=_FOR_EVER)
        at_work = self._at_work = await self._parked.at_work()
        self.healthy = sorted(at_work)
        if wait is None:
            self._opened.set()
            self.trouble_since = None
            self.parked_for_it = 0
            has = [kind for kind in ControlKind if self.lacks(kind) is None]
            if self._guardrails.smtp_rail in self._guardrails.halted:
                has = [kind for kind in has if kind not in PORT_25]
            # What failed over a way that is gone since, such as IPv6, is asked again over the others.
            lost = [kind for kind in ControlKind if self._ways[kind].is_failing]
            mine = [WaitsOn(f"{WaitsOn.control(kind)}:{self._controls.worker}") for kind in lost]
            self.take_over = [WaitsOn.way(), *map(WaitsOn.way, has), *mine, *await self._parked.to_take_over()]
            self.others = sorted({egress for egress in at_work.values() if egress not in (None, self.egress)})
        else:
            if self.trouble_since is None:
                self.trouble_since = time.monotonic()
            self.take_over = []
            self.parked_for_it = await self._parked.count_for_own_way(self._most)

    def _has_ipv6_alone(self) -> bool:
        """Return whether this machine has never reached port 25 over IPv4, and does over IPv6."""
        if not self._ways:
            return False
        is_proven = self._in_the_way(ControlKind.SMTP6, self._ways[ControlKind.SMTP6]) is None
        return is_proven and self._ways[ControlKind.SMTP].control_at == UNPROVEN.control_at

    def lacks(self, kind: ControlKind) -> Wait | None:
        """Return the wait for a machine that has this way, if it is not proven here."""
        is_proven = kind in self._ways and self._in_the_way(kind, self._ways[kind]) is None
        if is_proven and not (kind is ControlKind.DNS_TCP and self._cut_off is not None):
            return None
        return Wait(
            reason=WaitReason.ANOTHER_MACHINE,
            detail=f"needs a machine {_LACKS[kind]}; that of {self._name} is none",
            waits_on=WaitsOn.way(kind),
        )

    def lost_tcp(self, detail: str) -> Wait:
        """Take our resolvers for silent over TCP until the next control of that, and return the wait for who is not."""
        self._cut_off = detail
        wait = self.lacks(ControlKind.DNS_TCP)
        assert wait is not None
        return wait

    def elsewhere(self, wait: Wait) -> Wait | None:
        """Return the wait of a company whose server refuses this egress, if another one may ask in its place."""
        if not self.others:
            return None
        return heard_elsewhere(wait, self.egress, self.others)

    def astray(self, exchanges: Sequence[Exchange]) -> Wait | None:
        """Return the wait of a company for which this worker heard something after its way was lost; None: it is true.

        Asked before a verdict is recorded: a control may have failed since the answers came, or have been due for long.
        """
        worker = self._controls.worker
        if len(before_astray(exchanges, {worker: self._ways})) == len(exchanges):
            return self.trouble if worker in askers(exchanges) else None
        return self.trouble or self._wait(
            f"{self._name} lost its way out for a moment, so what it heard meanwhile is asked again"
        )

    async def ask(self, kind: ControlKind) -> None:
        """Ask a control, if one is due and nobody is asking it now.

        If its server refuses our address, the tool is halted until a person resumes it (address scope). An error of
        this machine (no descriptor, no port) is raised: it proves nothing.
        """
        if not self._database.is_up:
            return
        if kind is ControlKind.DNS_TCP and self._cut_off is not None:
            await self._controls.failed(kind, self._cut_off)  # so the next control of it is due soon
            self._cut_off = None
            await self.look()
        begun_at = await self._controls.begin(kind)
        if begun_at is None:
            return
        result = await self._probing.ask_control(kind)
        if kind is ControlKind.SMTP and self._halts(result):  # of IPv4: what is said of another address says nothing
            rail, whom = (MAIL_FROM_RAIL, "our sender") if result.is_sender else (self._guardrails.smtp_rail, "us")
            await self._guardrails.set_state(
                rail, "halted", f"a control domain's server refuses {whom}: {result.detail}", None
            )
        if result.ok:
            if kind is ControlKind.SMTP:
                self.address = result.our_address or self.address
            await self._controls.succeeded(kind, begun_at, result.detail)
        else:
            is_extra = kind in _EXTRAS or (kind is ControlKind.SMTP and self._has_ipv6_alone())
            if not is_extra:
                self._failing[kind] = result.detail
                self._lost(kind, result.detail)
            had_it = self.lacks(kind) is None
            await self._controls.failed(kind, result.detail)
            self._failing.pop(kind, None)
            if had_it or not is_extra:
                log.warning(
                    "This worker %s: a control of %s failed: %s",
                    "leaves who needs it to others" if is_extra else "asks nobody",
                    _NAMES[kind],
                    result.detail,
                    extra={"action": "control_failed", "kind": kind},
                )
        await self.look()

    def _halts(self, result: ControlResult) -> bool:
        """Return whether a control's refusal halts this egress, and not only this worker.

        Before TLS nobody knows who refuses us. Where another worker of this address is welcome, it may be a proxy.
        """
        return result.refused and (result.is_authentic or self.egress not in self._at_work.values())

    async def last_word(self, within_s: float) -> None:
        """Ask the controls once more before this worker ends, so that what it heard since the last ones counts.

        Nobody can ask them later: a proxy that came in between would stay unnoticed.
        """
        if self.trouble is None and self._database.is_up:
            proven = [kind for kind in ControlKind if self.lacks(kind) is None]
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s), asyncio.TaskGroup() as group:
                    for kind in proven:
                        group.create_task(self._last_word(kind))

    async def _last_word(self, kind: ControlKind) -> None:
        begun_at = self._database.now()
        try:
            result = await self._probing.ask_control(kind)
            if result.ok:
                await self._controls.succeeded(kind, begun_at, result.detail)
            else:
                await self._controls.failed(kind, result.detail)
        except Exception:  # it proves nothing, and this worker has more to give back
            log.exception("The last control of %s could not be asked", _NAMES[kind])

    def _lost(self, kind: ControlKind, detail: str) -> None:
        """Stop asking and recording at once, before the database knows."""
        if kind in self._ways:
            way = self._ways[kind]
            self._ways[kind] = replace(way, trouble_from=way.control_at, trouble_until=_FOR_EVER)
        self._trouble = self._asks_nobody(f"the last control of {_NAMES[kind]} failed: {detail}")

    def _in_the_way(self, kind: ControlKind, way: Way) -> str | None:
        if way.is_failing:
            return f"the last control of {_NAMES[kind]} failed: {way.failed_detail}"
        if way.control_at <= way.failed_at:  # at first both are infinitely long ago
            since = "yet" if way.control_at == UNPROVEN.control_at else f"since {way.failed_at:%H:%M:%S} UTC"
            return f"no control of {_NAMES[kind]} has succeeded {since}"
        if self._end_of(way) < self._database.now():
            return f"the last control of {_NAMES[kind]} was at {way.control_at:%H:%M:%S} UTC, which is too long ago"
        return None

    def _end_of(self, way: Way) -> datetime:
        """Return until when a way counts as proven. A good talk extends that; only a control begins it."""
        return max(way.control_at, way.ok_begun_at) + self._window

    @property
    def _name(self) -> str:
        return f"worker {self._controls.worker} (egress {self.egress})"

    def _asks_nobody(self, why: str) -> Wait:
        return self._wait(f"{self._name} asks nobody: {why}")

    def _wait(self, detail: str) -> Wait:
        return Wait(reason=WaitReason.CONTROL, detail=detail, waits_on=WaitsOn.way())


class Proofs:
    """Says what the proofs of our own way mean for the answers of one company."""

    def __init__(
        self,
        controls: ControlLedger,
        guardrails: Guardrails,
        age_s: Callable[[datetime], float],
        own_way: OwnWay,
    ) -> None:
        """`age_s`: of a moment of the database, at most as long as this process has been running."""
        self._controls = controls
        self._own_way = own_way
        self._guardrails = guardrails
        self._age_s = age_s
        self.moments = Moments()  #: of the running pass's failed answers
        # Of what a company brings back: the egress that met it, which one was refused before that, and those of runs.
        self._met_at = self._refused_at = ""
        self._since = _FOR_EVER  # when it was first parked
        self._egresses: dict[str, str] = {}

    async def weigh(self, resumed: Resumed) -> Kept:
        """Return what a company brings back from its wait. Proofs are read only of runs that asked or met a failure."""
        asked = {exchange.by for exchange in resumed.exchanges if exchange.by}
        has_failed, worker = not nothing_failed(resumed), self._controls.worker
        if not asked and not has_failed:
            return weigh(resumed, {}, self._guardrails.settling(0.0), by=worker)
        undated = [e for e in resumed.exchanges if met_trouble([e]) and e.by not in ("", worker)]
        if not has_failed and resumed.failed_at is None and undated:
            # Its worker was told to stop before it asked for a proof: what it met is still its own.
            failed_at = datetime.fromisoformat(undated[-1].at) + timedelta(milliseconds=1)
            resumed, has_failed = replace(resumed, failed_at=failed_at, met_by=undated[-1].by), True
        met_by = resumed.met_by or worker
        others = asked if met_by == worker or not has_failed else asked | {met_by}
        known = await self._controls.of_runs(others) if others else {}
        if (wait := _until_sure(known, resumed.exchanges)) is not None:
            return not_yet(resumed, wait)
        runs = {run: its.ways for run, its in known.items()}
        ours = self._guardrails.settling(0.0)
        witness = Witness(
            run=met_by,
            is_self=met_by == worker,
            is_gone=met_by != worker and (met_by not in known or known[met_by].is_gone),
            is_elsewhere=resumed.met_at not in ("", self._own_way.egress),
            here=self._own_way.egress,
            is_halted_here=ours.halted_by is not None,
            closed_here=ours.closed,
            others=self._own_way.others,
        )
        self._met_at, self._refused_at = resumed.met_at or self._own_way.egress, resumed.refused_at
        self._since = resumed.since
        self._egresses = {run: its.egress for run, its in known.items() if its.egress}
        if not has_failed:
            return weigh(resumed, {}, ours, witness=witness, runs=runs, by=worker)
        if resumed.pending is not None:
            await self._guardrails.refresh(now=True)  # another worker may have halted the tool just now
        assert resumed.failed_at is not None
        settling = self._guardrails.settling(self._age_s(resumed.failed_at), self._met_at)
        ways = await self._controls.own() if witness.is_self else runs.get(met_by, {})
        ways = {kind: ways.get(kind, UNPROVEN) for kind in ControlKind}
        return weigh(resumed, ways, settling, witness=witness, runs=runs, by=worker)

    async def confirm(self, kind: ControlKind, exchanges: Sequence[Exchange]) -> ControlAnswer | Wait:
        """Return a proof that began after the last failed one of these answers, or the wait for one.

        For a shared provider's silence a proof of port 25 is not enough: time must pass, or the provider is closed.
        """
        moments = self.moments
        answer: ControlAnswer | Wait
        if any(exchange.proven for exchange in exchanges) and kind not in open_needs(exchanges):
            answer = ControlAnswer(detail="the worker that met it has proven its own way before and after")
        else:
            answer = await self._controls.confirm(kind, moments.window(exchanges), in_chain=moments.is_in_chain(kind))
        more = [other for other in open_needs(exchanges) if other in PORT_25 and other is not kind]
        if isinstance(answer, Wait) or kind not in PORT_25 or more:
            return answer
        if ever_met_trouble(exchanges):
            await self._guardrails.refresh(now=True)  # another worker may have closed its network just now
        return await self._unreached(exchanges) or answer

    async def _unreached(self, exchanges: Sequence[Exchange]) -> Wait | None:
        """Return the wait for what shared providers left without an answer; None: it counts against the company.

        The guardrails of each egress say whether a provider is closed to it. While it is closed to one of them, its
        silence does not count at any of them.
        """
        by_egress: dict[str, list[Exchange]] = {}
        for exchange in exchanges:
            by_egress.setdefault(self._egress_of(exchange), []).append(exchange)
        met_at = {egress for egress, met in by_egress.items() if ever_met_trouble(met)}
        for egress in sorted(met_at):
            wait = self._halted(egress, by_egress[egress])
            if wait is not None:
                return wait
        shut = self._shut(exchanges, met_at)
        for egress, provider, opened_at in sorted(shut, key=lambda one: (one[2] is not None, one[:2])):
            if opened_at is None and egress in met_at:
                return closed_provider(provider, egress)
            if opened_at is None:
                return shunned_elsewhere(provider, egress, self._age_s(self._since))
            begun_at = self._asked_at(self._silent_at(exchanges, provider))
            if begun_at is not None and opened_at > begun_at:
                what = f"no server of {provider} could be reached when it was closed to our egress {egress}"
                return asked_afresh(what, self._age_s(self._since))
        for egress, met in by_egress.items():
            closed = self._guardrails.closed_to(egress)
            for provider in sorted(silent_providers(exchanges, closed) & silent_providers(met, closed)):
                silent_at = self._silent_at(met, provider, closed)
                age_s = 0.0 if silent_at is None else self._age_s(silent_at)
                wait = await self._guardrails.unreached(provider, age_s, egress)
                if wait is not None:
                    return wait
        return None

    def _shut(self, exchanges: Sequence[Exchange], met_at: Collection[str]) -> list[tuple[str, str, datetime | None]]:
        """Return which of our addresses have a silent provider closed, or had it so, with when it was opened again.

        The network of an own server is closed by what others there said of us. That says nothing of its silence, unless
        it was silent to that address too.
        """
        names = silent_providers(exchanges) | {where for ip in asked_addresses(exchanges) for where in whereabouts(ip)}
        silent = [name for name in names if name in silent_providers(exchanges, {name})]
        return [
            (egress, provider, shut[provider])
            for egress, shut in self._guardrails.shut.items()
            for provider in silent
            if provider in shut
            if egress in met_at or egress == self._refused_at or not is_whereabouts(provider)
        ]

    def _halted(self, egress: str, met: Sequence[Exchange]) -> Wait | None:
        """Return the wait for silence that came while our own address was halted, or before a person resumed it."""
        settling = self._guardrails.settling(0.0, egress)
        if settling.halted_by is not None:
            return Wait(
                reason=WaitReason.HALTED,
                detail=f"TOOL-005 is halted ({settling.halted_by}), so silence says nothing: {settling.halted}",
                waits_on=settling.halted_by,
            )
        moments = [datetime.fromisoformat(e.at) for e in met if e.at and ever_met_trouble([e])]
        begun_at = self._asked_at(min(moments, default=self.moments.failed_at))
        if begun_at is not None and settling.resumed_at is not None and settling.resumed_at > begun_at:
            what = f"its servers could not be reached when our egress {egress} was halted"
            return asked_afresh(what, self._age_s(self._since))
        return None

    def _asked_at(self, silent_at: datetime | None) -> datetime | None:
        """Return when the look began in which a server was silent, or else when its question was put at the latest."""
        if self.moments.asked_at is not None or silent_at is None:
            return self.moments.asked_at
        return silent_at - _ONE_QUESTION

    def _silent_at(self, exchanges: Iterable[Exchange], provider: str, closed: Container[str] = ()) -> datetime | None:
        """Return when this provider first left a question of this look without an answer."""
        around = closed or {provider}
        moments = [e.at for e in exchanges if e.at and provider in silent_providers([e], around)]
        return datetime.fromisoformat(min(moments)) if moments else self.moments.failed_at

    def _egress_of(self, exchange: Exchange) -> str:
        # What another worker met is marked as proven when this one takes the company over.
        if not exchange.proven:
            return self._own_way.egress
        return self._egresses.get(exchange.by) or self._met_at or self._own_way.egress

    async def astray(self, exchanges: Sequence[Exchange]) -> Wait | None:
        """Return the wait of a company for which a worker heard one of these answers after its way was lost."""
        wait = self._own_way.astray(exchanges)
        others = askers(exchanges) - {self._controls.worker}
        if wait is not None or not others:
            return wait
        known = await self._controls.of_runs(others)
        if (wait := _until_sure(known, exchanges)) is not None:
            return wait
        runs = {run: its.ways for run, its in known.items()}
        if len(before_astray(exchanges, runs)) == len(exchanges):
            return None
        detail = "another worker lost its way out when it asked, so what it heard is asked again"
        return Wait(reason=WaitReason.CONTROL, detail=detail, waits_on=WaitsOn.way())


def _until_sure(known: Mapping[str, RunWays], exchanges: Sequence[Exchange]) -> Wait | None:
    """Return the wait until it is known whether a run has ended without a control after what it heard."""
    for run, its in known.items():
        if not its.unsure_s:
            continue
        ended = {kind: replace(way, is_gone=True) for kind, way in its.ways.items()}
        if len(before_astray(exchanges, {run: ended})) < len(exchanges):
            detail = f"it is not known yet whether worker {run} still runs, which asked for it"
            return Wait(reason=WaitReason.CONTROL, detail=detail, after_s=its.unsure_s)
    return None
