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
    PORT_25,
    UNPROVEN,
    WINDOW_S,
    Way,
    askers,
    before_astray,
    heard_elsewhere,
)
from ct_stream.gate.questions import ControlKind
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.process.loops import Loop
from ct_stream.store.guardrails import MAIL_FROM_RAIL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ct_stream.gate.transcript import Exchange
    from ct_stream.metrics import Health
    from ct_stream.probes.mx import ControlResult
    from ct_stream.probes.probing import Probing
    from ct_stream.store.control_ledger import ControlLedger
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
