"""Asks control domains, to prove that our own DNS and our way out work before a failure counts against a company."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ct_stream.gate.replies import Meaning, read_reply
from ct_stream.probes.mx import ControlResult, NameTrouble
from ct_stream.probes.routable import is_ip_literal
from ct_stream.probes.smtp import SmtpSession, SmtpSettings
from ct_stream.probes.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from ct_stream.gate.questions import MxAnswer

_CONTROL_S = 25.0  #: for all servers of one control domain together
_CONTROL_HOSTS = 2  #: of a control domain, with two addresses each


class ControlResolver(Protocol):
    """The part of a resolver that controls need."""

    async def lookup_mx(self, domain: str) -> MxAnswer:
        """Return the hosts of `domain`."""

    async def lookup_addresses(self, host: str) -> tuple[str, ...] | NameTrouble:
        """Return the addresses of `host` that may be connected to."""

    async def dns_control(self, domain: str) -> ControlResult:
        """Return whether the resolvers find `domain` and no random name below it."""


class SmtpControl:
    """Proves that our way out to port 25 works: a control domain's server greets us.

    A control belongs to no pass and does not count towards the daily cap.
    """

    def __init__(self, resolver: ControlResolver, settings: SmtpSettings) -> None:
        self._resolver = resolver
        self._settings = settings

    async def smtp_control(self, domain: str, *, up_to_mail: bool = False) -> ControlResult:
        """Return whether a server of `domain` greets us with 220; with `up_to_mail`, whether it takes MAIL FROM too."""
        mx = await self._resolver.lookup_mx(domain)
        if not mx.hosts:
            return ControlResult(ok=False, detail=f"{domain}: {mx.status} {mx.detail}".rstrip())
        seen: list[str] = []
        refused = False
        stopwatch = Stopwatch(_CONTROL_S)
        for host in mx.hosts[:_CONTROL_HOSTS]:
            if is_ip_literal(host):
                continue
            found = await self._resolver.lookup_addresses(host)
            if isinstance(found, NameTrouble):
                seen.append(f"{host}: {found.trouble} {found.detail}".rstrip())
                continue
            for ip in found:
                result = await self._greeting(SmtpSession(host, ip, self._settings, stopwatch), up_to_mail)
                if result.ok:
                    return result
                seen.append(result.detail)
                refused = refused or result.refused
        detail = "; ".join(seen) or f"{domain}: no host to connect to"
        return ControlResult(ok=False, detail=detail, refused=refused)

    async def _greeting(self, session: SmtpSession, up_to_mail: bool) -> ControlResult:
        try:
            stopped = await (session.start() if up_to_mail else session.greet())
        finally:
            await session.end()
        if stopped is None:
            return ControlResult(ok=True, detail=f"{session.host} {'takes MAIL FROM' if up_to_mail else 'greets us'}")
        said = stopped.trouble or (stopped.reply and f"{stopped.reply.code} {stopped.reply.text}")
        meaning = read_reply(stopped.stage, stopped.reply).meaning if stopped.reply else None
        return ControlResult(
            ok=False,
            detail=f"{session.host} at {stopped.stage}: {said}"[:300],
            refused=meaning is Meaning.ABOUT_US,
        )


async def first_success(ask: Callable[[str], Awaitable[ControlResult]], domains: Sequence[str]) -> ControlResult:
    """Ask one control domain after the other until one succeeds; return that result, or all failures together."""
    failed: list[ControlResult] = []
    for domain in domains:
        result = await ask(domain)
        if result.ok:
            return result
        failed.append(result)
    detail = "; ".join(result.detail for result in failed) or "no control domain is set"
    return ControlResult(ok=False, detail=detail, refused=any(result.refused for result in failed))
