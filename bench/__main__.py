"""`make bench`: the whole gate on the embedded stack against a bare loop of the same probes, same farm, same run.

One domain for each company; 9 RCPT TO: 7 refusals, `contact` accepted, a random mailbox refused. Rounds alternate, so
that a machine that slows down slows both; the ratio of CPU times is the figure to quote.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from aiokafka import AIOKafkaProducer

from ct_stream.stream.topology import SPINE_CREATED
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from uuid import UUID

    from ct_stream.local.farm import FarmLog

SHARE_REPLY_S = 0.5


def process_cpu_s(pid: int) -> float:
    """Return the user and system time of a process (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def gate_round(stack: Stack, domains: list[str | None], per_s: float = 0.0) -> tuple[float, float]:
    """Put companies through the running worker, all at once or so many a second; return (seconds, its CPU seconds)."""
    worker = stack.workers[-1]
    decided = await stack.count_decided()
    ids = await stack.mint(domains)
    begin, used = time.monotonic(), process_cpu_s(worker.pid)
    if per_s:
        await publish_paced(stack, ids, per_s)
    else:
        await stack.publish(ids)
    if await stack.wait_decided(decided + len(ids), 120) != decided + len(ids) or await stack.wait_published(30):
        raise SystemExit(f"the gate did not decide all companies:\n{stack.worker_log()[-2000:]}")
    return time.monotonic() - begin, process_cpu_s(worker.pid) - used


async def publish_paced(stack: Stack, ids: list[UUID], per_s: float) -> None:
    """Produce one by one, evenly: companies that begin together would stay together, and meet at every step."""
    producer = AIOKafkaProducer(bootstrap_servers=stack.env["CT_KAFKA_BOOTSTRAP"])
    await producer.start()
    try:
        begin = time.monotonic()
        for number, company in enumerate(ids):
            await asyncio.sleep(begin + number / per_s - time.monotonic())
            await producer.send(
                SPINE_CREATED, key=str(company).encode(), value=orjson.dumps({"outreach_id": str(company)})
            )
    finally:
        await producer.stop()


def loop_round(stack: Stack, domains: list[str], at_once: int, per_s: float = 0.0) -> dict[str, Any]:
    """Put domains through the bare loop; return what it measured."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("CT_")} | stack.env
    done = subprocess.run(
        [sys.executable, "-m", "bench.loop", str(at_once), str(per_s)],
        input="\n".join(domains).encode(), env=environ, capture_output=True, check=False, timeout=120,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    result: dict[str, Any] = orjson.loads(done.stdout)
    if result["outcomes"] != {"contact": len(domains)}:
        raise SystemExit(f"the loop came to other outcomes: {result['outcomes']}")
    return result


async def bench_waiting(stack: Stack, companies: int, rounds: int, waiting: int) -> None:
    """Measure the same gate before and after so many companies wait for a closed provider."""

    async def rate(name: str) -> float:
        rates = []
        for number in range(rounds):
            wall, _ = await gate_round(stack, [f"contact-{name}{number}x{n}.example" for n in range(companies)])
            rates.append(companies / wall)
        return statistics.median(rates)

    before = await rate("before")
    await stack.admin.execute(
        "INSERT INTO outreach.ct_guardrails (key, state, reason) VALUES ('provider:bigmail.example', 'closed', 'bench')"
    )
    begin = time.monotonic()
    await stack.publish(await stack.mint([f"info-at-bigmail-{n}.example" for n in range(waiting)]))
    parked = 0
    while parked < waiting and time.monotonic() - begin < 300:
        await asyncio.sleep(0.5)
        parked = await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_passes")
    took = time.monotonic() - begin
    after = await rate("after")
    print(f"\n{parked} companies wait for a closed provider (parked in {took:.0f} s):")
    print(f"  others before {before:.1f}/s, with them {after:.1f}/s, ratio {after / before:.2f}")


def answering_by_domain(log: FarmLog) -> Counter[str]:
    """Return the seconds that the farm took to answer what a verdict needs, for each company with hosts of its own."""
    answered: Counter[str] = Counter()
    for session in log.sessions():
        if session.domain is not None:
            answered[session.domain] += sum(c.at - c.read_at for c in session.commands if c.text != "QUIT")
    for query in log.queries():
        # A and AAAA are asked side by side, but the farm answers one after the other.
        answered[".".join(query.name.split(".")[-2:])] += query.at - query.read_at
    return answered


async def bench_share(stack: Stack, companies: int, at_once: int, reply_delay_s: float) -> None:
    """Measure the gate's own share of a pass: its time less the farm's answering time, for each company.

    What the farm's process is late by (it takes a question up, or a client's bytes, only when its loop comes to it)
    counts here as the gate's. The bare loop meets the same farm at the same pace: the difference is the gate's alone.
    """
    # Replies spread by a fifth: companies that came in one batch would stay in step for the whole session.
    await stack.farm.set_reply_delay(reply_delay_s, 0.2)
    per_s = at_once / (11 * reply_delay_s)  # a pass takes 11 replies: so many a second keep `at_once` in flight
    wall, cpu = await gate_round(stack, [f"contact-share{n}.example" for n in range(companies)], per_s=per_s)
    looped = await asyncio.to_thread(
        loop_round, stack, [f"contact-loopshare{n}.example" for n in range(companies)], at_once * 2, per_s
    )
    rows = await stack.admin.fetch("SELECT domain, duration_ms FROM outreach.ct_outcomes WHERE domain LIKE '%-share%'")
    answered = answering_by_domain(await stack.farm.log())
    whole = statistics.median(row["duration_ms"] for row in rows)
    print(f"\n{companies} companies, {at_once} in flight, {reply_delay_s:g} s a reply, a domain for each:")
    print(f"  {companies / wall:.1f} companies/s, a pass takes {whole:.0f} ms at the median")
    own = {
        "gate": [row["duration_ms"] - 1000 * answered[row["domain"]] for row in rows],
        "bare loop": [1000 * (took_s - answered[domain]) for domain, took_s in looped["took_s"].items()],
    }
    for name, shares in own.items():
        shares.sort()
        print(
            f"  {name:<10} own share {statistics.median(shares):.1f} ms at the median, "
            f"{shares[len(shares) * 9 // 10]:.1f} ms at the 90th percentile"
        )
    print(
        f"  {1000 * cpu / companies:.2f} ms of CPU in the worker, {1000 * looped['cpu_s'] / companies:.2f} in the loop"
    )


async def bench(companies: int, rounds: int, at_once: int, reply_delay_s: float, waiting: int, share: int) -> None:
    """Run all rounds and print the figures."""
    with tempfile.TemporaryDirectory(prefix="ct-stream-bench-") as folder:
        async with Stack(Path(folder), reply_delay_s=reply_delay_s, pause_s=2.0, CT_IN_FLIGHT=str(at_once)) as stack:
            stack.start_worker()
            await gate_round(stack, [f"contact-warm{n}.example" for n in range(50)])
            gate, loop = [], []
            for number in range(rounds):
                gate.append(await gate_round(stack, [f"contact-g{number}x{n}.example" for n in range(companies)]))
                domains = [f"contact-l{number}x{n}.example" for n in range(companies)]
                looped = await asyncio.to_thread(loop_round, stack, domains, at_once)
                loop.append((looped["wall_s"], looped["cpu_s"]))
                print(
                    f"round {number + 1}: gate {companies / gate[-1][0]:.0f}/s {1000 * gate[-1][1] / companies:.2f} ms"
                    f"  loop {companies / loop[-1][0]:.0f}/s {1000 * loop[-1][1] / companies:.2f} ms"
                    f"  CPU ratio {gate[-1][1] / loop[-1][1]:.2f}",
                    flush=True,
                )
            memory = rss_mb(stack.workers[-1].pid)
            if share:
                await bench_share(stack, share, at_once, SHARE_REPLY_S)
                await stack.farm.set_reply_delay(reply_delay_s)
            if waiting:
                await bench_waiting(stack, companies, rounds, waiting)
            memory = max(memory, rss_mb(stack.workers[-1].pid))
            stack.end_worker(stack.workers[-1])
    ratios = [of_gate[1] / of_loop[1] for of_gate, of_loop in zip(gate, loop, strict=True)]
    print(f"\n{companies} companies a round, {at_once} at once, {reply_delay_s:g} s a reply, {rounds} rounds; medians:")
    for name, rows in (("gate", gate), ("bare loop", loop)):
        rate = statistics.median(companies / wall for wall, _ in rows)
        cost = statistics.median(1000 * cpu / companies for _, cpu in rows)
        print(f"  {name:<10} {rate:7.1f} companies/s   {cost:6.2f} ms CPU a company")
    spread = f"{min(ratios):.2f}-{max(ratios):.2f}"
    print(f"  ratio      {statistics.median(ratios):.2f} (CPU a company, gate : loop; {spread})")
    print(f"  the worker's resident memory at the end: {memory:.0f} MB")


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    parser.add_argument("--companies", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=500)
    parser.add_argument("--waiting", type=int, default=0, help="then measure with so many companies that wait")
    parser.add_argument("--reply-delay", type=float, default=0.0, help="seconds before each reply of the farm")
    parser.add_argument("--share", type=int, default=2000, help="companies to measure the gate's own share with")
    options = parser.parse_args()
    asyncio.run(
        bench(options.companies, options.rounds, options.at_once, options.reply_delay, options.waiting, options.share)
    )


if __name__ == "__main__":
    main()
