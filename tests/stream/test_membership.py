"""Leaving the group and coming back: one at a time, and only where there is something to do."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aiokafka.errors import KafkaConnectionError, UnknownError
from faust.types import TP

from ct_stream.metrics import Health
from ct_stream.stream.app import _try_again_after_errors
from ct_stream.stream.membership import Membership

if TYPE_CHECKING:
    from collections.abc import Coroutine

TOPICS = frozenset({"spine.created"})
PARTITION = TP("spine.created", 0)


class Group:
    """The parts that a membership moves; each writes down what it is told."""

    def __init__(self, topics: frozenset[str] = TOPICS) -> None:
        self.said: list[str] = []
        self.topics = topics
        self.may_leave = asyncio.Event()
        self.may_leave.set()
        self.connects: BaseException | None = None
        self.crashes: list[BaseException] = []
        recovery = SimpleNamespace(
            signal_recovery_start=asyncio.Event(),
            active_tps=SimpleNamespace(clear=lambda: self.said.append("recovery given up")),
        )
        thread = SimpleNamespace(
            topics_read=lambda: self.topics, run_here=self._run_here, new_spare=self._new_spare,
            leave_group=self._leave_group, take=self._take, look_alive=self._look_alive,
        )  # fmt: skip
        consumer = SimpleNamespace(
            _thread=thread,
            assignment=lambda: {PARTITION},
            on_partitions_revoked=self._forget,
            subscribe=self._subscribe,
        )
        app: Any = SimpleNamespace(
            consumer=consumer, tables=SimpleNamespace(recovery=recovery), should_stop=False, crash=self._crash,
            on_rebalance_start=lambda: self.said.append("rebalance starts"), _on_partitions_revoked=self._revoke,
        )  # fmt: skip
        agent: Any = SimpleNamespace(
            leave=lambda: self.said.append("agent leaves"), left=lambda: self.said.append("agent left"),
            join=lambda: self.said.append("agent joins"),
        )  # fmt: skip
        self.membership = Membership(app, agent, Health())

    async def _run_here(self, call: Coroutine[Any, Any, object]) -> object:
        return await call

    async def _new_spare(self) -> None:
        if self.connects is not None:
            raise self.connects

    async def _revoke(self, _: object) -> None:
        self.said.append("drained and committed")

    async def _leave_group(self) -> None:
        await self.may_leave.wait()
        self.said.append("left")

    async def _forget(self, _: object) -> None:
        self.said.append("forgotten")

    async def _take(self, _: object) -> None:
        self.said.append("replaced")
        self.topics = frozenset()

    async def _look_alive(self) -> None:
        self.said.append("alive")

    async def _subscribe(self, topics: frozenset[str]) -> None:
        self.said.append("subscribed")
        self.topics = topics

    async def _crash(self, error: BaseException) -> None:
        self.crashes.append(error)


LEFT = [
    "agent leaves", "rebalance starts", "drained and committed", "left", "forgotten", "recovery given up", "replaced",
    "agent left",
]  # fmt: skip
JOINED = ["agent joins", "alive", "subscribed"]


async def test_it_drains_and_commits_before_it_leaves_and_reads_the_same_topics_afterwards() -> None:
    group = Group()
    await group.membership.rejoin()
    assert group.said == []
    await group.membership.leave()
    assert (group.said, group.membership.is_left) == (LEFT, True)
    await group.membership.leave()
    assert group.said == LEFT
    await group.membership.rejoin()
    assert (group.said, group.membership.is_left, group.topics) == (LEFT + JOINED, False, TOPICS)


async def test_a_worker_that_has_joined_nothing_yet_does_not_leave() -> None:
    group = Group(topics=frozenset())
    await group.membership.leave()
    assert (group.said, group.membership.is_left) == ([], False)


async def test_nothing_changes_while_kafka_cannot_be_reached() -> None:
    group = Group()
    group.connects = KafkaConnectionError("away")
    with pytest.raises(KafkaConnectionError):
        await group.membership.leave()
    assert (group.said, group.membership.is_left, group.crashes) == ([], False, [])
    group.connects = None
    await group.membership.leave()
    assert group.said == LEFT


async def test_an_error_after_the_drain_crashes_the_app() -> None:
    group = Group()

    async def broken(_: object) -> None:
        raise KafkaConnectionError("in the middle")

    consumer: Any = group.membership._app.consumer
    consumer.on_partitions_revoked = broken
    with pytest.raises(KafkaConnectionError):
        await group.membership.leave()
    assert len(group.crashes) == 1


async def test_a_caller_that_is_cancelled_stops_nothing_and_the_next_one_waits() -> None:
    group = Group()
    group.may_leave.clear()
    leaving = asyncio.create_task(group.membership.leave())
    await asyncio.sleep(0.01)
    leaving.cancel()
    back = asyncio.create_task(group.membership.rejoin())
    await asyncio.sleep(0.01)
    assert "subscribed" not in group.said
    group.may_leave.set()
    await asyncio.wait_for(back, 1)
    assert group.said == LEFT + JOINED


async def test_the_end_waits_for_what_is_under_way_and_nothing_follows() -> None:
    group = Group()
    group.may_leave.clear()
    leaving = asyncio.create_task(group.membership.leave())
    await asyncio.sleep(0.01)
    ended = asyncio.create_task(group.membership.stop())
    late = asyncio.create_task(group.membership.rejoin())
    await asyncio.sleep(0.01)
    assert not ended.done()
    group.may_leave.set()
    await asyncio.wait_for(asyncio.gather(leaving, ended, late), 1)
    await group.membership.rejoin()
    assert group.said == LEFT


async def test_an_error_that_cost_no_membership_does_not_count_as_a_refusal_for_ever() -> None:
    """One failed look-up of the coordinator (UNKNOWN_SERVER_ERROR, while it moves): our member goes on as it was."""

    async def goes_on() -> None:
        await asyncio.sleep(60)

    asked_to_rejoin: list[str] = []
    tasks = [asyncio.create_task(goes_on()) for _ in range(2)]
    coordinator: Any = SimpleNamespace(
        _heartbeat_task=tasks[0], _commit_refresh_task=tasks[1],
        _closing=asyncio.get_running_loop().create_future(),
        _subscription=SimpleNamespace(subscription="spine.created"), need_rejoin=lambda _: bool(asked_to_rejoin),
        request_rejoin=lambda: asked_to_rejoin.append("rejoin"),
    )  # fmt: skip
    app: Any = SimpleNamespace(refused=None)
    _try_again_after_errors(coordinator, app)
    await coordinator._push_error_to_user(UnknownError())
    for task in tasks:
        task.cancel()
    # It is cleared only when the group assigns partitions, and nothing asks it to.
    assert asked_to_rejoin or app.refused is None, "`the group does not take this worker in`, until the next rebalance"


async def test_a_worker_that_could_not_join_again_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()
    await group.membership.leave()
    consumer: Any = group.membership._app.consumer

    async def fails(_: object) -> None:
        raise KafkaConnectionError("away")

    with monkeypatch.context() as away:
        away.setattr(consumer, "subscribe", fails)
        with pytest.raises(KafkaConnectionError):
            await group.membership.rejoin()
    await group.membership.rejoin()
    assert group.said[-1] == "subscribed", "it is in no group, and says that it is not out of it"
