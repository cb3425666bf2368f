"""How a pass can end: passed, failed, or held."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from ct_stream.gate.failures import FailureCode


class VerifiedBy(StrEnum):
    """What a PASS rests on."""

    SMTP = "smtp"
    CATCH_ALL = "catch_all"
    TIER2 = "tier2"
    OVERRIDE = "override"


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """Mail can be sent to this domain, by this pattern."""

    domain: str
    method_type: str
    email_method: str
    confidence: float  #: 0 to 1
    is_catchall: bool
    verified_by: VerifiedBy
    note: str = ""  #: for the transcript: why the confidence is lower than the pattern's


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Final: nothing retries it."""

    code: FailureCode
    reason: str
    domain: str | None = None


class HeldBy(StrEnum):
    """What keeps this company from a verdict: something on our side, never the company."""

    REFUSED = "refused"  #: a server refuses us; the scope is not settled yet
    RATE = "rate"  #: a server says that we ask too fast


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """No verdict: the last answer is about us, so its question counts as not asked."""

    by: HeldBy
    host: str
    reason: str
    ip: str = ""  #: of the server that said it
    is_sender: bool = False  #: it is about our MAIL FROM or its domain, whatever address we come from


Verdict: TypeAlias = Passed | Failed | Held
