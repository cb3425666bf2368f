"""No sequence of answers leads to two outcomes, to a question asked twice, or to a FAIL from answers about us."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ct_stream.gate.attempts import read_attempt
from ct_stream.gate.failures import FailureCode
from ct_stream.gate.middle_stage import middle_stage
from ct_stream.gate.questions import (
    Answer,
    AskControl,
    Attempt,
    LookupMx,
    MailboxAnswer,
    MxAnswer,
    MxStatus,
    ProbeMailbox,
    Question,
    Trouble,
    VerifyAnswer,
    VerifyEmail,
    VerifyStatus,
)
from ct_stream.gate.replies import Meaning, Reply, Stage, read_reply
from ct_stream.gate.transcript import Play, from_json, to_json
from ct_stream.gate.verdicts import Failed, Held, Passed
from tests.gate.world import COMPANY, CONTROLS, DOMAIN, RULES

replies = st.one_of(
    st.sampled_from(
        [
            Reply(code=250, enhanced="2.1.5", text="Ok"),
            Reply(code=550, enhanced="5.1.1", text="User unknown"),
            Reply(code=550, enhanced="5.1.10", text="Recipient not found"),
            Reply(code=554, enhanced="5.7.1", text="blocked using zen.example"),
            Reply(code=421, enhanced="4.7.0", text="Too many connections from your IP"),
            Reply(code=450, enhanced="4.2.0", text="greylisted"),
        ]
    ),
    st.builds(
        Reply,
        code=st.integers(min_value=200, max_value=599),
        enhanced=st.sampled_from(["", "5.1.1", "4.2.0"]),
        text=st.text(max_size=30),
    ),
)
HOSTS = ("mx1.acme.example", "mx2.acme.example", "mx3.acme.example")


@st.composite
def attempts(draw: st.DrawFn, hosts: tuple[str, ...]) -> Attempt:
    host, stage = draw(st.sampled_from(hosts)), draw(st.sampled_from(Stage))
    if draw(st.booleans()):
        return Attempt(host=host, stage=stage, reply=draw(replies))
    return Attempt(host=host, stage=stage, trouble=draw(st.sampled_from(Trouble)))


@st.composite
def answers_to(draw: st.DrawFn, question: Question) -> Answer:
    match question:
        case LookupMx():
            status = draw(st.sampled_from([MxStatus.FOUND] * 4 + list(MxStatus)))
            hosts = HOSTS[: draw(st.integers(1, 3))] if status is MxStatus.FOUND else ()
            return MxAnswer(status=status, hosts=hosts)
        case ProbeMailbox():
            several = draw(st.lists(attempts(question.hosts), min_size=1, max_size=3))
            return MailboxAnswer(attempts=tuple(several), is_private_policy=draw(st.booleans()))
        case AskControl():
            return CONTROLS[question.kind]
        case VerifyEmail():
            return VerifyAnswer(status=draw(st.sampled_from(VerifyStatus)))
        case _:
            raise AssertionError(question)


@settings(max_examples=400, deadline=None)
@given(st.data(), st.sampled_from([None, "Tier-2 is off"]))
def test_any_sequence_of_answers_ends_in_one_verdict_and_asks_nothing_twice(
    data: st.DataObject, tier2_off: str | None
) -> None:
    game = Play(middle_stage(COMPANY, DOMAIN, RULES, tier2_off=tier2_off))
    keys: list[str] = []
    while game.question is not None:
        keys.append(game.question.key)
        assert len(keys) <= 14, keys
        game.answer(data.draw(answers_to(game.question)))
    assert len(keys) == len(set(keys)), keys
    assert isinstance(game.verdict, Passed | Failed | Held)
    probes = [e.answer for e in game.exchanges if isinstance(e.answer, MailboxAnswer)]
    meanings = [read_attempt(answer.attempts[-1]).meaning for answer in probes]
    if isinstance(game.verdict, Failed):
        first_settled = next((n for n, answer in enumerate(probes) if answer.is_private_policy), len(probes))
        unsettled = probes[:first_settled]
        assert all(
            read_attempt(answer.attempts[-1]).meaning not in (Meaning.ABOUT_US, Meaning.OUR_RATE)
            for answer in unsettled
        ), "a FAIL rests on an answer that is about us"
        assert Meaning.ACCEPT not in meanings
        if game.verdict.code is FailureCode.NO_PATTERN:
            assert meanings == [Meaning.REJECT] * 8
    if isinstance(game.verdict, Passed) and game.verdict.verified_by != "tier2":
        assert Meaning.ACCEPT in meanings

    # The transcript survives its JSON, and read again it gives the same verdict: an outcome can be recomputed.
    again = Play(middle_stage(COMPANY, DOMAIN, RULES, tier2_off=tier2_off))
    again.resume(from_json(to_json(game.exchanges)))
    assert again.verdict == game.verdict

    # A pass that stopped anywhere goes on from its kept answers to the same verdict.
    stop = data.draw(st.integers(0, len(game.exchanges)))
    resumed = Play(middle_stage(COMPANY, DOMAIN, RULES, tier2_off=tier2_off))
    resumed.resume(game.exchanges[:stop])
    for exchange in game.exchanges[stop:]:
        assert resumed.question is not None
        assert resumed.question.key == exchange.key
        resumed.answer(exchange.answer)
    assert resumed.verdict == game.verdict


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(Stage),
    st.integers(min_value=-1, max_value=999),
    st.from_regex(r"([245]\.\d{1,3}\.\d{1,3})?", fullmatch=True),
    st.text(max_size=200),
)
def test_reading_a_reply_never_crashes_and_a_4xx_is_never_a_reject(
    stage: Stage, code: int, enhanced: str, text: str
) -> None:
    reading = read_reply(stage, Reply(code=code, enhanced=enhanced, text=text))
    if reading.meaning is Meaning.REJECT:
        assert 500 <= code < 600
        assert stage is Stage.RCPT
    if reading.meaning is Meaning.ACCEPT:
        assert code in (250, 251)
        assert stage is Stage.RCPT
