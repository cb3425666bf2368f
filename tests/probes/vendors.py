"""A vendor's HTTP server on loopback that counts what it was asked, and says what it was told to say."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from ssl import SSLContext

KEY = "k3y-that-nobody-may-see-0123456789"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One HTTP response. A negative status hangs up after the request was read."""

    status: int = 200
    body: bytes = b""
    delay_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


def millionverifier(result: str, email: str, /, **changed: Any) -> Answer:
    """Return the documented answer (https://developer.millionverifier.com/), for `result`."""
    codes = {"ok": 1, "catch_all": 2, "unknown": 3, "error": 4, "disposable": 5, "invalid": 6}
    body = {
        "email": email,
        "quality": {"ok": "good", "invalid": "bad", "disposable": "bad"}.get(result, ""),
        "result": result,
        "resultcode": codes[result],
        "subresult": result,
        "free": False,
        "role": True,
        "didyoumean": "",
        "credits": 3454,
        "executiontime": 2,
        "error": "",
        "livemode": True,
    }
    return Answer(body=orjson.dumps(body | changed))


def reacher(reachable: str, email: str, smtp: dict[str, Any], /, **changed: Any) -> Answer:
    """Return the documented answer (backend/openapi.json of check-if-email-exists)."""
    details = {
        "can_connect_smtp": True,
        "has_full_inbox": False,
        "is_catch_all": False,
        "is_deliverable": reachable in ("safe", "risky"),
        "is_disabled": False,
    }
    body = {
        "input": email,
        "is_reachable": reachable,
        "misc": {"is_disposable": False, "is_role_account": email.startswith("info@")},
        "mx": {"accepts_mail": True, "records": ["mx1.acme.example."]},
        "smtp": smtp if "error" in smtp else details | smtp,
        "syntax": {"domain": email.partition("@")[2], "is_valid_syntax": True, "username": email.partition("@")[0]},
    }
    return Answer(body=orjson.dumps(body | changed))


class VendorServer:
    """Serves both vendors' endpoints; `answer` gives the response about an address."""

    def __init__(self, answer: Callable[[str], Answer | Awaitable[Answer]], *, tls: SSLContext | None = None) -> None:
        self.answer = answer
        self.asked: Counter[str] = Counter()  #: requests by address
        self.requests: list[web.BaseRequest] = []
        self._tls = tls
        self.running = 0
        self.most_running = 0

    async def __aenter__(self) -> VendorServer:
        self._runner = web.ServerRunner(web.Server(self._handle, access_log=None))
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        assert site._server is not None
        self.port: int = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        scheme = "https" if self._tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        if request.method == "POST":
            email = orjson.loads(await request.read())["to_email"]
        else:
            email = request.query.get("email", "")
        self.asked[email] += 1
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            said = self.answer(email)
            answer = said if isinstance(said, Answer) else await said
            await asyncio.sleep(answer.delay_s)
        finally:
            self.running -= 1
        if answer.status < 0:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=abs(answer.status), body=answer.body, headers=answer.headers)
