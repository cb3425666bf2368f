"""A company that is resumed again and again with what was kept of it is decided, and only by answers that count.

The proofs of our way lie around every question unless a test says otherwise: the friendliest world there is.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ct_stream.company.farewells import Farewells
from ct_stream.company.one_pass import WorkerGate
from ct_stream.gate.memory import Memory
from ct_stream.gate.output_stage import Origin, rfc3339
from ct_stream.gate.patterns import render
from ct_stream.gate.providers import is_own_server
from ct_stream.gate.questions import Attempt, ControlKind, MailboxAnswer, MxAnswer, SpineAnswer, Trouble
from ct_stream.gate.records import FailedAt, Known, Resumed
from ct_stream.gate.replies import Reply, Stage
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.verdicts import Failed, HeldBy, Passed
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn, control_wait
from tests.company.test_one_pass import ASKED, FAILED, GOOD, ID, LATER, ME, PATTERN, Controls, proven
from tests.company.ways import counts_nothing, proven_way
from tests.gate.world import RULES, YES, mx

if TYPE_CHECKING:
    from datetime import datetime

    from ct_stream.gate.evidence import Way
    from ct_stream.probes.stopwatch import Stopwatch

OWN = ("mx1.acme.example", "mx2.acme.example")
SHARED = ("mx1.bigmail.example",)
#: A chain of proofs that began after the question.
LATE = proven(since_s=1, until_s=5)
MOST_ROUNDS = 20


def attempt(host: str, trouble: Trouble = Trouble.TIMEOUT) -> Attempt:
    return Attempt(host=host, ip="192.0.2.1", stage=Stage.CONNECT, trouble=trouble)


def refuses(host: str, *before: Attempt) -> MailboxAnswer:
    reply = Reply(code=554, enhanced="5.7.1", text="blocked using a list at spamhaus")
    return MailboxAnswer(attempts=(*before, Attempt(host=host, ip="192.0.2.2", stage=Stage.BANNER, reply=reply)))


#: A host that only a lying resolver knows.
CAPTIVE = ("mx.captive.example",)
NOBODY_THERE = MailboxAnswer(
    attempts=(Attempt(host=CAPTIVE[0], ip="", stage=Stage.CONNECT, trouble=Trouble.NO_ADDRESS),)
)


class Company:
    """What is kept of it while it is parked, what its servers say, and how often they were asked."""

    def __init__(self, hosts: tuple[str, ...], says: MailboxAnswer | Wait, **parked: Any) -> None:
        self.says = says
        self.hosts = hosts
        self.at_hosts: dict[str, MailboxAnswer] = {}  #: what the best host says, where hosts say different things
        self.shut: dict[str, dict[str, datetime | None]] = {}  #: as `Guardrails.shut`
        self.resumed_at: datetime | None = None  #: when a person resumed TOOL-005
        self.limited: list[Wait] = []  #: what our limits say to its look-ups of MX, one after the other
        self.remembered: MxAnswer | None = None
        self.asked = 0
        self.judged: list[str] = []
        self.rates = 0
        self.ways: dict[ControlKind, Way] = {ControlKind.DNS: GOOD, ControlKind.SMTP: GOOD}
        self.settles_at_once = True
        self.takes_s = 0.1
        self.then: MailboxAnswer | None = None  #: what the shared server says once it is asked alone
        self.cap: Wait | None = None  #: what our limits say once, between two of its hosts
        self.others: dict[str, dict[ControlKind, Way]] = {}  #: the ways of other runs
        self.quiet: dict[str, float] = {}  #: other runs, and in how many seconds it is known whether they ended
        self.forgotten: set[str] = set()  #: other runs of which nothing is known any more
        self.first_at = ""  #: the address that is not to look again at once
        last = parked.pop("last", None)
        self.row: dict[str, Any] = {
            "exchanges": (
                Exchange(key="spine", answer=SpineAnswer(found=True, domain="acme.example")),
                Exchange(key="mx", answer=mx(*hosts)),
                *((Exchange(key=f"rcpt:{PATTERN}", answer=last),) if last else ()),
            ),
            "pending": None, "looks": 0, "reason": "control", "waits_on": WaitsOn("control:smtp"), "asked_at": ASKED,
            "failed_at": FAILED, "spent_s": 5.0,
        } | parked  # fmt: skip

    async def _recall(self, _domain: str) -> Memory:
        if self.remembered is None:
            return Memory()
        return Memory(mx=(Exchange(key="mx", answer=self.remembered, remembered=True),))

    async def _nothing(self, *_: object, **__: object) -> None:
        return None

    async def _limit(self) -> Wait | None:
        return self.limited.pop(0) if self.limited else None

    async def _lookup_mx(self, _domain: str) -> MxAnswer:
        return mx(*self.hosts)

    async def _ask(self, watch: Stopwatch, _address: object, hosts: tuple[str, ...]) -> MailboxAnswer | Wait:
        self.asked += 1
        if watch.left_s < self.takes_s:
            watch.spent_s += watch.left_s
            return MailboxAnswer(attempts=(attempt(hosts[0], Trouble.DEADLINE),))
        watch.spent_s += self.takes_s
        if hosts == CAPTIVE:
            return NOBODY_THERE
        cap, self.cap = self.cap, None
        if hosts[0] in self.at_hosts:
            return cap or self.at_hosts[hosts[0]]
        return cap or (self.then if self.then and hosts == SHARED else self.says)

    async def _judge(self, held: Any, domain: str, provider: str) -> Wait:
        self.judged.append(provider)
        self.rates += held.by is HeldBy.RATE
        if held.by is HeldBy.RATE:
            return Wait(reason=WaitReason.OUR_RATE, detail="too fast", waits_on=WaitsOn.provider(provider))
        if is_own_server(held.host, domain):
            return control_wait(ControlKind.SMTP, f"{held.host} refuses us")
        return Wait(reason=WaitReason.REFUSED, detail="refuses us", after_s=600.0, waits_on=WaitsOn.provider(provider))

    def _refusal(self, *_: object) -> Wait | None:
        if self.settles_at_once or self.row["reason"] == WaitReason.REFUSED:
            return None
        return Wait(reason=WaitReason.REFUSED, detail="ten minutes", after_s=600.0)

    async def come_back(self) -> Passed | Failed | Wait:
        """Go through the gate once more, and park what is left of it as Postgres does."""

        def prober(_permits: object, watch: Stopwatch) -> SimpleNamespace:
            return SimpleNamespace(ask=partial(self._ask, watch), close=self._nothing, heard=())

        parts: Any = SimpleNamespace(
            memory=SimpleNamespace(recall=self._recall), own_way=proven_way(),
            farewells=Farewells(), metrics=counts_nothing(), spine_check=None, spine_grace_s=60.0,
            limits=SimpleNamespace(mx_lookup=self._limit), rules=RULES,
            controls=Controls(self.ways, others=self.others, quiet=self.quiet, forgotten=self.forgotten),
            guardrails=SimpleNamespace(
                refresh=self._nothing, closed=set(), unreached=self._nothing, judge=self._judge, note=self._judge,
                settling=lambda *_: SimpleNamespace(
                    refusal=self._refusal, is_of_many=lambda *_: False, closed=(), halted_by=None,
                    resumed_at=self.resumed_at,
                ),
                closed_to=lambda _: set(), shut=self.shut,
            ),
            probing=SimpleNamespace(resolver=SimpleNamespace(lookup_mx=self._lookup_mx), prober=prober),
            paid_calls=SimpleNamespace(off_because=lambda: "off"), pass_deadline_s=90.0,
            stalled_since=lambda _: 0.0, now=lambda: LATER,
            age_s=lambda moment: (LATER - moment).total_seconds(),
        )  # fmt: skip
        origin = Origin(outreach_id=ID)
        resumed = Resumed(origin=origin, event_at=None, domain="acme.example", since=ASKED, exceptions=0, **self.row)
        known = Known(outcome=None, pass_state="waiting", in_spine=True, domain="acme.example")
        run = await WorkerGate(parts).begin(origin, known, resumed)
        result = await run.run()
        if isinstance(result, Wait):
            left = run.parked(origin, None, result)
            self.first_at = left.first_at
            failed = {FailedAt.NOW: FAILED, FailedAt.ON_RECORD: self.row["failed_at"], FailedAt.NONE: None}
            self.row |= {
                "exchanges": left.exchanges, "pending": left.pending, "looks": left.looks,
                "reason": result.reason.value, "waits_on": result.waits_on, "failed_at": failed[left.failed],
                "asked_at": self.row["asked_at"] if left.asked_at is None else ASKED, "spent_s": left.spent_s,
                "refused_at": left.refused_at, "met_at": left.met_at or parts.own_way.egress,
                "met_by": left.met_by or ME,
            }  # fmt: skip
        return result

    async def until_decided(self) -> Passed | Failed | Wait:
        for _ in range(MOST_ROUNDS):
            result = await self.come_back()
            if not isinstance(result, Wait):
                break
        return result


async def test_a_dead_first_host_and_a_backup_that_refuses_us_is_decided() -> None:
    says = refuses(OWN[1], attempt(OWN[0]))
    company = Company(OWN, says, pending=Exchange(key=f"rcpt:{PATTERN}", answer=says))
    assert isinstance(await company.until_decided(), Failed)
    assert company.asked <= 2


async def test_a_server_that_is_silent_at_first_and_then_refuses_us_is_decided() -> None:
    company = Company(OWN[:1], refuses(OWN[0]), last=MailboxAnswer(attempts=(attempt(OWN[0]),)))
    assert isinstance(await company.until_decided(), Failed)
    assert company.asked <= 2


async def test_a_providers_refusal_does_not_make_unproven_silence_count() -> None:
    last = MailboxAnswer(attempts=(attempt(SHARED[0]),))
    company = Company(SHARED, refuses(SHARED[0]), last=last, looks=1)
    company.ways[ControlKind.SMTP] = LATE
    first = await company.come_back()
    assert isinstance(first, Wait)
    assert first.reason is WaitReason.REFUSED
    assert company.asked == 1
    assert isinstance(await company.come_back(), Wait)


@pytest.mark.parametrize("reason", [WaitReason.PROVIDER_BUSY, WaitReason.DOMAIN_BUSY, WaitReason.RATE_LIMIT])
async def test_a_provider_that_opened_again_is_asked_even_after_many_waits(reason: WaitReason) -> None:
    """Its silence was heard before it closed. Woken by a normal session, the company finds all places taken."""
    says = Wait(reason=reason, detail="no place is free", waits_on=WaitsOn.place("bigmail.example"))
    last = MailboxAnswer(attempts=(attempt(SHARED[0]),))
    company = Company(SHARED, says, last=last, looks=1, reason="provider_closed", waits_on="provider:bigmail.example")
    assert isinstance(await company.come_back(), Wait)
    assert isinstance(await company.come_back(), Wait), "decided by what it heard before"


async def test_a_refusal_after_an_unresolvable_name_is_decided_even_if_chains_of_proofs_end_while_it_settles() -> None:
    """In its ten minutes nobody asks for proofs, and somebody else's control begins another chain."""
    says = refuses(OWN[1], attempt(OWN[0], Trouble.NO_ADDRESS))
    company = Company(OWN, says, pending=Exchange(key=f"rcpt:{PATTERN}", answer=says), looks=1)
    company.settles_at_once = False
    settling = await company.come_back()
    assert isinstance(settling, Wait)
    assert settling.reason is WaitReason.REFUSED
    company.ways[ControlKind.DNS] = LATE
    assert isinstance(await company.come_back(), Failed)
    assert company.asked == 0


async def test_a_refusal_after_a_name_not_proven_missing_is_asked_again() -> None:
    says = refuses(OWN[1], attempt(OWN[0], Trouble.NAME_LOOKUP))
    company = Company(OWN, says, pending=Exchange(key=f"rcpt:{PATTERN}", answer=says), looks=1)
    company.ways[ControlKind.DNS] = proven(since_s=-60, until_s=-30)
    waits = await company.come_back()
    assert isinstance(waits, Wait)
    assert (waits.waits_on, company.asked) == ("control:dns", 0)
    company.ways[ControlKind.DNS] = LATE
    assert isinstance(await company.come_back(), Wait)
    assert company.asked == 1
    company.ways[ControlKind.DNS] = GOOD
    assert isinstance(await company.until_decided(), Failed)


async def test_a_limit_of_ours_between_two_hosts_costs_no_time() -> None:
    """A look at a dead first host takes 74 s of 90; what it was is not kept, and it is looked at again tomorrow."""
    accepts = Attempt(host=OWN[1], ip="192.0.2.2", stage=Stage.RCPT, reply=Reply(code=250, text="ok"))
    company = Company(OWN, MailboxAnswer(attempts=(attempt(OWN[0]), accepts)), looks=1, spent_s=0.0)
    company.takes_s = 74.0
    company.cap = Wait(reason=WaitReason.DAILY_CAP, detail="all 10,000 sessions of the day are used up")
    assert isinstance(await company.come_back(), Wait)
    assert (company.row["spent_s"], company.row["exchanges"][-1].key) == (0.0, "mx")
    company.says = MailboxAnswer(attempts=(accepts,))
    result = await company.until_decided()
    assert isinstance(result, Passed)


SAYS_NO = Reply(code=554, enhanced="5.7.1", text="blocked using a list at spamhaus")
TOO_FAST = Reply(code=421, enhanced="4.7.0", text="too many connections from your IP")


def and_the_backup(backup: Attempt) -> MailboxAnswer:
    return MailboxAnswer(attempts=(Attempt(host=OWN[0], stage=Stage.BANNER, reply=SAYS_NO), backup))


@pytest.mark.parametrize(
    "backup",
    [
        pytest.param(Attempt(host=SHARED[0], stage=Stage.RCPT, reply=Reply(code=450, text="greylisted")), id="later"),
        pytest.param(attempt(SHARED[0]), id="silent"),
    ],
)
async def test_its_own_server_that_refuses_us_is_settled_whatever_else_a_shared_backup_says(backup: Attempt) -> None:
    """Whose word it was decides where it waits; taken for the backup's it would be asked again at each proof."""
    company = Company((OWN[0], SHARED[0]), and_the_backup(backup))
    assert isinstance(await company.until_decided(), Failed)
    assert company.asked <= 1 + len(RULES.patterns)
    assert set(company.judged) == {"acme.example"}
    assert len(company.judged) <= 2, "trouble is looked at twice, and so is what came with it"


@pytest.mark.parametrize(
    "backup",
    [
        pytest.param(Attempt(host=SHARED[0], stage=Stage.BANNER, reply=SAYS_NO), id="refuses us too"),
        pytest.param(Attempt(host=SHARED[0], stage=Stage.BANNER, reply=TOO_FAST), id="finds us too fast"),
        pytest.param(Attempt(host=SHARED[0], stage=Stage.RCPT, reply=TOO_FAST), id="finds us too fast at RCPT"),
    ],
)
async def test_a_shared_backups_reply_about_us_never_counts_as_the_companys_policy(backup: Attempt) -> None:
    company = Company((OWN[0], SHARED[0]), and_the_backup(backup))
    for rounds in range(1, 6):
        wait = await company.come_back()
        assert isinstance(wait, Wait)
        assert wait.waits_on == "provider:bigmail.example"
        assert company.asked == rounds, "once a wait"
    assert set(company.judged) == {"bigmail.example"}, "one company is evidence about one provider"


async def test_settling_one_host_does_not_settle_another() -> None:
    """The backup defers the first pattern, and at the second finds us too fast."""
    later = Attempt(host=SHARED[0], stage=Stage.RCPT, reply=Reply(code=450, text="greylisted"))
    company = Company((OWN[0], SHARED[0]), and_the_backup(later))
    company.then = MailboxAnswer(attempts=(Attempt(host=SHARED[0], stage=Stage.RCPT, reply=TOO_FAST),))
    wait = await company.until_decided()
    assert isinstance(wait, Wait)
    assert wait.waits_on == "provider:bigmail.example"


@pytest.mark.parametrize("stage", [Stage.BANNER, Stage.RCPT])
@pytest.mark.parametrize("first", [0, 1])
async def test_a_too_fast_reply_is_never_policy_even_if_another_host_refuses_us(stage: Stage, first: int) -> None:
    hosts = (OWN[first], OWN[1 - first])
    refuses_us = Attempt(host=OWN[0], stage=Stage.BANNER, reply=SAYS_NO)
    too_fast = Attempt(host=OWN[1], stage=stage, reply=TOO_FAST)
    says = MailboxAnswer(attempts=(too_fast, refuses_us) if first else (refuses_us, too_fast))
    company = Company(hosts, says, pending=Exchange(key=f"rcpt:{PATTERN}", answer=says))
    for _ in range(4):
        assert isinstance(await company.come_back(), Wait)
    assert company.rates


async def test_hosts_that_a_lying_resolver_named_are_looked_up_again_before_they_fail_anybody() -> None:
    """Another worker met them, or they were remembered; an honest resolver does not know such a host."""
    company = Company(CAPTIVE, YES, last=NOBODY_THERE, waits_on=WaitsOn("control:dns"))
    company.remembered = mx(*CAPTIVE)
    company.hosts = OWN
    assert isinstance(await company.come_back(), Passed)


@pytest.mark.parametrize("looks", [0, 1])
@pytest.mark.parametrize("is_silent", [False, True], ids=["nobody asked yet", "another one met silence"])
async def test_silence_at_hosts_that_another_workers_resolver_named_fails_nobody(looks: int, is_silent: bool) -> None:
    """That worker put the company away after its MX, and its own next control, which would show the lie, is to come."""
    wait: dict[str, Any] = {"reason": "provider_busy", "waits_on": WaitsOn("places:captive.example")}
    if is_silent:
        wait = {"reason": "control", "waits_on": WaitsOn("control:dns"), "last": NOBODY_THERE}
    company = Company(CAPTIVE, YES, looks=looks, failed_at=FAILED if is_silent else None, **wait)
    company.hosts = OWN
    spine, its_mx, *rest = company.row["exchanges"]
    its_mx = replace(its_mx, by="liar/1/a", at=rfc3339(ASKED))
    company.row["exchanges"] = (spine, its_mx, *(replace(e, by=ME, at=rfc3339(FAILED)) for e in rest))
    result = await company.until_decided()
    assert isinstance(result, Passed), result


@pytest.mark.parametrize("proven", [ControlKind.DNS, ControlKind.SMTP, None])
async def test_silence_at_an_mx_that_its_worker_has_proven_since_counts(proven: ControlKind | None) -> None:
    """Both of its controls have succeeded since. `proven`: only that one; None: both."""
    silent = MailboxAnswer(attempts=(attempt(OWN[0]),))
    company = Company(OWN[:1], YES, last=silent, looks=1)
    spine, its_mx, silence = company.row["exchanges"]
    its_mx = replace(its_mx, by="other/1/a", at=rfc3339(ASKED))
    company.row["exchanges"] = (spine, its_mx, replace(silence, by=ME, at=rfc3339(FAILED)))
    since, before = (replace(GOOD, control_at=ASKED + timedelta(seconds=n)) for n in (1, -1))
    company.others = {
        "other/1/a": {kind: since if proven in (None, kind) else before for kind in company.ways},
        ME: company.ways,
    }
    result = await company.come_back()
    assert isinstance(result, Failed if proven is None else Passed), "asked again, its server talks"
    assert company.asked == (0 if proven is None else 2), company.asked


@pytest.mark.parametrize(("waits_on", "after_s"), [("control:smtp", 10.0), ("egress:dc2", 60.0)])
async def test_who_waits_until_a_quiet_worker_is_known_to_have_ended_waits_on_as_before(
    waits_on: str, after_s: float
) -> None:
    """And its second look is still another address's: the quiet one was the first."""
    silent = MailboxAnswer(attempts=(attempt(OWN[0]),))
    company = Company(OWN[:1], YES, last=silent, waits_on=WaitsOn(waits_on), met_by="quiet/1/a", met_at="dc2")
    company.row["exchanges"] = tuple(replace(e, by="quiet/1/a", at=rfc3339(FAILED)) for e in company.row["exchanges"])
    company.others = {"quiet/1/a": {kind: replace(GOOD, control_at=ASKED) for kind in company.ways}}
    company.quiet = {"quiet/1/a": 10.0}
    wait = await company.come_back()
    assert isinstance(wait, Wait)
    assert (wait.reason, wait.waits_on, wait.after_s) == (WaitReason.CONTROL, waits_on, after_s)
    assert (company.asked, company.first_at, company.row["failed_at"]) == (0, "dc2", FAILED)


NO_SUCH_USER = Reply(code=550, enhanced="5.1.1", text="no such user")


def says(host: str, reply: Reply, *before: Attempt) -> MailboxAnswer:
    return MailboxAnswer(attempts=(*before, Attempt(host=host, ip="192.0.2.1", stage=Stage.RCPT, reply=reply)))


def of_a_killed_workers_mx(reply: Reply, patterns: int = 1) -> Company:
    """Return a company that an honest worker asked about, at a host that a worker named which was killed."""
    company = Company(OWN[:1], YES, failed_at=None, reason="rate_limit", waits_on=WaitsOn(""))
    spine, its_mx = company.row["exchanges"]
    heard = (
        Exchange(
            key=f"rcpt:{pattern.name}",
            asked=str(render(pattern, RULES.probe_name, "acme.example")),
            answer=says(OWN[0], reply),
            by=ME,
            at=rfc3339(FAILED),
        )
        for pattern in RULES.patterns[:patterns]
    )
    company.row["exchanges"] = (spine, replace(its_mx, by="killed/1/a", at=rfc3339(ASKED)), *heard)
    before = replace(GOOD, control_at=ASKED - timedelta(seconds=1))
    company.others = {
        "killed/1/a": {kind: replace(before, is_gone=True) for kind in company.ways},
        ME: dict.fromkeys(company.ways, before),
    }
    return company


@pytest.mark.parametrize("hosts", [OWN[:1], OWN, OWN[1:]], ids=["same host", "still the best", "another host"])
async def test_what_an_honest_worker_heard_at_the_hosts_of_a_void_mx_is_not_asked_again(
    hosts: tuple[str, ...],
) -> None:
    """The worker that looked the MX up was killed before its next control. Another one has asked since."""
    company = of_a_killed_workers_mx(NO_SUCH_USER)
    company.hosts = hosts
    company.says = says(hosts[0], Reply(code=250, text="ok"))
    result = await company.come_back()
    assert isinstance(result, Passed)
    assert company.asked == 2, "the pattern that is accepted, and a random address"
    assert ("refused 1 patterns" in result.note) == (hosts != OWN[1:]), "by the answer that is kept"


@pytest.mark.parametrize(("reply", "patterns"), [(NO_SUCH_USER, len(RULES.patterns)), (Reply(code=250, text="ok"), 1)])
async def test_a_host_that_is_a_backup_now_does_not_speak_for_the_best_one(reply: Reply, patterns: int) -> None:
    """A resolver that lies, or is behind the times, named the backup alone. It may know no mailboxes, or take all."""
    company = of_a_killed_workers_mx(reply, patterns)
    best, backup = company.hosts = (OWN[1], OWN[0])
    the_other = Reply(code=250, text="ok") if reply is NO_SUCH_USER else NO_SUCH_USER
    company.at_hosts = {best: says(best, the_other), backup: says(backup, reply)}
    result = await company.come_back()
    assert isinstance(result, Passed if reply is NO_SUCH_USER else Failed), result
    assert company.asked == (2 if reply is NO_SUCH_USER else len(RULES.patterns))


async def test_a_backup_that_spoke_after_the_best_host_had_is_not_asked_again() -> None:
    best, backup = OWN
    busy = Attempt(host=best, ip="192.0.2.2", stage=Stage.BANNER, reply=Reply(code=421, text="busy"))
    company = of_a_killed_workers_mx(NO_SUCH_USER)
    *others, first = company.row["exchanges"]
    company.row["exchanges"] = (*others, replace(first, answer=says(backup, NO_SUCH_USER, busy)))
    company.hosts = OWN
    company.at_hosts = {backup: says(backup, NO_SUCH_USER)}
    assert isinstance(await company.come_back(), Failed)
    assert company.asked == len(RULES.patterns) - 1


async def test_what_the_worker_that_lost_its_way_heard_after_its_mx_is_asked_again() -> None:
    """A proxy in its way says yes to everybody."""
    company = of_a_killed_workers_mx(Reply(code=250, text="ok"))
    *others, first = company.row["exchanges"]
    company.row["exchanges"] = (*others, replace(first, by="killed/1/a"))
    company.says = says(OWN[0], NO_SUCH_USER)
    assert isinstance(await company.come_back(), Failed)


async def test_what_is_kept_beside_a_void_answer_outlives_one_more_wait() -> None:
    company = of_a_killed_workers_mx(NO_SUCH_USER, len(RULES.patterns) - 1)
    company.says = says(OWN[0], NO_SUCH_USER)
    company.limited = [Wait(reason=WaitReason.RATE_LIMIT, detail="50 a second", after_s=0.1)]
    assert isinstance(await company.come_back(), Wait)
    assert isinstance(await company.come_back(), Failed)
    assert company.asked == 1, "the other seven were answered"


async def test_what_was_answered_about_another_mailbox_does_not_serve() -> None:
    """The spine's domain, or the rules, have changed while the company waited."""
    company = of_a_killed_workers_mx(Reply(code=250, text="ok"))
    *others, first = company.row["exchanges"]
    company.row["exchanges"] = (*others, replace(first, asked="somebody@old.example"))
    company.says = says(OWN[0], NO_SUCH_USER)
    assert isinstance(await company.come_back(), Failed)


async def test_what_was_set_aside_and_heard_astray_is_asked_again() -> None:
    """A control of the worker that asked fails while the company waits once more."""
    company = of_a_killed_workers_mx(Reply(code=250, text="ok"))
    company.limited = [Wait(reason=WaitReason.RATE_LIMIT, detail="50 a second", after_s=0.1)]
    assert isinstance(await company.come_back(), Wait)
    lost = replace(company.others[ME][ControlKind.SMTP], trouble_from=ASKED, trouble_until=LATER)
    company.others[ME] = dict.fromkeys(company.ways, lost)
    company.says = says(OWN[0], NO_SUCH_USER)
    assert isinstance(await company.come_back(), Failed)
    assert company.asked == len(RULES.patterns)


async def test_of_two_answers_to_a_question_the_newer_one_serves() -> None:
    company = of_a_killed_workers_mx(Reply(code=250, text="ok"))
    *others, newer = company.row["exchanges"]
    older = replace(newer, answer=says(OWN[0], NO_SUCH_USER), aside=True)
    company.row["exchanges"] = (*others, newer, older)
    company.says = says(OWN[0], NO_SUCH_USER)
    result = await company.come_back()
    assert isinstance(result, Passed)
    assert company.asked == 1, "the random address"


async def test_what_is_still_kept_is_not_set_aside_too() -> None:
    first, second = RULES.patterns[:2]
    company = Company(OWN, Wait(reason=WaitReason.RATE_LIMIT, detail="50 a second", after_s=0.1))
    silent = MailboxAnswer(attempts=(attempt(OWN[0]),))
    company.row["exchanges"] += (
        Exchange(key=f"rcpt:{first.name}", answer=says(OWN[0], NO_SUCH_USER), by=ME, at=rfc3339(ASKED)),
        Exchange(key=f"rcpt:{second.name}", answer=silent, by=ME, at=rfc3339(ASKED + timedelta(milliseconds=500))),
    )
    broken = replace(GOOD, trouble_from=ASKED + timedelta(seconds=1), trouble_until=FAILED + timedelta(seconds=1))
    company.ways[ControlKind.SMTP] = replace(broken, control_at=FAILED + timedelta(seconds=1))
    assert isinstance(await company.come_back(), Wait)
    assert [e.key for e in company.row["exchanges"]] == ["spine", "mx", f"rcpt:{first.name}"]


@pytest.mark.parametrize("by", ["forgotten/1/a", ME])
async def test_what_a_forgotten_worker_heard_is_asked_again(by: str) -> None:
    """A halt lasted so long that what its controls showed is tidied away. It may have talked to a proxy."""
    company = Company(OWN[:1], says(OWN[0], NO_SUCH_USER), failed_at=None, reason="halted", waits_on=WaitsOn("tool:x"))
    spine, its_mx = company.row["exchanges"]
    heard = Exchange(key=f"rcpt:{PATTERN}", answer=says(OWN[0], Reply(code=250, text="ok")), at=rfc3339(FAILED))
    company.row["exchanges"] = (spine, *(replace(e, by=by, at=rfc3339(FAILED)) for e in (its_mx, heard)))
    company.forgotten = {"forgotten/1/a"}
    result = await company.come_back()
    assert isinstance(result, Passed if by == ME else Failed)


@pytest.mark.parametrize("is_shut", [False, True], ids=["tidied", "opened since"])
async def test_silence_that_a_forgotten_worker_met_and_proved_is_asked_again(is_shut: bool) -> None:
    """It waited for a closed provider for more than a week."""
    silent = MailboxAnswer(attempts=(attempt(SHARED[0]),))
    company = Company(
        SHARED, says(SHARED[0], Reply(code=250, text="ok")), last=silent, looks=1, reason="provider_closed",
        waits_on=WaitsOn("provider:bigmail.example"), met_by="forgotten/1/a", met_at="default",
    )  # fmt: skip
    spine, its_mx, silence = (replace(e, by=ME, at=rfc3339(ASKED)) for e in company.row["exchanges"])
    company.row["exchanges"] = (spine, its_mx, replace(silence, by="forgotten/1/a", proven=True))
    company.forgotten = {"forgotten/1/a"}
    company.others = {ME: {kind: replace(GOOD, control_at=ASKED + timedelta(seconds=1)) for kind in company.ways}}
    if is_shut:
        company.shut = {"default": {"bigmail.example": LATER}}
    result = await company.come_back()
    assert isinstance(result, Passed), result
    assert company.asked == 2


@pytest.mark.parametrize(
    ("reason", "waits_on"), [("halted", "tool:TOOL-005"), ("provider_closed", "provider:x.example")]
)
async def test_silence_that_nothing_has_proven_is_no_first_look(reason: str, waits_on: str) -> None:
    """A limit came between its first two questions, and then a halt: no moment of a failure is on record."""
    half = says(OWN[1], NO_SUCH_USER, attempt(OWN[0]))
    company = Company(OWN, half, last=half, failed_at=None, reason=reason, waits_on=WaitsOn(waits_on), met_by=ME)
    company.row["exchanges"] = tuple(
        e if e.key == "spine" else replace(e, by=ME, at=rfc3339(ASKED + timedelta(seconds=1)))
        for e in company.row["exchanges"]
    )
    early = ASKED - timedelta(seconds=5)
    company.ways = dict.fromkeys(company.ways, replace(GOOD, ok_begun_at=early, control_at=early))
    assert isinstance(await company.come_back(), Wait)
    assert company.row["looks"] == 0
    company.ways = dict.fromkeys(company.ways, GOOD)
    company.says = says(OWN[0], Reply(code=250, text="ok"))
    assert isinstance(await company.until_decided(), Passed)


# ---------------------------------------------------------------- silence that is proven already


def with_proven_silence(first: str) -> Company:
    """Return a company whose first host was silent to another worker, twice; then its backup found us too fast."""
    backup = OWN[1]
    company = Company(
        (first, backup), says(backup, TOO_FAST), last=says(backup, NO_SUCH_USER, attempt(first)), looks=1,
        met_by="other/1/a", met_at="default",
    )  # fmt: skip
    company.row["exchanges"] = tuple(
        e if e.key == "spine" else replace(e, by="other/1/a", at=rfc3339(ASKED + timedelta(seconds=1)))
        for e in company.row["exchanges"]
    )
    company.others = {"other/1/a": {k: replace(GOOD, control_at=ASKED + timedelta(seconds=3)) for k in company.ways}}
    return company


@pytest.mark.parametrize(
    ("first", "what"), [(OWN[0], "resumed"), (SHARED[0], "opened"), (SHARED[0], "closed"), (SHARED[0], "shunned")]
)
async def test_who_waits_for_a_silent_provider_to_open_is_asked_when_its_time_has_come(first: str, what: str) -> None:
    """A reply about us came after the silence, so no moment of a failure was on record."""
    company = with_proven_silence(first)
    wait = await company.come_back()
    assert isinstance(wait, Wait)
    assert (wait.reason, company.row["failed_at"]) == (WaitReason.OUR_RATE, None)
    company.says = says(OWN[1], NO_SUCH_USER)
    since = ASKED + timedelta(minutes=5)
    if what == "resumed":
        company.resumed_at = since
    else:
        egress = "dc2" if what == "shunned" else "default"
        company.shut = {egress: {"bigmail.example": since if what == "opened" else None}}
    waits = await company.come_back()
    assert isinstance(waits, Wait)
    asked = company.asked
    for _ in range(2):
        await company.come_back()
    assert company.asked > asked, "it waits for ever, and is never asked again"


@pytest.mark.parametrize("what", ["opened", "resumed"])
async def test_a_later_look_makes_an_older_silence_no_younger(what: str) -> None:
    """The provider opened, or TOOL-005 was resumed, after its silence and before another worker met its backup's."""
    company = with_proven_silence(SHARED[0])
    silent_at = ASKED - timedelta(minutes=10)
    company.row["exchanges"] = tuple(
        e if e.key == "spine" else replace(e, at=rfc3339(silent_at)) for e in company.row["exchanges"]
    )
    company.row |= {"asked_at": silent_at - timedelta(seconds=5), "failed_at": silent_at}
    whole = replace(proven(since_s=-3000, until_s=5), control_at=ASKED)
    company.ways = dict.fromkeys(company.ways, whole)
    company.others = {"other/1/a": company.ways}
    since = ASKED - timedelta(minutes=5)
    if what == "opened":
        company.shut = {"dc2": {"bigmail.example": since}}
    else:
        company.resumed_at = since
    company.says = MailboxAnswer(attempts=(attempt(OWN[1]),))
    waits = [wait for _ in range(3) if isinstance(wait := await company.come_back(), Wait)]
    assert len(waits) == 3, "its silence is from before that, and it fails for ever"
    assert "asked again" in waits[1].detail
    assert company.asked == 2
