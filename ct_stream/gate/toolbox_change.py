"""Says in which values two toolboxes differ: limits, patterns and the probe name, whatever file they are from."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Values: TypeAlias = "Mapping[str, object]"  #: a toolbox as JSON has it


def differences(ours: Values, theirs: Values) -> list[str]:
    """Return a line for each value that differs: `smtp.per_day: 20000, not 10000` (ours, theirs)."""
    mine, others = dict(_flat(ours)), dict(_flat(theirs))
    return [
        f"{key}: {_said(mine.get(key))}, not {_said(others.get(key))}"
        for key in sorted(mine.keys() | others.keys())
        if mine.get(key) != others.get(key)
    ]


def _flat(values: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(values, dict):
        for name, value in values.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values, 1):
            yield from _flat(value, f"{key}.{number}")
    else:
        yield key, values


def _said(value: object) -> str:
    return "nothing" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
