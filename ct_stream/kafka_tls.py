"""Reads the certificates and the key for connections to Kafka, and says which file is wrong.

OpenSSL asks the terminal for the passphrase of an encrypted key. A worker would wait there for ever, so it never gets
to ask.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from ct_stream.problems import ProblemError

if TYPE_CHECKING:
    from pathlib import Path


class WrongTlsFile(ProblemError):
    """A file that cannot be used; `what` continues a sentence that begins with the setting's name."""

    def __init__(self, setting: str, what: str, action: str) -> None:
        super().__init__(what, action)
        self.setting = setting  #: the field of Settings


def tls_context(
    cafile: Path | None, certfile: Path | None, keyfile: Path | None, password: str | None
) -> ssl.SSLContext:
    """Return the context of our connections to Kafka. Raises WrongTlsFile."""
    try:
        context = ssl.create_default_context(cafile=str(cafile) if cafile else None)
    except (OSError, ssl.SSLError) as error:
        raise WrongTlsFile(
            "kafka_ssl_cafile", f"{str(cafile)!r} cannot be read: {_said(error)}", "name a PEM file with certificates"
        ) from error
    if certfile is None:
        if keyfile is not None:
            raise WrongTlsFile(
                "kafka_ssl_certfile", "is not set; CT_KAFKA_SSL_KEYFILE needs it", "set it to the key's certificate"
            )
        return context
    asked = False

    def passphrase() -> str:
        nonlocal asked
        asked = True
        return password or ""

    key = "kafka_ssl_keyfile" if keyfile else "kafka_ssl_certfile"
    try:
        context.load_cert_chain(certfile, keyfile, password=passphrase)
    except (OSError, ssl.SSLError, ValueError) as error:
        if asked and password is None:
            raise WrongTlsFile(
                key,
                f"{str(keyfile or certfile)!r} is encrypted, and nobody can be asked for its passphrase",
                "set CT_KAFKA_SSL_PASSWORD_FILE to a file that holds it, or decrypt the key with `openssl pkey`",
            ) from error
        if asked:
            raise WrongTlsFile(
                "kafka_ssl_password",
                f"is not the passphrase of {str(keyfile or certfile)!r}",
                "set it to the right one",
            ) from error
        raise WrongTlsFile(
            "kafka_ssl_certfile",
            f"{str(certfile)!r} and its key {str(keyfile or certfile)!r} cannot be used: {_said(error)}",
            "name a PEM certificate and the PEM key that belongs to it",
        ) from error
    return context


def _said(error: BaseException) -> str:
    """Return OpenSSL's words without its source line; it has none for a file without PEM in it."""
    reason = getattr(error, "reason", None) or str(error).partition("]")[2].partition("(")[0]
    return str(reason).strip().lower().replace("_", " ") or "it holds none"
