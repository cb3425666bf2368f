"""What does docs/decision.md say? `python -m tests.documents.decision_doc > docs/decision.md` writes it.

Each row of stages I and M is a list of answers, played through the gate: its outcome and reason are what the code says.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ct_stream.gate.evidence import ROWS as EVIDENCE
from ct_stream.gate.output_stage import Origin, output_stage
from ct_stream.gate.patterns import PATTERNS
from ct_stream.gate.pipeline import single_pass
from ct_stream.gate.questions import (
    Answer,
    AskControl,
    ControlKind,
    MailboxAnswer,
    MxStatus,
    SpineAnswer,
    Trouble,
    VerifyAnswer,
    VerifyStatus,
)
from ct_stream.gate.transcript import Play
from ct_stream.gate.verdicts import Failed, Held, Passed
from tests.gate.world import COMPANY, CONTROLS, GREY, LISTED, NO, RULES, TIER2_OFF, TOO_FAST, YES, mx, no_mx, trouble

if TYPE_CHECKING:
    from collections.abc import Sequence

_HEAD = """\
# The decision

Generated from the code by `python -m tests.documents.decision_doc`; a test holds the two equal. The outcomes below are
what the gate says when it is played the answers of each row. It is pure: `gate/pipeline.py` yields questions, something
else asks the world.

One company at a time: stage **I** reads its spine row, stage **M** asks DNS and its mail servers, stage **O** records
one outcome and publishes it. The eight patterns are asked in this order until one is accepted:
{patterns}.

A company that was decided before is counted as `CT-I-ALREADY-PROCESSED`; nothing is asked, written or published. One
that is missing from the spine is looked up again for `CT_SPINE_GRACE_S` before its row below applies.
"""
_EVIDENCE = """
## Does a failed answer count?

A control that is awaited proves that our own way works: our resolvers, or our way out to port 25. What becomes of the
answers that a waiting company brings back is decided by the first row that holds (`gate/evidence.py`). *Void* means:
dropped, with what rests on it, and asked again. Why: [ADR-CT-IMO-024](adr/ADR-CT-IMO-024-what-counts-as-evidence.md).

Two things come on top. From the second look on, silence counts only at hosts that a proven way has named: otherwise the
MX, and what rests on it, is asked again by whoever goes on. And what rests on a worker that may have ended a moment ago
waits until that is known ([ADR-CT-IMO-037](adr/ADR-CT-IMO-037-what-a-second-look-rests-on.md)).

| # | what holds | what becomes of the answers |
|---|---|---|
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a stage."""

    found: str
    answers: tuple[Answer, ...]
    tier2_off: str | None = TIER2_OFF


SPINE = SpineAnswer(found=True, domain="acme.example")
DNS, SMTP = CONTROLS[ControlKind.DNS], CONTROLS[ControlKind.SMTP]
INFO = next(n for n, pattern in enumerate(PATTERNS) if pattern.name == "info")
ALL_NO = (NO,) * len(PATTERNS)
SILENT = trouble(Trouble.TIMEOUT)
NO_NAME = trouble(Trouble.NO_ADDRESS)


def _input(found: str, domain: str | None, *, in_spine: bool = True) -> Row:
    return Row(found=found, answers=(SpineAnswer(found=in_spine, domain=domain),))


def _middle(found: str, *answers: Answer, tier2_off: str | None = TIER2_OFF) -> Row:
    return Row(found=found, answers=(SPINE, *answers), tier2_off=tier2_off)


def _vendor(found: str, status: VerifyStatus) -> Row:
    return _middle(found, mx(), SILENT, SMTP, VerifyAnswer(status=status, detail="the vendor's word"), tier2_off=None)


INPUT = (
    _input("it is not in the spine, and the spine check holds", None, in_spine=False),
    _input("its domain is NULL or empty", None),
    _input("its domain is no host name of two or more labels", "https://acme.example"),
)
MIDDLE = (
    _middle("no MX records; no control has succeeded since", no_mx(MxStatus.NO_RECORDS)),
    _middle("no MX records, and a control succeeded after that", no_mx(MxStatus.NO_RECORDS), DNS),
    _middle("NXDOMAIN, and a control succeeded after that", no_mx(MxStatus.NXDOMAIN), DNS),
    _middle("null MX (RFC 7505), and a control succeeded after that", no_mx(MxStatus.NULL_MX), DNS),
    _middle("no resolver answers about it, while the control resolves", no_mx(MxStatus.UNAVAILABLE, "SERVFAIL"), DNS),
    _middle("a pattern is accepted, the random address refused", mx(), *ALL_NO[:INFO], YES, NO),
    _middle("a pattern is accepted, the random address inconclusive", mx(), YES, GREY),
    _middle("the first pattern is accepted, and the random address too", mx(), YES, YES),
    _middle("patterns are refused first, then one and the random address accepted", mx(), *ALL_NO[:2], YES, YES),
    _middle("every pattern is refused as an unknown mailbox", mx(), *ALL_NO),
    _middle("every pattern is greylisted", mx(), *[GREY] * len(PATTERNS)),
    _middle("no server can be reached; no control has succeeded since", mx(), SILENT),
    _middle("no server can be reached, and a control succeeded after that", mx(), SILENT, SMTP),
    _middle("no MX host has an address, and a control succeeded after that", mx(), NO_NAME, DNS),
    _middle("a reply says that we are refused", mx(), LISTED),
    _middle("that refusal is settled as this company's private policy", mx(),
            MailboxAnswer(attempts=LISTED.attempts, is_private_policy=True)),
    _middle("a reply says that we ask too fast", mx(), TOO_FAST),
    _vendor("inconclusive; the paid vendor says valid", VerifyStatus.VALID),
    _vendor("inconclusive; the paid vendor says catch-all", VerifyStatus.CATCH_ALL),
    _vendor("inconclusive; the paid vendor says invalid, or its final unknown", VerifyStatus.INVALID),
    _vendor("inconclusive; the paid vendor gives no usable answer", VerifyStatus.NO_ANSWER),
)  # fmt: skip


def played(row: Row) -> Play:
    """Return the pass that these answers make. Loud where one of them is not asked for."""
    play = Play(single_pass(COMPANY, RULES, tier2_off=row.tier2_off))
    for answer in row.answers:
        assert play.question is not None, f"{row.found}: {answer} is not asked for"
        play.answer(answer)
    return play


def outcome(play: Play) -> tuple[str, str]:
    """Return the outcome and the reason of a pass, for people."""
    match play.verdict:
        case Passed() as passed:
            catch_all = ", catch-all" if passed.is_catchall else ""
            return f"PASS `{passed.method_type}` {passed.confidence:.2f}{catch_all}", passed.note
        case Failed() as failed:
            return f"FAIL `{failed.code}`", failed.reason
        case Held() as held:
            return "no verdict: waits until its scope is known", held.reason
    assert play.question is not None
    if isinstance(play.question, AskControl):
        return f"no verdict: waits for the {play.question.kind.upper()} control", ""
    raise AssertionError(f"the row ends with the question {play.question.key}")


def decision_markdown() -> str:
    """Return docs/decision.md."""
    patterns = ", ".join(f"`{pattern.name}` {pattern.confidence:.2f}" for pattern in PATTERNS)
    parts = [
        _HEAD.format(patterns=patterns),
        _stage("I, input", INPUT),
        _stage("M, middle", MIDDLE),
        _output(),
        _EVIDENCE + "".join(f"| {n} | {row.holds} | {row.then} |\n" for n, row in enumerate(EVIDENCE, 1)),
    ]
    return "".join(parts)


def _stage(name: str, rows: Sequence[Row]) -> str:
    lines = [f"\n## Stage {name}\n\n| what was found | outcome | reason |\n|---|---|---|\n"]
    for row in rows:
        what, why = outcome(played(row))
        lines.append(f"| {row.found} | {what} | {why.replace('|', '/')} |\n")
    return "".join(lines)


def _output() -> str:
    """Return stage O: where each outcome goes, as the code says it."""
    lines = ["\n## Stage O, output\n\n| outcome | topic | `ce_type` | rows beside the ledger's |\n|---|---|---|---|\n"]
    tables = {
        "PASS": "`company_target`, ready",
        "FAIL": "`company_target`, failed, and `company_target_errors`; of a NOT-FOUND the second alone",
    }
    for row, word in ((MIDDLE[5], "PASS"), (MIDDLE[1], "FAIL")):
        verdict = played(row).verdict
        assert isinstance(verdict, Passed | Failed)
        out = output_stage(
            Origin(outreach_id=COMPANY), verdict, (), rules_version="1", decided_at=datetime(2026, 1, 7, tzinfo=UTC),
            duration_ms=0,
        )  # fmt: skip
        lines.append(f"| {word} | `{out.topic}` | `{dict(out.headers)['ce_type'].decode()}` | {tables[word]} |\n")
    return "".join(lines)


if __name__ == "__main__":
    print(decision_markdown(), end="")
