"""The command that tries other rules on recorded outcomes."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ct_stream.cli.shared import Since, command, json_option, print_json, print_table, settings
from ct_stream.ops.whatif import WhatIf, whatif
from ct_stream.probes.toolbox import load_toolbox

if TYPE_CHECKING:
    from datetime import timedelta


def add_to(main: click.Group) -> None:
    """Add this command to the program."""

    @command(
        main,
        "whatif",
        examples=["ct-stream whatif --toolbox more-patterns.yaml --since 7d", "ct-stream whatif --json"],
    )
    @click.option(
        "--toolbox",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The toolbox to try, with other `patterns` or another `probe_name`.  [default: CT_TOOLBOX]",
    )
    @click.option("--since", type=Since(), default="7d", show_default=True, help="How far back: 24h, 7d.")
    @click.option(
        "--limit",
        type=click.IntRange(0, 100_000),
        default=20,
        show_default=True,
        help="List at most this many of the companies that would change.",
    )
    @json_option
    def whatif_(toolbox: Path | None, since: timedelta, limit: int, as_json: bool) -> None:
        """Recompute recorded outcomes under other rules.

        Counts how many would change, and in which way. Reads the transcripts of the gate's own outcomes and applies
        this version's rules with the toolbox's patterns. Asks no server and changes nothing. It cannot tell the outcome
        where the other rules need a mailbox that was never asked for. Outcomes are final: new rules only affect
        companies that come later.
        """
        known = settings()
        result = asyncio.run(whatif(known, load_toolbox(toolbox or known.toolbox).rules(), since=since, limit=limit))
        if as_json:
            print_json(_json(result))
        else:
            _print(result)


def _print(result: WhatIf) -> None:
    kinds = result.kinds
    click.echo(
        f"{result.outcomes} outcomes, recomputed under rules {result.rules_version}: {kinds['same']} the same, "
        f"{kinds['changed']} changed, {kinds['cannot tell']} unknown (a mailbox was never asked for), "
        f"{kinds['unreadable']} unreadable"
    )
    click.echo(
        "decided under rules " + (", ".join(f"{v} ({n})" for v, n in sorted(result.decided_by.items())) or "none")
    )
    moves = sorted(result.moves.items(), key=lambda move: (move[0][0], -move[1], move[0]))
    if moves:
        click.echo()
        print_table(
            ["", "was", "would be", "companies"],
            [(kind, was, would_be, companies) for (kind, was, would_be), companies in moves],
            empty="",
        )
    if result.companies:
        click.echo()
        print_table(
            ["outreach_id", "domain", "was", "would be"],
            [(c.outreach_id, c.domain, c.was, c.would_be) for c in result.companies],
            empty="",
        )


def _json(result: WhatIf) -> dict[str, object]:
    return {
        "rules_version": result.rules_version,
        "outcomes": result.outcomes,
        "decided_by": dict(result.decided_by),
        **{kind.replace(" ", "_"): result.kinds[kind] for kind in ("same", "changed", "cannot tell", "unreadable")},
        "moves": [
            {"kind": kind, "was": was, "would_be": would_be, "companies": companies}
            for (kind, was, would_be), companies in result.moves.items()
        ],
        "companies": [asdict(company) for company in result.companies],
    }
