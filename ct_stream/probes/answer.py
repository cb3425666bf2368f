"""Drives one pass: puts the gate's questions to the world, up to a verdict or a wait that keeps the answers."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, assert_never

from ct_stream.gate.attempts import TIME_IS_UP, refusals
from ct_stream.gate.evidence import about_us, may_be_ours, serves_again, to_judge
from ct_stream.gate.output_stage import rfc3339
from ct_stream.gate.pipeline import single_pass
from ct_stream.gate.questions import (
    Answer,
    AskControl,
    LookupMx,
    LookupSpine,
    MailboxAnswer,
    MxAnswer,
    MxStatus,
    ProbeMailbox,
    Question,
    VerifyEmail,
)
from ct_stream.gate.transcript import Exchange, OutOfStep, Play
from ct_stream.gate.verdicts import Failed, Held, Passed, Verdict
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.probes.needs import TurnedOff
from ct_stream.probes.stopwatch import OutOfTime, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from uuid import UUID

    from ct_stream.gate.memory import Memory
    from ct_stream.gate.middle_stage import Flow
    from ct_stream.gate.rules import Rules
    from ct_stream.probes.needs import Controls, MailboxAsker, Permits, Recall, Refusals, Spine, Tier2

log = logging.getLogger(__name__)

_RECALL_AGAIN_S = 1.0  #: how long a look at the memory stays valid; shorter than a domain's pause


class MxLookup(Protocol):
    """The part of a resolver that finds a domain's hosts."""

    async def lookup_mx(self, domain: str) -> MxAnswer:
        """Return the hosts, most preferred first, or how their absence is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything that a pass asks or waits for."""

    spine: Spine
    memory: Recall
    resolver: MxLookup
    permits: Permits
    controls: Controls
    refusals: Refusals
    tier2: Tier2
    probers: Callable[[Stopwatch], MailboxAsker]  #: makes one for each pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """No verdict yet: what is in the way, and what is kept so that the pass can be resumed without asking again.

    `pending` is an answer about us whose scope is not settled. If it is given back as the last kept exchange, it is
    judged again. If it is left out, its question is asked again.
    """

    wait: Wait
    exchanges: tuple[Exchange, ...]
    spent_s: float
    pending: Exchange | None = None


Ending: TypeAlias = Passed | Failed | Waiting


class PassDriver:
    """One pass of one company. `exchanges` and `spent_s` are correct at every moment, even after a cancellation."""

    def __init__(
        self,
        outreach_id: UUID,
        rules: Rules,
        world: World,
        *,
        deadline_s: float,
        spent_s: float = 0.0,
        kept: Sequence[Exchange] = (),
        answered: Sequence[Exchange] = (),
        asks_mx_itself: bool = False,
        flow: Callable[[], Flow] | None = None,
        see_off: Callable[[Coroutine[Any, Any, None]], None] | None = None,
        stalled_since: Callable[[float], float] = lambda _moment: 0.0,
        by: str = "",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Resume from `kept` after `spent_s` seconds of waiting; `flow` makes another decision than the single pass.

        `answered` are answers to questions that come up again because an earlier answer is void. Such a question is not
        put again (law 2) if the same server would be asked. `asks_mx_itself`: remembered MX hosts do not serve it.

        `flow` is called again whenever answers are played again. `see_off` takes over the end of a decided company's
        session (QUIT, which no verdict depends on), so that the verdict does not wait for it. `stalled_since` says
        whether this process was paused after a moment of the monotonic clock: 0.0 for no, otherwise how many seconds
        to rest. If it did, a server's trouble may be our own. `by` is the worker run, and `now` the clock of the
        database, by which every answer is dated.
        """
        self._outreach_id = outreach_id
        self._world = world
        self._stopwatch = Stopwatch(deadline_s, spent_s)
        self._kept = tuple(kept)
        self._answered = {exchange.key: exchange for exchange in answered}
        self._asks_mx_itself = asks_mx_itself
        self._prober: MailboxAsker | None = None
        self._refused: list[Held] = []  # what servers said about us in this run
        self._is_judged = False
        # A paid answer is read even if Tier-2 has been turned off since.
        self._tier2_off = None if _is_paid(kept) else world.tier2.off_because()
        self._flow = flow or (lambda: single_pass(outreach_id, rules, tier2_off=self._tier2_off))
        self._see_off = see_off
        self._stalled_since = stalled_since
        self._by = by
        self._now = now
        self._recalled_at = -inf
        self._play = self._resumed()

    @property
    def exchanges(self) -> tuple[Exchange, ...]:
        """Return the questions answered so far, with their answers."""
        return tuple(self._play.exchanges)

    @property
    def aside(self) -> tuple[Exchange, ...]:
        """Return the answers whose questions have not come up again."""
        kept = {exchange.key for exchange in self._play.exchanges}
        return tuple(exchange for key, exchange in self._answered.items() if key not in kept)

    @property
    def spent_s(self) -> float:
        """Return how long the pass has waited for servers, including the time spent before it was resumed."""
        return self._stopwatch.spent_s

    async def run(self) -> Ending:
        """Ask until there is a verdict or a wait. The session and its lease are given back however this ends.

        They are given back before a wait begins, so that whoever resumes the company does not meet its own lease.
        """
        try:
            while True:
                if self._play.question is not None:
                    wait = await self._answer(self._play.question)
                    if wait is not None:
                        return self._waiting(wait)
                    continue
                ending = await self._end(self._verdict())
                if ending is not None:
                    return ending
        finally:
            if self._prober is not None:
                closing = self._prober.close(refused=[*self._refused, *self._cut_off()])
                if self._see_off is not None and isinstance(self._play.verdict, Passed | Failed):
                    self._see_off(closing)
                else:
                    await closing

    def _resumed(self) -> Play:
        play = Play(self._flow())
        try:
            play.resume(self._kept)
        except OutOfStep as error:
            log.warning(
                "Asking everything about %s again: %s",
                self._outreach_id,
                error,
                extra={"action": "pass_restarted", "outreach_id": str(self._outreach_id)},
            )
            return Play(self._flow())
        return play

    async def _answer(self, question: Question) -> Wait | None:
        """Answer the open question, or return what is in the way."""
        domain = self._recallable(question)
        if domain is not None:
            memory = await self._world.memory.recall(domain)
            if isinstance(memory, Wait):
                return memory
            self._recalled_at = time.monotonic()
            if self._recall(memory):
                return None
        known = self._answered.pop(question.key, None)
        if known is not None and isinstance(question, ProbeMailbox) and serves_again(known, question):
            self._play.answer(known.answer, asked=known.asked, at=known.at, by=known.by)
            return None
        begun_at, spent_s = time.monotonic(), self.spent_s
        answer = await self._ask(question)
        if isinstance(answer, Wait):
            if isinstance(question, ProbeMailbox):
                # One of our limits came between two hosts. The first one's answer is not kept, so its time is not
                # either.
                self._stopwatch.spent_s = spent_s
                return await self._wait_between(question, answer)
            return answer
        if not isinstance(answer, TurnedOff) and may_be_ours(answer) and (rest_s := self._stalled_since(begun_at)):
            return Wait(
                reason=WaitReason.OUR_MACHINE,
                detail=f"this process was paused (stopped or short of CPU) while it asked {_asked(question)}, "
                "so the missing answer says nothing",
                after_s=rest_s,
            )
        if isinstance(answer, TurnedOff):
            self._turn_off(answer.because)
            return None
        if isinstance(answer, MailboxAnswer):
            self._refused += about_us(question, answer)
        self._play.answer(answer, asked=_asked(question), at=rfc3339(self._now()), by=self._by)
        return None

    def _cut_off(self) -> list[Held]:
        """Return the replies about us to a question that got no answer in the end."""
        question = self._play.question
        if self._prober is None or question is None or not self._prober.heard:
            return []
        return about_us(question, MailboxAnswer(attempts=tuple(self._prober.heard)))

    async def _wait_between(self, question: ProbeMailbox, wait: Wait) -> Wait:
        """Return the wait for a question that one of our limits cut off between two hosts.

        What the first host said about us is judged nevertheless. If its provider said it, the company waits for the
        provider instead: otherwise the host would be asked again each time the limit lets us continue.
        """
        helds, domain = self._cut_off(), question.address.domain
        if not helds:
            return wait
        self._refused += helds
        judged = await self._judge(helds, domain)
        return judged if judged is not None and not judged.waits_on.is_control else wait

    def _turn_off(self, because: str) -> None:
        """Continue from the same answers as a pass that never had Tier-2."""
        exchanges = self._play.exchanges
        self._tier2_off = because
        self._play = Play(self._flow())
        self._play.resume(exchanges)

    def _recallable(self, question: Question) -> str | None:
        """Return the domain if another company's answers may serve now: before MX, and before the first mailbox.

        A pass that has waited for its domain is resumed after the company that it waited for.
        """
        match question:
            case LookupMx():
                return question.domain
            case ProbeMailbox():
                is_first = not any(isinstance(exchange.answer, MailboxAnswer) for exchange in self._play.exchanges)
                is_due = time.monotonic() - self._recalled_at > _RECALL_AGAIN_S
                return question.address.domain if is_first and is_due else None
        return None

    def _recall(self, memory: Memory) -> bool:
        """Continue from what is remembered, under the same rules; return False if nothing of it fits."""
        own = [exchange for exchange in self._play.exchanges if exchange.key == "spine"]
        for answers in (memory.answers, () if self._asks_mx_itself else memory.mx):
            if not answers or len(own) + len(answers) <= len(self._play.exchanges):
                continue
            tier2_off, self._tier2_off = self._tier2_off, None if _is_paid(answers) else self._tier2_off
            play = Play(self._flow())
            try:
                play.resume([*own, *answers])
            except OutOfStep:
                pass
            else:
                if answers is memory.mx or isinstance(play.verdict, Passed | Failed):
                    self._play = play
                    return True
            self._tier2_off = tier2_off
        return False

    async def _ask(self, question: Question) -> Answer | Wait | TurnedOff:
        match question:
            case LookupSpine():
                return await self._world.spine.lookup(question.outreach_id)
            case LookupMx():
                return await self._world.permits.mx_lookup() or self._whole(await self._lookup_mx(question.domain))
            case ProbeMailbox():
                if self._prober is None:
                    self._prober = self._world.probers(self._stopwatch)
                return await self._prober.ask(question.address, question.hosts)
            case AskControl():
                return await self._world.controls.confirm(question.kind, self.exchanges)
            case VerifyEmail():
                if (lost := await self._world.controls.astray(self.exchanges)) is not None:
                    return lost  # nothing is paid for on the word of who answers in the place of others
                brought = await self._world.tier2.verify(self._outreach_id, question.address)
                self._stopwatch.spent_s += brought.waited_s  # nothing else of a paid call counts for the deadline
                return brought.result
        assert_never(question)

    def _whole(self, answer: MxAnswer) -> MxAnswer | Wait:
        """Return the answer, or the wait for a machine that can fetch all of it: what is cut off says nothing."""
        if answer.status is not MxStatus.CUT_OFF:
            return answer
        return self._world.permits.cut_off(answer.detail)

    async def _lookup_mx(self, domain: str) -> MxAnswer:
        try:
            async with self._stopwatch.waiting():
                return await self._world.resolver.lookup_mx(domain)
        except OutOfTime:
            return MxAnswer(status=MxStatus.UNAVAILABLE, detail=TIME_IS_UP)

    def _verdict(self) -> Verdict:
        assert self._play.verdict is not None  # there is no open question
        return self._play.verdict

    async def _end(self, verdict: Verdict) -> Ending | None:
        """Return the end of the pass; None if it continues because a reply about us proved to be private policy."""
        if not isinstance(verdict, Held):
            if isinstance(verdict, Passed) and self._refused and not self._is_judged:
                # It changes nothing for this company, whose backup accepted us, but it may for all others.
                for held in to_judge(self._refused, verdict.domain):
                    await self._world.refusals.note(held, verdict.domain, self._provider(held, verdict.domain))
            return verdict
        *before, last = self._play.exchanges
        assert isinstance(last.answer, MailboxAnswer)
        play = Play(self._flow())
        play.resume(before)
        assert isinstance(play.question, ProbeMailbox)
        wait = await self._judge(refusals(last.answer), play.question.address.domain)
        self._play = play
        if wait is not None:
            return self._waiting(wait, pending=last)
        play.answer(replace(last.answer, is_private_policy=True), asked=last.asked, at=last.at, by=last.by)
        return None

    async def _judge(self, helds: Sequence[Held], domain: str) -> Wait | None:
        """Have replies about us judged, and return the wait for the first one."""
        self._is_judged = True
        first, *others = to_judge(helds, domain)
        for held in others:
            await self._world.refusals.note(held, domain, self._provider(held, domain))
        return await self._world.refusals.judge(first, domain, self._provider(first, domain))

    def _provider(self, held: Held, domain: str) -> str:
        return self._world.permits.provider_at(held.host, held.ip, domain)

    def _waiting(self, wait: Wait, pending: Exchange | None = None) -> Waiting:
        return Waiting(wait=wait, exchanges=self.exchanges, spent_s=self.spent_s, pending=pending)


def _is_paid(exchanges: Sequence[Exchange]) -> bool:
    return any(exchange.key == "verify" for exchange in exchanges)


def _asked(question: Question) -> str:
    """Return what was asked, for people."""
    match question:
        case LookupSpine():
            return str(question.outreach_id)
        case LookupMx():
            return question.domain
        case ProbeMailbox() | VerifyEmail():
            return str(question.address)
        case AskControl():
            return question.kind.value
    assert_never(question)
