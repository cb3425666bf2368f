"""What real servers and resolvers answer comes out as it should, through `ct-stream check`."""

from __future__ import annotations

import smtplib
from typing import TYPE_CHECKING, Any

import pytest

from ct_stream.gate.replies import Meaning, Stage, read_reply
from ct_stream.probes.smtp import read_wire
from tests.mta.exim import IP as EXIM

if TYPE_CHECKING:
    from tests.mta.conftest import Lab

PASS_INFO = {"outcome": "PASS", "method_type": "info", "confidence_score": 0.7, "is_catchall": False}
CATCH_ALL = {"outcome": "PASS", "method_type": "first.last", "confidence_score": 0.5, "is_catchall": True}
NO_PATTERN = {"outcome": "FAIL", "failure_code": "CT-M-NO-PATTERN"}
NO_MX = {"outcome": "FAIL", "failure_code": "CT-M-NO-MX"}
SMTP_FAIL = {"outcome": "FAIL", "failure_code": "CT-M-SMTP-FAIL"}
HELD = {"outcome": "HELD"}
NOBODY = {"CT_SMTP_MAIL_FROM": "probe@nowhere.lab.example"}  # a sender whose domain does not exist


@pytest.mark.parametrize(
    ("domain", "settings", "expected", "words"),
    [
        # Postfix
        ("plain.lab.example", {}, PASS_INFO, ""),
        ("v6.lab.example", {}, PASS_INFO, ""),
        ("tls.lab.example", {}, PASS_INFO, ""),
        ("nobody.lab.example", {}, NO_PATTERN, "refused all 8 patterns"),
        ("catchall.lab.example", {}, CATCH_ALL, ""),
        ("postscreen.lab.example", {}, PASS_INFO, ""),
        ("postgrey.lab.example", {}, SMTP_FAIL, "greylisted"),
        ("verify.lab.example", {}, PASS_INFO, ""),
        ("verify450.lab.example", {}, PASS_INFO, "it is not known whether a random mailbox is refused"),
        ("limits.lab.example", {}, PASS_INFO, ""),
        ("full.lab.example", {}, SMTP_FAIL, "mailbox full"),
        ("norelay.lab.example", {}, SMTP_FAIL, "Relay access denied"),
        # Refusals of us: a company's own server decides for itself, a shared one holds the company.
        ("client.lab.example", {}, SMTP_FAIL, "our address is refused"),
        ("list.lab.example", {}, SMTP_FAIL, "our address is listed"),
        ("sender.lab.example", {}, PASS_INFO, ""),
        ("sender.lab.example", NOBODY, SMTP_FAIL, "sender"),
        ("tenant.example", {}, HELD, "Client host rejected"),
        ("list.lab.example", {"CT_CONTROL_DOMAINS": "client.lab.example"}, HELD, "list.lab.example"),
        # Exim as Debian ships it
        ("exim.lab.example", {}, PASS_INFO, ""),
        ("exim.lab.example", NOBODY, SMTP_FAIL, "sender"),
        # DNS
        ("nullmx.lab.example", {}, NO_MX, "null MX"),
        ("nowhere.lab.example", {}, NO_MX, "NXDOMAIN"),
        ("txtonly.lab.example", {}, NO_MX, "no MX records"),
        ("addressonly.lab.example", {}, NO_MX, "no MX records"),
        ("big.lab.example", {}, PASS_INFO, ""),
        ("signed.example", {}, PASS_INFO, ""),
        ("bogus.example", {}, SMTP_FAIL, "SERVFAIL"),
        ("lame.lab.example", {}, SMTP_FAIL, "SERVFAIL"),
        ("plain.lab.example", {"CT_DNS_SERVERS": "127.66.0.55:53"}, HELD, "REFUSED"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith("example") else "",
)
def test_a_domain_comes_out_as_it_should(
    lab: Lab, domain: str, settings: dict[str, str], expected: dict[str, object], words: str
) -> None:
    answer = lab.check(domain, **settings)
    assert {key: answer[key] for key in expected} == expected, (answer, lab.log("postfix/postfix.maillog")[-2000:])
    assert words in (answer["reason"] or "")


def attempts(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [attempt for asked in answer["transcript"] for attempt in asked["answer"].get("attempts", ())]


def test_a_server_that_ends_the_session_after_some_errors_is_asked_on_over_a_new_one(lab: Lab) -> None:
    answer = lab.check("limits.lab.example")
    replies = [attempt["reply"]["code"] for attempt in attempts(answer)]
    assert 421 in replies, "the hard error limit was not met"
    asked = [asked for asked in answer["transcript"] if asked["key"].startswith("rcpt:")]
    assert len(asked) == 8
    assert [a["answer"]["attempts"][-1]["reply"]["code"] for a in asked] == [*[550] * 6, 250, 550]


def test_postscreen_that_wants_to_see_a_client_again_is_inconclusive_at_first(lab: Lab) -> None:
    first = lab.check("deep.lab.example")
    assert (first["failure_code"], attempts(first)[-1]["reply"]["code"]) == ("CT-M-SMTP-FAIL", 450)
    assert lab.check("deep.lab.example")["method_type"] == "info"


def test_what_is_said_over_tls_is_encrypted_whoever_signed_the_certificate(lab: Lab) -> None:
    lab.check("tls.lab.example")
    assert "Anonymous TLS connection established from" in lab.log("postfix/postfix.maillog")
    lab.check("exim.lab.example")
    assert "X=TLS1." in lab.log("exim/log/rejectlog")


def test_exims_denial_of_all_recipients_after_too_many_says_nothing_about_one(lab: Lab) -> None:
    with smtplib.SMTP(EXIM, lab.port, "gate.lab.example", timeout=20) as session:
        session.ehlo()
        session.mail("probe@gate.lab.example")
        codes = [session.rcpt(f"nobody{n}@exim.lab.example") for n in range(10)]
        code, text = session.rcpt("info@exim.lab.example")
    assert {code for code, _ in codes} == {550}
    reading = read_reply(Stage.RCPT, read_wire(code, text.decode()))
    assert b"too many bad recipients" in text
    assert reading.meaning is Meaning.INCONCLUSIVE
    assert reading.is_session_limit
