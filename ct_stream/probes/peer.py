"""Checks by its certificate that the server at the other end is the one that a control must talk to.

Without that a proxy that answers port 25 for everybody passes for any control. A lying resolver may lead us to a server
with a valid certificate for a name of its own, so a control is pinned to a name that only its owner gets one for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ct_stream.control_domains import knows_authorities, trusting

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from pathlib import Path

    from ct_stream.control_domains import ControlDomain

_NAME = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_SHOWN = 3  #: names of another's certificate; some have hundreds
# OpenSSL's X509_V_ERR_...
_NOT_YET_VALID = 9
_HAS_EXPIRED = 10
_HOSTNAME_MISMATCH = 62
_NOT_SIGNED = {
    2: "unable to get issuer certificate",
    18: "self-signed certificate",
    19: "self-signed certificate in certificate chain",
    20: "unable to get local issuer certificate",
    21: "unable to verify the first certificate",
}


class Mismatch(StrEnum):
    """Why the server at the other end does not count as the control."""

    NO_TLS = "no_tls"  #: it does not let us see a certificate
    NOT_SIGNED = "not_signed"  #: by no authority that we know
    OTHER_NAME = "other_name"  #: it is somebody else
    NOT_NOW = "not_now"  #: not valid yet, or not any more, by our clock
    NOT_VALID = "not_valid"  #: for another reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Impostor:
    """Somebody who answers in a control's place, by all that can be seen from here."""

    mismatch: Mismatch
    reason: str  #: continues "somebody answers in its place: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who the other end proved to be."""

    name: str  #: of its certificate
    authority: str  #: who signed it


STRIPPED = Impostor(mismatch=Mismatch.NO_TLS, reason="STARTTLS is stripped on the way: it is not offered")


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Whom a session must be with."""

    context: ssl.SSLContext
    pin: str | None  #: None: `context` checks that the certificate is for the host that we connect to

    def identify(self, certificate: Mapping[str, Any], host: str) -> Identity | Impostor:
        """Return whose certificate this is; its chain has been verified, and without a pin its name too."""
        authority = _authority(certificate)
        if self.pin is None:
            return Identity(name=host, authority=authority)
        names = [
            str(value).lower().rstrip(".") for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"
        ]
        for name in names:
            # A name of other letters (NUL, spaces) may end in anything.
            if _NAME.fullmatch(name) and (name == self.pin or name.endswith(f".{self.pin}")):
                return Identity(name=name, authority=authority)
        shown = ", ".join([*map(_printable, names[:_SHOWN]), *(["..."] if len(names) > _SHOWN else [])]) or "no name"
        return Impostor(mismatch=Mismatch.OTHER_NAME, reason=f"its certificate is for {shown}, not for {self.pin}")

    def why_not(self, error: ssl.SSLCertVerificationError, host: str) -> Impostor:
        """Return why the certificate of the other end was not accepted."""
        code = error.verify_code
        if code in (_NOT_YET_VALID, _HAS_EXPIRED):
            when = "is not valid yet" if code == _NOT_YET_VALID else "has expired"
            today = datetime.now(UTC).date()
            reason = f"its certificate {when}: is this machine's clock wrong? It says {today}"
            return Impostor(mismatch=Mismatch.NOT_NOW, reason=reason)
        if code == _HOSTNAME_MISMATCH:
            return Impostor(mismatch=Mismatch.OTHER_NAME, reason=f"its certificate is not for {host}")
        if code in _NOT_SIGNED:
            reason = f"its certificate is not signed by a known authority ({_NOT_SIGNED[code]})"
            if not knows_authorities(self.context):
                reason += "; this machine knows none at all: install ca-certificates, or set CT_CONTROL_CA_FILE"
            return Impostor(mismatch=Mismatch.NOT_SIGNED, reason=reason)
        reason = f"its certificate is not valid: {error.verify_message}"
        return Impostor(mismatch=Mismatch.NOT_VALID, reason=reason)


class Peers:
    """Makes the peer of each control domain. The authorities are read once, when the first control is asked."""

    def __init__(self, cafile: Path | None = None) -> None:
        self._cafile = cafile
        self._contexts: dict[bool, ssl.SSLContext] = {}

    def of(self, control: ControlDomain) -> Peer | None:
        """Return whom a control must be; None where that is not checked."""
        if control.is_plain:
            return None
        check_hostname = control.pin is None
        if check_hostname not in self._contexts:
            self._contexts[check_hostname] = trusting(self._cafile, check_hostname=check_hostname)
        return Peer(context=self._contexts[check_hostname], pin=control.pin)


def _authority(certificate: Mapping[str, Any]) -> str:
    """Return the organisation that signed, or the name of its certificate."""
    issuer = {key: value for part in certificate.get("issuer", ()) for key, value in part}
    return _printable(str(issuer.get("organizationName") or issuer.get("commonName") or "an authority without a name"))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:100]
