"""What all commands share: exit codes, settings, errors in one line, tables and JSON."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import sys
import traceback
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ct_stream.local.processes import LocalError
from ct_stream.ops.troubles import ServiceTrouble, WrongInput
from ct_stream.probes.toolbox import ToolboxError
from ct_stream.settings import Settings, SettingsError, load_settings
from ct_stream.store.migrate import MigrationError
from ct_stream.stream.topology import TopologyError
from ct_stream.texts import for_json, for_log, for_terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_WIDE = 220  #: columns when the output is no terminal: a pipe must get whole lines
_MOST_FOLDED = 1.5  #: a table that is so many times wider than the terminal is not folded into it
#: A disk that is full, a file or a folder that we may not use: our own output, or what CT_DATA_DIR names.
_OF_THIS_MACHINE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.EISDIR, errno.EEXIST, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
_LONGEST = timedelta(days=36_500)  #: of a span up to now


class Exit(IntEnum):
    """The exit codes of the commands, as their help and the README name them."""

    OK = 0
    FOUND = 1  #: a problem was found, or the company fails
    HELD = 2  #: no verdict yet
    USAGE = 64  #: wrong arguments, input or settings
    UNAVAILABLE = 69  #: a service does not answer, or cannot do what was asked
    BUG = 70  #: in ct-stream
    INTERRUPTED = 130


EVERY_COMMANDS = "64 wrong arguments, input or settings, 69 a service does not answer or cannot do what was asked, \
70 a bug in ct-stream, 130 interrupted"
EXIT_CODES = f"Exit codes: 0 done, 1 a problem was found, {EVERY_COMMANDS}. `check` and `worker` have more."


class Program(click.Group):
    """The group of all commands: it turns what they raise into one line and an exit code."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run a command and exit; a command returns its exit code, or None for 0."""
        kwargs |= {"standalone_mode": False, "prog_name": "ct-stream"}
        sys.exit(self._run(*args, **kwargs))

    def _run(self, *args: Any, **kwargs: Any) -> int:
        try:
            return int(super().main(*args, **kwargs) or Exit.OK)
        except click.UsageError as error:
            error.show()
            return Exit.USAGE
        except click.ClickException as error:
            error.show()
            return Exit.USAGE
        except ToolboxError as error:
            say(f"toolbox {error}")
            return Exit.USAGE
        except (SettingsError, WrongInput) as error:
            for problem in error.problems:
                say(str(problem))
            return Exit.USAGE
        except (ServiceTrouble, MigrationError, TopologyError, LocalError) as error:
            say(str(error))
            return Exit.UNAVAILABLE
        except (click.Abort, KeyboardInterrupt, asyncio.CancelledError):
            say("interrupted")
            return Exit.INTERRUPTED
        except OSError as error:
            if error.errno not in _OF_THIS_MACHINE:
                return _bug(error)
            where = f"{error.filename}: " if error.filename else ""
            say(f"this machine does not let us go on: {where}{error.strerror or error}")
            return Exit.UNAVAILABLE
        except Exception as error:
            return _bug(error)


def _bug(error: Exception) -> Exit:
    traceback.print_exception(error)
    say(f"this is a bug in ct-stream: {type(error).__name__}: {error}")
    return Exit.BUG


class CommandWithExamples(click.Command):
    """A command whose help ends with examples and the exit codes."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), exits: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples
        self.exits = exits

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the examples and the exit codes."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
        formatter.write_paragraph()
        formatter.write_text(f"Exit codes: {self.exits}.")


def command(
    group: click.Group, name: str, *, examples: Sequence[str], found: str = "", exits: str = ""
) -> Callable[[Callable[..., Any]], CommandWithExamples]:
    """Make a function a command of `group`.

    `found` says what exit code 1 means, if the command has it; `exits` replaces the whole list of exit codes.
    """
    exits = exits or f"0 done, {f'1 {found}, ' if found else ''}{EVERY_COMMANDS}"

    def decorate(function: Callable[..., Any]) -> CommandWithExamples:
        made = click.command(name, cls=CommandWithExamples, examples=examples, exits=exits)(function)
        group.add_command(made)
        return made

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")


class Since(click.ParamType):
    """A span of time up to now: 90s, 30m, 24h or 7d."""

    name = "duration"
    _UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}  # noqa: RUF012  never changed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read the span."""
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"([1-9]\d{0,5})([smhd])", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write 30m, 24h or 7d", param, ctx)
        span = timedelta(**{self._UNITS[match[2]]: int(match[1])})
        if span > _LONGEST:
            self.fail(f"{value!r} is longer than {_LONGEST.days}d", param, ctx)
        return span


class Moment(click.ParamType):
    """A point in time, RFC 3339 with a zone."""

    name = "rfc3339"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read the moment."""
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time; write 2026-01-07T12:00:00Z", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no zone; add Z or +01:00", param, ctx)
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            self.fail(f"{value!r} is before the year 1, or after 9999, in UTC", param, ctx)


def settings() -> Settings:
    """Return the settings of the environment. Raises SettingsError."""
    # A broken connection gets one line from us; the client libraries would add many.
    for noisy in ("aiokafka", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    return load_settings(os.environ)


def say(line: str) -> None:
    """Say something to a person that is not part of the result."""
    click.echo(for_terminal(f"ct-stream: {line}"), err=True)


def console() -> Console:
    """Return where results go: whole lines unless it is a terminal."""
    out = Console(highlight=False, soft_wrap=False)
    return out if out.is_terminal else Console(highlight=False, width=_WIDE)


def print_json(value: object) -> None:
    """Print one JSON document."""
    click.echo(for_json(value, _plain, indent=True))


def print_json_line(value: object) -> None:
    """Print one line of JSON lines."""
    click.echo(for_json(value, _plain))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table, or the sentence `empty` when there are no rows."""
    rows = list(rows)
    if not rows:
        click.echo(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0, overflow="fold")
    cells = [[_cell(value) for value in row] for row in rows]
    for row in cells:
        table.add_row(*map(Text, row))
    out = console()
    if out.is_terminal:
        needs = out.measure(table, options=out.options.update_width(1_000_000))
        if needs.minimum > out.width or needs.maximum > _MOST_FOLDED * out.width:
            _print_rows_below_each_other(columns, cells)
        else:
            out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _print_rows_below_each_other(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a line for each cell, whole, so that a command in it can be copied: a table would cut words."""
    wide = max(map(len, columns))
    for number, row in enumerate(rows):
        if number:
            click.echo()
        for column, cell in zip(columns, row, strict=True):
            click.echo(f"{column:{wide}}  {cell}".rstrip())


def moment_text(moment: datetime | None) -> str:
    """Return a moment as tables show it, UTC to the second."""
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _cell(value: object) -> str:
    """Return a cell as one line: a line break in it could look like another row."""
    return for_log(moment_text(value) if isinstance(value, datetime) else str("" if value is None else value))


def _plain(value: object) -> object:
    match value:
        case Decimal():
            return float(value)
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case timedelta():
            return value.total_seconds()
        case UUID() | Path():  # asyncpg's UUID is a class of its own, which orjson does not take
            return str(value)
    raise TypeError(f"a result holds {type(value).__name__}, which JSON does not know")
