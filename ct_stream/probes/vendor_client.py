"""Asks a paid vendor about one address: one request, bounded in bytes and time, and never a second one.

Each vendor is a pair of pure functions: the request for an address, and the reading of a response. This module sends
the request only to the host of the configured URL, and verifies its certificate.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import aiohttp
import orjson

from ct_stream.gate.questions import VerifyStatus

if TYPE_CHECKING:
    from ct_stream.gate.patterns import Address

CALL_S = 25.0  #: for the whole call, so that its answer is stored before its reservation runs out (30 s)
VENDOR_S = 20  #: how long a vendor is asked to spend on the company's servers at most
MAX_BODY = 64 * 1024  #: bytes; a documented answer has less than 2 KiB
_CONNECT_S = 5.0
_LONGEST_WORD = 24
_ACCOUNT = {401: "it does not know our key", 402: "our credit is used up", 403: "it refuses us"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """The result of one call."""

    status: VerifyStatus
    detail: str  #: our own words, with cleaned words of the vendor; never the key
    about_us: bool = False  #: about our key, credit or address, so other companies' calls would fail as well


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request. It holds the key, so its repr shows nothing."""

    method: str
    url: str = field(repr=False)
    params: dict[str, str] = field(default_factory=dict, repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    json: Any = field(default=None, repr=False)


class Vendor(Protocol):
    """How one vendor is asked, and how its answers are read. Both pure."""

    @property
    def name(self) -> str:
        """Return the vendor's name, as CT_TIER2_PROVIDER spells it."""

    @property
    def secret(self) -> str | None:
        """Return the key, which must not appear in anything that is kept."""

    def request(self, address: Address) -> Request:
        """Return the request for `address`."""

    def read(self, status: int, body: bytes, address: Address) -> Said:
        """Return what a response means. Anything undocumented counts as no usable answer."""


class VendorClient:
    """Asks one vendor."""

    def __init__(self, vendor: Vendor, *, timeout_s: float = CALL_S) -> None:
        self.vendor = vendor
        self._timeout_s = timeout_s

    async def ask(self, address: Address) -> Said:
        """Ask about `address`, once. Any trouble counts as no usable answer; only CancelledError is raised.

        Messages of the HTTP library are never passed on: they quote the URL, and the URL may hold the key.
        """
        vendor = self.vendor
        try:
            request = vendor.request(address)
            async with (
                asyncio.timeout(self._timeout_s),
                _session() as session,
                session.request(
                    request.method,
                    request.url,
                    params=request.params,
                    headers=request.headers,
                    json=request.json,
                    allow_redirects=False,
                ) as response,
            ):
                body = await _bounded(response)
                status = response.status
            if body is None:
                return no_answer(f"{vendor.name} sent more than {MAX_BODY} bytes")
            return self._without_secret(vendor.read(status, body, address))
        except aiohttp.ConnectionTimeoutError:
            return no_answer(f"{vendor.name} accepted no connection within {_CONNECT_S:g} s")
        except TimeoutError:
            return no_answer(f"no answer from {vendor.name} within {self._timeout_s:g} s")
        except Exception as error:
            return no_answer(f"the call to {vendor.name} failed: {_named(error)}")

    def _without_secret(self, said: Said) -> Said:
        secret = self.vendor.secret
        return replace(said, detail=said.detail.replace(secret, "***")) if secret else said


def no_answer(detail: str) -> Said:
    """Return that the call brought no usable answer."""
    return Said(status=VerifyStatus.NO_ANSWER, detail=detail)


def by_status(name: str, status: int) -> Said | None:
    """Return what an HTTP status other than 200 means; None for 200, because then the body counts."""
    if status == 200:
        return None
    if status in _ACCOUNT:
        return Said(
            status=VerifyStatus.NO_ANSWER, detail=f"{name} answers HTTP {status}: {_ACCOUNT[status]}", about_us=True
        )
    return no_answer(f"{name} answers HTTP {status}")


def json_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a body holds, or None."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def is_same_address(value: object, address: Address) -> bool:
    """Return whether a vendor that names an address in its answer names the one it was asked about."""
    return value is None or (isinstance(value, str) and value.strip().lower() == str(address).lower())


def cleaned(value: object, most: int = 60) -> str:
    """Return a vendor's text as a transcript may hold it: anything but plain letters and digits becomes a space.

    Words of more than 24 characters are dropped: no documented word is so long, but a key may be.
    """
    if not isinstance(value, str):
        return ""
    words = re.sub(r"[^A-Za-z0-9_.-]+", " ", value[:500]).split()
    return " ".join(word for word in words if len(word) <= _LONGEST_WORD)[:most]


class _ConnectsOnce(aiohttp.TCPConnector):
    """Refuses a second connection, which would pay twice.

    aiohttp repeats a GET by itself when the server hangs up, and has no setting to prevent it
    (https://github.com/aio-libs/aiohttp/issues/10790).
    """

    _connected = False

    async def connect(self, *args: Any, **kwargs: Any) -> Any:
        """Connect, the first time."""
        if self._connected:
            raise aiohttp.ClientConnectionError("asked once already")
        self._connected = True
        return await super().connect(*args, **kwargs)


def _session() -> aiohttp.ClientSession:
    """Return a session for one request."""
    return aiohttp.ClientSession(
        connector=_ConnectsOnce(resolver=aiohttp.ThreadedResolver(), force_close=True),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "ct-stream"},
        auto_decompress=False,  # 64 KiB stay 64 KiB
        trust_env=False,  # no proxy of the environment sees the key
    )


async def _bounded(response: aiohttp.ClientResponse) -> bytes | None:
    body = bytearray()
    async for chunk in response.content.iter_chunked(8192):
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return bytes(body)


def _named(error: Exception) -> str:
    """Return what failed, without the library's sentence."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return "its TLS certificate is not trusted, or TLS failed"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, socket.gaierror):
        return "its name has no address"
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno).lower()
    return type(error).__name__
