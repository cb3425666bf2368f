"""The pure parts in any order of events: companies asked, parked, voided, crashed and taken over, as one model.

The pass (gate/pipeline.py), its kept answers (gate/transcript.py) and the ordered acks (stream/ack_gate.py) are real;
the ledger is a dict in which the first outcome counts, and the broker a list with a committed offset.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ct_stream.gate.evidence import without_trouble
from ct_stream.gate.patterns import PATTERNS
from ct_stream.gate.pipeline import single_pass
from ct_stream.gate.questions import Answer, AskControl, MxStatus, SpineAnswer, Trouble
from ct_stream.gate.transcript import Play, from_json, to_json
from ct_stream.gate.verdicts import Failed, Passed
from ct_stream.stream.ack_gate import AckGates, Cell
from tests.gate.world import CONTROLS, GREY, NO, RULES, TIER2_OFF, YES, mx, no_mx, trouble

if TYPE_CHECKING:
    from ct_stream.gate.questions import Question
    from ct_stream.gate.transcript import Exchange

PARTITION = "spine.created[0]"
FIRST, LAST = PATTERNS[0].name, PATTERNS[-1].name
#: What the world answers by key; any other mailbox is unknown.
KINDS: dict[str, dict[str, Answer]] = {
    "first pattern": {"mx": mx(), f"rcpt:{FIRST}": YES},
    "last pattern": {"mx": mx(), f"rcpt:{LAST}": YES},
    "catch-all": {"mx": mx(), **{f"rcpt:{pattern.name}": YES for pattern in PATTERNS}, "rcpt:random": YES},
    "unknown": {"mx": mx()},
    "greylisted": {"mx": mx(), f"rcpt:{FIRST}": GREY},
    "silent": {"mx": mx(), **{f"rcpt:{pattern.name}": trouble(Trouble.TIMEOUT) for pattern in PATTERNS}},
    "no mail": {"mx": no_mx(MxStatus.NXDOMAIN)},
    "no domain": {"spine": SpineAnswer(found=True, domain=None)},
}
Outcome = tuple[str, str]


def answer(kind: str, question: Question) -> Answer:
    if isinstance(question, AskControl):
        return CONTROLS[question.kind]
    return KINDS[kind].get(
        question.key, SpineAnswer(found=True, domain="acme.example") if question.key == "spine" else NO
    )


def begin(company: int) -> Play:
    return Play(single_pass(UUID(int=company), RULES, tier2_off=TIER2_OFF))


def outcome(play: Play) -> Outcome:
    assert isinstance(play.verdict, Passed | Failed), play.verdict
    if isinstance(play.verdict, Failed):
        return ("FAIL", play.verdict.code)
    return ("PASS", play.verdict.email_method)


def undisturbed(company: int, kind: str) -> Outcome:
    play = begin(company)
    while play.question is not None:
        play.answer(answer(kind, play.question))
    return outcome(play)


@dataclass(eq=False)
class Event:
    """A record of spine.created, acked once at most and in order."""

    gate: Gate
    offset: int
    generation: int

    def ack(self) -> bool:
        assert self.generation == self.gate.generation, "an event of a former assignment was acked"
        assert self.offset == self.gate.committed, f"{self.offset} was acked where {self.gate.committed} was due"
        self.gate.committed += 1
        return True


@dataclass(eq=False)
class Running:
    """A pass under way, from an event or from its wait."""

    company: int
    play: Play
    cell: Cell[Event] | None
    kept: frozenset[str] = field(default_factory=frozenset)


class Gate(RuleBasedStateMachine):
    """One worker after the other at one partition."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[str] = []
        self.log: list[int] = []  # offset to company
        self.committed = self.position = self.generation = 0
        self.gates: AckGates[Event] = AckGates()
        self.running: list[Running] = []
        self.parked: dict[int, list[dict[str, object]]] = {}
        self.ledger: dict[int, Outcome] = {}

    # ---------------------------------------------------------------- upstream

    @rule(kind=st.sampled_from(sorted(KINDS)))
    def mint(self, kind: str) -> None:
        self.kinds.append(kind)
        self.log.append(len(self.kinds) - 1)

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def produce_again(self, data: st.DataObject) -> None:
        self.log.append(data.draw(st.sampled_from(self.log)))

    # ---------------------------------------------------------------- the gate at work

    @precondition(lambda self: self.position < len(self.log))
    @rule()
    def deliver(self) -> None:
        company = self.log[self.position]
        cell = self.gates.arrive(PARTITION, Event(self, self.position, self.generation))
        self.position += 1
        if company in self.ledger or company in self.parked:
            self.gates.finish(PARTITION, cell)
        else:
            self.running.append(Running(company, begin(company), cell))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        self.step(data.draw(st.sampled_from(self.running)))

    def step(self, one: Running) -> None:
        assert one.play.question is not None
        assert one.play.question.key not in one.kept, "an answered question is put again"
        one.play.answer(answer(self.kinds[one.company], one.play.question))
        self.decide(one)

    def decide(self, one: Running) -> None:
        """Record what has a verdict; the first outcome counts."""
        if one.play.question is None:
            self.ledger.setdefault(one.company, outcome(one.play))
            self.parked.pop(one.company, None)
            self.end(one)

    def end(self, one: Running) -> None:
        self.running.remove(one)
        if one.cell is not None:
            self.gates.finish(PARTITION, one.cell)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def park(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.running))
        if one.company not in self.ledger:
            self.parked[one.company] = to_json(one.play.exchanges)
        self.end(one)

    def waiting(self) -> list[int]:
        busy = {one.company for one in self.running if one.cell is None}
        return sorted(self.parked.keys() - busy)

    @precondition(lambda self: self.waiting())
    @rule(data=st.data(), is_void=st.booleans())
    def resume(self, data: st.DataObject, is_void: bool) -> None:
        """Go on from kept answers; after trouble of our own without those that it may have made."""
        company = data.draw(st.sampled_from(self.waiting()))
        kept: list[Exchange] = from_json(self.parked[company])
        if is_void:
            kept = without_trouble(kept)
        one = Running(company, begin(company), None, frozenset(exchange.key for exchange in kept))
        one.play.resume(kept)
        self.running.append(one)
        self.decide(one)

    # ---------------------------------------------------------------- what befalls it

    @rule()
    def crash(self) -> None:
        """SIGKILL: what was in memory is gone, and the next worker begins where the group stands."""
        self.running.clear()
        self.gates = AckGates()
        self.generation += 1
        self.position = self.committed

    @rule()
    def lose_partitions(self) -> None:
        """A rebalance: passes run on, and their events come again, here or to another worker."""
        self.gates.clear()
        self.generation += 1
        self.position = self.committed

    # ---------------------------------------------------------------- what must hold

    @invariant()
    def each_outcome_is_the_undisturbed_one(self) -> None:
        for company, found in self.ledger.items():
            assert found == undisturbed(company, self.kinds[company]), self.kinds[company]

    @invariant()
    def what_is_committed_is_decided_or_waits(self) -> None:
        for company in self.log[: self.committed]:
            assert company in self.ledger or company in self.parked, f"{self.kinds[company]} is lost"

    def teardown(self) -> None:
        """Leave it alone: all is decided, and all is committed."""
        while self.running or self.position < len(self.log) or self.waiting():
            if self.position < len(self.log):
                self.deliver()
            elif self.running:
                self.step(self.running[0])
            else:
                company = self.waiting()[0]
                one = Running(company, begin(company), None)
                one.play.resume(from_json(self.parked[company]))
                self.running.append(one)
        assert self.committed == len(self.log)
        assert self.ledger.keys() == set(self.log)
        self.each_outcome_is_the_undisturbed_one()


Gate.TestCase.settings = settings(max_examples=200, stateful_step_count=80, deadline=None)
TestGate = Gate.TestCase
