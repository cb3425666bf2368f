"""What a worker makes of answers that another worker met: they are weighed by the proofs of the one that met them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from ct_stream.gate.evidence import ROWS, UNPROVEN, Case, Moments, Way, Witness, before_astray, open_needs, weigh
from ct_stream.gate.questions import Attempt, ControlAnswer, ControlKind, MailboxAnswer, MxStatus, Trouble
from ct_stream.gate.records import FailedAt
from ct_stream.gate.replies import Stage
from ct_stream.gate.transcript import Exchange, from_json, to_json
from ct_stream.gate.waits import WaitReason
from tests.gate.test_evidence import (
    ABSENT,
    FAILED,
    FIRST,
    FOUND,
    GOOD,
    NO_PROOF_YET,
    OUTAGE,
    PROVEN_SINCE_TOO_LATE,
    SECOND,
    SILENT,
    SPINE,
    TABLE,
    Back,
    refusal,
    way,
)
from tests.gate.world import NO, YES, mx, no_mx, trouble

if TYPE_CHECKING:
    from ct_stream.gate.questions import Answer

ANOTHER = Witness(run="two/1/b", is_self=False)
GONE = Witness(run="two/1/b", is_self=False, is_gone=True)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A company that another worker parked, and what is known of that worker's way by then."""

    row: str
    left: list[str]
    answers: dict[str, Answer] = field(default_factory=lambda: SILENT)
    witness: Witness = ANOTHER
    dns: Way = GOOD
    smtp: Way = GOOD
    looks: int = 1
    reason: WaitReason = WaitReason.CONTROL
    waits: bool = False
    proven: tuple[str, ...] = ()  #: what is marked so


TAKEN = {
    "its silence, proven before and after": Taken(row="else", left=[*SILENT], proven=(FIRST,)),
    "its absence too": Taken(row="else", answers=ABSENT, left=[*ABSENT], proven=("mx",)),
    "it is gone, but had proven it before": Taken(row="else", left=[*SILENT], witness=GONE, proven=(FIRST,)),
    "it has not proven its way since": Taken(
        row="another's proof", left=[*SILENT], smtp=NO_PROOF_YET, waits=True
    ),
    "nor its resolvers": Taken(
        row="another's proof", answers=ABSENT, left=[*ABSENT], dns=NO_PROOF_YET, waits=True
    ),
    "it has proven the other way alone": Taken(
        row="else", answers=ABSENT, left=[*ABSENT], smtp=NO_PROOF_YET, proven=("mx",)
    ),
    "it is gone, and had proven nothing": Taken(
        row="worker gone", left=[*FOUND], smtp=NO_PROOF_YET, witness=GONE
    ),
    "its way was broken": Taken(row="own way broken", left=[*FOUND], smtp=OUTAGE),
    "its way was broken, and it is gone": Taken(row="own way broken", left=[*FOUND], smtp=OUTAGE, witness=GONE),
    "no chain before it": Taken(row="no chain", left=[*FOUND], smtp=PROVEN_SINCE_TOO_LATE),
    "no chain, whatever it waited for meanwhile": Taken(
        row="no chain", left=[*FOUND], smtp=PROVEN_SINCE_TOO_LATE, reason=WaitReason.DAILY_CAP
    ),
    "a first look is followed by another one": Taken(row="first look", left=[*SPINE], looks=0),
    "a first look that nothing proves yet is not counted": Taken(
        row="another's proof", left=[*SILENT], looks=0, smtp=NO_PROOF_YET, waits=True
    ),
    "a chain that was found before a long wait": Taken(
        row="else", left=[*SILENT], smtp=PROVEN_SINCE_TOO_LATE, reason=WaitReason.PROVIDER_SILENT, proven=(FIRST,)
    ),
}  # fmt: skip


def back(taken: Taken) -> Back:
    return Back(
        row=taken.row, left=taken.left, answers=taken.answers, dns=taken.dns, smtp=taken.smtp, looks=taken.looks,
        reason=taken.reason,
    )  # fmt: skip


@pytest.mark.parametrize("taken", [pytest.param(taken, id=name) for name, taken in TAKEN.items()])
def test_what_another_worker_met_is_weighed_by_its_proofs(taken: Taken) -> None:
    its = back(taken)
    case = Case(resumed=its.resumed, ways=its.ways, settling=its.settling, witness=taken.witness)
    assert next(row.id for row in ROWS if row.when(case)) == taken.row
    kept = weigh(its.resumed, its.ways, its.settling, witness=taken.witness)
    assert [exchange.key for exchange in kept.exchanges] == taken.left
    assert tuple(exchange.key for exchange in kept.exchanges if exchange.proven) == taken.proven
    assert (kept.wait is not None) is taken.waits
    if taken.proven:
        assert (kept.asked_at, kept.failed_at) == (None, FAILED), "what is asked from now on has a window of its own"


def test_every_row_of_the_table_has_a_case() -> None:
    below = {"astray", "refused elsewhere", "heard elsewhere"}
    assert {b.row for b in TABLE.values()} | {t.row for t in TAKEN.values()} | below == {row.id for row in ROWS}


@pytest.mark.parametrize(("refused_at", "drops"), [("", True), ("dc2", True), ("dc3", False)])
def test_a_refusal_of_another_address_is_heard_again_from_this_one(refused_at: str, drops: bool) -> None:
    """What two of them are told is settled as ever; the same one twice is one."""
    its = TABLE["its own server refuses us, for ten minutes"]
    resumed = replace(its.resumed, met_by="two/1/b", met_at="dc2", refused_at=refused_at)
    elsewhere = Witness(run="two/1/b", is_self=False, is_elsewhere=True)
    kept = weigh(resumed, its.ways, its.settling, witness=elsewhere)
    assert [exchange.key for exchange in kept.exchanges] == ([*FOUND] if drops else [*FOUND, SECOND])
    assert kept.refused_at == ("dc2" if drops else "")
    assert kept.gives_time_back is drops
    here = weigh(resumed, its.ways, its.settling, witness=replace(elsewhere, is_elsewhere=False))
    assert len(here.exchanges) == len(FOUND) + 1, "a worker of the same address has nothing else to hear"


def test_a_refusal_is_heard_from_another_address_before_it_is_settled_once() -> None:
    """Nobody could ask in its place when it was met."""
    its = TABLE["its own server refuses us, for ten minutes"]
    alone, together = Witness(here="dc2"), Witness(here="dc2", others=("default",))
    kept = weigh(its.resumed, its.ways, its.settling, witness=together)
    assert kept.wait is not None
    assert (kept.wait.waits_on, kept.refused_at) == ("egress:dc2", "dc2")
    assert weigh(its.resumed, its.ways, its.settling, witness=alone).wait is None
    again = replace(its.resumed, refused_at="dc2")
    assert weigh(again, its.ways, its.settling, witness=together).wait is None


@pytest.mark.parametrize(("refused_at", "here", "asks"), [("default", "dc3", True), ("default", "default", False)])
def test_who_asked_in_anothers_place_and_was_halted_has_no_say(refused_at: str, here: str, asks: bool) -> None:
    its = TABLE["TOOL-005 was halted meanwhile"]
    resumed = replace(its.resumed, met_by="two/1/b", met_at="dc2", refused_at=refused_at)
    witness = Witness(run="two/1/b", is_self=False, is_elsewhere=True, here=here)
    kept = weigh(resumed, its.ways, its.settling, witness=witness)
    assert (kept.wait is None) is asks, "one that was refused itself waits for the halt to end"


@pytest.mark.parametrize("host", ["mx1.acme.example", "mx1.bigmail.example"])
def test_a_shared_providers_silence_is_heard_again_from_another_address_once(host: str) -> None:
    """It may drop the packets of that address alone; a company's own server has no reason to."""
    its = Back(row="", left=[], answers={**FOUND, FIRST: MailboxAnswer(attempts=(silence(host),))}, looks=1)
    exchanges = tuple(replace(exchange, asked="info@acme.example") for exchange in its.resumed.exchanges)
    for refused_at, asks in (("", True), ("dc2", True), ("dc3", False)):
        resumed = replace(its.resumed, exchanges=exchanges, met_by="two/1/b", met_at="dc2", refused_at=refused_at)
        elsewhere = Witness(run="two/1/b", is_self=False, is_elsewhere=True)
        kept = weigh(resumed, its.ways, its.settling, witness=elsewhere)
        is_shared = host != "mx1.acme.example"
        assert [exchange.key for exchange in kept.exchanges] == ([*FOUND] if asks and is_shared else [*FOUND, FIRST])
        assert kept.refused_at == ("dc2" if asks and is_shared else "")


def test_a_closed_providers_silence_is_asked_again_though_it_was_proven_once() -> None:
    its = Back(
        row="", left=[], answers={**FOUND, FIRST: MailboxAnswer(attempts=(silence("mx1.bigmail.example"),))}, looks=1
    )
    proven = tuple(replace(exchange, proven=True) for exchange in its.resumed.exchanges)
    resumed = replace(its.resumed, exchanges=proven, reason=WaitReason.PROVIDER_CLOSED)
    kept = weigh(resumed, its.ways, its.settling)
    assert [exchange.key for exchange in kept.exchanges] == [*FOUND]


def silence(host: str) -> Attempt:
    return Attempt(host=host, ip="192.0.2.1", stage=Stage.CONNECT, trouble=Trouble.TIMEOUT)


@pytest.mark.parametrize(
    ("ip", "kept"), [("192.0.2.1", [*SILENT]), ("2001:db8::1", [*FOUND])], ids=["over IPv4", "over IPv6"]
)
def test_a_machine_without_ipv6_broke_nothing_by_that(ip: str, kept: list[str]) -> None:
    """Its control over IPv6 fails all the time."""
    its = Back(row="", left=[], answers=SILENT)
    silent = Attempt(host="mx1.acme.example", ip=ip, stage=Stage.CONNECT, trouble=Trouble.TIMEOUT)
    exchanges = [*its.resumed.exchanges[:-1], Exchange(key=FIRST, answer=MailboxAnswer(attempts=(silent,)))]
    never = replace(UNPROVEN, failed_at=FAILED, trouble_until=UNPROVEN.proven_since)
    ways = its.ways | {ControlKind.SMTP6: never, ControlKind.DNS_TCP: never}
    left = weigh(replace(its.resumed, exchanges=tuple(exchanges)), ways, its.settling)
    assert [exchange.key for exchange in left.exchanges] == kept


def test_what_is_confirmed_once_stays_whatever_breaks_later() -> None:
    its = back(TAKEN["its silence, proven before and after"])
    kept = weigh(its.resumed, its.ways, its.settling, witness=ANOTHER)
    again = replace(its.resumed, exchanges=tuple(kept.exchanges), met_by="three/1/c")
    broken = dict.fromkeys(ControlKind, OUTAGE)
    for witness in (ANOTHER, GONE):
        left = weigh(again, broken, its.settling, witness=witness)
        assert [exchange.key for exchange in left.exchanges] == [*SILENT]
    assert Moments.of(again, left, taken=len(left.exchanges)).failed([*left.exchanges]) is FailedAt.ON_RECORD, (
        "how long ago its silence was still matters, if a provider is silent for all"
    )


def test_an_answer_with_its_control_on_record_is_confirmed() -> None:
    control = {"control:smtp": ControlAnswer(detail="greets")}
    its = Back(row="nothing failed", left=[*SILENT, *control], answers=SILENT | control, smtp=OUTAGE)
    kept = weigh(its.resumed, its.ways, its.settling, witness=GONE)
    assert [exchange.key for exchange in kept.exchanges] == its.left


@pytest.mark.parametrize(
    ("answers", "about_us", "needed"),
    [
        pytest.param(ABSENT, False, [ControlKind.DNS], id="an absence"),
        pytest.param(SILENT, False, [ControlKind.SMTP], id="silence"),
        pytest.param({**FOUND, FIRST: trouble(Trouble.NAME_LOOKUP)}, False, [ControlKind.DNS], id="a name"),
        pytest.param(FOUND, True, [ControlKind.SMTP], id="a reply about us"),
        pytest.param({**FOUND, FIRST: NO}, False, [], id="a word"),
        pytest.param({**SILENT, "control:smtp": ControlAnswer(detail="")}, False, [], id="confirmed on record"),
    ],
)
def test_each_failure_needs_the_proof_of_one_way(
    answers: dict[str, Answer], about_us: bool, needed: list[ControlKind]
) -> None:
    exchanges = [Exchange(key=key, answer=answer) for key, answer in answers.items()]
    assert open_needs(exchanges, about_us=[ControlKind.SMTP] if about_us else []) == needed
    assert open_needs([replace(e, proven=True) for e in exchanges]) == []


# ---------------------------------------------------------------- astray: a yes proves as little as silence does

HEARD: dict[str, Answer] = {"mx": mx(), FIRST: YES, SECOND: NO}
BEFORE, AFTER = FAILED - timedelta(seconds=9), FAILED + timedelta(seconds=9)
AFTER_S = 2.0  #: after the question, in seconds: when everything was heard


def heard(by: str = "two/1/b", **fields: object) -> list[Exchange]:
    at = FAILED.isoformat()
    return [Exchange(key=key, answer=answer, at=at, by=by, **fields) for key, answer in HEARD.items()]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dns", "smtp", "left"),
    [
        pytest.param(GOOD, GOOD, 3, id="all is well"),
        pytest.param(GOOD, way(trouble_s=(1, 3)), 0, id="somebody else answers: who knows whose hosts these are"),
        pytest.param(way(trouble_s=(1, 3)), GOOD, 0, id="the resolvers lie"),
        pytest.param(GOOD, way(trouble_s=(3, 9)), 3, id="a control succeeded between"),
        pytest.param(GOOD, way(trouble_s=(-9, 2)), 3, id="after the repair"),
        pytest.param(GOOD, way(trouble_s=(2, 9)), 0, id="in the moment of the last success"),
        pytest.param(GOOD, replace(GOOD, control_at=BEFORE), 3, id="its next control is still to come"),
        pytest.param(GOOD, replace(GOOD, control_at=BEFORE, is_gone=True), 0, id="killed before its next control"),
        pytest.param(
            replace(GOOD, control_at=BEFORE, is_gone=True), GOOD, 0, id="and before the next of its resolvers"
        ),
        pytest.param(GOOD, replace(GOOD, control_at=AFTER, is_gone=True), 3, id="asked once more before it ended"),
        pytest.param(GOOD, replace(GOOD, is_gone=True), 3, id="ended, and never used that way"),
    ],
)
def test_nothing_counts_that_a_worker_heard_after_its_last_control(dns: Way, smtp: Way, left: int) -> None:
    runs = {"two/1/b": {ControlKind.DNS: dns, ControlKind.SMTP: smtp}}
    assert len(before_astray(heard(), runs)) == left
    assert len(before_astray(heard(by="one/1/a"), runs)) == 3, "what another one heard"
    assert len(before_astray(heard(proven=True), runs)) == 3
    its = Back(row="", left=[])
    resumed = replace(its.resumed, exchanges=tuple(heard()), failed_at=None)
    kept = weigh(resumed, its.ways, its.settling, runs=runs, by="two/1/b")
    assert len(kept.exchanges) == left
    assert kept.gives_time_back is (left < 3)


def test_a_worker_that_loses_its_way_for_the_second_time_has_not_proven_the_first() -> None:
    first = (FAILED - timedelta(seconds=1), FAILED + timedelta(seconds=1))
    later = replace(way(trouble_s=(9000, 9060)), earlier=(first,))
    assert before_astray(heard(), {"two/1/b": {ControlKind.DNS: later}}) == []
    assert later.voids(*first)


def test_who_asked_is_kept_with_every_answer() -> None:
    exchanges = [*heard(), Exchange(key="x", answer=no_mx(MxStatus.NXDOMAIN), proven=True)][:3]
    assert from_json(to_json(exchanges)) == exchanges
    assert "by" not in to_json([Exchange(key="mx", answer=mx())])[0]


def test_a_void_answer_takes_no_moment_from_what_is_proven() -> None:
    """A shared provider's silence that another worker proved still has its age, when this one's is void."""
    its = back(TAKEN["its silence, proven before and after"])
    proven = weigh(its.resumed, its.ways, its.settling, witness=ANOTHER).exchanges
    more = [*proven, Exchange(key=SECOND, answer=trouble(Trouble.TIMEOUT))]
    kept = weigh(replace(its.resumed, exchanges=tuple(more)), its.ways | {ControlKind.SMTP: OUTAGE}, its.settling)
    assert [exchange.key for exchange in kept.exchanges] == [*SILENT]
    assert kept.failed_at == FAILED


def test_a_refusal_over_ipv6_is_settled_by_a_control_over_ipv6() -> None:
    refused = refusal()
    over_ipv6 = replace(refused, attempts=(replace(refused.attempts[-1], ip="2001:db8::1"),))
    its = Back(row="", left=[], answers=FOUND, pending=over_ipv6)
    ways = its.ways | {ControlKind.SMTP: NO_PROOF_YET, ControlKind.SMTP6: GOOD}
    kept = weigh(its.resumed, ways, its.settling)
    assert [exchange.key for exchange in kept.exchanges] == [*FOUND, SECOND], "the company's own policy"
    unproven = weigh(its.resumed, its.ways | {ControlKind.SMTP6: NO_PROOF_YET}, its.settling)
    assert [exchange.key for exchange in unproven.exchanges] == [*FOUND], "what IPv4 proves says nothing of it"
