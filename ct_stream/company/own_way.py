"""Does our own way to the world work, and may anything be asked now?

A control is asked when somebody waits for one; over all workers there is one of each kind at a time. What a proof means
for an answer is decided in gate/evidence.py.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from ct_stream.gate.evidence import Moments, met_trouble, nothing_failed, silent_providers, weigh
from ct_stream.gate.questions import ControlKind
from ct_stream.gate.waits import Wait, control_wait
from ct_stream.process.loops import Loop
from ct_stream.store.guardrails import SMTP_RAIL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from ct_stream.gate.evidence import Kept
    from ct_stream.gate.questions import ControlAnswer
    from ct_stream.gate.records import Resumed
    from ct_stream.gate.transcript import Exchange
    from ct_stream.metrics import Health
    from ct_stream.probes.probing import Probing
    from ct_stream.store.control_ledger import ControlLedger
    from ct_stream.store.database import Database
    from ct_stream.store.guardrails import Guardrails

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_ASK_EVERY_S = 0.5
_NAMES = {ControlKind.DNS: "our resolvers", ControlKind.SMTP: "our way out to port 25"}


class OwnWay:
    """Our resolvers and our way out to port 25, as all workers see them."""

    def __init__(
        self, database: Database, controls: ControlLedger, guardrails: Guardrails, probing: Probing, health: Health
    ) -> None:
        self._database = database
        self._controls = controls
        self._guardrails = guardrails
        self._probing = probing
        self._health = health
        #: Why nothing may be asked. While a control fails, companies wait before they use up a unit of any limit.
        self.trouble: Wait | None = None

    def look_loop(self) -> Loop:
        """Return the loop that looks at the controls' state."""
        return Loop(name="own_way", step=self.look, every_s=_LOOK_EVERY_S)

    def ask_loops(self) -> tuple[Loop, ...]:
        """Return the loops that ask controls, one for each kind. An error of this machine only costs one round."""
        return tuple(
            Loop(
                name=f"control:{kind}", step=partial(self.ask, kind), every_s=_ASK_EVERY_S, rests_first=True,
                may_fail=True,
            )
            for kind in ControlKind
        )  # fmt: skip

    async def look(self) -> None:
        """Read, from what all workers have recorded, whether our own way works."""
        wait = None
        for kind in ControlKind:
            way = await self._controls.state(kind)
            sentence = f"{_NAMES[kind]}: {way.failed_detail}; companies wait" if way.is_failing else None
            self._health.set(f"control_{kind}", sentence)
            if sentence is not None:
                wait = control_wait(kind, sentence)
        self.trouble = wait

    async def ask(self, kind: ControlKind) -> None:
        """Ask a control, if somebody waits for one and nobody is asking it now.

        If its server refuses our address, the tool is halted until a person resumes it (address scope). An error of
        this machine (no descriptor, no port) is raised: it proves nothing.
        """
        if not self._database.is_up:
            return
        begun_at = await self._controls.begin(kind)
        if begun_at is None:
            return
        result = await self._probing.ask_control(kind)
        if result.refused:
            await self._guardrails.set_state(
                SMTP_RAIL, "halted", f"a control domain's server refuses us: {result.detail}", None
            )
        if result.ok:
            await self._controls.succeeded(kind, begun_at, result.detail)
        else:
            await self._controls.failed(kind, result.detail)
            log.warning(
                "The control of %s failed, so companies wait: %s",
                _NAMES[kind],
                result.detail,
                extra={"action": "control_failed", "kind": kind},
            )


class Proofs:
    """Says what the proofs of our own way mean for the answers of one company."""

    def __init__(self, controls: ControlLedger, guardrails: Guardrails, age_s: Callable[[datetime], float]) -> None:
        """`age_s`: of a moment of the database, at most as long as this process has been running."""
        self._controls = controls
        self._guardrails = guardrails
        self._age_s = age_s
        self.moments = Moments()  #: of the running pass's failed answers

    async def weigh(self, resumed: Resumed) -> Kept:
        """Return what a company brings back from its wait. Proofs are read only if something failed."""
        if nothing_failed(resumed):
            return weigh(resumed, {}, self._guardrails.settling(0.0))
        ways = {kind: await self._controls.state(kind) for kind in ControlKind}
        if resumed.pending is not None:
            await self._guardrails.refresh(now=True)  # another worker may have halted the tool just now
        assert resumed.failed_at is not None
        return weigh(resumed, ways, self._guardrails.settling(self._age_s(resumed.failed_at)))

    async def confirm(self, kind: ControlKind, exchanges: Sequence[Exchange]) -> ControlAnswer | Wait:
        """Return a proof that began after the last failed one of these answers, or the wait for one.

        For a shared provider's silence a proof of port 25 is not enough: time must pass, or the provider is closed.
        """
        moments = self.moments
        answer = await self._controls.confirm(kind, moments.window(exchanges), in_chain=moments.is_in_chain(kind))
        if isinstance(answer, Wait) or kind is not ControlKind.SMTP:
            return answer
        if met_trouble(exchanges):
            await self._guardrails.refresh(now=True)  # another worker may have closed its network just now
        for provider in sorted(silent_providers(exchanges, self._guardrails.closed)):
            assert moments.failed_at is not None  # a proof began after it
            wait = await self._guardrails.unreached(provider, self._age_s(moments.failed_at))
            if wait is not None:
                return wait
        return answer
