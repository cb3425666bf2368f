"""Makes the paid calls of a worker, each in a task of its own.

A paid call runs to its end whatever happens to the event that wanted it: its answer is stored, and serves whoever
resumes the company (ADR-CT-IMO-017).
"""

from __future__ import annotations

import asyncio
import logging
import time
from math import inf
from typing import TYPE_CHECKING, TypeAlias
from uuid import uuid4

from ct_stream.gate.questions import VerifyAnswer, VerifyStatus
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.probes.needs import Brought, TurnedOff
from ct_stream.store.guardrails import TIER2_RAIL, say_guardrail
from ct_stream.store.paid_attempts import PaidAttempts, Taken, Wanted

if TYPE_CHECKING:
    from uuid import UUID

    from ct_stream.gate.patterns import Address
    from ct_stream.metrics import Metrics
    from ct_stream.probes.vendor_client import VendorClient

log = logging.getLogger(__name__)

_OFF = "Tier-2 is off (CT_TIER2_PROVIDER is none)"
_STOPPING = Wait(
    reason=WaitReason.DRAIN,
    detail="its worker is stopping and starts no paid call; another one resumes it",
    after_s=0.0,
)

Result: TypeAlias = VerifyAnswer | Wait | TurnedOff


class PaidCalls:
    """The paid calls of this worker. `client` is None if no vendor is set; then only stored answers are read."""

    def __init__(self, attempts: PaidAttempts, client: VendorClient | None, metrics: Metrics) -> None:
        self._attempts = attempts
        self._client = client
        self._metrics = metrics
        self._running: dict[UUID, asyncio.Task[Brought]] = {}
        self._stopping = False
        self._spent: tuple[str, float] = ("", -inf)  # why the budget refuses, and until when (monotonic)

    def off_because(self) -> str | None:
        """Return why no company may call now, as far as this worker knows without asking; None if one may."""
        if self._client is None:
            return _OFF
        why, until = self._spent
        return why if time.monotonic() < until else None

    async def verify(self, outreach_id: UUID, address: Address) -> Brought:
        """Spend the company's one attempt, or return its stored result. Cancelling the caller leaves the call alone."""
        task = self._running.get(outreach_id)
        if task is None:
            if self._stopping:
                return Brought(result=_STOPPING)
            task = asyncio.create_task(self._attempt(outreach_id, address), name=f"tier2:{outreach_id}")
            self._running[outreach_id] = task
            task.add_done_callback(lambda done: self._ended(outreach_id, done))
        return await asyncio.shield(task)

    def stop(self) -> None:
        """Start no further call."""
        self._stopping = True

    async def drain(self, within_s: float) -> None:
        """Return when the running calls have stored their answers, or the time is up.

        A reservation without an answer is written off once it is due, by whoever finds it.
        """
        self.stop()
        if self._running:
            await asyncio.wait(set(self._running.values()), timeout=within_s)
        if self._running:
            log.warning(
                "Stopping with %d paid calls unanswered; their companies are decided without Tier-2",
                len(self._running),
                extra={"action": "tier2_left"},
            )
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _ended(self, outreach_id: UUID, task: asyncio.Task[Brought]) -> None:
        del self._running[outreach_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            # The company that waits for the call is told as well; after a cancellation nobody waits.
            log.error("The paid call of %s failed: %s", outreach_id, type(error).__name__)

    async def _attempt(self, outreach_id: UUID, address: Address) -> Brought:
        wanted = Wanted(outreach_id=outreach_id, address=str(address), token=uuid4())
        taken = await self._attempts.take(wanted)
        if taken.answer != "granted":
            return Brought(result=self._refused(wanted, taken))
        assert self._client is not None, "granted without a vendor"
        self._metrics.tool_calls.labels(tool="TOOL-019").inc()
        self._metrics.tier2_usd.inc(self._attempts.limits.usd_per_call)
        await asyncio.sleep(taken.delay_s)
        begun_at = time.monotonic()
        said = await self._client.ask(address)
        waited_s = time.monotonic() - begun_at
        self._metrics.tier2_answers.labels(status=said.status.value).inc()
        stored = await self._attempts.store(
            wanted, VerifyAnswer(status=said.status, detail=said.detail), halt=said.detail if said.about_us else None
        )
        if stored.halted is not None:
            say_guardrail(TIER2_RAIL, "halted", stored.halted)
        return Brought(result=stored.answer, waited_s=waited_s)

    def _refused(self, wanted: Wanted, taken: Taken) -> Result:
        match taken.answer:
            case "answered":
                assert taken.stored is not None
                if taken.asked == wanted.address or taken.stored.status is VerifyStatus.NO_ANSWER:
                    return taken.stored
                return VerifyAnswer(
                    status=VerifyStatus.NO_ANSWER,
                    detail=f"the one attempt asked about {taken.asked}, under other rules",
                )
            case "off":
                return TurnedOff(because=_OFF)
            case "budget":
                assert taken.retry_s is not None
                self._spent = (taken.detail, time.monotonic() + taken.retry_s)
                return TurnedOff(because=taken.detail)
            case "halted":
                return Wait(
                    reason=WaitReason.HALTED,
                    detail=f"TOOL-019 is halted: {taken.detail}",
                    waits_on=WaitsOn.tool("TOOL-019"),
                )
            case "under_way":
                return Wait(
                    reason=WaitReason.TIER2,
                    detail="its one paid call is under way in another worker",
                    after_s=taken.retry_s,
                    waits_on=WaitsOn.paid_call(wanted.outreach_id),
                )
            case "turn":
                return Wait(
                    reason=WaitReason.TIER2,
                    detail="others go first, because the vendor has not given a usable answer lately",
                    after_s=taken.retry_s,
                    waits_on=WaitsOn.vendor(),
                )
            case "rate":
                return Wait(
                    reason=WaitReason.RATE_LIMIT,
                    detail=f"only {self._attempts.limits.per_second:g} paid calls a second (TOOL-019) are allowed",
                    after_s=taken.retry_s,
                )
        raise AssertionError(taken.answer)


class CompanysCall:
    """The one paid attempt of one company."""

    def __init__(self, calls: PaidCalls, *, is_paid: bool) -> None:
        """`is_paid`: the attempt is already spent, or under way."""
        self._calls = calls
        self._is_paid = is_paid

    def off_because(self) -> str | None:
        """Return why Tier-2 is not asked. A company that has spent its attempt still reads the result."""
        return None if self._is_paid else self._calls.off_because()

    async def verify(self, outreach_id: UUID, address: Address) -> Brought:
        """Spend the one attempt, or return its stored result."""
        return await self._calls.verify(outreach_id, address)
