"""Other rules are put to a transcript: what it answers is decided, what was never asked stays open."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.patterns import PATTERNS, Pattern, ProbeName
from ct_stream.gate.pipeline import single_pass
from ct_stream.gate.questions import (
    Answer,
    AskControl,
    LookupMx,
    LookupSpine,
    MxStatus,
    ProbeMailbox,
    SpineAnswer,
    Trouble,
    VerifyAnswer,
    VerifyEmail,
    VerifyStatus,
)
from ct_stream.gate.recompute import NeverAsked, recompute
from ct_stream.gate.transcript import Exchange, Play
from ct_stream.gate.verdicts import Failed, Passed
from tests.gate.world import ALL_NO, COMPANY, DNS_WORKS, GREY, NO, RULES, SMTP_WORKS, YES, mx, no_mx, trouble

SPINE = SpineAnswer(found=True, domain="acme.example")
SALES = Pattern(name="sales", template="sales", confidence=0.70, is_role=True)


def transcript(*answers: Answer, tier2_off: str | None = "Tier-2 is off") -> list[Exchange]:
    """Return what a pass under RULES keeps of these answers."""
    play = Play(single_pass(COMPANY, RULES, tier2_off=tier2_off))
    for answer in answers:
        match play.question:
            case LookupSpine(outreach_id=asked):
                pass
            case LookupMx(domain=asked):
                pass
            case ProbeMailbox(address=asked) | VerifyEmail(address=asked):
                pass
            case AskControl(kind=asked):
                pass
            case None:
                raise AssertionError(f"no question left for {answer}")
        play.answer(answer, asked=str(asked))
    assert play.verdict is not None, play.question
    return play.exchanges


@pytest.mark.parametrize(
    "answers",
    [
        [SpineAnswer(found=False)],
        [SpineAnswer(found=True, domain="nonsense")],
        [SPINE, no_mx(MxStatus.NULL_MX), DNS_WORKS],
        [SPINE, mx(), *ALL_NO],
        [SPINE, mx(), NO, YES, NO],
        [SPINE, mx(), YES, YES],
        [SPINE, mx(), *[GREY] * 8],
    ],
    ids=["not found", "no domain", "no mx", "no pattern", "pass", "catch-all", "greylisted"],
)
def test_under_its_own_rules_a_transcript_says_the_same_again(answers: list[Answer]) -> None:
    play = Play(single_pass(COMPANY, RULES, tier2_off="Tier-2 was off"))
    for answer in answers:
        play.answer(answer)
    assert recompute(COMPANY, transcript(*answers), RULES) == play.verdict


def test_a_pattern_that_was_never_asked_has_no_recomputed_verdict() -> None:
    wider = replace(RULES, patterns=(*PATTERNS, SALES))
    assert recompute(COMPANY, transcript(SPINE, mx(), *ALL_NO), wider) == NeverAsked(question="rcpt:sales")


def test_what_was_answered_before_the_new_pattern_decides() -> None:
    wider = replace(RULES, patterns=(*PATTERNS, SALES))
    passed = recompute(COMPANY, transcript(SPINE, mx(), NO, YES, NO), wider)
    assert isinstance(passed, Passed)
    assert passed.method_type == "firstlast"


def test_without_the_accepted_pattern_a_pass_becomes_a_fail() -> None:
    shorter = replace(RULES, patterns=PATTERNS[:-1])
    failed = recompute(COMPANY, transcript(SPINE, mx(), *ALL_NO[:-1], YES, NO), shorter)
    assert isinstance(failed, Failed)
    assert failed.code is FailureCode.NO_PATTERN


def test_another_order_is_recomputed_from_the_mailboxes_that_were_asked() -> None:
    turned = replace(RULES, patterns=tuple(reversed(PATTERNS)))
    kept = transcript(SPINE, mx(), *ALL_NO[:-1], YES, NO)
    passed = recompute(COMPANY, kept, turned)
    assert isinstance(passed, Passed)
    assert passed.method_type == "contact"


def test_another_probe_name_asks_for_other_mailboxes() -> None:
    other = replace(RULES, probe_name=ProbeName(first="robin", last="whitfield"))
    assert recompute(COMPANY, transcript(SPINE, mx(), *ALL_NO), other) == NeverAsked(question="rcpt:first.last")


def test_a_name_that_is_given_to_another_mailbox_is_another_mailbox() -> None:
    renamed = replace(RULES, patterns=(Pattern(name="info", template="office", confidence=0.7, is_role=True),))
    assert recompute(COMPANY, transcript(SPINE, mx(), *ALL_NO), renamed) == NeverAsked(question="rcpt:info")


def test_a_control_that_was_not_needed_before_is_taken_for_granted() -> None:
    # Under the shorter list nothing was accepted, and a silent server would have needed a control.
    kept = transcript(SPINE, mx(), trouble(Trouble.TIMEOUT), SMTP_WORKS)
    assert isinstance(recompute(COMPANY, [e for e in kept if not e.key.startswith("control")], RULES), Failed)


def test_a_paid_answer_counts_for_the_mailbox_that_was_paid_for() -> None:
    valid = VerifyAnswer(status=VerifyStatus.VALID)
    kept = transcript(SPINE, mx(), *[GREY] * 8, valid, tier2_off=None)
    passed = recompute(COMPANY, kept, RULES)
    assert isinstance(passed, Passed)
    assert passed.method_type == "info"
    shorter = replace(RULES, patterns=PATTERNS[:6])
    assert recompute(COMPANY, kept, shorter) == NeverAsked(question="verify")
