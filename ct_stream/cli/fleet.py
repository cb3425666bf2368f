"""Commands about the workers that run: which they are, and which limits and patterns they may have."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from ct_stream.cli.shared import command, json_option, print_json, print_table, settings
from ct_stream.ops.workers import accept_toolbox
from ct_stream.ops.workers import workers as running_workers
from ct_stream.probes.toolbox import load_toolbox


def add_to(main: click.Group) -> None:
    """Add these commands to the program."""
    for add in (_workers, _toolbox):
        add(main)


def _workers(main: click.Group) -> None:
    @command(main, "workers", examples=["ct-stream workers", "ct-stream workers --json"])
    @json_option
    def workers(as_json: bool) -> None:
        """List the workers of the last day, the running ones first.

        Says for each one its egress and the address as which servers see it, whether it is ready and why not, what its
        machine lacks, and how many partitions it reads.
        """
        rows = asyncio.run(running_workers(settings()))
        if as_json:
            print_json(rows)
            return
        print_table(
            ["worker", "version", "egress", "seen as", "state", "partitions", "in hand", "started", "last seen"],
            [
                (
                    *(row["worker"], row["version"], row["egress"], row["address"], _state(row)),
                    *(len(row["partitions"]), row["running"], row["started_at"], row["seen_at"]),
                )
                for row in rows
            ],
            empty="no worker has run within the last day",
        )


def _state(row: dict[str, object]) -> str:
    if row["ended_at"] is not None:
        return "ended"
    if not row["is_running"]:
        return "gone without a word"
    troubles, notes = row["troubles"], row["notes"]
    assert isinstance(troubles, dict)
    assert isinstance(notes, dict)
    state = "not ready: " + "; ".join(map(str, troubles.values())) if troubles else "ready"
    # How many partitions it reads has a column of its own.
    told = [str(note) for part, note in notes.items() if part != "partitions" or not row["partitions"]]
    return "; ".join([state, *told])


def _toolbox(main: click.Group) -> None:
    @main.group("toolbox")
    def toolbox() -> None:
        """Let workers start with new limits or patterns."""

    @command(
        toolbox,
        "accept",
        examples=["ct-stream toolbox accept --toolbox new.yaml --reason 'higher daily cap, see ADR 31'"],
    )
    @click.option(
        "--toolbox",
        "file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The toolbox to accept.  [default: CT_TOOLBOX]",
    )
    @click.option("--reason", required=True, help="Why the limits or patterns change. The database keeps it.")
    def accept(file: Path | None, reason: str) -> None:
        """Accept new limits or patterns.

        All workers take from the same limits, so a worker whose values differ refuses to start (78). After this command
        it starts; restart the others with the same toolbox. The database keeps your login, the values and the reason.
        """
        if not reason.strip():
            raise click.UsageError("--reason is empty; say why the limits or patterns change")
        chosen = settings()
        changes = asyncio.run(accept_toolbox(chosen, load_toolbox(file or chosen.toolbox), reason.strip()))
        click.echo("accepted; " + ("; ".join(changes) if changes else "no running worker has other values"))
