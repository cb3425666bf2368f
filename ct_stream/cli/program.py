"""List the commands: one import for each file of them."""

from __future__ import annotations

import click

from ct_stream.cli import (
    asking,
    classifying,
    demo_command,
    fleet,
    kafka,
    local,
    recomputing,
    reporting,
    running,
    verifying,
)
from ct_stream.cli.shared import EXIT_CODES, Program
from ct_stream.process.identity import our_version


@click.group(cls=Program, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(our_version(), prog_name="ct-stream")
def main() -> None:
    """Decide once, and for good, whether a company can be reached by mail: the Company Target gate.

    Settings come from the environment (CT_...); the README lists them. The demo needs none and shows everything.
    """


for module in (demo_command, local, running, kafka, asking, classifying, reporting, fleet, recomputing, verifying):
    module.add_to(main)
