"""Which commands are there? One import for each file of them."""

from __future__ import annotations

import click

from ct_stream.cli import asking, classifying, demo_command, kafka, local, recomputing, reporting, running, verifying
from ct_stream.cli.shared import EXIT_CODES, Program
from ct_stream.process.identity import our_version


@click.group(cls=Program, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(our_version(), prog_name="ct-stream")
def main() -> None:
    """The Company Target gate: decides once, and for good, whether a company can be reached by mail.

    Settings come from the environment (CT_...); the README lists them. `ct-stream demo` shows everything without any.
    """


for module in (demo_command, local, running, kafka, asking, classifying, reporting, recomputing, verifying):
    module.add_to(main)
