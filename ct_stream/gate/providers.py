"""Says who runs a mail server: the company itself, or a provider that many companies share.

This is the only place that decides it; limits, guardrails and evidence all ask here."""

from __future__ import annotations

from functools import cache

from publicsuffixlist import PublicSuffixList


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList()  # the list inside the package, with its private section; nothing is fetched


def registrable_domain(name: str) -> str:
    """Return the part of `name` that somebody registered, or `name` where nothing could be registered."""
    name = name.rstrip(".").lower()
    return _suffixes().privatesuffix(name) or name


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
