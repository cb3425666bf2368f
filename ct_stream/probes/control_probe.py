"""Asks control domains, to prove that our own DNS and our way out work before a failure counts against a company."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Protocol, TypeVar

from ct_stream.gate.replies import Meaning, read_reply
from ct_stream.probes.mx import ControlResult, NameTrouble
from ct_stream.probes.peer import Peers
from ct_stream.probes.routable import is_ip_literal
from ct_stream.probes.smtp import SmtpSession, SmtpSettings
from ct_stream.probes.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ct_stream.control_domains import ControlDomain
    from ct_stream.gate.questions import Attempt, MxAnswer
    from ct_stream.probes.mx import Family
    from ct_stream.probes.peer import Peer

_CONTROL_S = 25.0  #: for all servers of one control domain together
_CONTROL_HOSTS = 2  #: of a control domain, with two addresses each
#: How Google ("at your service, [203.0.113.9]") and Microsoft ("Hello [203.0.113.9]") say whom they see.
_SEEN_AS = re.compile(r"\[(?:IPv6:)?([0-9A-Fa-f.:]+)\]")

Control = TypeVar("Control")


class ControlResolver(Protocol):
    """The part of a resolver that controls need."""

    async def lookup_mx(self, domain: str) -> MxAnswer:
        """Return the hosts of `domain`."""

    async def lookup_addresses(self, host: str, family: Family | None = None) -> tuple[str, ...] | NameTrouble:
        """Return the addresses of `host` that may be connected to; with `family`, those alone."""

    async def dns_control(self, domain: str) -> ControlResult:
        """Return whether the resolvers find `domain` and no random name below it."""


class SmtpControl:
    """Proves that our way out to port 25 works: a control domain's own server takes MAIL FROM from us.

    The server proves by its certificate that it is the control's. Its greeting proves nothing: a proxy that answers
    port 25 for everybody forwards it, or invents one. A control belongs to no pass, and counts towards no daily cap.
    """

    def __init__(self, resolver: ControlResolver, settings: SmtpSettings, peers: Peers | None = None) -> None:
        """Without `peers` the authorities of this machine's system vouch for the controls."""
        self._resolver = resolver
        self._settings = settings
        self._peers = peers or Peers()

    async def smtp_control(self, control: ControlDomain, *, family: Family | None = None) -> ControlResult:
        """Return whether a server of this domain is authentic and takes MAIL FROM; never DATA.

        With `family` only addresses of that family are connected to.
        """
        domain = control.domain
        mx = await self._resolver.lookup_mx(domain)
        if not mx.hosts:
            return ControlResult(ok=False, detail=f"{domain}: {mx.status} {mx.detail}".rstrip())
        peer = self._peers.of(control)
        failed: list[ControlResult] = []
        asked = 0
        stopwatch = Stopwatch(_CONTROL_S)
        for host in mx.hosts:
            if asked == _CONTROL_HOSTS:
                break
            if is_ip_literal(host):
                continue
            found = await self._resolver.lookup_addresses(host, family)
            if isinstance(found, NameTrouble):
                failed.append(ControlResult(ok=False, detail=f"{host}: {found.trouble} {found.detail}".rstrip()))
                continue
            asked += 1
            for ip in found:
                result = await self._ask(SmtpSession(host, ip, self._settings, stopwatch), peer)
                if result.ok or result.impostor is not None:
                    return result  # who answers in its place may let another address through
                failed.append(result)
        return _together(failed, f"{domain}: no host to connect to")

    async def _ask(self, session: SmtpSession, peer: Peer | None) -> ControlResult:
        try:
            stopped = await session.start(peer=peer)
        finally:
            await session.end()
        family: Family = 6 if ":" in session.ip else 4
        if stopped is not None:
            return _failed(session, stopped, family)
        proven = f"{session.host} takes MAIL FROM, but who answers there was not checked"
        if session.identity is not None:
            who = session.identity
            proven = f"{session.host} takes MAIL FROM; authenticated as {who.name} by {who.authority}"
        return ControlResult(ok=True, detail=proven, our_address=address_seen(session.greeting), family=family)


def _failed(session: SmtpSession, stopped: Attempt, family: Family) -> ControlResult:
    if session.impostor is not None:
        detail = f"{session.host}: somebody answers in its place: {session.impostor.reason}"
        return ControlResult(ok=False, detail=detail[:300], family=family, impostor=session.impostor)
    said = f"{stopped.trouble} {stopped.detail}".rstrip()
    if stopped.reply is not None:
        said = f"{stopped.reply.code} {stopped.reply.text}"
    reading = read_reply(stopped.stage, stopped.reply) if stopped.reply else None
    refused = reading is not None and reading.meaning is Meaning.ABOUT_US
    return ControlResult(
        ok=False,
        detail=f"{session.host} at {stopped.stage}: {said}"[:300],
        refused=refused,
        is_authentic=session.identity is not None,
        is_sender=refused and reading is not None and reading.is_sender,
        family=family,
    )


def address_seen(greeting: str) -> str:
    """Return the address as which a server sees us, by the first line of its reply to EHLO; "" if it names none."""
    for text in reversed(_SEEN_AS.findall(greeting)):
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            continue
    return ""


async def first_success(
    ask: Callable[[Control], Awaitable[ControlResult]], controls: Sequence[Control]
) -> ControlResult:
    """Ask one control after the other until one succeeds; return that result, or all failures together.

    Where somebody answers in the place of one, the next one is not asked: he may let it through.
    """
    failed: list[ControlResult] = []
    for control in controls:
        result = await ask(control)
        if result.ok or result.impostor is not None:
            return result
        failed.append(result)
    return _together(failed, "no control domain is set")


def _together(failed: Sequence[ControlResult], nothing: str) -> ControlResult:
    families = {result.family for result in failed}
    return ControlResult(
        ok=False,
        detail="; ".join(result.detail for result in failed) or nothing,
        refused=any(result.refused for result in failed),
        is_authentic=any(result.is_authentic for result in failed if result.refused),
        is_sender=any(result.is_sender for result in failed),
        family=families.pop() if len(families) == 1 else 0,
        impostor=next((result.impostor for result in failed if result.impostor is not None), None),
    )
