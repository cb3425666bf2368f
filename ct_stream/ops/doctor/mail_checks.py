"""Do names resolve, is port 25 open, and does our HELO name lead back to us?"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiodns

from ct_stream.control_domains import knows_authorities, trusting
from ct_stream.ops.doctor.part import Check, Part, Seen, verdict
from ct_stream.probes.control_probe import SmtpControl
from ct_stream.probes.mx import NameTrouble, Resolver
from ct_stream.probes.peer import Mismatch, Peers
from ct_stream.probes.smtp import SmtpSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from ct_stream.control_domains import ControlDomain
    from ct_stream.probes.mx import ControlResult
    from ct_stream.settings import Settings

_PTR_S = 5.0


def _resolver(settings: Settings, servers: tuple[str, ...] = (), *, anywhere: bool = False) -> Resolver:
    networks = ("0.0.0.0/0", "::/0") if anywhere else settings.smtp_allow_cidrs
    return Resolver(
        servers or settings.dns_servers or None,
        allowed=[ipaddress.ip_network(network) for network in networks],
    )


# ---------------------------------------------------------------- DNS


async def _resolvers(settings: Settings) -> list[Check]:
    """Ask each resolver by itself: the gate needs one, and a second one to confirm an absence."""
    servers = _resolver(settings).servers
    if not servers:
        return [Check(name="DNS", ok=False, detail="no resolver is known", action="set CT_DNS_SERVERS to ip:port,...")]
    domain = settings.control_domains[0].domain
    results = await asyncio.gather(*(_resolver(settings, (server,)).dns_control(domain) for server in servers))
    return [
        verdict(
            f"resolver {server}",
            ok=result.ok,
            good=result.detail,
            bad=result.detail,
            action="name resolvers that answer for any domain in CT_DNS_SERVERS",
        )
        for server, result in zip(servers, results, strict=True)
    ]


async def _second_resolver(settings: Settings) -> Seen:
    if len(_resolver(settings).servers) != 1:
        return ()
    detail = "there is none, so nothing confirms the first when it finds no MX"
    return Check(name="second resolver", ok=None, detail=detail)


DNS = Part(name="DNS", connect=nullcontext, checks=(_resolvers, _second_resolver))


# ---------------------------------------------------------------- port 25


@dataclass(frozen=True, slots=True, kw_only=True)
class _Controls:
    """The control domains, and what their servers proved."""

    settings: Settings
    results: Sequence[tuple[ControlDomain, ControlResult]]


@asynccontextmanager
async def _controls(settings: Settings) -> AsyncIterator[_Controls]:
    smtp = SmtpSettings(
        helo=settings.smtp_helo or "localhost.localdomain",
        mail_from=settings.smtp_mail_from or "",
        port=settings.smtp_port,
    )
    control = SmtpControl(_resolver(settings), smtp, Peers(settings.control_ca_file))
    results = await asyncio.gather(*map(control.smtp_control, settings.control_domains))
    yield _Controls(settings=settings, results=tuple(zip(settings.control_domains, results, strict=True)))


async def _outbound_port(controls: _Controls) -> Check:
    """Say whether one of the control domains lets us go as far as MAIL FROM; one is enough."""
    good = [control.domain for control, result in controls.results if result.ok]
    return verdict(
        f"outbound port {controls.settings.smtp_port}",
        ok=bool(good),
        good=f"open: {', '.join(good)} {'takes' if len(good) == 1 else 'take'} MAIL FROM",
        bad="; ".join(result.detail for _, result in controls.results),
        action=_way_out(result for _, result in controls.results),
    )


async def _each_control(controls: _Controls) -> Seen:
    """Say what each control domain proved, and as whom it sees us.

    One that is silent while another answers is no problem yet; somebody who answers in its place is.
    """
    return [_control_check(control, result) for control, result in controls.results]


def _control_check(control: ControlDomain, result: ControlResult) -> Check:
    name = f"control {control.domain}"
    if result.impostor is not None:
        action = _AGAINST_IMPOSTORS[result.impostor.mismatch]
        return Check(name=name, ok=False, detail=result.detail, action=action)
    if not result.ok:
        return Check(name=name, ok=None, detail=result.detail)
    seen_as = f"; it sees us as {result.our_address}" if result.our_address else ""
    if control.is_plain:
        action = f"pin the name in its certificate, {control.domain}=NAME, unless the network is your own"
        return Check(name=name, ok=None, detail=f"not authenticated: {result.detail}{seen_as}", action=action)
    return Check(name=name, ok=True, detail=f"{result.detail}{seen_as}")


async def _authorities(controls: _Controls) -> Seen:
    """Look for the system's authorities: a minimal image has none, and then no control can be authenticated."""
    settings = controls.settings
    if settings.control_ca_file is not None or all(control.is_plain for control in settings.control_domains):
        return ()
    if knows_authorities(trusting(None, check_hostname=True)):
        return ()
    return Check(
        name="authorities",
        ok=False,
        detail="this machine knows no certificate authority, so no control can be authenticated",
        action="install your system's ca-certificates, or set CT_CONTROL_CA_FILE",
    )


_AGAINST_IMPOSTORS = {
    Mismatch.NO_TLS: "have your network let STARTTLS through to port 25: a firewall or a proxy takes it out",
    Mismatch.NOT_SIGNED: "look for a proxy on port 25; for a control of your own, set CT_CONTROL_CA_FILE",
    Mismatch.OTHER_NAME: "look for a proxy on port 25 and a resolver that lies, or correct CT_CONTROL_DOMAINS",
    Mismatch.NOT_NOW: "set this machine's clock (NTP); if it is right, the server's certificate is out of date",
    Mismatch.NOT_VALID: "look for a proxy on port 25",
}


def _way_out(results: Iterable[ControlResult]) -> str:
    for result in results:
        if result.impostor is not None:
            return _AGAINST_IMPOSTORS[result.impostor.mismatch]
        if result.refused:
            return "have our address taken off the list that the reply names; see `ct-stream guardrails`"
    return "have your network let connections to that port out; many hosting networks close it"


PORT_25 = Part(name="port 25", connect=_controls, checks=(_outbound_port, _each_control, _authorities))


# ---------------------------------------------------------------- HELO


@dataclass(frozen=True, slots=True, kw_only=True)
class _Name:
    """The HELO name, and what DNS says of it."""

    settings: Settings
    helo: str
    found: tuple[str, ...] | NameTrouble

    @property
    def addresses(self) -> tuple[str, ...]:
        """Return its addresses; none where it has none."""
        return () if isinstance(self.found, NameTrouble) else self.found


@asynccontextmanager
async def _helo_name(settings: Settings) -> AsyncIterator[_Name]:
    assert settings.smtp_helo is not None
    found = await _resolver(settings, anywhere=True).lookup_addresses(settings.smtp_helo)
    yield _Name(settings=settings, helo=settings.smtp_helo, found=found)


async def _helo(name: _Name) -> Check:
    """Look for the name's addresses: servers refuse a HELO that leads nowhere."""
    if not isinstance(name.found, NameTrouble):
        return Check(name="HELO", ok=True, detail=f"{name.helo} is {', '.join(name.addresses)}")
    why = f"{name.found.trouble} {name.found.detail}".strip()
    return Check(
        name="HELO",
        ok=False,
        detail=f"CT_SMTP_HELO {name.helo!r} has no address ({why})",
        action="set it to the name in your address's reverse DNS",
    )


async def _reverse_dns(name: _Name) -> Seen:
    """Compare the addresses' names with HELO: servers refuse an address that has none."""
    if not name.addresses:
        return ()
    names = {address: await _names_of(name.settings, address) for address in name.addresses}
    wrong = [
        f"{address} leads to {' and '.join(its) or 'no name'}" for address, its in names.items() if name.helo not in its
    ]
    return verdict(
        "reverse DNS",
        ok=not wrong,
        good=f"leads back to {name.helo}",
        bad=f"{'; '.join(wrong)}, but must lead to {name.helo}",
        action=f"have the owner of the address set its PTR record to {name.helo}",
    )


async def _our_address(name: _Name) -> Seen:
    own = _own_address()
    if own is None or not name.addresses:
        return ()
    return verdict(
        "our address",
        ok=own in name.addresses,
        good=f"connections leave from {own}",
        bad=f"connections leave from {own}, which is not an address of {name.helo}",
        action="set CT_SMTP_HELO to the name of the address that connections leave from",
    )


HELO = Part(name="HELO", setting="smtp_helo", connect=_helo_name, checks=(_helo, _reverse_dns, _our_address))


async def _names_of(settings: Settings, address: str) -> list[str]:
    """Return the names of an address; none when its PTR record cannot be had."""
    servers = _resolver(settings).servers
    name = ipaddress.ip_address(address).reverse_pointer
    async with aiodns.DNSResolver(nameservers=list(servers), timeout=_PTR_S, tries=1) as resolver:
        try:
            answer = await resolver.query_dns(name, "PTR")
        except aiodns.error.DNSError:
            return []
    return [str(record.data.dname).rstrip(".").lower() for record in answer.answer if hasattr(record.data, "dname")]


def _own_address() -> str | None:
    """Return the public address that connections leave from; None where it is not known (NAT, no network)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 25))  # nothing is sent: the kernel only chooses the way
            address = str(probe.getsockname()[0])
        except OSError:
            return None
    return address if ipaddress.ip_address(address).is_global else None
