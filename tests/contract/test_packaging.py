"""What is installed is what pyproject.toml asks for, pinned and hashed; every file of the package has its own name."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

_ROOT = Path(__file__).parents[2]
_PYPROJECT: dict[str, Any] = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))
_PROJECT: dict[str, Any] = _PYPROJECT["project"]
_BUILD: list[str] = _PYPROJECT["build-system"]["requires"]
_RUNTIME: list[str] = [*_BUILD, *_PROJECT["dependencies"]]
_ALL: list[str] = [*_RUNTIME, *(line for extra in _PROJECT["optional-dependencies"].values() for line in extra)]
_PIN = re.compile(r"([a-z0-9.-]+)==([^ ;]+)( ;.+)? \\")
_HASH = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
_FILES = ("constraints.txt", "constraints-runtime.txt")


def _lines(name: str) -> list[str]:
    return (_ROOT / name).read_text("utf-8").splitlines()


def _pins(name: str) -> dict[str, str]:
    return {match[1]: match[2] for line in _lines(name) if (match := _PIN.fullmatch(line))}


@pytest.mark.parametrize(
    ("name", "required"), [("constraints.txt", _ALL), ("constraints-runtime.txt", _RUNTIME)], ids=_FILES
)
def test_every_dependency_is_pinned_to_a_version_that_it_allows(name: str, required: list[str]) -> None:
    """`make lock` was run after the last change of pyproject.toml."""
    pins = _pins(name)
    for requirement in map(Requirement, required):
        pinned = pins.get(canonicalize_name(requirement.name))
        assert pinned is not None, f"{requirement.name} is not in {name}; run `make lock`"
        assert pinned in requirement.specifier, f"{name} has {requirement.name} {pinned}; run `make lock`"


@pytest.mark.parametrize("name", _FILES)
def test_constraints_hold_pins_hashes_and_comments_only(name: str) -> None:
    """No index, no address, no path: the versions and their contents, wherever they come from."""
    for line in _lines(name):
        comment = line.lstrip().startswith("#")
        assert comment or not line or _PIN.fullmatch(line) or _HASH.fullmatch(line), line
        assert "://" not in line
        assert " /" not in line


def test_the_image_runs_what_the_tests_ran() -> None:
    """One version of each package, and nothing of the extras in the image."""
    everything, runtime = _pins("constraints.txt"), _pins("constraints-runtime.txt")
    assert {name: everything.get(name) for name in runtime} == runtime
    extras = {canonicalize_name(Requirement(line).name) for line in _ALL if line not in _RUNTIME}
    assert not extras & runtime.keys()


def test_no_two_files_of_the_package_share_a_name() -> None:
    """A traceback, a search or a conversation names a file without its folder."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted((_ROOT / "ct_stream").rglob("*")):
        if path.is_file() and path.suffix != ".pyc" and path.name not in ("__init__.py", "__main__.py"):
            places[path.name].append(str(path.relative_to(_ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
