"""What the proofs of each worker's own way mean for the answers of one company.

Here they are read, and waited for. What they mean is decided in gate/evidence.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ct_stream.company.silence import Past, Silence
from ct_stream.gate.evidence import (
    FORGOTTEN,
    PORT_25,
    UNPROVEN,
    Moments,
    Witness,
    askers,
    before_astray,
    dated,
    ever_met_trouble,
    not_yet,
    nothing_failed,
    open_needs,
    weigh,
)
from ct_stream.gate.questions import ControlAnswer, ControlKind
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.store.control_ledger import RunWays

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from datetime import datetime

    from ct_stream.company.own_way import OwnWay
    from ct_stream.gate.evidence import Kept, Way
    from ct_stream.gate.records import Resumed
    from ct_stream.gate.transcript import Exchange
    from ct_stream.store.control_ledger import ControlLedger
    from ct_stream.store.guardrails import Guardrails


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
        self._past = Past(here=own_way.egress)

    async def weigh(self, resumed: Resumed) -> Kept:
        """Return what a company brings back from its wait. Proofs are read only of runs that asked or met a failure."""
        worker = self._controls.worker
        asked = {exchange.by for exchange in resumed.exchanges if exchange.by}
        aside = [exchange for exchange in resumed.exchanges if exchange.aside]
        in_order = replace(resumed, exchanges=tuple(e for e in resumed.exchanges if not e.aside))
        its = dated(in_order, worker)
        has_failed = its is not in_order or not nothing_failed(its)
        if not asked and not has_failed:
            return weigh(its, {}, self._guardrails.settling(0.0), by=worker)
        met_by = {its.met_by} - {"", worker} if has_failed else set()
        known = await self._known(asked | met_by)
        kept = await self._weigh(its, known, has_failed=has_failed)
        runs = _ways(known)
        true = [replace(exchange, aside=False) for exchange in aside if before_astray([exchange], runs)]
        return replace(kept, answered=[*true, *kept.answered])

    async def _weigh(self, resumed: Resumed, known: Mapping[str, RunWays], *, has_failed: bool) -> Kept:
        worker, runs = self._controls.worker, _ways(known)
        met_by = resumed.met_by or worker
        if (wait := _until_sure(known, resumed.exchanges)) is not None:
            return not_yet(resumed, wait)
        ours, here = self._guardrails.settling(0.0), self._own_way.egress
        witness = Witness(
            run=met_by,
            is_self=met_by == worker,
            # Nobody asks about whose look has met nothing that failed.
            is_gone=met_by != worker and met_by in known and known[met_by].is_gone,
            is_elsewhere=resumed.met_at not in ("", here),
            here=here,
            is_halted_here=ours.halted_by is not None,
            closed_here=ours.closed,
            others=self._own_way.others,
        )
        self._past = Past(
            here=here,
            met_at=resumed.met_at,
            refused_at=resumed.refused_at,
            since=resumed.since,
            egresses={run: its.egress for run, its in known.items() if its.egress},
        )
        if not has_failed:
            return weigh(resumed, {}, ours, witness=witness, runs=runs, by=worker)
        if resumed.pending is not None:
            await self._guardrails.refresh(now=True)  # another worker may have halted the tool just now
        assert resumed.failed_at is not None
        settling = self._guardrails.settling(self._age_s(resumed.failed_at), resumed.met_at or here)
        ways = await self._controls.own() if witness.is_self else runs.get(met_by, {})
        ways = {kind: ways.get(kind, UNPROVEN) for kind in ControlKind}
        return weigh(resumed, ways, settling, witness=witness, runs=runs, by=worker)

    async def _known(self, runs: Collection[str]) -> dict[str, RunWays]:
        """Return what is known of these runs: of one that is forgotten, that nothing holds which it heard."""
        known = await self._controls.of_runs(runs) if runs else {}
        forgotten = set(runs) - set(known) - {self._controls.worker}
        return known | dict.fromkeys(forgotten, RunWays(ways=dict.fromkeys(ControlKind, FORGOTTEN), is_gone=True))

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
        silence = Silence(self._guardrails, self._age_s, exchanges, moments, self._past)
        return await silence.wait() or answer

    async def astray(self, exchanges: Sequence[Exchange]) -> Wait | None:
        """Return the wait of a company for which a worker heard one of these answers after its way was lost."""
        wait = self._own_way.astray(exchanges)
        others = askers(exchanges) - {self._controls.worker}
        if wait is not None or not others:
            return wait
        known = await self._known(others)
        if (wait := _until_sure(known, exchanges)) is not None:
            return wait
        if len(before_astray(exchanges, _ways(known))) == len(exchanges):
            return None
        detail = "another worker lost its way out when it asked, so what it heard is asked again"
        return Wait(reason=WaitReason.CONTROL, detail=detail, waits_on=WaitsOn.way())


def _ways(known: Mapping[str, RunWays]) -> dict[str, Mapping[ControlKind, Way]]:
    return {run: its.ways for run, its in known.items()}


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
