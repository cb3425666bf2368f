"""Reads SNAP_ON_TOOLBOX.yaml: which tools the gate may use, and within which limits.

The package's copy is the default, and `ops/tooling/` holds the same bytes.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from ct_stream.gate.evidence import WINDOW_S
from ct_stream.gate.patterns import PATTERNS, Address, Pattern, ProbeName, render
from ct_stream.gate.questions import RANDOM
from ct_stream.gate.rules import Rules
from ct_stream.gate.toolbox_limits import PaidLimits, ProbeLimits
from ct_stream.problems import ProblemError

_FILE_NAME = "SNAP_ON_TOOLBOX.yaml"
_NAME = re.compile(r"[a-z]{1,40}")  # a local part is at most 64 octets (RFC 5321 section 4.5.3.1.1)
_PATTERN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
#: A dot-atom in lower case (RFC 5321 section 4.1.2): no dot at either end, and no two in a row.
_TEMPLATE = re.compile(
    r"(?=.{1,60}\Z)(?:[a-z0-9_-]|\{(?:first|last|f|l)\})+(?:\.(?:[a-z0-9_-]|\{(?:first|last|f|l)\})+)*"
)
_MOST_LOCAL_PART = 64  #: RFC 5321 section 4.5.3.1.1
_MOST_PATTERNS = 16  #: two sessions; more would look like a search for users
_Key: TypeAlias = tuple[str, ...]


class ToolboxError(ProblemError):
    """The toolbox cannot be used: the file, the key, and what is expected there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MxLimits:
    """TOOL-004, MXLookup."""

    per_second: float
    per_day: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpLimits:
    """TOOL-005, SMTPCheck. One session per domain at a time is a rule, not a setting."""

    per_day: int  #: sessions
    domain_pause_s: float  #: from the end of one session to the start of the next at the same domain
    sessions_per_provider: int  #: at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlLimits:
    """How often our own DNS and our own way out are checked."""

    interval_s: float  #: a worker asks at most one control of each kind in so many seconds
    window_s: float  #: a control lets a worker ask companies' servers for so long; then the next control is due
    settle_s: float  #: how long trouble that only one company meets may still turn out to be about us


@dataclass(frozen=True, slots=True, kw_only=True)
class Toolbox:
    """The limits of all tools, and the name that is put into the patterns."""

    probe_name: ProbeName
    mx: MxLimits
    smtp: SmtpLimits
    tier2: PaidLimits
    controls: ControlLimits
    patterns: tuple[Pattern, ...] = PATTERNS

    def values(self) -> dict[str, Any]:
        """Return all values as JSON has them, to compare them with another worker's."""
        return asdict(self) | {"patterns": [asdict(pattern) for pattern in self.patterns]}

    def rules(self) -> Rules:
        """Return the rules that read a company, with this toolbox's patterns and probe name."""
        return Rules(probe_name=self.probe_name, patterns=self.patterns)

    def probe_limits(self) -> ProbeLimits:
        """Return what Postgres enforces of TOOL-004 and TOOL-005."""
        return ProbeLimits(
            mx_per_second=self.mx.per_second,
            mx_per_day=self.mx.per_day,
            smtp_per_day=self.smtp.per_day,
            smtp_domain_pause_s=self.smtp.domain_pause_s,
            smtp_per_provider=self.smtp.sessions_per_provider,
        )


def load_toolbox(path: Path | str | None = None) -> Toolbox:
    """Read the toolbox at `path`, or the package's copy. Raises ToolboxError when it cannot be used."""
    if path is None:
        name, text = _FILE_NAME, files("ct_stream.probes").joinpath(_FILE_NAME).read_text(encoding="utf-8")
    else:
        name = str(path)
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise ToolboxError(f"{name}: cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ToolboxError(f"{name}: is not UTF-8 text: {error}") from error
    try:
        tree: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ToolboxError(f"{name}: is not YAML: {' '.join(str(error).split())}") from error
    return _read(_Section(name, (), tree))


_SETTLE_S = 600.0  #: a single reply about us is settled within 15 minutes


class _Section:
    """A mapping of the file that must be read to its last key: an unknown key is more often a typing error."""

    def __init__(self, file: str, key: _Key, value: object) -> None:
        self._file = file
        self._key = key
        if not isinstance(value, dict):
            raise self.wrong((), "a mapping", value)
        self._values: dict[object, object] = dict(value)

    def wrong(self, key: _Key, expected: str, found: object) -> ToolboxError:
        place = ".".join(self._key + key) or "the file"
        shown = repr(found)
        return ToolboxError(f"{self._file}: {place}: expected {expected}, found {shown[:60]}")

    def take(self, key: str, expected: str) -> object:
        if key not in self._values:
            raise ToolboxError(f"{self._file}: {'.'.join((*self._key, key))}: is missing, expected {expected}")
        return self._values.pop(key)

    def section(self, key: str) -> _Section:
        return _Section(self._file, (*self._key, key), self.take(key, "a mapping"))

    def tools(self) -> dict[str, _Section]:
        tools = self.take("tools", "a list of tools")
        if not isinstance(tools, list):
            raise self.wrong(("tools",), "a list of tools", tools)
        found: dict[str, _Section] = {}
        for number, value in enumerate(tools):
            tool_id = str(value.get("id", number)) if isinstance(value, dict) else str(number)
            tool = _Section(self._file, ("tools", tool_id), value)
            if tool_id in found:
                raise tool.wrong(("id",), "each tool once", tool_id)
            found[tool_id] = tool
        return found

    def number(self, key: str, *, otherwise: float | None = None) -> float:
        expected = "a number above 0"
        if otherwise is not None and key not in self._values:
            return otherwise
        value = self.take(key, expected)
        if isinstance(value, bool) or not isinstance(value, int | float) or not (0 < value < float("inf")):
            raise self.wrong((key,), expected, value)
        return float(value)

    def count(self, key: str, *, exactly: int | None = None) -> int:
        expected = "a whole number above 0" if exactly is None else f"{exactly}, which is a rule of the gate"
        value = self.take(key, expected)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1 or exactly not in (None, value):
            raise self.wrong((key,), expected, value)
        return value

    def name(self, key: str) -> str:
        expected = "ASCII lower-case letters, at most 40"
        value = self.take(key, expected)
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise self.wrong((key,), expected, value)
        return value

    def text(self, key: str, expected: str, allowed: re.Pattern[str]) -> str:
        value = self.take(key, expected)
        if not isinstance(value, str) or not allowed.fullmatch(value):
            raise self.wrong((key,), expected, value)
        return value

    def patterns(self, probe_name: ProbeName) -> tuple[Pattern, ...]:
        """Read the optional list of patterns, in the order in which they are asked."""
        if "patterns" not in self._values:
            return PATTERNS
        expected = f"a list of 1 to {_MOST_PATTERNS} patterns"
        values = self.take("patterns", expected)
        if not isinstance(values, list) or not 1 <= len(values) <= _MOST_PATTERNS:
            raise self.wrong(("patterns",), expected, values)
        found: dict[str, Pattern] = {}
        addresses: set[Address] = set()
        for number, value in enumerate(values):
            section = _Section(self._file, ("patterns", str(number)), value)
            pattern = section.pattern()
            section.end()
            address = render(pattern, probe_name, "")
            if len(address.local_part) > _MOST_LOCAL_PART:
                expected = f"a local part of at most {_MOST_LOCAL_PART} letters with the probe name in it"
                raise section.wrong(("template",), expected, address.local_part)
            if pattern.name in found or pattern.name == RANDOM:
                raise section.wrong(("name",), f"a name of its own, and not {RANDOM!r}", pattern.name)
            if address in addresses:
                raise section.wrong(("template",), "a mailbox that no earlier pattern asks for", pattern.template)
            found[pattern.name] = pattern
            addresses.add(address)
        return tuple(found.values())

    def pattern(self) -> Pattern:
        name = self.text("name", "lower-case letters, digits and . _ -, at most 32", _PATTERN_NAME)
        template = self.text("template", "letters, digits, . _ - and {first} {last} {f} {l}", _TEMPLATE)
        confidence = self.number("confidence")
        if confidence > 1 or round(confidence, 4) != confidence:
            raise self.wrong(("confidence",), "at most 1, with at most 4 decimals", confidence)
        return Pattern(name=name, template=template, confidence=confidence, is_role="{" not in template)

    def ignore(self, *keys: str) -> None:
        """Drop keys that are written for people only."""
        for key in keys:
            self._values.pop(key, None)

    def end(self) -> None:
        for key in self._values:
            raise ToolboxError(
                f"{self._file}: {'.'.join((*self._key, str(key)))}: is not a key of the toolbox", "remove it"
            )


def _read(file: _Section) -> Toolbox:
    file.count("version", exactly=1)
    name = file.section("probe_name")
    probe_name = ProbeName(first=name.name("first"), last=name.name("last"))
    name.end()
    patterns = file.patterns(probe_name)

    tools = file.tools()
    read: dict[str, _Section] = {}
    for tool_id in ("TOOL-004", "TOOL-005", "TOOL-019"):
        if tool_id not in tools:
            raise file.wrong(("tools",), f"the tool {tool_id}", sorted(tools))
        tool = read[tool_id] = tools.pop(tool_id)
        tool.ignore("id", "name", "tier", "gated", "package", "guardrail")
    for tool_id in tools:
        raise file.wrong(("tools",), "TOOL-004, TOOL-005 and TOOL-019 only", tool_id)

    limits = read["TOOL-004"].section("limits")
    mx = MxLimits(per_second=limits.number("per_second"), per_day=limits.count("per_day"))
    limits.end()

    limits = read["TOOL-005"].section("limits")
    limits.count("sessions_per_domain", exactly=1)
    smtp = SmtpLimits(
        per_day=limits.count("per_day"),
        domain_pause_s=limits.number("domain_pause_s"),
        sessions_per_provider=limits.count("sessions_per_provider"),
    )
    limits.end()

    limits, budget = read["TOOL-019"].section("limits"), read["TOOL-019"].section("budget")
    limits.count("attempts_per_outreach_id", exactly=1)
    tier2 = PaidLimits(
        per_second=limits.number("per_second"),
        per_month=limits.count("per_month"),
        usd_per_month=budget.number("usd_per_month"),
        usd_per_call=budget.number("usd_per_call"),
    )
    limits.end()
    budget.end()

    control = file.section("controls")
    controls = ControlLimits(
        interval_s=control.number("interval_s"),
        window_s=control.number("window_s", otherwise=WINDOW_S),
        settle_s=control.number("settle_s", otherwise=_SETTLE_S),
    )
    for section in (*read.values(), control, file):
        section.end()
    return Toolbox(probe_name=probe_name, patterns=patterns, mx=mx, smtp=smtp, tier2=tier2, controls=controls)
