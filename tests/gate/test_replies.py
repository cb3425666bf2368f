"""What does one SMTP reply say? Held to labelled real replies, to the known traps, and to bytes of any kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ct_stream.gate.replies import Meaning, Reply, Stage, deciding_rule, fold, read_reply
from ct_stream.gate.reply_rules import RULES
from ct_stream.ops.classify import classify
from tools.score_replies import Score, read_file, score

DATA = Path(__file__).parents[1] / "data"


def scored(name: str) -> Score:
    return score(read_file(DATA / name), name)


def rcpt(code: int, enhanced: str, text: str) -> Meaning:
    return read_reply(Stage.RCPT, Reply(code=code, enhanced=enhanced, text=text)).meaning


def test_labelled_replies_are_read_right_and_none_is_wrongly_rejected() -> None:
    result = scored("smtp_replies.tsv")
    assert result.right / result.rows >= 0.97
    assert result.wrong["reject"] == 0
    assert result.seen("halt") / result.labelled("halt") >= 0.9


def test_replies_that_were_set_aside_before_the_first_rule_are_read_right() -> None:
    result = scored("smtp_replies_set_aside.tsv")
    assert result.right / result.rows >= 0.92
    assert result.wrong["reject"] == 0
    assert result.seen("halt") / result.labelled("halt") >= 0.9


def test_wordings_of_servers_documents_and_their_near_misses_are_read_right() -> None:
    result = scored("smtp_wordings.tsv")
    assert [f"{row['text']} -> {row['meaning']} by {row['rule']}" for row in result.misread] == []


@pytest.mark.parametrize(
    ("code", "enhanced", "text", "meaning"),
    [
        (550, "5.1.1", "You exceeded the rate limit of unknown users per hour", Meaning.OUR_RATE),
        (550, "5.2.1", "Mailbox unavailable. Your IP 192.0.2.1 is blacklisted", Meaning.ABOUT_US),
        (554, "5.7.1", "Recipient address rejected: https://spamhaus.org/query/ip/192.0.2.1", Meaning.ABOUT_US),
        (550, "5.5.0", "The recipient account is blocked", Meaning.REJECT),
        (552, "", "Requested mail action aborted, mailbox not found", Meaning.REJECT),
        (450, "", "mailbox unavailable", Meaning.INCONCLUSIVE),
        (421, "4.7.1", "blocked using grey.example.org", Meaning.INCONCLUSIVE),
        (
            550,
            "",
            "Verification failed for <us@sender.example>\nNo such user here\nSender verify failed",
            Meaning.ABOUT_US,
        ),
        (550, "5.4.1", "Recipient address rejected: Access denied", Meaning.REJECT),
        (541, "5.4.1", "Mail rejected by destination domain", Meaning.INCONCLUSIVE),
        (553, "5.1.1", "Relaying disallowed", Meaning.INCONCLUSIVE),
        (252, "", "Cannot VRFY user", Meaning.INCONCLUSIVE),
    ],
    ids=lambda value: str(value)[:40],
)
def test_misleading_replies_are_read_right(code: int, enhanced: str, text: str, meaning: Meaning) -> None:
    assert rcpt(code, enhanced, text) is meaning


def test_the_address_that_was_asked_for_says_nothing() -> None:
    for local in ("spamhaus", "blocked", "quota.full", "relay", "greylist"):
        text = f"<{local}@blacklist.example>: Recipient address rejected: User unknown in virtual mailbox table"
        assert rcpt(550, "5.1.1", text) is Meaning.REJECT


def test_a_5xx_alone_is_no_reject() -> None:
    for code in range(500, 600):
        assert rcpt(code, "", "") is not Meaning.REJECT
        assert rcpt(code, "5.7.1", "Rejected") is not Meaning.REJECT


def test_no_mailbox_is_rejected_before_rcpt() -> None:
    for stage in Stage:
        reading = read_reply(stage, Reply(code=550, enhanced="5.1.1", text="User unknown"))
        assert (reading.meaning is Meaning.REJECT) == (stage is Stage.RCPT)


TEXTS = st.one_of(
    st.text(max_size=200),
    st.binary(max_size=600).map(lambda raw: raw.decode("utf-8", "backslashreplace")),
    st.binary(max_size=600).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)


@given(st.sampled_from(Stage), st.integers(-10, 1000), st.sampled_from(["", "5.7.1", "4.1.1", "x.y", "9.9.9"]), TEXTS)
def test_nothing_crashes_and_noise_is_never_a_reject(stage: Stage, code: int, enhanced: str, text: str) -> None:
    reading = read_reply(stage, Reply(code=code, enhanced=enhanced, text=text))
    assert reading.meaning is not Meaning.REJECT


WORDS = sorted({word for row in (DATA / "smtp_replies.tsv").read_text().split("\n")[1:] for word in row.split()})


@given(
    st.sampled_from(Stage),
    st.integers(400, 499),
    st.sampled_from(["", "4.1.1", "5.1.1", "5.2.1", "4.7.1"]),
    st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join),
)
def test_a_4xx_is_never_a_reject_nor_an_accept(stage: Stage, code: int, enhanced: str, text: str) -> None:
    reading = read_reply(stage, Reply(code=code, enhanced=enhanced, text=text))
    assert reading.meaning not in (Meaning.REJECT, Meaning.ACCEPT)


@given(st.sampled_from(Stage), st.integers(-1, 700), st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join))
def test_only_250_and_251_to_rcpt_accept(stage: Stage, code: int, text: str) -> None:
    is_accept = read_reply(stage, Reply(code=code, text=text)).meaning is Meaning.ACCEPT
    assert is_accept == (stage is Stage.RCPT and code in (250, 251))


def test_an_enhanced_code_of_another_class_does_not_count() -> None:
    """RFC 3463 section 2: the class of both codes is the same."""
    assert rcpt(550, "4.1.1", "") is Meaning.INCONCLUSIVE
    assert rcpt(550, "", "5.1.1") is Meaning.REJECT
    assert rcpt(550, "", "host 5.1.1.7 is odd") is Meaning.INCONCLUSIVE


def test_a_text_is_folded_to_what_the_rules_know() -> None:
    assert fold("<A.b@Example.com>:\n  Boîte  PLEINE") == "@ : boite pleine"
    assert fold("Kullan\u0131c\u0131 bulunamad\u0131") == "kullanici bulunamadi"
    assert fold("존재하지 않는") == "존재하지 않는"  # syllables, not the letters that they are made of


def test_what_is_unknown_must_be_the_mailbox() -> None:
    """Of another thing the same words are no reject, whatever code comes with them."""
    for thing in ("host", "mail server", "sender", "your domain", "SMTP service", "client", "El remitente", "域名"):
        for words in ("does not exist", "is unknown", "no longer available", "no existe", "不存在"):
            for enhanced in ("", "5.1.1"):
                assert rcpt(550, enhanced, f"{thing} {words}") is not Meaning.REJECT


def test_a_gateway_that_was_refused_says_nothing_about_us_or_the_mailbox() -> None:
    """Postfix attaches 5.1.1 to whatever stopped its own question (reject_unverified_recipient)."""
    asked = "<kim@example.com>: Recipient address rejected: undeliverable address: "
    for inner in (
        "Host or domain name not found. Name service error for name=inner.example type=A: Host not found",
        "host inner.example[192.0.2.1] said: 554 5.7.1 Client host [192.0.2.44] blocked using zen.spamhaus.org",
        "mail for example.com loops back to myself",
    ):
        assert rcpt(550, "5.1.1", asked + inner) is Meaning.INCONCLUSIVE
    assert rcpt(550, "5.1.1", asked + "host inner.example[192.0.2.1] said: 550 No such user") is Meaning.REJECT


def test_every_rule_says_why_and_where_from_and_is_met_by_a_reply() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.why and rule.source for rule in RULES)
    met = {
        reading.rule.name
        for name in ("smtp_replies.tsv", "smtp_wordings.tsv")
        for reading in classify((DATA / name).read_text(encoding="utf-8"), name)
    }
    met.add(deciding_rule(Stage.RCPT, Reply(code=354)).name)
    assert {rule.name for rule in RULES} == met


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (503, "5.5.1 sender not yet given"),
        (503, "MAIL FROM required before RCPT"),
        (503, "Polite people say HELO first"),
        (550, "Too many nonexistent recipients"),
        (550, "Exceeded maximum number of rejected recipients"),
        (554, "Session ended: too many rejected recipients"),
    ],
)
def test_what_is_said_of_the_session_is_no_answer_about_the_mailbox(code: int, text: str) -> None:
    assert read_reply(Stage.RCPT, Reply(code=code, text=text)).is_session_limit


def test_a_block_that_too_many_questions_brought_is_about_us() -> None:
    assert rcpt(550, "5.7.1", "Too many invalid recipients, your IP is blocked") is Meaning.ABOUT_US
    assert rcpt(554, "5.5.1", "Error: no valid recipients") is Meaning.INCONCLUSIVE


@pytest.mark.parametrize(
    ("stage", "reply", "is_sender"),
    [
        (Stage.MAIL, Reply(code=550, enhanced="5.1.8", text="Domain of sender address does not exist"), True),
        (Stage.MAIL, Reply(code=550, enhanced="5.7.27", text="Sender address has null MX"), True),
        (Stage.RCPT, Reply(code=550, text="Sender verify failed"), True),
        (Stage.MAIL, Reply(code=553, text="sender address rejected: not allowed"), True),
        (Stage.MAIL, Reply(code=550, text="Sender IP rejected"), False),
        (Stage.BANNER, Reply(code=554, enhanced="5.7.1", text="your IP is listed at spamhaus"), False),
        (Stage.HELO, Reply(code=550, enhanced="5.7.25", text="no reverse DNS"), False),
        (Stage.HELO, Reply(code=550, text="HELO name rejected"), False),
        (Stage.RCPT, Reply(code=550, enhanced="5.1.1", text="User unknown"), False),
    ],
)
def test_our_sender_is_told_from_our_address(stage: Stage, reply: Reply, is_sender: bool) -> None:
    """A refusal of our sender is in the way of every address that we have; one of an address of that one alone."""
    reading = read_reply(stage, reply)
    assert reading.is_sender is is_sender
    assert reading.meaning is (Meaning.REJECT if reply.enhanced == "5.1.1" else Meaning.ABOUT_US)
