"""Commands that ask the world about one domain, without an event."""

from __future__ import annotations

import click  # noqa: TC002


def add_to(main: click.Group) -> None:
    """Add these commands to the program."""
