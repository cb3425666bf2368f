"""Says which domains prove that our own way works, and how their servers show that it is they who answer."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ct_stream.problems import ProblemError

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlDomain:
    """A domain whose mail servers always answer, and the name that their certificate must bear."""

    domain: str
    pin: str | None = (
        None  #: a name of the certificate equals or ends in it; None: the certificate is the MX host's own
    )
    is_plain: bool = False  #: of a private network: whoever answers is taken for the control

    def __str__(self) -> str:
        """Return it as CT_CONTROL_DOMAINS spells it."""
        pin = "plain" if self.is_plain else self.pin
        return f"{self.domain}={pin}" if pin else self.domain


def plain_note(controls: Iterable[ControlDomain]) -> str | None:
    """Return what a person must know of controls that are not authenticated; None where there are none."""
    plain = [control.domain for control in controls if control.is_plain]
    if not plain:
        return None
    return (
        f"CT_CONTROL_DOMAINS: nobody checks who answers for {', '.join(plain)} (=plain), so a proxy on the way to its"
        " port passes for it; use it in a private network only"
    )


# ---------------------------------------------------------------- whose signature counts


def trusting(cafile: Path | None, *, check_hostname: bool) -> ssl.SSLContext:
    """Return a context that takes only certificates which the authorities in `cafile`, or the system's, have signed.

    Raises ProblemError; its first half continues a sentence that begins with the setting's name.
    """
    action = "name a PEM file with the certificates of the authorities, or unset it to use the system's"
    try:
        context = ssl.create_default_context(cafile=str(cafile) if cafile else None)
    except ssl.SSLError as error:
        raise ProblemError(f"{str(cafile)!r} holds no certificate in PEM", action) from error
    except OSError as error:
        raise ProblemError(f"{str(cafile)!r} cannot be read: {error.strerror}", action) from error
    if cafile is not None and not context.cert_store_stats()["x509"]:
        raise ProblemError(f"{str(cafile)!r} holds no certificate in PEM", action)
    context.check_hostname = check_hostname
    return context


def knows_authorities(context: ssl.SSLContext) -> bool:
    """Return whether anybody's signature counts in this context; a minimal image of an operating system has nobody's.

    A folder of authorities is read only when a certificate needs it, so its files are looked for here.
    """
    if context.cert_store_stats()["x509_ca"]:
        return True
    folder = ssl.get_default_verify_paths().capath
    return folder is not None and any(Path(folder).glob("*.[0-9]"))
