"""The address patterns in the order in which they are asked, each with the confidence of its PASS."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uuid import UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A way of writing local parts. A pattern is not an address: `render` makes an `Address` of it."""

    name: str  #: the runbook's method_type, such as "first.last"
    template: str  #: with {first}, {last}, {f}, {l}
    confidence: float  #: of a PASS that rests on this pattern, 0 to 1
    is_role: bool = False  #: a mailbox for a role, asked without a person's name


#: Fixed order; the confidence is that of a PASS (DESIGN section 3).
PATTERNS: tuple[Pattern, ...] = (
    Pattern(name="first.last", template="{first}.{last}", confidence=0.95),
    Pattern(name="firstlast", template="{first}{last}", confidence=0.90),
    Pattern(name="f.last", template="{f}.{last}", confidence=0.90),
    Pattern(name="first.l", template="{first}.{l}", confidence=0.90),
    Pattern(name="first", template="{first}", confidence=0.85),
    Pattern(name="last", template="{last}", confidence=0.85),
    Pattern(name="info", template="info", confidence=0.70, is_role=True),
    Pattern(name="contact", template="contact", confidence=0.70, is_role=True),
)

CATCH_ALL_CONFIDENCE = 0.50  #: any local part is accepted: the pattern is a guess
UNPROVEN_CONFIDENCE = 0.70  #: accepted, but it is not known whether a random local part is refused


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeName:
    """The invented person whose name is put into the patterns, ASCII lower case."""

    first: str
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One mailbox to ask about: an exact local part at a canonical domain."""

    local_part: str
    domain: str

    def __str__(self) -> str:
        return f"{self.local_part}@{self.domain}"


def render(pattern: Pattern, name: ProbeName, domain: str) -> Address:
    """Return the address that `pattern` gives the probe name at `domain`."""
    local_part = pattern.template.format(first=name.first, last=name.last, f=name.first[0], l=name.last[0])
    return Address(local_part=local_part, domain=domain)


def email_method(pattern: Pattern, domain: str) -> str:
    """Return the template with the canonical domain, such as `{first}.{last}@acme.example`."""
    return f"{pattern.template}@{domain}"


def random_address(outreach_id: UUID, domain: str) -> Address:
    """Return the address that no honest server knows, the same for each reading of one company's transcript.

    It is derived, not drawn: a pass that is resumed in another process must ask for the same mailbox. Otherwise two
    random addresses would be asked.
    """
    digest = hashlib.sha256(b"ct-stream/random-local-part/" + outreach_id.bytes).hexdigest()
    return Address(local_part=f"q{digest[:14]}", domain=domain)
