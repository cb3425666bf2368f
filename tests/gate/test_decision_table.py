"""Each row of the decision table (docs/flow.md), as a list of answers and the outcome they lead to."""

from __future__ import annotations

import pytest

from ct_stream.gate.failures import FailureCode
from ct_stream.gate.input_stage import input_stage
from ct_stream.gate.patterns import PATTERNS, random_address
from ct_stream.gate.questions import (
    Answer,
    AskControl,
    ControlKind,
    MailboxAnswer,
    MxStatus,
    ProbeMailbox,
    SpineAnswer,
    Trouble,
    VerifyAnswer,
    VerifyEmail,
    VerifyStatus,
)
from ct_stream.gate.replies import Stage
from ct_stream.gate.verdicts import Failed, Held, HeldBy, Passed, VerifiedBy
from tests.gate.world import (
    ALL_NO,
    CONTROLS,
    DNS_WORKS,
    FULL,
    GREY,
    LISTED,
    NO,
    RULES,
    SMTP_WORKS,
    TOO_FAST,
    YES,
    mx,
    no_mx,
    play,
    said,
    trouble,
)


def failed(verdict: object, code: FailureCode) -> str:
    assert isinstance(verdict, Failed), verdict
    assert verdict.code is code
    return verdict.reason


def passed(verdict: object) -> Passed:
    assert isinstance(verdict, Passed), verdict
    return verdict


# ---------------------------------------------------------------- stage I


def test_a_company_that_is_not_in_the_spine_fails_not_found() -> None:
    failed(input_stage(SpineAnswer(found=False)), FailureCode.NOT_FOUND)


@pytest.mark.parametrize(
    ("stored", "quoted"),
    [
        (None, "NULL"),
        ("", "''"),
        (" \t ", "empty"),
        ("acme", "'acme'"),
        ("https://acme.example", "https://"),
        ("acme.example/jobs", "/jobs"),
        ("192.0.2.7", "192.0.2.7"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("acme.example\r\nRCPT TO:<x>", "\\\\r\\\\n|control"),
        ("acme\0.example", "control"),
        ("a..example", "a..example"),
        ("-acme.example", "-acme"),
        ("acme_inc.example", "acme_inc"),
        ("xn--zzzzzz-.example", "xn--"),
        (("a" * 64) + ".example", "not a host name"),
        (".".join(["abcdefgh"] * 40) + ".example", "longer"),
        ("info@acme.example", "info@acme"),
        ("acme.example.", None),
        ("  ACME.Example ", None),
        ("bücher.example", None),
        ("Bu\u0308cher.example", None),
    ],
)
def test_a_stored_domain_is_brought_to_canonical_form_or_fails_no_domain(
    stored: str | None, quoted: str | None
) -> None:
    found = input_stage(SpineAnswer(found=True, domain=stored))
    if quoted is None:
        assert found in ("acme.example", "xn--bcher-kva.example")
    else:
        import re

        assert re.search(quoted, failed(found, FailureCode.NO_DOMAIN)) or quoted in failed(found, FailureCode.NO_DOMAIN)


# ---------------------------------------------------------------- stage M1


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (MxStatus.NO_RECORDS, "no MX records"),
        (MxStatus.NXDOMAIN, "NXDOMAIN"),
        (MxStatus.NULL_MX, "RFC 7505"),
    ],
)
def test_a_domain_without_mail_fails_no_mx_once_a_dns_control_succeeded(status: MxStatus, words: str) -> None:
    verdict, asked = play([no_mx(status), DNS_WORKS])
    assert words in failed(verdict, FailureCode.NO_MX)
    assert asked[-1] == AskControl(kind=ControlKind.DNS)


def test_no_mx_is_not_recorded_before_the_control_answered() -> None:
    verdict, asked = play([no_mx(MxStatus.NXDOMAIN)])
    assert verdict is None
    assert asked[-1] == AskControl(kind=ControlKind.DNS)


@pytest.mark.parametrize("status", [MxStatus.UNAVAILABLE, MxStatus.CUT_OFF])
def test_dns_that_gave_no_answer_is_inconclusive_while_the_control_resolves(status: MxStatus) -> None:
    verdict, _ = play([no_mx(status, "SERVFAIL from 2 resolvers"), DNS_WORKS])
    assert "SERVFAIL" in failed(verdict, FailureCode.SMTP_FAIL)


# ---------------------------------------------------------------- stage M3


@pytest.mark.parametrize("n", range(len(PATTERNS)), ids=[pattern.name for pattern in PATTERNS])
def test_an_accepted_pattern_with_a_refused_random_mailbox_passes_with_its_confidence(n: int) -> None:
    verdict, asked = play([mx(), *ALL_NO[:n], YES, NO])
    method = passed(verdict)
    assert (method.method_type, method.confidence) == (PATTERNS[n].name, PATTERNS[n].confidence)
    assert method.email_method == f"{PATTERNS[n].template}@acme.example"
    assert (method.is_catchall, method.verified_by) == (False, VerifiedBy.SMTP)
    assert len(asked) == 1 + n + 2, "probing stops at the first accepted pattern"


@pytest.mark.parametrize("random", [GREY, FULL, trouble(Trouble.CLOSED, stage=Stage.RCPT), LISTED, TOO_FAST])
def test_an_accepted_pattern_without_an_answer_about_the_random_mailbox_passes_at_most_070(
    random: MailboxAnswer,
) -> None:
    method = passed(play([mx(), YES, random])[0])
    assert method.confidence == 0.70
    assert not method.is_catchall
    assert method.note


def test_a_catch_all_passes_with_first_last_at_050() -> None:
    method = passed(play([mx(), YES, YES])[0])
    assert (method.method_type, method.confidence, method.is_catchall) == ("first.last", 0.50, True)
    assert method.verified_by is VerifiedBy.CATCH_ALL


def test_every_pattern_rejected_fails_no_pattern() -> None:
    verdict, asked = play([mx(), *ALL_NO])
    assert "all 8 patterns" in failed(verdict, FailureCode.NO_PATTERN)
    assert len(asked) == 9, "neither a random mailbox nor a control is asked for a clean refusal"


def test_one_inconclusive_pattern_among_rejections_is_not_no_pattern() -> None:
    verdict, _ = play([mx(), *ALL_NO[:7], GREY])
    assert "greylisted" in failed(verdict, FailureCode.SMTP_FAIL)


@pytest.mark.parametrize(
    ("answer", "cause"), [(GREY, "greylisted"), (FULL, "mailbox full"), (said(550, "5.7.1", "Policy"), "policy")]
)
def test_none_accepted_and_all_inconclusive_fails_smtp_with_the_cause(answer: MailboxAnswer, cause: str) -> None:
    reason = failed(play([mx(), *[answer] * 8])[0], FailureCode.SMTP_FAIL)
    assert cause in reason
    assert "Tier-2 is off" in reason


@pytest.mark.parametrize(
    ("kind", "words", "control"),
    [
        (Trouble.REFUSED, "connection refused", ControlKind.SMTP),
        (Trouble.TIMEOUT, "timeout", ControlKind.SMTP),
        (Trouble.CLOSED, "closed the connection", ControlKind.SMTP),
        (Trouble.UNREACHABLE, "unreachable", ControlKind.SMTP),
        (Trouble.UNROUTABLE, "address is not publicly routable", ControlKind.DNS),
        (Trouble.NO_ADDRESS, "no address", ControlKind.DNS),
        (Trouble.NAME_LOOKUP, "could not be looked up", ControlKind.DNS),
    ],
)
def test_no_host_reachable_fails_smtp_only_after_a_control(kind: Trouble, words: str, control: ControlKind) -> None:
    verdict, asked = play([mx(), trouble(kind)])
    assert verdict is None, "our own way may be at fault"
    assert asked[-1] == AskControl(kind=control)
    verdict, asked = play([mx(), trouble(kind), CONTROLS[control]])
    assert words in failed(verdict, FailureCode.SMTP_FAIL)
    assert len(asked) == 3, "the patterns that nobody can answer are not asked"


def test_a_timeout_at_the_first_host_needs_its_control_whatever_the_second_host_was() -> None:
    both = MailboxAnswer(attempts=(*trouble(Trouble.TIMEOUT).attempts, *trouble(Trouble.NO_ADDRESS).attempts))
    verdict, asked = play([mx("a.example", "b.example"), both, DNS_WORKS])
    assert verdict is None, "our own port may be blocked"
    assert asked[-1] == AskControl(kind=ControlKind.SMTP)


def test_a_garbled_session_needs_a_control() -> None:
    _, asked = play([mx(), trouble(Trouble.GARBLED, stage=Stage.BANNER)])
    assert asked[-1] == AskControl(kind=ControlKind.SMTP)


def test_after_the_first_rcpt_answer_every_question_goes_to_that_host() -> None:
    second = said(550, "5.1.1", "User unknown", host="mx2.acme.example")
    yes = said(250, "2.1.5", "Ok", host="mx2.acme.example")
    _, asked = play([mx("mx1.acme.example", "mx2.acme.example"), second, yes])
    probes = [question for question in asked if isinstance(question, ProbeMailbox)]
    assert probes[0].hosts == ("mx1.acme.example", "mx2.acme.example")
    assert all(probe.hosts == ("mx2.acme.example",) for probe in probes[1:])
    assert len(probes) == 3


def test_a_close_in_mid_session_leaves_the_remaining_patterns_to_be_asked() -> None:
    closed = trouble(Trouble.CLOSED, stage=Stage.RCPT)
    verdict, _ = play([mx(), NO, closed, *ALL_NO[:4], YES, NO])
    assert passed(verdict).method_type == "info"


def test_the_pass_deadline_ends_the_asking_without_a_false_reject() -> None:
    verdict, asked = play([mx(), NO, NO, trouble(Trouble.DEADLINE, stage=Stage.RCPT), SMTP_WORKS])
    assert "CT_PASS_DEADLINE_S" in failed(verdict, FailureCode.SMTP_FAIL)
    assert len(asked) == 5


def test_name_patterns_are_rendered_with_the_probe_name() -> None:
    _, asked = play([mx(), *ALL_NO])
    local_parts = [question.address.local_part for question in asked if isinstance(question, ProbeMailbox)]
    assert local_parts == [
        "jordan.whitfield",
        "jordanwhitfield",
        "j.whitfield",
        "jordan.w",
        "jordan",
        "whitfield",
        "info",
        "contact",
    ]


# ---------------------------------------------------------------- replies about us


@pytest.mark.parametrize("stage", list(Stage)[1:])
@pytest.mark.parametrize(("answer", "by"), [(LISTED, HeldBy.REFUSED), (TOO_FAST, HeldBy.RATE)], ids=["ip", "rate"])
@pytest.mark.parametrize("before", [0, 3])
def test_a_reply_about_us_holds_the_pass_and_fails_nothing(
    stage: Stage, answer: MailboxAnswer, by: HeldBy, before: int
) -> None:
    reply = answer.attempts[0].reply
    assert reply is not None
    verdict, _ = play([mx(), *ALL_NO[:before], said(reply.code, reply.enhanced, reply.text, stage=stage)])
    assert isinstance(verdict, Held)
    assert verdict.by is by


def test_a_reply_about_us_from_the_first_host_does_not_matter_when_the_second_accepts() -> None:
    both = MailboxAnswer(
        attempts=(*said(554, "5.7.1", "blocked using a list", stage=Stage.BANNER).attempts, *YES.attempts)
    )
    assert isinstance(play([mx("a.example", "b.example"), both, NO])[0], Passed)


@pytest.mark.parametrize(
    ("reply", "by"),
    [
        pytest.param(said(554, "5.7.1", "blocked using a list", stage=Stage.BANNER), HeldBy.REFUSED, id="refuses us"),
        pytest.param(said(421, "4.7.0", "too many connections from your IP"), HeldBy.RATE, id="finds us too fast"),
    ],
)
def test_a_backup_that_knows_no_mailbox_decides_nothing_while_the_first_host_speaks_about_us(
    reply: MailboxAnswer, by: HeldBy
) -> None:
    both = MailboxAnswer(attempts=(*reply.attempts, *NO.attempts))
    verdict, _ = play([mx("a.example", "b.example"), both])
    assert isinstance(verdict, Held)
    assert verdict.by is by


def test_after_a_settled_refusal_the_backup_is_asked_the_rest() -> None:
    first = said(554, "5.7.1", "blocked using a list", stage=Stage.BANNER, host="a.example")
    backup = said(550, "5.1.1", "User unknown", host="b.example")
    settled = MailboxAnswer(attempts=(*first.attempts, *backup.attempts), is_private_policy=True)
    yes = said(250, "2.1.5", "ok", host="b.example")
    verdict, asked = play([mx("a.example", "b.example"), settled, yes, NO])
    assert isinstance(verdict, Passed)
    assert isinstance(asked[2], ProbeMailbox)
    assert asked[2].hosts == ("b.example",)


def test_a_backups_rejects_decide_nothing_after_a_host_that_refuses_us_by_policy() -> None:
    first = said(554, "5.7.1", "blocked using a list", stage=Stage.BANNER, host="a.example")
    backup = said(550, "5.1.1", "User unknown", host="b.example")
    settled = MailboxAnswer(attempts=(*first.attempts, *backup.attempts), is_private_policy=True)
    answers: list[Answer] = [mx("a.example", "b.example"), settled, *[backup] * (len(RULES.patterns) - 1)]
    reason = failed(play(answers)[0], FailureCode.SMTP_FAIL)
    assert "our address is listed (a.example at banner: 554 5.7.1 blocked using a list)" in reason
    _, asked = play(answers, tier2_off=None)
    assert isinstance(asked[-1], VerifyEmail)
    assert asked[-1].address.local_part == "info"


def test_a_refusal_settled_as_this_companys_policy_is_inconclusive() -> None:
    settled = MailboxAnswer(attempts=LISTED.attempts, is_private_policy=True)
    verdict, asked = play([mx(), settled])
    reason = failed(verdict, FailureCode.SMTP_FAIL)
    assert reason.startswith(
        "only this company's own server refuses us, so it counts as its policy: our address is listed"
    )
    assert len(asked) == 2, "after a block the rest is unasked"


def test_rejects_before_a_block_stay_evidence_and_the_rest_is_unasked() -> None:
    settled = MailboxAnswer(attempts=LISTED.attempts, is_private_policy=True)
    verdict, asked = play([mx(), *ALL_NO[:3], settled], tier2_off=None)
    assert verdict is None
    assert isinstance(asked[-1], VerifyEmail)
    assert asked[-1].pattern == "info", "the first role pattern that was not rejected"


def test_a_refusal_of_us_by_the_first_host_does_not_end_the_talk_with_the_second() -> None:
    both = MailboxAnswer(
        attempts=(*said(554, "5.7.1", "blocked using a list", stage=Stage.BANNER).attempts, *GREY.attempts),
        is_private_policy=True,
    )
    assert passed(play([mx("a.example", "b.example"), both, YES, NO])[0]).method_type == "firstlast"


def test_a_random_mailbox_accepted_after_refusals_names_no_refused_pattern() -> None:
    """A server that refused first.last and then takes anything has changed its mind: first.last would bounce."""
    verdict = passed(play([mx(), *ALL_NO[:6], YES, YES])[0])
    assert (verdict.method_type, verdict.confidence, verdict.is_catchall) == ("info", 0.50, True)
    assert "refused" in verdict.note


def test_a_catch_all_after_inconclusive_patterns_is_a_plain_catch_all() -> None:
    verdict = passed(play([mx(), GREY, YES, YES])[0])
    assert (verdict.method_type, verdict.confidence, verdict.is_catchall) == ("first.last", 0.50, True)


# ---------------------------------------------------------------- stage M5


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (VerifyStatus.VALID, "info"),
        (VerifyStatus.CATCH_ALL, "first.last"),
        (VerifyStatus.INVALID, FailureCode.VERIFY_FAIL),
        (VerifyStatus.NO_ANSWER, FailureCode.SMTP_FAIL),
    ],
)
def test_tier_2_decides_what_is_inconclusive(status: VerifyStatus, outcome: object) -> None:
    answers: list[Answer] = [mx(), *[GREY] * 8, VerifyAnswer(status=status, detail="the vendor says so")]
    verdict, asked = play(answers, tier2_off=None)
    assert isinstance(asked[-1], VerifyEmail)
    assert asked[-1].pattern == "info", "the first inconclusive role pattern"
    if isinstance(verdict, Passed):
        assert verdict.method_type == outcome
        assert verdict.verified_by is VerifiedBy.TIER2
        assert verdict.is_catchall == (status is VerifyStatus.CATCH_ALL)
    else:
        assert isinstance(verdict, Failed)
        assert verdict.code is outcome


@pytest.mark.parametrize(
    ("answers", "pattern"),
    [
        ([*ALL_NO[:6], NO, GREY], "contact"),
        ([GREY, *ALL_NO[:7]], "first.last"),
        ([*ALL_NO[:2], GREY, *ALL_NO[:5]], "f.last"),
    ],
)
def test_tier_2_is_asked_for_the_first_inconclusive_role_pattern_else_the_first_inconclusive(
    answers: list[MailboxAnswer], pattern: str
) -> None:
    _, asked = play([mx(), *answers], tier2_off=None)
    assert isinstance(asked[-1], VerifyEmail)
    assert asked[-1].pattern == pattern


def test_tier_2_is_not_paid_before_our_own_way_is_proven() -> None:
    _, asked = play([mx(), trouble(Trouble.TIMEOUT)], tier2_off=None)
    assert asked[-1] == AskControl(kind=ControlKind.SMTP)


def test_the_random_address_is_the_same_for_each_reading_of_a_company() -> None:
    from tests.gate.world import COMPANY

    first = random_address(COMPANY, "acme.example")
    assert first == random_address(COMPANY, "acme.example")
    assert first.local_part not in {"info", "contact"}
    assert RULES.version.startswith("4+")
