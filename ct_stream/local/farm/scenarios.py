"""What can a company's mail look like from outside? One line for each way, with the outcome that the gate must reach.

A domain `<scenario>-<anything>.example` plays that scenario; `<scenario>-at-<provider>-<anything>.example` plays it
behind the shared host `mx1.<provider>.example`. So any number of domains needs no table.
"""

from dataclasses import dataclass, replace
from enum import Enum

#: The patterns in the runbook's order: name, template, confidence.
PATTERNS = (
    ("first.last", "{first}.{last}", 0.95),
    ("firstlast", "{first}{last}", 0.90),
    ("f.last", "{f}.{last}", 0.90),
    ("first.l", "{first}.{l}", 0.90),
    ("first", "{first}", 0.85),
    ("last", "{last}", 0.85),
    ("info", "info", 0.70),
    ("contact", "contact", 0.70),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The outcome of a pass with Tier-2 off, the controls well and every other company silent."""

    outcome: str  #: PASS, HELD or a failure code
    method_type: str | None = None
    confidence: float | None = None
    is_catchall: bool = False
    also: tuple[str, ...] = ()  #: outcomes that are right too, where it depends on what is read first


class Dns(Enum):
    """How the resolvers answer for the domain."""

    NORMAL = "MX records"
    APEX_CNAME = "the domain is a CNAME of a name with MX records"
    NULL_MX = "one MX with preference 0 and the root as host (RFC 7505)"
    NXDOMAIN = "the name does not exist"
    TXT_ONLY = "the name exists, with a TXT record"
    ADDRESS_ONLY = "the name exists, with an address record"
    SERVFAIL = "SERVFAIL"
    REFUSED = "REFUSED"
    SILENT = "no answer"
    FIRST_RESOLVER_LIES = "NXDOMAIN from the first resolver, MX records from the others"


class Reach(Enum):
    """What becomes of a connection to an address."""

    OPEN = "accepted"
    REFUSED = "refused: nobody listens"
    DROPPED = "SYN dropped: the connection attempt times out"


class Tls(Enum):
    """What STARTTLS leads to."""

    NONE = "not offered"
    WORKS = "offered with a self-signed certificate"
    BROKEN = "offered, answered 220, then garbage"
    REFUSED = "offered, answered 454"
    SIGNED = "offered with a certificate for control.example, signed by the farm's authority"
    EXPIRED = "the same, but it was valid for one day of 2020"


class Wire(Enum):
    """How the bytes of a reply are sent."""

    CRLF = "lines end with CR LF"
    LF = "lines end with LF only"
    BYTEWISE = "one byte at a time"
    NOISE = "anything in their place, drawn at random: see noise.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mx:
    """One MX record and what its host does."""

    preference: int = 10
    label: str = "mx1"  #: the host is `<label>.<domain>`
    reach: Reach = Reach.OPEN
    exists: bool = True  #: False: the host's name is NXDOMAIN
    addresses: tuple[str, ...] = ()  #: instead of one address of the farm
    versions: tuple[int, ...] = (4,)  #: of IP that it has an address of; 6 counts where the farm has such a network
    cname: str | None = None  #: the host is a CNAME of `<cname>.<domain>`
    is_literal: bool = False  #: the record holds the address in place of a name
    accepts_anything: bool = False  #: as a backup MX does, whatever the scenario says


NO_SUCH_USER = "550 5.1.1 <{rcpt}>: Recipient address rejected: User unknown in virtual mailbox table"
BLOCKED = "550 5.7.1 Service unavailable, client host [{peer}] blocked using zen.spamhaus.org"
OK = "250 2.1.5 Ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """How one kind of company answers, in DNS and SMTP.

    In replies `{host}` is the MX host, `{rcpt}` the recipient, `{peer}` our address; a line feed separates lines.
    """

    name: str
    expected: Expected
    at_provider: Expected | None = None  #: where it differs behind a shared host
    dns: Dns = Dns.NORMAL
    dns_delay_s: float = 0.0
    truncated_udp: bool = False  #: answers over UDP say "ask again over TCP"
    mx: tuple[Mx, ...] = (Mx(),)
    # Decided by the address.
    banner: str | None = "220 {host} ESMTP ready"  #: None: never sent. Who is not greeted with 220 is disconnected
    endless_banner: bool = False
    max_connections: int | None = None  #: at one time on one address; more get a 421
    wire: Wire = Wire.CRLF
    command_delay_s: float = 0.0  #: before each reply but the banner
    ehlo: str = "250-{host}\n250-PIPELINING\n250-ENHANCEDSTATUSCODES\n250 8BITMIME"
    tls: Tls = Tls.NONE
    tls_required: bool = False
    mail: str = "250 2.1.0 Ok"
    quit: str | None = "221 2.0.0 Bye"  #: None: QUIT is never answered
    # Decided by the recipient's domain.
    known: tuple[str, ...] = ()  #: templates of the mailboxes that exist
    accepted: str = OK
    unknown: str = NO_SUCH_USER
    turns_after: int | None = None  #: from this many RCPTs of a session on, each gets `turns_to`
    turns_to: str = ""
    closes_after_refusal: bool = False

    @property
    def refuses_us(self) -> bool:
        """Return whether it says something about us: then a provider's companies wait, and fail for nothing."""
        return self.at_provider is not None


def passes(method_type: str) -> Expected:
    """Return the outcome of a company with that one mailbox."""
    return Expected(
        outcome="PASS",
        method_type=method_type,
        confidence=next(confidence for name, _, confidence in PATTERNS if name == method_type),
    )


INFO = passes("info")
CATCH_ALL = Expected(outcome="PASS", method_type="first.last", confidence=0.50, is_catchall=True)
NO_MX = Expected(outcome="CT-M-NO-MX")
NO_PATTERN = Expected(outcome="CT-M-NO-PATTERN")
SMTP_FAIL = Expected(outcome="CT-M-SMTP-FAIL")
HELD = Expected(outcome="HELD")

_plain = Scenario(name="info", known=("info",), expected=INFO)
_shut = Scenario(name="allreject", expected=NO_PATTERN)
#: Says whom it sees, as the servers of Google and Microsoft do.
_control = replace(
    _shut, name="control", tls=Tls.SIGNED, ehlo="250-{host} at your service, [{peer}]\n250-PIPELINING\n250 8BITMIME"
)


def _like(base: Scenario, name: str, **changes: object) -> Scenario:
    return replace(base, name=name, **changes)  # type: ignore[arg-type]  # replace() checks the names as it runs


def _info(name: str, **changes: object) -> Scenario:
    """Return a company where info@ exists and nobody else, with one peculiarity."""
    return _like(_plain, name, **changes)


def _all(name: str, reply: str, expected: Expected, **changes: object) -> Scenario:
    """Return a company that says the same to every RCPT."""
    return _like(_shut, name, unknown=reply, expected=expected, **changes)


def _dead(name: str, expected: Expected = SMTP_FAIL, **changes: object) -> Scenario:
    """Return a company that is not reached; info@ exists, so that a careless connection shows in the outcome."""
    return _like(_plain, name, expected=expected, **changes)


_TOO_MANY = "421 4.7.0 {host} Error: too many errors"

_TABLE = (
    # DNS
    _dead("nullmx", NO_MX, dns=Dns.NULL_MX),
    _dead("nxdomain", NO_MX, dns=Dns.NXDOMAIN),
    _dead("txtonly", NO_MX, dns=Dns.TXT_ONLY),
    _dead("addronly", NO_MX, dns=Dns.ADDRESS_ONLY),
    _dead("servfail", dns=Dns.SERVFAIL),
    _dead("dnsrefused", dns=Dns.REFUSED),
    _dead("dnstimeout", dns=Dns.SILENT),
    _info("nxfirst", dns=Dns.FIRST_RESOLVER_LIES),
    _info("dnsslow", dns_delay_s=3.0),
    _info("bigmx", truncated_udp=True, mx=tuple(Mx(preference=n, label=f"mx{n}") for n in range(1, 41))),
    _info("idn"),
    _info("cnamemx", mx=(Mx(cname="relay"),)),
    _info("apexcname", dns=Dns.APEX_CNAME),
    _info(
        "unsorted",
        mx=(
            Mx(preference=30, label="mx3", accepts_anything=True),
            Mx(preference=10, label="mx1"),
            Mx(preference=20, label="mx2", accepts_anything=True),
        ),
    ),
    _info("mxgone", mx=(Mx(label="gone1", exists=False), Mx(preference=20, label="mx2"))),
    _dead("mxallgone", mx=(Mx(label="gone1", exists=False), Mx(preference=20, label="gone2", exists=False))),
    _dead("mxip", mx=(Mx(is_literal=True),)),
    _dead("mxprivate", mx=(Mx(addresses=("10.0.0.1",)),)),
    _dead("mxloop", mx=(Mx(addresses=("127.0.0.1", "::1")),)),
    # Connect and greet
    _info("firstdown", mx=(Mx(reach=Reach.REFUSED), Mx(preference=20, label="mx2"))),
    _info("firstdrops", mx=(Mx(reach=Reach.DROPPED), Mx(preference=20, label="mx2"))),
    _dead("refuse", mx=(Mx(reach=Reach.REFUSED),)),
    _dead("blackhole", mx=(Mx(reach=Reach.DROPPED),)),
    _dead("nobanner", banner=None),
    _dead("banner554", banner=BLOCKED.replace("550", "554"), at_provider=HELD),
    _dead("banner421", banner="421 4.3.2 {host} Service not available, closing transmission channel"),
    _dead(
        "ratelimit",
        banner="421 4.7.0 {host} Too many connections from your IP, slow down",
        # A rate reply pauses; whether the pause outlasts the pass deadline is the throttle's choice.
        expected=replace(HELD, also=("CT-M-SMTP-FAIL",)),
        at_provider=HELD,
    ),
    _info("connlimit", max_connections=3),
    _info("multiline", banner="220-{host} ESMTP\n220-No bulk mail\n220 ready", unknown=f"550-5.1.1 No\n{NO_SUCH_USER}"),
    _info("eightbit", banner="220 {host} Grüße", unknown="550 5.1.1 <{rcpt}>: Empfänger unbekannt, user unknown"),
    _info("lfonly", wire=Wire.LF),
    _dead("httpgarbage", banner="HTTP/1.1 400 Bad Request\nContent-Length: 0\nConnection: close\n"),
    _dead("nulgarbage", banner="\0" * 512),
    _dead("longline", banner="220 " + "x" * 65536),
    _dead("endless", endless_banner=True),
    # Session
    _info("heloonly", ehlo="502 5.5.1 Command not implemented"),
    _info("starttls", tls=Tls.WORKS),
    _info("starttlsbroken", tls=Tls.BROKEN),
    _info("starttlsrequired", tls=Tls.WORKS, tls_required=True),
    _dead("mailrefused", mail="550 5.1.8 Sender address rejected: Domain not found", at_provider=HELD),
    _dead("tarpit", command_delay_s=20.0),
    _info("slowbytes", wire=Wire.BYTEWISE),
    _info("quitsilent", quit=None),
    # The smuggled 250 must not become the answer to the next pattern.
    _all("glued", f"{NO_SUCH_USER}\n{OK}", replace(SMTP_FAIL, also=("CT-M-NO-PATTERN",))),
    # RCPT
    _like(_plain, "firstdotlast", known=("{first}.{last}",), expected=passes("first.last")),
    _like(_plain, "firstlast", known=("{first}{last}",), expected=passes("firstlast")),
    _like(_plain, "fdotlast", known=("{f}.{last}",), expected=passes("f.last")),
    _like(_plain, "firstdotl", known=("{first}.{l}",), expected=passes("first.l")),
    _like(_plain, "first", known=("{first}",), expected=passes("first")),
    _like(_plain, "last", known=("{last}",), expected=passes("last")),
    _plain,
    _like(_plain, "contact", known=("contact",), expected=passes("contact")),
    _shut,
    _like(_control, "control", mx=(Mx(versions=(4, 6)),)),
    _all("catchall", OK, CATCH_ALL),
    _all("accessdenied", "550 5.4.1 Recipient address rejected: Access denied. [{host}]", NO_PATTERN),
    _all("disabled", "550 5.2.1 The email account that you tried to reach is disabled", NO_PATTERN),
    _all("grey", "450 4.2.0 <{rcpt}>: Recipient address rejected: Greylisted, try again in 300 seconds", SMTP_FAIL),
    _all(
        "mimecastgrey",
        "451 Internal resources are temporarily unavailable - https://community.mimecast.com/docs/DOC-1369#451",
        SMTP_FAIL,
    ),
    _all("tempfail", "451 4.3.0 <{rcpt}>: Temporary lookup failure", SMTP_FAIL),
    _all("full", "552 5.2.2 <{rcpt}>: Mailbox full", SMTP_FAIL),
    _all("relaydenied", "554 5.7.1 <{rcpt}>: Relay access denied", SMTP_FAIL),
    _all("cannotverify", "252 2.1.5 Cannot verify the user, but will accept the message", SMTP_FAIL),
    _all("blocklist", BLOCKED, SMTP_FAIL, at_provider=HELD),
    _info("greyunknown", unknown="450 4.2.0 <{rcpt}>: Recipient address rejected: Greylisted"),
    _info("closeafter550", closes_after_refusal=True),
    _info("421after3", turns_after=3, turns_to=_TOO_MANY),
    _info("452after3", turns_after=3, turns_to="452 4.5.3 Too many recipients"),
    # The limit strikes at the one mailbox that exists: its question must go over a new session.
    _info("421after6", turns_after=6, turns_to=_TOO_MANY),
    _info("attr1", turns_after=1, turns_to="452 4.5.3 Recipients belong to multiple regions ATTR1 [{host}]"),
    _info("503after6", turns_after=6, turns_to="503 5.5.1 Error: need MAIL command"),
    # It refused first.last, then takes anything: that guess would bounce.
    _like(_shut, "changesmind", turns_after=6, turns_to=OK, expected=replace(INFO, confidence=0.50, is_catchall=True)),
    _info("otherwords", unknown="550 sorry, no mailbox here by that name. (#5.1.1)"),
    _dead("blockafter3", turns_after=3, turns_to=BLOCKED, at_provider=HELD),
    _info("exim10", turns_after=10, turns_to="550 Rejected for too many bad recipients"),
)

SCENARIOS = {scenario.name: scenario for scenario in _TABLE}

#: Says anything, so that nobody can say what comes of it.
_ANYTHING = replace(SMTP_FAIL, also=("PASS", "CT-M-NO-PATTERN", "HELD"))
NOISE = _like(_shut, "noise", wire=Wire.NOISE, tls=Tls.WORKS, expected=_ANYTHING)
#: What somebody who answers in a control's place may show; to companies they are like any other server. As
#: `controlother-x.example` it shows a certificate that is valid, but for control.example.
IMPOSTORS = (
    _like(_control, "controlother"),
    _like(_control, "controlnotls", tls=Tls.NONE),
    _like(_control, "controlrefusestls", tls=Tls.REFUSED),
    _like(_control, "controlselfsigned", tls=Tls.WORKS),
    _like(_control, "controlexpired", tls=Tls.EXPIRED),
)
#: For a farm that has a network of IPv6.
ONLY_IPV6 = _info("onlyipv6", mx=(Mx(versions=(6,)),))
ALL_SCENARIOS = SCENARIOS | {scenario.name: scenario for scenario in (NOISE, *IMPOSTORS, ONLY_IPV6)}

#: What `mx1.<provider>.example` is by itself: it greets everybody, and each recipient's domain decides the rest.
PROVIDER = Scenario(name="provider", expected=NO_MX)
