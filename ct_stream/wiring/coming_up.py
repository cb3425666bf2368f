"""The checks before a worker starts to work.

If something may come back by itself (a database or a broker that does not answer), the worker says so and waits. If
only a person can repair it, the worker refuses to start, with a line that names the command.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from aiokafka.errors import KafkaError

from ct_stream.probes.mx import MAX_ASKING
from ct_stream.process.descriptors import LEAST, raise_limit, room
from ct_stream.process.health import health_server
from ct_stream.process.watchdog import MOST_EXITS
from ct_stream.store.connecting import UnusablePooler, WrongLogin
from ct_stream.store.exits import WATCHDOG_RAIL, hung_again
from ct_stream.store.misfit import Misfit
from ct_stream.store.outage import ANY_TROUBLE, UnfitDatabase, sentence_of
from ct_stream.store.rehearsal import rehearse
from ct_stream.stream.position import committed_offsets, cut_off
from ct_stream.stream.refusals import explain
from ct_stream.stream.rights import Denied, require_rights
from ct_stream.stream.topology import TopologyError, check_topics, names_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from ct_stream.metrics import Health, Metrics
    from ct_stream.process.descriptors import Room
    from ct_stream.process.ending import StopSignals
    from ct_stream.settings import Settings
    from ct_stream.store.database import Database
    from ct_stream.store.guardrails import Guardrails
    from ct_stream.store.rehearsal import Rehearsal
    from ct_stream.store.worker_record import WorkerRecord
    from ct_stream.stream.producer import Producer

log = logging.getLogger(__name__)

Found = TypeVar("Found")

_RETRY_S = 2.0
_CUT_OFF_LOOKS = 3


class Refused(Exception):
    """The worker must not start; the message says why and names the command that repairs it."""


class Stopped(Exception):
    """The worker was told to stop before it started to work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the Kafka cluster knows about us."""

    partitions: int  #: of spine.created
    group_is_new: bool


class ComingUp:
    """The steps of starting. Each returns when it is done, and may raise Stopped or Refused."""

    def __init__(self, settings: Settings, stop: StopSignals, health: Health) -> None:
        self._settings = settings
        self._stop = stop
        self._health = health

    def room(self) -> Room:
        """Return what fits into the descriptors that we may open, and say so if that is less than wanted."""
        descriptors, wanted = raise_limit(), self._settings.in_flight
        if descriptors < LEAST:
            raise Refused(
                f"this process may open only {descriptors} files and sockets, and a worker needs at least {LEAST}; "
                "raise the limit (ulimit -n, LimitNOFILE, --ulimit nofile)"
            )
        fits = room(wanted, descriptors, most_asking=MAX_ASKING)
        if fits.in_flight < wanted:
            sentence = f"{fits.in_flight} companies at a time, not {wanted}: only {descriptors} files may be open"
            log.warning("Deciding %s; raise the limit (ulimit -n)", sentence, extra={"action": "few_descriptors"})
            self._health.notes["descriptors"] = sentence
        return fits

    @asynccontextmanager
    async def served(self, metrics: Metrics) -> AsyncIterator[int]:
        """Serve health and metrics for the duration of a block; yield the port."""
        host, port = self._settings.web_host, self._settings.web_port
        async with AsyncExitStack() as stack:
            try:
                served = await stack.enter_async_context(health_server(host, port, self._health, metrics))
            except OSError as error:
                raise Refused(
                    f"cannot listen on CT_WEB_HOST {host!r}, CT_WEB_PORT {port}: {error}; "
                    "set CT_WEB_PORT to a free port, or 0 for any"
                ) from error
            yield served

    async def postgres(self, database: Database) -> None:
        """Wait for the ledger, then rehearse recording there: what does not fit would make each company stuck."""

        async def rehearsed() -> Rehearsal:
            async with database.connection(meets_users=True) as connection:
                return await rehearse(connection)

        try:
            await self._until_up("postgres", database.open)
        except (UnusablePooler, WrongLogin) as error:
            raise Refused(f"CT_POSTGRES_DSN {error}") from error
        try:
            rehearsal = await self._until_up("postgres", rehearsed)
        except Misfit as error:
            raise Refused(str(error)) from error
        log.info("Postgres: %s", rehearsal, extra={"action": "rehearsal"})

    async def same_toolbox(self, record: WorkerRecord) -> None:
        """Refuse limits or patterns that differ from those of a worker that is running."""
        refusal = await record.begin()
        if refusal is not None:
            raise Refused(refusal)

    async def kafka(self) -> Cluster:
        """Wait for the cluster, with our topics in it."""
        return await self._until_up("kafka", self._cluster)

    async def producer(self, producer: Producer) -> None:
        """Wait until the cluster takes a producer."""
        await self._until_up("kafka", producer.start)

    async def ends(self, *, tells_ends: bool) -> None:
        """Refuse a topic that ends before the group's committed offset: new records below it would count as read.

        `tells_ends`: False for the embedded broker, whose end offsets are wrong.
        """
        if tells_ends:
            await self._until_up("kafka", self._check_ends)

    async def first_start(self, database: Database, cluster: Cluster, *, allowed: bool) -> None:
        """Refuse a group that Kafka does not know while outcomes exist: it would read everything again."""
        names = names_of(self._settings)
        row = (await database.persist("has_own_outcomes"))[0]
        if cluster.group_is_new and row["has_outcomes"] and not allowed:
            raise Refused(
                f"Kafka does not know the group {names.group}, but this ledger has outcomes: is this the right cluster "
                "and CT_KAFKA_PREFIX, or were the group's offsets lost? Start with --first-start to read "
                f"{names.spine_created} from its beginning (no company is decided twice)"
            )

    async def not_hung_again(self, database: Database, guardrails: Guardrails, *, within_s: float) -> None:
        """Wait while the guardrail `watchdog` is halted.

        It is halted here, if workers hung several times at one place: one more restart would change nothing.
        """
        await guardrails.refresh(now=True)
        again = await hung_again(database, within_s, MOST_EXITS)
        if again is not None:
            await guardrails.set_state(WATCHDOG_RAIL, "halted", again, None)
        while (reason := guardrails.halted.get(WATCHDOG_RAIL)) is not None:
            if "watchdog" not in self._health.troubles:
                why = f"{reason}; no event is taken until a person runs `ct-stream guardrails resume {WATCHDOG_RAIL}`"
                log.error("Workers keep hanging: %s", why, extra={"action": "watchdog_halted"})
                self._health.set("watchdog", why)
                self._health.set("start", None)
            await self._rest()
            await guardrails.refresh(now=True)
        self._health.set("watchdog", None)
        if self._stop.asked.is_set():
            raise Stopped  # before Faust joins the group

    # ---------------------------------------------------------------- trying again

    async def _cluster(self) -> Cluster:
        await require_rights(self._settings)  # first: a topic that we may not see looks as if it were missing
        partitions = (await check_topics(self._settings))[names_of(self._settings).spine_created]
        return Cluster(partitions=partitions, group_is_new=not await committed_offsets(self._settings))

    async def _check_ends(self) -> None:
        for _ in range(_CUT_OFF_LOOKS):  # a partition's new leader may not know its end yet
            found = await cut_off(self._settings)
            if not found:
                return
            await asyncio.sleep(_RETRY_S)
        raise Refused("; ".join(map(str, found)))

    async def _until_up(self, part: str, connect: Callable[[], Awaitable[Found]]) -> Found:
        """Try until it works, and say why it does not."""
        said = None
        while not self._stop.asked.is_set():
            try:
                found = await connect()
            except Denied as error:
                sentence = str(error)
            except TopologyError as error:
                raise Refused(str(error)) from error
            except UnfitDatabase as error:
                sentence = f"CT_POSTGRES_DSN: {error}"
            except (*ANY_TROUBLE, KafkaError) as error:
                if part == "postgres":
                    sentence = f"CT_POSTGRES_DSN: {sentence_of(error)}"
                else:
                    sentence = str(await explain(self._settings, error))
            else:
                self._health.set(part, None)
                return found
            self._health.set(part, sentence)
            if sentence != said:
                log.warning("Waiting: %s", sentence, extra={"action": f"{part}_down"})
                said = sentence
            await self._rest()
        raise Stopped

    async def _rest(self) -> None:
        """Wait for the next try. Raises Stopped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.asked.wait(), _RETRY_S)
        if self._stop.asked.is_set():
            raise Stopped
