"""Which answers still count when a company comes back from its wait, and how much of its time is spent?"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

import pytest

from ct_stream.company.farewells import Farewells
from ct_stream.company.lease import Lease, Tellings
from ct_stream.company.one_pass import CompanyPass, WorkerGate
from ct_stream.company.recall import Askers, Recall
from ct_stream.gate.evidence import Way
from ct_stream.gate.memory import Memory
from ct_stream.gate.output_stage import Origin
from ct_stream.gate.questions import (
    Answer,
    Attempt,
    ControlAnswer,
    ControlKind,
    MailboxAnswer,
    MxStatus,
    SpineAnswer,
    Trouble,
)
from ct_stream.gate.records import FailedAt, Known, Parked, Resumed
from ct_stream.gate.replies import Reply, Stage
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.verdicts import Failed, Passed
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.probes.needs import Met
from ct_stream.store.control_ledger import ControlLedger, RunWays
from tests.company.ways import counts_nothing, proven_way
from tests.gate.world import NO, RULES, mx, no_mx, said, trouble

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

ID = UUID("3f0c6f0e-6f5e-4f6e-9a53-1f3c2f0f9a10")
ASKED = datetime(2026, 1, 7, 9, 30, tzinfo=UTC)
FAILED = ASKED + timedelta(seconds=2)
LATER = ASKED + timedelta(hours=1)
LONG_AGO = ASKED - timedelta(days=1)
PATTERN = RULES.patterns[0].name


def proven(*, since_s: float, until_s: float, trouble_s: tuple[float, float] = (-9000, -8000)) -> Way:
    """Return a way that proofs show to work from `since_s` to `until_s`, in seconds after the question."""
    at = [ASKED + timedelta(seconds=s) for s in (until_s, *trouble_s, since_s)]
    return Way(
        ok_begun_at=at[0], ok_detail="", failed_at=LONG_AGO, failed_detail="", trouble_from=at[1], trouble_until=at[2],
        proven_since=at[3],
    )  # fmt: skip


GOOD = proven(since_s=-60, until_s=5)


ME = "me/1/a"


class Controls(ControlLedger):
    """The controls of a way that is known."""

    def __init__(
        self,
        ways: dict[ControlKind, Way],
        *,
        others: Mapping[str, dict[ControlKind, Way]] | None = None,
        quiet: Mapping[str, float] | None = None,
        forgotten: Collection[str] = (),
    ) -> None:
        """`others`: the ways of other runs, where they differ; `quiet`: in how many seconds their end is known.

        `forgotten`: runs of which nothing is known any more.
        """
        super().__init__(cast("Any", None), 30.0, ME)
        self._ways = ways
        self._others, self._quiet, self._forgotten = others or {}, quiet or {}, forgotten

    async def own(self) -> dict[ControlKind, Way]:
        return self._ways

    async def of_runs(self, runs: Collection[str]) -> dict[str, RunWays]:
        return {
            run: RunWays(ways=self._others.get(run, self._ways), is_gone=False, unsure_s=self._quiet.get(run, 0.0))
            for run in runs
            if run not in self._forgotten
        }


async def resume(
    answers: dict[str, Answer],
    waits_on: str,
    *,
    reason: str = "control",
    looks: int = 1,
    dns: Way = GOOD,
    smtp: Way = GOOD,
    pending: Answer | None = None,
    says: Sequence[Answer] = (),
    unsettled: Wait | None = None,
) -> CompanyPass:
    """Return a company that comes back; its server says what is given, then the limit is reached."""
    said_next = iter(says)

    async def recall(_domain: str) -> Memory:
        return Memory()

    async def refresh(*, now: bool) -> None:
        del now

    async def mx_lookup() -> None:
        return None

    async def lookup_mx(_domain: str) -> Answer:
        return answers["mx"]

    async def ask(*_: object) -> Answer | Wait:
        return next(said_next, Wait(reason=WaitReason.RATE_LIMIT, detail="it would be asked again"))

    async def close(**_: object) -> None:
        return None

    def settling(*_: object) -> SimpleNamespace:
        return SimpleNamespace(
            refusal=lambda _: unsettled, is_of_many=lambda *_: False, closed=(), halted_by=None, resumed_at=None
        )

    prober = SimpleNamespace(ask=ask, close=close, heard=())
    parts: Any = SimpleNamespace(
        memory=SimpleNamespace(recall=recall), own_way=proven_way(),
        farewells=Farewells(), metrics=counts_nothing(), spine_check=None, spine_grace_s=60.0,
        limits=SimpleNamespace(mx_lookup=mx_lookup),
        guardrails=SimpleNamespace(
            refresh=refresh, settling=settling, closed=set(), closed_to=lambda _: set(), shut={},
        ),
        rules=RULES, controls=Controls({ControlKind.DNS: dns, ControlKind.SMTP: smtp}),
        probing=SimpleNamespace(resolver=SimpleNamespace(lookup_mx=lookup_mx), prober=lambda *_: prober),
        paid_calls=SimpleNamespace(off_because=lambda: "off"),
        pass_deadline_s=90.0, stalled_since=lambda _moment: 0.0, now=lambda: LATER,
        age_s=lambda moment: (LATER - moment).total_seconds(),
    )  # fmt: skip
    origin = Origin(outreach_id=ID)
    kept = tuple(Exchange(key=key, answer=answer) for key, answer in answers.items())
    resumed = Resumed(
        origin=origin, event_at=None, domain="acme.example", reason=reason, exchanges=kept,
        pending=Exchange(key=f"rcpt:{PATTERN}", answer=pending) if pending else None, spent_s=80.0, asked_at=ASKED,
        failed_at=FAILED, since=ASKED, exceptions=0, looks=looks, waits_on=WaitsOn(waits_on),
    )  # fmt: skip
    known = Known(outcome=None, pass_state="waiting", in_spine=True, domain="acme.example")
    return await WorkerGate(parts).begin(origin, known, resumed)


def left(company: CompanyPass) -> Parked:
    """Return what would be recorded of it if it had to wait now."""
    return company.parked(Origin(outreach_id=ID), None, Wait(reason=WaitReason.RATE_LIMIT, detail=""))


ABSENT: dict[str, Answer] = {
    "spine": SpineAnswer(found=True, domain="acme.example"),
    "mx": no_mx(MxStatus.NXDOMAIN),
}
SILENT: dict[str, Answer] = {
    "spine": SpineAnswer(found=True, domain="acme.example"),
    "mx": mx(),
    f"rcpt:{PATTERN}": trouble(Trouble.TIMEOUT),
}


def keys(company: CompanyPass) -> list[str]:
    return [exchange.key for exchange in company.exchanges]


async def test_answers_inside_an_unbroken_chain_of_proofs_are_kept_with_their_times() -> None:
    company = await resume(ABSENT, "control:dns")
    assert keys(company) == ["spine", "mx"]
    assert left(company).spent_s == 80.0
    assert left(company).asked_at is None, "as on record"


@pytest.mark.parametrize(
    ("answers", "waits_on", "ways", "kept"),
    [
        pytest.param(ABSENT, "control:dns", {"dns": proven(since_s=1, until_s=5)}, ["spine"], id="no proof before it"),
        pytest.param(
            SILENT, "control:smtp", {"smtp": proven(since_s=1, until_s=5)}, ["spine", "mx"], id="of port 25 neither"
        ),
        pytest.param(
            ABSENT, "control:dns", {"dns": proven(since_s=-60, until_s=5, trouble_s=(-1, 3))}, ["spine"],
            id="in our own trouble",
        ),
        pytest.param(SILENT, "control:smtp", {"looks": 0}, ["spine"], id="the first look at silence"),
    ],
)  # fmt: skip
async def test_void_answers_give_their_time_back(
    answers: dict[str, Answer], waits_on: str, ways: dict[str, Any], kept: list[str]
) -> None:
    company = await resume(answers, waits_on, **ways)
    assert keys(company) == kept
    assert left(company).spent_s == 0.0, "else a company that met many of our troubles fails by its deadline"


@pytest.mark.parametrize("reason", ["drain", "our_machine"])
async def test_a_session_that_we_broke_off_costs_a_company_no_time(reason: str) -> None:
    """Its greeting and EHLO are waited for once more after each: some rebalances in a row, and time would be up."""
    company = await resume({"spine": ABSENT["spine"], "mx": mx()}, "", reason=reason)
    assert keys(company) == ["spine", "mx"]
    assert left(company).spent_s == 0.0


async def test_a_company_parked_before_any_question_has_no_failed_answer() -> None:
    """A company that waits while a control fails has a moment of failure, for a proof to wake it: no more than that."""
    company = await resume({"spine": ABSENT["spine"]}, "control:dns")
    assert left(company).failed is FailedAt.NONE
    assert left(company).asked_at is not None, "what it asks now is of now"
    assert isinstance(await company._driver._world.controls.confirm(ControlKind.DNS, company.exchanges), Wait), (
        "an older proof counted for what is asked now"
    )


@pytest.mark.parametrize("host", ["mx1.bigmail.example", "mx1.acme.example"])
async def test_a_providers_refusal_is_asked_again_and_never_the_companys_own_policy(host: str) -> None:
    about_us = said(554, "5.7.1", "blocked using a list at spamhaus", host=host)
    if host.endswith("acme.example"):
        own = await resume({"spine": ABSENT["spine"], "mx": mx(host)}, "", reason="refused", pending=about_us)
        assert own.exchanges[-1].answer == replace(about_us, is_private_policy=True)
        return
    company = await resume({"spine": ABSENT["spine"], "mx": mx(host)}, "", reason="refused", pending=about_us)
    assert keys(company) == ["spine", "mx"]
    assert (left(company).failed, left(company).spent_s) == (FailedAt.NONE, 0.0)


async def test_an_answer_once_found_in_a_chain_needs_no_chain_after_another_long_wait() -> None:
    """Nobody asks for proofs meanwhile; asked again each time, a silent provider's company would never be decided."""
    later = proven(since_s=300, until_s=500)
    waited = await resume(SILENT, "", reason="provider_silent", smtp=later)
    assert keys(waited) == list(SILENT)
    controls = Controls({ControlKind.SMTP: later})
    assert isinstance(await controls.confirm(ControlKind.SMTP, (ASKED, FAILED), in_chain=True), ControlAnswer)
    assert isinstance(await controls.confirm(ControlKind.SMTP, (ASKED, FAILED)), Wait)
    assert waited._moments.in_chain


async def test_silence_in_mid_pass_is_asked_again_and_later_answers_are_kept() -> None:
    patterns = [pattern.name for pattern in RULES.patterns]
    answers = {"spine": ABSENT["spine"], "mx": mx()} | {f"rcpt:{name}": NO for name in patterns}
    answers[f"rcpt:{patterns[2]}"] = trouble(Trouble.TIMEOUT, stage=Stage.RCPT)
    company = await resume(answers, "control:smtp", looks=0)
    assert keys(company) == ["spine"], "its MX too: a resolver that lies names hosts that nobody reaches"
    assert left(company).looks == 1
    assert {f"rcpt:{name}" for name in patterns if name != patterns[2]} == company._driver._answered.keys()


async def test_answers_under_other_rules_leave_no_moments_on_record() -> None:
    company = await resume({"spine": ABSENT["spine"], "mx": mx(), "rcpt:gone": NO, "rcpt:x": SILENT["mx"]}, "")
    assert keys(company) == []
    assert left(company).failed is FailedAt.NONE


async def test_only_the_control_that_a_company_waits_for_needs_a_chain() -> None:
    """Nobody asks for proofs of the other way meanwhile."""
    company = await resume(ABSENT, "control:dns", smtp=proven(since_s=1, until_s=5))
    assert keys(company) == ["spine", "mx"]


async def test_no_answer_is_void_before_a_later_proof() -> None:
    company = await resume(ABSENT, "control:dns", dns=proven(since_s=1, until_s=1))
    assert keys(company) == ["spine", "mx"]


REFUSES = Attempt(
    host="mx2.acme.example",
    ip="192.0.2.2",
    stage=Stage.BANNER,
    reply=Reply(code=554, enhanced="5.7.1", text="blocked using a list at spamhaus"),
)


async def refused(first: Attempt, waits_on: str, **more: Any) -> Passed | Failed | Wait:
    """Come back with a reply about us from a server of the company's own, behind trouble with its first host."""
    answers: dict[str, Answer] = {"spine": ABSENT["spine"], "mx": mx("mx1.acme.example", "mx2.acme.example")}
    company = await resume(answers, waits_on, pending=MailboxAnswer(attempts=(first, REFUSES)), **more)
    return await company.run()


async def test_a_silent_first_host_before_a_reply_about_us_is_asked_twice() -> None:
    first = Attempt(host="mx1.acme.example", ip="192.0.2.1", stage=Stage.CONNECT, trouble=Trouble.TIMEOUT)
    again = await refused(first, "control:smtp", looks=0)
    assert isinstance(again, Wait), "mx1 was silent for a moment, perhaps by our own fault"
    assert isinstance(await refused(first, "control:smtp", looks=1), Failed)


RCPT_SILENT = trouble(Trouble.TIMEOUT, stage=Stage.RCPT)
ASKED_SOME: dict[str, Answer] = {
    "spine": ABSENT["spine"],
    "mx": mx(),
    f"rcpt:{RULES.patterns[0].name}": NO,
}


async def test_an_earlier_proof_does_not_count_for_silence_in_this_run() -> None:
    """The silence on record keeps its moment only while nothing newer has to be proven with it."""
    on_record = ASKED_SOME | {f"rcpt:{RULES.patterns[1].name}": RCPT_SILENT}
    well = await resume(on_record, "", reason="rate_limit", says=[NO])
    assert isinstance(await well.run(), Wait)
    assert (len(well.exchanges), left(well).failed) == (5, FailedAt.ON_RECORD)
    silent_again = await resume(on_record, "", reason="rate_limit", says=[RCPT_SILENT])
    assert isinstance(await silent_again.run(), Wait)
    assert (len(silent_again.exchanges), left(silent_again).failed) == (5, FailedAt.NOW)


async def test_the_first_silence_of_a_company_is_recorded_as_of_now() -> None:
    company = await resume(ASKED_SOME, "", reason="rate_limit", says=[RCPT_SILENT, *[NO] * 20])
    assert left(company).failed is FailedAt.NONE
    wait = await company.run()
    assert isinstance(wait, Wait)
    assert (wait.waits_on, left(company).failed) == ("control:smtp", FailedAt.NOW)
    assert left(company).asked_at is not None, "what was asked in this run is not of the time on record"


async def test_a_refusal_that_is_not_settled_yet_keeps_its_moments() -> None:
    """Asked and refused as on record: a proof that began after it has not to come again after each wait."""
    wait = Wait(reason=WaitReason.REFUSED, detail="not settled yet", after_s=60.0)
    about_us = said(554, "5.7.1", "blocked using a list at spamhaus", host="mx1.acme.example")
    company = await resume(
        {"spine": ABSENT["spine"], "mx": mx("mx1.acme.example")}, "", reason="refused", pending=about_us, unsettled=wait
    )
    assert await company.run() is wait
    assert (left(company).failed, left(company).asked_at) == (FailedAt.ON_RECORD, None)
    pending = left(company).pending
    assert pending is not None
    assert pending.answer == about_us


@pytest.mark.parametrize(
    ("recalled", "waits_s", "looks"),
    [
        pytest.param("acme.example", 0.0, 1, id="the look-up's is taken once"),
        pytest.param("acme.example", 1.0, 2, id="not when it is old"),
        pytest.param("www.acme.example", 0.0, 2, id="nor of another form of the domain"),
    ],
)
async def test_a_memory_read_with_the_company_saves_one_look_up(recalled: str, waits_s: float, looks: int) -> None:
    asked: list[str] = []

    async def recall(domain: str) -> Memory:
        asked.append(domain)
        return Memory()

    known = Known(
        outcome=None, pass_state="waiting", in_spine=True, domain="acme.example", recalled=recalled, memory=Memory(),
        looked_up_at=time.monotonic() - waits_s,
    )  # fmt: skip
    memory: Any = SimpleNamespace(recall=recall)
    company = Recall(memory, Askers(), known, rules_version="1+test", is_new=False)
    assert await company.recall("acme.example") == Memory()
    assert await company.recall("acme.example") == Memory()
    assert len(asked) == looks


@pytest.mark.parametrize("rest_s", [0.0, 1.0])
async def test_a_process_that_stood_still_is_no_evidence_against_a_provider(rest_s: float) -> None:
    silent: list[str] = []

    async def note(provider: str, _domain: str) -> None:
        silent.append(provider)

    async def release(*, talked: bool, talked_at: str) -> None:
        assert (talked, talked_at) == (False, "")

    nothing: Any = None
    guardrails: Any = SimpleNamespace(silent=note)
    tellings = Tellings(
        controls=nothing, guardrails=guardrails, farewells=Farewells(), metrics=nothing,
        stalled_since=lambda _moment: rest_s,
    )  # fmt: skip
    domain_lease: Any = SimpleNamespace(release=release)
    lease = Lease(tellings, domain_lease, "acme.example", "bigmail.example", 0.0, nothing)
    await lease.release(met={"bigmail.example": Met.SILENT}, greeted_at={}, refused=[])
    assert silent == ([] if rest_s else ["bigmail.example"])
