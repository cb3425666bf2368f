"""A seeded random soak: kills, freezes, broken ways and lies on three brokers of Apache Kafka, then the invariants.

    make soak MINUTES=30 SEED=7

Three workers, each in a network namespace of its own, with an egress of its own; each way out breaks and is mended at
random, and who takes a killed worker's place finds its way as it is. The limits of a day are lifted, a killed worker is
missed after 6 s (the product's own 45 s would make every kill wait), and all but a few companies have domains of their
own. Controls are due every 15 s and not every 600: so lies may begin at any moment, and passes are forgiven only to
companies that a lie was told about, and only until the control that follows. Prints each fault as it comes, the
figures, and whatever does not hold; exits with 1 then. The same seed draws the same faults.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from ct_stream.stream.topology import SPINE_CREATED
from tests import brokers
from tests.faults import invariants
from tests.soak.ways import MOST_ASKED, SILENT, WINDOW_S, Break, Ways, most_at_once, too_close
from tests.ways.breaking import WAYS
from tests.ways.fleet import Fleet
from tests.ways.namespaces import build_world, in_a_world, missing
from tools.kafka.cluster import BROKERS, KafkaCluster

PER_S = 14.0
REPLY_S = 2.2  #: so that a pass takes about 25 s, and hundreds are in flight in each worker
LEAST_IN_FLIGHT = 120  #: SMTP dialogues of a worker that is killed
WORKERS = 3
PAUSE_S, AT_PROVIDER, PROVIDER = 2.0, 10, "bigmail.example"
#: Of 100 companies; 78 of them end in an SMTP dialogue.
KINDS = (
    ("info",) * 31 + ("onlyipv6",) * 4 + ("bigmx",) * 4 + ("info-at-bigmail",)
    + ("allreject",) * 14 + ("contact",) * 6 + ("catchall",) * 8 + ("421after3",) * 4
    + ("closeafter550",) * 2 + ("greyunknown",) * 4 + ("nxdomain",) * 10 + ("nullmx",) * 5 + ("refuse",) * 4
    + ("",) * 3
)  # fmt: skip
DIALOGUES = frozenset(KINDS) - {"nxdomain", "nullmx", "refuse", ""}
LATE_STEPS = ("smtp done", "recording", "recorded", "published", "stamped", "acked")
DUPLICATES, JUNK = 0.02, 0.004
AT_REST_S = 300.0
#: Who is refused at a shared address waits ten minutes (FIRST_TRY_S), and may have been at the very end.
REFUSED_S = 660.0
SEEN_S = 8.0
_AGAIN_S = 0.3
#: What a query meets while Postgres is crashed, or its pool is taken down under it.
_AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
#: FAILs that rest on an absence or a silence during a fault on our side: even a truly dead server's proves nothing then
#: as a living one's. Half a second is left at its begin, for what had come before and was read late.
#: A port 25 that is closed for less than SEEN_S may fall between two proofs: two intervals and 3 s may lie between,
#: and a connection that is begun in it comes through by TCP's own repeats within 3 s more. Then only the two looks at
#: each company guard, and that no living one failed is all that is asked (ADR-CT-IMO-024).
_BELIEVED = """
    SELECT DISTINCT o.domain, o.recorded_at, a.said FROM outreach.ct_outcomes AS o
    CROSS JOIN LATERAL jsonb_array_elements(o.transcript) AS a (said)
    WHERE o.failure_code IN ('CT-M-NO-MX', 'CT-M-SMTP-FAIL')
        AND (a.said->>'at')::timestamptz
            BETWEEN $1::timestamptz + interval '0.5 s' AND $2::timestamptz
        AND ($4::text[] IS NULL OR a.said->>'by' = ANY ($4::text[]))
        AND CASE WHEN $3::boolean
            THEN a.said->>'key' = 'mx' AND a.said->'answer'->>'status' <> 'found'
                OR EXISTS (SELECT FROM jsonb_array_elements(a.said->'answer'->'attempts') AS t (tried)
                    WHERE t.tried->>'trouble' IN ('no_address', 'name_lookup'))
            ELSE EXISTS (SELECT FROM jsonb_array_elements(a.said->'answer'->'attempts') AS t (tried)
                    WHERE t.tried->>'trouble' IN ('refused', 'timeout', 'closed', 'unreachable', 'deadline'))
            END
"""


#: What is left when it should be at rest, for whoever looks for the cause.
_UNDECIDED = """
    SELECT p.state, p.reason, p.waits_on, p.looks, p.lease_until > clock_timestamp() AS leased,
        split_part(p.domain, '-', 1) AS kind, count(*) AS companies, min(p.spent_ms) AS spent_from,
        max(p.spent_ms) AS spent_to, max(jsonb_array_length(p.answers)) AS answers, max(p.detail) AS detail
    FROM outreach.ct_passes AS p GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY companies DESC LIMIT 20
"""

#: Who waits for anything but the time of a refusal that came before the last repair.
_LATE = """
    SELECT p.state, p.reason, p.waits_on, count(*) AS companies, max(p.detail) AS detail FROM outreach.ct_passes AS p
    WHERE (
        p.reason = 'refused' AND p.waits_on LIKE 'provider:%' AND p.not_before < 'infinity' AND p.parked_at < $1
    ) IS NOT TRUE
    GROUP BY 1, 2, 3 ORDER BY companies DESC LIMIT 20
"""


@dataclass(kw_only=True)
class Tally:
    """What was done, for the report."""

    kills: list[int] = field(default_factory=list)  #: dialogues in flight at each
    late_kills: Counter[str] = field(default_factory=Counter)
    other: Counter[str] = field(default_factory=Counter)
    ends: list[str] = field(default_factory=list)  #: of workers, that no fault made by us explains
    duplicates: int = 0
    junk: int = 0


class Soak:
    """The stack, its upstream, and what befalls them."""

    def __init__(self, fleet: Fleet, cluster: KafkaCluster, seed: int, until: float) -> None:
        self.fleet = fleet
        self.stack = fleet.stack
        self.cluster = cluster
        self.chance = random.Random(seed)
        self.until = until
        self.ways = Ways(fleet=fleet, chance=random.Random(seed + 1), until=until)
        self.domains: dict[UUID, str | None] = {}
        self.tally = Tally()
        self.workers: list[subprocess.Popen[bytes]] = []
        self.late: dict[int, str] = {}  #: by pid: at which step it will strike itself
        self.hashes: list[dict[UUID, str]] = []

    # ---------------------------------------------------------------- Postgres may be away at any moment

    async def sql(self, query: str, *args: Any) -> list[Any]:
        """Run a query as the superuser, again and again until Postgres answers."""
        while True:
            try:
                return list(await self.stack.admin.fetch(query, *args))
            except _AWAY:
                await asyncio.sleep(_AGAIN_S)

    async def now(self) -> datetime:
        """Return the database's time."""
        [row] = await self.sql("SELECT clock_timestamp() AS t")
        moment: datetime = row["t"]
        return moment

    async def in_flight(self, worker: subprocess.Popen[bytes]) -> int:
        """Return how many SMTP dialogues a worker holds the lease of."""
        [row] = await self.sql(
            "SELECT count(*) AS n FROM outreach.ct_domains"
            " WHERE lease_owner LIKE '%/' || $1 || '/%' AND lease_until > clock_timestamp()",
            str(worker.pid),
        )
        return int(row["n"])

    # ---------------------------------------------------------------- upstream

    async def upstream(self) -> None:
        """Mint and produce, with some events twice and some that nobody can read."""
        chance = random.Random(self.chance.random())
        producer = AIOKafkaProducer(
            bootstrap_servers=self.stack.env["CT_KAFKA_BOOTSTRAP"], acks="all", enable_idempotence=True, linger_ms=20
        )
        await producer.start()
        kinds: list[str] = []
        try:
            begin, number = time.monotonic(), 0
            while time.monotonic() < self.until:
                due = int((time.monotonic() - begin) * PER_S) - number
                for _ in range(due):
                    kinds = kinds or chance.sample(KINDS, len(KINDS))
                    kind = kinds.pop()
                    company = UUID(int=chance.getrandbits(128), version=4)
                    domain = f"{kind}-k{number}.example" if kind else None
                    number += 1
                    await self.sql(
                        "INSERT INTO outreach.outreach (outreach_id, domain) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                        company, domain,
                    )  # fmt: skip
                    self.domains[company] = domain
                    await self._produce(producer, company, chance)
                await asyncio.sleep(0.05)
        finally:
            await producer.stop()

    async def _produce(self, producer: AIOKafkaProducer, company: UUID, chance: random.Random) -> None:
        key, value = str(company).encode(), orjson.dumps({"outreach_id": str(company)})
        records = [(key, value)]
        if chance.random() < DUPLICATES:
            records.append((key, value))
            self.tally.duplicates += 1
        if chance.random() < JUNK:
            records.append((b"junk", chance.choice([b"not JSON", b"\xff\xfe", b"[]", b'{"outreach_id": 7}'])))
            self.tally.junk += 1
        for record_key, record_value in records:
            while True:
                try:
                    await producer.send_and_wait(SPINE_CREATED, key=record_key, value=record_value)
                    break
                except KafkaError:
                    await asyncio.sleep(_AGAIN_S)

    # ---------------------------------------------------------------- faults

    def start_worker(self, number: int, step: str = "") -> subprocess.Popen[bytes]:
        """Start a worker behind its own way; with a step, one that kills itself there."""
        prelude = ""
        if step:
            times = self.chance.randint(60, 240)
            prelude = f"from tests.faults.steps import strike\nstrike({step!r}, {times})\n"
        worker = self.fleet.start(number, prelude=prelude)
        self.ways.started(number, worker.pid)
        self.workers.append(worker)
        if step:
            self.late[worker.pid] = step
        return worker

    async def keep_workers(self) -> None:
        """Count workers that killed themselves at their step, and start others in their place."""
        while True:
            for worker in list(self.workers):
                code = worker.poll()
                if code is None:
                    continue
                self.workers.remove(worker)
                step = self.late.pop(worker.pid, None)
                if code == -signal.SIGKILL and step is not None:
                    flying = await self.in_flight(worker)
                    self.tally.kills.append(flying)
                    self.tally.late_kills[step] += 1
                    self.ways.died(self.ways.numbers[worker.pid], await self.now())
                    self.say(f"killed at {step!r} with {flying} in flight")
                else:
                    log = self.stack.workers.index(worker)
                    self.tally.other[f"worker ended with {code}"] += 1
                    self.tally.ends.append(f"a worker ended with {code}")
                    said = [line for line in self.stack.worker_log(log).splitlines() if "Gate " not in line]
                    self.say(f"a worker ended with {code}: {' | '.join(said[-8:])}")
                self.start_worker(self.ways.numbers[worker.pid])
            await asyncio.sleep(0.2)

    async def kill(self) -> None:
        """SIGKILL a worker with hundreds in flight; near half of those that take its place strike themselves."""
        victim = await self._busy()
        if victim is None:
            return
        flying = await self.in_flight(victim)
        self.workers.remove(victim)
        self.late.pop(victim.pid, None)
        victim.send_signal(signal.SIGKILL)
        await asyncio.to_thread(victim.wait)
        self.tally.kills.append(flying)
        self.ways.died(self.ways.numbers[victim.pid], await self.now())
        self.say(f"killed with {flying} in flight")
        self.hashes = [*self.hashes[-3:], await self.look()]
        is_late = not self.late and self.chance.random() < 0.6  # one at a time: the other is there to be killed
        self.start_worker(self.ways.numbers[victim.pid], self.chance.choice(LATE_STEPS) if is_late else "")

    async def _busy(self) -> subprocess.Popen[bytes] | None:
        """Return a worker with enough in flight, once there is one."""
        deadline = time.monotonic() + 45
        while time.monotonic() < min(deadline, self.until):
            for worker in self.chance.sample(self.workers, len(self.workers)):
                if worker.pid in self.late:
                    continue  # it strikes itself
                if worker.poll() is None and await self.in_flight(worker) >= LEAST_IN_FLIGHT:
                    return worker
            await asyncio.sleep(0.3)
        return None

    async def look(self) -> dict[UUID, str]:
        """Return digests of a sample of final rows, to be compared at the end."""
        while True:
            try:
                return dict(list((await invariants.ledger_hashes(self.stack)).items())[-3000:])
            except _AWAY:
                await asyncio.sleep(_AGAIN_S)

    async def freeze(self) -> None:
        """SIGSTOP a worker for longer than the group waits, then let it go on."""
        victim = self.chance.choice(self.workers)
        this = Break(number=self.ways.numbers[victim.pid], way="frozen", begin=await self.now())
        self.ways.frozen.append(this)
        victim.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self.chance.uniform(8, 30))
        with suppress(ProcessLookupError):
            victim.send_signal(signal.SIGCONT)
        this.end = await self.now()

    async def one_more(self) -> None:
        """Let one more worker, whose way is whole, come and go: two rebalances."""
        extra = self.fleet.start(WORKERS)
        self.ways.started(WORKERS, extra.pid)
        await asyncio.sleep(self.chance.uniform(8, 20))
        extra.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(extra.wait)
        if code:
            self.tally.ends.append(f"one more worker ended with {code}")

    async def broker(self) -> None:
        """Kill, stop or freeze one broker, and bring it back."""
        node = self.chance.choice(BROKERS)
        how = self.chance.choice(["kill", "stop", "pause"])
        self.say(f"broker {node}: {how}")
        if how == "pause":
            self.cluster.pause(node)
            await asyncio.sleep(self.chance.uniform(3, 12))
            self.cluster.resume(node)
        else:
            await (self.cluster.kill(node) if how == "kill" else self.cluster.stop(node))
            await asyncio.sleep(self.chance.uniform(1, 10))
            await self.cluster.start(node)
        await self.cluster.wait_healthy()

    async def postgres(self) -> None:
        """Crash Postgres, and start it again."""
        self.stack.admin.terminate()
        await self.stack.postgres.stop(crash=True)
        await asyncio.sleep(self.chance.uniform(1, 8))
        await self.stack.postgres.start()
        await self.stack.connect()

    async def resolvers(self) -> None:
        """Let all resolvers fail or lie."""
        await self._lie("resolvers", self.chance.choice(["servfail", "refused", "nxdomain_all", "down"]))

    async def port_25(self) -> None:
        """Let no SMTP through."""
        await self._lie("port 25", self.chance.choice(["refused", "timeout"]))

    async def _lie(self, what: str, mode: str) -> None:
        self.say(f"{what}: {mode}")
        setter = self.stack.farm.set_resolvers if what == "resolvers" else self.stack.farm.block_smtp
        await setter(mode)
        # On a busy machine the farm may take its time to begin, and to end.
        this = Break(number=None, way=f"{what} {mode}", begin=await self.now())
        self.ways.breaks.append(this)
        # A short fault may fall between two controls; then nothing on our side shows that it was there.
        await asyncio.sleep(self.chance.choice([self.chance.uniform(0.2, 2), self.chance.uniform(8, 20)]))
        this.end = await self.now()
        await (self.stack.farm.set_resolvers("ok") if what == "resolvers" else self.stack.farm.block_smtp(None))

    async def befall(self) -> None:
        """Play faults until the time is up: a kill each time, and something else between two kills."""
        others = [self.freeze, self.one_more, self.broker, self.postgres, self.resolvers, self.port_25, self.broker]
        while time.monotonic() < self.until:
            await self.kill()
            # Each kill throws hundreds of half asked companies back: one every 13 s, and the gate falls behind.
            await asyncio.sleep(self.chance.uniform(10, 24))
            if time.monotonic() < self.until and self.chance.random() < 0.75:
                fault = self.chance.choice(others)
                self.tally.other[fault.__name__] += 1
                self.say(fault.__name__)
                await fault()

    async def break_way(self, number: int) -> None:
        """Break one worker's way again and again; a person has servers take its address off their list each time."""
        async for name in self.ways.befall(number, self.say):
            if WAYS[name].listed_at is not None:
                await self.delisted(f"@way-{number}")

    async def delisted(self, egress: str = "") -> None:
        """Resume what refusals of one egress, or of all, have halted and closed."""
        await self.sql(
            "SELECT outreach.resume_guardrail(key, 'delisted') FROM outreach.ct_guardrails"
            " WHERE state NOT IN ('open', 'trial') AND key LIKE '%' || $1",
            egress,
        )

    async def judge(self) -> tuple[invariants.Found, int]:
        """Return what does not hold, with figures, and how many dead servers' answers fell between two proofs."""
        log = await self.stack.farm.log()
        exposed, unexplained = await self.ways.exposed(log)
        voided, answers, stories = await self.ways.voided(log)
        for story in stories:
            self.say(f"asked too often: {story}")
        found = await invariants.check(
            self.stack,
            self.domains,
            kills=MOST_ASKED - 1,
            pause_s=None,
            before=self.hashes,
            junk=self.tally.junk,
            exposed=exposed,
            voided=voided,
        )
        found.expect(not unexplained, 7, f"{len(unexplained)} passes have no server's word: {unexplained[:3]}")
        close = too_close(log, PAUSE_S, self.ways.was_mute)
        found.expect(not close, 8, f"{len(close)} pairs of sessions are too close: {close[:3]}")
        at_once = most_at_once(log, f"mx1.{PROVIDER}", self.ways.was_mute)
        found.expect(at_once <= AT_PROVIDER, 8, f"{at_once} sessions at once at a provider")
        found.figures |= {
            "passed on a lie before the control that followed": len(exposed),
            "answers at RCPT": answers,
            "answers that broken ways made void": voided.total(),
            "most sessions at once at a provider": at_once,
        }
        runs = [row["worker"] for row in await self.sql("SELECT DISTINCT worker FROM outreach.ct_controls")]
        between_proofs = 0
        for one in self.ways.breaks:
            what = one.way.split(" ")[0] if one.number is None else SILENT.get(one.way, "")
            if not what:
                continue
            rows = await self.sql(
                _BELIEVED, one.begin, one.end, what == "resolvers", self.ways.runs_of(one.number, runs)
            )
            if rows and what != "resolvers" and (one.end - one.begin).total_seconds() < SEEN_S:
                between_proofs += len(rows)
            elif rows:
                found.broken.append(
                    f"{one}: {len(rows)} answers from inside the fault are believed, such as "
                    f"{[dict(row) for row in rows[:3]]}"
                )
        return found, between_proofs

    def say(self, text: str) -> None:
        """Print a line with the time, and how much is left."""
        left = f"{datetime.now(UTC):%T} {self.until - time.monotonic():6.0f} s left"
        print(f"{left}  {len(self.domains):6d} minted  {text}", flush=True)


async def run(minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Soak; return the figures, with what does not hold."""
    build_world(ipv6=True)
    async with KafkaCluster(folder / "kafka") as cluster:
        brokers.use(cluster)
        async with Fleet(
            folder, WORKERS + 1, ipv6=True, own_egress=True, reply_delay_s=REPLY_S, pause_s=PAUSE_S, control_s=1.0,
            settle_s=20.0, window_s=WINDOW_S, CT_PASS_DEADLINE_S="90", CT_DRAIN_S="5",
        ) as fleet:  # fmt: skip
            stack = fleet.stack
            soak = Soak(fleet, cluster, seed, time.monotonic() + minutes * 60)
            for number in range(WORKERS):
                soak.start_worker(number)
            keeping = asyncio.create_task(soak.keep_workers())
            async with asyncio.TaskGroup() as befalling:
                befalling.create_task(soak.upstream())
                befalling.create_task(soak.befall())
                for number in range(WORKERS):
                    befalling.create_task(soak.break_way(number))
            await soak.delisted()
            mended, mended_at = time.monotonic(), await soak.now()
            soak.until = mended
            await invariants.wait_at_rest(stack, len(soak.domains), AT_REST_S)
            late = await soak.sql(_LATE, mended_at)
            await invariants.wait_at_rest(stack, len(soak.domains), REFUSED_S - AT_REST_S)
            rest_s = time.monotonic() - mended
            undecided = await soak.sql(_UNDECIDED)
            for row in undecided:
                soak.say(f"undecided: {dict(row)}")
            keeping.cancel()
            found, between_proofs = await soak.judge()
            broken = [*found.broken, *soak.tally.ends]
            if late:
                broken.append(f"not at rest {AT_REST_S:g} s after the last repair: {[dict(row) for row in late]}")
            if undecided:
                broken.append(f"not at rest {REFUSED_S:g} s after the last repair")
            ends = [await asyncio.to_thread(stack.end_worker, worker) for worker in soak.workers]
            if any(ends):
                broken.append(f"workers ended with {ends}")
    tally = soak.tally
    dialogues = sum(1 for name in soak.domains.values() if name and name.rpartition("-")[0] in DIALOGUES)
    return {
        "seed": seed,
        "minutes": minutes,
        "companies": len(soak.domains),
        "smtp_dialogues": dialogues,
        "duplicates": tally.duplicates,
        "junk": tally.junk,
        "sigkills": len(tally.kills),
        f"sigkills_with_{LEAST_IN_FLIGHT}_in_flight": sum(1 for n in tally.kills if n >= LEAST_IN_FLIGHT),
        "sigkills_at_late_steps": dict(tally.late_kills),
        "other_faults": dict(tally.other),
        "breaks": soak.ways.count(),
        "at_rest_after_s": round(rest_s),
        **found.figures,
        "dead servers' answers from a closed port 25 between two proofs": between_proofs,
        "broken": broken,
    }


def main() -> int:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--figures", type=Path, help="write the figures to this file, as JSON")
    parser.add_argument("--keep", type=Path, help="a folder for logs that stays")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        if sentence := missing():
            sys.exit(f"make soak {sentence}")
        inside = in_a_world("tests.soak.soak", [*sys.argv[1:], "--inside"])
        return subprocess.run(inside, check=False).returncode
    print(f"seed {options.seed}: the same again with --seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ct-stream-soak-") as folder:
        figures = asyncio.run(run(options.minutes, options.seed, options.keep or Path(folder)))
    text = orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode()
    print(text)
    if options.figures:
        options.figures.write_text(text + "\n")
    return 1 if figures["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
