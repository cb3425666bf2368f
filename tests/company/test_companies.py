"""One company, from its event to where it may be acked: each way it can go, with every part scripted."""

from __future__ import annotations

import asyncio
import errno
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from ct_stream.company.companies import Companies
from ct_stream.gate.output_stage import Origin, Outcome
from ct_stream.gate.questions import SpineAnswer
from ct_stream.gate.records import Known, Parked, Publication, Resumed
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.verdicts import Failed, Passed, VerifiedBy
from ct_stream.gate.waits import NOTHING, Wait, WaitReason, WaitsOn
from ct_stream.metrics import Health, Metrics
from ct_stream.store.batches import RowHeld

if TYPE_CHECKING:
    from collections.abc import Sequence

NOW = datetime(2026, 1, 7, 9, 30, tzinfo=UTC)
PASSED = Passed(
    domain="acme.example", method_type="info", email_method="info@acme.example", confidence=0.7, is_catchall=False,
    verified_by=VerifiedBy.SMTP,
)  # fmt: skip
UNKNOWN = Known(outcome=None, pass_state=None, in_spine=True, domain="acme.example")
SETTLED = Known(outcome="PASS", pass_state=None, in_spine=True, domain="acme.example")
UNSTAMPED = Known(outcome="PASS", needs_publishing=True, pass_state=None, in_spine=True, domain="acme.example")


class Parts:
    """Ledger, passes, outbox and gate in one script; `steps` is what happened, in order."""

    rules_version = "1+test"

    def __init__(self, result: Any = PASSED) -> None:
        self.steps: list[str] = []
        self.left: list[str] = []  # the last step before a pass let go of its domain
        self.known = [UNKNOWN]
        self.result = result
        self.wins = True
        self.broker_takes = True
        self.parked: list[Parked] = []
        self.exceptions = 0
        self.stuck = 0
        self.asking = asyncio.Event()
        self.asking.set()
        parts: Any = self
        self.health = Health()
        self.companies = Companies(
            gate=parts, database=parts, ledger=parts, parked=parts, outbox=parts, metrics=Metrics(),
            health=self.health, on_stuck=self.become_stuck,
        )  # fmt: skip

    # the ledger
    async def look_up(self, _id: UUID) -> Known:
        self.steps.append("look up")
        return self.known.pop(0) if len(self.known) > 1 else self.known[0]

    async def record(self, _outcome: Outcome) -> bool:
        self.steps.append("record")
        return self.wins

    async def claim(self, outreach_id: UUID) -> Publication | None:
        self.steps.append("claim")
        return Publication(outreach_id=outreach_id, topic="ct.pass", key=b"k", value=b"recorded bytes", headers=())

    def now(self) -> datetime:
        return NOW

    # the outbox
    async def publish(self, publication: Publication) -> bool:
        self.steps.append("publish recorded" if publication.value == b"recorded bytes" else "publish")
        return self.broker_takes

    # the undecided
    async def park(self, parked: Parked) -> None:
        self.steps.append(f"park {parked.wait.reason}")
        self.parked.append(parked)

    async def give_back(self, _ids: Sequence[UUID]) -> None:
        self.steps.append("give back")

    async def forget(self, _id: UUID) -> None:
        self.steps.append("forget")

    async def count_exception(self, *_: Any) -> tuple[int, str]:
        self.exceptions += 1
        self.steps.append("count exception")
        return self.exceptions, "stuck" if self.exceptions >= 3 else "waiting"

    async def become_stuck(self) -> None:
        self.stuck += 1

    # the gate
    async def begin(self, *_: Any) -> Any:
        async def run() -> Any:
            self.steps.append("ask")
            await self.asking.wait()
            if isinstance(self.result, Exception):
                raise self.result
            return self.result

        exchanges = (Exchange(key="spine", answer=SpineAnswer(found=True, domain="acme.example")),)
        return SimpleNamespace(
            run=run, leave=lambda: self.left.append(self.steps[-1]), exchanges=exchanges,
            parked=lambda origin, event_at, wait: Parked(
                origin=origin, event_at=event_at, wait=wait, exchanges=exchanges
            ),
        )  # fmt: skip


def origin(outreach_id: UUID | None = None) -> Origin:
    return Origin(outreach_id=outreach_id or uuid4(), topic="spine.created", partition=0, offset=1)


async def test_a_new_company_is_asked_recorded_published_and_then_may_be_acked() -> None:
    parts = Parts()
    assert await parts.companies.from_event(origin(), None) == "PASS"
    assert parts.steps == ["look up", "ask", "record", "publish"]
    assert parts.left[0] == "record", "before its answers are on record another company would ask the domain again"


async def test_a_decided_company_is_neither_asked_nor_published_again() -> None:
    parts = Parts()
    parts.known = [SETTLED]
    assert await parts.companies.from_event(origin(), None) == "PASS"
    assert parts.steps == ["look up"]


async def test_a_remembered_company_costs_one_look_into_the_ledger() -> None:
    parts = Parts()
    parts.known = [SETTLED]
    assert await parts.companies.from_event(origin(), None, "PASS") == "PASS"
    assert parts.steps == ["look up"]


async def test_an_event_waits_while_the_ledger_lacks_the_row_that_we_remember(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ct_stream.company.companies._LOST_ROW_RETRY_S", 0.01)
    parts = Parts()
    task = asyncio.create_task(parts.companies.from_event(origin(), None, "PASS"))
    await asyncio.sleep(0.05)
    assert not task.done()
    assert "the ledger has no row" in parts.health.troubles["ledger"]
    parts.known = [SETTLED]
    assert await task == "PASS"
    assert parts.health.troubles == {}
    assert "ask" not in parts.steps, "it was decided a second time"


async def test_a_recorded_company_that_was_never_stamped_gets_its_recorded_bytes_published() -> None:
    parts = Parts()
    parts.known = [UNSTAMPED]
    assert await parts.companies.from_event(origin(), None) == "PASS"
    assert parts.steps == ["look up", "claim", "publish recorded"]


async def test_a_company_whose_wait_is_on_record_is_left_to_the_scheduler() -> None:
    parts = Parts()
    parts.known = [Known(outcome=None, pass_state="waiting", in_spine=True, domain=None)]
    assert await parts.companies.from_event(origin(), None) is None
    assert parts.steps == ["look up"]


async def test_a_wait_is_recorded_with_its_answers_before_the_ack() -> None:
    parts = Parts(
        Wait(reason=WaitReason.PROVIDER_CLOSED, detail="closed", waits_on=WaitsOn.provider("bigmail.example"))
    )
    assert await parts.companies.from_event(origin(), None) is None
    assert parts.steps == ["look up", "ask", "park provider_closed"]
    assert len(parts.parked[0].exchanges) == 1


async def test_the_loser_of_a_race_publishes_the_winners_bytes() -> None:
    parts = Parts(Failed(code="CT-M-NO-MX", reason="none", domain="acme.example"))  # type: ignore[arg-type]
    parts.result = PASSED
    parts.wins = False
    parts.known = [UNKNOWN, UNSTAMPED]
    assert await parts.companies.from_event(origin(), None) == "PASS"
    assert parts.steps == ["look up", "ask", "record", "look up", "claim", "publish recorded"]


async def test_an_event_is_not_acked_while_the_broker_refuses_its_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ct_stream.company.companies._CLAIM_RETRY_S", 0.01)
    parts = Parts()
    parts.broker_takes = False
    parts.known = [UNKNOWN, UNSTAMPED]
    task = asyncio.create_task(parts.companies.from_event(origin(), None))
    await asyncio.sleep(0.05)
    assert not task.done()
    parts.broker_takes = True
    assert await task == "PASS"
    assert parts.steps[-1] == "publish recorded"


@pytest.mark.parametrize(
    ("wins", "broker_takes", "known"),
    [
        pytest.param(True, False, [UNKNOWN], id="it won, and the broker did not take it"),
        pytest.param(False, True, [UNKNOWN], id="another one won"),
        pytest.param(True, True, [UNSTAMPED, UNKNOWN], id="gone while its claim was waited for"),
    ],
)
async def test_no_event_is_let_go_while_the_ledger_has_lost_the_row(
    monkeypatch: pytest.MonkeyPatch, wins: bool, broker_takes: bool, known: list[Known]
) -> None:
    """A failover to a standby that lagged: what was recorded is gone, and an acked event would be lost for good."""
    monkeypatch.setattr("ct_stream.company.companies._CLAIM_RETRY_S", 0.01)
    parts = Parts()
    parts.wins, parts.broker_takes, parts.known = wins, broker_takes, known

    async def nobody(_outreach_id: UUID) -> None:
        parts.steps.append("claim")

    monkeypatch.setattr(parts, "claim", nobody)
    task = asyncio.create_task(parts.companies.from_event(origin(), None))
    await asyncio.sleep(0.1)
    assert not task.done(), "acked without an outcome and without a wait"
    parts.known = [SETTLED]
    assert await task == "PASS"


async def test_the_lost_row_of_an_event_that_was_given_up_is_no_trouble_any_more() -> None:
    parts = Parts()
    task = asyncio.create_task(parts.companies.from_event(origin(), None, "PASS"))
    await asyncio.sleep(0.01)
    assert "ledger" in parts.health.troubles
    assert parts.companies.in_hand == [], "the scheduler would be kept from a company that waits"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert parts.health.troubles == {}


async def test_what_breaks_while_a_remembered_row_is_looked_for_is_charged_to_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = Parts()

    async def broken(_outreach_id: UUID) -> Known:
        raise KeyError("a bug")

    monkeypatch.setattr(parts, "look_up", broken)
    with pytest.raises(KeyError):
        await parts.companies.from_event(origin(), None, "PASS")
    assert parts.exceptions == 0, "counted, it would be decided a second time"


async def test_our_bug_counts_for_its_own_company_and_the_third_makes_it_stuck() -> None:
    parts = Parts(KeyError("x"))
    company = origin()
    for _ in range(3):
        assert await parts.companies.from_event(company, None) is None
    assert parts.exceptions == 3
    assert parts.stuck == 1
    assert "record" not in parts.steps, "an exception is no outcome"


@pytest.mark.parametrize(
    "trouble",
    [*(OSError(n, "no more of it") for n in (errno.EMFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL)), MemoryError()],
    ids=repr,
)
async def test_a_machine_out_of_resources_counts_against_no_company(trouble: Exception) -> None:
    parts = Parts(trouble)
    assert await parts.companies.from_event(origin(), None) is None
    assert parts.exceptions == 0
    assert parts.steps[-1] == "park our_machine"
    assert parts.parked[0].exchanges, "its answers are kept"


async def test_a_company_whose_row_somebody_holds_waits_with_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts()

    async def held(_outcome: Outcome) -> bool:
        raise RowHeld("canceling statement due to lock timeout")

    monkeypatch.setattr(parts, "record", held)
    assert await parts.companies.from_event(origin(), None) is None
    assert (parts.exceptions, parts.steps[-1]) == (0, "park row_held")
    assert parts.parked[0].exchanges, "its answers are kept"
    assert parts.parked[0].wait.after_s == 60.0


async def test_people_hear_when_nothing_can_be_recorded_and_when_it_can_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A company that waits alone is its own affair; five in a row are the tables'."""
    parts, record = Parts(), Parts.record

    async def held(_outcome: Outcome) -> bool:
        raise RowHeld("the constraint odd of outreach.company_target refuses recording it")

    monkeypatch.setattr(parts, "record", held)
    for number in range(1, 7):
        await parts.companies.from_event(origin(), None)
        assert ("rows" in parts.health.troubles) == (number >= 5)
    assert (
        "6 decided companies in a row could not be recorded, the last: the constraint odd"
        in (parts.health.troubles["rows"])
    )
    assert [line.message for line in caplog.records if "waits to be recorded" in line.message] == [
        "A decided company waits to be recorded: the constraint odd of outreach.company_target refuses recording it"
    ]
    monkeypatch.setattr(parts, "record", record.__get__(parts))
    await parts.companies.from_event(origin(), None)
    assert "rows" not in parts.health.troubles


async def test_a_pass_that_is_given_up_keeps_its_answers() -> None:
    parts = Parts()
    parts.asking.clear()
    task = asyncio.create_task(parts.companies.from_event(origin(), None))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await parts.companies.wait_parked()
    assert [parked.wait.reason for parked in parts.parked] == [WaitReason.DRAIN]
    assert parts.parked[0].exchanges


async def test_two_events_of_one_company_at_once_ask_once() -> None:
    parts = Parts()
    parts.asking.clear()
    company = origin()
    first = asyncio.create_task(parts.companies.from_event(company, None))
    second = asyncio.create_task(parts.companies.from_event(company, None))
    await asyncio.sleep(0.01)
    assert len(parts.companies.in_hand) == 1
    parts.known = [SETTLED]
    parts.asking.set()
    assert list(await asyncio.gather(first, second)) == ["PASS", "PASS"]
    assert parts.steps.count("ask") == 1


def resumed(company: Origin) -> Resumed:
    return Resumed(
        origin=company, event_at=None, domain=None, reason="control", exchanges=(), pending=None, spent_s=0.0,
        asked_at=None, failed_at=None, since=NOW, exceptions=0, looks=0, waits_on=NOTHING,
    )  # fmt: skip


async def test_a_waiting_company_that_was_decided_meanwhile_is_forgotten() -> None:
    parts = Parts()
    parts.known = [SETTLED]
    await parts.companies.from_waiting(resumed(origin()))
    assert parts.steps == ["look up", "forget"]


async def test_a_waiting_company_that_an_event_has_in_hand_is_given_back() -> None:
    parts = Parts()
    parts.asking.clear()
    company = origin()
    task = asyncio.create_task(parts.companies.from_event(company, None))
    await asyncio.sleep(0.01)
    await parts.companies.from_waiting(resumed(company))
    assert parts.steps[-1] == "give back"
    parts.asking.set()
    await task
