"""Why does an undecided company wait, and what ends its wait?

A wait is never an outcome: something of ours (a limit, a lease, a control, the spine's grace) stands in the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class WaitReason(StrEnum):
    """The reasons, as `ct_held`, /metrics and the logs spell them."""

    SPINE_GRACE = "spine_grace"  #: not in the spine yet; looked up again until the event is old enough
    SPINE_CONTROL = "spine_control"  #: the spine itself cannot be trusted now
    RATE_LIMIT = "rate_limit"  #: a per-second limit of the toolbox
    DAILY_CAP = "daily_cap"  #: a limit of the UTC day or month
    DOMAIN_BUSY = "domain_busy"  #: another company of the same domain is being probed, or its 2 s are not over
    PROVIDER_BUSY = "provider_busy"  #: as many sessions as allowed are open to that provider
    PROVIDER_CLOSED = "provider_closed"  #: the provider refuses us; one company is tried now and then
    PROVIDER_SILENT = "provider_silent"  #: a shared provider cannot be reached; whether all of it is not settled yet
    HALTED = "halted"  #: a person must resume the tool
    CONTROL = "control"  #: a control must succeed after the last failed answer
    RESOLVER = "resolver"  #: no resolver of ours answers
    REFUSED = "refused"  #: a reply about us, its scope not settled yet
    OUR_RATE = "our_rate"  #: a server says that we ask too fast
    TIER2 = "tier2"  #: its one paid call is under way elsewhere, or others try the vendor first
    OUR_MACHINE = (
        "our_machine"  #: this machine has no descriptors, ports or memory left, or was stopped; it is tried again
    )
    OUR_BUG = "our_bug"  #: an exception of ours; it is tried again
    DRAIN = "drain"  #: given up by a worker that was told to stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What stands in the way, for a person, and when to look again."""

    reason: WaitReason
    detail: str  #: one sentence
    after_s: float | None = None  #: look again in so many seconds; None: something named by `waits_on` ends it
    #: Such as "provider:bigmail.example", "domain:acme.example", "control:smtp", "tool:TOOL-005", "cap:TOOL-005".
    waits_on: str = ""
