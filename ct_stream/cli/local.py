"""Commands for the embedded stack in the background."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ct_stream.cli.shared import Exit, command, json_option, print_json, settings
from ct_stream.local import stack
from ct_stream.local.processes import LocalError, in_a_shell

if TYPE_CHECKING:
    from pathlib import Path


def add_to(main: click.Group) -> None:
    """Add these commands to the program."""

    @main.group("local")
    def local() -> None:
        """Run a broker and a Postgres here, to try things out."""

    for add in (_up, _down, _status, _env):
        add(local)


def _data_dir() -> Path:
    return settings().data_dir.expanduser().absolute()


def _up(local: click.Group) -> None:
    @command(local, "up", examples=["ct-stream local up", 'ct-stream local up && eval "$(ct-stream local env)"'])
    @json_option
    def up(as_json: bool) -> None:
        """Start a broker and a Postgres in the background.

        Returns when both are ready, with tables and topics. The broker keeps its records in memory until `local down`.
        Postgres keeps its data in CT_DATA_DIR.
        """
        state, started = stack.up(_data_dir())
        if as_json:
            print_json({"started": started, "pid": state.pid, "bootstrap": state.bootstrap, "data_dir": state.data_dir})
            return
        click.echo(
            f"{'started' if started else 'it runs already'}: broker on {state.bootstrap}, data in {state.data_dir}"
        )
        click.echo(f'point a shell at it: eval "$({in_a_shell()} local env)"')


def _down(local: click.Group) -> None:
    @command(local, "down", examples=["ct-stream local down"])
    def down() -> None:
        """Stop the broker and Postgres.

        The broker loses its records; Postgres keeps its data.
        """
        click.echo("stopped" if stack.down(_data_dir()) else "nothing runs")


def _status(local: click.Group) -> None:
    @command(
        local,
        "status",
        examples=["ct-stream local status", "ct-stream local status --json"],
        found="they do not run",
    )
    @json_option
    def status(as_json: bool) -> int:
        """Say whether the broker and Postgres run."""
        data_dir = _data_dir()
        state, pid = stack.running(data_dir), stack.supervisor_pid(data_dir)
        if as_json:
            print_json(
                {
                    "running": state is not None,
                    "pid": pid,
                    "bootstrap": state.bootstrap if state else None,
                    "data_dir": str(data_dir),
                }
            )
        elif state is not None:
            click.echo(f"it runs: process {pid}, broker on {state.bootstrap}, data in {data_dir}")
        else:
            click.echo("nothing runs" if pid is None else f"process {pid} is starting or stopping")
        return Exit.OK if state is not None else Exit.FOUND


def _env(local: click.Group) -> None:
    @command(local, "env", examples=['eval "$(ct-stream local env)"', "ct-stream local env > local.env"])
    @json_option
    def env(as_json: bool) -> None:
        """Print `export` lines for both.

        The lines hold the passwords of three database logins.
        """
        state = stack.running(_data_dir())
        if state is None:
            raise LocalError("the local stack does not run; start it with `ct-stream local up`")
        if as_json:
            print_json(state.env())
        else:
            click.echo(stack.export_lines(state.env()))
