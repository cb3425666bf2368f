"""Which answers still count when a company comes back from its wait? The table of gate/evidence.py, row by row."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from ct_stream.gate.evidence import (
    LOOKS,
    ROWS,
    Case,
    Kept,
    Moments,
    Settling,
    Way,
    confirmed,
    may_be_ours,
    nothing_failed,
    proofs_needed,
    silent_providers,
    spent_s,
    weigh,
)
from ct_stream.gate.output_stage import Origin
from ct_stream.gate.questions import Attempt, ControlAnswer, ControlKind, MailboxAnswer, MxStatus, SpineAnswer, Trouble
from ct_stream.gate.records import FailedAt, Resumed
from ct_stream.gate.replies import Reply, Stage
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.waits import NOTHING, Wait, WaitReason, WaitsOn
from tests.gate.world import NO, RULES, mx, no_mx, said, trouble

if TYPE_CHECKING:
    from ct_stream.gate.questions import Answer

ASKED = datetime(2026, 1, 7, 9, 30, tzinfo=UTC)
FAILED = ASKED + timedelta(seconds=2)
LONG_AGO = ASKED - timedelta(days=1)
FIRST, SECOND, THIRD = (f"rcpt:{pattern.name}" for pattern in RULES.patterns[:3])
SPINE = {"spine": SpineAnswer(found=True, domain="acme.example")}
ABSENT: dict[str, Answer] = {**SPINE, "mx": no_mx(MxStatus.NXDOMAIN)}
FOUND: dict[str, Answer] = {**SPINE, "mx": mx("mx1.acme.example", "mx2.acme.example")}
SILENT: dict[str, Answer] = {**FOUND, FIRST: trouble(Trouble.TIMEOUT, host="mx1.acme.example")}


def way(since_s: float = -60, until_s: float = 5, trouble_s: tuple[float, float] = (-9000, -8000)) -> Way:
    """Return a way that proofs show to work from `since_s` to `until_s`, in seconds after the question."""
    return Way(
        ok_begun_at=ASKED + timedelta(seconds=until_s), ok_detail="proven", failed_at=LONG_AGO, failed_detail="",
        trouble_from=ASKED + timedelta(seconds=trouble_s[0]), trouble_until=ASKED + timedelta(seconds=trouble_s[1]),
        proven_since=ASKED + timedelta(seconds=since_s),
    )  # fmt: skip


GOOD = way()
NO_PROOF_YET = way(until_s=1)
PROVEN_SINCE_TOO_LATE = way(since_s=1)


def refusal(*before: Attempt, host: str = "mx2.acme.example") -> MailboxAnswer:
    reply = Reply(code=554, enhanced="5.7.1", text="blocked using a list at spamhaus")
    return MailboxAnswer(attempts=(*before, Attempt(host=host, ip="192.0.2.2", stage=Stage.BANNER, reply=reply)))


OF_A_BACKUP = said(550, "5.1.1", "User unknown", host="mx2.acme.example")
NO_NAME = Attempt(host="mx1.acme.example", stage=Stage.CONNECT, trouble=Trouble.NAME_LOOKUP)


@dataclass(frozen=True, kw_only=True)
class Back:
    """A company that comes back, and what is known of our own way by then."""

    row: str  #: which decides
    left: list[str]  #: keys of the answers that are kept
    answers: dict[str, Answer] = field(default_factory=lambda: SILENT)
    pending: MailboxAnswer | None = None
    reason: WaitReason = WaitReason.CONTROL
    waits_on: WaitsOn = NOTHING
    looks: int = LOOKS
    has_failed: bool = True
    dns: Way = GOOD
    smtp: Way = GOOD
    age_s: float = 1000.0
    halted: str | None = None
    closed: tuple[str, ...] = ()  #: networks and addresses
    opened_s: float | None = None  #: after the refusal: when their network was opened again
    resumed_s: float | None = None  #: after the refusal: when a person resumed TOOL-005
    waits: WaitReason | None = None
    gives_time_back: bool = False
    moments: bool = False  #: whether they keep their moments
    looked: int = LOOKS
    answered: tuple[str, ...] = ()
    in_chain: tuple[bool, bool] = (False, False)

    @property
    def resumed(self) -> Resumed:
        return Resumed(
            origin=Origin(outreach_id=UUID(int=1)), event_at=None, domain="acme.example", reason=self.reason,
            exchanges=tuple(Exchange(key=key, answer=answer) for key, answer in self.answers.items()),
            pending=Exchange(key=SECOND, answer=self.pending) if self.pending else None, spent_s=80.0,
            asked_at=ASKED, failed_at=FAILED if self.has_failed else None, since=ASKED, exceptions=0,
            looks=self.looks, waits_on=self.waits_on,
        )  # fmt: skip

    @property
    def ways(self) -> dict[ControlKind, Way]:
        return {ControlKind.DNS: self.dns, ControlKind.SMTP: self.smtp}

    @property
    def settling(self) -> Settling:
        opened = {} if self.opened_s is None else {"192.0.2.0/24": FAILED + timedelta(seconds=self.opened_s)}
        return Settling(
            settle_s=600.0,
            age_s=self.age_s,
            halted_by=None if self.halted is None else WaitsOn.tool("TOOL-005"),
            halted=self.halted or "",
            closed=frozenset(self.closed),
            opened=opened,
            resumed_at=None if self.resumed_s is None else FAILED + timedelta(seconds=self.resumed_s),
        )


DNS, SMTP = WaitsOn.control(ControlKind.DNS), WaitsOn.control(ControlKind.SMTP)
OUTAGE = way(trouble_s=(-1, 3))
TABLE = {
    "nothing was asked when a control failed": Back(
        row="nothing failed", answers=dict(SPINE), left=["spine"], waits_on=DNS, dns=OUTAGE
    ),
    "no failure is on record": Back(row="nothing failed", has_failed=False, left=[*SILENT], smtp=OUTAGE),
    "a provider's word is asked again": Back(
        row="nothing failed", has_failed=False, answers=FOUND, pending=refusal(), left=[*FOUND], gives_time_back=True
    ),
    "our resolvers were broken": Back(
        row="own way broken", answers=ABSENT, left=["spine"], dns=OUTAGE, gives_time_back=True
    ),
    "port 25 was": Back(row="own way broken", left=[*FOUND], smtp=OUTAGE, gives_time_back=True),
    "either one, whatever it waits for": Back(
        row="own way broken", left=[*FOUND], dns=OUTAGE, waits_on=SMTP, gives_time_back=True
    ),
    "the first look at silence": Back(
        row="first look", left=[*SPINE], looks=0, looked=1, gives_time_back=True
    ),
    "what was answered behind it is not asked again": Back(
        row="first look", answers={**SILENT, SECOND: NO, THIRD: NO}, left=[*SPINE], looks=0, looked=1,
        gives_time_back=True, answered=(SECOND, THIRD),
    ),
    "silence of a first host before a reply about us": Back(
        row="first look", answers=FOUND, pending=refusal(replace(NO_NAME, trouble=Trouble.TIMEOUT)),
        left=[*SPINE], looks=0, looked=1, gives_time_back=True,
    ),
    "an absence is an answer, and is not looked at twice": Back(
        row="else", answers=ABSENT, left=[*ABSENT], looks=0, looked=0, waits_on=DNS, moments=True
    ),
    "no chain before an absence": Back(
        row="no chain", answers=ABSENT, left=["spine"], waits_on=DNS, dns=PROVEN_SINCE_TOO_LATE, gives_time_back=True
    ),
    "nor before silence": Back(
        row="no chain", left=[*FOUND], waits_on=SMTP, smtp=PROVEN_SINCE_TOO_LATE, gives_time_back=True
    ),
    "the other way needs none": Back(
        row="else", left=[*SILENT], waits_on=SMTP, dns=PROVEN_SINCE_TOO_LATE, moments=True
    ),
    "a refusal behind a name that nothing proves well": Back(
        row="no chain", answers=FOUND, pending=refusal(NO_NAME), left=[*FOUND], waits_on=SMTP,
        dns=PROVEN_SINCE_TOO_LATE, gives_time_back=True,
    ),
    "the one try of a closed provider": Back(
        row="closed provider", left=[*FOUND], reason=WaitReason.PROVIDER_CLOSED, gives_time_back=True
    ),
    "a name in trouble, and no proof of DNS yet": Back(
        row="names unproven", answers=FOUND, pending=refusal(NO_NAME), left=[*FOUND], waits_on=SMTP,
        dns=NO_PROOF_YET, waits=WaitReason.CONTROL, moments=True,
    ),
    "a shared provider refuses us": Back(
        row="provider's word", answers=FOUND, pending=refusal(host="mx.bigmail.net"), left=[*FOUND],
        gives_time_back=True,
    ),
    "its own server and a shared provider do": Back(
        row="provider's word", answers=FOUND, left=[*FOUND], gives_time_back=True,
        pending=refusal(*refusal(host="mx.bigmail.net").attempts),
    ),
    "its own server does, as many in its network do": Back(
        row="provider's word", answers=FOUND, pending=refusal(), left=[*FOUND], closed=("192.0.2.0/24",),
        gives_time_back=True,
    ),
    "or at its address": Back(
        row="provider's word", answers=FOUND, pending=refusal(), left=[*FOUND], closed=("192.0.2.2",), age_s=10.0,
        gives_time_back=True,
    ),
    "and its network talks to us again since": Back(
        row="provider's word", answers=FOUND, pending=refusal(), left=[*FOUND], opened_s=1.0, gives_time_back=True
    ),
    "its own server refused us before a person resumed all of SMTP": Back(
        row="provider's word", answers=FOUND, pending=refusal(), left=[*FOUND], resumed_s=1.0, gives_time_back=True
    ),
    "its own server refused us after a person had resumed all of SMTP": Back(
        row="private policy", answers=FOUND, pending=refusal(), left=[*FOUND, SECOND], resumed_s=-1.0, moments=True
    ),
    "its network talked to us before it refused": Back(
        row="private policy", answers=FOUND, pending=refusal(), left=[*FOUND, SECOND], opened_s=-1.0, moments=True
    ),
    "other networks are closed": Back(
        row="private policy", answers=FOUND, pending=refusal(), left=[*FOUND, SECOND], moments=True,
        closed=("192.0.3.0/24", "192.0.2.3", "acme.example"),
    ),
    "ten minutes are not over": Back(
        row="not settled", answers=FOUND, pending=refusal(), left=[*FOUND], age_s=10.0,
        waits=WaitReason.REFUSED, moments=True,
    ),
    "TOOL-005 was halted meanwhile": Back(
        row="not settled", answers=FOUND, pending=refusal(), left=[*FOUND], halted="listed",
        waits=WaitReason.HALTED, moments=True,
    ),
    "its own server refuses us, for ten minutes": Back(
        row="private policy", answers=FOUND, pending=refusal(), left=[*FOUND, SECOND], moments=True
    ),
    "and was proven before them": Back(
        row="private policy", answers=FOUND, pending=refusal(NO_NAME), left=[*FOUND, SECOND], moments=True,
        reason=WaitReason.REFUSED, dns=PROVEN_SINCE_TOO_LATE, in_chain=(False, True),
    ),
    "in an unbroken chain": Back(row="else", left=[*SILENT], waits_on=SMTP, moments=True),
    "no proof after it yet": Back(
        row="else", left=[*SILENT], waits_on=SMTP, smtp=NO_PROOF_YET, moments=True
    ),
    "a silent provider, for ten minutes": Back(
        row="else", left=[*SILENT], reason=WaitReason.PROVIDER_SILENT, smtp=PROVEN_SINCE_TOO_LATE, moments=True,
        in_chain=(True, False),
    ),
    "a reply about us that nothing proves yet": Back(
        row="else", answers=FOUND, pending=refusal(), left=[*FOUND], smtp=NO_PROOF_YET,
        gives_time_back=True, moments=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("back", [pytest.param(back, id=name) for name, back in TABLE.items()])
def test_the_first_row_that_holds_decides_what_is_kept(back: Back) -> None:
    resumed = back.resumed
    case = Case(resumed=resumed, ways=back.ways, settling=back.settling)
    assert next(row.id for row in ROWS if row.when(case)) == back.row
    kept = weigh(resumed, back.ways, back.settling)
    assert [exchange.key for exchange in kept.exchanges] == back.left
    assert tuple(exchange.key for exchange in kept.answered) == back.answered
    assert (kept.wait and kept.wait.reason) == back.waits
    assert kept.gives_time_back is back.gives_time_back
    assert spent_s(resumed, kept) == (0.0 if back.gives_time_back else 80.0)
    assert (kept.asked_at, kept.failed_at) == ((ASKED, FAILED) if back.moments else (None, None))
    assert (kept.in_chain, kept.in_both_chains) == back.in_chain
    assert kept.looks == back.looked


def test_a_private_policy_is_marked_as_settled() -> None:
    back = TABLE["its own server refuses us, for ten minutes"]
    answer = weigh(back.resumed, back.ways, back.settling).exchanges[-1].answer
    assert isinstance(answer, MailboxAnswer)
    assert answer.is_private_policy


def test_without_a_failed_answer_no_proofs_are_needed() -> None:
    back = TABLE["no failure is on record"]
    assert nothing_failed(back.resumed)
    assert [e.key for e in weigh(back.resumed, {}, back.settling).exchanges] == back.left


@pytest.mark.parametrize("reason", [WaitReason.DRAIN, WaitReason.OUR_MACHINE])
def test_a_session_that_we_broke_off_costs_a_company_no_time(reason: WaitReason) -> None:
    assert spent_s(replace(TABLE["in an unbroken chain"].resumed, reason=reason), Kept()) == 0.0


@pytest.mark.parametrize(
    ("smtp", "in_chain", "says"),
    [
        pytest.param(GOOD, False, "proven", id="a proof before and one after"),
        pytest.param(PROVEN_SINCE_TOO_LATE, False, 0.0, id="none before: it is asked again at once"),
        pytest.param(PROVEN_SINCE_TOO_LATE, True, "proven", id="one before was found earlier"),
        pytest.param(NO_PROOF_YET, True, None, id="none after it"),
        pytest.param(replace(NO_PROOF_YET, failed_at=FAILED), True, None, id="the last control failed"),
    ],
)
def test_a_failed_answer_is_believed_between_two_proofs(smtp: Way, in_chain: bool, says: str | float | None) -> None:
    answer = confirmed(ControlKind.SMTP, smtp, (ASKED, FAILED), in_chain=in_chain)
    assert (answer.detail if isinstance(answer, ControlAnswer) else answer.after_s) == says


@pytest.mark.parametrize(
    ("first", "needed"),
    [
        *((kind, [ControlKind.DNS]) for kind in (Trouble.NO_ADDRESS, Trouble.NAME_LOOKUP, Trouble.UNROUTABLE)),
        *((kind, [ControlKind.SMTP]) for kind in (Trouble.TIMEOUT, Trouble.UNREACHABLE, Trouble.GARBLED, Trouble.TLS)),
    ],
)
def test_each_kind_of_trouble_needs_a_proof_even_at_the_first_host_only(
    first: Trouble, needed: list[ControlKind]
) -> None:
    behind = MailboxAnswer(attempts=(replace(NO_NAME, trouble=first), *OF_A_BACKUP.attempts))
    assert proofs_needed([NO, behind]) == needed
    assert proofs_needed([NO]) == []


@pytest.mark.parametrize(
    ("answer", "is_ours"),
    [
        pytest.param(no_mx(MxStatus.UNAVAILABLE), True, id="no resolver answered"),
        pytest.param(no_mx(MxStatus.CUT_OFF), True, id="no resolver can send its answer"),
        pytest.param(no_mx(MxStatus.NXDOMAIN), False, id="an absence is a word"),
        pytest.param(trouble(Trouble.TIMEOUT), True, id="silence"),
        pytest.param(NO, False, id="a reply to RCPT"),
        pytest.param(MailboxAnswer(attempts=(replace(NO.attempts[0], reply=Reply(code=421, enhanced="", text="")),)),
                     True, id="421: it lost patience with us"),
        pytest.param(SpineAnswer(found=True), False, id="the spine"),
    ],
)  # fmt: skip
def test_a_stopped_process_may_cause_silence_but_no_reply(answer: Answer, is_ours: bool) -> None:
    assert may_be_ours(answer) is is_ours


def asked(host: str, **fields: object) -> Exchange:
    attempt = replace(Attempt(host=host, ip="192.0.2.1", stage=Stage.CONNECT, trouble=Trouble.TIMEOUT), **fields)  # type: ignore[arg-type]
    return Exchange(key=FIRST, asked="info@eu.acme.example", answer=MailboxAnswer(attempts=(attempt,)))


def test_a_shared_provider_is_silent_if_none_of_its_servers_said_a_word() -> None:
    assert silent_providers([asked("mx.bigmail.net")]) == {"bigmail.net"}
    assert silent_providers([asked("mx.bigmail.net"), asked("mx2.bigmail.net", stage=Stage.RCPT)]) == set()
    assert silent_providers([asked("mx.acme.example")]) == set(), "its own"
    assert silent_providers([asked("mx.acme.example")], {"192.0.2.0/24"}) == {"192.0.2.0/24"}, "in a closed network"
    assert silent_providers([asked("mx.bigmail.net", trouble=Trouble.DEADLINE)]) == set(), "our time was up"
    assert silent_providers([asked("mx.bigmail.net", ip="")]) == set(), "it was never connected to"


# ---------------------------------------------------------------- the moments of a running pass

SILENCE = Exchange(key=SECOND, answer=trouble(Trouble.TIMEOUT))
ON_RECORD = Kept(
    exchanges=[Exchange(key=key, answer=answer) for key, answer in SILENT.items()], asked_at=ASKED, failed_at=FAILED
)
CONTROL_WAIT = Wait(reason=WaitReason.CONTROL, detail="", waits_on=SMTP)
CAP_WAIT = Wait(reason=WaitReason.DAILY_CAP, detail="")


def moments(kept: Kept = ON_RECORD, taken: int | None = None) -> Moments:
    resumed = TABLE["in an unbroken chain"].resumed
    return Moments.of(resumed, kept, taken=len(kept.exchanges) if taken is None else taken)


@pytest.mark.parametrize(
    ("kept", "new", "ended_by", "pending", "failed"),
    [
        pytest.param(Kept(), [], None, None, FailedAt.NONE, id="nothing failed"),
        pytest.param(Kept(), [SILENCE], CONTROL_WAIT, None, FailedAt.NOW, id="the first silence is of now"),
        pytest.param(ON_RECORD, [], CONTROL_WAIT, None, FailedAt.ON_RECORD, id="it waits on for the same proof"),
        pytest.param(ON_RECORD, [SILENCE], CAP_WAIT, None, FailedAt.NOW, id="silence of this run is newer"),
        pytest.param(ON_RECORD, [SILENCE], None, None, FailedAt.NOW, id="given up in the middle"),
        pytest.param(ON_RECORD, [Exchange(key=SECOND, answer=NO)], CAP_WAIT, None, FailedAt.ON_RECORD, id="a word"),
        pytest.param(ON_RECORD, [], CAP_WAIT, SILENCE, FailedAt.NONE, id="a provider's word is asked again"),
        pytest.param(ON_RECORD, [], CONTROL_WAIT, SILENCE, FailedAt.NOW, id="its own server's is proven from now on"),
    ],
)
def test_an_earlier_proof_does_not_count_for_what_fails_now(
    kept: Kept, new: list[Exchange], ended_by: Wait | None, pending: Exchange | None, failed: FailedAt
) -> None:
    assert moments(kept).failed([*kept.exchanges, *new], ended_by, pending) is failed


def test_only_what_failed_before_has_a_window_on_record() -> None:
    record = list(ON_RECORD.exchanges)
    assert moments().window(record) == (ASKED, FAILED)
    assert moments().window([*record, SILENCE]) is None, "of now"
    assert moments(Kept()).window([]) is None
    assert moments().is_aged
    assert not moments(Kept(exchanges=record[:2])).is_aged, "nothing in them failed"


def test_answers_under_other_rules_leave_no_moments_on_record() -> None:
    other = moments(taken=0)
    assert (other.failed([]), other.window([]), other.is_aged) == (FailedAt.NONE, None, False)
