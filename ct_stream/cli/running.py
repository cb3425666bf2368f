"""Commands that prepare, run and check a gate."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import click

from ct_stream.cli.shared import Exit, command, json_option, print_json, settings
from ct_stream.ops.troubles import postgres_answers
from ct_stream.store.migrate import migrate as migrate_database
from ct_stream.texts import for_log

if TYPE_CHECKING:
    from ct_stream.ops.doctor import Check


def add_to(main: click.Group) -> None:
    """Add these commands to the program."""
    for add in (_migrate, _worker, _doctor):
        add(main)


def _migrate(main: click.Group) -> None:
    @command(main, "migrate", examples=["CT_POSTGRES_ADMIN_DSN=postgresql://... ct-stream migrate"])
    @click.option(
        "--again",
        is_flag=True,
        help="Put this version's functions back after an older version was migrated by accident.",
    )
    @json_option
    def migrate(again: bool, as_json: bool) -> None:
        """Bring the database up to date: tables, roles and grants.

        Adopts companies that were decided before ct-stream came. Needs CT_POSTGRES_ADMIN_DSN. Never creates or changes
        the spine, outreach.outreach: it belongs to upstream.
        """
        chosen = settings()
        chosen.require("postgres_admin_dsn")
        assert chosen.postgres_admin_dsn is not None
        with postgres_answers("CT_POSTGRES_ADMIN_DSN"):
            report = asyncio.run(migrate_database(chosen.postgres_admin_dsn, again=again))
        if as_json:
            print_json(report)
            return
        click.echo("applied: " + (", ".join(report.applied) or "nothing, the database is up to date"))
        click.echo(f"adopted: {report.adopted} companies that were decided before")
        click.echo(f"pending: {report.pending} companies of company_target wait for the gate")
        if report.foreign:
            click.echo(
                f"foreign: {report.foreign} rows of company_target were made final by something else since the gate "
                "came; they are not adopted, and `ct-stream verify` names them"
            )
        if report.errors_bound_by is not None:
            click.echo(
                "errors:  a company that is not in the spine (CT-I-NOT-FOUND) gets no row in company_target_errors, "
                "because of its foreign key; `ct-stream failures` and ct.fail have it. To have the row too: "
                f"ALTER TABLE outreach.company_target_errors DROP CONSTRAINT {report.errors_bound_by}"
            )
        if report.longest_method is not None:
            click.echo(
                f"length:  email_method takes {report.longest_method} characters; a company with a longer one "
                "waits (row_held). To have room: ALTER TABLE outreach.company_target ALTER COLUMN email_method "
                "TYPE text"
            )
        if report.spine_found:
            click.echo("spine:   outreach.outreach is there")
        else:
            click.echo("spine:   outreach.outreach is missing; run migrate again when upstream has made it (grants)")
        click.echo(f"record:  {report.rehearsal}")
        if report.temp_revoked:
            click.echo("temp:    revoked from PUBLIC in this database; GRANT TEMPORARY to each role that needs it")
        elif report.temp_open:
            click.echo("temp:    open to PUBLIC; have the owner REVOKE TEMPORARY ON DATABASE ... FROM PUBLIC")


def _worker(main: click.Group) -> None:
    @command(
        main,
        "worker",
        examples=["ct-stream worker", "ct-stream worker --first-start"],
        exits="0 told to stop, 64 wrong arguments, input or settings, 70 a bug in ct-stream, 75 Kafka went away "
        "before it could read, 76 it hung, 77 the stream "
        "skipped records, 78 it refused to start, or spine.created was given partitions, 130 interrupted before it "
        "began, 143 stopped at once by a second signal",
    )
    @click.option(
        "--first-start",
        is_flag=True,
        help="Start although outcomes exist and Kafka knows no offsets of the group: spine.created is read from its "
        "beginning. Where it knows them, this changes nothing. No company is decided twice.",
    )
    def worker(first_start: bool) -> int:
        """Decide companies until told to stop.

        SIGTERM drains the worker; a second one stops it at once. Serves /livez, /readyz and /metrics on
        CT_WEB_HOST:CT_WEB_PORT. The log says why it ended, and the runbook says what to do about each exit code.
        """
        from ct_stream.process.logs import set_up_logs
        from ct_stream.wiring.worker import run_worker

        chosen = settings()
        set_up_logs(json=chosen.log == "json")
        return run_worker(chosen, first_start=first_start)


def _doctor(main: click.Group) -> None:
    @command(
        main,
        "doctor",
        examples=["ct-stream doctor", "ct-stream doctor --json | jq '.[] | select(.ok == false)'"],
        found="a problem was found",
    )
    @json_option
    def doctor(as_json: bool) -> int:
        """Say what is missing before you can run for real.

        Checks settings, Kafka, Postgres, DNS, port 25 and HELO: everything it can reach, even if other checks fail.
        """
        from ct_stream.ops.doctor import examine

        checks = asyncio.run(examine(os.environ))
        if as_json:
            print_json(checks)
        else:
            for check in checks:
                click.echo(_line(check))
        return Exit.OK if all(check.ok is not False for check in checks) else Exit.FOUND


def _line(check: Check) -> str:
    word = {True: "ok     ", False: "problem", None: "note   "}[check.ok]
    line = for_log(f"{word}  {check.name}: {check.detail}")
    return f"{line}\n         what to do: {for_log(check.action)}" if check.action else line
