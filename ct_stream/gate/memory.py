"""Which answers of one company may serve another one of the same domain, and for how long.

A domain's mail servers do not know which company asks. So a PASS serves for a week, the MX hosts for a day, and a FAIL
for ten minutes: long enough for the companies that wait for the same domain, too short to pass on one bad moment
(ADR-CT-IMO-014).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from ct_stream.gate.questions import MxAnswer, MxStatus, VerifyAnswer, VerifyStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from ct_stream.gate.transcript import Exchange

PASS_KEPT = timedelta(hours=168)
MX_KEPT = timedelta(hours=24)
FAIL_KEPT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is remembered of a domain now. Each exchange is marked as remembered, and keeps the time of its answer."""

    answers: tuple[Exchange, ...] = ()  #: of a whole decided pass, from MX on
    mx: tuple[Exchange, ...] = ()  #: the MX hosts alone
    answered_at: datetime | None = None  #: when what is on record was answered, however long ago; None: nothing is
    is_busy: bool = False  #: a company of the domain is being probed now
    has_begun: bool = False  #: a company of the domain has started, and now waits for something else


def memorable(exchanges: Sequence[Exchange]) -> tuple[Exchange, ...]:
    """Return the answers of a decided pass that may serve other companies: all but the spine's row.

    Return none if the pass never asked for the MX, or if all of it came from memory. A paid call without a usable
    answer is left out: it was that company's own attempt, and says nothing about the domain.
    """
    told = tuple(exchange for exchange in exchanges if exchange.key != "spine")
    if is_unpaid(told):
        told = told[:-1]
    if not told or told[0].key != "mx" or all(exchange.remembered for exchange in told):
        return ()
    return told


def is_unpaid(exchanges: Sequence[Exchange]) -> bool:
    """Return whether the pass ended with a paid call that brought no usable answer."""
    last = exchanges[-1].answer if exchanges else None
    return isinstance(last, VerifyAnswer) and last.status is VerifyStatus.NO_ANSWER


def recalled(exchanges: Sequence[Exchange]) -> tuple[Exchange, ...]:
    """Return the exchanges, marked as remembered, for another company."""
    return tuple(replace(exchange, remembered=True) for exchange in exchanges)


def mx_alone(exchanges: Sequence[Exchange]) -> tuple[Exchange, ...]:
    """Return the MX exchange if it found hosts. An absence is remembered only as part of its verdict."""
    first = exchanges[0]
    found = isinstance(first.answer, MxAnswer) and first.answer.status is MxStatus.FOUND
    return (first,) if found else ()
