"""Why does an undecided company wait, and what ends its wait?

A wait is never an outcome: something on our side (a limit, a lease, a control, the spine's grace) is in the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ct_stream.gate.egress import DEFAULT, at

if TYPE_CHECKING:
    from uuid import UUID

    from ct_stream.gate.questions import ControlKind


class WaitReason(StrEnum):
    """The reasons, as `ct_held`, /metrics and the logs spell them."""

    SPINE_GRACE = "spine_grace"  #: not in the spine yet; looked up again until the event is old enough
    SPINE_CONTROL = "spine_control"  #: the spine itself cannot be trusted now
    RATE_LIMIT = "rate_limit"  #: a per-second limit of the toolbox
    DAILY_CAP = "daily_cap"  #: a limit of the UTC day or month
    DOMAIN_BUSY = "domain_busy"  #: another company of the same domain is being probed, or its 2 s are not over
    PROVIDER_BUSY = "provider_busy"  #: as many sessions as allowed are open to that provider
    PROVIDER_CLOSED = "provider_closed"  #: the provider refuses us; one company is tried now and then
    PROVIDER_SILENT = "provider_silent"  #: a shared provider cannot be reached; it is not known yet whether for all
    HALTED = "halted"  #: a person must resume the tool
    CONTROL = "control"  #: a control must succeed after the last failed answer
    RESOLVER = "resolver"  #: none of our resolvers answers
    REFUSED = "refused"  #: a reply about us, its scope not settled yet
    OUR_RATE = "our_rate"  #: a server says that we ask too fast
    TIER2 = "tier2"  #: its one paid call is under way elsewhere, or others try the vendor first
    OUR_MACHINE = (
        "our_machine"  #: this machine has no descriptors, ports or memory left, or was stopped; it is tried again
    )
    ANOTHER_MACHINE = "another_machine"  #: this one lacks what the company needs: IPv6, or TCP to its resolvers
    ROW_HELD = "row_held"  #: it is decided, and others hold its row, or a trigger of theirs fails or is too slow
    OUR_BUG = "our_bug"  #: an exception in our own code; it is tried again
    DRAIN = "drain"  #: given up by a worker that was told to stop


class WaitsOn(str):
    """The name of what ends a wait. Only these constructors make one.

    Postgres wakes companies by the same names; a test checks that every kind that SQL builds is in `KINDS`.
    `provider:`, `tool:` and the bare names are also the keys of guardrails: opening a guardrail ends the waits on it.
    """

    __slots__ = ()
    KINDS = frozenset(
        {"provider", "places", "domain", "control", "tool", "cap", "tier2", "spine", "way", "egress", "mail_from"}
    )

    @classmethod
    def provider(cls, provider: str, egress: str = DEFAULT) -> WaitsOn:
        """Until the provider opens again for this egress, or its next try is due."""
        return cls(f"provider:{provider}{at(egress)}")

    @classmethod
    def place(cls, provider: str) -> WaitsOn:
        """Until a session at the provider ends."""
        return cls(f"places:{provider}")

    @classmethod
    def domain(cls, domain: str) -> WaitsOn:
        """Until the company that asks this domain now is done."""
        return cls(f"domain:{domain}")

    @classmethod
    def control(cls, kind: ControlKind) -> WaitsOn:
        """Until a control of this kind succeeds, of the worker run that met the failed answer (store/parked.py)."""
        return cls(f"control:{kind}")

    @classmethod
    def way(cls, kind: ControlKind | None = None) -> WaitsOn:
        """Until a worker has it whose own way out is proven; with `kind`, whose machine has that."""
        return cls("way" if kind is None else f"way:{kind}")

    @classmethod
    def tool(cls, tool_id: str, egress: str = DEFAULT) -> WaitsOn:
        """Until a person resumes the tool for this egress."""
        return cls(f"tool:{tool_id}{at(egress)}")

    @classmethod
    def mail_from(cls) -> WaitsOn:
        """Until a person resumes our sender, which all egresses share."""
        return cls("mail_from")

    @classmethod
    def other_than(cls, egress: str) -> WaitsOn:
        """Until a worker of another egress takes it: this one was refused."""
        return cls(f"egress:{egress}")

    @classmethod
    def cap(cls, tool_id: str) -> WaitsOn:
        """Until units of the day are left."""
        return cls(f"cap:{tool_id}")

    @classmethod
    def paid_call(cls, outreach_id: UUID) -> WaitsOn:
        """Until the company's one paid call has its answer."""
        return cls(f"tier2:{outreach_id}")

    @classmethod
    def vendor(cls) -> WaitsOn:
        """Until the vendor has shown that it works."""
        return cls("tier2:turn")

    @classmethod
    def spine(cls) -> WaitsOn:
        """Until a person resumes the spine check."""
        return cls("spine")

    @property
    def is_passed_on(self) -> bool:
        """Return whether a worker of another egress ends it."""
        return self.startswith("egress:")

    @property
    def is_control(self) -> bool:
        """Return whether a control ends it."""
        return self.startswith("control:")


NOTHING = WaitsOn()  #: only time ends the wait


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What is in the way, for a person, and when to look again."""

    reason: WaitReason
    detail: str  #: one sentence
    after_s: float | None = None  #: look again in so many seconds; None: what `waits_on` names ends it
    waits_on: WaitsOn = NOTHING


def control_wait(kind: ControlKind, detail: str, *, after_s: float | None = None) -> Wait:
    """Return a wait that ends with a proof of `kind`, or after `after_s` if that is sooner."""
    return Wait(reason=WaitReason.CONTROL, detail=detail, after_s=after_s, waits_on=WaitsOn.control(kind))
