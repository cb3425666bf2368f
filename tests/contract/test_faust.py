"""Each behaviour of Faust, mode and aiokafka that our safety rests on: an upgrade cannot quietly change it."""

from __future__ import annotations

import asyncio
import inspect
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import aiokafka.consumer.group_coordinator
import aiokafka.consumer.subscription_state
import faust.app.base
import faust.streams
import faust.tables.recovery
import faust.transport.consumer
import faust.transport.drivers.aiokafka
import pytest
from aiokafka.errors import IllegalStateError
from faust.types import TP
from intervaltree import IntervalTree
from mode.utils.queues import FlowControlEvent, FlowControlQueue

from ct_stream.settings import load_settings
from ct_stream.stream.app import GateApp, give_up_recovery, make_app
from ct_stream.stream.offset_guard import HOLD_S
from ct_stream.stream.topology import CHANGELOG, GROUP, TABLE

PARTITION = TP("spine.created", 0)


@pytest.mark.parametrize(
    ("package", "pinned"), [("faust-streaming", "0.15.3"), ("mode-streaming", "0.7.1"), ("aiokafka", "0.14.0")]
)
def test_the_versions_are_the_ones_that_were_measured(package: str, pinned: str) -> None:
    assert version(package) == pinned


def new_offset(acked: list[int], committed: int | None) -> int | None:
    """Ask Faust's consumer which offset it would commit."""
    consumer = SimpleNamespace(
        _acked={PARTITION: list(acked)},
        _acked_index={PARTITION: set(acked)},
        _committed_offset={PARTITION: committed},
        _gap={PARTITION: []},
        app=SimpleNamespace(topics=SimpleNamespace(acks_enabled_for=lambda _: True)),
    )
    return faust.transport.consumer.Consumer._new_offset(consumer, PARTITION)  # type: ignore[arg-type]


def test_faust_commits_past_an_unfinished_event_when_acks_come_out_of_order() -> None:
    assert new_offset([11], committed=10) == 12, "10 is not done; if this now is None, Faust mended its gap guard"
    assert new_offset([12], committed=None) == 13


def test_acks_in_order_commit_exactly_what_is_done() -> None:
    assert new_offset([10, 11, 12], committed=10) == 13


def source(what: Any) -> str:
    return inspect.getsource(what)


def test_both_drains_go_through_the_method_that_we_override() -> None:
    assert "_consumer_wait_empty" in source(faust.app.base.App._stop_consumer)
    assert "_consumer_wait_empty" in source(faust.app.base.App._on_partitions_revoked)
    assert "_consumer_wait_empty" in vars(GateApp)


def test_a_commit_does_nothing_while_another_one_is_under_way() -> None:
    commit = source(faust.transport.consumer.Consumer.commit)
    assert "if await self.maybe_wait_for_commit_to_finish():" in commit, "if not, our own wait at the end may go"


def test_recovery_sends_rebalance_complete_before_it_resumes_seeks_and_clears() -> None:
    steps = source(faust.tables.recovery.Recovery.on_recovery_completed)
    order = ["on_rebalance_complete.send", "resume_partitions", "perform_seek", "flow_control.resume", "resume_flow"]
    places = [steps.index(step) for step in order]
    assert places == sorted(places), "the hold of the offset guard stands where the race begins"


async def test_recovery_waits_for_an_event_that_is_set_and_taken_back_at_once() -> None:
    recovery = faust.tables.recovery.Recovery
    assert "self._wait(self.signal_recovery_end.wait())" in source(recovery._restart_recovery.fun)
    assert "self._set_recovery_ended()" in source(recovery._slurp_changelogs.fun), "what we look at instead"
    assert "self.signal_recovery_end.clear()" in source(recovery._slurp_changelogs.fun), "if not, _Recovered may go"
    app = make_app(load_settings({"CT_KAFKA_BOOTSTRAP": "127.0.0.1:1"}))
    tables: Any = app.tables
    tables.recovery.in_recovery = True
    ended = asyncio.ensure_future(tables.recovery.signal_recovery_end.wait())
    await asyncio.sleep(0.1)
    assert not ended.done()
    tables.recovery.in_recovery = False
    tables.recovery.signal_recovery_end.clear()
    assert await asyncio.wait_for(ended, 1)


def test_aiokafka_seeks_no_partition_whose_group_stands_at_0_or_nowhere() -> None:
    assert "if offset and offset > 0:" in source(aiokafka.AIOKafkaConsumer.seek_to_committed), "the hold seeks it"


async def test_flow_control_resume_clears_the_queues() -> None:
    flow = FlowControlEvent(initially_suspended=False)
    queue: FlowControlQueue[str] = FlowControlQueue(flow_control=flow, clear_on_resume=True)
    await queue.put("an event that nobody has seen")
    flow.suspend()
    flow.resume()
    assert queue.empty(), "if nothing is lost here any more, the hold may go"


def test_the_hold_is_longer_than_a_running_fetch() -> None:
    assert "getmany(timeout=1.0)" in source(faust.transport.consumer.Consumer._drain_messages)
    assert HOLD_S > 1.0


def test_the_gap_hook_that_books_skipped_offsets_as_acked_is_where_we_replace_it() -> None:
    assert "_add_gap" in source(faust.transport.consumer.Consumer._drain_messages)
    assert list(inspect.signature(faust.transport.consumer.Consumer._add_gap).parameters) == [
        "self",
        "tp",
        "offset_from",
        "offset_to",
    ]


async def test_a_hole_that_is_booked_lets_commits_pass_it_and_nothing_behind_it() -> None:
    consumer: Any = SimpleNamespace(
        _acked={PARTITION: []},
        _acked_index={PARTITION: set()},
        _committed_offset={PARTITION: 3},
        _gap={PARTITION: IntervalTree()},
    )
    await faust.transport.consumer.Consumer._add_gap(consumer, PARTITION, 3, 24)
    assert faust.transport.consumer.Consumer._new_offset(consumer, PARTITION) is None, "25 is not done"
    consumer._acked[PARTITION].append(25)
    assert faust.transport.consumer.Consumer._new_offset(consumer, PARTITION) == 26


async def test_the_consumer_reads_only_what_upstream_has_committed() -> None:
    app = make_app(load_settings({"CT_KAFKA_BOOTSTRAP": "127.0.0.1:9"}))
    consumer: Any = app._new_consumer()
    assert not consumer.in_transaction, "Faust's own way to read_committed, and its transactions with it"
    client = consumer._thread._create_consumer(loop=None)
    try:
        assert client._isolation_level == "read_committed"
    finally:
        client._closed = True  # neither was ever started
        consumer._thread.thread_loop.close()
    assert "isolation_level=self._isolation_level" in source(aiokafka.AIOKafkaConsumer.start)


@pytest.mark.parametrize("what", ["assigned", "revoked"])
async def test_a_rebalance_that_faust_gives_up_at_its_stop_does_not_end_aiokafkas_own_task(what: str) -> None:
    """aiokafka's close waits for that task, and leaves the group after it."""
    assert "await self._coordination_task" in source(aiokafka.consumer.group_coordinator.GroupCoordinator.close)
    app = make_app(load_settings({"CT_KAFKA_BOOTSTRAP": "127.0.0.1:9"}))
    consumer: Any = app._new_consumer()
    given_up = asyncio.get_running_loop().create_future()

    async def main_thread(*_: object) -> None:
        await given_up

    setattr(consumer, f"threadsafe_partitions_{what}", main_thread)
    call = getattr(consumer._thread, f"on_partitions_{what}")
    ended = asyncio.create_task(call({PARTITION}))
    await asyncio.sleep(0)
    ended.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ended
    given_up = asyncio.get_running_loop().create_future()
    given_up.set_exception(asyncio.CancelledError())  # as mode does with what its main thread cancelled
    await call({PARTITION})
    consumer._thread.thread_loop.close()


def test_the_coordinator_leaves_the_group_when_it_closes_and_ends_a_join_under_way_before() -> None:
    coordinator = aiokafka.consumer.group_coordinator.GroupCoordinator
    steps = source(coordinator.close)
    order = ["_closing.set_result", "await self._coordination_task", "_stop_heartbeat_task", "_maybe_leave_group"]
    places = [steps.index(step) for step in order]
    assert places == sorted(places)
    assert "if self._closing.done():\n            return" in steps, "the consumer's own stop closes it once more"
    leave = source(coordinator._maybe_leave_group)
    assert "if self.generation > 0 and self._group_instance_id is None:" in leave
    assert make_app(load_settings({"CT_KAFKA_BOOTSTRAP": "127.0.0.1:9"})).conf.consumer_group_instance_id is None


def test_the_coordinator_waits_after_an_error_for_a_call_that_faust_never_makes() -> None:
    """See _try_again_after_errors in stream/app.py."""
    coordinator = aiokafka.consumer.group_coordinator.GroupCoordinator
    assert "[self._error_consumed_fut, self._closing]" in source(coordinator._push_error_to_user)
    assert "self._coordinator.check_errors()" in source(aiokafka.AIOKafkaConsumer.getmany)
    thread = faust.transport.drivers.aiokafka.AIOKafkaConsumerThread
    assert "await fetcher.fetched_records(" in source(thread._fetch_records)
    assert "check_errors" not in source(faust.transport.drivers.aiokafka)
    routine = source(coordinator._GroupCoordinator__coordination_routine)
    assert routine.count("await self._push_error_to_user(exc)") == 2, "after an error, and after one of a task"
    assert "self._coordinator = GroupCoordinator(" in source(aiokafka.AIOKafkaConsumer.start)


def test_faust_notes_as_committed_what_it_failed_to_commit() -> None:
    """See _Consumer.on_partitions_revoked in stream/app.py."""
    steps = source(faust.transport.consumer.Consumer._commit_offsets)
    noted = "        self._committed_offset.update(committable_offsets)\n        self.app.monitor"
    assert noted in steps, "whatever did_commit says"
    revoked = source(faust.transport.consumer.Consumer.on_partitions_revoked)
    assert revoked.index("_committed_offset.pop") < revoked.index("self._on_partitions_revoked")


def test_unsubscribing_is_no_way_to_leave_from_every_state() -> None:
    """It would leave a member behind that has joined and not yet been told so, or end aiokafka's own task."""
    assert "self._coordinator.maybe_leave_group()" in source(aiokafka.AIOKafkaConsumer.unsubscribe)
    routine = source(aiokafka.consumer.group_coordinator.GroupCoordinator._GroupCoordinator__coordination_routine)
    assert "assignment = subscription.assignment" in routine
    assert "assert assignment is not None and assignment.active" in routine


def test_what_leaving_the_group_calls_in_faust_is_still_there() -> None:
    listener = source(faust.transport.drivers.aiokafka.ConsumerRebalanceListener.on_partitions_revoked)
    assert "thread.app.on_rebalance_start()" in listener, "we call it in its place"
    revoked = source(faust.app.base.App._on_partitions_revoked)
    order = ["stop_flow)()", "flow_control.suspend)()", "flow_control.clear)()", "_consumer_wait_empty", "revoked.send"]
    places = [revoked.index(step) for step in order]
    assert places == sorted(places)
    forgets = source(faust.transport.consumer.Consumer.on_partitions_revoked)
    assert forgets.index("self._acked.pop(tp, None)") < forgets.index("self._on_partitions_revoked"), (
        "it forgets acks that are not committed; if not, leaving needs no drain of its own before"
    )
    thread = faust.transport.drivers.aiokafka.AIOKafkaConsumerThread
    assert "self._consumer = self._create_consumer(loop=self.thread_loop)" in source(thread.on_start)
    assert "self._verify_aiokafka_event_path(now, tp)" in source(thread.verify_event_path)
    assert "self._verify_aiokafka_event_path(now, tp)" in source(thread.verify_recovery_event_path)
    assert "raise ConsumerStoppedError()" in source(thread._fetch_records)
    assert "await self._consumer.stop()" in source(thread.on_thread_stop)


async def test_a_recovery_under_way_is_given_up_by_its_signal_and_begins_again_with_nothing() -> None:
    app = make_app(load_settings({"CT_KAFKA_BOOTSTRAP": "127.0.0.1:9"}))
    tables: Any = app.tables
    recovery = tables.recovery
    recovery.active_tps.add(TP("changelog", 0))
    under_way = asyncio.create_task(recovery._wait(asyncio.sleep(60)))
    await asyncio.sleep(0)
    await give_up_recovery(app)
    assert under_way.done(), "Faust takes more steps of the loop now"
    with pytest.raises(faust.tables.recovery.RebalanceAgain):
        await under_way
    assert not recovery.active_tps
    with pytest.raises(faust.tables.recovery.RebalanceAgain):
        await recovery._wait(asyncio.sleep(60))  # what it begins between two waits ends as well
    steps = source(faust.tables.recovery.Recovery._restart_recovery.fun)
    assert "except RebalanceAgain" in steps
    assert "assigned_active_tps = self.active_tps" in steps, "it looks at the same set when it begins again"
    assert "await self._wait(T(self.on_recovery_completed)(generation_id))" in steps


async def test_a_call_to_a_consumer_that_leaves_ends() -> None:
    """What is committed is looked up by a task that ends with the coordinator: who waits for it waits for ever."""
    close = source(aiokafka.consumer.group_coordinator.GroupCoordinator.close)
    assert "_stop_commit_offsets_refresh_task" in close
    app = make_app(load_settings({"CT_KAFKA_BOOTSTRAP": "127.0.0.1:9"}))
    consumer: Any = app._new_consumer()
    thread = consumer._thread
    never = asyncio.get_running_loop().create_future()
    call = asyncio.create_task(thread._until_left(lambda: never))
    await asyncio.sleep(0)
    stopped: list[bool] = []

    async def stop() -> None:
        stopped.append(True)

    thread._consumer = SimpleNamespace(stop=stop)
    await thread.take(None)
    with pytest.raises(IllegalStateError):
        await call
    assert stopped
    assert await thread._until_left(lambda: 1) == 1
    given_up = asyncio.create_task(thread._until_left(asyncio.sleep, 60))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    thread.thread_loop.close()


async def test_a_consumer_that_waits_outside_the_group_can_be_polled_again_after_a_week() -> None:
    heartbeat = source(aiokafka.consumer.group_coordinator.GroupCoordinator._heartbeat_routine)
    assert "idle_time = self._subscription.fetcher_idle_time" in heartbeat
    subscription = aiokafka.consumer.subscription_state.SubscriptionState()
    subscription._last_fetch_ended -= 1_000_000
    assert subscription.fetcher_idle_time > 900_000
    with subscription.fetch_context():
        pass
    assert subscription.fetcher_idle_time < 60


def test_the_changelog_has_the_name_that_topics_are_made_with() -> None:
    app = make_app(load_settings({"CT_KAFKA_BOOTSTRAP": "127.0.0.1:9"}))
    table: Any = app.Table(TABLE, partitions=12, key_type=str, value_type=str)
    assert app.conf.id == GROUP
    assert table.changelog_topic.get_topic_name() == CHANGELOG


def test_the_app_serves_no_web_pages_and_needs_no_disk() -> None:
    app = make_app(load_settings({"CT_KAFKA_BOOTSTRAP": "127.0.0.1:9"}))
    assert not app.conf.web_enabled
    assert "self._create_directories()" in source(faust.app.base.App.on_first_start)
    assert "_create_directories" in vars(GateApp)
