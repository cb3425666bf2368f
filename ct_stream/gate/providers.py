"""Says who runs a mail server: the company itself, or a provider that many companies share.

This is the only place that decides it; limits, guardrails and evidence all ask here. A name alone does not decide it: a
hoster's server often bears its customer's name. So a server is known by its address and its network too
(ADR-CT-IMO-028)."""

from __future__ import annotations

import ipaddress
from functools import cache
from typing import TYPE_CHECKING

from publicsuffixlist import PublicSuffixList

if TYPE_CHECKING:
    from collections.abc import Container

#: What one owner usually holds: the smallest networks that the routers of the Internet tell apart.
_PREFIX_OF_VERSION = {4: 24, 6: 48}


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # the list inside the package, with its private section; nothing is fetched


def registrable_domain(name: str) -> str:
    """Return the part of `name` that somebody registered, or `name` where nothing could be registered."""
    name = name.rstrip(".").lower()
    return _suffixes().privatesuffix(name) or name


def is_anybodys(name: str) -> bool:
    """Return whether nobody owns `name`, so that anybody may register a name below it, such as "co.uk"."""
    return _suffixes().privatesuffix(name) is None


def provider_of(host: str, domain: str) -> str:
    """Return the name under which an MX host's limits and refusals are kept.

    A host without a registrable domain (a bare suffix, a single label) counts as the company's own.
    """
    return _suffixes().privatesuffix(host.rstrip(".").lower()) or registrable_domain(domain)


def is_own_provider(provider: str, domain: str) -> bool:
    """Return whether a provider is the company itself: its own registrable domain."""
    return provider == registrable_domain(domain)


def is_own_server(host: str, domain: str) -> bool:
    """Return whether an MX host is under the company's own registrable domain."""
    return is_own_provider(provider_of(host, domain), domain)


# ---------------------------------------------------------------- where a server is


def address_of(ip: str) -> str:
    """Return the one spelling of an address, an IPv4 address inside an IPv6 one unwrapped; "" if it is none."""
    parsed = _parsed(ip)
    return "" if parsed is None else str(parsed)


def network_of(ip: str) -> str:
    """Return the network of an address, such as "203.0.113.0/24" or "2001:db8:7::/48"; "" if it is no address."""
    parsed = _parsed(ip)
    if parsed is None:
        return ""
    return str(ipaddress.ip_network(f"{parsed}/{_PREFIX_OF_VERSION[parsed.version]}", strict=False))


def whereabouts(ip: str) -> tuple[str, ...]:
    """Return the names under which a server is known by where it is: its network, then its address."""
    return tuple(name for name in (network_of(ip), address_of(ip)) if name)


def is_whereabouts(provider: str) -> bool:
    """Return whether a provider is the name of a network or an address."""
    try:
        ipaddress.ip_network(provider)
    except ValueError:
        return False
    return True


def provider_at(host: str, ip: str, domain: str, closed: Container[str]) -> str:
    """Return the provider that an MX host counts as now.

    A company's own server counts as its network, or its address, while that is one of the `closed` providers: then it
    is one of many servers there that refuse us, and one company at a time may try.
    """
    provider = provider_of(host, domain)
    if is_own_provider(provider, domain):
        return next((name for name in whereabouts(ip) if name in closed), provider)
    return provider


def _parsed(ip: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        parsed = ipaddress.ip_address(ip.partition("%")[0])  # without the interface that a link-local address names
    except ValueError:
        return None
    return getattr(parsed, "ipv4_mapped", None) or parsed
