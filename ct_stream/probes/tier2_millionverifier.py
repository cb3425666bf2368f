"""Asks MillionVerifier about an address, and reads its answers.

Single API v3: `GET https://api.millionverifier.com/api/v3/?api=KEY&email=...&timeout=...`, the key in the query,
`timeout` 2 to 60 s for the recipient's server (https://developer.millionverifier.com/). Even a refusal comes with
status 200: then `result` is `error` and `error` says why. What the results mean:
https://help.millionverifier.com/email-verification/email-verification-results
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from ct_stream.gate.questions import VerifyStatus
from ct_stream.probes.vendor_client import (
    VENDOR_S,
    Request,
    Said,
    by_status,
    cleaned,
    is_same_address,
    json_object,
    no_answer,
)

if TYPE_CHECKING:
    from ct_stream.gate.patterns import Address

URL = "https://api.millionverifier.com/api/v3/"

#: result -> (resultcode, meaning, the vendor's own explanation)
_RESULTS = {
    "ok": (1, VerifyStatus.VALID, "the address exists"),
    "catch_all": (2, VerifyStatus.CATCH_ALL, "the server is set to accept all mail"),
    # Final for this one attempt: "we couldn't determine whether the email address exists".
    "unknown": (3, VerifyStatus.INVALID, "whether the address exists could not be determined"),
    "disposable": (5, VerifyStatus.INVALID, "a temporary address, not safe to send to"),
    "invalid": (6, VerifyStatus.INVALID, "the address does not exist"),
}
#: Words in its errors that are about our account (its demo keys API_KEY_FOR_ERROR_... name them), and our words for it.
_ABOUT_US = (
    (("apikey", "api key", "api_key"), "it does not know our key"),
    (("credit",), "our credit is used up"),
    (("ip address", "ip_address", "blocked"), "it blocks our address"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MillionVerifier:
    """The vendor behind CT_TIER2_PROVIDER=millionverifier."""

    secret: str = field(repr=False)  #: the API key
    url: str = URL
    name: ClassVar[str] = "millionverifier"

    def request(self, address: Address) -> Request:
        """Return the request for `address`, with the key where the vendor wants it."""
        return Request(
            method="GET", url=self.url, params={"api": self.secret, "email": str(address), "timeout": str(VENDOR_S)}
        )

    def read(self, status: int, body: bytes, address: Address) -> Said:
        """Return what a response means. A result that contradicts itself is no usable answer."""
        refused = by_status(self.name, status)
        if refused is not None:
            return refused
        answer = json_object(body)
        if answer is None or not isinstance(answer.get("result"), str):
            return no_answer(f"{self.name} sent an answer that its documentation does not describe")
        result, error = answer["result"], answer.get("error")
        if result == "error" or error:
            return self._error(error)
        if answer.get("livemode") is False:
            # A test key returns made-up results; not one company may be decided by them.
            return Said(
                status=VerifyStatus.NO_ANSWER,
                detail=f"{self.name} answers in test mode; set CT_TIER2_API_KEY to a live key",
                about_us=True,
            )
        known = _RESULTS.get(result)
        code = answer.get("resultcode")
        if known is None or code not in (None, known[0]) or isinstance(code, bool):
            return no_answer(f"{self.name} sent an unknown result: {cleaned(result)} {cleaned(str(code))}".rstrip())
        if not is_same_address(answer.get("email"), address):
            return no_answer(f"{self.name} answered about a different address")
        subresult = cleaned(answer.get("subresult"))
        said = f"{result}, {subresult}" if subresult and subresult != result else result
        return Said(status=known[1], detail=f"{self.name} says {said}: {known[2]}")

    def _error(self, error: object) -> Said:
        text = error.lower() if isinstance(error, str) else ""
        for words, meaning in _ABOUT_US:
            if any(word in text for word in words):
                return Said(
                    status=VerifyStatus.NO_ANSWER, detail=f"{self.name} answers with an error: {meaning}", about_us=True
                )
        return no_answer(f"{self.name} answers with an error: {cleaned(error) or 'not named'}")
