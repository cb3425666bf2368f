"""Takes one company from its event to its outcome, and does nothing twice.

The steps (docs/flow.md): received, looked up, asked, recorded, published, stamped; then its event may be acked. An
exception in our own code is counted for this company in Postgres, and affects no other one.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from typing import TYPE_CHECKING, assert_never

from ct_stream.gate.output_stage import Origin, Outcome, output_stage
from ct_stream.gate.records import CLAIM_S, PRODUCE_S, Known, NotOurs, Parked, Publication, Resumed
from ct_stream.gate.verdicts import Failed, Passed
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.problems import RUN_OUT, said_by
from ct_stream.store.batches import RowHeld

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime
    from uuid import UUID

    from ct_stream.company.one_pass import CompanyPass, WorkerGate
    from ct_stream.company.publishing import Outbox
    from ct_stream.metrics import Health, Metrics
    from ct_stream.store.database import Database
    from ct_stream.store.ledger import Ledger
    from ct_stream.store.parked import ParkedCompanies

log = logging.getLogger(__name__)

_CLAIM_RETRY_S = 1.0
_LOST_ROW_RETRY_S = 5.0
_MACHINE_AGAIN_S = 5.0
_ROW_HELD_S = 60.0  #: until the recording of a company is tried again whose row somebody holds
_HELD_IN_A_ROW = 5  #: so many, and none recorded between them: it is not about one company
#: If recording took longer, the claim may have too little time left to publish.
_FRESH_CLAIM_S = CLAIM_S - PRODUCE_S - 2.0


class _Rows:
    """Tells people when no outcome can be recorded any more, because of what others do with the users' tables."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._in_a_row = 0
        self._said = ""

    def are_written(self) -> None:
        """Note that a company's rows could be written."""
        if self._in_a_row:
            self._in_a_row, self._said = 0, ""
            self._health.set("rows", None)

    def are_held(self, why: str) -> None:
        """Note that they could not."""
        self._in_a_row += 1
        if why != self._said:
            self._said = why
            log.warning("A decided company waits to be recorded: %s", why, extra={"action": "row_held"})
        if self._in_a_row >= _HELD_IN_A_ROW:
            self._health.set(
                "rows", f"{self._in_a_row} decided companies in a row could not be recorded, the last: {why}"
            )


class Companies:
    """Takes companies through the gate, both those of new events and those that waited."""

    def __init__(
        self,
        *,
        gate: WorkerGate,
        database: Database,
        ledger: Ledger,
        parked: ParkedCompanies,
        outbox: Outbox,
        metrics: Metrics,
        health: Health,
        on_stuck: Callable[[], Awaitable[None]],
    ) -> None:
        """`on_stuck` is awaited whenever a company became stuck."""
        self._gate = gate
        self._database = database
        self._ledger = ledger
        self._parked = parked
        self._outbox = outbox
        self._metrics = metrics
        self._health = health
        self._on_stuck = on_stuck
        self._rows = _Rows(health)
        self._running: dict[UUID, asyncio.Future[None]] = {}
        self._parking: set[asyncio.Task[None]] = set()

    @property
    def in_hand(self) -> list[UUID]:
        """Return the companies that this worker is working on."""
        return list(self._running)

    async def from_event(self, origin: Origin, event_at: datetime | None, remembered: str | None = None) -> str | None:
        """Work on a company until its event may be acked; return its outcome, PASS or FAIL, if it has one now.

        `remembered` is its outcome in the dedupe table: if there is one, the event waits until the ledger shows one
        too. Raises CancelledError, and what breaks in that wait: such an event must stay un-acked.
        """
        recorded = None if remembered is None else await self._recorded(origin.outreach_id, remembered)
        while (other := self._running.get(origin.outreach_id)) is not None:
            # The same company is already in hand. Its second event adds nothing, but must not be acked first.
            await asyncio.wait([other])
        with _InHand(self._running, origin.outreach_id):
            try:
                known = recorded or await self._ledger.look_up(origin.outreach_id)
                if known.outcome is not None:
                    self._metrics.already.inc()
                    log.info(
                        "Already processed %s: %s",
                        origin.outreach_id,
                        known.outcome,
                        extra={"action": "already_processed", "outreach_id": str(origin.outreach_id)},
                    )
                    return await self._see_published(origin.outreach_id, known)
                if known.pass_state is not None:
                    return None  # its wait is on record; the scheduler resumes it
                return await self._pass(origin, event_at, known, None)
            except Exception as error:
                await self._charge(origin, event_at, error)
                return None

    async def _recorded(self, outreach_id: UUID, remembered: str) -> Known:
        """Return the row of a company whose outcome we remember; wait while the ledger has lost it (FAULTS row 24)."""
        try:
            while (known := await self._ledger.look_up(outreach_id)).outcome is None:
                trouble = (
                    f"the ledger has no row for {outreach_id}, which was decided {remembered} under the same epoch: "
                    "was it restored from a backup? The worker waits, so that no company is decided twice"
                )
                if "ledger" not in self._health.troubles:
                    log.error("%s", trouble, extra={"action": "ledger_lost_rows"})
                self._health.set("ledger", trouble)
                await asyncio.sleep(_LOST_ROW_RETRY_S)
            return known
        finally:
            self._health.set("ledger", None)  # another event that still waits says so again

    async def from_waiting(self, resumed: Resumed) -> None:
        """Resume an undecided company that this worker has leased. Raises nothing but CancelledError."""
        origin = resumed.origin
        if origin.outreach_id in self._running:
            await self._parked.give_back([origin.outreach_id])
            return
        self._metrics.resumed.inc()
        with _InHand(self._running, origin.outreach_id):
            try:
                known = await self._ledger.look_up(origin.outreach_id)
                if known.outcome is not None:
                    await self._see_published(origin.outreach_id, known)
                    await self._parked.forget(origin.outreach_id)
                    return
                await self._pass(origin, resumed.event_at, known, resumed)
            except Exception as error:
                await self._charge(origin, resumed.event_at, error)

    # ---------------------------------------------------------------- one pass

    async def _pass(
        self, origin: Origin, event_at: datetime | None, known: Known, resumed: Resumed | None
    ) -> str | None:
        begun_at = resumed.since if resumed else self._database.now()
        running = await self._gate.begin(origin, known, resumed)
        try:
            return await self._run(running, origin, event_at, begun_at)
        finally:
            running.leave()

    async def _run(
        self, running: CompanyPass, origin: Origin, event_at: datetime | None, begun_at: datetime
    ) -> str | None:
        try:
            result = await running.run()
        except asyncio.CancelledError:
            self._park_answers(origin, event_at, running)
            raise
        except (OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno not in RUN_OUT:
                raise
            # Neither the company's fault nor a bug: when another company ends, the resource becomes free.
            log.warning(
                "This machine has run out of a resource: %s; the company waits %g s",
                said_by(error),
                _MACHINE_AGAIN_S,
                extra={"action": "our_machine"},
            )
            result = Wait(
                reason=WaitReason.OUR_MACHINE,
                detail=f"this machine has run out of a resource: {said_by(error)}",
                after_s=_MACHINE_AGAIN_S,
            )
        match result:
            case Passed() | Failed():
                decided_at = self._database.now()
                outcome = output_stage(
                    origin,
                    result,
                    running.exchanges,
                    rules_version=self._gate.rules_version,
                    decided_at=decided_at,
                    duration_ms=max(0, round((decided_at - begun_at).total_seconds() * 1000)),
                )
                try:
                    recorded = await self._record(outcome, running)
                    self._rows.are_written()
                    return recorded
                except RowHeld as error:
                    self._rows.are_held(str(error))
                    detail = f"it is decided, but not recorded yet: {error}"
                    wait = Wait(reason=WaitReason.ROW_HELD, detail=detail, after_s=_ROW_HELD_S)
                    await self._park(running.parked(origin, event_at, wait))
                    return None
            case Wait():
                await self._park(running.parked(origin, event_at, result))
                return None
        assert_never(result)

    async def _record(self, outcome: Outcome, running: CompanyPass) -> str | None:
        asked_at = time.monotonic()
        won = await self._ledger.record(outcome)
        running.leave()
        if won:
            self._count(outcome)
        is_fresh = won and time.monotonic() - asked_at < _FRESH_CLAIM_S
        if is_fresh and await self._outbox.publish(Publication.of(outcome)):
            return "PASS" if isinstance(outcome.verdict, Passed) else "FAIL"
        return await self._see_published(outcome.outreach_id, await self._ledger.look_up(outcome.outreach_id))

    async def _see_published(self, outreach_id: UUID, known: Known) -> str | None:
        """Wait until a recorded outcome is published and stamped, by us or by whoever holds the claim; return it."""
        while not known.is_done:  # nor where the row is gone: a ledger that lost rows must let no event go
            publication = await self._ledger.claim(outreach_id)
            if isinstance(publication, NotOurs):
                break  # nobody publishes it, and the event must not be in hand for ever
            if publication is not None and await self._outbox.publish(publication):
                break
            await asyncio.sleep(_CLAIM_RETRY_S)
            known = await self._ledger.look_up(outreach_id)
        return known.outcome

    # ---------------------------------------------------------------- no verdict

    async def _park(self, parked: Parked) -> None:
        await self._parked.park(parked)
        self._metrics.parked.labels(reason=parked.wait.reason.value).inc()

    def _park_answers(self, origin: Origin, event_at: datetime | None, running: CompanyPass) -> None:
        """Store the answers of a pass that is given up, so that nobody asks for them again (law 2)."""
        wait = Wait(reason=WaitReason.DRAIN, detail="its worker was told to stop; another one resumes it", after_s=0.0)
        parking = self._park(running.parked(origin, event_at, wait))
        task = asyncio.create_task(parking, name=f"park:{origin.outreach_id}")
        self._parking.add(task)
        task.add_done_callback(self._parking.discard)

    async def wait_parked(self) -> None:
        """Return when the answers of given-up passes are stored."""
        while self._parking:
            await asyncio.wait(set(self._parking))

    async def _charge(self, origin: Origin, event_at: datetime | None, error: Exception) -> None:
        """Count an exception in our own code; the third one makes the company stuck (law 3: no outcome)."""
        self._metrics.exceptions.inc()
        log.exception(
            "A bug in ct-stream, not the company's fault: deciding %s raised %s",
            origin.outreach_id,
            type(error).__name__,
            extra={"action": "our_bug", "outreach_id": str(origin.outreach_id)},
        )
        detail = f"{type(error).__name__}: {error}"[:500].replace("\0", "")
        trace = "".join(traceback.format_exception(error))[-8000:].replace("\0", "")
        exceptions, state = await self._parked.count_exception(origin, event_at, detail, trace)
        if state == "stuck":
            self._metrics.stuck.inc()
            log.error(
                "Company %s is stuck after %d exceptions; only a worker of another version will try it again",
                origin.outreach_id,
                exceptions,
                extra={"action": "stuck", "outreach_id": str(origin.outreach_id)},
            )
            await self._on_stuck()

    def _count(self, outcome: Outcome) -> None:
        self._metrics.runtime.observe(outcome.duration_ms / 1000)
        extra = {"outreach_id": str(outcome.outreach_id), "domain": outcome.verdict.domain or ""}
        if isinstance(outcome.verdict, Passed):
            method = outcome.verdict.method_type
            self._metrics.passed.labels(verified_by=outcome.verdict.verified_by.value).inc()
            log.info("PASS %s: %s", outcome.outreach_id, method, extra=extra | {"action": "gate_passed"})
        else:
            code = outcome.verdict.code.value
            self._metrics.failed.labels(code=code).inc()
            log.info("FAIL %s: %s", outcome.outreach_id, code, extra=extra | {"action": "gate_failed", "code": code})


class _InHand:
    """Marks a company as in hand for the duration of a block."""

    def __init__(self, running: dict[UUID, asyncio.Future[None]], outreach_id: UUID) -> None:
        self._running = running
        self._id = outreach_id

    def __enter__(self) -> None:
        self._running[self._id] = asyncio.get_running_loop().create_future()

    def __exit__(self, *_: object) -> None:
        self._running.pop(self._id).set_result(None)
