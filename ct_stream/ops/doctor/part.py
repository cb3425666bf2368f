"""A part: checks that share a connection. However one part ends, the others are still looked at."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from ct_stream.ops.troubles import ServiceTrouble
from ct_stream.settings import SettingsError, variable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from ct_stream.settings import Settings

_PART_S = 40.0  #: for all checks of one part

Connection = TypeVar("Connection")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool | None  #: None: worth knowing, and no problem
    detail: str  #: what was seen
    action: str = ""  #: what to do, where something is wrong


#: Of one function: a check, one for each of several like things, or none where there is nothing to look at.
Seen: TypeAlias = Check | Sequence[Check]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Generic[Connection]):
    """Checks that share what `connect` yields, run in their order."""

    name: str  #: of the line that says why the part could not be looked at
    connect: Callable[[Settings], AbstractAsyncContextManager[Connection]]
    checks: tuple[Callable[[Connection], Awaitable[Seen]], ...]
    setting: str | None = None  #: without it there is nothing to connect to
    needed_by: str = ""  #: the commands that need the setting, where the worker does not

    async def look(self, settings: Settings) -> list[Check]:
        """Run the checks; a part that cannot be looked at is a problem of its own."""
        if self.setting is not None and getattr(settings, self.setting) is None:
            return [self._not_looked_at(variable(self.setting))]
        try:
            async with asyncio.timeout(_PART_S), self.connect(settings) as connection:
                seen = [await look(connection) for look in self.checks]
        except ServiceTrouble as error:
            action = error.problem.action or "start it, or correct the setting"
            return [Check(name=self.name, ok=False, detail=error.problem.what, action=action)]
        except SettingsError as error:
            return [
                Check(name=self.name, ok=False, detail=f"{problem.setting} {problem.what}", action=problem.action)
                for problem in error.problems
            ]
        except TimeoutError:
            detail = f"no answer within {_PART_S:g} s"
            return [Check(name=self.name, ok=False, detail=detail, action="look at its network path")]
        return [check for one in seen for check in ((one,) if isinstance(one, Check) else one)]

    def _not_looked_at(self, name: str) -> Check:
        why = f"{name} is not set"
        detail = f"{why}; needed by {self.needed_by} only" if self.needed_by else f"not looked at: {why}"
        return Check(name=self.name, ok=None, detail=detail)


def verdict(name: str, *, ok: bool, good: str, bad: str, action: str) -> Check:
    """Return a check that is either right, or a problem with something to do about it."""
    return Check(name=name, ok=True, detail=good) if ok else Check(name=name, ok=False, detail=bad, action=action)
