"""Commands that read what the gate has recorded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from ct_stream.cli.shared import Exit, Since, command, json_option, print_json, print_table, settings
from ct_stream.gate.egress import DEFAULT
from ct_stream.gate.failures import FailureCode
from ct_stream.gate.waits import WaitReason
from ct_stream.ops import reports
from ct_stream.ops.story import story, story_lines
from ct_stream.texts import for_log

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta
    from uuid import UUID

#: Those that fail a company. ALREADY_PROCESSED is counted and logged, never written.
_CODES = [code.value for code in FailureCode if code is not FailureCode.ALREADY_PROCESSED]


def add_to(main: click.Group) -> None:
    """Add these commands to the program."""
    for add in (_show, _held, _failures, _distribution, _pass_rate, _guardrails):
        add(main)


def _since(default: str) -> Callable[[Callable[..., object]], Callable[..., object]]:
    return click.option("--since", type=Since(), default=default, show_default=True, help="How far back: 30m, 24h, 7d.")


def _limit(default: int) -> Callable[[Callable[..., object]], Callable[..., object]]:
    return click.option(
        "--limit",
        type=click.IntRange(1, 100_000),
        default=default,
        show_default=True,
        help="Show at most this many rows.",
    )


def _show(main: click.Group) -> None:
    @command(
        main,
        "show",
        examples=[
            "ct-stream show 4b0c2f5e-6a0b-4f57-9d4e-0f6f3b0c7a11",
            "ct-stream show 4b0c2f5e-6a0b-4f57-9d4e-0f6f3b0c7a11 --json | jq .outcome.failure_code",
        ],
        found="nothing is known about the company",
    )
    @click.argument("outreach_id", type=click.UUID)
    @json_option
    def show(outreach_id: UUID, as_json: bool) -> int:
        """Show the story of one company.

        Shows its event, each question with its answer, its outcome and its rows.
        """
        told = asyncio.run(story(settings(), outreach_id))
        if as_json:
            print_json(told)
        else:
            for line in story_lines(told):
                click.echo(for_log(line))
        return Exit.FOUND if told["state"] == "unknown" else Exit.OK


def _held(main: click.Group) -> None:
    @command(main, "held", examples=["ct-stream held", "ct-stream held --reason provider_closed --json"])
    @click.option(
        "--reason",
        type=click.Choice([reason.value for reason in WaitReason]),
        metavar="REASON",
        help="Show only companies that wait for this reason, such as daily_cap. A wrong one is answered with the list.",
    )
    @_limit(50)
    @json_option
    def held(reason: str | None, limit: int, as_json: bool) -> None:
        """List the companies that wait or are stuck, and why.

        Says since when each one waits, and what ends the wait.
        """
        groups, companies = asyncio.run(reports.held(settings(), reason=reason, limit=limit))
        if as_json:
            print_json({"by_reason": groups, "companies": companies})
            return
        print_table(
            ["reason", "state", "companies", "oldest"],
            [(g["reason"], g["state"], g["companies"], g["oldest"]) for g in groups],
            empty="no company waits or is stuck",
        )
        if companies:
            click.echo()
            print_table(
                ["outreach_id", "domain", "since", "reason", "why", "what ends it"],
                [
                    (c["outreach_id"], c["domain"], c["since"], c["reason"], c["detail"], c["what_ends_it"])
                    for c in companies
                ],
                empty="",
            )


def _failures(main: click.Group) -> None:
    @command(
        main,
        "failures",
        examples=["ct-stream failures", "ct-stream failures --since 7d --code CT-M-NO-MX --limit 1000 --json"],
    )
    @_since("24h")
    @click.option("--code", type=click.Choice(_CODES), metavar="CODE", help="Show only this code, such as CT-M-NO-MX.")
    @_limit(100)
    @json_option
    def failures(since: timedelta, code: str | None, limit: int, as_json: bool) -> None:
        """List recent failures, newest first.

        Says what each one means, what to do, and whom to tell.
        """
        rows = asyncio.run(reports.failures(settings(), since=since, code=code, limit=limit))
        if as_json:
            print_json(rows)
            return
        print_table(
            ["outreach_id", "code", "at", "why", "meaning", "action", "escalate to"],
            [
                (
                    *(row["outreach_id"], row["failure_code"], row["created_at"], row["blocking_reason"]),
                    *(row["meaning"], row["action"], row["escalate_to"]),
                )
                for row in rows
            ],
            empty="no failures in this time",
        )


def _distribution(main: click.Group) -> None:
    @command(main, "distribution", examples=["ct-stream distribution", "ct-stream distribution --since 24h --json"])
    @_since("7d")
    @json_option
    def distribution(since: timedelta, as_json: bool) -> None:
        """Count failures by code.

        Says what each code means, what to do, and whom to tell.
        """
        rows = asyncio.run(reports.distribution(settings(), since=since))
        if as_json:
            print_json(rows)
            return
        print_table(
            ["code", "count", "meaning", "action", "escalate to"],
            [(r["failure_code"], r["count"], r["meaning"], r["action"], r["escalate_to"]) for r in rows],
            empty="no failures in this time",
        )


def _pass_rate(main: click.Group) -> None:
    @command(main, "pass-rate", examples=["ct-stream pass-rate", "ct-stream pass-rate --since 7d --json"])
    @_since("24h")
    @json_option
    def pass_rate(since: timedelta, as_json: bool) -> None:
        """Show the share of decided companies that passed.

        CT-I-NOT-FOUND is not counted: it has no company_target row.
        """
        row = asyncio.run(reports.pass_rate(settings(), since=since))
        if as_json:
            print_json(row)
        elif row["pass_rate"] is None:
            click.echo("no decisions")
        else:
            click.echo(f"{row['pass_rate']} % passed: {row['passed']} passed, {row['failed']} failed")


def _guardrails(main: click.Group) -> None:
    @main.group("guardrails")
    def guardrails() -> None:
        """Show what is closed or halted, and open it again."""

    @command(guardrails, "list", examples=["ct-stream guardrails list", "ct-stream guardrails list --json"])
    @json_option
    def list_guardrails(as_json: bool) -> None:
        """List every guardrail that was ever closed or halted.

        Shows its state, the reason, and who changed it last. What servers think of us they think of an address, so
        TOOL-005 and each provider have a guardrail for each egress (CT_EGRESS); the others hold all workers.
        """
        rows = asyncio.run(reports.guardrails(settings()))
        if as_json:
            print_json(rows)
            return
        print_table(
            ["guardrail", "egress", "state", "since", "next try", "by", "reason"],
            [
                (
                    *(r["base"], r["egress"] or "all", r["state"], r["since"], r["next_try_at"], r["changed_by"]),
                    r["reason"],
                )
                for r in rows
            ],
            empty="all guardrails are open",
        )
        if any(row["state"] not in reports.WORKING and row["egress"] not in (None, DEFAULT) for row in rows):
            click.echo("\nTo resume one of another egress than default: ct-stream guardrails resume GUARDRAIL@EGRESS")

    @command(
        guardrails,
        "resume",
        examples=[
            "ct-stream guardrails resume TOOL-005 --reason 'delisted, see the ticket of 7 January'",
            "ct-stream guardrails resume TOOL-005@dc2 --reason 'delisted, see the ticket of 7 January'",
            "ct-stream guardrails resume provider:bigmail.example --reason 'they took us off their list'",
        ],
    )
    @click.argument("key")
    @click.option("--reason", required=True, help="Why it may be used again. The log keeps it.")
    def resume(key: str, reason: str) -> None:
        """Open a guardrail that is closed, paused or halted.

        KEY is what `guardrails list` shows, such as provider:bigmail.example, mail_from or spine. Behind an @ it names
        the egress, where that is not `default`: TOOL-005@dc2, provider:bigmail.example@dc2. TOOL-005 is short for
        tool:TOOL-005.

        Fix the cause first; the runbook says how. The evidence so far no longer counts, and the log keeps your login
        and the reason. TOOL-005 comes back carefully: one company at a time, until three providers have talked
        normally. So does every egress when you resume mail_from.
        """
        if not reason.strip():
            raise click.UsageError("--reason is empty; say why it may be used again")
        said = asyncio.run(reports.resume_guardrail(settings(), key, reason.strip()))
        click.echo(for_log(f"{reports.full_key(key)}: {said}"))
