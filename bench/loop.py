"""The bare loop: the same probes, by the same decision, with neither Kafka nor Postgres nor limits.

Run by `python -m bench`, in a process of its own: reads domains from standard input, prints one JSON object.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
import uuid
from collections import Counter
from typing import TYPE_CHECKING

import orjson
import uvloop

from ct_stream.gate.questions import ControlAnswer, ControlKind
from ct_stream.gate.verdicts import Held, Passed
from ct_stream.probes.answer import PassDriver, World
from ct_stream.probes.local_limits import NoMemory, NoSpine, Tier2Off
from ct_stream.probes.toolbox import load_toolbox
from ct_stream.settings import load_settings
from ct_stream.wiring.probing import make_probing

if TYPE_CHECKING:
    from ct_stream.gate.waits import Wait


class NoLimits:
    """Permits, lease, controls and refusals of a loop that stops at nothing."""

    async def mx_lookup(self) -> Wait | None:
        return None

    async def begin_probe(self, domain: str, provider: str) -> NoLimits | Wait:  # noqa: ARG002
        return self

    async def next_session(self) -> Wait | None:
        return None

    def session_ended(self) -> None:
        return None

    async def release(self, *, greeted: bool, refused: Held | None) -> None:  # noqa: ARG002
        return None

    async def confirm(self, kind: ControlKind) -> ControlAnswer | Wait:
        return ControlAnswer(detail=f"{kind} is taken for granted")

    async def judge(self, held: Held, domain: str, provider: str) -> Wait | None:  # noqa: ARG002
        raise AssertionError(held)


async def run(domains: list[str], at_once: int) -> dict[str, object]:
    """Probe every domain once; return counts and costs."""
    settings = load_settings({key: value for key, value in os.environ.items() if key.startswith("CT_")})
    probing = make_probing(settings)
    rules = load_toolbox(settings.toolbox).rules()
    free = NoLimits()
    room = asyncio.Semaphore(at_once)
    outcomes: Counter[str] = Counter()

    async def one(domain: str) -> None:
        async with room:
            world = World(
                spine=NoSpine(domain), memory=NoMemory(), resolver=probing.resolver, permits=free, controls=free,
                refusals=free, tier2=Tier2Off(), probers=lambda stopwatch: probing.prober(free, stopwatch),
            )  # fmt: skip
            verdict = await PassDriver(uuid.uuid4(), rules, world, deadline_s=settings.pass_deadline_s).run()
            outcomes[verdict.method_type if isinstance(verdict, Passed) else type(verdict).__name__] += 1

    begin, used = time.monotonic(), cpu_s()
    async with asyncio.TaskGroup() as group:
        for domain in domains:
            group.create_task(one(domain))
    return {"wall_s": time.monotonic() - begin, "cpu_s": cpu_s() - used, "outcomes": dict(outcomes)}


def cpu_s() -> float:
    """Return the CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Read domains, a line each; print what they cost."""
    at_once = int(sys.argv[1])
    domains = sys.stdin.read().split()
    sys.stdout.buffer.write(orjson.dumps(uvloop.run(run(domains, at_once))) + b"\n")


if __name__ == "__main__":
    main()
