"""Asks a self-hosted Reacher (check-if-email-exists) about an address, and reads its answers.

`POST /v1/check_email` (or the older `/v0/check_email`, same input and output) with `{"to_email": ...}` and, if the
back end has a `header_secret`, the header `x-reacher-secret` (backend/openapi.json and backend/src/http/mod.rs in
https://github.com/reacherhq/check-if-email-exists). `is_reachable` is explained at
https://docs.reacher.email/getting-started/is-reachable
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ct_stream.gate.questions import VerifyStatus
from ct_stream.probes.vendor_client import Request, Said, by_status, cleaned, is_same_address, json_object, no_answer

if TYPE_CHECKING:
    from ct_stream.gate.patterns import Address

_SECRET_HEADER = "x-reacher-secret"
_REACHABLE = ("safe", "risky", "invalid", "unknown")
#: `smtp.error.type` if the back end could not talk to the company's server. Its FAQ: "in most cases [unknown] happens
#: on timeout, when port 25 is closed" (https://help.reacher.email/faq). So the fault may be its network, which is ours.
_ITS_NETWORK = ("timeout", "socks", "ioerror", "io")
#: `smtp.description`: the back end's own address is refused (core/src/smtp/error.rs).
_ITS_ADDRESS = {"IpBlacklisted": "its address is on a blocklist", "NeedsRDNS": "its address has no reverse DNS"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reacher:
    """The vendor behind CT_TIER2_PROVIDER=reacher; `url` is the whole endpoint."""

    url: str
    secret: str | None = field(default=None, repr=False)
    name: ClassVar[str] = "reacher"

    def request(self, address: Address) -> Request:
        """Return the request for `address`."""
        headers = {_SECRET_HEADER: self.secret} if self.secret else {}
        return Request(method="POST", url=self.url, headers=headers, json={"to_email": str(address)})

    def read(self, status: int, body: bytes, address: Address) -> Said:
        """Return what a response means. `risky` alone says nothing: to Reacher every role account is risky."""
        # A wrong secret is a plain 400 that names the header (warp::header::exact).
        if status == 400 and _SECRET_HEADER.encode() in body[:1000].lower():
            return Said(
                status=VerifyStatus.NO_ANSWER,
                detail=f"{self.name} answers HTTP 400: it does not accept our {_SECRET_HEADER}; check CT_TIER2_API_KEY",
                about_us=True,
            )
        refused = by_status(self.name, status)
        if refused is not None:
            return refused
        answer = json_object(body)
        reachable = answer.get("is_reachable") if answer is not None else None
        if answer is None or reachable not in _REACHABLE:
            return no_answer(f"{self.name} sent an answer that its documentation does not describe")
        if not is_same_address(answer.get("input"), address):
            return no_answer(f"{self.name} answered about a different address")
        match reachable:
            case "safe":
                return self._said(VerifyStatus.VALID, "safe: very likely to be delivered")
            case "invalid":
                return self._said(VerifyStatus.INVALID, "invalid: will almost certainly not be delivered")
            case "risky":
                return self._risky(answer)
        return self._unknown(answer)

    def _risky(self, answer: dict[str, Any]) -> Said:
        """Read what makes an address risky from the details (core/src/lib.rs, `calculate_reachable`)."""
        smtp, misc = answer.get("smtp"), answer.get("misc")
        facts = ("is_deliverable", "is_catch_all", "is_disabled", "has_full_inbox")
        if not isinstance(smtp, dict) or not all(isinstance(smtp.get(fact), bool) for fact in facts):
            return no_answer(f"{self.name} says risky without saying why")
        if isinstance(misc, dict) and misc.get("is_disposable") is True:
            return self._said(VerifyStatus.INVALID, "risky: a temporary address")
        if smtp["is_catch_all"]:
            return self._said(VerifyStatus.CATCH_ALL, "risky: the domain accepts all addresses")
        if smtp["has_full_inbox"]:
            return self._said(VerifyStatus.INVALID, "risky: the inbox is full")
        if smtp["is_disabled"] or not smtp["is_deliverable"]:
            return self._said(VerifyStatus.INVALID, "risky: not deliverable")
        if isinstance(misc, dict) and misc.get("is_role_account") is True:
            return self._said(VerifyStatus.VALID, "risky only because it is a role account: deliverable")
        return no_answer(f"{self.name} says risky without saying why")

    def _unknown(self, answer: dict[str, Any]) -> Said:
        smtp, mx = answer.get("smtp"), answer.get("mx")
        smtp = smtp if isinstance(smtp, dict) else {}
        error = smtp.get("error")
        kind = cleaned(error.get("type")) if isinstance(error, dict) else ""
        own = _ITS_ADDRESS.get(cleaned(smtp.get("description")))
        if own is not None:
            return no_answer(f"{self.name} says unknown: {own}")
        if isinstance(mx, dict) and "error" in mx:
            return no_answer(f"{self.name} says unknown: its resolver failed")
        if kind.lower().startswith(_ITS_NETWORK):
            return no_answer(f"{self.name} says unknown: it did not reach the server ({kind}); is its port 25 open?")
        # The company's server lets nobody find out, so this answer is final.
        return self._said(VerifyStatus.INVALID, f"unknown: the server lets nobody verify it ({kind or 'no error'})")

    def _said(self, status: VerifyStatus, words: str) -> Said:
        return Said(status=status, detail=f"{self.name} says {words}")
