"""Makes the paid vendor that the settings name."""

from __future__ import annotations

from typing import TypeAlias
from urllib.parse import urlsplit, urlunsplit

from ct_stream.probes.tier2_millionverifier import URL, MillionVerifier
from ct_stream.probes.tier2_reacher import Reacher

AnyVendor: TypeAlias = MillionVerifier | Reacher


def make_vendor(provider: str, url: str | None, key: str | None) -> AnyVendor | None:
    """Return the vendor of CT_TIER2_PROVIDER; None if it is `none`. The settings have checked what each one needs."""
    match provider:
        case "none":
            return None
        case "millionverifier":
            assert key is not None
            return MillionVerifier(secret=key, url=_with_path(url or URL, "/api/v3/"))
        case "reacher":
            assert url is not None
            return Reacher(secret=key, url=_with_path(url, "/v1/check_email"))
    raise ValueError(f"unknown vendor in CT_TIER2_PROVIDER: {provider!r}")


def _with_path(url: str, path: str) -> str:
    """Return the URL, with the vendor's documented path if it names none."""
    parts = urlsplit(url)
    return url if parts.path.strip("/") else urlunsplit(parts._replace(path=path))
