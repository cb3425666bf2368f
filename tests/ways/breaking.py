"""The ways to break one worker's way out, while its process runs, and to mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ct_stream.local.farm.scenarios import BLOCKED
from tests.ways.impostors import NOTHING_EXISTS_PORT, OWN_MX, OWN_MX_PORT, YES_PORT, YES_TLS_PORT

if TYPE_CHECKING:
    from tests.ways.fleet import Fleet
    from tests.ways.namespaces import Namespace


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a way out breaks. In rules, {smtp} and {dns} are the ports of mail servers and resolvers."""

    shows: str
    out: tuple[str, ...] = ()  #: rules of nftables on what the worker sends
    back: tuple[str, ...] = ()  #: on what comes back to it
    redirects: tuple[str, ...] = ()  #: where its connections really go
    listed_at: str | None = None  #: every mail server refuses its address at this stage
    no_ipv6: bool = False
    #: What says yes, or lies, before the worker's next control is believed for as long as a control counts: so the
    #: worker is started on the broken way, and must not begin.
    from_its_start: bool = False
    kinds: tuple[str, ...] = ("info",)  #: of the companies, all of them living
    #: It can still learn the truth about some companies: then it may be ready, with a note that has this word.
    noted: str = ""

    async def break_(self, fleet: Fleet, namespace: Namespace) -> None:
        """Break the way of one worker."""
        ports = {"smtp": fleet.smtp_port, "dns": fleet.dns_ports}
        namespace.rules(
            out=[rule.format(**ports) for rule in self.out],
            back=[rule.format(**ports) for rule in self.back],
            redirects=[rule.format(**ports) for rule in self.redirects],
        )
        if self.no_ipv6:
            namespace.take_ipv6()
        if self.listed_at is not None:
            reply = BLOCKED.replace("550", "554") if self.listed_at == "banner" else BLOCKED
            await fleet.stack.farm.refuse_client(namespace.address, reply, self.listed_at)

    async def mend(self, fleet: Fleet, namespace: Namespace) -> None:
        """Mend it, and do what a person has to do then."""
        await self.unbreak(fleet, namespace)
        if self.listed_at is not None:
            await fleet.stack.admin.execute(
                "SELECT outreach.resume_guardrail(key, 'delisted') FROM outreach.ct_guardrails WHERE state = 'halted'"
            )

    async def unbreak(self, fleet: Fleet, namespace: Namespace) -> None:
        """Mend it."""
        namespace.rules()
        if self.no_ipv6:
            namespace.give_ipv6()
        if self.listed_at is not None:
            await fleet.stack.farm.accept_client(namespace.address)


_NO_TCP = "tcp dport {dns} reject with tcp reset"

WAYS = {
    "port-25-dropped": Way(shows="packets to port 25 are dropped", out=("tcp dport {smtp} drop",)),
    "port-25-refused": Way(shows="connections to port 25 are reset", out=("tcp dport {smtp} reject with tcp reset",)),
    "proxy": Way(
        shows="a proxy on port 25 says yes to everybody",
        redirects=(f"tcp dport {{smtp}} redirect to :{YES_PORT}",),
        from_its_start=True,
    ),
    "proxy-with-tls": Way(
        shows="a proxy on port 25 offers STARTTLS with a certificate of its own, and says yes to everybody",
        redirects=(f"tcp dport {{smtp}} redirect to :{YES_TLS_PORT}",),
        from_its_start=True,
    ),
    "resolver-dead": Way(
        shows="no resolver answers",
        # Not on the way out: who sends a datagram that is dropped there is told so (EPERM).
        back=("meta l4proto {{ tcp, udp }} th sport {dns} drop",),
    ),
    "resolver-denies": Way(
        shows="every name is NXDOMAIN",
        redirects=(f"udp dport {{dns}} redirect to :{NOTHING_EXISTS_PORT}",),
        out=(_NO_TCP,),
    ),
    "resolver-invents": Way(
        shows="every name has the same MX, which says yes to everybody",
        redirects=(
            f"udp dport {{dns}} redirect to :{OWN_MX_PORT}",
            f"ip daddr {OWN_MX} tcp dport {{smtp}} redirect to :{YES_PORT}",
        ),
        out=(_NO_TCP,),
        from_its_start=True,
    ),
    "no-ipv6": Way(
        shows="it has no IPv6, and half of the companies have nothing else",
        no_ipv6=True,
        kinds=("onlyipv6", "info"),
        noted="IPv6",
    ),
    "no-dns-over-tcp": Way(
        shows="TCP to resolvers is dropped, and half of the answers need it",
        out=("tcp dport {dns} drop",),
        kinds=("bigmx", "info"),
        noted="TCP",
    ),
    "listed-at-the-banner": Way(shows="every mail server refuses its address at the banner", listed_at="banner"),
    "listed-at-rcpt": Way(shows="every mail server refuses its address at RCPT TO", listed_at="rcpt"),
}
