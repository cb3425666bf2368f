"""What is known of one company between its event and its outcome.

These are plain values that the stream, the probes and the store hand to each other; those three do not import one
another.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from ct_stream.gate.memory import Memory
    from ct_stream.gate.output_stage import Headers, Origin, Outcome
    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.waits import Wait, WaitsOn


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What the database knows of one company at one moment."""

    outcome: str | None  #: "PASS" or "FAIL"
    pass_state: str | None  #: "waiting" or "stuck"
    in_spine: bool
    domain: str | None
    needs_publishing: bool = False  #: its outcome is recorded, and its event is not published yet
    is_paid: bool = False  #: its one Tier-2 attempt is spent, or under way
    recalled: str | None = None  #: the domain that `memory` is about
    memory: Memory | None = None  #: what that domain had answered to other companies at that moment
    looked_up_at: float = -inf  #: that moment, by the monotonic clock of this process

    @property
    def is_done(self) -> bool:
        """Return whether its outcome is recorded, and published or never to be: only then may its event be acked."""
        return self.outcome is not None and not self.needs_publishing


CLAIM_S = 30.0  #: how long a worker has to publish an outcome that it recorded or claimed; then another one may
PRODUCE_S = CLAIM_S - 10.0  #: for one try to hand it to the broker, so that the claim lasts longer than the try


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """The recorded bytes of one outcome, to be published under a claim."""

    outreach_id: UUID
    topic: str
    key: bytes
    value: bytes
    headers: Headers

    @classmethod
    def of(cls, outcome: Outcome) -> Publication:
        """Return what to publish for an outcome that this worker has just recorded, with a claim to publish it."""
        return cls(
            outreach_id=outcome.outreach_id,
            topic=outcome.topic,
            key=outcome.key,
            value=outcome.value,
            headers=outcome.headers,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class NotOurs:
    """A recorded outcome whose headers are not the gate's: no worker recorded it, and none publishes it."""

    outreach_id: UUID


class FailedAt(StrEnum):
    """When the last failed answer of a parked company came, by the database's clock."""

    NOW = "now"
    ON_RECORD = "record"  #: at the time that an earlier wait recorded
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parked:
    """An undecided company as it is parked: its wait, and its answers so far."""

    origin: Origin
    event_at: datetime | None  #: the record's timestamp
    wait: Wait
    domain: str | None = None
    exchanges: tuple[Exchange, ...] = ()
    pending: Exchange | None = None  #: an answer about us whose scope is not settled
    spent_s: float = 0.0  #: of the pass deadline
    asked_at: datetime | None = None  #: its oldest answer is not older, by the database's clock; None: as on record
    failed: FailedAt = FailedAt.NONE  #: when its last failed answer came; only later controls prove anything about it
    looks: int = 0  #: how often it met silence, and a control then proved that our own way works
    met_by: str = ""  #: the worker run that met its last failed answer; "": the one that parks it
    met_at: str = ""  #: the egress of that run; "": of the one that parks it
    first_at: str = ""  #: the egress that met its silence first, as long as it was not looked at again
    refused_at: str = ""  #: the egress that was refused (or met silence) before, if another one asks in its place


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """An undecided company that this worker has leased."""

    origin: Origin
    event_at: datetime | None
    domain: str | None
    reason: str
    exchanges: tuple[Exchange, ...]
    pending: Exchange | None
    spent_s: float
    asked_at: datetime | None
    failed_at: datetime | None
    since: datetime
    exceptions: int
    looks: int
    waits_on: WaitsOn  #: what it waited for
    met_by: str = ""  #: the worker run that met its last failed answer
    met_at: str = ""  #: the egress of that run
    refused_at: str = ""  #: the egress that was refused (or met silence) before, if another one asks in its place
