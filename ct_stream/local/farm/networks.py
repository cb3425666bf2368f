"""The networks that the farm takes its addresses from."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Self

from ct_stream.local.processes import LocalError

_LOOPBACK = IPv4Network("127.77.0.0/16")
_PARTS = 250  #: x.y.0.0/24 to x.y.249.0/24; those above are for hosters' machines, and the last one for resolvers


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """A /16 of IPv4, and a /32 of IPv6 where the farm has one.

    All addresses must be this machine's own: as 127.0.0.0/8 is, or by `ip route add local NETWORK dev lo`. To bind
    those of IPv6, net.ipv6.ip_nonlocal_bind must be 1 too.
    """

    v4: IPv4Network = _LOOPBACK
    v6: IPv6Network | None = None

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Return the networks that were named; without one of IPv4, loopback."""
        networks = [ip_network(text) for text in texts]
        return cls(
            v4=next((network for network in networks if isinstance(network, IPv4Network)), _LOOPBACK),
            v6=next((network for network in networks if isinstance(network, IPv6Network)), None),
        )

    @property
    def cidrs(self) -> list[str]:
        """Return the networks as people write them."""
        return [str(network) for network in (self.v4, self.v6) if network is not None]

    @property
    def resolvers(self) -> str:
        """Return the address of the resolvers."""
        return "127.0.0.1" if self.v4.is_loopback else str(self.v4[255 * 256 + 53])

    def address(self, version: int, number: int) -> str:
        """Return the address with that number; each next one is in another network, as companies are."""
        fourth, third = divmod(number, _PARTS)
        if fourth > 250:
            raise LocalError(f"{self.v4} is used up; start the farm with fewer addresses of their own")
        if version == 4:
            return str(self.v4[third * 256 + fourth + 1])
        assert self.v6 is not None
        return str(self.v6[(third << 80) + fourth + 1])  # a /48 each
