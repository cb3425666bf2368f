"""The SQL files of this version, and what they make."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from importlib.resources.abc import Traversable

_FUNCTION = r"^CREATE (?:OR REPLACE )?FUNCTION outreach\.(\w+)"
_SHARED = ("company_target", "company_target_errors")  #: may have been there before, and belong to whoever made them
OF_READER = ("ct_left_the_spine",)  #: functions of ct_reader; all others are ct_owner's
BASELINE = "0000_baseline"  #: the name under which schema.sql is noted, before any file of migrations/


@dataclass(frozen=True, slots=True, kw_only=True)
class SqlFiles:
    """The SQL of one version. Files run in the order of their names."""

    adopt: str
    schema: str
    migrations: Mapping[str, str]  #: by name
    functions: Mapping[str, str]  #: by name
    triggers: str
    grants: str

    @property
    def latest_migration(self) -> str:
        """Return the name of the newest migration."""
        return max((BASELINE, *self.migrations))

    @property
    def made(self) -> tuple[str, ...]:
        """Return the names of the tables and views that schema.sql makes for the gate alone."""
        named = re.findall(r"^CREATE (?:TABLE|VIEW) (?:IF NOT EXISTS )?outreach\.(\w+)", self.schema, re.MULTILINE)
        return tuple(name for name in named if name not in _SHARED)

    @property
    def made_functions(self) -> tuple[str, ...]:
        """Return the names of the functions that functions/ makes."""
        return tuple(re.findall(_FUNCTION, "\n".join(self.functions.values()), re.MULTILINE))

    @property
    def functions_checksum(self) -> str:
        """Return a checksum that differs between versions of functions, triggers and grants."""
        return checksum("\n".join((*self.functions.values(), self.triggers, self.grants)))


@cache
def sql_files() -> SqlFiles:
    """Return this version's files."""
    folder = files("ct_stream.store")
    return SqlFiles(
        adopt=folder.joinpath("adopt.sql").read_text("utf-8"),
        schema=folder.joinpath("schema.sql").read_text("utf-8"),
        migrations=_read_all(folder.joinpath("migrations")),
        functions=_read_all(folder.joinpath("functions")),
        triggers=folder.joinpath("triggers.sql").read_text("utf-8"),
        grants=folder.joinpath("grants.sql").read_text("utf-8"),
    )


def _read_all(folder: Traversable) -> dict[str, str]:
    if not folder.is_dir():
        return {}  # a wheel has no empty folder
    entries: Iterable[Traversable] = sorted(folder.iterdir(), key=lambda entry: entry.name)
    return {entry.name: entry.read_text("utf-8") for entry in entries if entry.name.endswith(".sql")}


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
