"""What a vendor's answers mean; and that one question is one request, to one host, that shows its key to nobody."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING

import orjson
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from ct_stream.gate.patterns import Address
from ct_stream.gate.questions import VerifyStatus
from ct_stream.probes.tier2_millionverifier import MillionVerifier
from ct_stream.probes.tier2_reacher import Reacher
from ct_stream.probes.tier2_vendors import make_vendor
from ct_stream.probes.vendor_client import MAX_BODY, Said, VendorClient
from tests.probes.vendors import KEY, Answer, VendorServer, millionverifier, reacher

if TYPE_CHECKING:
    from collections.abc import Callable

    from ct_stream.probes.vendor_client import Vendor

EMAIL = "info@acme.example"
FINE = b'{"result": "ok", "is_reachable": "safe"}'
INFO = Address(local_part="info", domain="acme.example")
VALID, CATCH_ALL, INVALID, NO_ANSWER = VerifyStatus
VENDORS = [pytest.param("millionverifier", id="millionverifier"), pytest.param("reacher", id="reacher")]


async def asked(provider: str, answer: Answer | Callable[[str], Answer], **client: float) -> Said:
    async with VendorServer(answer if callable(answer) else lambda _: answer) as server:
        vendor = make_vendor(provider, server.url, KEY)
        assert vendor is not None
        said = await VendorClient(vendor, **client).ask(INFO)
        assert server.asked == {EMAIL: 1}, "asked once, and about that address"
    assert KEY not in repr(said)
    return said


# ---------------------------------------------------------------- what the answers mean


@pytest.mark.parametrize(
    ("answer", "status", "about_us"),
    [
        pytest.param(millionverifier("ok", EMAIL), VALID, False, id="ok"),
        pytest.param(millionverifier("catch_all", EMAIL), CATCH_ALL, False, id="catch-all"),
        pytest.param(millionverifier("invalid", EMAIL), INVALID, False, id="invalid"),
        pytest.param(millionverifier("disposable", EMAIL), INVALID, False, id="disposable"),
        pytest.param(millionverifier("unknown", EMAIL), INVALID, False, id="its final unknown"),
        pytest.param(millionverifier("error", EMAIL, error="Apikey not found"), NO_ANSWER, True, id="wrong key"),
        pytest.param(millionverifier("error", EMAIL, error="Insufficient credits"), NO_ANSWER, True, id="no credit"),
        pytest.param(millionverifier("error", EMAIL, error="IP address blocked"), NO_ANSWER, True, id="blocked"),
        pytest.param(millionverifier("error", EMAIL, error="Internal error"), NO_ANSWER, False, id="internal error"),
        pytest.param(millionverifier("ok", EMAIL, error="Internal error"), NO_ANSWER, False, id="ok and an error"),
        pytest.param(millionverifier("ok", EMAIL, livemode=False), NO_ANSWER, True, id="a test key's made-up ok"),
        pytest.param(millionverifier("ok", EMAIL, resultcode=6), NO_ANSWER, False, id="code and word differ"),
        pytest.param(millionverifier("ok", EMAIL, resultcode=True), NO_ANSWER, False, id="code of another type"),
        pytest.param(millionverifier("ok", "info@other.example"), NO_ANSWER, False, id="another address"),
        pytest.param(millionverifier("ok", EMAIL, result="fine"), NO_ANSWER, False, id="unknown result"),
        pytest.param(millionverifier("ok", EMAIL, result=["ok"]), NO_ANSWER, False, id="result of another type"),
    ],
)
async def test_millionverifiers_documented_answers(answer: Answer, status: VerifyStatus, about_us: bool) -> None:
    said = await asked("millionverifier", answer)
    assert (said.status, said.about_us) == (status, about_us), said.detail
    assert said.detail.startswith("millionverifier ")


TIMED_OUT = {"error": {"type": "TimeoutError", "message": "future timed out"}}
BLOCKLISTED = {"error": {"type": "SmtpError", "message": "554 5.7.1 blocked"}, "description": "IpBlacklisted"}
GREYLISTED = {"error": {"type": "SmtpError", "message": "transient: 450 greylisted"}}


@pytest.mark.parametrize(
    ("answer", "status", "about_us"),
    [
        pytest.param(reacher("safe", EMAIL, {}), VALID, False, id="safe"),
        pytest.param(reacher("invalid", EMAIL, {}), INVALID, False, id="invalid"),
        pytest.param(reacher("risky", EMAIL, {"is_catch_all": True}), CATCH_ALL, False, id="catch-all"),
        pytest.param(reacher("risky", EMAIL, {}), VALID, False, id="a deliverable role account"),
        pytest.param(reacher("risky", EMAIL, {"is_deliverable": False}), INVALID, False, id="a role that is not there"),
        pytest.param(reacher("risky", EMAIL, {"is_disabled": True}), INVALID, False, id="a disabled role"),
        pytest.param(reacher("risky", EMAIL, {"has_full_inbox": True}), INVALID, False, id="full"),
        pytest.param(
            reacher("risky", EMAIL, {}, misc={"is_disposable": True, "is_role_account": False}), INVALID, False,
            id="disposable",
        ),
        pytest.param(reacher("risky", EMAIL, {}, misc={"error": {}}), NO_ANSWER, False, id="risky, not why"),
        pytest.param(reacher("risky", EMAIL, {"is_catch_all": "yes"}), NO_ANSWER, False, id="a fact of another type"),
        pytest.param(reacher("unknown", EMAIL, GREYLISTED), INVALID, False, id="its final unknown"),
        pytest.param(reacher("unknown", EMAIL, TIMED_OUT), NO_ANSWER, False, id="its port 25 may be closed"),
        pytest.param(reacher("unknown", EMAIL, BLOCKLISTED), NO_ANSWER, False, id="its address is blocklisted"),
        pytest.param(reacher("safe", "info@other.example", {}), NO_ANSWER, False, id="another address"),
        pytest.param(reacher("safe", EMAIL, {}, is_reachable="maybe"), NO_ANSWER, False, id="another word"),
        pytest.param(
            Answer(status=400, body=b'Invalid request header "x-reacher-secret"'), NO_ANSWER, True, id="wrong secret"
        ),
        pytest.param(Answer(status=400, body=b'{"error": "to_email"}'), NO_ANSWER, False, id="another 400"),
    ],
)  # fmt: skip
async def test_reachers_documented_answers(answer: Answer, status: VerifyStatus, about_us: bool) -> None:
    said = await asked("reacher", answer)
    assert (said.status, said.about_us) == (status, about_us), said.detail
    assert said.detail.startswith("reacher ")


@pytest.mark.parametrize("provider", VENDORS)
@pytest.mark.parametrize(
    ("answer", "about_us"),
    [
        *(pytest.param(Answer(status=status), True, id=str(status)) for status in (401, 402, 403)),
        *(pytest.param(Answer(status=status), False, id=str(status)) for status in (204, 404, 408, 429, 500, 503)),
        pytest.param(Answer(body=b""), False, id="nothing"),
        pytest.param(Answer(body=b"<html>fine</html>"), False, id="html"),
        pytest.param(Answer(body=b"[" * 100_000), False, id="nested deeply"),
        pytest.param(Answer(body=b'["ok"]'), False, id="no object"),
        pytest.param(Answer(body=FINE[:-1] + b" " * MAX_BODY + b"}"), False, id="long"),
        pytest.param(
            Answer(
                body=gzip.compress(b'{"result": "ok", "is_reachable": "safe"}'), headers={"Content-Encoding": "gzip"}
            ),
            False,
            id="compressed",
        ),
        pytest.param(Answer(status=-1), False, id="hangs up"),
    ],
)
async def test_an_undocumented_answer_is_no_answer(provider: str, answer: Answer, about_us: bool) -> None:
    said = await asked(provider, answer)
    assert (said.status, said.about_us) == (NO_ANSWER, about_us), said.detail


@pytest.mark.parametrize(
    "vendor", [MillionVerifier(secret=KEY), Reacher(secret=KEY, url="http://127.0.0.1:1/v1/check_email")]
)
@given(status=st.sampled_from([200, 200, 200, 400, 500]), body=st.binary(max_size=400))
def test_arbitrary_bytes_never_decide_a_company(vendor: Vendor, status: int, body: bytes) -> None:
    said = vendor.read(status, body, INFO)
    assert said.status is NO_ANSWER
    assert said.detail.isprintable()


WORDS = st.sampled_from(
    ["ok", "safe", "risky", "unknown", "result", "is_reachable", "resultcode", "smtp", "misc", "mx", "email", "input"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 7) | st.floats() | st.text(max_size=5) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=5),
    max_leaves=12,
)


@pytest.mark.parametrize(
    "vendor", [MillionVerifier(secret=KEY), Reacher(secret=KEY, url="http://127.0.0.1:1/v1/check_email")]
)
@given(value=JSON)
def test_arbitrary_json_is_read_without_an_exception(vendor: Vendor, value: object) -> None:
    said = vendor.read(200, orjson.dumps(value), INFO)
    assert said.detail.isprintable()
    if not isinstance(value, dict) or not {"result", "is_reachable"} & set(value):
        assert said.status is NO_ANSWER


# ---------------------------------------------------------------- one request, one host, one key


async def test_each_vendor_is_asked_as_it_documents() -> None:
    async with VendorServer(lambda _: Answer()) as server:
        for provider in ("millionverifier", "reacher"):
            vendor = make_vendor(provider, server.url, KEY)
            assert vendor is not None
            await VendorClient(vendor).ask(INFO)
    single, check = server.requests
    assert (single.method, single.path) == ("GET", "/api/v3/")
    assert dict(single.query) == {"api": KEY, "email": EMAIL, "timeout": "20"}
    assert (check.method, check.path, check.headers["x-reacher-secret"]) == ("POST", "/v1/check_email", KEY)
    assert "Cookie" not in check.headers


async def test_an_endpoint_that_is_named_is_taken_as_it_is() -> None:
    vendor = make_vendor("reacher", "http://127.0.0.1:8080/v0/check_email", None)
    assert isinstance(vendor, Reacher)
    assert vendor.url == "http://127.0.0.1:8080/v0/check_email"
    assert vendor.request(INFO).headers == {}
    assert make_vendor("none", None, None) is None


@pytest.mark.parametrize("provider", VENDORS)
async def test_a_redirect_is_not_followed(provider: str) -> None:
    async with VendorServer(lambda _: millionverifier("ok", EMAIL)) as elsewhere:
        for status in (301, 302, 307, 308):
            said = await asked(provider, Answer(status=status, headers={"Location": elsewhere.url}))
            assert said.status is NO_ANSWER
            assert str(status) in said.detail
        assert not elsewhere.requests


async def test_a_vendor_that_is_slow_is_left_in_time() -> None:
    said = await asked("millionverifier", Answer(delay_s=5.0), timeout_s=0.2)
    assert said == Said(status=NO_ANSWER, detail="no answer from millionverifier within 0.2 s")


async def test_a_body_without_end_is_left_in_time() -> None:
    hung_up = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with suppress(ConnectionError):
            while not reader.at_eof():
                writer.write(b"1\r\n \r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        hung_up.set()

    server = await asyncio.start_server(drip, "127.0.0.1", 0)
    vendor = MillionVerifier(secret=KEY, url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    async with server:
        assert (await VendorClient(vendor, timeout_s=0.3).ask(INFO)).status is NO_ANSWER
        await asyncio.wait_for(hung_up.wait(), 10)


RAW = [
    pytest.param(b"", id="nothing"),
    pytest.param(b"\x00\xff\r\n\r\n", id="garbage"),
    pytest.param(b"HTTP/1.1 abc OK\r\n\r\n" + FINE, id="no status"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n" + FINE, id="cut off"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\n\r\n" + FINE, id="a long header"),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + FINE, id="broken chunks"),
    pytest.param(b"220 mx.acme.example ESMTP\r\n", id="a mail server"),
]


@pytest.mark.parametrize("provider", VENDORS)
@pytest.mark.parametrize("raw", RAW)
async def test_what_is_no_http_is_no_answer_and_is_not_asked_again(provider: str, raw: bytes) -> None:
    connections = 0
    hung_up = asyncio.Event()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()
        hung_up.set()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    vendor = make_vendor(provider, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", KEY)
    assert vendor is not None
    async with server:
        said = await VendorClient(vendor, timeout_s=2.0).ask(INFO)
        await asyncio.wait_for(hung_up.wait(), 10)
    assert said.status is NO_ANSWER
    assert KEY not in said.detail
    assert connections == 1


async def test_a_certificate_that_nobody_vouches_for_ends_the_call() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with VendorServer(lambda _: millionverifier("ok", EMAIL), tls=context) as server:
        said = await VendorClient(MillionVerifier(secret=KEY, url=f"{server.url}/api/v3/")).ask(INFO)
        assert not server.requests
    assert said == Said(
        status=NO_ANSWER, detail="the call to millionverifier failed: its TLS certificate is not trusted, or TLS failed"
    )


@pytest.mark.parametrize(
    ("url", "words"),
    [
        pytest.param("http://127.0.0.1:1/", "connection refused", id="refused"),
        pytest.param("http://vendor.invalid/", "its name has no address", id="no address"),
    ],
)
async def test_a_vendor_that_is_away_is_named_without_the_key(url: str, words: str) -> None:
    said = await VendorClient(MillionVerifier(secret=KEY, url=url)).ask(INFO)
    assert said == Said(status=NO_ANSWER, detail=f"the call to millionverifier failed: {words}")


@pytest.mark.parametrize("provider", VENDORS)
async def test_the_key_is_shown_to_nobody_even_if_the_vendor_repeats_it(
    provider: str, caplog: pytest.LogCaptureFixture
) -> None:
    bodies = [
        millionverifier("error", EMAIL, error=f"Apikey {KEY} not found").body,
        millionverifier("error", EMAIL, error=f"odd {KEY} {KEY[:12]} odd").body,
        millionverifier("ok", EMAIL, subresult=KEY).body,
        millionverifier("ok", EMAIL, result=KEY).body,
        reacher("unknown", EMAIL, {"error": {"type": KEY}}).body,
        KEY.encode(),
    ]
    with caplog.at_level(logging.DEBUG):
        for body in bodies:
            await asked(provider, Answer(body=body))
            await asked(provider, Answer(status=401, body=body))
        await asked(provider, Answer(status=-1))
    vendor = make_vendor(provider, "http://127.0.0.1:1", KEY)
    assert vendor is not None
    assert KEY not in repr(vendor) + repr(vendor.request(INFO)) + caplog.text


async def test_a_bug_of_ours_is_no_answer_and_names_no_value() -> None:
    class Broken(MillionVerifier):
        def read(self, status: int, body: bytes, address: Address) -> Said:
            raise KeyError(self.secret, status, body, address)

    async with VendorServer(lambda _: Answer()) as server:
        vendor = Broken(secret=KEY, url=server.url)
        said = await VendorClient(vendor).ask(INFO)
    assert said == Said(status=NO_ANSWER, detail="the call to millionverifier failed: KeyError")
