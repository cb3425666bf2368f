"""The command that reads SMTP replies from a file."""

from __future__ import annotations

from typing import IO

import click

from ct_stream.cli.shared import Exit, command, json_option, print_json, print_table, safe
from ct_stream.ops.classify import LABELS, Classified, Score, classify, score


def add_to(main: click.Group) -> None:
    """Add this command to the program."""

    @command(
        main,
        "classify",
        examples=["ct-stream classify replies.tsv --explain", "ct-stream classify labelled.tsv --score"],
    )
    @click.argument("file", type=click.File(encoding="utf-8", errors="backslashreplace"))
    @click.option("--explain", is_flag=True, help="Say why each rule reads so, and where it comes from.")
    @click.option("--score", "scored", is_flag=True, help="Compare with the columns gate_meaning and alt_gate.")
    @json_option
    def classify_(file: IO[str], explain: bool, scored: bool, as_json: bool) -> int:
        """Read SMTP replies as the gate reads them: FILE is tab-separated, with stage, code, enhanced and text.

        Prints the rows with two columns more, meaning (accept, reject, inconclusive, halt) and rule. Nothing is asked
        of the world, and nothing is recorded. With --score exits 1 when a reply is read as a reject that is none.
        """
        classified = classify(file.read(), file.name)
        if scored:
            result = score(classified, file.name)
            if as_json:
                print_json(_score_json(result))
            else:
                _print_score(result, explain=explain)
            return Exit.FOUND if result.wrong_rejects else Exit.OK
        if as_json:
            print_json([_row(reading, explain=explain) for reading in classified])
            return Exit.OK
        for number, reading in enumerate(classified):
            row = _row(reading, explain=explain)
            if number == 0:
                click.echo("\t".join(row))
            click.echo("\t".join(safe(cell.replace("\n", "\\n")) for cell in row.values()))
        return Exit.OK


def _row(reading: Classified, *, explain: bool) -> dict[str, str]:
    row = {**reading.row, "meaning": reading.meaning, "rule": reading.rule.name}
    if explain:
        row |= {"rule_why": reading.rule.why, "rule_source": reading.rule.source}
    return row


def _print_score(result: Score, *, explain: bool) -> None:
    for reading in result.misread:
        row = reading.row
        wanted = " or ".join(word for word in (row.get("gate_meaning"), row.get("alt_gate")) if word)
        said = f"{row['stage']} {row['code']} {row['enhanced']} {row['text']}"
        click.echo(safe(f"read as {reading.meaning} by {reading.rule.name}, labelled {wanted}: {said}"))
        if explain:
            click.echo(safe(f"  {reading.rule.why} ({reading.rule.source})"))
    rows = [(label, *(result.confusion[label][read] for read in LABELS)) for label in LABELS]
    print_table(["label", *(f"read {read}" for read in LABELS)], rows, empty="no replies")
    share = f"{result.right / result.rows:.1%}" if result.rows else "none"
    click.echo(
        f"{result.rows} replies: {result.exact} exact, {result.right} exact or alternative ({share}), "
        f"{result.wrong_rejects} wrong rejects, {result.halts_seen} of {result.halts} halts seen"
    )


def _score_json(result: Score) -> dict[str, object]:
    return {
        "rows": result.rows,
        "exact": result.exact,
        "exact_or_alternative": result.right,
        "wrong_rejects": result.wrong_rejects,
        "halts": result.halts,
        "halts_seen": result.halts_seen,
        "confusion": result.confusion,
        "misread": [_row(reading, explain=True) for reading in result.misread],
    }
