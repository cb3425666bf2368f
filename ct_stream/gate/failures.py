"""Which failures exist, what does each mean, and who looks after it?

The codes, meanings and actions are the operations runbook's; `docs/failures.md` is generated from this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FailureCode(StrEnum):
    """The codes of the runbook. ALREADY_PROCESSED is counted and logged but never stored: it is not an outcome."""

    NOT_FOUND = "CT-I-NOT-FOUND"
    NO_DOMAIN = "CT-I-NO-DOMAIN"
    ALREADY_PROCESSED = "CT-I-ALREADY-PROCESSED"
    NO_MX = "CT-M-NO-MX"
    NO_PATTERN = "CT-M-NO-PATTERN"
    SMTP_FAIL = "CT-M-SMTP-FAIL"
    VERIFY_FAIL = "CT-M-VERIFY-FAIL"

    @property
    def imo_stage(self) -> str:
        """Return the stage's letter, I or M, as the code spells it."""
        return self.value[3]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureMeaning:
    """What the runbook says about one code."""

    meaning: str
    action: str
    escalate_to: str


FAILURE_MEANINGS: dict[FailureCode, FailureMeaning] = {
    FailureCode.NOT_FOUND: FailureMeaning(
        meaning="outreach_id not in spine",
        action="Check spine ingestion",
        escalate_to="Engineering (check logs)",
    ),
    FailureCode.NO_DOMAIN: FailureMeaning(
        meaning="No domain in spine record",
        action="Check data quality upstream",
        escalate_to="Data Quality team (CL, intake)",
    ),
    FailureCode.ALREADY_PROCESSED: FailureMeaning(
        meaning="Already PASS/FAIL",
        action="No action (idempotent)",
        escalate_to="nobody",
    ),
    FailureCode.NO_MX: FailureMeaning(
        meaning="No MX records for domain",
        action="Domain has no mail server",
        escalate_to="Data Quality team (domain validation)",
    ),
    FailureCode.NO_PATTERN: FailureMeaning(
        meaning="All SMTP patterns rejected",
        action="No discoverable email format",
        escalate_to="Review email pattern list",
    ),
    FailureCode.SMTP_FAIL: FailureMeaning(
        meaning="SMTP connection failure",
        action="Transient network issue",
        escalate_to="Infrastructure (network/DNS)",
    ),
    FailureCode.VERIFY_FAIL: FailureMeaning(
        meaning="Tier-2 verification failed",
        action="Email pattern invalid",
        escalate_to="Engineering (check logs)",
    ),
}
