"""Names the addresses that our probes come from.

What servers think of us they think of an address, so guardrails are an egress's own (ADR-CT-IMO-034). Workers on one
address share a name; those of the egress `default` bear none in the names of guardrails, which SQL builds in the same
way (ct_rail, ct_egress_of).
"""

from __future__ import annotations

DEFAULT = "default"


def at(egress: str) -> str:
    """Return the end of a guardrail's name: "" or "@dc2"."""
    return "" if egress == DEFAULT else f"@{egress}"


def base_of(rail: str) -> str:
    """Return a guardrail's name without its egress."""
    return rail.rpartition("@")[0] if "@" in rail else rail


def egress_of(rail: str) -> str:
    """Return the egress that a guardrail belongs to."""
    return rail.rpartition("@")[2] if "@" in rail else DEFAULT


def is_of_an_egress(rail: str) -> bool:
    """Return whether each egress has such a guardrail of its own: what servers think of an address."""
    return rail.startswith(("provider:", "tool:TOOL-005"))
