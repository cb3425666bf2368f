"""The README's tables are what the code is."""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path

import click

from ct_stream.cli import main
from ct_stream.cli.shared import Exit
from ct_stream.settings import Settings, load_settings, variable

_README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
_CODE = re.compile(r"`([^`]+)`")


def _rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading, without its head."""
    section = _README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    table = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in table[2:]]


def _default(value: object) -> str:
    match value:
        case None | ():
            return ""
        case tuple():
            return ",".join(map(str, value))
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def test_the_table_of_settings_has_every_setting_with_its_default() -> None:
    """A variable that is not in it is refused at the start, and the refusal sends people here."""
    expected = {
        variable(field.name): "~/.local/state/ct-stream" if field.default is MISSING else _default(field.default)
        for field in fields(Settings)
        if field.name != "notes"  # what was read, and no setting
    }
    found = {name.strip("`"): default.strip("`") for name, default, *_ in _rows("Settings")}
    assert found == expected


def test_the_defaults_are_read_as_they_are_written() -> None:
    """Who sets a variable to its default gets the default."""
    written = {name.strip("`"): default.strip("`") for name, default, *_ in _rows("Settings")}
    del written["CT_DATA_DIR"]
    plain = load_settings({})
    read = load_settings(written)
    assert [getattr(read, f.name) for f in fields(Settings)] == [getattr(plain, f.name) for f in fields(Settings)]


def test_the_table_of_commands_has_every_command() -> None:
    """As `ct-stream --help` lists them."""
    written = {name for row in _rows("Commands") for name in _CODE.findall(row[0])}
    assert {" ".join(name.split()[:2]) if name.split()[0] in _GROUPS else name.split()[0] for name in written} == set(
        _commands(main)
    )


def test_the_exit_codes_are_those_of_the_code() -> None:
    """Scripts rely on them."""
    written = re.findall(r"^- `(\d+)`", _README, re.MULTILINE)
    assert {int(code) for code in written} == {int(code) for code in Exit} | {75, 76, 77, 78, 137, 143}


def test_the_files_that_it_links_to_exist() -> None:
    """Relative links lead somewhere."""
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\(([^)#:]+)\)", _README):
        assert (root / target).exists(), target


_GROUPS = {name for name, command in main.commands.items() if isinstance(command, click.Group)}


def _commands(group: click.Group, prefix: str = "") -> list[str]:
    names = []
    for name, command in group.commands.items():
        names += _commands(command, f"{name} ") if isinstance(command, click.Group) else [prefix + name]
    return names
