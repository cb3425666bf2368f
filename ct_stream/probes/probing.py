"""Puts together what asks DNS and mail servers, and what proves that our own way works."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from ct_stream.gate.questions import ControlKind
from ct_stream.probes.control_probe import SmtpControl, first_success
from ct_stream.probes.mailbox import MailboxProber
from ct_stream.probes.mx import MAX_ASKING, Resolver
from ct_stream.probes.peer import Peers
from ct_stream.probes.smtp import SmtpSettings

if TYPE_CHECKING:
    from ct_stream.control_domains import ControlDomain
    from ct_stream.probes.mx import ControlResult, Family
    from ct_stream.probes.needs import Permits
    from ct_stream.probes.stopwatch import Stopwatch
    from ct_stream.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Probing:
    """What asks the world, as the settings describe it."""

    resolver: Resolver
    smtp: SmtpSettings
    smtp_control: SmtpControl
    control_domains: tuple[ControlDomain, ...]

    def prober(self, permits: Permits, stopwatch: Stopwatch) -> MailboxProber:
        """Return the prober of one pass."""
        return MailboxProber(resolver=self.resolver, permits=permits, settings=self.smtp, stopwatch=stopwatch)

    async def ask_control(self, kind: ControlKind) -> ControlResult:
        """Ask the control domains in order until one succeeds; return that, or all their failures."""

        async def ask(control: ControlDomain) -> ControlResult:
            match kind:
                case ControlKind.DNS | ControlKind.DNS_TCP:
                    return await self.resolver.dns_control(control.domain, tcp=kind is ControlKind.DNS_TCP)
                case ControlKind.SMTP | ControlKind.SMTP6:
                    family: Family = 6 if kind is ControlKind.SMTP6 else 4
                    return await self.smtp_control.smtp_control(control, family=family)
            assert_never(kind)

        return await first_success(ask, self.control_domains)


def make_probing(settings: Settings, *, asking: int = MAX_ASKING) -> Probing:
    """Return what asks the world, with at most `asking` DNS questions at a time.

    CT_SMTP_HELO and CT_SMTP_MAIL_FROM must be set.
    """
    assert settings.smtp_helo is not None
    assert settings.smtp_mail_from is not None
    smtp = SmtpSettings(helo=settings.smtp_helo, mail_from=settings.smtp_mail_from, port=settings.smtp_port)
    resolver = Resolver(
        settings.dns_servers or None,
        allowed=[ipaddress.ip_network(cidr) for cidr in settings.smtp_allow_cidrs],
        asking=asking,
        known=[control.domain for control in settings.control_domains],
    )
    return Probing(
        resolver=resolver,
        smtp=smtp,
        smtp_control=SmtpControl(resolver, smtp, Peers(settings.control_ca_file)),
        control_domains=settings.control_domains,
    )
