"""The command that asks the world about one domain, without an event."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from ct_stream.cli.shared import EVERY_COMMANDS, Exit, command, json_option, print_json, say, settings
from ct_stream.ops.story import exchange_lines
from ct_stream.texts import for_log

if TYPE_CHECKING:
    from ct_stream.ops.check import Checked

_EXITS = {"PASS": Exit.OK, "FAIL": Exit.FOUND, "HELD": Exit.HELD}


def add_to(main: click.Group) -> None:
    """Add this command to the program."""

    @command(
        main,
        "check",
        examples=["ct-stream check example.com", "ct-stream check example.com --json | jq .email_method"],
        exits=f"0 PASS, 1 FAIL, 2 HELD (no verdict now), {EVERY_COMMANDS}",
    )
    @click.argument("domain")
    @json_option
    def check(domain: str, as_json: bool) -> int:
        """Ask about DOMAIN as a worker would, and record nothing.

        Asks DNS and the domain's mail servers, never the paid vendor. Needs CT_SMTP_HELO and CT_SMTP_MAIL_FROM. With
        CT_POSTGRES_DSN it counts against the limits that all workers share, and asks nothing that is halted. Without
        CT_POSTGRES_DSN it counts nothing, knows of no halt, and only pauses between two sessions.

        HELD means: a limit, a halt or a problem on our side prevents a verdict now. In a worker the company would wait.
        """
        from ct_stream.ops import check as checking
        from ct_stream.probes.probing import make_probing
        from ct_stream.probes.toolbox import load_toolbox

        chosen = settings()
        chosen.require("smtp_helo", "smtp_mail_from")
        if chosen.postgres_dsn is None:
            say("CT_POSTGRES_DSN is not set: this counts against no limit, and does not know what is halted")
        if chosen.tier2_provider != "none":
            say(
                f"Tier-2 ({chosen.tier2_provider}) is not asked: check never pays; a worker asks it before an SMTP-FAIL"
            )
        toolbox = load_toolbox(chosen.toolbox)
        checked = asyncio.run(checking.check(chosen, toolbox, make_probing(chosen), domain))
        if as_json:
            print_json(checked)
        else:
            for line in _lines(checked):
                click.echo(for_log(line))
        return _EXITS[checked.outcome]


def _lines(checked: Checked) -> list[str]:
    lines = [f"  {line}" for line in exchange_lines(checked.transcript)]
    word = " ".join(part for part in (checked.outcome, checked.failure_code, checked.held_by) if part)
    if checked.outcome == "PASS":
        catchall = ", catch-all" if checked.is_catchall else ""
        word += f" {checked.email_method} ({checked.method_type}, {checked.confidence_score:g}{catchall})"
    lines.append(f"{checked.domain}: {word}")
    if checked.reason:
        lines.append(f"reason: {checked.reason}")
    return lines
