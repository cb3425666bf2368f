"""The farm as a whole: its resolvers, its mail servers and what they know of each company."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ct_stream.local.farm.certificate import AUTHORITY
from ct_stream.local.farm.dns_server import Resolver, Zone
from ct_stream.local.farm.faults import Faults, SmtpBlock
from ct_stream.local.farm.listeners import Endpoint, Listeners
from ct_stream.local.farm.log import FarmLog
from ct_stream.local.farm.names import Company, MxHost, Names
from ct_stream.local.farm.networks import Networks
from ct_stream.local.farm.scenarios import SCENARIOS, Mx
from ct_stream.local.farm.smtp_server import MailServers
from ct_stream.local.processes import LocalError

_RESOLVERS = 2
_LOOPBACK = Networks()
#: Beyond the farm's network, where the `mxloop` company points: a client that connects here is not careful.
_TRIPWIRE = Endpoint(
    address="127.0.0.1",
    host=MxHost(name="localhost", domain="localhost", scenario=SCENARIOS["catchall"], mx=Mx()),
    is_shared=True,
)


class MailFarm:
    """Scripted DNS and mail servers on loopback, for as long as the `async with` lasts.

    `reply_delay_s` is waited before each SMTP reply but the greeting. `probe_name` are the first and last name that
    the name patterns are rendered with. The first `own_addresses` MX hosts get an address and a socket each; later ones
    share those of their scenario, unless that refuses us. Addresses are spread over networks, as companies are.
    """

    def __init__(
        self,
        *,
        reply_delay_s: float = 0.0,
        log_path: Path | None = None,
        probe_name: tuple[str, str] = ("jordan", "whitfield"),
        own_addresses: int = 200,
        networks: Networks = _LOOPBACK,
    ) -> None:
        self.log = FarmLog(log_path)
        self.names = Names()
        self.faults = Faults(_RESOLVERS, self._on_smtp_block)
        self.servers = MailServers(
            names=self.names,
            faults=self.faults,
            log=self.log,
            probe_name=probe_name,
            reply_delay_s=reply_delay_s,
        )
        self._networks = networks
        self._listeners = Listeners(self.servers.talk, own_addresses, networks)
        zone = Zone(names=self.names, faults=self.faults, addresses_of=self._listeners.addresses_of)
        self._resolvers = [Resolver(index, zone, self.log, networks.resolvers) for index in range(_RESOLVERS)]

    def add(self, domain: str, scenario: str, provider: str | None = None, address: str | None = None) -> Company:
        """Let `domain` play `scenario`; with `provider` behind the shared host `mx1.<provider>`.

        With `address`, one from 127.77.250.1 up that the farm gives to nobody else, its own host is one of the names of
        a hoster's machine.
        """
        return self.names.add(domain, scenario, provider, address)

    def company(self, domain: str) -> Company:
        """Return what the farm knows of a domain, with the outcome that the gate must reach."""
        company = self.names.company(domain)
        if company is None:
            raise LocalError(f"the farm has no domain {domain!r}; call add() or name it <scenario>-<anything>.example")
        return company

    @property
    def dns_servers(self) -> str:
        """Return the resolvers as CT_DNS_SERVERS wants them."""
        return ",".join(f"{resolver.host}:{resolver.port}" for resolver in self._resolvers)

    @property
    def smtp_port(self) -> int:
        """Return the port of all mail servers."""
        return self._listeners.port

    @property
    def cidrs(self) -> Sequence[str]:
        """Return the networks of the mail servers."""
        return self._networks.cidrs

    def env(self) -> dict[str, str]:
        """Return the settings that make the gate ask this farm and nothing else."""
        return {
            "CT_DNS_SERVERS": self.dns_servers,
            "CT_SMTP_PORT": str(self.smtp_port),
            "CT_SMTP_HELO": "probe.ct-stream.example",
            "CT_SMTP_MAIL_FROM": "probe@ct-stream.example",
            "CT_SMTP_ALLOW_CIDRS": ",".join(self.cidrs),
            "CT_CONTROL_DOMAINS": "control.example=control.example",
            "CT_CONTROL_CA_FILE": str(AUTHORITY),
        }

    async def __aenter__(self) -> Self:
        self._listeners.start(_TRIPWIRE)
        try:
            for resolver in self._resolvers:
                await resolver.start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        for resolver in self._resolvers:
            await resolver.stop()
        await self._listeners.stop()
        await self.servers.stop()
        self.log.close()

    def _on_smtp_block(self, block: SmtpBlock | None) -> None:
        self._listeners.set_block(block)
        if block is SmtpBlock.REFUSED:
            self.servers.cut_connections()
