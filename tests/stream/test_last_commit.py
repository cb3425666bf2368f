"""The commit at the end of an assignment: it names all that is done, and is not taken for done if it failed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from faust.types import TP

from ct_stream.settings import load_settings
from ct_stream.stream.app import make_app

if TYPE_CHECKING:
    from collections.abc import Mapping

PARTITION = TP("spine.created", 0)


class Commits:
    """The app's own consumer, whose commits to the broker end when the test says so."""

    def __init__(self) -> None:
        self.app = make_app(load_settings({"CT_KAFKA_BOOTSTRAP": "127.0.0.1:1"}))
        make: Any = self.app.transport.create_consumer
        self.consumer = make(_nothing, on_partitions_revoked=_nothing, on_partitions_assigned=_nothing)
        self.consumer._commit_offsets = self._commit
        topics: Any = self.app.topics
        topics.acks_enabled_for = lambda _: True
        self.begun: list[int] = []
        self.may_end = asyncio.Semaphore(0)

    def ack(self, offset: int) -> None:
        self.consumer._acked[PARTITION].append(offset)
        self.consumer._acked_index[PARTITION].add(offset)

    def __enter__(self) -> Commits:
        return self

    def __exit__(self, *_: object) -> None:
        self.consumer._thread.thread_loop.close()

    async def _commit(self, offsets: Mapping[TP, int], **_: Any) -> bool:
        self.begun.append(offsets[PARTITION])
        await self.may_end.acquire()
        self.consumer._committed_offset.update(offsets)
        return True


async def _nothing(*_: Any) -> None:
    """Do nothing."""


async def test_what_is_done_while_a_commit_is_under_way_is_committed_at_the_end() -> None:
    with Commits() as commits:
        commits.ack(0)
        at_its_interval = asyncio.create_task(commits.consumer.commit())
        await asyncio.sleep(0)
        assert commits.begun == [1]
        commits.ack(1)
        at_the_end = asyncio.create_task(commits.app._consumer_wait_empty(commits.consumer, None))
        await asyncio.sleep(0.01)
        commits.may_end.release()
        commits.may_end.release()
        await asyncio.wait_for(asyncio.gather(at_its_interval, at_the_end), 5)
        assert commits.begun == [1, 2], "the last event would be delivered to the partition's next owner once more"


async def test_the_end_waits_for_no_commit_where_none_is_under_way() -> None:
    with Commits() as commits:
        commits.ack(0)
        commits.may_end.release()
        await asyncio.wait_for(commits.app._consumer_wait_empty(commits.consumer, None), 5)
        assert commits.begun == [1]


async def test_what_a_last_commit_failed_to_commit_is_acked_when_it_comes_once_more() -> None:
    app = make_app(load_settings({"CT_KAFKA_BOOTSTRAP": "127.0.0.1:1"}))
    make: Any = app.transport.create_consumer

    async def last_commit(_revoked: object) -> None:
        await consumer._commit_offsets({PARTITION: 1})

    consumer = make(_nothing, on_partitions_revoked=last_commit, on_partitions_assigned=_nothing)
    consumer.assignment = lambda: {PARTITION}
    consumer._commit = _fails
    app._producer = SimpleNamespace(flush=_nothing)  # type: ignore[assignment]
    try:
        await consumer.on_partitions_revoked({PARTITION})
        assert PARTITION not in consumer._committed_offset
    finally:
        consumer._thread.thread_loop.close()


async def _fails(_: object) -> bool:
    return False
