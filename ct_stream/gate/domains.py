"""Brings a stored domain to its canonical form, or says why it is not a domain.

Nothing is repaired: a scheme or a path is a data fault upstream, and cutting it off would hide the fault (the runbook
forbids patching domains).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import idna

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")  # RFC 1123 section 2.1, RFC 1035 section 2.3.4
_MAX_HOST_NAME = 253  # RFC 1035 section 2.3.4, without the root's dot
_MAX_QUOTED = 80  #: characters of a stored value that a reason repeats


@dataclass(frozen=True, slots=True, kw_only=True)
class NotADomain:
    """Why a stored value is not a host name of two or more labels."""

    reason: str


def canonical_domain(stored: str | None) -> str | NotADomain:
    """Return `stored` trimmed of ASCII space, without one trailing dot, in lower case and IDNA2008 A-labels."""
    if stored is None:
        return NotADomain(reason="the spine's domain is NULL")
    trimmed = stored.strip(" \t\r\n\f\v")
    if not trimmed:
        return NotADomain(reason=f"the spine's domain is empty: {quoted(stored)}")
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in trimmed):
        return NotADomain(reason=f"control characters in the spine's domain {quoted(stored)}")
    host = trimmed.removesuffix(".")
    if len(host) > _MAX_HOST_NAME * 4:  # no A-label form of it can be short enough, and idna takes longer with length
        return NotADomain(reason=f"the spine's domain is longer than a host name can be: {quoted(stored)}")
    if host.isascii():
        ascii_host = host.lower()
    else:
        try:
            ascii_host = idna.encode(host, uts46=True, transitional=False).decode("ascii").lower()
        except (idna.IDNAError, UnicodeError) as error:
            return NotADomain(reason=f"the spine's domain {quoted(stored)} is not valid under IDNA2008: {error}"[:300])
    labels = ascii_host.split(".")
    if len(ascii_host) > _MAX_HOST_NAME:
        return NotADomain(reason=f"the spine's domain is longer than a host name can be: {quoted(stored)}")
    if len(labels) < 2:
        return NotADomain(reason=f"the spine's domain {quoted(stored)} has fewer than two labels")
    if not all(_LABEL.fullmatch(label) for label in labels):
        return NotADomain(reason=f"the spine's domain {quoted(stored)} is not a host name")
    # A last label of digits only is the tail of an IPv4 literal, never a top-level domain (RFC 3696 section 2).
    if labels[-1].isdigit():
        return NotADomain(reason=f"the spine's domain {quoted(stored)} is an IP address or ends in a number")
    for label in labels:
        if label.startswith("xn--"):
            try:
                idna.ulabel(label)
            except (idna.IDNAError, UnicodeError):
                return NotADomain(reason=f"the spine's domain {quoted(stored)} has a label that is not valid IDNA2008")
    return ascii_host


def quoted(value: str) -> str:
    """Return `value` as a reason may repeat it: escaped, printable ASCII only, bounded."""
    shown = value if len(value) <= _MAX_QUOTED else value[:_MAX_QUOTED] + "..."
    return ascii(shown)
