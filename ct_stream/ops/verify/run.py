"""In which order is everything read, so that work in flight is no false alarm?

First the group's committed offsets, then the ends of the topics, then the topics up to there, then the database at one
moment: what was committed is accounted for by then, and what was stamped before is on its topic. Whatever still does
not agree is looked at a second time after a grace, with what the topics got meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from ct_stream.ops.reader import reader
from ct_stream.ops.spine import query_with_age, why_ageless
from ct_stream.ops.troubles import kafka_answers, postgres_answers
from ct_stream.ops.verify.judge import Marks, Recorded, judge
from ct_stream.ops.verify.kinds import Kind, is_note
from ct_stream.ops.verify.report import Example, Findings, Report
from ct_stream.ops.verify.spill import END, Spill
from ct_stream.ops.verify.topics import Topics, opened
from ct_stream.store.as_migrated import compare
from ct_stream.stream.topology import CT_FAIL, CT_PASS, CT_REJECTED, SPINE_CREATED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from datetime import datetime

    from ct_stream.ops.reader import Reader
    from ct_stream.settings import Settings

_PAGE = 2000
_COMMAND_S = 1800.0  #: the server joins and sorts all tables before the first row comes
_LATE = timedelta(minutes=5)  #: how late publishing, or the next step of a wait, may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What counts as late, and how much is shown."""

    older_than: timedelta = timedelta(hours=1)
    waiting_than: timedelta = timedelta(hours=24)
    grace: timedelta = timedelta(seconds=10)
    examples: int = 5


async def verify(settings: Settings, limits: Limits, on_progress: Callable[[str, int], None]) -> Report:
    """Compare everything; `on_progress` is told (what is read, how many so far). Raises ServiceTrouble.

    Needs CT_KAFKA_BOOTSTRAP and CT_POSTGRES_OPS_DSN. Changes no row and no offset, and sends nothing.
    """
    settings.require("kafka_bootstrap", "postgres_ops_dsn")
    begun = time.monotonic()
    async with AsyncExitStack() as stack:
        read = await stack.enter_async_context(reader(settings, command_s=_COMMAND_S))
        async with kafka_answers(settings):
            topics = await stack.enter_async_context(opened(settings))
        spill = stack.enter_context(Spill())
        run = _Run(settings, limits, read, topics, spill, on_progress)
        await run.first_look()
        await run.second_look()
        run.look_at_offsets()
        await run.look_at_guards()
    return Report(
        names=topics.names,
        found=run.findings.by_kind,
        checked={"companies": run.companies} | topics.read_count,
        not_told=run.not_told,
        seconds=time.monotonic() - begun,
    )


class _Run:
    """One comparison."""

    def __init__(
        self,
        settings: Settings,
        limits: Limits,
        read: Reader,
        topics: Topics,
        spill: Spill,
        on_progress: Callable[[str, int], None],
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._read = read
        self._topics = topics
        self._spill = spill
        self._on_progress = on_progress
        self._records = 0
        self._has_age = True
        self._is_suspicious = False
        self._marked_at: datetime
        self._kept_since: list[datetime | None] = [None, None]
        self._marks = Marks(committed={}, old_ms=0)
        self.findings = Findings(limits.examples)
        self.companies = 0
        self.not_told: list[str] = []

    async def first_look(self) -> None:
        """Judge every company; keep the notes, and remember whom to look at again."""
        ageless = await why_ageless(self._read)
        if ageless is not None:
            self._has_age = False
            self.not_told.append(f"how long a spine row has been without an outcome: {ageless}")
        await self._mark()
        async with kafka_answers(self._settings):
            await self._topics.mark()
            kept = await self._topics.kept_s()
            if not self._topics.is_kafka:
                self.not_told.append(
                    "committed offsets past the end, and records removed unread: not supported by this broker"
                )
            for place, topic in enumerate((CT_PASS, CT_FAIL)):
                if (kept_s := kept[topic]) is not None:
                    self._kept_since[place] = self._marked_at - timedelta(seconds=kept_s)
                    self.not_told.append(
                        f"outcomes published before {self._kept_since[place]:%Y-%m-%d %H:%MZ}: {topic} has a retention "
                        "(cleanup.policy delete); new hubs cannot read all outcomes from it"
                    )
            await self._topics.read(self._spill, self._saw_records)
        self._marks = Marks(
            committed=self._topics.committed,
            old_ms=int((self._marked_at - self._limits.older_than).timestamp() * 1000),
        )
        async for example in self._judge_all(None):
            if is_note(example.kind):
                self.findings.add(example)
            else:
                assert example.outreach_id is not None
                self._spill.add("suspects", example.outreach_id)
                self._is_suspicious = True
        self._spill.flush()

    async def second_look(self) -> None:
        """Judge again, after a grace, who did not agree."""
        if not self._is_suspicious:
            return
        self._on_progress("grace before a second look", 0)
        await asyncio.sleep(self._limits.grace.total_seconds())
        await self._mark()
        async with kafka_answers(self._settings):
            await self._topics.mark_again()
            await self._topics.read(self._spill, self._saw_records)
        counted = self.companies
        async for example in self._judge_all(self._spill):
            if not is_note(example.kind):
                self.findings.add(example)
        self.companies = counted

    def look_at_offsets(self) -> None:
        """Compare what needs no company: rejects, committed offsets, records of nobody."""
        topics, add = self._topics, self.findings.add
        for topic, places in topics.odd.items():
            kind = Kind.REJECTED_WITHOUT_SOURCE if topic == CT_REJECTED else Kind.RECORD_WITHOUT_ROW
            said = "no headers that name a source" if topic == CT_REJECTED else "its key is no outreach_id"
            for partition, offset in places:
                add(Example(kind=kind, topic=topic, partition=partition, offset=offset, detail=said))
            self.findings.by_kind[kind].count += topics.odd_count[topic] - len(places)
        for rejected in self._spill.rejected_without_source():
            if rejected.source_offset >= self._kept_from(rejected.source_partition):
                add(
                    Example(
                        kind=Kind.REJECTED_WITHOUT_SOURCE,
                        topic=CT_REJECTED,
                        partition=rejected.partition,
                        offset=rejected.offset,
                        detail=f"{SPINE_CREATED} partition {rejected.source_partition} has no offset "
                        f"{rejected.source_offset}",
                    )
                )
        rejects_from_ms = self._rejects_from_ms()
        for event in self._spill.unreadable_not_rejected():
            is_done = event.offset < topics.committed.get(event.partition, 0)
            if is_done and event.at_ms >= rejects_from_ms:
                add(_spine_example(Kind.UNREADABLE_NOT_REJECTED, event.partition, event.offset, "cannot be read"))
        if topics.is_kafka:
            self._look_at_committed()

    async def look_at_guards(self) -> None:
        """Compare triggers, functions and rights with what `migrate` makes."""
        found = await compare(self._read.rows)
        if not found.is_whole:
            self.not_told.append("functions and rights: another version of ct-stream has migrated last")
        for one in found.altered:
            self.findings.add(Example(kind=Kind.GUARD_ALTERED, detail=f"{one.what}: {one.action}"))

    def _look_at_committed(self) -> None:
        topics = self._topics
        for tp, end in topics.ends.items():
            committed = topics.committed.get(tp.partition)
            if tp.topic != topics.names.spine_created or committed is None:
                continue
            begin = topics.begins[tp]
            if committed > end:
                said = f"committed {committed}, but the partition ends at {end}"
                self.findings.add(_spine_example(Kind.COMMITTED_PAST_END, tp.partition, committed, said))
            elif committed < begin - 1:  # a single one may be the mark that ends a transaction
                said = f"offsets {committed} to {begin - 1} are gone (records, or marks of transactions)"
                gone = _spine_example(Kind.EVENTS_REMOVED_UNREAD, tp.partition, committed, said, begin - committed)
                self.findings.add(gone)

    def _kept_from(self, partition: int) -> int:
        """Return the first offset of spine.created that was still there: what is older, retention has removed."""
        first = self._topics.first_read.get((SPINE_CREATED, partition))
        if first is not None:
            return first
        ends = {
            tp.partition: end for tp, end in self._topics.ends.items() if tp.topic == self._topics.names.spine_created
        }
        return ends.get(partition, 0)

    def _rejects_from_ms(self) -> int:
        """Return since when ct.rejected holds all rejects, in ms: its retention may end sooner than spine.created's."""
        was_cut = any(
            begin > 0 for tp, begin in self._topics.begins.items() if tp.topic == self._topics.names.ct_rejected
        )
        if not (was_cut and self._topics.is_kafka):
            return 0
        oldest = self._topics.rejected_from_ms
        return int(self._marked_at.timestamp() * 1000) if oldest is None else oldest

    # ---------------------------------------------------------------- companies

    async def _judge_all(self, suspects: Spill | None) -> AsyncIterator[Example]:
        """Yield what does not agree, of all companies or of the suspects, in the order of their ids."""
        of_suspects = suspects is not None
        events, records = self._spill.events(of_suspects=of_suspects), self._spill.records(of_suspects=of_suspects)
        async for page in self._pages(suspects):
            for row in page:
                while (unknown := min(events.key, records.key)) < row.id:
                    for example in judge(Recorded(unknown), events.take(unknown), records.take(unknown), self._marks):
                        yield example
                self.companies += 1
                for example in judge(row, events.take(row.id), records.take(row.id), self._marks):
                    yield example
            self._on_progress("companies", self.companies)
        while (unknown := min(events.key, records.key)) != END:
            for example in judge(Recorded(unknown), events.take(unknown), records.take(unknown), self._marks):
                yield example

    async def _pages(self, suspects: Spill | None) -> AsyncIterator[list[Recorded]]:
        statement = query_with_age("verify_companies", has_age=self._has_age)
        limits = self._limits
        args = (self._marked_at, _LATE, limits.waiting_than, limits.older_than, *self._kept_since)
        with postgres_answers("CT_POSTGRES_OPS_DSN"):
            if suspects is None:
                async for page in self._read.pages(statement, *args, None, size=_PAGE):
                    yield [Recorded(*row.values()) for row in page]
                return
            for ids in suspects.suspects():
                async for page in self._read.pages(statement, *args, [UUID(bytes=i) for i in ids], size=_PAGE):
                    yield [Recorded(*row.values()) for row in page]

    async def _mark(self) -> None:
        row = await self._read.row("verify_clock")
        assert row is not None
        self._marked_at = row["now"]

    def _saw_records(self, count: int) -> None:
        self._records += count
        self._on_progress("records", self._records)


def _spine_example(kind: Kind, partition: int, offset: int, detail: str, count: int = 1) -> Example:
    return Example(kind=kind, topic=SPINE_CREATED, partition=partition, offset=offset, detail=detail, count=count)
