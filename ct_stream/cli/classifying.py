"""The command that reads SMTP replies from a file."""

from __future__ import annotations

from typing import IO

import click

from ct_stream.cli.shared import Exit, command, json_option, print_json
from ct_stream.ops.classify import classify
from ct_stream.texts import for_log


def add_to(main: click.Group) -> None:
    """Add this command to the program."""

    @command(main, "classify", examples=["ct-stream classify replies.tsv --explain"])
    @click.argument("file", type=click.File(encoding="utf-8", errors="backslashreplace"))
    @click.option("--explain", is_flag=True, help="Say why each rule reads a reply this way, and its source.")
    @json_option
    def classify_(file: IO[str], explain: bool, as_json: bool) -> int:
        """Read SMTP replies from a file as the gate reads them.

        FILE is tab-separated. Its first line names the columns: stage, code, enhanced and text. Prints the rows with
        two more columns, meaning (accept, reject, inconclusive or halt) and rule. Asks nobody and records nothing.
        """
        rows = [reading.columns(explain=explain) for reading in classify(file.read(), file.name)]
        if as_json:
            print_json(rows)
            return Exit.OK
        for number, row in enumerate(rows):
            if number == 0:
                click.echo("\t".join(row))
            click.echo("\t".join(for_log(cell) for cell in row.values()))
        return Exit.OK
