"""The worker: a parts list, the order in which the parts come up, and the way they go down."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
import uuid
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import asyncpg
import uvloop
from aiokafka.errors import KafkaError

from ct_stream.gate.questions import ControlKind
from ct_stream.gate.waits import control_wait
from ct_stream.metrics import Health, Metrics
from ct_stream.probes.probing import Probing, make_probing
from ct_stream.probes.tier2_vendors import make_vendor
from ct_stream.probes.toolbox import Toolbox, load_toolbox
from ct_stream.probes.vendor_client import VendorClient
from ct_stream.store.control_ledger import ControlLedger
from ct_stream.store.database import Database
from ct_stream.store.domain_memory import DomainMemory
from ct_stream.store.exits import WATCHDOG_RAIL, Exit, hung_again, record_exit
from ct_stream.store.guardrails import SMTP_RAIL, Guardrails, InputCheck, SpineCheck
from ct_stream.store.ledger import Ledger
from ct_stream.store.limits import Limits, SharedLimits
from ct_stream.store.outage import OUTAGE, UnfitDatabase
from ct_stream.store.paid_attempts import PaidAttempts, PaidLimits
from ct_stream.store.parked import ParkedCompanies
from ct_stream.stream import connection
from ct_stream.stream.agents import GateAgent
from ct_stream.stream.app import GateApp, make_app
from ct_stream.stream.companies import Companies
from ct_stream.stream.dedupe import DedupeTable
from ct_stream.stream.delivery import Delivery
from ct_stream.stream.offset_guard import OffsetGuard
from ct_stream.stream.outbox import Outbox, Producer
from ct_stream.stream.position import committed_offsets, cut_off, end_of, first_records, lag, next_offsets
from ct_stream.stream.topology import CHANGELOG, SPINE_CREATED, TopologyError, check_topics
from ct_stream.stream.waits import Scheduler
from ct_stream.wiring.alerts import Alerts, alerting
from ct_stream.wiring.descriptors import LEAST, Room, raise_limit, room
from ct_stream.wiring.ending import EXIT_BUG, EXIT_REFUSED, StopSignals, run_to_the_end
from ct_stream.wiring.garbage import collect_seldom
from ct_stream.wiring.health import health_server
from ct_stream.wiring.pulse import Pulse
from ct_stream.wiring.tier2 import PaidCalls
from ct_stream.wiring.watchdog import MOST_EXITS, Senses, Thresholds, Watchdog
from ct_stream.wiring.world import GateParts, WorkerGate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from datetime import datetime
    from uuid import UUID

    from faust.types import TP

    from ct_stream.gate.output_stage import Origin, Outcome
    from ct_stream.gate.records import Known, Parked, Publication, Resumed
    from ct_stream.gate.waits import Wait
    from ct_stream.settings import Settings

log = logging.getLogger(__name__)

_STUCK_AN_HOUR = 20
_RETRY_S = 2.0
_CUT_OFF_LOOKS = 3
_EMBEDDED_TIMEOUT_S = 6.0
_GAUGES_EVERY_S = 5.0
_DATABASE_EVERY_S = 0.5
_LAG_EVERY_S = 15.0
_LAG_TIMEOUT_S = 25.0
_CONTROLS_EVERY_S = 1.0
_OUTAGE_TIMEOUT_S = 20.0  #: for Postgres and Kafka to answer before the watchdog bites


#: Troubles in which nobody is at fault for what stands still: theirs, or known and told.
_EXCUSES = ("postgres", "kafka", "kafka_group", "ledger")


class Refused(Exception):
    """The worker must not start; the message says why and names the command that mends it."""


def run_worker(settings: Settings, *, first_start: bool = False) -> int:
    """Run until told to stop; return the exit code."""
    settings.require("kafka_bootstrap", "postgres_dsn", "smtp_helo", "smtp_mail_from")
    toolbox = load_toolbox(settings.toolbox)
    connection.install()
    collect_seldom()
    return run_to_the_end(_main(settings, toolbox, first_start=first_start), uvloop.new_event_loop)


async def _main(settings: Settings, toolbox: Toolbox, *, first_start: bool) -> int:
    stop = StopSignals(settings.drain_s)
    stop.install()
    try:
        worker = Worker(settings, toolbox, stop)
        return await worker.run(first_start=first_start)
    except Refused as refusal:
        log.error("%s", refusal, extra={"action": "refused"})
        return EXIT_REFUSED


class Worker:
    """One worker process."""

    def __init__(self, settings: Settings, toolbox: Toolbox, stop: StopSignals) -> None:
        self.settings = settings
        self.toolbox = toolbox
        self.stop = stop
        self.version = _version()
        self.owner = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self.metrics = Metrics()
        self.health = Health()
        self.alerts = Alerts(settings.alert_webhook, self.owner, self.version, self.metrics)
        self.database = Database(settings.postgres_dsn or "", application_name="ct-stream worker")
        self.producer = Producer(settings, self.health)
        self._group_is_new = False
        # While a control fails companies are put away before anything is asked, and once as many wait as may be in
        # flight nothing more is pulled. What needs no network (NOT-FOUND, NO-DOMAIN) goes on until then.
        self._own_trouble: Wait | None = None
        self._undecided = 0
        self._spawned: set[asyncio.Task[None]] = set()
        self._fits = self._room()
        self._agent: GateAgent | None = None
        self._scheduler: Scheduler | None = None
        self._delivery: Delivery | None = None
        self._app: GateApp | None = None
        self._input_control: InputCheck | None = None
        self.pulse = Pulse()
        self.thresholds = Thresholds.of(settings.pass_deadline_s)
        self.watchdog = Watchdog(SPINE_CREATED, self.thresholds, self._senses())

    async def run(self, *, first_start: bool) -> int:
        """Bring the parts up in order, work, and take them down in the opposite order."""
        settings, health = self.settings, self.health
        health.set("start", "starting")
        async with AsyncExitStack() as stack:
            self.watchdog.start()
            stack.callback(self.watchdog.stop)
            self.pulse.start()
            stack.callback(self.pulse.stop)
            try:
                port = await stack.enter_async_context(
                    health_server(settings.web_host, settings.web_port, health, self.metrics)
                )
            except OSError as error:
                raise Refused(
                    f"CT_WEB_HOST {settings.web_host!r} CT_WEB_PORT {settings.web_port} cannot be served: {error}; "
                    "set CT_WEB_PORT to a free port, or 0 for any"
                ) from error
            log.info("Health and metrics on http://%s:%d", settings.web_host, port, extra={"action": "serving"})
            await stack.enter_async_context(alerting(self.alerts))
            stack.push_async_callback(self.database.close)
            if not await self._until_up("postgres", self.database.open):
                return self.stop.exit_code
            if not await self._until_up("kafka", self._check_kafka):
                return self.stop.exit_code
            await self._check_first_start(first_start=first_start)
            if not await self._until_up("kafka", self.producer.start):
                return self.stop.exit_code
            stack.push_async_callback(self.producer.stop)
            if not await self._until_up("kafka", self._check_ends):
                return self.stop.exit_code
            return await self._work(stack)

    def _room(self) -> Room:
        """Return what fits into the descriptors that the system lets us open, and say where it is less than wanted."""
        descriptors, wanted = raise_limit(), self.settings.in_flight
        if descriptors < LEAST:
            raise Refused(
                f"the system lets this process open {descriptors} files, sockets among them; a worker needs {LEAST} at "
                "least: raise the limit (ulimit -n, LimitNOFILE, --ulimit nofile)"
            )
        fits = room(wanted, descriptors)
        if fits.in_flight < wanted:
            sentence = f"{fits.in_flight} companies in flight, not {wanted}: only {descriptors} files may be open"
            log.warning("%s; raise the limit (ulimit -n)", sentence, extra={"action": "few_descriptors"})
            self.health.notes["descriptors"] = sentence
        return fits

    # ---------------------------------------------------------------- coming up

    async def _until_up(self, part: str, connect: Callable[[], Awaitable[Any]]) -> bool:
        """Try until it works, saying why it does not; False when told to stop meanwhile."""
        said = None
        while not self.stop.asked.is_set():
            try:
                await connect()
            except (OSError, TimeoutError, KafkaError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                where = (
                    "CT_POSTGRES_DSN" if part == "postgres" else f"CT_KAFKA_BOOTSTRAP {self.settings.kafka_bootstrap}"
                )
                sentence = f"{where} does not answer: {str(error).strip() or type(error).__name__}"
            except UnfitDatabase as error:
                sentence = f"CT_POSTGRES_DSN: {error}"
            except TopologyError as error:
                if "does not answer" not in str(error):
                    raise Refused(str(error)) from error
                sentence = str(error)
            else:
                self.health.set(part, None)
                return True
            self.health.set(part, sentence)
            if sentence != said:
                log.warning("Waiting: %s", sentence, extra={"action": f"{part}_down"})
                said = sentence
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stop.asked.wait(), _RETRY_S)
        return False

    async def _check_kafka(self) -> None:
        self._partitions = (await check_topics(self.settings))[SPINE_CREATED]
        self._group_is_new = not await committed_offsets(self.settings)

    async def _check_first_start(self, *, first_start: bool) -> None:
        """Refuse a group that Kafka does not know while outcomes exist: it would read everything again."""
        row = (await self.database.persist("has_own_outcomes"))[0]
        if self._group_is_new and row["has_outcomes"] and not first_start:
            raise Refused(
                "Kafka does not know the group ct-stream, but this ledger has outcomes: is this the right cluster, or "
                "were the group's offsets lost? Start with --first-start to read spine.created from its beginning "
                "(no company is decided twice)"
            )

    async def _check_ends(self) -> None:
        """Refuse a topic that ends before where the group stands: what came there would count as read."""
        if not self.producer.is_idempotent:
            return  # the embedded broker gives wrong end offsets
        for _ in range(_CUT_OFF_LOOKS):  # a partition's new leader may not know its end yet
            found = await cut_off(self.settings)
            if not found:
                return
            await asyncio.sleep(_RETRY_S)
        raise Refused("; ".join(map(str, found)))

    async def _end_of(self, tp: TP) -> int:
        """Return the offset of a partition's next record; the embedded broker cannot tell."""
        if not self.producer.is_idempotent:
            return sys.maxsize
        async with asyncio.timeout(_OUTAGE_TIMEOUT_S):
            return await end_of(self.settings, tp)

    # ---------------------------------------------------------------- at work

    async def _work(self, stack: AsyncExitStack) -> int:
        settings, database = self.settings, self.database
        probing = make_probing(settings, asking=self._fits.asking)
        rules = self.toolbox.rules()
        ledger = Ledger(database, rules.version)
        passes = ParkedCompanies(database, self.owner, self.version)
        limits = SharedLimits(database, self.owner, _limits(self.toolbox))
        memory = DomainMemory(database, rules.version)
        vendor = make_vendor(settings.tier2_provider, settings.tier2_url, settings.tier2_api_key)
        client = None if vendor is None else VendorClient(vendor)
        attempts = PaidAttempts(database, vendor.name if vendor else "", _paid_limits(self.toolbox))
        paid_calls = PaidCalls(attempts, client, self.metrics)
        for batches in (*ledger.batches, passes.park, *limits.batches, memory.recall, attempts.take):
            batches.start()
            stack.push_async_callback(batches.stop)
        controls = ControlLedger(database, self.toolbox.controls.interval_s)
        guardrails = Guardrails(database, self.toolbox.controls.settle_s)
        gate = WorkerGate(
            GateParts(
                rules=rules,
                probing=probing,
                limits=limits,
                memory=memory,
                controls=controls,
                guardrails=guardrails,
                spine_check=SpineCheck(database, guardrails),
                paid_calls=paid_calls,
                metrics=self.metrics,
                now=database.now,
                age_s=database.age_s,
                own_trouble=lambda: self._own_trouble,
                stalled_since=self.pulse.stalled_since,
                pass_deadline_s=settings.pass_deadline_s,
                spine_grace_s=settings.spine_grace_s,
            )
        )
        ledger_port = _LedgerPort(ledger, database)
        passes_port = _PassesPort(passes, database)
        outbox = Outbox(self.producer, ledger_port, self.metrics)
        companies = Companies(
            gate=gate,
            ledger=ledger_port,
            passes=passes_port,
            outbox=outbox,
            metrics=self.metrics,
            on_stuck=lambda _: self._spawn(self._watch_stuck(passes), "stuck"),
        )
        scheduler = Scheduler(
            companies=companies,
            passes=passes_port,
            ledger=ledger_port,
            leases=_Leases(companies, passes, limits, memory),
            controls=controls,
            ask_control=lambda kind: self._ask_control(probing, guardrails, kind),
            most_running=max(1, self._fits.in_flight // 2),
        )
        # The embedded broker (the one without idempotent producers) answers a JoinGroup after half the session timeout.
        short = None if self.producer.is_idempotent else _EMBEDDED_TIMEOUT_S
        app = make_app(settings, session_timeout_s=short, rebalance_timeout_s=short)
        input_check = InputCheck(guardrails)
        agent = self._make_agent(app, companies, ledger_port, scheduler, input_check)
        self._agent, self._input_control, self._scheduler, self._app = agent, input_check, scheduler, app
        await passes.retry_stuck()

        background = [
            asyncio.create_task(outbox.sweep(), name="outbox:sweep"),
            asyncio.create_task(self._watch_database(), name="database"),
            asyncio.create_task(self._gauges(agent, scheduler, passes, ledger, guardrails), name="gauges"),
            asyncio.create_task(self._watch_controls(controls), name="controls"),
            asyncio.create_task(self._watch_lag(), name="lag"),
            asyncio.create_task(self.alerts.relay(database), name="alerts:relay"),
        ]
        for task in background:
            task.add_done_callback(self._background_ended)
        starting = None
        if await self._may_begin(guardrails):
            pulling = [
                asyncio.create_task(scheduler.run(), name="waits"),
                asyncio.create_task(self.watchdog.run(), name="watchdog"),
            ]
            for task in pulling:
                task.add_done_callback(self._background_ended)
            background += pulling
            starting = asyncio.create_task(self._start(app, agent), name="faust")
        await self.stop.asked.wait()

        log.info("Stopping: running passes get %g s", settings.drain_s, extra={"action": "stopping"})
        self.health.set("start", "stopping")
        agent.stop_pulling()
        await asyncio.gather(
            scheduler.drain(settings.drain_s), self._stop_faust(app, starting), paid_calls.drain(settings.drain_s)
        )
        await companies.wait_parked()
        await gate.farewells.wait()
        for task in background:
            task.remove_done_callback(self._background_ended)
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await database.run("release_owner", self.owner, limits.limits.smtp_domain_pause_s)
        log.info("Stopped", extra={"action": "stopped"})
        return self.stop.exit_code

    def _make_agent(
        self,
        app: GateApp,
        companies: Companies,
        ledger_port: _LedgerPort,
        scheduler: Scheduler,
        input_check: InputCheck,
    ) -> GateAgent:
        guard = OffsetGuard(
            app,
            frozenset({SPINE_CREATED}),
            next_offsets=lambda tp, offset: next_offsets(self.settings, tp, offset),
            committed=self._committed,
            end_of=self._end_of,
        )
        agent = GateAgent(
            companies=companies,
            ledger=ledger_port,
            producer=self.producer,
            guard=guard,
            table=DedupeTable(app, self._partitions),
            metrics=self.metrics,
            health=self.health,
            input_check=input_check,
            in_flight=self._fits.in_flight,
            others_running=lambda: scheduler.running,
            may_pull=lambda: (
                (self._own_trouble is None or self._undecided < self._fits.in_flight) and not input_check.is_halted
            ),
            drain_s=self.settings.drain_s,
            on_fatal=self._fatal,
        )
        self._delivery = Delivery(
            positions=guard.positions,
            busy_at=lambda: time.monotonic() if guard.is_looking else agent.busy_at,
            first_records=lambda positions: first_records(self.settings, positions),
        )
        guard.connect()
        app.drain = agent.drain

        async def assigned(_app: Any, partitions: set[Any], **_: Any) -> None:
            agent.assigned()
            count = sum(1 for tp in partitions if tp.topic == SPINE_CREATED)
            log.info("Assigned %d partitions of %s", count, SPINE_CREATED, extra={"action": "assigned"})
            self.health.notes["partitions"] = f"{count} partitions of {SPINE_CREATED} are assigned"

        app.on_partitions_assigned.connect(assigned, weak=False)  # type: ignore[arg-type]
        app.agent(app.topic(SPINE_CREATED, key_serializer="raw", value_serializer="raw"), name="gate")(agent.consume)
        return agent

    async def _start(self, app: GateApp, agent: GateAgent) -> None:
        agent.join()
        try:
            await app.start()
        except Exception as error:
            log.exception("Faust did not start: %s", error)
            self.alerts.worker_stops(f"Faust did not start: {error}")
            self.stop.stop(EXIT_BUG)
            return
        self.health.set("start", None)
        log.info("Ready: reading %s as group ct-stream", SPINE_CREATED, extra={"action": "ready"})
        while not self.stop.asked.is_set():
            if app.crashed:
                log.critical("Faust crashed: %r", app.crash_reason)
                self.alerts.worker_stops(f"Faust crashed: {app.crash_reason!r}")
                self.stop.stop(EXIT_BUG)
                return
            await asyncio.sleep(0.5)

    async def _stop_faust(self, app: GateApp, starting: asyncio.Task[None] | None) -> None:
        if starting is None:
            return
        await app.stop()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)

    # ---------------------------------------------------------------- watching

    def _senses(self) -> Senses:
        """Return what the watchdog is told."""

        def excused() -> float:
            agent, control = self._agent, self._input_control
            if agent is None or control is None or control.is_halted:
                return time.monotonic()
            waits = agent.is_draining or agent.unassigned_since is not None
            if waits and not self._is_left():
                return time.monotonic()
            return max(self.health.troubled_until(*_EXCUSES), self.database.failed_at)

        def heads() -> dict[str, float]:
            return (self._agent.heads() if self._agent else {}) | (self._scheduler.heads() if self._scheduler else {})

        return Senses(
            heads=heads,
            done=lambda: self._agent.done() if self._agent else {},
            committed=self._committed,
            undelivered=self._undelivered,
            unassigned_since=lambda: self._agent.unassigned_since if self._agent else None,
            excused=excused,
            outage=self._outage,
            record=lambda places, reason: record_exit(
                self.settings.postgres_dsn or "",
                Exit(places=places, reason=reason, worker=self.owner, version=self.version),
            ),
        )

    async def _committed(self) -> dict[int, int]:
        """Return what the group has committed. Raises KafkaError (a RuntimeError), OSError or TimeoutError."""
        async with asyncio.timeout(_OUTAGE_TIMEOUT_S):
            return await committed_offsets(self.settings)

    async def _undelivered(self) -> dict[str, int]:
        """Return the record that waits in each partition that stands still, and say so. Raises as `_committed`.

        While the table's changelog is read nothing is delivered, however long it is: then how much of it is left.
        """
        if self._delivery is None or self._app is None:
            return {}
        tables: Any = self._app.tables
        recovery = tables.recovery
        self.health.notes.pop("recovery", None)
        if recovery.in_recovery:
            left = recovery.active_remaining_total()
            self.health.notes["recovery"] = f"reads the dedupe table's changelog: {left} records are left"
            return {CHANGELOG: left}
        async with asyncio.timeout(_OUTAGE_TIMEOUT_S):
            undelivered = await self._delivery.undelivered()
        found = {f"{tp.topic}[{tp.partition}]": offset for tp, offset in undelivered.items()}
        waiting = ", ".join(f"{partition} offset {offset}" for partition, offset in found.items())
        self.health.set("delivery", f"Kafka has {waiting} for us, and it is not delivered" if found else None)
        return found

    def _is_left(self) -> bool:
        """Tell if the group lets us wait for partitions longer than a rebalance takes: that is no drain any more."""
        since = self._agent.unassigned_since if self._agent else None
        return since is not None and time.monotonic() - since > self.thresholds.drain_s

    async def _outage(self) -> str | None:
        """Ask Postgres and Kafka; return why the world is at fault that something hangs, or None when both answer."""
        try:
            async with asyncio.timeout(_OUTAGE_TIMEOUT_S):
                await self.database.fetch("server")
        except OUTAGE as error:
            return f"Postgres does not answer: {error or type(error).__name__}"
        try:
            await self._committed()
        except (KafkaError, OSError, TimeoutError) as error:
            return f"Kafka does not answer: {error or type(error).__name__}"
        return None

    async def _may_begin(self, guardrails: Guardrails) -> bool:
        """Wait while the rail `watchdog` is halted; False when told to stop meanwhile.

        It is halted here, where workers hung again and again at one place: one more restart would change nothing.
        """
        await guardrails.refresh(now=True)
        again = await hung_again(self.database, self.thresholds.window_s, MOST_EXITS)
        if again is not None:
            await guardrails.set_state(WATCHDOG_RAIL, "halted", again, None)
        while (reason := guardrails.halted.get(WATCHDOG_RAIL)) is not None and not self.stop.asked.is_set():
            if "watchdog" not in self.health.troubles:
                why = f"{reason}; nothing is pulled until a person runs `ct-stream guardrails resume {WATCHDOG_RAIL}`"
                log.error("Not restarting for ever: %s", why, extra={"action": "watchdog_halted"})
                self.health.set("watchdog", why)
                self.health.set("start", None)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.stop.asked.wait(), _RETRY_S)
            await guardrails.refresh(now=True)
        self.health.set("watchdog", None)
        return not self.stop.asked.is_set()

    async def _watch_database(self) -> None:
        """Say what ails the database and this machine: apart from whoever waits for them."""
        while True:
            self.health.set("postgres", self.database.trouble)
            stalls = self.pulse.stalls_lately
            if stalls:
                self.health.notes["machine"] = (
                    f"this process stood still {stalls} times in the last five minutes (stopped, or too little CPU): "
                    "what servers did not say meanwhile is asked again"
                )
            else:
                self.health.notes.pop("machine", None)
            await asyncio.sleep(_DATABASE_EVERY_S)

    async def _gauges(
        self, agent: GateAgent, scheduler: Scheduler, passes: ParkedCompanies, ledger: Ledger, guardrails: Guardrails
    ) -> None:
        known: set[tuple[str, str]] = set()
        while True:
            self.metrics.running.set(agent.running + scheduler.running)
            self.metrics.unacked.set(len(agent.gates))
            self.metrics.oldest_unacked.set(agent.gates.oldest_age_s())
            counts = {(state, reason): n for state, reason, n, _ in await passes.waiting_by_reason()}
            for state, reason in known - set(counts):
                self.metrics.waiting.labels(state=state, reason=reason).set(0)
            for (state, reason), waiting in counts.items():
                self.metrics.waiting.labels(state=state, reason=reason).set(waiting)
            known |= set(counts)
            self._undecided = sum(counts.values())
            self._say_waiting(counts)
            self.metrics.unpublished.set(await ledger.count_unpublished())
            await guardrails.refresh()
            halts = [f"{key} is halted: {why}" for key, why in guardrails.halted.items()]
            self.health.set("guardrails", "; ".join(halts) or None)
            await asyncio.sleep(_GAUGES_EVERY_S)

    def _say_waiting(self, counts: dict[tuple[str, str], int]) -> None:
        for state in ("waiting", "stuck"):
            reasons = [f"{n} {reason}" for (its_state, reason), n in sorted(counts.items()) if its_state == state]
            if reasons:
                self.health.notes[state] = ", ".join(reasons)
            else:
                self.health.notes.pop(state, None)

    async def _watch_lag(self) -> None:
        if not self.producer.is_idempotent:
            # The embedded broker gives wrong end offsets: no number is better than a wrong one.
            self.metrics.lag.set(-1)
            self.health.notes["lag"] = "not supported by this broker"
            return
        while True:
            trouble = None
            try:
                async with asyncio.timeout(_LAG_TIMEOUT_S):
                    self.metrics.lag.set(await lag(self.settings))
            except (KafkaError, OSError, TimeoutError) as error:
                self.metrics.lag.set(-1)
                trouble = f"Kafka cannot be read, or does not know our group: {error or type(error).__name__}"
                if "kafka_group" not in self.health.troubles:
                    log.warning("%s", trouble, extra={"action": "kafka_down"})
            # A worker with nothing to publish would else not notice that the brokers are gone.
            self.health.set("kafka_group", trouble)
            await asyncio.sleep(_LAG_EVERY_S)

    async def _watch_controls(self, controls: ControlLedger) -> None:
        """Say, as all workers see it, whether our own way works; while it does not, nothing new is pulled."""
        while True:
            wait = None
            for kind in ControlKind:
                state = await controls.state(kind)
                way = "our resolvers" if kind is ControlKind.DNS else "our way out to port 25"
                sentence = f"{way}: {state.failed_detail}; companies wait" if state.is_failing else None
                self.health.set(f"control_{kind}", sentence)
                if sentence is not None:
                    wait = control_wait(kind, sentence)
            self._own_trouble = wait
            await asyncio.sleep(_CONTROLS_EVERY_S)

    async def _ask_control(self, probing: Probing, guardrails: Guardrails, kind: ControlKind) -> tuple[bool, str]:
        """Ask a control; one that refuses our address halts the tool until a person resumes it (address scope)."""
        result = await probing.ask_control(kind)
        if result.refused:
            await guardrails.set_state(SMTP_RAIL, "halted", f"a control refuses us: {result.detail}", None)
        return result.ok, result.detail

    async def _watch_stuck(self, passes: ParkedCompanies) -> None:
        if await passes.stuck_lately() >= _STUCK_AN_HOUR:
            self._fatal(f"{_STUCK_AN_HOUR} companies became stuck within an hour: this version has a bug")

    def _fatal(self, why: str) -> None:
        log.critical("Stopping: %s", why, extra={"action": "fatal"})
        if not self.stop.asked.is_set():
            self.alerts.worker_stops(why)
        self.stop.stop(EXIT_BUG)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("%s failed: %r", task.get_name(), error, exc_info=error)
            self._fatal(f"{task.get_name()} failed: {error!r}")

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._spawned.add(task)
        task.add_done_callback(self._spawned.discard)
        task.add_done_callback(self._background_ended)


def _version() -> str:
    try:
        return version("ct-stream")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+source"


def _limits(toolbox: Toolbox) -> Limits:
    return Limits(
        mx_per_second=toolbox.mx.per_second,
        mx_per_day=toolbox.mx.per_day,
        smtp_per_day=toolbox.smtp.per_day,
        smtp_domain_pause_s=toolbox.smtp.domain_pause_s,
        smtp_per_provider=toolbox.smtp.sessions_per_provider,
    )


def _paid_limits(toolbox: Toolbox) -> PaidLimits:
    return PaidLimits(
        per_second=toolbox.tier2.per_second,
        per_month=toolbox.tier2.per_month,
        usd_per_month=toolbox.tier2.usd_per_month,
        usd_per_call=toolbox.tier2.usd_per_call,
    )


# ---------------------------------------------------------------- the stream's ports, served by the store


@dataclass(frozen=True, slots=True)
class _LedgerPort:
    ledger: Ledger
    database: Database

    async def look_up(self, outreach_id: UUID, /) -> Known:
        return await self.ledger.look_up(outreach_id)

    async def record(self, outcome: Outcome, /) -> bool:
        return await self.ledger.record(outcome)

    async def claim(self, outreach_id: UUID, /) -> Publication | None:
        return await self.ledger.claim(outreach_id)

    async def claim_unpublished(self, limit: int, /) -> list[Publication]:
        return await self.ledger.claim_unpublished(limit)

    async def stamp(self, outreach_id: UUID, /) -> None:
        await self.ledger.stamp(outreach_id)

    def is_usable(self) -> bool:
        return self.database.is_up

    async def wait_usable(self) -> None:
        await self.database.wait_up()

    def now(self) -> datetime:
        return self.database.now()

    def epoch(self) -> str:
        return str(self.database.epoch)


@dataclass(frozen=True, slots=True)
class _PassesPort:
    passes: ParkedCompanies
    database: Database

    async def park(self, parked: Parked, /) -> None:
        await self.passes.park(parked)

    async def claim_due(self, limit: int, /) -> list[Resumed]:
        return await self.passes.claim_due(limit)

    async def give_back(self, ids: Sequence[UUID], /) -> None:
        await self.passes.give_back(ids)

    async def forget(self, outreach_id: UUID, /) -> None:
        await self.database.persist("forget", [outreach_id])

    async def count_exception(
        self, origin: Origin, event_at: datetime | None, detail: str, traceback: str, /
    ) -> tuple[int, str]:
        return await self.passes.count_exception(origin, event_at, detail, traceback)


@dataclass(frozen=True, slots=True)
class _Leases:
    companies: Companies
    passes: ParkedCompanies
    limits: SharedLimits
    memory: DomainMemory

    async def renew_leases(self) -> None:
        await self.passes.renew_leases(self.companies.in_hand, self.limits.held)

    async def wake_sleepers(self) -> None:
        await self.passes.wake_sleepers(self.limits.limits.smtp_per_provider)
        await self.limits.wake_capped()

    async def tidy(self) -> None:
        await self.memory.tidy()
