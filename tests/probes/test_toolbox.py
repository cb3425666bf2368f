"""Which toolboxes can be used, and what is said of the others?"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from ct_stream.gate.patterns import Pattern, ProbeName
from ct_stream.gate.rules import Rules
from ct_stream.probes.toolbox import ToolboxError, load_toolbox

if TYPE_CHECKING:
    from pathlib import Path

PACKAGED = files("ct_stream.probes").joinpath("SNAP_ON_TOOLBOX.yaml").read_text(encoding="utf-8")


def test_the_packages_toolbox_is_the_default() -> None:
    toolbox = load_toolbox()
    assert (toolbox.mx.per_second, toolbox.mx.per_day) == (50, 50_000)
    assert (toolbox.smtp.per_day, toolbox.smtp.domain_pause_s, toolbox.smtp.sessions_per_provider) == (10_000, 2, 10)
    assert (toolbox.tier2.per_second, toolbox.tier2.per_month) == (50, 10_000)
    assert (toolbox.tier2.usd_per_month, toolbox.tier2.usd_per_call) == (50, 0.004)
    assert (toolbox.controls.interval_s, toolbox.controls.settle_s) == (30, 600)
    assert toolbox.rules() == Rules(probe_name=ProbeName(first="jordan", last="whitfield"))


def test_another_file_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "toolbox.yaml"
    path.write_text(PACKAGED.replace("per_day: 10000 ", "per_day: 7 "))
    assert load_toolbox(path).smtp.per_day == 7


@pytest.mark.parametrize(
    ("old", "new", "key", "expected"),
    [
        pytest.param("first: jordan", "first: Jörd", "probe_name.first", "ASCII lower-case letters", id="probe name"),
        pytest.param("first: jordan", "first: 'a}{b'", "probe_name.first", "ASCII lower-case letters", id="template"),
        pytest.param("last: whitfield", "last: ''", "probe_name.last", "ASCII lower-case letters", id="empty name"),
        pytest.param("  last: whitfield\n", "", "probe_name.last", "is missing", id="missing"),
        pytest.param("per_day: 50000", "per_day: fifty", "tools.TOOL-004.limits.per_day", "a whole number", id="text"),
        pytest.param("per_day: 50000", "per_day: 0", "tools.TOOL-004.limits.per_day", "above 0", id="zero"),
        pytest.param("per_day: 50000", "per_day: true", "tools.TOOL-004.limits.per_day", "a whole number", id="bool"),
        pytest.param("interval_s: 30", "interval_s: .nan", "controls.interval_s", "above 0", id="nan"),
        pytest.param("interval_s: 30", "interval: 30", "controls.interval_s", "is missing", id="misspelt"),
        pytest.param(
            "interval_s: 30", "interval_s: 30\n  x: 1", "controls.x", "is not a key", id="unknown in a section"
        ),
        pytest.param("version: 1", "version: 1\nextra: 1", "extra", "is not a key", id="unknown at the top"),
        pytest.param(
            "per_day: 50000",
            "per_day: 50000\n      x: 1",
            "tools.TOOL-004.limits.x",
            "is not a key",
            id="unknown limit",
        ),
        pytest.param("version: 1", "version: 2", "version", "expected 1", id="another version"),
        pytest.param(
            "sessions_per_domain: 1", "sessions_per_domain: 3", "sessions_per_domain", "a rule of the gate", id="a rule"
        ),
        pytest.param("id: TOOL-019", "id: TOOL-020", "tools", "TOOL-019", id="a tool missing"),
        pytest.param("id: TOOL-019", "id: TOOL-005", "tools.TOOL-005.id", "each tool once", id="a tool twice"),
        pytest.param("controls:", "controls: 7\nother:", "controls", "a mapping", id="no mapping"),
    ],
)
def test_a_bad_toolbox_is_refused_in_one_line(tmp_path: Path, old: str, new: str, key: str, expected: str) -> None:
    assert PACKAGED.count(old) >= 1
    path = tmp_path / "toolbox.yaml"
    path.write_text(PACKAGED.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ToolboxError) as refusal:
        load_toolbox(path)
    line = str(refusal.value)
    assert line.startswith(f"{path}: ")
    assert key in line
    assert expected in line
    assert "\n" not in line


@pytest.mark.parametrize("text", ["", "[]", "a: [", "tools: {}", "\0"])
def test_a_file_that_is_no_toolbox_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "toolbox.yaml"
    path.write_text(text)
    with pytest.raises(ToolboxError, match=r"toolbox\.yaml: ") as refusal:
        load_toolbox(path)
    assert "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolboxError, match=r"nowhere\.yaml: cannot be read"):
        load_toolbox(tmp_path / "nowhere.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ToolboxError, match=r"bytes\.yaml: is not UTF-8 text"):
        load_toolbox(tmp_path / "bytes.yaml")


INFO = "name: info, template: info, confidence: 0.7"


def with_patterns(*patterns: str) -> str:
    return PACKAGED + "\npatterns:\n" + "".join(f"  - {{{pattern}}}\n" for pattern in patterns)


def test_a_toolbox_may_bring_its_own_patterns(tmp_path: Path) -> None:
    path = tmp_path / "toolbox.yaml"
    path.write_text(
        with_patterns(
            "name: sales, template: sales, confidence: 0.7", "name: l.f, template: '{last}.{f}', confidence: 0.9"
        )
    )
    rules = load_toolbox(path).rules()
    assert rules.patterns == (
        Pattern(name="sales", template="sales", confidence=0.7, is_role=True),
        Pattern(name="l.f", template="{last}.{f}", confidence=0.9),
    )
    assert rules.version != load_toolbox().rules().version


@pytest.mark.parametrize(
    ("patterns", "key", "expected"),
    [
        (["name: A, template: a, confidence: 1"], "patterns.0.name", "lower-case"),
        (["name: random, template: a, confidence: 1"], "patterns.0.name", "not 'random'"),
        (["name: a, template: '{name}', confidence: 1"], "patterns.0.template", "{first}"),
        (["name: a, template: 'a..b', confidence: 1"], "patterns.0.template", "letters"),
        (["name: a, template: 'a@b', confidence: 1"], "patterns.0.template", "letters"),
        (
            ["name: a, template: '{last}{last}{last}{last}{last}{last}{last}{last}', confidence: 1"],
            "template",
            "at most 64",
        ),
        (["name: a, template: a, confidence: 1.5"], "patterns.0.confidence", "at most 1"),
        (["name: a, template: a, confidence: 0.12345"], "patterns.0.confidence", "4 decimals"),
        (["name: a, template: a, confidence: 1, x: 1"], "patterns.0.x", "is not a key"),
        (
            ["name: a, template: a, confidence: 1", "name: a, template: b, confidence: 1"],
            "patterns.1.name",
            "of its own",
        ),
        (
            ["name: a, template: jordan, confidence: 1", "name: b, template: '{first}', confidence: 1"],
            "patterns.1",
            "earlier",
        ),
        ([], "patterns", "a list of 1 to 16"),
        ([f"name: p{n}, template: p{n}, confidence: 1" for n in range(17)], "patterns", "a list of 1 to 16"),
    ],
)
def test_patterns_that_cannot_be_asked_are_refused(
    tmp_path: Path, patterns: list[str], key: str, expected: str
) -> None:
    path = tmp_path / "toolbox.yaml"
    path.write_text(with_patterns(*patterns))
    with pytest.raises(ToolboxError) as refusal:
        load_toolbox(path)
    assert key in str(refusal.value)
    assert expected in str(refusal.value)
