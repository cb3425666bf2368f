"""How does a pass get from questions to a verdict, or to a wait that keeps its answers?"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest

from ct_stream.gate.attempts import TIME_IS_UP
from ct_stream.gate.evidence import answered, met_trouble, without_trouble
from ct_stream.gate.failures import FailureCode
from ct_stream.gate.memory import Memory, memorable, recalled
from ct_stream.gate.middle_stage import middle_stage
from ct_stream.gate.patterns import Address, ProbeName
from ct_stream.gate.providers import provider_at
from ct_stream.gate.questions import (
    Attempt,
    ControlAnswer,
    ControlKind,
    MailboxAnswer,
    MxAnswer,
    MxStatus,
    SpineAnswer,
    Trouble,
    VerifyAnswer,
    VerifyStatus,
)
from ct_stream.gate.replies import Reply, Stage
from ct_stream.gate.rules import Rules
from ct_stream.gate.transcript import Exchange, from_json, to_json, tools_used
from ct_stream.gate.verdicts import Failed, Held, Passed, VerifiedBy
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.probes.answer import PassDriver, Waiting, World
from ct_stream.probes.needs import Brought, TurnedOff
from tests.gate.world import FULL

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from ct_stream.probes.stopwatch import Stopwatch

ID = UUID("5f0c2b1e-9a41-4c53-9d6e-2f1c8e9b7a10")
RULES = Rules(probe_name=ProbeName(first="jordan", last="whitfield"))
MX = "mx.acme.example"
WAIT = Wait(reason=WaitReason.RATE_LIMIT, detail="scripted")
FOUND = MxAnswer(status=MxStatus.FOUND, hosts=(MX,))


def said(code: int, enhanced: str = "", text: str = "") -> MailboxAnswer:
    return MailboxAnswer(
        attempts=(Attempt(host=MX, stage=Stage.RCPT, reply=Reply(code=code, enhanced=enhanced, text=text)),)
    )


YES, NO = said(250), said(550, "5.1.1", "User unknown")
LISTED = said(554, "5.7.1", "blocked using a list at spamhaus")
TIMEOUT_AT_RCPT = MailboxAnswer(attempts=(Attempt(host=MX, stage=Stage.RCPT, trouble=Trouble.TIMEOUT),))
IMPATIENT = MailboxAnswer(
    attempts=(Attempt(host=MX, stage=Stage.RCPT, reply=Reply(code=421, enhanced="4.4.2", text="timeout exceeded")),)
)
TIMEOUT = MailboxAnswer(attempts=(Attempt(host=MX, stage=Stage.CONNECT, trouble=Trouble.TIMEOUT),))


class Scripted:
    """The whole world as one list of answers: each question takes the next, and one too many fails the test."""

    def __init__(
        self, *answers: object, tier2_off: str | None = "Tier-2 is off", memories: Sequence[Memory | Wait] = ()
    ) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.closed: list[list[Held]] = []
        self.heard: Sequence[Attempt] = ()
        self.vendor_s = 0.0  # for which the vendor is waited for
        self.noted: list[tuple[str, str, str]] = []
        self.memories = list(memories)  #: one for each look at the memory, then nothing
        self.tier2_off = tier2_off
        self.networks: set[str] = set()  #: that are closed
        self.lost: Wait | None = None  #: what it heard was heard astray

    def world(self) -> World:
        return World(
            spine=self,
            memory=self,
            resolver=self,
            permits=self,
            controls=self,
            refusals=self,
            tier2=self,
            probers=self.prober,
        )

    def prober(self, stopwatch: Stopwatch) -> Scripted:
        self.stopwatch = stopwatch
        return self

    async def next(self, asked: str) -> Any:
        self.asked.append(asked)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def lookup(self, outreach_id: UUID) -> SpineAnswer | Wait:
        answer: SpineAnswer | Wait = await self.next(f"spine {outreach_id}")
        return answer

    async def recall(self, domain: str) -> Memory | Wait:
        assert domain == "acme.example"
        if self.memories:
            self.asked.append("memory")
        return self.memories.pop(0) if self.memories else Memory()

    def lacks(self, kind: ControlKind) -> Wait | None:  # noqa: ARG002
        return None

    def cut_off(self, detail: str) -> Wait:
        return Wait(reason=WaitReason.ANOTHER_MACHINE, detail=detail)

    async def mx_lookup(self) -> Wait | None:
        permit: Wait | None = await self.next("permit")
        return permit

    def provider_at(self, host: str, ip: str, domain: str) -> str:
        return provider_at(host, ip, domain, self.networks)

    async def begin_probe(self, domain: str, provider: str) -> Wait:
        raise AssertionError(f"the driver takes no lease: {domain} {provider}")

    async def lookup_mx(self, domain: str) -> MxAnswer:
        answer: MxAnswer = await self.next(f"mx {domain}")
        return answer

    async def ask(self, address: Address, hosts: tuple[str, ...]) -> MailboxAnswer | Wait:
        answer: MailboxAnswer | Wait = await self.next(f"{address.local_part} of {','.join(hosts)}")
        return answer

    async def note(self, held: Held, domain: str, provider: str) -> None:
        self.noted.append((held.host, domain, provider))

    async def close(self, *, refused: Sequence[Held] = ()) -> None:
        self.closed.append(list(refused))

    async def astray(self, exchanges: Sequence[Exchange]) -> Wait | None:  # noqa: ARG002
        return self.lost

    async def confirm(self, kind: ControlKind, exchanges: Sequence[Exchange]) -> ControlAnswer | Wait:
        del exchanges
        answer: ControlAnswer | Wait = await self.next(f"control {kind}")
        return answer

    async def judge(self, held: Held, domain: str, provider: str) -> Wait | None:
        del held
        answer: Wait | None = await self.next(f"judge {domain} {provider}")
        return answer

    def off_because(self) -> str | None:
        return self.tier2_off

    async def verify(self, outreach_id: UUID, address: Address) -> Brought:
        del outreach_id
        return Brought(result=await self.next(f"verify {address}"), waited_s=self.vendor_s)


def driver(scripted: Scripted, **more: Any) -> PassDriver:
    return PassDriver(ID, RULES, scripted.world(), deadline_s=5.0, **more)


SPINE = SpineAnswer(found=True, domain="Acme.example")


async def test_a_pass_from_the_spine_to_a_verdict() -> None:
    scripted = Scripted(SPINE, None, FOUND, YES, NO)
    run = driver(scripted)
    verdict = await run.run()
    assert isinstance(verdict, Passed)
    assert (verdict.method_type, verdict.confidence) == ("first.last", 0.95)
    assert scripted.asked[:4] == [f"spine {ID}", "permit", "mx acme.example", f"jordan.whitfield of {MX}"]
    assert [e.key for e in run.exchanges] == ["spine", "mx", "rcpt:first.last", "rcpt:random"]
    assert run.exchanges[2].asked == "jordan.whitfield@acme.example"
    assert all(e.at.endswith("Z") for e in run.exchanges)
    assert scripted.closed == [[]]


async def test_a_verdict_does_not_wait_for_the_end_of_its_session() -> None:
    farewells: list[Coroutine[Any, Any, None]] = []
    scripted = Scripted(SPINE, None, FOUND, YES, NO)
    assert isinstance(await driver(scripted, see_off=farewells.append).run(), Passed)
    assert scripted.closed == []
    [farewell] = farewells
    await farewell
    assert scripted.closed == [[]]


@pytest.mark.parametrize(
    ("answers", "kept"),
    [
        ([SPINE, None, MxAnswer(status=MxStatus.UNAVAILABLE, detail="timeout")], ["spine"]),
        ([SPINE, None, FOUND, NO, TIMEOUT], ["spine", "mx", "rcpt:first.last"]),
        ([SPINE, None, FOUND, NO, IMPATIENT], ["spine", "mx", "rcpt:first.last"]),
    ],
    ids=["a resolver's silence", "a server's silence", "a server that waited too long for us"],
)
async def test_a_process_that_stood_still_blames_nobody_and_asks_again(answers: list[Any], kept: list[str]) -> None:
    scripted = Scripted(*answers)
    ending = await driver(scripted, stalled_since=lambda _moment: 1.0).run()
    assert isinstance(ending, Waiting)
    assert (ending.wait.reason, ending.wait.after_s) == (WaitReason.OUR_MACHINE, 1.0)
    assert [exchange.key for exchange in ending.exchanges] == kept


async def test_what_servers_said_to_a_process_that_stood_still_counts() -> None:
    after_a_close = replace(NO, attempts=(replace(NO.attempts[0], reply=None, trouble=Trouble.CLOSED), *NO.attempts))
    scripted = Scripted(SPINE, None, FOUND, after_a_close, YES, NO)
    assert isinstance(await driver(scripted, stalled_since=lambda _moment: 1.0).run(), Passed)


BACKUP = "mx2.acme.example"
BOTH = MxAnswer(status=MxStatus.FOUND, hosts=(MX, BACKUP))


def by_backup(code: int, *before: Trouble) -> MailboxAnswer:
    """Return what a backup said, behind trouble with the first host."""
    said_by_it = Attempt(host=BACKUP, stage=Stage.RCPT, reply=Reply(code=code, enhanced="", text="try the primary"))
    troubled = (Attempt(host=MX, ip="192.0.2.1", stage=Stage.BANNER, trouble=trouble) for trouble in before)
    return MailboxAnswer(attempts=(*troubled, said_by_it))


async def test_a_process_that_stood_still_asks_the_first_host_again_whatever_the_backup_said() -> None:
    scripted = Scripted(SPINE, None, BOTH, by_backup(451, Trouble.TIMEOUT))
    ending = await driver(scripted, stalled_since=lambda _moment: 1.0).run()
    assert isinstance(ending, Waiting)
    assert ending.wait.reason is WaitReason.OUR_MACHINE
    assert [exchange.key for exchange in ending.exchanges] == ["spine", "mx"]


@pytest.mark.parametrize("code", [451, 550], ids=["does not know", "knows nobody"])
@pytest.mark.parametrize(
    ("trouble", "kind"), [(Trouble.TIMEOUT, ControlKind.SMTP), (Trouble.NAME_LOOKUP, ControlKind.DNS)]
)
async def test_no_backup_fails_a_company_whose_first_host_may_be_silent_by_our_fault(
    code: int, trouble: Trouble, kind: ControlKind
) -> None:
    answers = [by_backup(code, trouble), *(by_backup(code) for _ in RULES.patterns[1:])]
    wait = Wait(reason=WaitReason.CONTROL, detail="scripted", waits_on=WaitsOn.control(kind))
    scripted = Scripted(SPINE, None, BOTH, *answers, wait)
    ending = await driver(scripted).run()
    assert isinstance(ending, Waiting)
    assert scripted.asked[-1] == f"control {kind}"
    assert met_trouble(ending.exchanges), "so that it is looked at twice"
    assert [e.key for e in without_trouble(ending.exchanges)] == ["spine", "mx"]
    first = ending.exchanges[2]
    assert first not in answered(ending.exchanges), "its first host is to be tried again"
    assert len(answered(ending.exchanges)) == len(RULES.patterns) - 1


async def test_what_the_same_server_answered_before_is_not_asked_again() -> None:
    known = [
        Exchange(key="rcpt:firstlast", asked="jordanwhitfield@acme.example", answer=NO),
        Exchange(key="rcpt:f.last", asked="j.whitfield@acme.example", answer=NO),
    ]
    scripted = Scripted(SPINE, None, FOUND, TIMEOUT_AT_RCPT, YES, NO)
    run = driver(scripted, answered=known)
    assert isinstance(await run.run(), Passed)
    keys = [exchange.key for exchange in run.exchanges]
    assert len(keys) == len(set(keys))
    assert {exchange.key for exchange in known} <= set(keys)
    assert len([line for line in scripted.asked if " of " in line]) == len(keys) - 2 - len(known)


async def test_what_another_server_answered_before_is_asked_again() -> None:
    other = MailboxAnswer(
        attempts=(Attempt(host="mx9.acme.example", stage=Stage.RCPT, reply=Reply(code=250, enhanced="", text="")),)
    )
    scripted = Scripted(SPINE, None, FOUND, YES, NO)
    run = driver(scripted, answered=[Exchange(key="rcpt:first.last", answer=other)])
    assert isinstance(await run.run(), Passed)
    assert len([line for line in scripted.asked if " of " in line]) == 2


async def test_a_wait_begins_after_the_end_of_its_session() -> None:
    farewells: list[Coroutine[Any, Any, None]] = []
    scripted = Scripted(SPINE, None, FOUND, NO, WAIT)
    assert isinstance(await driver(scripted, see_off=farewells.append).run(), Waiting)
    assert (scripted.closed, farewells) == ([[]], [])


async def test_a_wait_keeps_the_answers_and_resuming_asks_none_of_them_again() -> None:
    first = Scripted(SPINE, None, FOUND, NO, NO, WAIT)
    waiting = await driver(first).run()
    assert isinstance(waiting, Waiting)
    assert (waiting.wait, waiting.pending) == (WAIT, None)
    assert [e.key for e in waiting.exchanges] == ["spine", "mx", "rcpt:first.last", "rcpt:firstlast"]
    assert first.closed == [[]]

    second = Scripted(YES, NO)
    run = driver(second, kept=from_json(to_json(waiting.exchanges)), spent_s=waiting.spent_s)
    assert isinstance(await run.run(), Passed)
    assert second.asked[0] == f"j.whitfield of {MX}"
    assert run.exchanges[: len(waiting.exchanges)] == waiting.exchanges


@pytest.mark.parametrize("at", ["spine", "permit", "control", "tier2"])
async def test_every_question_may_have_to_wait(at: str) -> None:
    answers: dict[str, list[object]] = {
        "spine": [WAIT],
        "permit": [SPINE, WAIT],
        "control": [SPINE, None, MxAnswer(status=MxStatus.NXDOMAIN), WAIT],
        "tier2": [SPINE, None, FOUND, TIMEOUT, ControlAnswer(detail="ok"), WAIT],
    }
    scripted = Scripted(*answers[at], tier2_off=None)
    waiting = await driver(scripted).run()
    assert isinstance(waiting, Waiting)
    assert waiting.wait is WAIT
    assert scripted.answers == []


async def test_no_mx_fails_only_after_a_control() -> None:
    scripted = Scripted(SPINE, None, MxAnswer(status=MxStatus.NXDOMAIN), ControlAnswer(detail="ok"))
    verdict = await driver(scripted).run()
    assert isinstance(verdict, Failed)
    assert verdict.code is FailureCode.NO_MX
    assert scripted.asked[-1] == "control dns"


async def test_a_reply_about_us_whose_scope_is_open_is_pending_and_its_pattern_unasked() -> None:
    scripted = Scripted(SPINE, None, FOUND, NO, LISTED, WAIT)
    run = driver(scripted)
    waiting = await run.run()
    assert isinstance(waiting, Waiting)
    assert waiting.pending is not None
    assert (waiting.pending.key, waiting.pending.answer) == ("rcpt:firstlast", LISTED)
    assert [e.key for e in waiting.exchanges] == [e.key for e in run.exchanges] == ["spine", "mx", "rcpt:first.last"]
    assert scripted.asked[-1] == "judge acme.example acme.example"
    assert scripted.closed[0]


async def test_a_private_policy_is_settled_and_the_rest_unasked() -> None:
    scripted = Scripted(SPINE, None, FOUND, NO, LISTED, None)
    run = driver(scripted)
    verdict = await run.run()
    assert isinstance(verdict, Failed)
    assert verdict.code is FailureCode.SMTP_FAIL
    settled = run.exchanges[3].answer
    assert isinstance(settled, MailboxAnswer)
    assert settled.is_private_policy
    assert scripted.asked[4:] == [f"jordanwhitfield of {MX}", "judge acme.example acme.example"]


async def test_a_pending_answer_that_is_given_back_is_judged_without_asking() -> None:
    first = await driver(Scripted(SPINE, None, FOUND, LISTED, WAIT)).run()
    assert isinstance(first, Waiting)
    assert first.pending is not None
    scripted = Scripted(None)
    verdict = await driver(scripted, kept=[*first.exchanges, first.pending]).run()
    assert isinstance(verdict, Failed)
    assert "spamhaus" in verdict.reason
    assert scripted.asked == ["judge acme.example acme.example"]


async def test_answers_that_no_longer_fit_are_dropped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    kept = [Exchange(key="spine", answer=SPINE), Exchange(key="rcpt:gone", answer=NO)]
    scripted = Scripted(WAIT)
    with caplog.at_level(logging.WARNING):
        waiting = await driver(scripted, kept=kept).run()
    assert isinstance(waiting, Waiting)
    assert waiting.exchanges == ()
    assert "rcpt:gone" in caplog.text


async def test_a_paid_answer_is_read_even_if_tier2_was_turned_off_since() -> None:
    answers = [SPINE, FOUND, TIMEOUT, ControlAnswer(detail="ok"), VerifyAnswer(status=VerifyStatus.VALID)]
    keys = ["spine", "mx", "rcpt:first.last", "control:smtp", "verify"]
    kept = [Exchange(key=key, answer=answer) for key, answer in zip(keys, answers, strict=True)]  # type: ignore[arg-type]
    verdict = await driver(Scripted(tier2_off="the month's budget is spent"), kept=kept).run()
    assert isinstance(verdict, Passed)


@pytest.mark.parametrize("error", [OSError(24, "too many open files"), asyncio.CancelledError()], ids=["bug", "cancel"])
async def test_whatever_ends_a_pass_closes_its_prober_and_keeps_its_answers(error: BaseException) -> None:
    scripted = Scripted(SPINE, None, FOUND, NO, error)
    run = driver(scripted)
    with pytest.raises(type(error)):
        await run.run()
    assert scripted.closed == [[]]
    assert [e.key for e in run.exchanges] == ["spine", "mx", "rcpt:first.last"]


async def test_a_used_up_deadline_leaves_the_mx_unavailable() -> None:
    scripted = Scripted(SPINE, None, WAIT)
    run = PassDriver(ID, RULES, scripted.world(), deadline_s=1.0, spent_s=1.0)
    assert isinstance(await run.run(), Waiting)
    assert run.exchanges[-1].answer == MxAnswer(status=MxStatus.UNAVAILABLE, detail=TIME_IS_UP)


async def test_the_middle_stage_alone_needs_no_spine() -> None:
    def flow() -> Any:
        return middle_stage(ID, "acme.example", RULES, tier2_off="Tier-2 is off")

    maker: Callable[[], Any] = flow
    scripted = Scripted(None, FOUND, NO, YES, NO)
    assert isinstance(await driver(scripted, flow=maker).run(), Passed)


async def test_waiting_for_servers_is_all_that_counts() -> None:
    class Slow(Scripted):
        async def next(self, asked: str) -> Any:
            await asyncio.sleep({"permit": 0.2, "mx acme.example": 0.02}.get(asked, 0))
            return await super().next(asked)

    run = driver(Slow(SPINE, None, FOUND, WAIT), spent_s=1.0)
    await run.run()
    assert 1.015 < run.spent_s < 1.2


# ---------------------------------------------------------------- what another company of the domain was answered


async def learned(*answers: object, tier2_off: str | None = "Tier-2 is off") -> Memory:
    """Return what is remembered after a pass of another company with these answers."""
    other = PassDriver(uuid4(), RULES, Scripted(SPINE, *answers, tier2_off=tier2_off).world(), deadline_s=90.0)
    assert isinstance(await other.run(), Passed | Failed)
    answered = recalled(other.exchanges[1:])
    return Memory(answers=answered, mx=answered[:1])


@pytest.mark.parametrize(
    ("answers", "tools"),
    [
        ((None, FOUND, NO, YES, NO), ["TOOL-004:memory", "TOOL-005:memory"]),
        ((None, FOUND, *[NO] * 8), ["TOOL-004:memory", "TOOL-005:memory"]),
        ((None, MxAnswer(status=MxStatus.NXDOMAIN), ControlAnswer(detail="ok")), ["TOOL-004:memory"]),
    ],
    ids=["pass", "no pattern", "no mx"],
)
async def test_a_domain_that_answered_another_company_is_asked_nothing(
    answers: tuple[object, ...], tools: list[str]
) -> None:
    memory = await learned(*answers)
    scripted = Scripted(SPINE, memories=[memory])
    run = driver(scripted)
    verdict = await run.run()
    assert isinstance(verdict, Passed | Failed)
    assert verdict.domain == "acme.example"
    assert scripted.asked == [f"spine {ID}", "memory"]
    assert tools_used(run.exchanges) == tools
    assert [e.remembered for e in run.exchanges] == [False] + [True] * len(memory.answers)
    assert from_json(to_json(run.exchanges)) == list(run.exchanges)


async def test_remembered_hosts_save_the_mx_look_up_only() -> None:
    memory = await learned(None, FOUND, *[NO] * 8)
    scripted = Scripted(SPINE, NO, YES, NO, memories=[Memory(mx=memory.mx)])
    run = driver(scripted)
    assert isinstance(await run.run(), Passed)
    assert scripted.asked[2] == f"jordan.whitfield of {MX}"
    assert tools_used(run.exchanges) == ["TOOL-004:memory", "TOOL-005"]


async def test_a_company_that_waited_for_its_domain_takes_the_answers_of_the_one_it_waited_for() -> None:
    first = await driver(Scripted(SPINE, None, FOUND, WAIT)).run()
    assert isinstance(first, Waiting)
    scripted = Scripted(memories=[await learned(None, FOUND, YES, NO)])
    run = driver(scripted, kept=first.exchanges)
    assert isinstance(await run.run(), Passed)
    assert scripted.asked == ["memory"]
    assert tools_used(run.exchanges) == ["TOOL-004:memory", "TOOL-005:memory"]


async def test_a_pass_that_has_asked_a_mailbox_itself_uses_no_memory() -> None:
    first = await driver(Scripted(SPINE, None, FOUND, NO, WAIT)).run()
    assert isinstance(first, Waiting)
    scripted = Scripted(YES, NO, memories=[await learned(None, FOUND, YES, NO)])
    run = driver(scripted, kept=first.exchanges)
    assert isinstance(await run.run(), Passed)
    assert "memory" not in scripted.asked
    assert not any(e.remembered for e in run.exchanges)


async def test_a_company_waits_for_the_one_that_asks_its_domain() -> None:
    waiting = await driver(Scripted(SPINE, memories=[WAIT])).run()
    assert isinstance(waiting, Waiting)
    assert [e.key for e in waiting.exchanges] == ["spine"]


async def test_a_memory_that_does_not_fit_the_rules_is_not_used() -> None:
    memory = await learned(None, FOUND, NO, YES, NO)
    odd = Memory(answers=tuple(e for e in memory.answers if e.key != "rcpt:first.last"))
    scripted = Scripted(SPINE, None, FOUND, YES, NO, memories=[odd])
    run = driver(scripted)
    assert isinstance(await run.run(), Passed)
    assert not any(e.remembered for e in run.exchanges)


async def test_what_was_left_open_while_tier2_was_off_is_asked_again_once_it_is_on() -> None:
    memory = await learned(None, FOUND, TIMEOUT, ControlAnswer(detail="ok"))
    valid = VerifyAnswer(status=VerifyStatus.VALID)
    scripted = Scripted(SPINE, TIMEOUT, ControlAnswer(detail="ok"), valid, tier2_off=None, memories=[memory])
    run = driver(scripted)
    assert isinstance(await run.run(), Passed)
    assert tools_used(run.exchanges) == ["TOOL-004:memory", "TOOL-005", "TOOL-019"]


async def test_what_a_company_paid_for_serves_the_next_one() -> None:
    valid = VerifyAnswer(status=VerifyStatus.VALID)
    memory = await learned(None, FOUND, TIMEOUT, ControlAnswer(detail="ok"), valid, tier2_off=None)
    run = driver(Scripted(SPINE, memories=[memory], tier2_off="the month's budget is spent"))
    verdict = await run.run()
    assert isinstance(verdict, Passed)
    assert verdict.verified_by is VerifiedBy.TIER2
    assert tools_used(run.exchanges) == ["TOOL-004:memory", "TOOL-005:memory", "TOOL-019:memory"]


async def test_a_paid_call_without_a_usable_answer_is_that_companys_own() -> None:
    no_answer = VerifyAnswer(status=VerifyStatus.NO_ANSWER, detail="HTTP 500")
    paying = Scripted(SPINE, None, FOUND, TIMEOUT, ControlAnswer(detail="ok"), no_answer, tier2_off=None)
    other = PassDriver(uuid4(), RULES, paying.world(), deadline_s=90.0)
    assert isinstance(await other.run(), Failed)
    told = memorable(other.exchanges)
    assert [exchange.key for exchange in told] == ["mx", "rcpt:first.last", "control:smtp"]
    memory = Memory(answers=recalled(told), mx=recalled(told)[:1])

    run = driver(Scripted(SPINE, memories=[memory], tier2_off="the month's budget is spent"))
    verdict = await run.run()
    assert isinstance(verdict, Failed)
    assert verdict.code is FailureCode.SMTP_FAIL

    valid = VerifyAnswer(status=VerifyStatus.VALID)
    scripted = Scripted(SPINE, TIMEOUT, ControlAnswer(detail="ok"), valid, tier2_off=None, memories=[memory])
    assert isinstance(await driver(scripted).run(), Passed), "it still has its own attempt"


async def test_a_budget_that_is_spent_meanwhile_decides_as_without_tier2_and_asks_nothing_again() -> None:
    off = TurnedOff(because="the Tier-2 budget of 2026-11 is spent")
    scripted = Scripted(SPINE, None, FOUND, TIMEOUT, ControlAnswer(detail="ok"), off, tier2_off=None)
    run = driver(scripted)
    verdict = await run.run()
    assert isinstance(verdict, Failed)
    assert verdict.code is FailureCode.SMTP_FAIL
    assert verdict.reason.endswith("the Tier-2 budget of 2026-11 is spent")
    assert not scripted.answers
    assert tools_used(run.exchanges) == ["TOOL-004", "TOOL-005"], "a call that was not made is not used"


async def test_time_that_a_paid_call_took_counts_for_the_deadline() -> None:
    valid = VerifyAnswer(status=VerifyStatus.VALID)
    scripted = Scripted(SPINE, None, FOUND, TIMEOUT, ControlAnswer(detail="ok"), valid, tier2_off=None)
    scripted.vendor_s = 2.0
    run = driver(scripted, spent_s=1.5)
    assert isinstance(await run.run(), Passed)
    assert 3.5 <= run.spent_s < 4.0


async def test_an_answer_that_is_cut_off_is_left_to_a_machine_that_can_fetch_all_of_it() -> None:
    cut_off = MxAnswer(status=MxStatus.CUT_OFF, detail="192.0.2.53: its answer does not fit into UDP")
    run = driver(Scripted(SPINE, None, cut_off))
    ending = await run.run()
    assert isinstance(ending, Waiting)
    assert (ending.wait.reason, ending.wait.detail) == (WaitReason.ANOTHER_MACHINE, cut_off.detail)
    assert [exchange.key for exchange in run.exchanges] == ["spine"], "it says nothing about the company"


async def test_nothing_is_paid_for_on_the_word_of_who_answers_in_the_place_of_others() -> None:
    scripted = Scripted(SPINE, None, FOUND, *[FULL] * len(RULES.patterns), tier2_off=None)
    scripted.lost = WAIT
    ending = await driver(scripted).run()
    assert isinstance(ending, Waiting)
    assert ending.wait is WAIT
    assert not any(asked.startswith("verify") for asked in scripted.asked)
