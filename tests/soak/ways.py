"""Each worker's way out breaks and is mended at random, while the soak's other faults go on: what is lawful then?

Judged from outside, by the servers' log and by what impostors said to whom. The database's own record of when a control
failed only narrows what is forgiven: an answer was made void only if we had broken the way of the worker that heard it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Any

import orjson

from ct_stream.local.farm.scenarios import ALL_SCENARIOS
from ct_stream.store.worker_record import BEAT_S
from tests.faults.pauses import last_sign
from tests.ways.breaking import WAYS

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from uuid import UUID

    from ct_stream.local.farm import FarmLog
    from ct_stream.local.farm.log import Session
    from tests.ways.fleet import Fleet

MOST_ASKED = 2  #: a session that a lie broke, or a worker that is told to end, may cost a question
_STORIES = 8
HEARD_S = 3.5  #: from a question, which the servers date their answers by, until its answer is heard
WINDOW_S = 15.0  #: a control lets a worker ask for so long; the product's 600 s would expose every outcome of a soak
#: A control's dialogue, at the soak's slow replies; the rounds of the loops that ask it; and a busy machine.
_CONTROL_S, _SLACK_S = 14.0, 16.0
#: From the moment when somebody begins to answer in the place of others until no outcome may rest on it any more.
EXPOSED_S = WINDOW_S + _CONTROL_S + _SLACK_S
#: Whoever says yes, or names a server of its own, from its middle on is believed until the next control. If that comes
#: after the end, nobody ever notices: so these last until it has come.
LIES = frozenset(name for name, way in WAYS.items() if way.from_its_start)
#: And longer than that, so that a pass which comes too late is seen.
_SEEN_S = 30.0
#: A short one may fall between two controls; in a long one the worker leaves the group.
LASTS_S = ((0.5, 5.0), (15.0, 45.0), (70.0, 110.0))
#: Silence that our rules made: what fails in it must not be believed.
SILENT = {
    "port-25-dropped": "port 25", "port-25-refused": "port 25", "resolver-dead": "resolvers",
}  # fmt: skip
_FOR_EVER = datetime(9000, 1, 1, tzinfo=UTC)
_AT_ONCE_S = 0.05
#: Ways on which packets vanish. What was said in the meantime comes later, by TCP's own repeats.
_MUTE = frozenset({"port-25-dropped", "no-ipv6", "port 25 timeout"})
_REPEATS_S = 60.0
_BLOCKED_WORDS = "blocked using"

_STRETCHES = """
SELECT c.worker, extract(epoch FROM lower(s))::float8 AS begin, extract(epoch FROM upper(s))::float8 AS until
FROM outreach.ct_controls AS c
CROSS JOIN LATERAL unnest(
    c.earlier + tstzmultirange(tstzrange(c.trouble_from, greatest(c.trouble_from, c.trouble_until)))
) AS s
WHERE lower(s) > '2000-01-01'
"""
#: What a run heard after its last control and before its end: nobody can ask the next one. A killed run's last
#: beat came at most BEAT_S before its end.
_ENDS = """
SELECT c.worker, extract(epoch FROM c.control_at)::float8 AS begin,
    extract(epoch FROM coalesce(w.ended_at, w.seen_at + $1::float8 * interval '1 second'))::float8 AS until
FROM outreach.ct_controls AS c JOIN outreach.ct_workers AS w USING (worker)
WHERE c.kind IN ('dns', 'smtp') AND c.control_at > '2000-01-01'
    AND (w.ended_at IS NOT NULL OR w.seen_at < clock_timestamp() - interval '30 seconds')
"""
_PASSES = """
SELECT outreach_id, domain, recorded_at, transcript, convert_from(value, 'UTF8')::jsonb ->> 'method_type' AS method
FROM outreach.ct_outcomes WHERE outcome = 'PASS' AND domain IS NOT NULL
"""


@dataclass(kw_only=True)
class Break:
    """One way, broken and mended; by the machine's clock, which is the database's too."""

    number: int | None  #: the worker; None: all
    way: str
    begin: datetime
    end: datetime = _FOR_EVER

    def concerns(self, number: int) -> bool:
        """Return whether it broke this worker's way."""
        return self.number in (None, number)


@dataclass(kw_only=True)
class Ways:
    """The workers' ways out, and what befell them."""

    fleet: Fleet
    chance: random.Random
    until: float
    breaks: list[Break] = field(default_factory=list)
    frozen: list[Break] = field(default_factory=list)  #: when a worker was stopped
    killed: list[Break] = field(default_factory=list)  #: and when one was killed
    numbers: dict[int, int] = field(default_factory=dict)  #: of workers, by their process
    began: dict[int, float] = field(default_factory=dict)  #: when each process was started (time of day)

    async def befall(self, number: int, say: Callable[[str], None]) -> AsyncIterator[str]:
        """Break and mend one worker's way until the time is up; yield the name of each way once it is mended."""
        chance = self.chance
        namespace = self.fleet.namespaces[number]
        await asyncio.sleep(chance.uniform(15, 60))
        names: list[str] = []
        while time.monotonic() < self.until - EXPOSED_S - _SEEN_S:
            names = names or chance.sample(list(WAYS), len(WAYS))
            name = names.pop()
            least_s, most_s = chance.choices(LASTS_S, (3, 5, 2))[0]
            lasts_s = chance.uniform(least_s, most_s)
            if name in LIES:
                lasts_s = max(lasts_s, EXPOSED_S + _SEEN_S)
            say(f"way {number}: {name} for {lasts_s:.0f} s")
            this = Break(number=number, way=name, begin=datetime.now(UTC))
            self.breaks.append(this)
            await WAYS[name].break_(self.fleet, namespace)
            await asyncio.sleep(min(lasts_s, self.until - time.monotonic()))
            await WAYS[name].unbreak(self.fleet, namespace)
            this.end = datetime.now(UTC)
            yield name
            await asyncio.sleep(chance.uniform(20, 60))

    def started(self, number: int, pid: int) -> None:
        """Remember whose process it is."""
        self.numbers[pid] = number
        self.began[pid] = time.time()

    def died(self, number: int, at: datetime) -> None:
        """Remember that this worker was killed."""
        self.killed.append(Break(number=number, way="killed", begin=at, end=at))

    def _lost_answers(self, number: int, again: int, heard_at: float, again_at: float) -> bool:
        """Return whether this worker may have lost what it heard before it was stored.

        It was killed between the two questions; or frozen, and lost its lease meanwhile. And one that was frozen goes
        on where it was, whoever has asked since.
        """
        was_killed = any(one.number == number and heard_at <= one.end.timestamp() <= again_at for one in self.killed)
        was_frozen = any(
            one.number in (number, again)
            and one.begin.timestamp() <= again_at
            and heard_at <= one.end.timestamp() + _SLACK_S
            for one in self.frozen
        )
        return was_killed or was_frozen

    def _number_of(self, run: str) -> int | None:
        return self.numbers.get(_pid_of(run))

    def count(self) -> dict[str, int]:
        """Return how often each way of each worker was broken."""
        return dict(Counter(f"{'all' if b.number is None else f'worker {b.number}'}: {b.way}" for b in self.breaks))

    def runs_of(self, number: int | None, runs: Iterable[str]) -> list[str]:
        """Return the runs of one worker, or of all."""
        return [run for run in runs if number is None or self._number_of(run) == number]

    def _replaced_at(self, number: int, run: str) -> float:
        """Return when another run of this worker began after this one."""
        begun = self.began[_pid_of(run)]
        return min((at for pid, at in self.began.items() if self.numbers[pid] == number and at > begun), default=inf)

    # ---------------------------------------------------------------- what is forgiven

    async def stretches(self) -> dict[int, list[tuple[float, float]]]:
        """Return each worker's stretches of trouble, by its runs' own record, where we had broken its way."""
        found: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for row in await self.fleet.stack.admin.fetch(_STRETCHES):
            number = self._number_of(row["worker"])
            if number is None:
                continue
            begin = max(row["begin"], self.began[_pid_of(row["worker"])])
            end = min(row["until"], time.time(), self._replaced_at(number, row["worker"]))
            if any(
                one.begin.timestamp() < end and begin < one.end.timestamp() + _SLACK_S
                for one in self.breaks
                if one.concerns(number)
            ):
                found[number].append((begin, end))
        return found

    async def voided(self, log: FarmLog) -> tuple[Counter[str], int, list[str]]:
        """Return how many answers about each recipient were void, or lost, before it was asked about again.

        And how many answers the servers gave in all, and the stories of some that were asked about too often.

        Either the run that heard one lost its way: by its own record between its last good control and the next one,
        and by ours because we had broken it between the two questions, or had not mended it before the first for long.
        Or the run ended before its next control, or before it had stored them, or it did not hear the last one of a
        session, after which it said nothing. Or the servers refused the worker's address, so that the answer is none.
        """
        stretches = await self.stretches()
        ends: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for row in await self.fleet.stack.admin.fetch(_ENDS, BEAT_S + 1.0):
            if (ended := self._number_of(row["worker"])) is not None:
                ends[ended].append((row["begin"], min(row["until"], self._replaced_at(ended, row["worker"]))))
        addresses = self._by_address()
        asked: dict[str, list[tuple[float, int, str]]] = defaultdict(list)
        for session in log.sessions():
            number = addresses.get(session.peer)
            for command in session.commands if number is not None else ():
                if number is None or command.text[:8].upper() != "RCPT TO:":
                    continue
                if not command.reply or command.reply.startswith("421"):
                    continue  # no answer, and not counted as one
                recipient = command.text[8:].strip().partition(">")[0].lstrip("<")
                # Who hears an answer says something to it, if only QUIT.
                reply = command.reply if command is not session.commands[-1] else ""
                asked[recipient].append((session.wall + command.at - session.opened, number, reply))
        void: Counter[str] = Counter()
        stories: list[str] = []
        for recipient, answers in asked.items():
            told: list[str] = []
            for (at, number, reply), (again_at, again, _) in pairwise(sorted(answers)):
                heard_at = at + HEARD_S
                was_broken = any(
                    one.begin.timestamp() < again_at and at < one.end.timestamp() + _CONTROL_S + _SLACK_S
                    for one in self.breaks
                    if one.concerns(number)
                )
                is_void = was_broken and any(begin <= heard_at and at <= end for begin, end in stretches[number])
                # Its run ended between the two questions: while it lived it had no reason to ask again.
                is_void = is_void or any(begin <= heard_at and at <= end <= again_at for begin, end in ends[number])
                is_lost = not reply or self._lost_answers(number, again, at, again_at)
                is_void = is_void or is_lost or _BLOCKED_WORDS in reply
                void[recipient] += is_void
                told.append(
                    f"{datetime.fromtimestamp(at, UTC):%T.%f} worker {number} {reply[:3]}{' void' if is_void else ''}"
                )
            if len(answers) - void[recipient] > MOST_ASKED and len(stories) < _STORIES:
                last_at, last_by, _ = max(answers)
                told.append(f"{datetime.fromtimestamp(last_at, UTC):%T.%f} worker {last_by}")
                stories.append(f"{recipient}: {', '.join(told)}")
        return void, sum(map(len, asked.values())), stories

    async def exposed(self, log: FarmLog) -> tuple[set[UUID], list[str]]:
        """Return the companies that a lie passed before the next control could tell, and passes that nothing explains.

        Lawful is only: an impostor on one worker's way said yes to this very company; that worker's run heard it, had
        proven its way before the lie began, and the outcome was recorded within EXPOSED_S of that.
        """
        accepted = {
            recipient.rpartition("@")[2]
            for session in log.sessions() for recipient, reply in session.recipients if reply.startswith("2")
        }  # fmt: skip
        taken: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for number, heard in self.fleet.taken.items():
            for at, recipient in heard:
                taken[recipient.rpartition("@")[2]].append((number, at))
        proven = self._controls(log)
        exposed, broken = set(), []
        for row in await self.fleet.stack.admin.fetch(_PASSES):
            expected = ALL_SCENARIOS[row["domain"].partition("-")[0]].expected
            if expected.outcome == "PASS" and expected.method_type == row["method"] and row["domain"] in accepted:
                continue
            answers = [said for said in orjson.loads(row["transcript"]) if said["key"].startswith("rcpt:")]
            runs = {said["by"] for said in answers if "by" in said}
            if any(self._is_lawful(row, run, taken[row["domain"]], proven) for run in runs):
                exposed.add(row["outreach_id"])
            else:
                said = [(a["key"], a.get("by"), a["at"]) for a in orjson.loads(row["transcript"])]
                broken.append(
                    f"{row['domain']} passed with {row['method']!r} at {row['recorded_at']}, on no server's word:"
                    f" {said}, impostors: {taken[row['domain']]}"
                )
        return exposed, broken

    def _is_lawful(
        self, row: Mapping[str, Any], run: str, taken: Iterable[tuple[int, float]], proven: Mapping[int, list[float]]
    ) -> bool:
        number = self._number_of(run)
        if number is None or number not in {one for one, _ in taken}:
            return False
        begun = self.began[_pid_of(run)]
        return any(
            lie.begin <= row["recorded_at"] <= lie.begin + timedelta(seconds=EXPOSED_S)
            and any(begun < at < lie.begin.timestamp() for at in proven[number])
            for lie in self.breaks if lie.number == number and lie.way in LIES
        )  # fmt: skip

    def _controls(self, log: FarmLog) -> dict[int, list[float]]:
        """Return when each worker began to ask a control, by an address of its own, that answered it to the end."""
        addresses = self._by_address()
        found: dict[int, list[float]] = defaultdict(list)
        for session in log.sessions():
            number = addresses.get(session.peer)
            if number is not None and session.host.partition(".")[2].startswith("control"):
                texts = [command.text[:10] for command in session.commands if command.reply.startswith("2")]
                if texts.count("STARTTLS") and texts.count("MAIL FROM:"):
                    found[number].append(session.wall)
        return found

    def was_mute(self, address: str, begin: float, end: float) -> bool:
        """Return whether servers did not hear what the worker of this address said in this time (of day)."""
        number = self._by_address().get(address)
        return number is not None and any(
            one.begin.timestamp() < end and begin < one.end.timestamp() + _REPEATS_S
            for one in [*self.frozen, *(one for one in self.breaks if one.way in _MUTE)]
            if one.concerns(number)
        )

    def _by_address(self) -> dict[str, int]:
        return {
            address: number for number, namespace in enumerate(self.fleet.namespaces) for address in namespace.addresses
        }


def too_close(
    log: FarmLog, pause_s: float, mute: Callable[[str, float, float], bool], slack_s: float = 0.5
) -> list[str]:
    """Return the pairs of sessions at one domain that are closer than the pause, whichever address they came from.

    Only after one that its client ended with QUIT, as its server read it, and not where that worker was `mute`
    meanwhile: frozen, or its packets were dropped. Its server hears then what it said long ago, or nothing.
    `slack_s`: a busy server reads late.
    """
    by_domain: dict[str, list[Session]] = defaultdict(list)
    for session in log.company_sessions():
        if session.domain is not None and session.recipients:
            by_domain[session.domain].append(session)
    broken = []
    for domain, sessions in by_domain.items():
        sessions.sort(key=lambda session: session.opened)
        for before, after in pairwise(sessions):
            gap = after.opened - _left_at(before, after)
            if (
                before.commands[-1].text == "QUIT"
                and gap < pause_s - slack_s
                and not mute(before.peer, before.wall, before.wall + before.commands[-1].read_at - before.opened)
            ):
                broken.append(f"{domain}: a session from {after.peer} {gap:.2f} s after one from {before.peer}")
    return broken


def _left_at(before: Session, after: Session) -> float:
    """Return when a server last knew that the client was there.

    A session that its worker cut off ends with a QUIT that lay there unread while the server took its time to answer a
    question, which the next session puts again. Then only that the question was put is certain.
    """
    *_, question, end = before.commands
    is_put_again = {recipient for recipient, _ in before.recipients} & {recipient for recipient, _ in after.recipients}
    return question.read_at if is_put_again and end.read_at - question.at < _AT_ONCE_S else last_sign(before)


def most_at_once(log: FarmLog, host: str, mute: Callable[[str, float, float], bool]) -> int:
    """Return how many sessions a shared host had at one time, without those whose worker was `mute` meanwhile.

    Each counts until its last question was put at least: see `_left_at`.
    """
    changes: list[tuple[float, int]] = []
    for session in log.sessions():
        if session.host != host or len(session.commands) < 2:
            continue
        *_, question, end = session.commands
        until = question.read_at if end.read_at - question.at < _AT_ONCE_S else last_sign(session)
        if not mute(session.peer, session.wall, session.wall + end.at - session.opened):
            changes += [(session.opened, 1), (until, -1)]
    most = now = 0
    for _, change in sorted(changes):
        most = max(most, now := now + change)
    return most


def _pid_of(run: str) -> int:
    return int(run.split("/")[-2])
