"""The worker: a list of its parts, from the process inward, and the order in which they start and stop."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

import uvloop

from ct_stream.company.admission import Admission
from ct_stream.company.checks import InputCheck, SpineCheck
from ct_stream.company.companies import Companies
from ct_stream.company.farewells import Farewells
from ct_stream.company.one_pass import GateParts, WorkerGate
from ct_stream.company.own_way import OwnWay
from ct_stream.company.paid_calls import PaidCalls
from ct_stream.company.publishing import Outbox
from ct_stream.company.standing_aside import StandsAside
from ct_stream.company.stuck import StuckBreaker
from ct_stream.company.upkeep import Upkeep
from ct_stream.company.waiting import Scheduler
from ct_stream.control_domains import plain_note
from ct_stream.metrics import Health, Metrics
from ct_stream.probes.probing import make_probing
from ct_stream.probes.tier2_vendors import make_vendor
from ct_stream.probes.toolbox import load_toolbox
from ct_stream.probes.vendor_client import VendorClient
from ct_stream.process.ending import EXIT_REFUSED, StopSignals, run_to_the_end
from ct_stream.process.garbage import collect_seldom
from ct_stream.process.identity import new_owner, our_version
from ct_stream.process.loops import Loops
from ct_stream.process.pulse import Pulse
from ct_stream.process.watchdog import Thresholds, Watchdog
from ct_stream.store.control_ledger import ControlLedger
from ct_stream.store.database import Database
from ct_stream.store.domain_memory import DomainMemory
from ct_stream.store.exits import ExitRecord
from ct_stream.store.guardrails import Guardrails
from ct_stream.store.ledger import Ledger
from ct_stream.store.limits import SharedLimits
from ct_stream.store.paid_attempts import PaidAttempts
from ct_stream.store.parked import ParkedCompanies
from ct_stream.store.worker_record import WorkerRecord
from ct_stream.stream import connection
from ct_stream.stream.agents import GateAgent
from ct_stream.stream.app import make_app
from ct_stream.stream.dedupe import DedupeTable
from ct_stream.stream.membership import Membership
from ct_stream.stream.position import OutsideView
from ct_stream.stream.producer import Producer
from ct_stream.stream.reading import Reading, guarded
from ct_stream.stream.topology import names_of
from ct_stream.wiring.alerts import AlertRelay, Alerts, alerting
from ct_stream.wiring.coming_up import ComingUp, Refused, Stopped
from ct_stream.wiring.fatal import Fatal
from ct_stream.wiring.senses import WorkerSenses
from ct_stream.wiring.watching import Gauges, Heartbeat, LagWatch, MachineWatch, PartitionWatch

if TYPE_CHECKING:
    from ct_stream.probes.toolbox import Toolbox
    from ct_stream.settings import Settings

log = logging.getLogger(__name__)

_LAST_CONTROLS_S, _LEAST_LAST_CONTROLS_S = 15.0, 2.0  #: what the drain has left, but not more, or less, than this
_FIRST_CONTROL_S = 5.0  #: to prove our own way before the first event comes, which would have to be parked


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
        async with AsyncExitStack() as stack:
            await _work(settings, toolbox, stop, stack, first_start=first_start)
    except Stopped:
        pass
    except Refused as refusal:
        log.error("%s", refusal, extra={"action": "refused"})
        return EXIT_REFUSED
    return stop.exit_code


async def _work(
    settings: Settings, toolbox: Toolbox, stop: StopSignals, stack: AsyncExitStack, *, first_start: bool
) -> None:
    """Start the parts in order and work until told to stop. The stack closes what is still open at the end."""
    # ---- the process
    owner, version = new_owner(), our_version()
    metrics, health = Metrics(), Health()
    metrics.worker_info.labels(worker=owner, egress=settings.egress).set(1)
    health.set("start", "starting")
    for note in settings.notes:
        log.info("%s", note)
    plain = plain_note(settings.control_domains)
    if plain is not None:
        health.notes["controls"] = plain
    coming_up = ComingUp(settings, stop, health)
    room = coming_up.room()
    thresholds = Thresholds.of(settings.pass_deadline_s)
    watchdog = Watchdog(
        names_of(settings).spine_created, thresholds, ExitRecord(settings.postgres_dsn or "", owner, version)
    )
    watchdog.start()
    stack.callback(watchdog.stop)
    pulse = Pulse()
    pulse.start()
    stack.callback(pulse.stop)
    port = await stack.enter_async_context(coming_up.served(metrics))
    log.info("Health and metrics on http://%s:%d", settings.web_host, port, extra={"action": "serving"})
    alerts = Alerts(settings.alert_webhook, owner, version, metrics)
    await stack.enter_async_context(alerting(alerts))
    on_fatal = Fatal(stop, alerts)
    loops = Loops(on_fatal)

    # ---- Postgres and Kafka
    database = Database(
        settings.postgres_dsn or "", application_name="ct-stream worker", pool_size=settings.postgres_connections
    )
    stack.push_async_callback(database.close)
    await coming_up.postgres(database)
    record = WorkerRecord(
        database,
        worker=owner,
        machine=socket.gethostname(),
        egress=settings.egress,
        version=version,
        toolbox=toolbox.values(),
    )
    await coming_up.same_toolbox(record)
    stack.push_async_callback(record.end)
    heartbeat, beats = Heartbeat(record, health), Loops(on_fatal)
    beats.start(heartbeat.loop())
    stack.push_async_callback(beats.stop)
    cluster = await coming_up.kafka()
    await coming_up.first_start(database, cluster, allowed=first_start)
    producer = Producer(settings, health, database.now)
    stack.push_async_callback(producer.stop)
    await coming_up.producer(producer)
    # The embedded broker is the one without idempotent producers. Its end offsets are wrong, too.
    tells_ends = producer.is_idempotent
    await coming_up.ends(tells_ends=tells_ends)

    # ---- what Postgres keeps for all workers
    rules = toolbox.rules()
    ledger = Ledger(database, rules.version)
    parked = ParkedCompanies(database, owner, version, settings.egress)
    limits = SharedLimits(database, owner, toolbox.probe_limits(), settings.egress)
    memory = DomainMemory(database, rules.version)
    controls = ControlLedger(database, toolbox.controls.interval_s, owner, window_s=toolbox.controls.window_s)
    guardrails = Guardrails(database, toolbox.controls.settle_s, owner, settings.egress)
    vendor = make_vendor(settings.tier2_provider, settings.tier2_url, settings.tier2_api_key)
    attempts = PaidAttempts(database, vendor.name if vendor else "", toolbox.tier2)
    for batches in (*ledger.batches, parked.park, *limits.batches, memory.recall, attempts.take):
        batches.start()
        stack.push_async_callback(batches.stop)

    # ---- one company
    probing = make_probing(settings, asking=room.asking)
    own_way = OwnWay(
        database,
        controls,
        guardrails,
        probing,
        health,
        parked,
        most=room.in_flight,
        window_s=toolbox.controls.window_s,
        egress=settings.egress,
    )
    paid_calls = PaidCalls(attempts, VendorClient(vendor) if vendor else None, metrics)
    farewells = Farewells()
    gate = WorkerGate(
        GateParts(
            rules=rules,
            probing=probing,
            limits=limits,
            memory=memory,
            controls=controls,
            guardrails=guardrails,
            spine_check=SpineCheck(database, guardrails),
            own_way=own_way,
            paid_calls=paid_calls,
            farewells=farewells,
            metrics=metrics,
            now=database.now,
            age_s=database.age_s,
            stalled_since=pulse.stalled_since,
            pass_deadline_s=settings.pass_deadline_s,
            spine_grace_s=settings.spine_grace_s,
        )
    )
    outbox = Outbox(producer, database, ledger, metrics)
    companies = Companies(
        gate=gate,
        database=database,
        ledger=ledger,
        parked=parked,
        outbox=outbox,
        metrics=metrics,
        health=health,
        on_stuck=StuckBreaker(parked, on_fatal).look,
    )
    scheduler = Scheduler(
        companies=companies,
        parked=parked,
        database=database,
        own_way=own_way,
        most_running=max(1, room.in_flight // 2),
    )
    upkeep = Upkeep(database, companies, parked, limits, memory)

    # ---- the stream
    app = make_app(settings, is_embedded=not producer.is_idempotent, now=database.now)
    view = OutsideView(settings, tells_ends=tells_ends)
    guard = guarded(app, view)
    input_check = InputCheck(guardrails)
    admission = Admission(database, input_check, own_way, scheduler, room.in_flight)
    agent = GateAgent(
        companies=companies,
        admission=admission,
        input_check=input_check,
        producer=producer,
        guard=guard,
        table=DedupeTable(app, cluster.partitions),
        epoch=lambda: database.epoch,
        metrics=metrics,
        drain_s=settings.drain_s,
        on_fatal=on_fatal,
    )
    membership = Membership(app, agent, health)
    partition_watch = PartitionWatch(settings, cluster.partitions, on_fatal.refuse)
    reading = Reading(
        app,
        agent,
        guard,
        view,
        health,
        on_fatal,
        membership=membership,
        partitions=cluster.partitions,
        on_more_partitions=partition_watch.grown,
        on_kafka_gone=on_fatal.again,
    )
    senses = WorkerSenses(
        app=app,
        agent=agent,
        membership=membership,
        scheduler=scheduler,
        input_check=input_check,
        delivery=reading.delivery,
        view=view,
        database=database,
        health=health,
        thresholds=thresholds,
    )
    stands_aside = StandsAside(own_way, membership, health)
    gauges = Gauges(
        agent=agent,
        scheduler=scheduler,
        parked=parked,
        ledger=ledger,
        guardrails=guardrails,
        own_way=own_way,
        metrics=metrics,
        health=health,
    )

    # ---- at work: first what reports the worker's health; what decides companies only if workers do not keep hanging
    await parked.retry_stuck()
    stack.push_async_callback(loops.stop)  # whatever happens below
    loops.start(
        outbox.loop(),
        MachineWatch(database, pulse, health).loop(),
        gauges.loop(),
        own_way.look_loop(),
        partition_watch.loop(),
        LagWatch(settings, metrics, health, refused=lambda: app.refused, tells_ends=tells_ends).loop(),
        AlertRelay(database, alerts).loop(),
    )
    heartbeat.at_work(agent=agent, scheduler=scheduler, guard=guard, own_way=own_way)
    with suppress(Stopped):
        await coming_up.not_hung_again(database, guardrails, within_s=thresholds.window_s)
        loops.start(scheduler, watchdog.service(senses), *upkeep.loops(), *own_way.ask_loops())
        await own_way.opened(_FIRST_CONTROL_S)
        await stands_aside.before_joining(stop.asked)
        reading.start()
        loops.start(stands_aside.loop())
        await stop.asked.wait()

    # ---- the end: running companies get their time, the others store their answers, leases are given back
    log.info("Stopping: companies in hand get %g s to finish", settings.drain_s, extra={"action": "stopping"})
    health.set("start", "stopping")
    agent.stop_pulling()
    drained_by = time.monotonic() + settings.drain_s
    await asyncio.gather(scheduler.drain(settings.drain_s), reading.stop(), paid_calls.drain(settings.drain_s))
    left_s = drained_by - time.monotonic()
    await own_way.last_word(max(_LEAST_LAST_CONTROLS_S, min(left_s, _LAST_CONTROLS_S)))
    await companies.wait_parked()
    await farewells.wait()
    await loops.stop()
    await limits.release_owner()
    log.info("Stopped", extra={"action": "stopped"})
