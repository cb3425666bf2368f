"""Tells people what needs them, by one JSON object over HTTP for each change. Nothing waits for an alert.

Each change of a guardrail, a control or a stuck company, and each row of the users' that was final before its company
was decided, writes a row to `outreach.ct_alerts` in its own transaction.
One worker takes each row, so that nobody is alerted twice. A worker that ends because of a bug sends its own alert. The
log has every line too: if the receiver is away an alert is lost, never an outcome.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import aiohttp
import asyncpg
from yarl import URL

from ct_stream.cancelling import end_all
from ct_stream.gate.egress import DEFAULT, base_of, egress_of, is_of_an_egress
from ct_stream.gate.output_stage import rfc3339
from ct_stream.problems import said_by
from ct_stream.process.loops import Loop
from ct_stream.store.guardrails import MAIL_FROM_RAIL
from ct_stream.store.outage import AGAIN, OUTAGE
from ct_stream.texts import for_alert, for_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from ct_stream.metrics import Metrics
    from ct_stream.store.database import Database

log = logging.getLogger(__name__)

TIMEOUT_S = 5.0  #: for one try, from the name to the status
TRIES = 3
_RETRY_S = (1.0, 2.0)
QUEUE = 100  #: alerts that may wait for the receiver; the oldest is dropped first
DRAIN_S = 2.0
_LOOK_EVERY_S = 1.0
_TAKEN_AT_ONCE = 20
_STALE = timedelta(minutes=15)  #: an alert that no worker took for so long is not sent
_MOST_REASON = 500
_MOST_NAME = 150
_SCHEMA_VERSION = 1

_SEVERITIES = {
    "halted": "critical",
    "closed": "warning",
    "trial": "info",
    "open": "info",
    "failing": "critical",
    "working": "info",
    "stuck": "warning",
    "kept": "warning",
    "stopping": "critical",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One change that people should hear about."""

    event: str  #: guardrail, control, stuck, conflict or worker
    state: str
    reason: str
    at: datetime  #: in UTC
    rail: str | None = None  #: tool:TOOL-005@dc2, provider:bigmail.example, spine, control:dns, control:smtp
    run: str | None = None  #: the worker run whose own way broke or works again
    its_egress: str | None = None  #: the egress of that run
    outreach_id: UUID | None = None

    @property
    def severity(self) -> str:
        """Return info, warning or critical."""
        return _SEVERITIES.get(self.state, "warning")

    @property
    def text(self) -> str:
        """Return the alert as one sentence."""
        match self.event:
            case "guardrail":
                state = "on trial" if self.state == "trial" else self.state
                what = f"guardrail {self._rail_in_words()} is {state}"
            case "control":
                way = "its resolvers" if self.rail == "control:dns" else "its way out to port 25"
                who = f"worker {_plain(self.run or 'unknown')} (egress {_plain(self.egress or 'unknown')})"
                asks = f"asks nobody, because a control of {way} failed"
                what = f"{who} {asks if self.state == 'failing' else f'works again: a control of {way} succeeded'}"
            case "stuck":
                what = f"company {self.outreach_id} is stuck because of a bug in ct-stream"
            case "conflict":
                what = f"company_target has a row of company {self.outreach_id} that the gate did not make"
            case _:
                what = f"a worker is {self.state}"
        return f"ct-stream: {what}: {for_alert(self.reason, _MOST_REASON)}"

    @property
    def egress(self) -> str | None:
        """Return the egress that this is about; None: all of them, or none."""
        if self.event == "guardrail" and self.rail is not None and is_of_an_egress(self.rail):
            return egress_of(self.rail)
        return self.its_egress

    def _rail_in_words(self) -> str:
        rail = self.rail or ""
        if rail == MAIL_FROM_RAIL:
            return f"{rail} (our sender, on every egress)"
        base = _plain(base_of(rail) if is_of_an_egress(rail) else rail)
        return base if self.egress in (None, DEFAULT) else f"{base} of egress {_plain(self.egress or '')}"

    def body(self, worker: str, version: str) -> bytes:
        """Return the JSON object that is sent (schemas/alert.v1.json)."""
        return for_json(
            {
                "schema_version": _SCHEMA_VERSION,
                "text": self.text,
                "severity": self.severity,
                "event": self.event,
                "rail": self.rail,
                "about_worker": self.run,
                "egress": self.egress,
                "outreach_id": None if self.outreach_id is None else str(self.outreach_id),
                "state": self.state,
                "reason": for_alert(self.reason, _MOST_REASON),
                "at": rfc3339(self.at),
                "worker": worker,
                "version": version,
            }
        ).encode()


def _plain(name: str) -> str:
    return for_alert(name, _MOST_NAME)


class Alerts:
    """Sends alerts one after the other from a bounded queue, independently of everything else."""

    def __init__(self, url: str | None, worker: str, version: str, metrics: Metrics) -> None:
        self._url = None if url is None else URL(url)
        self.worker = worker
        self._version = version
        self._metrics = metrics
        self._queue: deque[Alert] = deque()
        self._arrived = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def put(self, alert: Alert) -> None:
        """Queue an alert; returns at once."""
        if self._url is None:
            return
        self._queue.append(alert)
        if len(self._queue) > QUEUE:
            self._queue.popleft()
            self.drop()
        self._is_idle.clear()
        self._arrived.set()

    @property
    def room(self) -> int:
        """Return how many more alerts the queue takes; 0 if no webhook is set."""
        return 0 if self._url is None else QUEUE - len(self._queue)

    def drop(self) -> None:
        """Count an alert as dropped."""
        self._metrics.alerts.labels(result="dropped").inc()

    def worker_stops(self, why: str) -> None:
        """Alert that this worker ends because of a bug, or because only a person can repair what it needs."""
        self.put(Alert(event="worker", state="stopping", reason=why, at=datetime.now(UTC)))

    # ---------------------------------------------------------------- sending

    async def send_all(self) -> None:
        """Send what is in the queue and what is added to it, until cancelled."""
        if self._url is None:
            return
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()) as session:
            while True:
                self._arrived.clear()
                while self._queue:
                    await self._deliver(session, self._queue.popleft())
                self._is_idle.set()
                await self._arrived.wait()

    async def wait_idle(self) -> None:
        """Return when nothing is left to send."""
        await self._is_idle.wait()

    async def _deliver(self, session: aiohttp.ClientSession, alert: Alert) -> None:
        body = alert.body(self.worker, self._version)
        trouble = ""
        for retry_s in (*_RETRY_S, None):
            trouble, may_retry = await self._post(session, body)
            if not trouble:
                self._metrics.alerts.labels(result="sent").inc()
                return
            if not may_retry or retry_s is None:
                break
            await asyncio.sleep(retry_s)
        self._metrics.alerts.labels(result="failed").inc()
        log.warning("Alert not delivered: %s: %s", self._place(), trouble, extra={"action": "alert_failed"})

    async def _post(self, session: aiohttp.ClientSession, body: bytes) -> tuple[str, bool]:
        """Post once; return what went wrong ("" for nothing), and whether another try may help.

        Messages of the client library may hold the URL, so none of them is repeated.
        """
        assert self._url is not None
        headers = {"Content-Type": "application/json"}
        try:
            async with session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
                status = response.status
        except TimeoutError:
            return f"no answer within {TIMEOUT_S:g} s", True
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return type(error).__name__, True
        if 200 <= status < 300:
            return "", False
        if 300 <= status < 400:
            return f"answers {status}; redirects are not followed, set CT_ALERT_WEBHOOK to the final address", False
        return f"answers {status}", status >= 500 or status in (408, 429)

    def _place(self) -> str:
        """Return the receiver's address without the path, which is a secret."""
        assert self._url is not None
        return f"{self._url.scheme}://{self._url.host}:{self._url.port}"


class AlertRelay:
    """Takes alerts from the database. Trouble with it delays alerts, but never ends the worker."""

    def __init__(self, database: Database, alerts: Alerts) -> None:
        self._database = database
        self._alerts = alerts
        self._said: str | None = None

    def loop(self) -> Loop:
        """Return the loop of this relay."""
        return Loop(name="alerts:relay", step=self.take, every_s=_LOOK_EVERY_S, rests_first=True)

    async def take(self) -> None:
        """Take as many alerts as the queue has room for."""
        room = min(_TAKEN_AT_ONCE, self._alerts.room)
        if not self._database.is_up or room <= 0:
            return
        try:
            rows = await self._database.fetch("take_alerts", self._alerts.worker, room, _STALE)
        except (*AGAIN, *OUTAGE, asyncpg.PostgresError) as error:
            sentence = f"Alerts cannot be read from Postgres: {said_by(error)}"
            if sentence != self._said:
                log.warning("%s", sentence, extra={"action": "alerts_unread"})
            self._said = sentence
            return
        self._said = None
        for row in rows:
            if row["is_stale"]:
                self._alerts.drop()
                continue
            self._alerts.put(
                Alert(
                    event=row["event"],
                    state=row["state"],
                    reason=row["reason"],
                    at=row["at"].astimezone(UTC),
                    rail=row["rail"],
                    run=row["run"],
                    its_egress=row["egress"],
                    outreach_id=row["outreach_id"],
                )
            )


@asynccontextmanager
async def alerting(alerts: Alerts) -> AsyncIterator[None]:
    """Send alerts for the duration of a block, and at its end for at most DRAIN_S what is left."""
    sending = asyncio.create_task(alerts.send_all(), name="alerts")
    try:
        yield
    finally:
        try:
            async with asyncio.timeout(DRAIN_S):
                await alerts.wait_idle()
        except TimeoutError:
            log.warning("The last alerts were not delivered in time", extra={"action": "alert_failed"})
        await end_all([sending])
