"""Keeps questions and answers as JSON, and resumes a pass from kept answers."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from ct_stream.gate.questions import (
    Answer,
    Attempt,
    ControlAnswer,
    MailboxAnswer,
    MxAnswer,
    MxStatus,
    Question,
    SpineAnswer,
    Trouble,
    VerifyAnswer,
    VerifyStatus,
)
from ct_stream.gate.replies import Reply, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ct_stream.gate.middle_stage import Flow
    from ct_stream.gate.verdicts import Verdict


#: Before the key of an answer that was set aside. A version that knows nothing of such answers must not take it for one
#: that counts: it refuses the key, and a newer worker takes the company up.
_ASIDE = "aside:"
_TOOLS = {"TOOL-004": MxAnswer, "TOOL-005": MailboxAnswer, "TOOL-019": VerifyAnswer}


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One question, by its key, with its answer."""

    key: str  #: "spine", "mx", "rcpt:<pattern>", "rcpt:random", "control:dns", "control:smtp", "verify"
    answer: Answer
    asked: str = ""  #: what was asked, for people: a domain or an address
    at: str = ""  #: when it was answered, RFC 3339, UTC
    remembered: bool = False  #: answered to another company of the same domain
    by: str = ""  #: the worker run that asked, as in ct_workers; whether over IPv4 or IPv6, its attempts' addresses say
    proven: bool = False  #: it failed, and another run that took the company over found it proven by the run that asked
    aside: bool = False  #: an answer before it is void; it serves if its question comes up again at the same host


class OutOfStep(Exception):
    """Kept answers do not fit the questions, because they were given under other rules."""


class Play:
    """A pass in progress: the open question, or the verdict, and the exchanges so far.

    `resume` sends kept answers as long as their keys fit the questions, so that an answered question is not put
    to the world again.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self.exchanges: list[Exchange] = []
        self.question: Question | None = None
        self.verdict: Verdict | None = None
        self._advance(None)

    def answer(self, answer: Answer, *, asked: str = "", at: str = "", by: str = "") -> None:
        """Answer the open question and move to the next one, or to the verdict."""
        if self.question is None:
            raise OutOfStep("the pass already has a verdict")
        self._take(Exchange(key=self.question.key, answer=answer, asked=asked, at=at, by=by))

    def resume(self, kept: Sequence[Exchange]) -> None:
        """Send kept answers in their order. Raises OutOfStep when one answers another question than the open one."""
        for exchange in kept:
            if self.question is None or self.question.key != exchange.key:
                open_key = self.question.key if self.question else "none"
                raise OutOfStep(f"kept answer {exchange.key!r} does not fit the question {open_key!r}")
            self._take(exchange)

    def _take(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        self._advance(exchange.answer)

    def _advance(self, answer: Answer | None) -> None:
        try:
            self.question = next(self._flow) if answer is None else self._flow.send(answer)
        except StopIteration as stop:
            self.question, self.verdict = None, stop.value


def tools_used(exchanges: Sequence[Exchange]) -> list[str]:
    """Return the ids of the tools that the answers came from, in the toolbox's order.

    `:memory` is appended where a tool's answers were all remembered from another company of the domain.
    """
    tools = []
    for tool, kind in _TOOLS.items():
        answers = [exchange for exchange in exchanges if isinstance(exchange.answer, kind)]
        if answers:
            tools.append(f"{tool}:memory" if all(exchange.remembered for exchange in answers) else tool)
    return tools


def to_json(exchanges: Sequence[Exchange]) -> list[dict[str, Any]]:
    """Return the exchanges as JSON values; `from_json` is its inverse."""
    return [
        {"key": _ASIDE * e.aside + e.key, "asked": e.asked, "at": e.at, "answer": _plain(e.answer)}
        | ({"remembered": True} if e.remembered else {})
        | ({"by": e.by} if e.by else {})
        | ({"proven": True} if e.proven else {})
        for e in exchanges
    ]


def from_json(values: Sequence[dict[str, Any]]) -> list[Exchange]:
    """Return the exchanges that `to_json` gave. Raises KeyError or ValueError on anything else."""
    return [
        Exchange(
            key=v["key"].removeprefix(_ASIDE),
            asked=v["asked"],
            at=v["at"],
            answer=_answer(v["key"].removeprefix(_ASIDE), v["answer"]),
            remembered=v.get("remembered", False),
            by=v.get("by", ""),
            proven=v.get("proven", False),
            aside=v["key"].startswith(_ASIDE),
        )
        for v in values
    ]


def _plain(value: Any) -> Any:
    """Return a dataclass as a dict without its unset fields, to keep a transcript short; anything else as it is.

    An empty domain in the spine counts as set. Written by hand: `dataclasses.asdict` copies deeply, and took a
    twentieth of a worker's time.
    """
    if is_dataclass(value):
        plain = {}
        for name in getattr(value, "__slots__", ()):
            field = getattr(value, name)
            if field is not None and (name == "domain" or field not in ("", ())):
                plain[name] = _plain(field)
        return plain
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _answer(key: str, v: dict[str, Any]) -> Answer:
    kind = key.partition(":")[0]
    match kind:
        case "spine":
            return SpineAnswer(found=v["found"], domain=v.get("domain"))
        case "mx":
            return MxAnswer(
                status=MxStatus(v["status"]),
                hosts=tuple(v.get("hosts", ())),
                detail=v.get("detail", ""),
                resolver=v.get("resolver", ""),
            )
        case "rcpt":
            return MailboxAnswer(
                attempts=tuple(_attempt(a) for a in v["attempts"]),
                is_private_policy=v.get("is_private_policy", False),
            )
        case "control":
            return ControlAnswer(detail=v.get("detail", ""))
        case "verify":
            return VerifyAnswer(status=VerifyStatus(v["status"]), detail=v.get("detail", ""))
    raise ValueError(f"unknown answer {key!r} in a transcript")


def _attempt(v: dict[str, Any]) -> Attempt:
    reply = v.get("reply")
    return Attempt(
        host=v.get("host", ""),
        stage=Stage(v["stage"]),
        ip=v.get("ip", ""),
        reply=Reply(code=reply["code"], enhanced=reply.get("enhanced", ""), text=reply.get("text", ""))
        if reply
        else None,
        trouble=Trouble(v["trouble"]) if v.get("trouble") else None,
        detail=v.get("detail", ""),
    )
