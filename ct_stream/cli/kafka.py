"""Commands about topics: create them, send to one, read one."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from ct_stream.cli.shared import (
    Moment,
    Since,
    command,
    json_option,
    print_json,
    print_json_line,
    print_table,
    settings,
)
from ct_stream.ops import publish as publishing
from ct_stream.ops import replay as replaying
from ct_stream.ops.troubles import kafka_answers
from ct_stream.ops.undecided import publish_undecided
from ct_stream.stream.topology import SPINE_CREATED, create_topics, names_of
from ct_stream.texts import for_log

if TYPE_CHECKING:
    from datetime import datetime

    from ct_stream.settings import Settings


def add_to(main: click.Group) -> None:
    """Add these commands to the program."""
    for add in (_topics, _publish, _replay, _lag):
        add(main)


def _topics(main: click.Group) -> None:
    @command(main, "topics", examples=["ct-stream topics", "ct-stream topics --replication 3"])
    @click.option(
        "--replication",
        type=click.IntRange(1, 100),
        help="Copies of each partition.  [default: 3, or the number of brokers if there are fewer]",
    )
    @json_option
    def topics(replication: int | None, as_json: bool) -> None:
        """Create the missing topics and partitions.

        They get as many partitions as an existing spine.created has; so does ct-stream-decided-changelog, when
        partitions were added to spine.created.
        """
        chosen = settings()
        chosen.require("kafka_bootstrap")
        made, counts = asyncio.run(_create(chosen, replication))
        if as_json:
            print_json({"made": made, "partitions": counts})
            return
        print_table(
            ["topic", "partitions", ""],
            [(name, count, "created" if name in made else "exists") for name, count in counts.items()],
            empty="no topics",
        )


async def _create(chosen: Settings, replication: int | None) -> tuple[list[str], dict[str, int]]:
    async with kafka_answers(chosen):
        return await create_topics(chosen, replication=replication)


def _publish(main: click.Group) -> None:
    @command(
        main,
        "publish",
        examples=[
            "ct-stream publish companies.jsonl",
            "echo 4b0c2f5e-6a0b-4f57-9d4e-0f6f3b0c7a11 | ct-stream publish --ids -",
            "ct-stream publish --undecided --older-than 1h --dry-run",
        ],
    )
    @click.argument("file", type=click.File(encoding="utf-8", errors="surrogateescape"), required=False)
    @click.option("--ids", is_flag=True, help="Each line is a bare outreach_id.")
    @click.option(
        "--undecided",
        is_flag=True,
        help="Instead of FILE: every company of the spine that is not decided, waiting or stuck.",
    )
    @click.option(
        "--older-than", type=Since(), help="With --undecided: only spine rows older than this.  [default: 1h]"
    )
    @click.option("--all", "of_any_age", is_flag=True, help="With --undecided: spine rows of any age.")
    @click.option("--limit", type=click.IntRange(1), help="With --undecided: send at most this many.")
    @click.option("--dry-run", is_flag=True, help="Count only; send nothing.")
    @json_option
    def publish(
        file: Any,
        ids: bool,
        undecided: bool,
        older_than: timedelta | None,
        of_any_age: bool,
        limit: int | None,
        dry_run: bool,
        as_json: bool,
    ) -> None:
        """Send a spine.created event for each line of FILE.

        A line is a JSON object with an outreach_id. FILE - is standard input. All lines are checked before the first
        event is sent. The spine is not changed: the companies must be in it already.

        With --undecided it sends an event for each company of the spine that has no outcome, does not wait and is not
        stuck. This is for upstream. It needs CT_POSTGRES_OPS_DSN, and a Kafka login that may write to spine.created.
        """
        if undecided:
            if file is not None or ids:
                raise click.UsageError("--undecided reads the spine instead of a file; give it or a FILE")
            if of_any_age and older_than is not None:
                raise click.UsageError("--all and --older-than both say how old; give one")
            age = None if of_any_age else older_than or timedelta(hours=1)
            count = asyncio.run(publish_undecided(settings(), older_than=age, limit=limit, dry_run=dry_run))
        else:
            if older_than is not None or of_any_age or limit is not None:
                raise click.UsageError("--older-than, --all and --limit only go with --undecided")
            if file is None and (sys.stdin is None or sys.stdin.isatty()):
                raise click.UsageError("nothing to read: give a FILE, or - to type the lines here")
            events = publishing.read_events(file or click.get_text_stream("stdin", "utf-8", "surrogateescape"), ids=ids)
            count = len(events) if dry_run else asyncio.run(publishing.publish(settings(), events))
        topic = names_of(settings()).spine_created
        if as_json:
            print_json({"would_publish" if dry_run else "published": count, "topic": topic})
        else:
            click.echo(f"{count} events {'would be published' if dry_run else 'published'} to {topic}")


def _replay(main: click.Group) -> None:
    @command(
        main,
        "replay",
        examples=[
            "ct-stream replay",
            "ct-stream replay --topic ct.fail --limit 20",
            "ct-stream replay --partition 3 --from-offset 1200 --limit 1",
            "ct-stream replay --from-time 2026-01-07T12:00:00Z --json | jq -r .outreach_id",
        ],
    )
    @click.option(
        "--topic",
        type=click.Choice(replaying.TOPICS),
        default=SPINE_CREATED,
        show_default=True,
        help="The topic to read, without CT_KAFKA_PREFIX.",
    )
    @click.option("--partition", type=click.IntRange(0), help="Read only this partition.")
    @click.option("--from-offset", type=click.IntRange(0, 2**63 - 1), help="Start at this offset of each partition.")
    @click.option("--from-time", type=Moment(), help="Start at the first record of this time or later.")
    @click.option("--limit", type=click.IntRange(1), help="Read at most this many records.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for machines.")
    def replay(
        topic: str,
        partition: int | None,
        from_offset: int | None,
        from_time: datetime | None,
        limit: int | None,
        as_json: bool,
    ) -> None:
        """Read a topic and show each record with its outcome.

        Joins no group, commits nothing and sends nothing. The outcomes come from the ledger: set CT_POSTGRES_OPS_DSN to
        see them.
        """
        if from_offset is not None and from_time is not None:
            raise click.UsageError("--from-offset and --from-time both say where to start; give one")
        chosen = settings()

        async def read() -> None:
            count = 0
            if not as_json:
                click.echo(_HEADER)
            records = replaying.replay(
                chosen,
                topic=topic,
                partition=partition,
                from_offset=from_offset,
                from_time=from_time,
                limit=limit,
            )
            async with aclosing(records):
                async for told in records:
                    count += 1
                    if as_json:
                        print_json_line(told)
                    else:
                        click.echo(for_log(_line(told)))
            if not as_json:
                click.echo(f"{count} records of {names_of(chosen).on_cluster(topic)}", err=True)

        asyncio.run(read())


def _lag(main: click.Group) -> None:
    @command(main, "lag", examples=["ct-stream lag", "ct-stream lag --json"])
    @json_option
    def lag(as_json: bool) -> None:
        """Count the records that are not committed yet."""
        chosen = settings()
        count = asyncio.run(replaying.lag(chosen))
        if as_json:
            print_json({"lag": count})
        else:
            click.echo(f"{count} records of {names_of(chosen).spine_created} are not committed yet")


_HEADER = f"{'par':>3} {'offset':>8}  {'time':24}  {'company':36}  outcome"


def _line(told: replaying.Record) -> str:
    """Return a record as one line: where it is, which company, which outcome."""
    where = f"{told['partition']:>3} {told['offset']:>8}  {told['time'] or '':24}"
    if told["unreadable"] is not None:
        return f"{where}  unreadable: {told['unreadable']}"
    who = str(told["outreach_id"] or told["key"] or "-")
    became = ""
    if "outcome" in told:
        outcome = told["outcome"]
        became = "no outcome yet" if outcome is None else outcome["failure_code"] or outcome["outcome"]
    return f"{where}  {who:36}  {became}".rstrip()
