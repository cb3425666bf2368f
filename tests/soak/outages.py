"""Port 25 blocked, the resolvers dead, Postgres down, in turn, under a stream of companies: who fails, and who waits?

    make outages MINUTES=5          # of each outage; five outages and the repairs between them

Runs in a network namespace of its own (root, Debian's nftables and iproute2), where packets are really dropped or
refused. Everything listens on that namespace's loopback. Prints what it measured, and exits with 1 where something does
not hold: no outage makes a FAIL, and the backlog that it leaves comes to an end, which takes a gate that decides more
than comes in.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import orjson
from aiokafka import AIOKafkaProducer

from ct_stream.stream.topology import SPINE_CREATED
from tests.faults import invariants
from tests.faults.harness import Stack
from tools.needs import lacks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import datetime
    from typing import Any
    from uuid import UUID

#: Of 20 companies: hosts that are really dead are among them, and must fail after the repair, never in an outage.
KINDS = (
    ("info",) * 9
    + ("allreject",) * 3
    + ("refuse",) * 2
    + ("nxdomain",) * 2
    + ("catchall",) * 2
    + ("blackhole", "contact")
)
QUIET_S = 30.0  #: between two outages, and before the first
LONGEST_WAIT_S = 300.0  #: after a repair the backlog must have come to its end within so long
#: Who came this long ago and is undecided belongs to a backlog: one pass ends within 60 s, and a dead host's company
#: takes two, with a proof of our own way between them.
UNDER_WAY_S = 90.0
#: An answer that came before the outage may be recorded within it.
IN_HAND_S = 1.0


@dataclass(kw_only=True)
class Outage:
    """One stretch of trouble of our own, by the database's clock."""

    name: str
    codes: tuple[str, ...]  #: failures that it would fake
    begin: datetime | None = None
    end: datetime | None = None


@dataclass(kw_only=True)
class Stream:
    """An upstream that mints and produces so many companies a second."""

    stack: Stack
    per_s: float
    domains: dict[UUID, str | None] = field(default_factory=dict)
    running: bool = True

    async def run(self) -> None:
        kinds = cycle(random.Random(25).sample(KINDS, len(KINDS)))
        producer = AIOKafkaProducer(bootstrap_servers=self.stack.env["CT_KAFKA_BOOTSTRAP"], linger_ms=5, acks="all")
        await producer.start()
        begin, number = time.monotonic(), 0
        try:
            while self.running:
                due = int((time.monotonic() - begin) * self.per_s) - number
                if due > 0:
                    names: list[str | None] = [f"{next(kinds)}-o{number + n}.example" for n in range(due)]
                    try:
                        ids = await self.stack.mint(names)
                    except Exception:  # Postgres is down: upstream mints nothing either
                        await asyncio.sleep(0.2)
                        begin, number = time.monotonic() - number / self.per_s, number
                        continue
                    for company, name in zip(ids, names, strict=True):
                        self.domains[company] = name
                        await producer.send(
                            SPINE_CREATED, key=str(company).encode(), value=orjson.dumps({"outreach_id": str(company)})
                        )
                    number += due
                await asyncio.sleep(0.05)
        finally:
            await producer.stop()


def nft(*rules: str) -> None:
    """Replace the namespace's only table."""
    text = "table inet outage\ndelete table inet outage\n"
    if rules:
        chain = "\n".join(["type filter hook output priority 0", *rules])
        text += f"table inet outage {{\nchain out {{\n{chain}\n}}\n}}\n"
    subprocess.run(["nft", "-f", "-"], input=text.encode(), check=True)


class Trouble:
    """Breaks things, and mends them."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._smtp = stack.env["CT_SMTP_PORT"]
        self._dns = ", ".join(server.rpartition(":")[2] for server in stack.env["CT_DNS_SERVERS"].split(","))

    async def port_25_dropped(self) -> None:
        nft(f"tcp dport {self._smtp} drop", f"tcp sport {self._smtp} drop")

    async def port_25_refused(self) -> None:
        nft(f"tcp dport {self._smtp} reject with tcp reset")

    async def resolvers_dropped(self) -> None:
        nft(f"udp dport {{ {self._dns} }} drop", f"tcp dport {{ {self._dns} }} drop")

    async def resolvers_refused(self) -> None:
        nft(f"udp dport {{ {self._dns} }} reject", f"tcp dport {{ {self._dns} }} reject with tcp reset")

    async def mend_network(self) -> None:
        nft()

    async def stop_postgres(self) -> None:
        self._stack.admin.terminate()
        await self._stack.postgres.stop(crash=True)

    async def start_postgres(self) -> None:
        await self._stack.postgres.start()
        await self._stack.connect()


async def database_now(stack: Stack) -> datetime:
    moment: datetime = await stack.admin.fetchval("SELECT clock_timestamp()")
    return moment


async def wait_decided(stack: Stack, since: datetime, until: float) -> float | None:
    """Wait until who came up to `since` is decided; return when, or None where that is not so at the moment `until`."""
    while await undecided(stack, since):
        if time.monotonic() > until:
            return None
        await asyncio.sleep(1)
    return time.monotonic()


async def wait_backlog_ended(stack: Stack, until: float) -> float | None:
    """Wait until only those are undecided who have just come; return when, or None as `wait_decided` does."""
    while await undecided(stack, await database_now(stack) - timedelta(seconds=UNDER_WAY_S)):
        if time.monotonic() > until:
            return None
        await asyncio.sleep(1)
    return time.monotonic()


async def undecided(stack: Stack, minted_by: datetime) -> int:
    """Return how many companies that were minted by then have no outcome."""
    count: int = await stack.admin.fetchval(
        "SELECT count(*) FROM outreach.outreach AS s WHERE s.created_at <= $1"
        " AND NOT EXISTS (SELECT FROM outreach.ct_outcomes AS o WHERE o.outreach_id = s.outreach_id)",
        minted_by,
    )
    return count


async def run(per_s: float, outage_s: float, only: str, folder: Path) -> int:
    """Play the outages whose names begin with `only`; return the exit code."""
    broken: list[str] = []
    async with Stack(folder, reply_delay_s=0.02, pause_s=0.2, control_s=5.0, CT_PASS_DEADLINE_S="60") as stack:
        stack.start_worker()
        assert await stack.wait_said("Ready", 60), stack.worker_log()
        stream, trouble = Stream(stack=stack, per_s=per_s), Trouble(stack)
        producing = asyncio.create_task(stream.run())
        plan: list[tuple[Outage, Callable[[], Coroutine[Any, Any, None]], Callable[[], Coroutine[Any, Any, None]]]] = [
            (Outage(name="port 25 refused", codes=("CT-M-SMTP-FAIL",)), trouble.port_25_refused, trouble.mend_network),
            (Outage(name="port 25 dropped", codes=("CT-M-SMTP-FAIL",)), trouble.port_25_dropped, trouble.mend_network),
            (
                Outage(name="resolvers refused", codes=("CT-M-NO-MX", "CT-M-SMTP-FAIL")),
                trouble.resolvers_refused, trouble.mend_network,
            ),
            (
                Outage(name="resolvers dropped", codes=("CT-M-NO-MX", "CT-M-SMTP-FAIL")),
                trouble.resolvers_dropped, trouble.mend_network,
            ),
            (Outage(name="Postgres down", codes=()), trouble.stop_postgres, trouble.start_postgres),
        ]  # fmt: skip
        print(f"{per_s:g} companies a second, outages of {outage_s:g} s", flush=True)
        plan = [one for one in plan if one[0].name.startswith(only)]
        assert plan, f"no outage has a name that begins with {only!r}"
        for outage, break_it, mend_it in plan:
            await asyncio.sleep(QUIET_S)
            outage.begin = await database_now(stack)
            await break_it()
            await asyncio.sleep(outage_s)
            await mend_it()
            outage.end, mended = await database_now(stack), time.monotonic()
            waiting_then = await undecided(stack, outage.end)
            decided = await wait_decided(stack, outage.end, mended + LONGEST_WAIT_S)
            ended = await wait_backlog_ended(stack, mended + LONGEST_WAIT_S)
            rows = await stack.admin.fetch(
                "SELECT failure_code, count(*) AS n FROM outreach.ct_outcomes WHERE failure_code IS NOT NULL"
                " AND decided_at BETWEEN $1::timestamptz + $3 * interval '1 s' AND $2 GROUP BY failure_code",
                outage.begin, outage.end, IN_HAND_S,
            )  # fmt: skip
            failed = Counter({row["failure_code"]: row["n"] for row in rows})
            print(
                f"{outage.name}: {waiting_then} undecided at the repair; failed meanwhile {dict(failed) or 'nobody'}; "
                f"after the repair the last of them decided after {_s(decided, mended)}, the backlog at its end after "
                f"{_s(ended, mended)}",
                flush=True,
            )
            if wrong := {code: failed[code] for code in outage.codes if failed[code]}:
                broken.append(f"{outage.name}: {wrong} inside the outage")
            if decided is None:
                left = await undecided(stack, outage.end)
                broken.append(f"{outage.name}: {left} still undecided {LONGEST_WAIT_S:g} s after the repair")
            if ended is None:
                broken.append(f"{outage.name}: the backlog has no end {LONGEST_WAIT_S:g} s after the repair")
        stream.running = False
        await producing
        await invariants.wait_at_rest(stack, len(stream.domains), LONGEST_WAIT_S)
        found = await invariants.check(stack, stream.domains, kills=1, pause_s=None)  # a dropped FIN
        broken += found.broken
        outcomes = await stack.admin.fetch(
            "SELECT coalesce(failure_code, 'PASS') AS code, count(*) AS n FROM outreach.ct_outcomes GROUP BY 1"
        )
        print(f"{len(stream.domains)} companies: { ({row['code']: row['n'] for row in outcomes}) }; {found.figures}")
        code = stack.end_worker(stack.workers[-1])
        if code:
            broken.append(f"the worker ended with {code}")
    for line in broken:
        print(f"DOES NOT HOLD: {line}")
    print("all of it holds" if not broken else f"{len(broken)} things do not hold")
    return 1 if broken else 0


def _s(moment: float | None, since: float) -> str:
    return f"more than {LONGEST_WAIT_S:.0f} s" if moment is None else f"{moment - since:.0f} s"


def main() -> int:
    """Read the options; begin again inside a network namespace of our own."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.outages", description=__doc__.splitlines()[0])
    parser.add_argument("--per-s", type=float, default=50.0)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each outage")
    parser.add_argument("--only", default="", metavar="NAME", help="those whose names begin so, such as Postgres")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        if missing := lacks("unshare", "ip", "nft", root=True):
            sys.exit(f"make outages {missing}")
        enter = 'ip link set lo up && exec "$0" "$@" --inside'
        inside = ["sh", "-c", enter, sys.executable, "-m", "tests.soak.outages"]
        return subprocess.run(["unshare", "--net", *inside, *sys.argv[1:]], check=False).returncode
    with tempfile.TemporaryDirectory(prefix="ct-stream-outages-") as folder:
        return asyncio.run(run(options.per_s, options.minutes * 60, options.only, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
