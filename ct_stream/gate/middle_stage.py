"""Stage M: which mailbox pattern does this domain accept?

This is a generator: it yields questions and is sent answers, like httpx's `Auth.auth_flow`. So a test is a list of
answers, a pass can be resumed from kept answers, and a transcript can be read again under other rules.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from ct_stream.gate.attempts import read_attempt, refusals
from ct_stream.gate.evidence import proofs_needed
from ct_stream.gate.failures import FailureCode
from ct_stream.gate.patterns import (
    CATCH_ALL_CONFIDENCE,
    UNPROVEN_CONFIDENCE,
    Address,
    Pattern,
    email_method,
    random_address,
    render,
)
from ct_stream.gate.questions import (
    NO_ANSWER,
    RANDOM,
    Answer,
    AskControl,
    Attempt,
    ControlKind,
    LookupMx,
    MailboxAnswer,
    MxAnswer,
    MxStatus,
    ProbeMailbox,
    Question,
    Trouble,
    VerifyAnswer,
    VerifyEmail,
    VerifyStatus,
)
from ct_stream.gate.replies import Meaning, Stage
from ct_stream.gate.verdicts import Failed, Held, HeldBy, Passed, Verdict, VerifiedBy

if TYPE_CHECKING:
    from uuid import UUID

    from ct_stream.gate.replies import Reading
    from ct_stream.gate.rules import Rules

Flow: TypeAlias = Generator[Question, Answer, Verdict]

_ONLY_HERE = "only this company's own server refuses us, so it counts as its policy: "
_NO_MX_REASONS = {
    MxStatus.NO_RECORDS: "the domain has no MX records",
    MxStatus.NXDOMAIN: "the domain does not exist (NXDOMAIN)",
    MxStatus.NULL_MX: "the domain says that it takes no mail (null MX, RFC 7505)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One mailbox question with its answer and what that means."""

    pattern: Pattern | None  #: None for the random address
    answer: MailboxAnswer
    reading: Reading

    @property
    def attempt(self) -> Attempt:
        return self.answer.attempts[-1]


def middle_stage(outreach_id: UUID, domain: str, rules: Rules, *, tier2_off: str | None) -> Flow:
    """Decide by MX, RCPT TO and at most one Tier-2 call.

    `tier2_off` says why Tier-2 will not be asked ("Tier-2 is off", "the month's budget is spent"); None when it is on.
    """
    mx = yield LookupMx(domain=domain)
    assert isinstance(mx, MxAnswer)
    if mx.status in _NO_MX_REASONS:
        yield AskControl(kind=ControlKind.DNS)
        reason = _NO_MX_REASONS[mx.status] + (f"; {mx.detail}" if mx.detail else "")
        return Failed(code=FailureCode.NO_MX, reason=reason, domain=domain)
    if mx.status in NO_ANSWER:
        yield AskControl(kind=ControlKind.DNS)
        cause = f"MX could not be looked up: {mx.detail}"
        return (yield from _inconclusive(domain, [], [cause], rules, tier2_off))

    asked: list[_Asked] = []
    hosts = mx.hosts
    refusing: set[str] = set()  # hosts whose policy towards us is known: if they repeat it, nothing changes
    for pattern in rules.patterns:
        address = render(pattern, rules.probe_name, domain)
        step = yield from _probe(pattern, address, hosts, refusing)
        if isinstance(step, Held):
            return step
        asked.append(step)
        if step.answer.is_private_policy:
            refusing |= {held.host for held in refusals(step.answer)}
        if step.reading.meaning is Meaning.ACCEPT:
            refused = [earlier for earlier in asked if earlier.reading.meaning is Meaning.REJECT]
            return (yield from _accepted(outreach_id, domain, pattern, step.attempt.host, refused=len(refused)))
        if step.reading.meaning is Meaning.ABOUT_US:
            break  # its private policy: such a host is not asked again; earlier rejects still count (ADR-015)
        if step.answer.reached_rcpt:
            # From here on every question goes to this host: a backup MX may accept anything.
            hosts = (step.attempt.host,)
        elif step.attempt.stage is not Stage.RCPT or step.attempt.trouble is Trouble.DEADLINE:
            break  # no host can be talked to: the remaining patterns stay unasked, which is inconclusive
    for kind in proofs_needed(step.answer for step in asked):
        yield AskControl(kind=kind)
    # After a host that refuses us by policy, a backup may have answered. It may know no mailboxes, so it decides
    # nothing.
    is_whole = not refusing and len(asked) == len(rules.patterns)
    if is_whole and all(step.reading.meaning is Meaning.REJECT for step in asked):
        reason = f"{asked[0].attempt.host} refused all {len(asked)} patterns as unknown mailboxes"
        return Failed(code=FailureCode.NO_PATTERN, reason=reason, domain=domain)
    return (yield from _inconclusive(domain, asked, _causes(asked), rules, tier2_off))


def _probe(
    pattern: Pattern | None, address: Address, hosts: tuple[str, ...], refusing: Collection[str]
) -> Generator[Question, Answer, _Asked | Held]:
    """Ask about one mailbox. A reply about us holds the pass, unless it is known to be the company's own policy.

    Only a yes counts whatever an earlier host said about us. A no comes from a backup then, which may know no
    mailboxes, and the first host said nothing about them.
    """
    answer = yield ProbeMailbox(pattern=pattern.name if pattern else RANDOM, address=address, hosts=hosts)
    assert isinstance(answer, MailboxAnswer)
    last = answer.attempts[-1]
    reading = read_attempt(last)
    if not (last.stage is Stage.RCPT and reading.meaning is Meaning.ACCEPT):
        for held in refusals(answer):
            # "Too fast" is never one company's policy, so the pass waits for it in any case.
            if held.by is HeldBy.RATE or not (answer.is_private_policy or held.host in refusing):
                return held
    return _Asked(pattern=pattern, answer=answer, reading=reading)


def _accepted(outreach_id: UUID, domain: str, pattern: Pattern, host: str, *, refused: int) -> Flow:
    """Tell an honest yes from a catch-all, by asking the same host about a mailbox that cannot exist.

    `refused` counts the patterns that the host refused before.
    """
    answer = yield ProbeMailbox(pattern=RANDOM, address=random_address(outreach_id, domain), hosts=(host,))
    assert isinstance(answer, MailboxAnswer)
    reading = read_attempt(answer.attempts[-1])
    if reading.meaning is Meaning.ACCEPT and refused:
        # The host changed its mind, like servers that mislead whoever asks about many unknown users. The usual guess at
        # a catch-all is not taken here: that pattern was refused, and would bounce (ADR-CT-IMO-015).
        note = f"{host} refused {refused} patterns as unknown and then accepted a random mailbox too"
        passed = _passed(pattern, domain, CATCH_ALL_CONFIDENCE, VerifiedBy.CATCH_ALL, note)
        return replace(passed, is_catchall=True)
    if reading.meaning is Meaning.ACCEPT:
        return _catch_all(domain, VerifiedBy.CATCH_ALL)
    if reading.meaning is Meaning.REJECT:
        return _passed(pattern, domain, pattern.confidence, VerifiedBy.SMTP)
    # The company's yes counts whatever stopped the second question, even a reply about us: waiting could only raise the
    # confidence, never change the outcome.
    note = f"it is not known whether a random mailbox is refused: {reading.cause}"
    return _passed(pattern, domain, min(pattern.confidence, UNPROVEN_CONFIDENCE), VerifiedBy.SMTP, note)


def _inconclusive(domain: str, asked: list[_Asked], causes: list[str], rules: Rules, tier2_off: str | None) -> Flow:
    """Stage M5: ask Tier-2 once if it is on, otherwise fail with the cause."""
    reason = "; ".join(causes)
    if tier2_off is None:
        pattern = _pattern_for_tier2(asked, rules)
        answer = yield VerifyEmail(pattern=pattern.name, address=render(pattern, rules.probe_name, domain))
        assert isinstance(answer, VerifyAnswer)
        match answer.status:
            case VerifyStatus.VALID:
                return _passed(pattern, domain, pattern.confidence, VerifiedBy.TIER2)
            case VerifyStatus.CATCH_ALL:
                return _catch_all(domain, VerifiedBy.TIER2)
            case VerifyStatus.INVALID:
                return Failed(
                    code=FailureCode.VERIFY_FAIL, reason=f"{answer.detail}; over SMTP: {reason}", domain=domain
                )
            case VerifyStatus.NO_ANSWER:
                reason = f"{reason}; Tier-2 gave no usable answer: {answer.detail}"
    else:
        reason = f"{reason}; {tier2_off}"
    return Failed(code=FailureCode.SMTP_FAIL, reason=reason, domain=domain)


def _pattern_for_tier2(asked: list[_Asked], rules: Rules) -> Pattern:
    """Return the first inconclusive role pattern, else the first inconclusive one, else `info`.

    A pattern that was never asked is inconclusive.
    """
    rejected = {step.pattern.name for step in asked if step.pattern and step.reading.meaning is Meaning.REJECT}
    open_patterns = [pattern for pattern in rules.patterns if pattern.name not in rejected]
    for pattern in open_patterns:
        if pattern.is_role:
            return pattern
    if open_patterns:
        return open_patterns[0]
    return next((p for p in rules.patterns if p.name == "info"), rules.patterns[0])


def _catch_all(domain: str, verified_by: VerifiedBy) -> Passed:
    """Return the PASS of a domain that accepts any local part; the pattern is a guess (M4)."""
    guess = Pattern(name="first.last", template="{first}.{last}", confidence=CATCH_ALL_CONFIDENCE)
    return replace(_passed(guess, domain, CATCH_ALL_CONFIDENCE, verified_by), is_catchall=True)


def _passed(pattern: Pattern, domain: str, confidence: float, verified_by: VerifiedBy, note: str = "") -> Passed:
    return Passed(
        domain=domain,
        method_type=pattern.name,
        email_method=email_method(pattern, domain),
        confidence=confidence,
        is_catchall=False,
        verified_by=verified_by,
        note=note,
    )


def _causes(asked: list[_Asked]) -> list[str]:
    """Return the first three distinct causes, each with the host and the reply that showed it."""
    causes: dict[str, str] = {}
    for step in asked:
        refused = {held.host for held in refusals(step.answer)} if step.answer.is_private_policy else set()
        for attempt in step.answer.attempts:
            if attempt.host not in refused and (attempt is not step.attempt or step.reading.meaning is Meaning.REJECT):
                continue
            said = ""
            if attempt.reply is not None:
                said = f": {attempt.reply.code} {attempt.reply.enhanced} {attempt.reply.text}".rstrip()[:160]
            elif attempt.detail:
                said = f": {attempt.detail}"[:160]
            reading = read_attempt(attempt)
            # A reply about us comes here only once it is known to be this company's own policy.
            policy = _ONLY_HERE if reading.meaning is Meaning.ABOUT_US else ""
            causes.setdefault(reading.cause, f"{policy}{reading.cause} ({attempt.host} at {attempt.stage}{said})")
    return list(causes.values())[:3]
