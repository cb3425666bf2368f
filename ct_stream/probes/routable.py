"""Which addresses may be connected to?

The company's MX records choose the addresses, so they are hostile input. `ipaddress.is_global` is not enough on Python
3.11: it accepts NAT64 and 6to4 forms of 127.0.0.1, `::127.0.0.1`, fec0::/10 and multicast.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Network: TypeAlias = IPv4Network | IPv6Network

# The IANA special-purpose address registries (RFC 6890 and its updates), and what is not unicast.
_V4_DROPPED = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_V6_GLOBAL = IPv6Network("2000::/3")  # RFC 4291 section 2.4: all global unicast that is assigned so far
_V6_DROPPED = tuple(IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))


def is_routable(address: str, allowed: Iterable[Network] = ()) -> bool:
    """Return whether `address` is publicly routable, or lies in one of the `allowed` networks.

    False for anything that is not the text of one address without a zone.
    """
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    ip: IPv4Address | IPv6Address = parsed
    if isinstance(parsed, IPv6Address):
        if parsed.scope_id is not None:
            return False
        ip = parsed.ipv4_mapped or parsed
    if any(ip.version == network.version and ip in network for network in allowed):
        return True
    if isinstance(ip, IPv4Address):
        return not any(ip in network for network in _V4_DROPPED)
    return ip in _V6_GLOBAL and not any(ip in network for network in _V6_DROPPED)


def is_ip_literal(host: str) -> bool:
    """Return whether an MX host is an address, in any spelling; RFC 5321 section 5.1 requires a name.

    No name ends in a label of digits (RFC 3696 section 2), so 127.1 is an address as well.
    """
    bare = host.strip("[]")
    last = bare.rpartition(".")[2]
    if last.isdecimal() or last.startswith("0x"):
        return True
    try:
        ip_address(bare.removeprefix("ipv6:"))
    except ValueError:
        return False
    return True
