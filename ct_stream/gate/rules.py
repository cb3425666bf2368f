"""The rules that a decision rests on, and the version that is kept with its outcome."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ct_stream.gate.patterns import PATTERNS, Pattern, ProbeName

#: Raised whenever `replies`, `input_stage` or `middle_stage` would decide some transcript differently.
DECISION_VERSION = "4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What a decision rests on besides its answers."""

    probe_name: ProbeName
    patterns: tuple[Pattern, ...] = PATTERNS

    @property
    def version(self) -> str:
        """Return the name kept with each outcome: the decision's version and a digest of patterns and probe name."""
        parts = [f"{p.name}={p.template}={p.confidence}" for p in self.patterns]
        parts.append(f"{self.probe_name.first} {self.probe_name.last}")
        digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        return f"{DECISION_VERSION}+{digest[:8]}"
