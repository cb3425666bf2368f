"""Decides a company again from the answers of its transcript, under other rules.

The gate is pure, so its questions can be put to a transcript instead of the world. A question that was never asked
stays open, since nobody knows what a server would have answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from ct_stream.gate.pipeline import single_pass
from ct_stream.gate.questions import (
    RANDOM,
    Answer,
    AskControl,
    ControlAnswer,
    LookupMx,
    LookupSpine,
    ProbeMailbox,
    Question,
    VerifyEmail,
)
from ct_stream.gate.transcript import Play

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from ct_stream.gate.rules import Rules
    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.verdicts import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class NeverAsked:
    """The rules ask a question that the transcript does not answer."""

    question: str  #: its key, such as "rcpt:sales"


Recomputed: TypeAlias = "Verdict | NeverAsked"


def recompute(outreach_id: UUID, exchanges: Sequence[Exchange], rules: Rules) -> Recomputed:
    """Return the verdict of `rules` on the answers of a transcript, or the first question that it does not answer.

    Mailboxes are compared by address, not by the pattern's name: another template or probe name asks for another
    mailbox. Every control is taken to have succeeded, since controls say nothing about the company.
    """
    paid = any(exchange.key == "verify" for exchange in exchanges)
    play = Play(single_pass(outreach_id, rules, tier2_off=None if paid else "Tier-2 was off"))
    while play.question is not None:
        answer = _answer(play.question, exchanges)
        if answer is None:
            return NeverAsked(question=play.question.key)
        play.answer(answer)
    assert play.verdict is not None  # there is no open question
    return play.verdict


def _answer(question: Question, exchanges: Sequence[Exchange]) -> Answer | None:
    for exchange in exchanges:
        match question:
            case LookupSpine() | LookupMx():
                is_asked = exchange.key == question.key
            case ProbeMailbox(pattern=pattern, address=address):
                is_mailbox = exchange.key.startswith("rcpt:") and exchange.asked == str(address)
                is_asked = exchange.key == question.key if pattern == RANDOM else is_mailbox
            case VerifyEmail(address=address):
                is_asked = exchange.key == question.key and exchange.asked == str(address)
            case AskControl():
                return ControlAnswer(detail="taken for granted")
        if is_asked:
            return exchange.answer
    return None
