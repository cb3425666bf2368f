"""Read the SMTP replies of a file as a worker does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ct_stream.gate.replies import Meaning, Reply, Stage, deciding_rule
from ct_stream.ops.troubles import WrongInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ct_stream.gate.reply_rules import Rule

NEEDED = ("stage", "code", "enhanced", "text")
LABELS = ("accept", "reject", "inconclusive", "halt")
#: A reply about our rate is inconclusive: it passes. One about us halts.
_LABEL_OF = {
    Meaning.ACCEPT: "accept",
    Meaning.REJECT: "reject",
    Meaning.INCONCLUSIVE: "inconclusive",
    Meaning.OUR_RATE: "inconclusive",
    Meaning.ABOUT_US: "halt",
}
#: Other people's names for a stage. After RCPT a reply is about a message, and never about a mailbox: read as at MAIL.
_STAGES = {stage.value: stage for stage in Stage} | {"ehlo": Stage.HELO, "greeting": Stage.BANNER, "data": Stage.MAIL}


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """One row of the file with its reading."""

    row: Mapping[str, str]
    meaning: str  #: one of LABELS
    rule: Rule

    def columns(self, *, explain: bool) -> dict[str, str]:
        """Return the row with what was read: `meaning`, `rule`, and why it reads so where that is asked for."""
        columns = {**self.row, "meaning": self.meaning, "rule": self.rule.name}
        if explain:
            columns |= {"rule_why": self.rule.why, "rule_source": self.rule.source}
        return columns


def classify(text: str, name: str) -> list[Classified]:
    """Read the rows of a tab-separated file with a header; a backslash and n in `text` is a line break.

    Raises WrongInput naming each line that cannot be read.
    """
    lines = [line.rstrip("\r") for line in text.removeprefix("\ufeff").split("\n")]  # a text may hold other breaks
    header = lines[0].split("\t")
    missing = [column for column in NEEDED if column not in header]
    if missing:
        raise WrongInput([f"{name}: no column {', '.join(missing)} in its first line; it must be tab-separated"])
    classified, problems = [], []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = line.split("\t")
        row = dict(zip(header, cells + [""] * (len(header) - len(cells)), strict=False))
        try:
            classified.append(_classified(row))
        except ValueError as error:
            problems.append(f"{name}, line {number}: {error}")
    if problems:
        raise WrongInput(problems)
    return classified


def _classified(row: Mapping[str, str]) -> Classified:
    stage = _STAGES.get(row["stage"].strip().lower())
    if stage is None:
        raise ValueError(f"stage {row['stage']!r} is none of {', '.join(sorted(_STAGES))}")
    try:
        code = int(row["code"])
    except ValueError:
        raise ValueError(f"code {row['code']!r} is not a number") from None
    reply = Reply(code=code, enhanced=row["enhanced"].strip(), text=row["text"].replace("\\n", "\n"))
    rule = deciding_rule(stage, reply)
    return Classified(row=row, meaning=_LABEL_OF[rule.meaning], rule=rule)
