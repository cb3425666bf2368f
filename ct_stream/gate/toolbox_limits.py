"""The numbers of the toolbox that Postgres enforces over all workers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeLimits:
    """TOOL-004, MXLookup, and TOOL-005, SMTPCheck."""

    mx_per_second: float
    mx_per_day: int
    smtp_per_day: int  #: sessions
    smtp_domain_pause_s: float  #: from the end of one session to the start of the next at the same domain
    smtp_per_provider: int  #: sessions at once


@dataclass(frozen=True, slots=True, kw_only=True)
class PaidLimits:
    """TOOL-019, EmailVerifier. One attempt per outreach_id is a rule, not a setting."""

    per_second: float
    per_month: int
    usd_per_month: float
    usd_per_call: float
