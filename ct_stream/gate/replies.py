"""What does one SMTP reply say: accept, reject, inconclusive, or something about us?

Only the plain cases: whatever is not listed here is inconclusive, because a wrong reject loses a company for ever.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """How far the dialogue had come when the answer arrived (RFC 5321 section 4.1)."""

    CONNECT = "connect"
    BANNER = "banner"
    HELO = "helo"
    STARTTLS = "starttls"
    MAIL = "mail"
    RCPT = "rcpt"


class Meaning(StrEnum):
    """The meanings that a decision can rest on."""

    ACCEPT = "accept"
    REJECT = "reject"
    INCONCLUSIVE = "inconclusive"
    ABOUT_US = "about_us"  #: our address, HELO or sender is refused: says nothing about the company
    OUR_RATE = "our_rate"  #: we ask too fast: says nothing about the company


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a server said: the code, the enhanced code (RFC 3463) or "", and the sanitised text."""

    code: int
    enhanced: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A meaning, the rule that gave it, and the cause that a reason can name."""

    meaning: Meaning
    rule: str
    cause: str = ""


_ACCEPT_CODES = frozenset({250, 251})  # RFC 5321 section 3.4: 251 forwards; 252 promises nothing (section 3.5.3)
_NO_SUCH_USER_CODES = frozenset({"5.1.1", "5.1.10"})  # RFC 3463 section 3.2; RFC 7505 section 4.2 registers 5.1.10
_USER_WORDING = re.compile(
    r"\b(?:user|mailbox|recipient|account|address|person|alias)\b.{0,60}?"
    r"\b(?:unknown|not found|does not exist|doesn't exist|do not exist|no longer|not exist|invalid|unallocated)\b"
    r"|\b(?:unknown|no such|invalid|non-?existent)\b.{0,40}?"
    r"\b(?:user|mailbox|recipient|account|address|person|alias)\b",
    re.IGNORECASE | re.DOTALL,
)
# Any of these words makes a 5.1.1 something else than a plain unknown user; it is then left inconclusive.
_NOT_PLAIN = re.compile(
    r"\b(?:quota|full|relaying|loops?|policy|rate|too many|block(?:ed|list)?|blacklist(?:ed)?|banned|spam\w*"
    r"|reputation|sender|listed|verify|verification|greylist\w*|try again|temporar\w+|preferences)\b",
    re.IGNORECASE,
)
# The refusals that every mail operator knows to be about the connecting address: a DNS blocklist named as the
# reason (Postfix "blocked using", postscreen "Service unavailable"), Exchange Online's banned-address range
# 5.7.606-649, and a bad reverse name (RFC 7372 registers 5.7.25).
_ABOUT_US = re.compile(
    r"blocked using|spamhaus|barracudacentral|black-?listed|blocklist|block list|poor reputation"
    r"|banned sending ip|reverse (?:dns|hostname)|\bPTR\b record",
    re.IGNORECASE,
)
_ABOUT_US_ENHANCED = re.compile(r"5\.7\.(?:25|27|6(?:0[6-9]|[1-4]\d))")
_OUR_RATE = re.compile(
    r"too many (?:concurrent )?(?:connections|sessions)|connection rate|rate limit|too many recipients this hour"
    r"|sending too fast",
    re.IGNORECASE,
)
_GREYLIST = re.compile(r"gr[ea]y-?list", re.IGNORECASE)
_FULL = re.compile(r"\b(?:full|quota|over ?quota)\b", re.IGNORECASE)


def read_reply(stage: Stage, reply: Reply) -> Reading:
    """Return what `reply` means at `stage`; inconclusive unless a rule says otherwise.

    A 4xx is never a reject, and no 5xx alone is one: the enhanced code and the wording must both say that the
    mailbox does not exist here.
    """
    refused = reply.code >= 400
    if refused and (_ABOUT_US_ENHANCED.fullmatch(reply.enhanced) or _ABOUT_US.search(reply.text)):
        return Reading(meaning=Meaning.ABOUT_US, rule="listed-address", cause="our address is refused")
    if refused and _OUR_RATE.search(reply.text):
        return Reading(meaning=Meaning.OUR_RATE, rule="rate-wording", cause="we ask too fast")
    if stage is Stage.RCPT:
        if reply.code in _ACCEPT_CODES:
            return Reading(meaning=Meaning.ACCEPT, rule="rcpt-2xx")
        if (
            500 <= reply.code < 600
            and reply.enhanced in _NO_SUCH_USER_CODES
            and _USER_WORDING.search(reply.text)
            and not _NOT_PLAIN.search(reply.text)
        ):
            return Reading(meaning=Meaning.REJECT, rule="no-such-user")
    return Reading(meaning=Meaning.INCONCLUSIVE, rule="not-plain", cause=_cause(reply))


def _cause(reply: Reply) -> str:
    """Return the word of the decision table for an inconclusive reply."""
    if _GREYLIST.search(reply.text):
        return "greylisted"
    if _FULL.search(reply.text) or reply.enhanced in {"5.2.2", "4.2.2"}:
        return "mailbox full"
    if 400 <= reply.code < 500:
        return "temporary refusal"
    return "policy"
