"""List the commands: one import for each file of them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import click

from ct_stream.cli import asking, demo, kafka, local, replies, reports, rules, running, verifying
from ct_stream.cli.shared import EXIT_CODES, Program


def _version() -> str:
    try:
        return version("ct-stream")
    except PackageNotFoundError:  # run from a source tree
        return "unreleased"


@click.group(cls=Program, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="ct-stream")
def main() -> None:
    """Decide once, and for good, whether a company can be reached by mail: the Company Target gate.

    Settings come from the environment (CT_...); the README lists them. The demo needs none and shows everything.
    """


for module in (demo, local, running, kafka, asking, replies, reports, rules, verifying):
    module.add_to(main)
