"""What is kept of a pass, and what our own trouble makes void."""

from __future__ import annotations

import pytest

from ct_stream.gate.evidence import without_trouble
from ct_stream.gate.questions import (
    Answer,
    ControlAnswer,
    MailboxAnswer,
    MxAnswer,
    MxStatus,
    SpineAnswer,
    Trouble,
    VerifyAnswer,
    VerifyStatus,
)
from ct_stream.gate.replies import Stage
from ct_stream.gate.transcript import Exchange, from_json, to_json, tools_used
from tests.gate.world import GREY, NO, YES, mx, said, trouble

SPINE = Exchange(key="spine", answer=SpineAnswer(found=True, domain="acme.example"))
MX = Exchange(key="mx", answer=mx())


def kept_keys(*exchanges: Exchange) -> list[str]:
    return [exchange.key for exchange in without_trouble(exchanges)]


def test_answers_before_the_trouble_are_kept() -> None:
    first, second = Exchange(key="rcpt:first.last", answer=NO), Exchange(key="rcpt:firstlast", answer=GREY)
    timed_out = Exchange(key="rcpt:f.last", answer=trouble(Trouble.TIMEOUT, stage=Stage.RCPT))
    assert kept_keys(SPINE, MX, first, second, timed_out) == ["spine", "mx", "rcpt:first.last", "rcpt:firstlast"]


@pytest.mark.parametrize(
    "answer",
    [
        MxAnswer(status=MxStatus.NXDOMAIN),
        MxAnswer(status=MxStatus.NO_RECORDS),
        MxAnswer(status=MxStatus.UNAVAILABLE),
        MxAnswer(status=MxStatus.CUT_OFF),
    ],
)
def test_an_absence_seen_in_our_own_trouble_is_void(answer: MxAnswer) -> None:
    assert kept_keys(SPINE, Exchange(key="mx", answer=answer)) == ["spine"]


def test_a_first_host_in_trouble_does_not_matter_when_the_second_answered_rcpt() -> None:
    both = MailboxAnswer(attempts=(*trouble(Trouble.TIMEOUT).attempts, *NO.attempts))
    assert kept_keys(SPINE, MX, Exchange(key="rcpt:first.last", answer=both)) == ["spine", "mx", "rcpt:first.last"]


def test_a_refusing_banner_after_a_timeout_is_void_with_it() -> None:
    banner = said(554, "", "no", stage=Stage.BANNER)
    both = MailboxAnswer(attempts=(*trouble(Trouble.TIMEOUT).attempts, *banner.attempts))
    assert kept_keys(SPINE, MX, Exchange(key="rcpt:first.last", answer=both)) == ["spine", "mx"]


def test_a_control_is_not_kept_when_what_it_proved_is_void() -> None:
    control = Exchange(key="control:dns", answer=ControlAnswer(detail="works"))
    assert kept_keys(SPINE, MX, control) == ["spine", "mx"]


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        ("spine", SpineAnswer(found=True, domain="")),
        ("spine", SpineAnswer(found=True, domain=None)),
        ("spine", SpineAnswer(found=False)),
        ("mx", mx("a.example", "b.example")),
        (
            "rcpt:info",
            MailboxAnswer(attempts=(*trouble(Trouble.TIMEOUT).attempts, *YES.attempts), is_private_policy=True),
        ),
        ("control:smtp", ControlAnswer(detail="control.example greets")),
        ("verify", VerifyAnswer(status=VerifyStatus.NO_ANSWER, detail="timeout")),
    ],
)
def test_an_exchange_survives_its_json(key: str, answer: Answer) -> None:
    exchange = Exchange(key=key, answer=answer, asked="acme.example", at="2026-01-07T09:30:00.000Z")
    assert from_json(to_json([exchange])) == [exchange]


def test_an_answer_set_aside_is_refused_by_a_version_that_does_not_know_of_such() -> None:
    """It would take it for one that counts, and fail the company by it."""
    aside = Exchange(key="rcpt:info", asked="info@acme.example", answer=NO, aside=True)
    [value] = to_json([aside])
    assert from_json([value]) == [aside]
    assert value["key"].partition(":")[0] not in ("spine", "mx", "rcpt", "control", "verify")


def test_controls_are_no_tools() -> None:
    control = Exchange(key="control:dns", answer=ControlAnswer(detail="works"))
    probe = Exchange(key="rcpt:info", answer=NO)
    assert tools_used([SPINE, MX, control, probe]) == ["TOOL-004", "TOOL-005"]
