"""Sets up Faust so that it neither loses an event nor hangs. The reasons are in docs/adr."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast
from urllib.parse import quote

import faust
from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from faust.auth import SASLCredentials, SSLCredentials
from faust.transport.drivers import aiokafka as driver

from ct_stream.stream.rights import is_denied
from ct_stream.stream.topology import kafka_options, names_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
    from datetime import datetime

    from aiokafka import AIOKafkaConsumer
    from faust.types import TP

    from ct_stream.settings import Settings

log = logging.getLogger(__name__)

Result = TypeVar("Result")

SESSION_TIMEOUT_S = 45.0
_REBALANCE_TIMEOUT_S = 60.0
_EMBEDDED_TIMEOUT_S = 6.0
_RECOVERED_POLL_S = 0.02
_REFUSED_S = 1.0
_STEPS_TO_GIVE_UP = 50  #: of the loop; Faust takes about five


class _Left(IllegalStateError):  # type: ignore[misc]  # aiokafka has no types
    """A call to a consumer that has left the group meanwhile; as if its partitions were revoked, to Faust."""


class _ConsumerThread(driver.AIOKafkaConsumerThread):
    """Reads only what upstream has committed, and outlives the time in which it may not read or commit.

    Unless it is transactional itself, Faust also reads uncommitted records (faust/transport/drivers/aiokafka.py), and
    has no setting to change it. An event that upstream aborted would then be decided for good.

    Faust crashes when a right is taken from our login. Here it waits until the right is granted again;
    wiring/watching.py says so meanwhile.
    """

    is_denied_commits = False  #: whether the last commit was refused for want of a right

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._calls: set[asyncio.Future[Any]] = set()  # of the main thread to the consumer

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # read when it starts (contract-tested)
        commit = consumer.commit

        async def commit_if_allowed(offsets: Any) -> None:
            try:
                await commit(offsets)
            except KafkaError as error:
                if not is_denied(error):
                    raise
                self.is_denied_commits = True
                raise CommitFailedError("denied; to Faust as if already rebalanced") from error  # it skips this one
            self.is_denied_commits = False

        start = consumer.start

        async def start_and_try_again() -> None:
            await start()
            _try_again_after_errors(consumer._coordinator, self.app)  # there is none before

        consumer.commit = commit_if_allowed
        consumer.start = start_and_try_again
        return consumer

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Have the main thread take the partitions, unless Faust gives that up because it stops."""
        cast("GateApp", self.app).refused = None
        await _unless_given_up(super().on_partitions_assigned(assigned, generation_id))

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Have the main thread finish with the partitions, unless Faust gives that up because it stops."""
        await _unless_given_up(super().on_partitions_revoked(revoked))

    async def _fetch_records(self, consumer: Any, *args: Any, **kwargs: Any) -> Mapping[TP, list[Any]]:
        try:
            return await super()._fetch_records(consumer, *args, **kwargs)
        except ConsumerStoppedError:
            if consumer is self._consumer:
                raise
            return {}  # another one has taken its place: we left the group
        except KafkaError as error:
            if not is_denied(error):
                raise
        await asyncio.sleep(_REFUSED_S)
        return {}

    # ---------------------------------------------------------------- leaving the group (membership.py)

    async def call_thread(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a call to the consumer in this thread. Raises IllegalStateError if that consumer leaves meanwhile."""
        return await super().call_thread(self._until_left, fun, *args, **kwargs)

    async def _until_left(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a call. A consumer that is closed would never answer some of them, such as what is committed."""
        result = fun(*args, **kwargs)
        if not inspect.isawaitable(result):
            return result
        call = asyncio.ensure_future(result)
        self._calls.add(call)
        try:
            return await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():  # it is not the call that was given up
                raise
            raise _Left("the group was left") from None
        finally:
            self._calls.discard(call)

    async def getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ASYNC109, Faust's own
        """Fetch records: none from a consumer that leaves meanwhile."""
        try:
            return await super().getmany(active_partitions, timeout)
        except _Left:
            return {}

    async def run_here(self, call: Coroutine[Any, Any, Result]) -> Result:
        """Run a call in this thread, and wait for it in the main one.

        Not through the thread's queue: it serves two calls at a time, and a call that waits for the main thread to
        drain would hold up the drain's commit.
        """
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(call, self.thread_loop))

    def topics_read(self) -> frozenset[str]:
        """Return the topics that are subscribed to; none before Faust has subscribed, and after the group was left."""
        return frozenset() if self._consumer is None else frozenset(self._consumer.subscription())

    async def new_spare(self) -> AIOKafkaConsumer:
        """Return a consumer that is connected and in no group, as Faust's own is before it subscribes."""
        spare = self._create_consumer(loop=self.thread_loop)
        try:
            await spare.start()
        except BaseException:
            with suppress(Exception):
                await spare.stop()
            raise
        return spare

    async def leave_group(self) -> None:
        """Leave the group at once, as at the end of a process; a rebalance under way is finished before.

        It is aiokafka's coordinator that closes. `unsubscribe` would also send LeaveGroup, but not from every state:
        during a join the group keeps a member that never answers, and during a look-up of the coordinator an assertion
        ends aiokafka's own task.
        """
        await self._ensure_consumer()._coordinator.close()

    async def take(self, spare: AIOKafkaConsumer) -> None:
        """Use this consumer instead of the one that has left the group, which is stopped."""
        left, self._consumer = self._ensure_consumer(), spare
        cast("GateApp", self.app).refused = None
        for call in self._calls:
            call.cancel()
        await left.stop()

    async def look_alive(self) -> None:
        """Restart the time in which nothing was polled: after a week of it aiokafka leaves the group."""
        with self._ensure_consumer()._subscription.fetch_context():
            self.time_started = time.monotonic()

    def _verify_aiokafka_event_path(self, now: float, tp: TP) -> bool:
        """Check that a partition is read, if it is ours: Faust asks for those that it saw a moment ago."""
        return tp not in self.assignment() or bool(super()._verify_aiokafka_event_path(now, tp))


def _try_again_after_errors(coordinator: Any, app: Any) -> None:
    """Have aiokafka's coordinator try again when Kafka refuses it something, until it does not.

    It hands its errors to whoever calls `getmany`, and does nothing until then; Faust calls the fetcher below it
    (contract-tested). Such a consumer is out of the group for ever, though it may read on, and commit as one that is
    in no group, which Kafka allows while the group is empty.
    """

    async def try_again(error: KafkaError) -> None:
        for name in ("_heartbeat_task", "_commit_refresh_task"):
            task = getattr(coordinator, name)
            if task is not None and task.done():  # by this error; only a rejoin starts another one
                setattr(coordinator, name, None)
                coordinator.request_rejoin()
        # An error may also be one of a look-up, while the member goes on as it was.
        subscription = coordinator._subscription.subscription
        app.refused = error if subscription is not None and coordinator.need_rejoin(subscription) else None
        await asyncio.wait([coordinator._closing], timeout=_REFUSED_S)

    coordinator._push_error_to_user = try_again


async def _unless_given_up(call: Awaitable[None]) -> None:
    """Wait for a call to the main thread; return too if it was cancelled there.

    aiokafka waits in its own task, and for that task when it closes. Ended by a CancelledError, it would neither leave
    the group nor close its connections (aiokafka/consumer/group_coordinator.py, close), and the other workers would
    wait for this one as long as a session lasts.
    """
    try:
        await call
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():  # aiokafka's task itself is meant
            raise
        log.info("A rebalance was given up, because the worker stops", extra={"action": "rebalance_given_up"})


class _Consumer(driver.Consumer):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._owed: dict[TP, int] = {}  # what the last commit was denied; Faust takes it for committed

    def _new_consumer_thread(self) -> driver.AIOKafkaConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _filter_committable_offsets(self, tps: Iterable[TP]) -> dict[TP, int]:
        return self._owed | super()._filter_committable_offsets(tps)

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        did_commit = await super()._commit_offsets(offsets, start_new_transaction)
        thread: Any = self._thread
        self._owed = dict(offsets) if thread.is_denied_commits else {}
        return did_commit

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Forget what is owed: the next owner commits for itself.

        Forget too what the last commit named. Faust notes it after a commit that failed as well, and forgets only what
        was noted before (contract-tested). An event that came once more would then not be acked.
        """
        await super().on_partitions_revoked(revoked)
        self._owed = {}
        for tp in revoked:
            self._committed_offset.pop(tp, None)


class _Producer(driver.Producer):
    """Dates records by the app's clock: Kafka 4 refuses what a machine whose clock is ahead has dated."""

    async def send(self, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        """Send a record with the time of now."""
        call = _SEND.bind(self, *args, **kwargs)
        now = cast("GateApp", self.app).now
        if now is not None:
            call.arguments["timestamp"] = now().timestamp()
        return await super().send(*call.args[1:], **call.kwargs)


_SEND = inspect.signature(driver.Producer.send)


class _Transport(driver.Transport):
    Consumer = _Consumer
    Producer = _Producer


class _Recovered(asyncio.Event):
    """The end of a table's recovery, as a state.

    Faust uses a signal that is set and cleared at once (faust/tables/recovery.py). If the changelog's last record comes
    before somebody waits for the signal, the wait never ends and no event is ever delivered.
    """

    def __init__(self, recovery: Any) -> None:
        super().__init__()
        self._recovery = recovery

    async def wait(self) -> Literal[True]:
        """Return when there is nothing left to recover."""
        while self._recovery.in_recovery:  # noqa: ASYNC110, Faust keeps a flag
            await asyncio.sleep(_RECOVERED_POLL_S)
        return True


async def give_up_recovery(app: GateApp) -> None:
    """Let Faust stop what it does to recover a table, as at a rebalance that assigns nothing (contract-tested).

    It then waits in the offset guard's hold for the next assignment. To be called after the guard was told that the
    partitions are revoked.
    """
    tables: Any = app.tables
    recovery = tables.recovery
    recovery.active_tps.clear()
    recovery.signal_recovery_start.set()
    for _ in range(_STEPS_TO_GIVE_UP):
        await asyncio.sleep(0)


class GateApp(faust.App):
    """A Faust app that reads only committed records, and whose drain is bounded and acks nothing that it gives up."""

    drain: Callable[[], Awaitable[None]] | None = None
    now: Callable[[], datetime] | None = None  #: the clock that dates records; None: this machine's
    refused: KafkaError | None = None  #: why the group last refused this member, until it assigns partitions

    def _new_transport(self) -> Any:
        return _Transport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> Any:
        return _Transport(self.conf.broker_producer, self)

    def _create_directories(self) -> None:
        """Create no folders: the table's store is in memory, so a worker needs no disk."""

    async def _consumer_wait_empty(self, consumer: Any, logger: Any) -> None:  # noqa: ARG002
        """Replace the unbounded wait of faust/app/base.py at a rebalance and at the end (contract-tested)."""
        if self.drain is not None:
            await self.drain()
        # While a commit is under way, Faust's commit does nothing; that one was asked before the last events were done.
        while await consumer.maybe_wait_for_commit_to_finish():
            pass
        await consumer.commit_and_end_transactions()


def make_app(settings: Settings, *, is_embedded: bool = False, now: Callable[[], datetime] | None = None) -> GateApp:
    """Return the app; nothing is connected yet.

    The embedded broker answers a JoinGroup only after half the session timeout, so both timeouts are short for it.
    """
    session_s = _EMBEDDED_TIMEOUT_S if is_embedded else SESSION_TIMEOUT_S
    servers = (settings.kafka_bootstrap or "").split(",")
    group = names_of(settings).group
    app = GateApp(
        group,
        broker=[f"kafka://{quote(server, safe=':[].-')}" for server in servers],
        broker_credentials=_credentials(settings),
        broker_client_id=group,
        broker_commit_interval=1.0,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=min(3.0, session_s / 3),
        broker_rebalance_timeout=_EMBEDDED_TIMEOUT_S if is_embedded else _REBALANCE_TIMEOUT_S,
        broker_request_timeout=90.0,
        # When nothing more fits in hand, Faust stops fetching; then aiokafka would leave the group (aiokafka issue
        # 1187).
        broker_max_poll_interval=604_800.0,
        consumer_auto_offset_reset="earliest",
        topic_disable_leader=True,
        topic_allow_declare=False,
        table_standby_replicas=0,
        store="memory://",
        # By its wrong end offsets Faust would have read a changelog beyond its end, after a rebalance or two.
        recovery_consistency_check=not is_embedded,
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=False,
        web_bind="127.0.0.1",
        web_tables_enabled=False,
        web_router_enabled=False,
        worker_redirect_stdouts=False,
        autodiscover=False,
    )
    app.now = now
    tables: Any = app.tables
    tables.recovery._signal_recovery_end = _Recovered(tables.recovery)  # contract-tested
    return app


def _credentials(settings: Settings) -> Any:
    if settings.kafka_security_protocol == "PLAINTEXT":
        return None
    options = kafka_options(settings)
    context = options.get("ssl_context")
    if settings.kafka_security_protocol == "SSL":
        return SSLCredentials(context)
    return SASLCredentials(
        username=settings.kafka_sasl_username,
        password=settings.kafka_sasl_password,
        mechanism=settings.kafka_sasl_mechanism,
        ssl_context=context,
    )
