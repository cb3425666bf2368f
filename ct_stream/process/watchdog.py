"""Is this worker still making progress? If it hangs by its own fault, it says where and ends, to be restarted.

It watches the oldest un-acked event, the oldest resumed company, commits that do not advance although there is
something to commit, records in Kafka that are not delivered to us, a rebalance that does not end, and the event loop
(from a thread, because a blocked loop cannot watch itself). An outage of Postgres or Kafka, a drain and a halted input
are not hangs: while one lasts no time counts, and afterwards all times start again from zero (ADR-CT-IMO-022).

The process ends by os._exit without a commit, so events that are not acked are delivered again. After three such ends
at one place, a worker that starts waits for a person.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ct_stream.problems import said_by

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

log = logging.getLogger(__name__)

EXIT_CODE = 76  #: of a process that hung
MOST_EXITS = 3  #: at one place within the window; then a worker that starts waits for a person
#: Beyond the pass deadline, which counts only the waiting for servers: the command that is running when it ends (15 s),
#: a paid call (30), the publish claim of a worker that died (30), a produce (20), an outage of Postgres that no
#: statement has met yet (25), and rates and slow statements (30).
_UNACKED_SLACK_S = 150.0
_LOOK_EVERY_S = 1.0
_RECORD_TIMEOUT_S = 6.0
_LAST_WORDS_S = 12.0  #: for the last log lines; a blocked log must not keep a hung process alive
_MOST_DUMP = 48_000  #: characters
_MOST_FRAMES = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """How long is too long? In seconds."""

    unacked_s: float  #: for an event in hand; time of known troubles does not count
    commit_s: float = 150.0  #: longer than a commit's own timeout (broker_request_timeout, 90 s) and a lost session
    undelivered_s: float = 120.0  #: for a record that a consumer outside the group could read at once
    drain_s: float = 180.0  #: the slowest rebalance: a lost session (45 s), a drain (50), the group's wait (60)
    unassigned_s: float = 120.0  #: beyond that
    blocked_s: float = 60.0  #: the longest step of our loop takes a tenth of a second; leases have ended after 20 s
    restart_s: float = 90.0  #: from an exit to the first event again: the group waits for the lost session (45 s)

    @classmethod
    def of(cls, pass_deadline_s: float) -> Thresholds:
        """Return the thresholds of a worker with this pass deadline. By default `unacked_s` is 240 s."""
        return cls(unacked_s=pass_deadline_s + _UNACKED_SLACK_S)

    @property
    def window_s(self) -> float:
        """Return the time within which three exits count: long enough for three hangs of the slowest kind."""
        return max(600.0, 2 * (max(self.unacked_s, self.commit_s) + self.restart_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Why the process should end, and where it hangs: `topic[partition] offset n`, a waiting company, or the group."""

    reason: str
    places: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Commits:
    """How far a partition is done here, and how far that is committed."""

    done: int
    committed: int


class Watch:
    """Decides, from what the watchdog sees, whether the worker hangs. Moments are seconds of one monotonic clock."""

    def __init__(self, thresholds: Thresholds) -> None:
        self._thresholds = thresholds
        self._calm_since = -inf
        self._looked_at: float | None = None
        self._due = _Standing()
        self._undelivered = _Standing()

    def excuse(self, until: float) -> None:
        """Count no time before `until`."""
        self._calm_since = max(self._calm_since, until)

    def look(self, at: float, heads: Mapping[str, float]) -> Hang | None:
        """Judge the oldest event in hand of each partition: its place, and when it arrived."""
        if self._looked_at is not None and at - self._looked_at > self._thresholds.blocked_s:
            self.excuse(at)  # a loop blocked for so long would have been ended, so the process itself was stopped
        self._looked_at = at
        limit = self._thresholds.unacked_s
        ages = {place: at - max(arrived, self._calm_since) for place, arrived in heads.items()}
        hung = sorted((place for place, age in ages.items() if age > limit), key=lambda place: -ages[place])
        if not hung:
            return None
        reason = f"{hung[0]} has been in hand for {ages[hung[0]]:.0f} s and is not done (at most {limit:g} s)"
        return Hang(reason=reason, places=tuple(hung))

    def look_at_commits(self, at: float, commits: Mapping[str, Commits]) -> Hang | None:
        """Judge how far each partition is done and committed."""
        due = {partition: seen.committed for partition, seen in commits.items() if seen.done > seen.committed}
        limit = self._thresholds.commit_s
        hung = self._due.over(limit, at, self._calm_since, due)
        if not hung:
            return None
        partition, age = next(iter(hung.items()))
        done = f"{partition} is done up to {commits[partition].done}, but committed only to {due[partition]}"
        return Hang(reason=f"no commit for {age:.0f} s (at most {limit:g} s): {done}", places=_places(hung, due))

    def look_at_input(self, at: float, undelivered: Mapping[str, int]) -> Hang | None:
        """Judge the first record of each partition that waits in Kafka while nothing is delivered."""
        limit = self._thresholds.undelivered_s
        hung = self._undelivered.over(limit, at, self._calm_since, undelivered)
        if not hung:
            return None
        places = _places(hung, undelivered)
        age = next(iter(hung.values()))
        reason = f"{places[0]} has been in Kafka for {age:.0f} s and is not delivered (at most {limit:g} s)"
        return Hang(reason=reason, places=places)

    def look_at_group(self, at: float, unassigned_since: float | None) -> Hang | None:
        """Judge how long the group has not assigned us any partitions."""
        limit = self._thresholds.unassigned_s
        if unassigned_since is None or at - max(unassigned_since, self._calm_since) <= limit:
            return None
        reason = f"the group has assigned no partitions for {at - unassigned_since:.0f} s (at most {limit:g} s)"
        return Hang(reason=reason, places=("the group",))


class _Standing:
    """Since when has each partition been at its present offset?"""

    def __init__(self) -> None:
        self._since: dict[str, tuple[int, float]] = {}

    def over(self, limit_s: float, at: float, calm_since: float, offsets: Mapping[str, int]) -> dict[str, float]:
        """Note these offsets; return the partitions that have not moved for more than `limit_s`, and for how long."""
        before = self._since
        self._since = {
            partition: before[partition] if before.get(partition, (None,))[0] == offset else (offset, at)
            for partition, offset in offsets.items()
        }
        ages = {partition: at - max(since, calm_since) for partition, (_, since) in self._since.items()}
        return {partition: age for partition, age in ages.items() if age > limit_s}


def _places(partitions: Iterable[str], offsets: Mapping[str, int]) -> tuple[str, ...]:
    return tuple(f"{partition} offset {offsets[partition]}" for partition in partitions)


class LoopGuard:
    """A thread that checks whether the event loop still runs.

    It counts only ticks in which the thread itself runs, so that a stopped process (SIGSTOP, a frozen machine) does not
    count as blocked. It cannot see code that holds the interpreter's lock for ever; then /livez does not answer.
    """

    def __init__(self, limit_s: float, on_blocked: Callable[[float], None]) -> None:
        self._limit_s = limit_s
        self._tick_s = min(1.0, limit_s / 4)
        self._on_blocked = on_blocked
        self._beats = 0
        self._ended = threading.Event()
        self._beating: asyncio.TimerHandle | None = None
        self.loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        """Start. To be called in the loop."""
        self.loop = asyncio.get_running_loop()
        self._beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop."""
        self._ended.set()
        if self._beating is not None:
            self._beating.cancel()

    def _beat(self) -> None:
        self._beats += 1
        self._beating = self.loop.call_later(self._tick_s, self._beat)

    def _watch(self) -> None:
        seen, missed_s = 0, 0.0
        while not self._ended.wait(self._tick_s):
            missed_s = missed_s + self._tick_s if self._beats == seen else 0.0
            seen = self._beats
            if missed_s >= self._limit_s:
                self._on_blocked(missed_s)
                return


class Senses(Protocol):
    """What the watchdog is told about its worker."""

    def heads(self) -> Mapping[str, float]:
        """Return the places of the oldest events and resumed companies in hand, and since when (monotonic)."""

    def done(self) -> Mapping[int, int]:
        """Return for each partition the offset behind the last acked event."""

    async def committed(self) -> Mapping[int, int]:
        """Return the committed offsets according to the broker; raises if it does not answer."""

    async def undelivered(self) -> Mapping[str, int]:
        """Return place and offset of each record that waits and is not delivered; raises like `committed`."""

    def unassigned_since(self) -> float | None:
        """Return since when the group has assigned us no partitions (monotonic)."""

    def excused(self) -> float:
        """Return until when a known trouble lasted (monotonic), -inf if there was none."""

    async def outage(self) -> str | None:
        """Ask Postgres and Kafka; return why one of them is at fault, or None."""


#: Records an exit (places, reason); works in any event loop.
Record: TypeAlias = "Callable[[Sequence[str], str], Awaitable[None]]"


class Watchdog:
    """Looks for a hang, rules out an outage, and ends the process."""

    def __init__(self, topic: str, thresholds: Thresholds, record: Record) -> None:
        self._topic = topic
        self._thresholds = thresholds
        self._record = record
        self._heads: Callable[[], Mapping[str, float]] = dict  # nothing is in hand before `run`
        self._watch = Watch(thresholds)
        self._guard = LoopGuard(thresholds.blocked_s, self._blocked)
        self._known: Mapping[int, int] = {}
        self._look_at_commits_at = 0.0
        self._look_at_input_at = 0.0
        self._looking: asyncio.Task[Mapping[str, int]] | None = None
        self._said = ""

    def start(self) -> None:
        """Watch the loop, from now until the end of the process."""
        self._guard.start()

    def stop(self) -> None:
        """Stop watching the loop."""
        self._guard.stop()

    def service(self, senses: Senses) -> Watching:
        """Return the service that watches everything except the loop, for the owner of the background loops."""
        return Watching(self, senses)

    async def run(self, senses: Senses) -> None:
        """Watch everything except the loop until cancelled."""
        self._heads = senses.heads
        try:
            await self._run(senses)
        finally:
            if self._looking is not None:
                self._looking.cancel()

    async def _run(self, senses: Senses) -> None:
        while True:
            await asyncio.sleep(min(_LOOK_EVERY_S, self._thresholds.unacked_s / 4))
            self._watch.excuse(senses.excused())
            now = time.monotonic()
            hang = (
                self._watch.look(now, senses.heads())
                or self._watch.look_at_group(now, senses.unassigned_since())
                or await self._commits(senses)
                or self._input(senses)
            )
            if hang is None:
                continue
            outage = await senses.outage()
            if outage is None and senses.excused() < time.monotonic() - _LOOK_EVERY_S:
                await self._bite(hang)
            self._excuse(outage or "another problem became known meanwhile")

    async def _commits(self, senses: Senses) -> Hang | None:
        """Compare what is done with what is committed, now and then, while there is something to commit."""
        done = senses.done()
        now = time.monotonic()
        if now < self._look_at_commits_at:
            return None
        self._look_at_commits_at = now + self._thresholds.commit_s / 5
        if any(offset > self._known.get(partition, 0) for partition, offset in done.items()):
            try:
                self._known = await senses.committed()
            except (OSError, TimeoutError, RuntimeError) as error:
                self._excuse(f"Kafka does not say what is committed: {said_by(error)}")
                return None
        commits = {
            f"{self._topic}[{partition}]": Commits(done=offset, committed=self._known.get(partition, 0))
            for partition, offset in done.items()
        }
        return self._watch.look_at_commits(time.monotonic(), commits)

    def _input(self, senses: Senses) -> Hang | None:
        """Look up, now and then and in a task of its own, whether records wait that are not delivered to us."""
        now = time.monotonic()
        if self._looking is None:
            if now >= self._look_at_input_at:
                self._look_at_input_at = now + self._thresholds.undelivered_s / 4
                self._looking = asyncio.ensure_future(senses.undelivered())
            return None
        if not self._looking.done():
            return None
        looked, self._looking = self._looking, None
        try:
            undelivered = looked.result()
        except Exception as error:  # of any kind: if this look fails, the others continue
            self._watch.look_at_input(time.monotonic(), {})
            self._say(f"it could not look for records that are left to read: {error!r}")
            return None
        return self._watch.look_at_input(time.monotonic(), undelivered)

    def _excuse(self, why: str) -> None:
        self._watch.excuse(time.monotonic())
        self._say(why)

    def _say(self, why: str) -> None:
        if why != self._said:
            log.warning("The watchdog does not judge now: %s", why, extra={"action": "watchdog_waits"})
        self._said = why

    # ---------------------------------------------------------------- the end

    async def _bite(self, hang: Hang) -> None:
        _end_anyhow()
        dump = describe(asyncio.all_tasks())
        try:
            await self._recorded(hang.places, hang.reason)
        except Exception as error:
            log.warning("This exit could not be recorded, so it does not count as a hang: %r", error)
        log.critical(
            "Hung: %s. Exiting without a commit; events that are not acked are delivered again. What it was doing:\n%s",
            hang.reason,
            dump,
            extra={"action": "watchdog", "places": list(hang.places)},
        )
        os._exit(EXIT_CODE)

    async def _recorded(self, places: Sequence[str], reason: str) -> None:
        async with asyncio.timeout(_RECORD_TIMEOUT_S):
            await self._record(places, reason)

    def _blocked(self, missed_s: float) -> None:
        """End a process whose loop is blocked. Runs in the thread, and takes no lock that the loop may hold."""
        _end_anyhow()
        place = self._place_of_block()
        limit_s = self._thresholds.blocked_s
        reason = f"the event loop has been blocked for {missed_s:.0f} s (at most {limit_s:g} s) in {place}"
        words = f"ct-stream: hung: {reason}; exiting without a commit, events that are not acked are delivered again\n"
        try:
            asyncio.run(self._recorded([place], reason))
        except Exception as error:
            words += f"ct-stream: this exit could not be recorded, so it does not count as a hang: {error!r}\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, words.encode())
        faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_CODE)

    def _place_of_block(self) -> str:
        """Return the event or company that the loop is working on; if that is unknown, the oldest event in hand."""
        task = asyncio.current_task(self._guard.loop)
        name = task.get_name() if task else ""
        kind, _, rest = name.partition(":")
        if kind == "event":
            partition, _, offset = rest.partition(":")
            return f"{self._topic}[{partition}] offset {offset}"
        if kind == "waiting":
            return f"company {rest}"
        try:
            heads = dict(self._heads())
        except RuntimeError:  # the loop moved on after all
            heads = {}
        return min(heads, key=heads.__getitem__, default="no event")


def _end_anyhow() -> None:
    """Make sure that the process ends even if its last log lines are not written."""
    threading.Thread(target=_exit_later, name="watchdog:end", daemon=True).start()


def _exit_later() -> None:
    time.sleep(_LAST_WORDS_S)
    os._exit(EXIT_CODE)


@dataclass(frozen=True, slots=True)
class Watching:
    """A watchdog with its senses, as a service."""

    watchdog: Watchdog
    senses: Senses
    name: str = "watchdog"

    async def run(self) -> None:
        """Watch until cancelled."""
        await self.watchdog.run(self.senses)


# ---------------------------------------------------------------- what it was doing


def describe(tasks: Iterable[asyncio.Task[Any]]) -> str:
    """Return what each task waits for, equal ones together, most common first, in at most 48,000 characters.

    It names places in the code only, never a variable's value, so nothing of a record appears.
    """
    stacks: Counter[str] = Counter()
    example: dict[str, str] = {}
    for task in tasks:
        stack = "\n".join(f"    {frame}" for frame in _frames(task))
        stacks[stack] += 1
        example.setdefault(stack, task.get_name())
    parts = [f"  {count} x {example[stack]}\n{stack}" for stack, count in stacks.most_common()]
    text = "\n".join(parts)
    return text if len(text) <= _MOST_DUMP else f"{text[:_MOST_DUMP]}\n  ... and more, {len(parts)} stacks in all"


def _frames(task: asyncio.Task[Any]) -> list[str]:
    """Return where a task is, outermost call first; Task.get_stack gives only the first frame of a waiting task."""
    found: list[str] = []
    waiting: Any = task.get_coro()
    while waiting is not None and len(found) < _MOST_FRAMES:
        frame = next((f for n in ("cr_frame", "gi_frame", "ag_frame") if (f := getattr(waiting, n, None))), None)
        if frame is None:
            found.append(f"waits for {type(waiting).__name__}")
            break
        found.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
        waiting = next((w for n in ("cr_await", "gi_yieldfrom", "ag_await") if (w := getattr(waiting, n, None))), None)
    return found
