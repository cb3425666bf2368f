"""Does what a company's servers left without an answer count against it?

Our own way is proven by then. What is left is that a shared provider is down, or blocks one of our addresses, and that
such an address was halted at the time: it is dated by the moment of the silence, and held against when the guardrails
were closed and opened (ADR-CT-IMO-037). The guardrails of each egress say whether a provider is closed to it. While it
is closed to one of them, its silence does not count at any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ct_stream.gate.evidence import (
    LONGEST_QUESTION_S,
    asked_addresses,
    asked_afresh,
    closed_provider,
    ever_met_trouble,
    shunned_elsewhere,
    silent_providers,
)
from ct_stream.gate.providers import is_whereabouts, whereabouts

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence

    from ct_stream.gate.evidence import Moments
    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.waits import Wait
    from ct_stream.store.guardrails import Guardrails

_ONE_QUESTION = timedelta(seconds=LONGEST_QUESTION_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """From which of our addresses a company was asked so far, and when it first had to wait."""

    here: str  #: the egress that asks now
    met_at: str = ""  #: the one that met what failed
    refused_at: str = ""  #: and the one that was refused before that
    since: datetime | None = None
    egresses: Mapping[str, str] = field(default_factory=dict)  #: of worker runs

    def egress_of(self, exchange: Exchange) -> str:
        """Return the egress that met this."""
        # What another worker met is marked as proven when this one takes the company over.
        if not exchange.proven:
            return self.here
        return self.egresses.get(exchange.by) or self.met_at or self.here


class Silence:
    """What the servers of one company left without an answer in one look."""

    def __init__(
        self,
        guardrails: Guardrails,
        age_s: Callable[[datetime], float],
        exchanges: Sequence[Exchange],
        moments: Moments,
        past: Past,
    ) -> None:
        """`age_s`: of a moment of the database, at most as long as this process has been running."""
        self._guardrails = guardrails
        self._age_s = age_s
        self._exchanges = exchanges
        self._moments = moments
        self._past = past
        self._by_egress: dict[str, list[Exchange]] = {}
        for exchange in exchanges:
            self._by_egress.setdefault(past.egress_of(exchange), []).append(exchange)
        self._met_at = {egress for egress, met in self._by_egress.items() if ever_met_trouble(met)}

    async def wait(self) -> Wait | None:
        """Return what the company waits for before this counts against it; None: it counts."""
        return self._halts() or self._closed_providers() or await self._silent_providers()

    def _halts(self) -> Wait | None:
        """Return the wait for silence that came while our own address was halted, or before a person resumed it."""
        for egress in sorted(self._met_at):
            settling = self._guardrails.settling(0.0, egress)
            if settling.halted_by is not None:
                return settling.halt("silence says nothing")
            met = self._by_egress[egress]
            moments = [datetime.fromisoformat(e.at) for e in met if e.at and ever_met_trouble([e])]
            begun_at = self._asked_at(min(moments, default=self._moments.failed_at))
            if begun_at is not None and settling.resumed_at is not None and settling.resumed_at > begun_at:
                what = f"its servers could not be reached before the last halt of our egress {egress} was over"
                return asked_afresh(what, self._waited_s)
        return None

    def _closed_providers(self) -> Wait | None:
        """Return the wait for a provider that is closed to one of our addresses, or was so when it was silent."""
        shut = self._shut()
        for egress, provider, opened_at in sorted(shut, key=lambda one: (one[2] is not None, one[:2])):
            if opened_at is None and egress in self._met_at:
                return closed_provider(provider, egress)
            if opened_at is None:
                return shunned_elsewhere(provider, egress, self._waited_s)
            begun_at = self._asked_at(self._silent_at(self._exchanges, provider))
            if begun_at is not None and opened_at > begun_at:
                what = f"no server of {provider} could be reached before it was opened again to our egress {egress}"
                return asked_afresh(what, self._waited_s)
        return None

    async def _silent_providers(self) -> Wait | None:
        """Return the wait until the silence of a shared provider counts as this company's own."""
        for egress, met in self._by_egress.items():
            closed = self._guardrails.closed_to(egress)
            for provider in sorted(silent_providers(self._exchanges, closed) & silent_providers(met, closed)):
                silent_at = self._silent_at(met, provider, closed)
                age_s = 0.0 if silent_at is None else self._age_s(silent_at)
                wait = await self._guardrails.unreached(provider, age_s, egress)
                if wait is not None:
                    return wait
        return None

    def _shut(self) -> list[tuple[str, str, datetime | None]]:
        """Return which of our addresses have a silent provider closed, or had it so, with when it was opened again.

        The network of an own server is closed by what others there said of us. That says nothing of its silence, unless
        it was silent to that address too.
        """
        asked = asked_addresses(self._exchanges)
        names = silent_providers(self._exchanges) | {where for ip in asked for where in whereabouts(ip)}
        silent = [name for name in names if name in silent_providers(self._exchanges, {name})]
        return [
            (egress, provider, shut[provider])
            for egress, shut in self._guardrails.shut.items()
            for provider in silent
            if provider in shut
            if egress in self._met_at or egress == self._past.refused_at or not is_whereabouts(provider)
        ]

    @property
    def _waited_s(self) -> float:
        return 0.0 if self._past.since is None else self._age_s(self._past.since)

    def _asked_at(self, silent_at: datetime | None) -> datetime | None:
        """Return when the look began in which a server was silent, or else when its question was put at the latest.

        What another worker met, and has proven, may be from a look before the one whose moments are on record.
        """
        asked_at = self._moments.asked_at
        if silent_at is None or (asked_at is not None and asked_at <= silent_at):
            return asked_at
        return silent_at - _ONE_QUESTION

    def _silent_at(self, exchanges: Iterable[Exchange], provider: str, closed: Container[str] = ()) -> datetime | None:
        """Return when this provider first left a question of this look without an answer."""
        around = closed or {provider}
        moments = [e.at for e in exchanges if e.at and provider in silent_providers([e], around)]
        return datetime.fromisoformat(min(moments)) if moments else self._moments.failed_at
