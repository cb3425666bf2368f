"""Does a failed answer count against the company?

Silence, a refused connection, an absent MX or a reply about us may be our own fault: our resolver, our network, our
address. A FAIL is for ever, so such an answer counts only if proofs before and after it show that our own way to the
world works (ADR-CT-IMO-024). Each worker run proves its own way alone, so an answer is weighed by the proofs of the run
that met it, whoever weighs it (ADR-CT-IMO-033). `ROWS` is the decision as a table: what becomes of the answers that a
waiting company brings back. docs/decision.md is generated from it. store/functions/controls.sql keeps the chain of
proofs; what the proofs mean for an answer is decided only here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from typing import TYPE_CHECKING, TypeAlias

from ct_stream.gate.attempts import refusals
from ct_stream.gate.egress import DEFAULT
from ct_stream.gate.providers import is_own_provider, is_own_server, provider_at, provider_of, whereabouts
from ct_stream.gate.questions import (
    NO_ANSWER,
    RANDOM,
    ControlAnswer,
    ControlKind,
    MailboxAnswer,
    MxAnswer,
    MxStatus,
    ProbeMailbox,
    Trouble,
    way_to,
)
from ct_stream.gate.records import FailedAt
from ct_stream.gate.replies import Stage
from ct_stream.gate.verdicts import HeldBy
from ct_stream.gate.waits import NOTHING, Wait, WaitReason, WaitsOn, control_wait

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence

    from ct_stream.gate.questions import Answer, Attempt, Question
    from ct_stream.gate.records import Resumed
    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.verdicts import Held

WINDOW_S = 600.0  #: for so long a control lets a worker ask; so much of what it hears may be astray unnoticed
ELSEWHERE_S = 60.0  #: for a worker of another egress to take a company; then its own one asks again
LONGEST_QUESTION_S = 90.0  #: from putting a question to its answer, or to the end of a pass's deadline
SHUNNED_S, SHUNNED_MOST_S = 600.0, 21_600.0  #: between two looks at a provider that is closed to another egress
LOOKS = 1  #: how often a silent server is asked again once our own way is proven
PORT_25 = (ControlKind.SMTP, ControlKind.SMTP6)
_SERVICE_CLOSES = 421  #: RFC 5321 section 3.8: a server that waited too long for us says so, and closes

#: Trouble that one of our resolvers may have caused.
_NAME_TROUBLE = frozenset({Trouble.NO_ADDRESS, Trouble.NAME_LOOKUP, Trouble.UNROUTABLE})
#: Trouble that our broken way out may have caused: all other kinds (an inspecting firewall can garble every session).
_CONNECTION_TROUBLE = frozenset(Trouble) - _NAME_TROUBLE

_CONTROL_SENTENCES = {
    ControlKind.DNS: "its DNS answer counts only after a control has proved that our resolvers work",
    ControlKind.SMTP: "its server's silence counts only after a control has proved that port 25 is open to us",
    ControlKind.SMTP6: "its server's silence counts only after a control has proved our way to port 25 over IPv6",
    ControlKind.DNS_TCP: "its DNS answer counts only after a control has proved that our resolvers answer over TCP",
}

#: When a failed answer was asked for, and when it came.
Window: TypeAlias = "tuple[datetime, datetime]"
_NEVER = datetime.min.replace(tzinfo=UTC)


# ---------------------------------------------------------------- our own way


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What the controls of one kind have shown: the proofs that our own way works, and its last stretch of trouble.

    All moments are by the database's clock.
    """

    ok_begun_at: datetime
    ok_detail: str
    failed_at: datetime
    failed_detail: str
    trouble_from: datetime
    trouble_until: datetime
    proven_since: datetime  #: where the unbroken chain of proofs begins that the last one belongs to
    control_at: datetime = _NEVER  #: when the last control began that succeeded: it knows who answered
    earlier: tuple[Window, ...] = ()  #: stretches of trouble before the last one
    is_gone: bool = False  #: its run ended, so no control of it will come any more

    def proves(self, failed_at: datetime) -> bool:
        """Return whether a proof began after an answer that failed at `failed_at`."""
        return self.ok_begun_at > failed_at

    @property
    def _stretches(self) -> tuple[Window, ...]:
        return (*self.earlier, (self.trouble_from, self.trouble_until))

    def voids(self, asked_at: datetime, failed_at: datetime) -> bool:
        """Return whether our own trouble overlaps this window, from the question to its failed answer."""
        return any(begin < failed_at and asked_at < end for begin, end in self._stretches)

    def was_astray(self, at: datetime) -> bool:
        """Return whether an answer of this moment may be somebody's who answers in the place of others.

        A control failed since, and none succeeded between; or its run ended before the next one, as one that is killed
        does. Then a yes proves as little as silence does.
        """
        # What was never proven was never used.
        if self.is_gone and _NEVER < self.control_at <= at:
            return True
        return any(_NEVER < begin <= at < end for begin, end in self._stretches)

    def unbroken(self, asked_at: datetime) -> bool:
        """Return whether the chain of proofs is unbroken since before the question was put."""
        return self.proven_since <= asked_at and self.failed_at < self.proven_since

    @property
    def is_failing(self) -> bool:
        """Return whether the last control failed, with no proof since."""
        return self.failed_at > self.ok_begun_at


UNPROVEN = Way(
    ok_begun_at=_NEVER,
    ok_detail="",
    failed_at=_NEVER,
    failed_detail="",
    trouble_from=_NEVER,
    trouble_until=_NEVER,
    proven_since=datetime.max.replace(tzinfo=UTC),
)  #: what is known of a run that has proven nothing
FORGOTTEN = replace(
    UNPROVEN, control_at=_NEVER + timedelta(microseconds=1), is_gone=True
)  #: of one that ended so long ago that its controls are tidied away: what it heard may have been anybody's


def confirmed(kind: ControlKind, way: Way, window: Window, *, in_chain: bool) -> ControlAnswer | Wait:
    """Return the proof for an answer that was asked for and failed at these moments, or the wait for one.

    `in_chain`: it was already established that the answer lies in an unbroken chain; it has waited for something else
    since.
    """
    asked_at, failed_at = window
    if way.proves(failed_at):
        if in_chain or way.unbroken(asked_at):
            return ControlAnswer(detail=way.ok_detail)
        sentence = f"{_CONTROL_SENTENCES[kind]}; no proof covers the time of the question, so it is asked again"
        return control_wait(kind, sentence, after_s=0.0)
    if way.is_failing:
        return control_wait(kind, f"{_CONTROL_SENTENCES[kind]}; the last control failed: {way.failed_detail}")
    return unproven(kind)


def unproven(kind: ControlKind) -> Wait:
    """Return the wait for an answer that failed just now: no proof can have begun after it yet."""
    return control_wait(kind, _CONTROL_SENTENCES[kind])


# ---------------------------------------------------------------- what failed in answers


def troubled(answer: MailboxAnswer) -> tuple[Attempt, ...]:
    """Return the attempts without a reply, except those at the host that answered RCPT TO in the end.

    A backup's answer counts only if the first host was really silent; its silence may be our own trouble.
    """
    spoke = answer.attempts[-1].host if answer.reached_rcpt else None
    return tuple(attempt for attempt in answer.attempts if attempt.reply is None and attempt.host != spoke)


def proofs_needed(answers: Iterable[MailboxAnswer]) -> list[ControlKind]:
    """Return which of our own ways must be proven before these answers may fail a company.

    Every attempt counts, not only the last one: a timeout at the first host may come from our own blocked port, and the
    second host may be a backup that knows no mailboxes.
    """
    attempts = [attempt for answer in answers for attempt in troubled(answer)]
    needed = {way_to(attempt.ip) for attempt in attempts if attempt.trouble in _CONNECTION_TROUBLE}
    if any(attempt.trouble in _NAME_TROUBLE for attempt in attempts):
        needed.add(ControlKind.DNS)
    return [kind for kind in ControlKind if kind in needed]


def without_trouble(exchanges: Sequence[Exchange]) -> list[Exchange]:
    """Return the exchanges without those that our own trouble may have caused, and without what rests on them.

    Used when a control failed around them: a timeout, a refused connection or a dead resolver then says nothing about
    the company, and those questions count as not asked.
    """
    kept: list[Exchange] = []
    for exchange in exchanges:
        answer = exchange.answer
        if exchange.proven:
            kept.append(exchange)
            continue
        if isinstance(answer, MxAnswer) and answer.status is not MxStatus.FOUND:
            break
        if isinstance(answer, MailboxAnswer) and troubled(answer):
            break  # the later questions went to the hosts that were left after this answer
        if isinstance(answer, ControlAnswer):
            break
        kept.append(exchange)
    return kept


def met_trouble(exchanges: Iterable[Exchange]) -> bool:
    """Return whether one of these answers is not the other side's word, so that our own trouble may have caused it."""
    return any(
        answer.status in NO_ANSWER
        if isinstance(answer, MxAnswer)
        else isinstance(answer, MailboxAnswer) and bool(troubled(answer))
        for answer in (exchange.answer for exchange in exchanges if not exchange.proven)
    )


def ever_met_trouble(exchanges: Iterable[Exchange]) -> bool:
    """Return the same as `met_trouble`, whether or not it is known that our own way was whole."""
    return met_trouble(_as_if_unproven(exchanges))


def met_name_trouble(exchanges: Iterable[Exchange]) -> bool:
    """Return whether a mail host's name could not be looked up, which may be our resolvers' trouble."""
    return any(
        attempt.trouble in _NAME_TROUBLE
        for exchange in exchanges
        if isinstance(exchange.answer, MailboxAnswer)
        for attempt in troubled(exchange.answer)
    )


def answered(exchanges: Iterable[Exchange]) -> list[Exchange]:
    """Return the exchanges in which a server answered RCPT TO: its word holds even if an earlier answer is void.

    Those in which another host was silent first are left out: that host is to be tried again.
    """
    return [
        e for e in exchanges if isinstance(e.answer, MailboxAnswer) and e.answer.reached_rcpt and not troubled(e.answer)
    ]


def serves_again(exchange: Exchange, question: ProbeMailbox) -> bool:
    """Return whether an answer that followed a void one holds for the same question, now put to these hosts.

    Only that of the best host, or of one that was asked after all better ones: a backup may know no mailboxes, or take
    anything. And the mailbox is the same: the spine's domain, or the rules, may have changed meanwhile.
    """
    if not isinstance(exchange.answer, MailboxAnswer) or exchange.asked != str(question.address):
        return False
    hosts = question.hosts
    *before, spoke = (attempt.host for attempt in exchange.answer.attempts)
    return spoke in hosts and set(hosts[: hosts.index(spoke)]) <= set(before)


def asked_addresses(exchanges: Iterable[Exchange]) -> set[str]:
    """Return the addresses of the servers that were asked, whatever they said."""
    answers = (exchange.answer for exchange in exchanges if isinstance(exchange.answer, MailboxAnswer))
    return {attempt.ip for answer in answers for attempt in answer.attempts if attempt.ip}


def may_be_ours(answer: Answer) -> bool:
    """Return whether this answer may come from a pause of our own process.

    After a pause a timeout has run out, or a server has lost patience.
    """
    if isinstance(answer, MxAnswer):
        return answer.status in NO_ANSWER
    if not isinstance(answer, MailboxAnswer):
        return False
    last = answer.attempts[-1]  # an answer to RCPT TO holds, whatever came before it at the same host
    return (
        bool(troubled(answer))
        or not answer.reached_rcpt
        or (last.reply is not None and last.reply.code == _SERVICE_CLOSES)
    )


def silent_providers(exchanges: Iterable[Exchange], closed: Container[str] = ()) -> set[str]:
    """Return the shared providers none of whose servers said a word to this pass, whatever other servers said.

    An own server in a network that is `closed` is one of that network's: it may drop our packets as others refuse us.
    """
    silent: set[str] = set()
    talking: set[str] = set()
    for exchange in exchanges:
        if not isinstance(exchange.answer, MailboxAnswer):
            continue
        domain = exchange.asked.rpartition("@")[2]
        for attempt in exchange.answer.attempts:
            provider = provider_at(attempt.host, attempt.ip, domain, closed)
            if not attempt.ip or attempt.trouble is Trouble.DEADLINE or is_own_provider(provider, domain):
                continue
            said = attempt.reply is not None or attempt.stage not in (Stage.CONNECT, Stage.BANNER)
            (talking if said else silent).add(provider)
    return silent - talking


# ---------------------------------------------------------------- whose answers


def open_needs(exchanges: Sequence[Exchange], *, about_us: Iterable[ControlKind] = ()) -> list[ControlKind]:
    """Return which ways must be proven for what failed in these answers, and is not known to be proven yet.

    `about_us`: the ways over which replies about us came. Whether they are about us alone, only a control can show.
    """
    confirmed_already = {e.key for e in exchanges if isinstance(e.answer, ControlAnswer)}
    unproven_answers = [e.answer for e in exchanges if not e.proven]
    needed = set(proofs_needed(a for a in unproven_answers if isinstance(a, MailboxAnswer)))
    if any(isinstance(a, MxAnswer) and a.status is not MxStatus.FOUND for a in unproven_answers):
        needed.add(ControlKind.DNS)
    needed |= set(about_us)
    return [kind for kind in ControlKind if kind in needed and f"control:{kind}" not in confirmed_already]


def mark_proven(exchanges: Iterable[Exchange]) -> list[Exchange]:
    """Return the exchanges, those that failed marked as proven: what is confirmed once stays."""
    return [replace(e, proven=True) if len(without_trouble([e])) == 0 else e for e in exchanges]


def before_astray(exchanges: Sequence[Exchange], runs: Mapping[str, Mapping[ControlKind, Way]]) -> list[Exchange]:
    """Return the exchanges before the first one that its run heard while it had lost its way, whatever it heard.

    `runs`: the ways of the runs that asked, as far as they are known.
    """
    kept: list[Exchange] = []
    for exchange in exchanges:
        if _is_heard(exchange) and not exchange.proven and exchange.at:
            at = datetime.fromisoformat(exchange.at)
            if any(way.was_astray(at) for way in _used(exchange, runs.get(exchange.by, {}))):
                break
        kept.append(exchange)
    return kept


def before_doubtful_mx(
    exchanges: Sequence[Exchange], by: str, runs: Mapping[str, Mapping[ControlKind, Way]]
) -> Sequence[Exchange]:
    """Return the exchanges before the MX if that is no ground for a silence to be counted; otherwise all.

    A resolver that lies names hosts that nobody reaches. So the run that met the silence, or will meet it (`by`), must
    have heard the MX itself, or that of another run must be followed by controls of that run. Otherwise silence would
    be proven by one way, and its cause come from another.
    """
    at = next((n for n, exchange in enumerate(exchanges) if isinstance(exchange.answer, MxAnswer)), None)
    if at is None or not exchanges[at].by or not _names_hosts(exchanges[at]):
        return exchanges
    heard_by = exchanges[at].by
    met_silence = {exchange.by for exchange in exchanges[at:] if ever_met_trouble([exchange])} or {by}
    if met_silence == {heard_by} or _is_controlled_since(exchanges[at], runs.get(heard_by, {})):
        return exchanges
    return exchanges[:at]


def _names_hosts(exchange: Exchange) -> bool:
    return isinstance(exchange.answer, MxAnswer) and exchange.answer.status is MxStatus.FOUND


def _is_controlled_since(exchange: Exchange, ways: Mapping[ControlKind, Way]) -> bool:
    """Return whether controls of our resolvers and of port 25 have succeeded since, which know who answered them."""
    at = datetime.fromisoformat(exchange.at) if exchange.at else _NEVER
    names = ways.get(ControlKind.DNS, UNPROVEN)
    return names.control_at > at and any(ways.get(kind, UNPROVEN).control_at > at for kind in PORT_25)


def askers(exchanges: Iterable[Exchange]) -> set[str]:
    """Return the runs that heard answers of servers or resolvers for this company."""
    return {e.by for e in exchanges if _is_heard(e) and e.by and not e.remembered and not e.proven}


def _is_heard(exchange: Exchange) -> bool:
    return isinstance(exchange.answer, MxAnswer | MailboxAnswer)


def _used(exchange: Exchange, ways: Mapping[ControlKind, Way]) -> list[Way]:
    # Of our resolvers or of port 25: one that names a server of its own shows only in whom port 25 leads to.
    kinds = {ControlKind.DNS, ControlKind.SMTP}
    if isinstance(exchange.answer, MailboxAnswer):
        kinds |= {way_to(attempt.ip) for attempt in exchange.answer.attempts}
    return [ways[kind] for kind in kinds if kind in ways]


# ---------------------------------------------------------------- replies about us


def about_us(question: Question, answer: MailboxAnswer) -> list[Held]:
    """Return the replies about us that count. After a yes, a refusal at the random address changes nothing."""
    helds = refusals(answer)
    if isinstance(question, ProbeMailbox) and question.pattern == RANDOM:
        return [held for held in helds if held.by is HeldBy.RATE]
    return helds


def is_private(held: Held, domain: str) -> bool:
    """Return whether a reply about us may be this one company's own policy, because its own server refuses us.

    Whether it is one of many there that refuse us, `Settling` knows.
    """
    return held.by is HeldBy.REFUSED and is_own_server(held.host, domain)


def is_about_address(pending: Exchange) -> bool:
    """Return whether a reply about us refuses the address that we come from, so that another one may be welcome.

    Our sender is the same whatever address we come from. And who says "too fast" is not asked at once from elsewhere.
    """
    helds = refusals(pending.answer) if isinstance(pending.answer, MailboxAnswer) else []
    return not any(held.is_sender or held.by is HeldBy.RATE for held in helds)


def to_judge(helds: Sequence[Held], domain: str) -> list[Held]:
    """Return the replies about us that are to be judged. The wait of the first one counts.

    Replies that are never a company's own policy come first: those of a shared provider, and "too fast". Only one
    refusal is judged, so that a company counts once towards a halt. Each provider that says "too fast" is judged.
    """
    shared = [held for held in helds if not is_own_server(held.host, domain)]
    too_fast = [held for held in helds if held.by is HeldBy.RATE]
    first = next(iter([*shared, *too_fast, *helds]))
    providers = {provider_of(first.host, domain)}
    others: list[Held] = []
    for held in too_fast:
        if provider_of(held.host, domain) not in providers:
            providers.add(provider_of(held.host, domain))
            others.append(held)
    return [first, *others]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settling:
    """When trouble that only one company met counts as that company's own (ADR-CT-IMO-024)."""

    settle_s: float  #: how long no other company must have met the same
    age_s: float  #: of the failed answer, at most as long as this process has been running
    halted_by: WaitsOn | None = None  #: the guardrail that halts TOOL-005
    halted: str = ""  #: and why
    closed: Container[str] = ()  #: providers, networks and addresses whose guardrail is not open
    opened: Mapping[str, datetime] = field(default_factory=dict)  #: when the others' guardrails were opened again
    resumed_at: datetime | None = None  #: when a person last resumed TOOL-005

    def is_of_many(self, held: Held, failed_at: datetime) -> bool:
        """Return whether servers of other companies beside this one refused us when it did.

        It is so while their network or their address is closed. If that was opened after this refusal, or all of SMTP
        was resumed, the server is asked again: it may have refused us for the reason that is gone.
        """
        if self.resumed_at is not None and self.resumed_at > failed_at:
            return True
        return any(
            name in self.closed or (name in self.opened and self.opened[name] > failed_at)
            for name in whereabouts(held.ip)
        )

    def halt(self, so: str = "") -> Wait:
        """Return the wait until TOOL-005, which is halted, is resumed. `so`: what that means for the company."""
        assert self.halted_by is not None
        return Wait(
            reason=WaitReason.HALTED,
            detail=f"TOOL-005 is halted ({self.halted_by}){so and f', so {so}'}: {self.halted}",
            waits_on=self.halted_by,
        )

    def refusal(self, what: str) -> Wait | None:
        """Return the wait until a refusal by one company's own server counts as its policy; None: it counts now."""
        if self.halted_by is not None:
            return self.halt()
        if self._left_s <= 0:
            return None
        return Wait(
            reason=WaitReason.REFUSED,
            detail=f"{what}; this counts as its own policy if no others refuse us within {self.settle_s:g} s",
            after_s=self._left_s,
        )

    def silence(self, provider: str) -> Wait | None:
        """Return the wait until a shared provider's silence counts against a company; None: it counts now."""
        if self._left_s <= 0:
            return None
        return Wait(
            reason=WaitReason.PROVIDER_SILENT,
            detail=f"no server of {provider} could be reached; this counts against the company after "
            f"{self.settle_s:g} s, unless the whole provider proves to be out of reach",
            after_s=self._left_s,
        )

    @property
    def _left_s(self) -> float:
        return self.settle_s - max(0.0, self.age_s)


def closed_provider(provider: str, egress: str) -> Wait:
    """Return the wait for a provider that is closed to the address that met its silence."""
    return Wait(
        reason=WaitReason.PROVIDER_CLOSED,
        detail=f"several companies at {provider} were refused or got no answer: it is down, or blocks us",
        waits_on=WaitsOn.provider(provider, egress),
    )


def shunned_elsewhere(provider: str, egress: str, waited_s: float) -> Wait:
    """Return the wait for a provider's silence while it is closed to another egress: it may refuse all our addresses.

    The company is asked again when the provider opens to that one, and else each time it has waited twice as long.
    """
    return Wait(
        reason=WaitReason.PROVIDER_SILENT,
        detail=f"no server of {provider} could be reached, and it is closed to our egress {egress}; this counts only "
        "once it is open to that one again",
        after_s=min(max(SHUNNED_S, waited_s), SHUNNED_MOST_S),
        waits_on=WaitsOn.provider(provider, egress),
    )


def asked_afresh(what: str, waited_s: float) -> Wait:
    """Return the wait of a company whose silence may come from what was in our way then, and is no more.

    Not before an answer can only be from after that, and the later, the longer the company has waited.
    """
    return Wait(
        reason=WaitReason.PROVIDER_CLOSED,
        detail=f"{what}, so they are asked again",
        after_s=min(max(LONGEST_QUESTION_S, waited_s / 2), SHUNNED_MOST_S),
    )


def heard_elsewhere(wait: Wait, here: str, others: Sequence[str]) -> Wait:
    """Return the wait of a company whose server refuses the egress `here`: one of `others` asks in its place."""
    return Wait(
        reason=WaitReason.REFUSED,
        detail=f"{wait.detail} (seen from egress {here}); another egress asks too: {', '.join(others)}",
        after_s=max(ELSEWHERE_S, wait.after_s or 0.0),
        waits_on=WaitsOn.other_than(here),
    )


# ---------------------------------------------------------------- what a waiting company brings back


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What an undecided company brings back from its wait."""

    exchanges: Sequence[Exchange] = ()
    answered: Sequence[Exchange] = ()  #: what servers said after a void answer; it is not asked again
    asked_at: datetime | None = None  #: a proof of our own way must have come before this moment
    failed_at: datetime | None = None  #: and one must have begun after this one
    gives_time_back: bool = False  #: dropped answers are asked for again, and the time they took was our fault
    in_chain: bool = False  #: an unbroken chain of port-25 proofs around them was established before this wait
    in_both_chains: bool = False  #: and one of our resolvers' proofs, if it matters here
    looks: int = 0
    refused_at: str = ""  #: the egress that was refused, if this one asks in its place
    wait: Wait | None = None  #: nothing may be asked yet: it keeps waiting, with everything it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """The worker run that met the failed answers, as the run that weighs them sees it."""

    run: str = ""
    is_self: bool = True
    is_gone: bool = False  #: it ended, so no proof of it will come any more
    is_elsewhere: bool = False  #: it asked from another of our addresses
    here: str = DEFAULT  #: the egress of who weighs
    is_halted_here: bool = False  #: that one may ask nobody
    closed_here: Container[str] = ()  #: providers, networks and addresses that are not open to it
    others: Sequence[str] = ()  #: egresses from which companies can be asked now, beside that one


ITSELF = Witness()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Everything that decides what the answers of a resumed company are worth."""

    resumed: Resumed
    ways: Mapping[ControlKind, Way]  #: of the run that met what failed
    settling: Settling
    witness: Witness = ITSELF
    true: Sequence[Exchange] | None = None  #: what is left before the first answer that its run heard astray; None: all
    true_after: Sequence[Exchange] = ()  #: and what other runs heard after that one

    @property
    def asked_at(self) -> datetime:
        """Return when the first of its questions was put."""
        return self.resumed.asked_at or self.resumed.since

    @property
    def failed_at(self) -> datetime:
        """Return when the last failed answer came. Only for a company that has one, see `nothing_failed`."""
        assert self.resumed.failed_at is not None
        return self.resumed.failed_at

    @property
    def everything(self) -> list[Exchange]:
        """Return its answers, with the reply about us that is not settled yet."""
        pending = self.resumed.pending
        return [*self.resumed.exchanges, *([] if pending is None else [pending])]

    @property
    def refuses_us(self) -> list[Held]:
        """Return what its servers said about us; empty if newer rules read the answer differently."""
        pending = self.resumed.pending
        assert pending is not None
        assert isinstance(pending.answer, MailboxAnswer)
        return refusals(pending.answer)

    @property
    def is_proven_about_us(self) -> bool:
        """Return whether a reply about us is pending and port 25 was proven after it, so that it can be settled."""
        if self.resumed.pending is None:
            return False
        ways = [self.ways[kind] for kind in self.refused_over if kind in self.ways]
        return bool(ways) and all(way.proves(self.failed_at) for way in ways)

    @property
    def refused_over(self) -> set[ControlKind]:
        """Return the ways to the servers that said something about us."""
        if self.resumed.pending is None:
            return set()
        return {way_to(held.ip) for held in self.refuses_us} or {ControlKind.SMTP}

    @property
    def needs_names(self) -> bool:
        """Return whether a reply about us came after a host whose name could not be looked up.

        This is checked once, before its long wait to be settled: during that wait nobody asks for proofs.
        """
        is_new = self.resumed.reason != WaitReason.REFUSED
        return is_new and self.is_proven_about_us and met_name_trouble(self.everything)

    def _keep(
        self,
        *,
        with_moments: bool = True,
        drops_pending: bool = False,
        wait: Wait | None = None,
        settled: Exchange | None = None,
    ) -> Kept:
        resumed = self.resumed
        by_chain = with_moments and wait is None
        return Kept(
            exchanges=[*resumed.exchanges, *([] if settled is None else [settled])],
            asked_at=self.asked_at if with_moments else None,
            failed_at=resumed.failed_at if with_moments or any(e.proven for e in resumed.exchanges) else None,
            gives_time_back=drops_pending,
            in_chain=by_chain and resumed.reason == WaitReason.PROVIDER_SILENT,
            in_both_chains=by_chain and resumed.reason == WaitReason.REFUSED and resumed.pending is not None,
            looks=resumed.looks,
            wait=wait,
        )

    @property
    def unproven(self) -> list[Way]:
        """Return the ways that another run has still to prove for what it met."""
        if self.witness.is_self:
            return []
        return [way for way in self.needed if not way.proves(self.failed_at)]

    @property
    def _used(self) -> list[Way]:
        """Return the ways over which it may have failed: a machine that has no IPv6 broke nothing by that."""
        answers = [e.answer for e in self.everything if isinstance(e.answer, MailboxAnswer)]
        kinds = {way_to(attempt.ip) for answer in answers for attempt in answer.attempts if attempt.ip}
        ipv6 = self.ways.get(ControlKind.SMTP6, UNPROVEN)
        if self.ways[ControlKind.SMTP].control_at > _NEVER or ipv6.control_at == _NEVER:
            kinds.add(ControlKind.SMTP)
        return [self.ways[kind] for kind in (*kinds, ControlKind.DNS) if kind in self.ways]

    @property
    def needed(self) -> list[Way]:
        """Return the ways that matter for what another run met, and is not known to be proven yet."""
        needs = open_needs(self.everything, about_us=self.refused_over)
        return [self.ways[kind] for kind in needs if kind in self.ways]

    # For each row of the table, in order: when it holds, and what it keeps.

    def was_heard_astray(self) -> bool:
        return self.true is not None

    def keep_what_was_heard_before(self) -> Kept:
        return Kept(
            exchanges=without_trouble(self.true or ()),
            answered=answered(self.true_after),  # at the same hosts, if its MX names those again
            gives_time_back=True,
            looks=self.resumed.looks,
        )

    def was_refused_elsewhere(self) -> bool:
        resumed = self.resumed
        if not (self.witness.is_elsewhere and self._may_ask_from_here):
            return False  # to drop what the other one met would be to lose it
        if resumed.pending is None and not self._provider_was_silent_twice:
            return False
        if resumed.pending is not None and not is_about_address(resumed.pending):
            return False
        # Once for each company: two addresses that are refused would pass it on for ever. A third one may ask for an
        # address that servers shun altogether.
        is_first = resumed.refused_at in ("", resumed.met_at)
        return is_first or (self.settling.halted_by is not None and resumed.refused_at != self.witness.here)

    @property
    def _may_ask_from_here(self) -> bool:
        """Return whether this egress may ask the company's servers."""
        domain, closed = self.resumed.domain or "", self.witness.closed_here
        answers = [e.answer for e in self.everything if isinstance(e.answer, MailboxAnswer)]
        return not self.witness.is_halted_here and not any(
            provider_at(attempt.host, attempt.ip, domain, closed) in closed
            for answer in answers
            for attempt in answer.attempts
        )

    @property
    def _provider_was_silent_twice(self) -> bool:
        """Return whether a shared provider dropped our packets, perhaps because of the address that they came from."""
        is_open = met_trouble(self.everything) and bool(open_needs(self.everything))
        was_silent = is_open and bool(silent_providers(self.everything, self.settling.closed))
        return was_silent and self.resumed.looks >= LOOKS

    def drop_and_ask_from_here(self) -> Kept:
        return replace(self.void(), refused_at=self.resumed.met_at)

    def nothing_failed(self) -> bool:
        return nothing_failed(self.resumed)

    def keep_all(self) -> Kept:
        # It was parked while a control failed, before anything was asked. A provider's word is asked for again.
        return self._keep(with_moments=False, drops_pending=self.resumed.pending is not None)

    def own_way_was_broken(self) -> bool:
        return any(way.voids(self.asked_at, self.failed_at) for way in self._used)

    def void(self, exchanges: Sequence[Exchange] | None = None) -> Kept:
        kept = without_trouble(self.resumed.exchanges if exchanges is None else exchanges)
        return Kept(
            exchanges=kept,
            answered=answered(self.resumed.exchanges),
            failed_at=self.resumed.failed_at if any(exchange.proven for exchange in kept) else None,
            gives_time_back=True,
            looks=self.resumed.looks,
        )

    def witness_is_gone(self) -> bool:
        return self.witness.is_gone and bool(self.unproven)

    def is_unproven_by_another(self) -> bool:
        return bool(self.unproven)

    def wait_for_its_control(self) -> Kept:
        needs = open_needs(self.everything, about_us=self.refused_over)
        kind = next(kind for kind in needs if self.ways[kind] in self.unproven)
        sentence = f"{_CONTROL_SENTENCES[kind]}; worker {self.witness.run} met it, and has to ask one"
        return self._keep(wait=control_wait(kind, sentence))

    def was_not_looked_at_twice(self) -> bool:
        # An outage that came and went between two controls looks just like a dead server.
        return self.resumed.looks < LOOKS and met_trouble(self.everything)

    def void_for_one_more_look(self) -> Kept:
        # Its hosts too are asked for again: a resolver that lies names hosts that nobody reaches.
        kept = self.void()
        before_mx = takewhile(lambda exchange: not isinstance(exchange.answer, MxAnswer), kept.exchanges)
        return replace(kept, exchanges=list(before_mx), failed_at=None, looks=self.resumed.looks + 1)

    def has_no_chain(self) -> bool:
        # Nothing proved our own way shortly before: it may have been broken when the answers came.
        waited_for = [way for kind, way in self.ways.items() if self.resumed.waits_on == WaitsOn.control(kind)]
        names = [self.ways[ControlKind.DNS]] if self.needs_names else []
        if not self.witness.is_self and self.resumed.reason not in (WaitReason.PROVIDER_SILENT, WaitReason.REFUSED):
            waited_for = self.needed
        return any(way.proves(self.failed_at) and not way.unbroken(self.asked_at) for way in [*waited_for, *names])

    def is_a_closed_providers_silence(self) -> bool:
        return _waits_for_a_silent_provider(self.resumed)

    def void_though_proven(self) -> Kept:
        return self.void(_as_if_unproven(self.resumed.exchanges))

    def lacks_a_proof_of_names(self) -> bool:
        return self.needs_names and not self.ways[ControlKind.DNS].proves(self.failed_at)

    def wait_for_names(self) -> Kept:
        sentence = "the name of one of its hosts could not be looked up, perhaps because our resolvers failed"
        return self._keep(wait=control_wait(ControlKind.DNS, sentence))

    def is_a_providers_word(self) -> bool:
        if not self.is_proven_about_us:
            return False
        helds, domain = self.refuses_us, self.resumed.domain or ""
        return not helds or not all(
            is_private(held, domain) and not self.settling.is_of_many(held, self.failed_at) for held in helds
        )

    def drop_and_ask_the_provider(self) -> Kept:
        return self._keep(with_moments=False, drops_pending=True)

    def can_be_heard_elsewhere(self) -> bool:
        resumed, witness = self.resumed, self.witness
        return (
            resumed.pending is not None
            and self.is_proven_about_us
            and bool(witness.others)
            and not (witness.is_elsewhere or resumed.refused_at)
            and is_about_address(resumed.pending)
        )

    def pass_on(self) -> Kept:
        refused = Wait(reason=WaitReason.REFUSED, detail=f"{self.refuses_us[0].host} refuses us")
        wait = heard_elsewhere(self._unsettled() or refused, self.witness.here, self.witness.others)
        return replace(self._keep(wait=wait), refused_at=self.witness.here)

    def _unsettled(self) -> Wait | None:
        return self.settling.refusal(f"{self.refuses_us[0].host} refuses us")

    def is_not_settled(self) -> bool:
        return self.is_proven_about_us and self._unsettled() is not None

    def wait_until_settled(self) -> Kept:
        return self._keep(wait=self._unsettled())

    def is_settled(self) -> bool:
        return self.is_proven_about_us

    def keep_as_policy(self) -> Kept:
        # Its own server refuses us while others talk to us, so the answer is inconclusive (domain scope).
        pending = self.resumed.pending
        assert pending is not None
        assert isinstance(pending.answer, MailboxAnswer)
        return self._keep(settled=replace(pending, answer=replace(pending.answer, is_private_policy=True)))

    def is_anything_else(self) -> bool:
        return True

    def keep_with_moments(self) -> Kept:
        kept = self._keep(drops_pending=self.resumed.pending is not None)
        if self.witness.is_self:
            return kept
        # From here on this run asks, and what it meets is of its own window.
        return replace(kept, exchanges=mark_proven(kept.exchanges), asked_at=None, in_chain=False, in_both_chains=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the table: when it holds, and what becomes of the answers then."""

    id: str
    holds: str  #: for docs/decision.md
    then: str
    when: Callable[[Case], bool]
    keep: Callable[[Case], Kept]


ROWS = (
    Row(
        id="astray",
        holds="one of them came while its worker had lost its way: a control of that worker failed since, with no "
        "success between, or it ended before its next one, as a killed one does",
        then="void from there, a yes as well as a no, and asked again; not what other workers heard at the same hosts",
        when=Case.was_heard_astray,
        keep=Case.keep_what_was_heard_before,
    ),
    Row(
        id="refused elsewhere",
        holds="a reply about our address that a worker of another egress met, or a shared provider's silence that one "
        "met twice, and this egress may ask there; once for each company, or while that egress is halted",
        then="dropped with what failed: this egress asks for itself",
        when=Case.was_refused_elsewhere,
        keep=Case.drop_and_ask_from_here,
    ),
    Row(
        id="nothing failed",
        holds="nothing failed in them",
        then="all kept",
        when=Case.nothing_failed,
        keep=Case.keep_all,
    ),
    Row(
        id="own way broken",
        holds="the way of the worker that met them was broken around them (resolvers or port 25)",
        then="void: what failed, and what rests on it",
        when=Case.own_way_was_broken,
        keep=Case.void,
    ),
    Row(
        id="worker gone",
        holds="another worker met them, and ended before a control of its own proved its way",
        then="void: what failed, and what rests on it",
        when=Case.witness_is_gone,
        keep=Case.void,
    ),
    Row(
        id="another's proof",
        holds="another worker met them, and has not proven its way since",
        then="waits for that worker's control",
        when=Case.is_unproven_by_another,
        keep=Case.wait_for_its_control,
    ),
    Row(
        id="first look",
        holds="trouble, and not asked a second time yet",
        then="void, and asked once more, its MX too",
        when=Case.was_not_looked_at_twice,
        keep=Case.void_for_one_more_look,
    ),
    Row(
        id="no chain",
        holds="a proof came after them, but no unbroken chain of proofs before",
        then="void",
        when=Case.has_no_chain,
        keep=Case.void,
    ),
    Row(
        id="closed provider",
        holds="the company met silence, and waited for a provider that was closed to one of our addresses, or for the "
        "end of a halt",
        then="void: its one try must ask",
        when=Case.is_a_closed_providers_silence,
        keep=Case.void_though_proven,
    ),
    Row(
        id="names unproven",
        holds="a reply about us, port 25 proven; a host's name was in trouble, and DNS is not proven",
        then="waits for the DNS control",
        when=Case.lacks_a_proof_of_names,
        keep=Case.wait_for_names,
    ),
    Row(
        id="provider's word",
        holds="a reply about us, port 25 proven, not all from the company's own servers, or from one whose network or "
        "address is closed or was opened since, or all of SMTP was resumed since",
        then="that answer is dropped, and its provider asked again",
        when=Case.is_a_providers_word,
        keep=Case.drop_and_ask_the_provider,
    ),
    Row(
        id="heard elsewhere",
        holds="a reply about our address (not our sender or our rate), port 25 proven, no other egress asked yet, and "
        "one can now",
        then="waits for a worker of another egress",
        when=Case.can_be_heard_elsewhere,
        keep=Case.pass_on,
    ),
    Row(
        id="not settled",
        holds="a reply about us, port 25 proven, not settled for `settle_s`, or TOOL-005 is halted",
        then="waits",
        when=Case.is_not_settled,
        keep=Case.wait_until_settled,
    ),
    Row(
        id="private policy",
        holds="a reply about us, port 25 proven, and settled",
        then="kept as the company's private policy: inconclusive",
        when=Case.is_settled,
        keep=Case.keep_as_policy,
    ),
    Row(
        id="else",
        holds="anything else",
        then="kept, with their moments; a reply about us that nothing proves yet is asked again; what another worker "
        "met and has proven stays proven",
        when=Case.is_anything_else,
        keep=Case.keep_with_moments,
    ),
)


def weigh(
    resumed: Resumed,
    ways: Mapping[ControlKind, Way],
    settling: Settling,
    *,
    witness: Witness = ITSELF,
    runs: Mapping[str, Mapping[ControlKind, Way]] | None = None,
    by: str = "",
) -> Kept:
    """Return what still counts of the answers that a waiting company brings back. The first row that holds decides.

    `ways` are those of the run that met what failed, the `witness`; `runs` those of all runs that asked. `by` is the
    run that weighs, and asks what is asked next: a second look does not rest on an MX of a doubtful way.
    """
    true = before_astray(resumed.exchanges, runs or {})
    is_true = len(true) == len(resumed.exchanges)
    case = Case(
        resumed=resumed,
        ways=ways,
        settling=settling,
        witness=witness,
        true=None if is_true else true,
        true_after=[e for e in resumed.exchanges[len(true) :] if before_astray([e], runs or {})],
    )
    kept = next(row for row in ROWS if row.when(case)).keep(case)
    # Whose rows are held is decided: nothing is asked for it.
    is_decided = resumed.reason == WaitReason.ROW_HELD or _is_confirmed(kept.exchanges)
    if kept.wait is not None or kept.looks < LOOKS or is_decided:
        return kept
    return _on_known_mx(kept, by, runs or {})


def _on_known_mx(kept: Kept, by: str, runs: Mapping[str, Mapping[ControlKind, Way]]) -> Kept:
    """Return what is kept for a second look, which may end in a FAIL: without an MX that is no ground for one."""
    known = before_doubtful_mx(kept.exchanges, by, runs)
    if len(known) == len(kept.exchanges):
        return kept
    return Kept(
        exchanges=known,
        answered=[*kept.answered, *answered(kept.exchanges)],
        gives_time_back=True,
        looks=kept.looks,
        refused_at=kept.refused_at,
    )


def not_yet(resumed: Resumed, wait: Wait) -> Kept:
    """Return everything that it brings back, to wait on: for the same, and no longer than `wait` says."""
    return Kept(
        exchanges=resumed.exchanges,
        asked_at=resumed.asked_at or resumed.since,
        failed_at=resumed.failed_at,
        looks=resumed.looks,
        wait=replace(
            wait,
            reason=WaitReason(resumed.reason),
            waits_on=resumed.waits_on,
            # Whom another egress is to take is not to be taken back before that.
            after_s=max(wait.after_s or 0.0, ELSEWHERE_S) if resumed.waits_on.is_passed_on else wait.after_s,
        ),
    )


def dated(resumed: Resumed, by: str) -> Resumed:
    """Return it with the moment of its last failed answer where none is on record, as the run `by` weighs it.

    Its worker was told to stop before it asked for a proof: what it met is still its own. Or a reply about us came
    after a silence that was proven already, which its company waits with since.
    """
    if resumed.failed_at is not None:
        return resumed
    met = [e for e in resumed.exchanges if e.at and met_trouble([e]) and e.by not in ("", by)]
    if not met and _waits_for_a_silent_provider(resumed):
        met = [e for e in resumed.exchanges if e.at and e.proven and ever_met_trouble([e])]
    if not met:
        return resumed
    failed_at = datetime.fromisoformat(met[-1].at) + timedelta(milliseconds=1)
    return replace(resumed, failed_at=failed_at, met_by=met[-1].by)


def nothing_failed(resumed: Resumed) -> bool:
    """Return whether a waiting company has no failed answer on record, so that no proof matters to it."""
    if resumed.failed_at is None:
        return True
    if resumed.pending is not None or _waits_for_a_silent_provider(resumed):
        return False
    return len(without_trouble(resumed.exchanges)) == len(resumed.exchanges) or (
        _is_confirmed(resumed.exchanges) and not open_needs(resumed.exchanges)
    )


def _waits_for_a_silent_provider(resumed: Resumed) -> bool:
    """Return whether a company that met silence waits until a guardrail opens, or until its provider is tried.

    The one that tries a closed provider must really ask: its silence is from before that, and proves our way alone.
    """
    exchanges = _as_if_unproven(resumed.exchanges)
    is_shunned = resumed.reason == WaitReason.PROVIDER_SILENT and resumed.waits_on != NOTHING
    is_closed = resumed.reason in (WaitReason.PROVIDER_CLOSED, WaitReason.HALTED)
    return (is_closed or is_shunned) and met_trouble(exchanges) and bool(open_needs(exchanges))


def _as_if_unproven(exchanges: Iterable[Exchange]) -> list[Exchange]:
    return [replace(exchange, proven=False) for exchange in exchanges]


def _is_confirmed(exchanges: Sequence[Exchange]) -> bool:
    return any(isinstance(exchange.answer, ControlAnswer) for exchange in exchanges)


def spent_s(resumed: Resumed | None, kept: Kept) -> float:
    """Return how much of its pass deadline a company has used up.

    Void answers, replies about us, and sessions that our own drain or pause broke off count nothing: that their servers
    are asked again is our fault, and their time must not fail the company in the end.
    """
    if resumed is None or kept.gives_time_back or resumed.reason in (WaitReason.DRAIN, WaitReason.OUR_MACHINE):
        return 0.0
    return resumed.spent_s


# ---------------------------------------------------------------- the moments of a running pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """When the failed answers of a running pass were asked for, and when they came: as on record, or in this run.

    A proof from before an answer of this run proves nothing about it.
    """

    kept: int = 0  #: how many kept answers the pass was resumed with
    asked_at: datetime | None = None
    failed_at: datetime | None = None
    is_aged: bool = False  #: kept answers failed, and keep their age; False: whatever fails is from this run
    in_chain: bool = False
    in_both_chains: bool = False

    @classmethod
    def of(cls, resumed: Resumed | None, kept: Kept, *, taken: int) -> Moments:
        """Return the moments of a pass that took so many of the kept answers.

        It takes fewer if they were given under other rules. Then everything is asked again, and what is on record does
        not apply.
        """
        if taken < len(kept.exchanges):
            return cls(kept=taken, in_chain=kept.in_chain, in_both_chains=kept.in_both_chains)
        has_failed = kept.wait is not None or len(without_trouble(kept.exchanges)) < len(kept.exchanges)
        return cls(
            kept=taken,
            asked_at=kept.asked_at,
            failed_at=kept.failed_at,
            is_aged=has_failed and resumed is not None and resumed.asked_at is not None,
            in_chain=kept.in_chain,
            in_both_chains=kept.in_both_chains,
        )

    def is_fresh(self, exchanges: Sequence[Exchange], pending: Exchange | None = None) -> bool:
        """Return whether the last failed answer is from this run, so that only a proof from now on counts."""
        answers = [e for e in exchanges[self.kept :] if not isinstance(e.answer, ControlAnswer)]
        return self.failed_at is None or bool(answers) or pending is not None

    def window(self, exchanges: Sequence[Exchange]) -> Window | None:
        """Return the window of the failed answers on record; None when the last one failed just now."""
        if self.asked_at is None or self.failed_at is None or self.is_fresh(exchanges):
            return None
        return (self.asked_at, self.failed_at)

    def is_in_chain(self, kind: ControlKind) -> bool:
        """Return whether a chain of proofs of this kind around them was established before this wait."""
        return self.in_both_chains or (self.in_chain and kind in PORT_25)

    def failed(
        self, exchanges: Sequence[Exchange], ended_by: Wait | None = None, pending: Exchange | None = None
    ) -> FailedAt:
        """Return what to record as the moment of the last failed answer of a pass that ends in this wait."""
        is_to_be_proven = ended_by is not None and (ended_by.waits_on.is_control or ended_by.waits_on.is_passed_on)
        if is_to_be_proven and self.is_fresh(exchanges, pending):
            return FailedAt.NOW
        if ended_by is not None and not ended_by.waits_on.is_control and pending is not None:
            return FailedAt.NONE  # a provider's word: it is asked for again, and the next session settles it
        if self.failed_at is None:
            return FailedAt.NONE
        return FailedAt.NOW if met_trouble(exchanges[self.kept :]) else FailedAt.ON_RECORD
