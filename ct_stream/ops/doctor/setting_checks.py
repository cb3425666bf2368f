"""Which settings are wrong or missing? The others are used all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ct_stream.ops.doctor.part import Check
from ct_stream.probes.toolbox import ToolboxError, load_toolbox
from ct_stream.settings import SettingsError, load_settings, variable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ct_stream.settings import Settings, WrongSetting

_NEEDED = ("kafka_bootstrap", "postgres_dsn", "smtp_helo", "smtp_mail_from")
#: The choice that makes other settings necessary, by the names of these: it is dropped with a wrong one of them.
_CHOICES = {
    "CT_KAFKA_SASL": "CT_KAFKA_SECURITY_PROTOCOL",
    "CT_KAFKA_SSL": "CT_KAFKA_SECURITY_PROTOCOL",
    "CT_TIER2": "CT_TIER2_PROVIDER",
}


def read_settings(environ: Mapping[str, str]) -> tuple[Settings, list[Check]]:
    """Return the settings that can be used, and the checks of all settings and of the toolbox."""
    settings, wrong = _usable(environ)
    notes = [Check(name="settings", ok=None, detail=note) for note in settings.notes]
    return settings, [*map(_check_of, wrong.values()), *_needed(settings, wrong), *notes, _toolbox(settings)]


def _usable(environ: Mapping[str, str]) -> tuple[Settings, dict[str, WrongSetting]]:
    """Return the settings without the wrong ones, and what is wrong with these, by name."""
    usable = dict(environ)
    wrong: dict[str, WrongSetting] = {}
    while True:
        try:
            return load_settings(usable), wrong
        except SettingsError as error:
            for problem in error.problems:
                wrong.setdefault(problem.setting, problem)
                choices = [choice for begin, choice in _CHOICES.items() if problem.setting.startswith(begin)]
                for name in (problem.setting, *choices):
                    usable.pop(name, None)
                    usable.pop(f"{name}_FILE", None)


def _needed(settings: Settings, wrong: Mapping[str, WrongSetting]) -> list[Check]:
    """Return a check of each setting that a worker needs; one that is wrong has its line already."""
    try:
        settings.require(*_NEEDED)
        missing = {}
    except SettingsError as error:
        missing = {problem.setting: problem for problem in error.problems}
    return [
        _check_of(missing[name]) if name in missing else Check(name=name, ok=True, detail="is set")
        for name in map(variable, _NEEDED)
        if name not in wrong
    ]


def _toolbox(settings: Settings) -> Check:
    try:
        load_toolbox(settings.toolbox)
    except ToolboxError as error:
        action = error.problem.action or "correct the file"
        return Check(name="CT_TOOLBOX", ok=False, detail=error.problem.what, action=action)
    return Check(name="toolbox", ok=True, detail=f"read from {settings.toolbox or 'the package'}")


def _check_of(problem: WrongSetting) -> Check:
    return Check(name=problem.setting, ok=False, detail=problem.what, action=problem.action)
