"""The questions that the gate asks the world, and the answers that it can get.

Answers are facts: a code, a text, a kind of trouble. What they mean is decided by `replies` and `middle_stage`, so that
a kept transcript can be read again under other rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

from ct_stream.gate.replies import Stage

if TYPE_CHECKING:
    from uuid import UUID

    from ct_stream.gate.patterns import Address
    from ct_stream.gate.replies import Reply

RANDOM = "random"  #: the pattern name of the address that no honest server knows


class ControlKind(StrEnum):
    """What a control proves to work: our resolvers, or our way out to port 25; and what a machine may lack."""

    DNS = "dns"
    SMTP = "smtp"  #: over IPv4
    SMTP6 = "smtp6"  #: over IPv6, which not every machine has
    DNS_TCP = "dns_tcp"  #: our resolvers over TCP, which long answers need, and not every network lets out


# ---------------------------------------------------------------- questions


def way_to(ip: str) -> ControlKind:
    """Return which way leads to port 25 of this address."""
    return ControlKind.SMTP6 if ":" in ip else ControlKind.SMTP


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupSpine:
    """Which domain does the spine hold for this company?"""

    outreach_id: UUID

    @property
    def key(self) -> str:
        """Return the name under which the answer is kept."""
        return "spine"


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupMx:
    """Which hosts accept mail for this domain (RFC 5321 section 5.1)?"""

    domain: str

    @property
    def key(self) -> str:
        """Return the name under which the answer is kept."""
        return "mx"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeMailbox:
    """Does one of these hosts, tried in this order, accept RCPT TO for this address?"""

    pattern: str  #: the pattern's name, or RANDOM
    address: Address
    hosts: tuple[str, ...]  #: host names or IP literals as the MX records spell them

    @property
    def key(self) -> str:
        """Return the name under which the answer is kept."""
        return f"rcpt:{self.pattern}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskControl:
    """Did a control succeed after this pass's last failed answer? The only answer is yes; until then the pass waits."""

    kind: ControlKind

    @property
    def key(self) -> str:
        """Return the name under which the answer is kept."""
        return f"control:{self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyEmail:
    """What does the paid Tier-2 vendor say about this address? It is asked only once for each outreach_id."""

    pattern: str
    address: Address

    @property
    def key(self) -> str:
        """Return the name under which the answer is kept."""
        return "verify"


Question: TypeAlias = LookupSpine | LookupMx | ProbeMailbox | AskControl | VerifyEmail


# ---------------------------------------------------------------- answers


@dataclass(frozen=True, slots=True, kw_only=True)
class SpineAnswer:
    """The spine's row, or its lasting absence (grace over, spine control held)."""

    found: bool
    domain: str | None = None  #: as stored, never repaired


class MxStatus(StrEnum):
    """How the look-up of MX records ended."""

    FOUND = "found"
    NO_RECORDS = "no_records"  #: the name exists, but has no MX
    NXDOMAIN = "nxdomain"
    NULL_MX = "null_mx"  #: RFC 7505
    UNAVAILABLE = "unavailable"  #: no resolver gave an answer about this domain
    CUT_OFF = "cut_off"  #: a resolver has an answer that does not fit into UDP, and TCP/53 is closed to this machine


#: How a look-up ends that says nothing about the domain.
NO_ANSWER = frozenset({MxStatus.UNAVAILABLE, MxStatus.CUT_OFF})


@dataclass(frozen=True, slots=True, kw_only=True)
class MxAnswer:
    """What the resolvers said; `hosts` most preferred first, at most 5."""

    status: MxStatus
    hosts: tuple[str, ...] = ()
    detail: str = ""  #: one sentence with the evidence, such as "SERVFAIL from 2 resolvers"
    resolver: str = ""  #: ip:port of the resolver that answered


class Trouble(StrEnum):
    """Why an attempt brought no reply that can be read."""

    NO_ADDRESS = "no_address"  #: the MX host's name has no address
    NAME_LOOKUP = "name_lookup"  #: the MX host's address could not be looked up
    UNROUTABLE = "unroutable"  #: not one of its addresses is publicly routable
    REFUSED = "refused"
    UNREACHABLE = "unreachable"  #: our network knows no way there
    TIMEOUT = "timeout"
    CLOSED = "closed"  #: the server hung up
    GARBLED = "garbled"  #: not SMTP, or out of step
    TLS = "tls"
    DEADLINE = "deadline"  #: the pass had no waiting time left


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at one address of one host: a reply, or the trouble that came instead."""

    host: str
    stage: Stage
    ip: str = ""
    reply: Reply | None = None
    trouble: Trouble | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxAnswer:
    """All attempts at one question in order; the last one is the answer.

    `is_private_policy`: its replies about us proved to be this one company's own policy (domain scope). Only then may
    they count as inconclusive.
    """

    attempts: tuple[Attempt, ...]
    is_private_policy: bool = False

    @property
    def reached_rcpt(self) -> bool:
        """Return whether a server answered the RCPT TO."""
        last = self.attempts[-1]
        return last.stage is Stage.RCPT and last.reply is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlAnswer:
    """A control's success, begun after the pass's last failed answer."""

    detail: str


class VerifyStatus(StrEnum):
    """The vendor's answer, or the lack of a usable one."""

    VALID = "valid"
    CATCH_ALL = "catch_all"
    INVALID = "invalid"  #: includes the vendor's documented final "unknown"
    NO_ANSWER = "no_answer"  #: the attempt is spent nevertheless


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyAnswer:
    """What Tier-2 said."""

    status: VerifyStatus
    detail: str = ""


Answer: TypeAlias = SpineAnswer | MxAnswer | MailboxAnswer | ControlAnswer | VerifyAnswer
