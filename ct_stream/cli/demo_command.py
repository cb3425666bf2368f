"""The command that runs the whole gate on this machine."""

from __future__ import annotations

import asyncio

import click

from ct_stream.cancelling import until_a_signal
from ct_stream.cli.shared import command

_STOPS_S = 30.0  #: the stack stops in order within it, its broker and its database too


def add_to(main: click.Group) -> None:
    """Add this command to the program."""

    @command(
        main,
        "demo",
        examples=["ct-stream demo", "ct-stream demo --keep", "ct-stream demo --companies 1000"],
        found="a company was not decided as planned",
    )
    @click.option(
        "--companies", type=click.IntRange(1, 20_000), default=300, show_default=True, help="How many companies to run."
    )
    @click.option(
        "--keep",
        is_flag=True,
        help="Keep everything running until Ctrl-C.",
    )
    def demo(companies: int, keep: bool) -> int:
        """Run the whole gate here, with companies of every kind.

        Starts a broker, a Postgres, mail servers and a worker. Needs no settings and no network: everything is on
        loopback, in a temporary directory. Then it compares each outcome with the planned one.
        """
        # Imported here: a gate at work is installed without the embedded stack.
        from ct_stream.cli.demo_screen import show_demo
        from ct_stream.local.demo_companies import LEAST

        if companies < LEAST:
            raise click.UsageError(f"--companies {companies} leaves kinds of companies out; give {LEAST} or more")
        return asyncio.run(until_a_signal(show_demo(companies, keep=keep), tidies_s=_STOPS_S))
