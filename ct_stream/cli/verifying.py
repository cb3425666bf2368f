"""The command that checks from outside that every company is accounted for."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ct_stream.cancelling import until_a_signal
from ct_stream.cli.shared import Exit, Since, command, json_option, print_json, settings
from ct_stream.texts import for_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import timedelta

    from ct_stream.ops.verify import Found, Kind, Report


_CLOSES_S = 10.0  #: its connections are closed in order within it, if the servers answer


def add_to(main: click.Group) -> None:
    """Add this command to the program."""

    @command(
        main,
        "verify",
        examples=["ct-stream verify", "ct-stream verify --older-than 6h --json | jq '.violations[].kind'"],
        found="a promise is broken",
    )
    @click.option(
        "--older-than",
        type=Since(),
        default="1h",
        show_default=True,
        help="Only spine rows and events older than this must have an outcome, wait, or be stuck.",
    )
    @click.option(
        "--waiting-than",
        type=Since(),
        default="24h",
        show_default=True,
        help="List companies that have waited longer than this, in a note.",
    )
    @click.option(
        "--grace",
        type=Since(),
        default="10s",
        show_default=True,
        help="Compare again, after this time, what does not agree.",
    )
    @click.option(
        "--examples",
        type=click.IntRange(1, 1000),
        default=5,
        show_default=True,
        help="How many examples of each kind to show.",
    )
    @json_option
    def verify(older_than: timedelta, waiting_than: timedelta, grace: timedelta, examples: int, as_json: bool) -> int:
        """Check that every company is accounted for, once.

        Compares spine, topics, ledger and tables. Reads everything and changes nothing, whether workers run or not. It
        sorts in a temporary folder (TMPDIR), about 100 bytes a record, and removes it at the end. A
        `note` breaks no promise.
        """
        from ct_stream.ops.verify import Limits
        from ct_stream.ops.verify import verify as compare

        limits = Limits(older_than=older_than, waiting_than=waiting_than, grace=grace, examples=examples)
        chosen = settings()

        with _progress() as on_progress:  # whatever ends it: the temporary folder must go
            report = asyncio.run(until_a_signal(compare(chosen, limits, on_progress), tidies_s=_CLOSES_S))
        if as_json:
            print_json(report.told())
        else:
            for line in _lines(report):
                click.echo(for_log(line))
        return Exit.FOUND if report.violations else Exit.OK


@contextmanager
def _progress() -> Iterator[Callable[[str, int], None]]:
    """Show how far it is, on a terminal only."""
    err = Console(stderr=True)
    if not err.is_terminal:
        yield lambda _what, _count: None
        return
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} {task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task("records")
        yield lambda what, count: progress.update(task, description=what, completed=count)


def _lines(report: Report) -> Iterator[str]:
    for kind, found in report.violations.items():
        yield from _kind_lines("BROKEN", kind, found, report)
    for kind, found in report.notes.items():
        yield from _kind_lines("note", kind, found, report)
    for what in report.not_told:
        yield f"not told: {report.names.named(what)}"
    compared = ", ".join(
        f"{count} {'of ' if '.' in what else ''}{report.names.named(what)}" for what, count in report.checked.items()
    )
    yield f"compared in {report.seconds:.1f} s: {compared}"
    if report.violations:
        yield f"{sum(found.count for found in report.violations.values())} violations of {len(report.violations)} kinds"
    else:
        yield "all agree"


def _kind_lines(word: str, kind: Kind, found: Found, report: Report) -> Iterator[str]:
    meaning = report.meaning(kind)
    invariant = "" if meaning.invariant is None else f" (promise {meaning.invariant})"
    yield f"{word}: {found.count} {meaning.sentence}{invariant}"
    for example in found.examples:
        told = report.example(example)
        place = f"{told['topic']} partition {told['partition']} offset {told['offset']}" if "topic" in told else ""
        yield "  " + "  ".join(part for part in (told.get("outreach_id", ""), place, told["detail"]) if part)
    hidden = found.count - sum(example.count for example in found.examples)
    if hidden > 0:
        yield f"  and {hidden} more"
    yield f"  what to do: {meaning.todo}"
