"""What was found: each kind of disagreement counted, with a few examples."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

from ct_stream.ops.verify.kinds import MEANINGS, Kind, Meaning, is_note
from ct_stream.stream.topology import UNPREFIXED, Names


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One thing that does not agree."""

    kind: Kind
    detail: str
    outreach_id: bytes | None = None  #: its 16 bytes
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None
    count: int = 1  #: how many things it counts for

    def told(self) -> dict[str, Any]:
        """Return what is known of it, as `--json` prints it."""
        known = {
            "outreach_id": None if self.outreach_id is None else str(UUID(bytes=self.outreach_id)),
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "detail": self.detail,
        }
        return {name: value for name, value in known.items() if value is not None}


@dataclass(slots=True)
class Found:
    """One kind: how many, and the first few."""

    count: int = 0
    examples: list[Example] = field(default_factory=list)


class Findings:
    """Counts by kind; keeps a bounded number of examples."""

    def __init__(self, examples: int) -> None:
        self._examples = examples
        self.by_kind: dict[Kind, Found] = {}

    def add(self, example: Example) -> None:
        """Count one."""
        found = self.by_kind.setdefault(example.kind, Found())
        found.count += example.count
        if len(found.examples) < self._examples:
            found.examples.append(example)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of one run."""

    found: dict[Kind, Found]
    names: Names = UNPREFIXED  #: of the topics on the cluster; what was found names them without prefix
    checked: dict[str, int]  #: how much was compared, by what
    not_told: list[str]  #: what this broker or this spine cannot say
    seconds: float

    @property
    def violations(self) -> dict[Kind, Found]:
        """Return what breaks a promise, in the order of the kinds."""
        return {kind: self.found[kind] for kind in Kind if kind in self.found and not is_note(kind)}

    @property
    def notes(self) -> dict[Kind, Found]:
        """Return what an operator should know and breaks no promise."""
        return {kind: self.found[kind] for kind in Kind if kind in self.found and is_note(kind)}

    def told(self) -> dict[str, Any]:
        """Return the report as `--json` prints it."""
        return {
            "ok": not self.violations,
            "violations": [self._told(kind, found) for kind, found in self.violations.items()],
            "notes": [self._told(kind, found) for kind, found in self.notes.items()],
            "not_told": [self.names.named(what) for what in self.not_told],
            "checked": {self.names.named(what): count for what, count in self.checked.items()},
            "seconds": round(self.seconds, 1),
        }

    def meaning(self, kind: Kind) -> Meaning:
        """Return what a kind says, with the names that the topics have on this cluster."""
        meaning = MEANINGS[kind]
        return replace(meaning, sentence=self.names.named(meaning.sentence), todo=self.names.named(meaning.todo))

    def example(self, example: Example) -> dict[str, Any]:
        """Return an example as `--json` prints it, with these names."""
        told = example.told()
        return told | {key: self.names.named(told[key]) for key in ("topic", "detail") if key in told}

    def _told(self, kind: Kind, found: Found) -> dict[str, Any]:
        meaning = self.meaning(kind)
        return {
            "kind": kind.value,
            "invariant": meaning.invariant,
            "count": found.count,
            "what": meaning.sentence,
            "what_to_do": meaning.todo,
            "examples": [self.example(example) for example in found.examples],
        }
