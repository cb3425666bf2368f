"""What a person sees of the demo: its settings, its progress, its summary."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ct_stream.cli.shared import Exit, print_table
from ct_stream.gate.failures import FAILURE_MEANINGS, FailureCode
from ct_stream.local.demo import PASS_DEADLINE_S, SPINE_GRACE_S, Demo, toolbox
from ct_stream.local.demo_companies import make_plan
from ct_stream.local.processes import in_a_shell
from ct_stream.local.stack import export_lines
from ct_stream.texts import for_terminal

if TYPE_CHECKING:
    from ct_stream.local.demo import Disagreement, Progress, Summary

_GIVE_UP_S = 120.0
_LOOK_S = 0.25
_KEEP_LOOK_S = 2.0
_PLAIN_EVERY_S = 2.0
_RATE_WINDOW_S = 2.0
_SHOWN_FAILURES = 5


async def show_demo(companies: int, *, keep: bool) -> int:
    """Run the demo with its display; return the exit code."""
    begun = time.monotonic()
    click.echo("starting a broker, a Postgres, a mail farm and a worker ...")
    async with Demo(make_plan(companies)) as demo:
        click.echo(f"ready after {time.monotonic() - begun:.1f} s\n")
        _say_settings(demo)
        await demo.publish()
        is_complete = await _watch(demo)
        summary = await demo.summary()
        _print_summary(demo, summary)
        if not is_complete:
            click.echo(f"\ngave up after {_GIVE_UP_S:g} s: not every company was decided and published")
        is_good = is_complete and summary.is_good
        demo.keep_files = not is_good
        if keep:
            await _keep(demo)
        elif is_good:
            click.echo(
                "\nTo look around, keep a demo running. This command prints what to paste into another shell:\n"
                f"  {in_a_shell(here=True)} demo --keep"
            )
    if not is_good:
        click.echo(f"the logs are in {demo.data_dir}")
    return Exit.OK if is_good else Exit.FOUND


def _say_settings(demo: Demo) -> None:
    plan = demo.plan
    smtp = toolbox()["tools"][1]["limits"]
    click.echo(
        f"{len(plan.companies)} companies of {len({c.kind for c in plan.companies})} kinds, in {len(plan.records)} "
        f"records: {plan.duplicates} are duplicates, {plan.unreadable} cannot be read.\n"
        "So that it ends soon, the demo uses smaller values than a gate at work (in brackets):\n"
        f"  one company may wait for its servers for {PASS_DEADLINE_S} s (90 s): CT_PASS_DEADLINE_S;\n"
        f"  a company may appear in the spine {SPINE_GRACE_S} s (60 s) after its event: CT_SPINE_GRACE_S;\n"
        f"  {smtp['domain_pause_s']} s (2 s) pass between two sessions at one domain, and nothing else is limited;\n"
        f"  a control, which proves that our own network works, runs every {toolbox()['controls']['interval_s']} s "
        "(30 s);\n"
        f"  a server that refuses us counts against its company after {toolbox()['controls']['settle_s']} s (600 s), "
        "if no other server refuses us too.\n"
        "It asks only mail servers that it has started itself. `waiting` counts companies by why they wait.\n"
    )


# ---------------------------------------------------------------- progress


async def _watch(demo: Demo) -> bool:
    """Show progress until all is decided and published; False when that takes too long."""
    out = Console(highlight=False)
    rate = _Rate()
    if not out.is_terminal:
        return await _watch_plainly(demo, rate)
    with Live(console=out, refresh_per_second=8) as live:
        while True:
            progress = await demo.progress()
            live.update(_picture(progress, rate.of(progress)))
            if progress.is_complete or progress.at_s > _GIVE_UP_S:
                return progress.is_complete
            await asyncio.sleep(_LOOK_S)


async def _watch_plainly(demo: Demo, rate: _Rate) -> bool:
    say_at = 0.0
    while True:
        progress = await demo.progress()
        per_s = rate.of(progress)
        over = progress.is_complete or progress.at_s > _GIVE_UP_S
        if over or progress.at_s >= say_at:
            say_at = progress.at_s + _PLAIN_EVERY_S
            waiting = ", ".join(f"{reason} {count}" for reason, count in sorted(progress.waiting.items()))
            click.echo(
                f"{progress.at_s:5.1f} s  decided {progress.decided}/{progress.planned}  passed {progress.passed}  "
                f"failed {sum(progress.failed.values())}  {per_s:.0f}/s" + (f"  waiting: {waiting}" if waiting else "")
            )
        if over:
            return progress.is_complete
        await asyncio.sleep(_LOOK_S)


class _Rate:
    """Decisions a second over the last moments."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, progress: Progress) -> float:
        self._seen.append((progress.at_s, progress.decided))
        while len(self._seen) > 2 and self._seen[0][0] < progress.at_s - _RATE_WINDOW_S:
            self._seen.popleft()
        (begin_s, before), (end_s, now) = self._seen[0], self._seen[-1]
        return (now - before) / (end_s - begin_s) if end_s > begin_s else 0.0


def _picture(progress: Progress, per_s: float) -> Group:
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(f"{progress.at_s:5.1f} s"),
        ProgressBar(total=progress.planned, completed=progress.decided, width=40),
        Text(f"{progress.decided}/{progress.planned} decided"),
        Text(f"{per_s:.0f} a second"),
    )
    body = Table.grid(padding=(0, 2))
    body.add_row(Text("passed", style="green"), Text(str(progress.passed)), "")
    for code, count in sorted(progress.failed.items()):
        body.add_row(Text(code, style="red"), Text(str(count)), Text(FAILURE_MEANINGS[FailureCode(code)].meaning))
    for reason, count in sorted(progress.waiting.items()):
        body.add_row(Text(f"waits: {reason}", style="yellow"), Text(str(count)), "")
    return Group(head, body)


# ---------------------------------------------------------------- summary


def _print_summary(demo: Demo, summary: Summary) -> None:
    click.echo("\nPlanned against decided")
    print_table(
        ["outcome", "planned", "decided", "meaning"],
        [(name, planned, decided, _meaning(name)) for name, (planned, decided) in summary.by_outcome.items()],
        empty="",
    )
    click.echo(
        f"{summary.agreed} of {summary.planned} companies were decided as planned, "
        "each PASS with its method, confidence and catch-all flag."
    )
    if summary.disagreements:
        click.echo("\nDisagreements")
        print_table(
            ["outreach_id", "kind", "domain", "planned", "decided", "why"],
            [
                (d.company.outreach_id, d.company.kind, d.company.domain, _planned(d), d.decided, d.reason)
                for d in summary.disagreements
            ],
            empty="",
        )
    for problem in summary.problems:
        click.echo(f"problem: {problem}")
    click.echo(
        f"\nOn the topics: {', '.join(f'{count} on {topic}' for topic, count in summary.on_topics.items())}\n"
        f"Duplicates: {demo.plan.duplicates} sent. {summary.already_processed} came after their company's outcome, "
        f"{max(0, demo.plan.duplicates - summary.already_processed)} while it waited. None was decided twice."
    )
    click.echo("\nThe runbook's three queries, run with a person's login (ct_ops)")
    click.echo(f"View Recent Failures (it returns at most 100). The newest {_SHOWN_FAILURES}:")
    print_table(
        ["outreach_id", "failure_code", "blocking_reason"],
        [
            (r["outreach_id"], r["failure_code"], r["blocking_reason"])
            for r in summary.recent_failures[:_SHOWN_FAILURES]
        ],
        empty="none",
    )
    click.echo("Failure Distribution:")
    print_table(
        ["failure_code", "count"],
        [(row["failure_code"], row["count"]) for row in summary.failure_distribution],
        empty="none",
    )
    rate = summary.pass_rate
    not_found = summary.by_outcome.get(FailureCode.NOT_FOUND, (0, 0))[1]
    click.echo(
        f"Pass Rate (Last 24h): passed {rate['passed']}, failed {rate['failed']}, pass_rate {rate['pass_rate']}. "
        f"It does not count the {not_found} {FailureCode.NOT_FOUND}."
    )
    per_s = summary.planned / summary.span_s if summary.span_s else 0.0
    click.echo(
        f"\nThroughput: {summary.planned} companies in {summary.span_s:.1f} s, {per_s:.0f} a second. The last "
        f"ones have silent servers: silence counts only if they are silent twice, {PASS_DEADLINE_S} s each time.\n"
        f"From when a worker first took a company up: half were decided within {summary.p50_s:.2f} s, 95 % within "
        f"{summary.p95_s:.2f} s."
    )


def _meaning(outcome: str) -> str:
    try:
        return FAILURE_MEANINGS[FailureCode(outcome)].meaning
    except ValueError:
        return ""


def _planned(disagreement: Disagreement) -> str:
    expected = disagreement.company.expected
    return " ".join(str(part) for part in (expected.outcome, expected.method_type, expected.confidence) if part)


async def _keep(demo: Demo) -> None:
    click.echo(
        f"\nEverything keeps running until Ctrl-C. Metrics: {demo.web_url}/metrics\n"
        "Paste these lines into another shell. They point it at the demo, and show what can be asked:\n"
    )
    program = in_a_shell()
    click.echo(
        f"{for_terminal(export_lines(demo.env))}\n"
        f"{program} show {demo.plan.companies[0].outreach_id}\n"
        f"{program} failures --limit 5\n"
        f"{program} replay --topic ct.pass --limit 5\n"
        f"{program} check firstdotlast-anything.example"
    )
    while True:
        await demo.progress()  # raises when one of its processes has ended
        await asyncio.sleep(_KEEP_LOOK_S)
