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
from typing import TYPE_CHECKING, Any

import orjson
import uvloop

from ct_stream.gate.providers import provider_of
from ct_stream.gate.questions import ControlAnswer, ControlKind
from ct_stream.gate.verdicts import Held, Passed
from ct_stream.probes.answer import PassDriver, World
from ct_stream.probes.probing import make_probing
from ct_stream.probes.solo import NoMemory, NoSpine, Tier2Off
from ct_stream.probes.toolbox import load_toolbox
from ct_stream.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from ct_stream.gate.transcript import Exchange
    from ct_stream.gate.waits import Wait
    from ct_stream.probes.needs import Met


class NoLimits:
    """Permits, lease, controls and refusals of a loop that stops at nothing."""

    def lacks(self, kind: ControlKind) -> Wait | None:  # noqa: ARG002
        return None

    def cut_off(self, detail: str) -> Wait:
        raise AssertionError(detail)

    async def mx_lookup(self) -> Wait | None:
        return None

    def provider_at(self, host: str, ip: str, domain: str) -> str:  # noqa: ARG002
        return provider_of(host, domain)

    async def begin_probe(self, domain: str, provider: str) -> NoLimits | Wait:  # noqa: ARG002
        return self

    async def next_session(self) -> Wait | None:
        return None

    def session_ended(self) -> None:
        return None

    def greeted(self, begun_at: float, ip: str) -> None:  # noqa: ARG002
        return None

    async def enter(self, provider: str) -> Wait | None:  # noqa: ARG002
        return None

    async def release(
        self,
        *,
        met: Mapping[str, Met],  # noqa: ARG002
        greeted_at: Mapping[str, str],  # noqa: ARG002
        refused: Sequence[Held],  # noqa: ARG002
    ) -> None:
        return None

    async def astray(self, exchanges: Sequence[Exchange]) -> Wait | None:  # noqa: ARG002
        return None

    async def confirm(self, kind: ControlKind, exchanges: Sequence[Exchange]) -> ControlAnswer | Wait:  # noqa: ARG002
        return ControlAnswer(detail=f"{kind} is taken for granted")

    async def judge(self, held: Held, domain: str, provider: str) -> Wait | None:  # noqa: ARG002
        raise AssertionError(held)

    async def note(self, held: Held, domain: str, provider: str) -> None:  # noqa: ARG002
        raise AssertionError(held)


async def run(domains: list[str], at_once: int, per_s: float) -> dict[str, object]:
    """Probe every domain once, all at once or so many a second; return counts, costs and how long each pass took."""
    settings = load_settings({key: value for key, value in os.environ.items() if key.startswith("CT_")})
    probing = make_probing(settings)
    rules = load_toolbox(settings.toolbox).rules()
    free = NoLimits()
    room = asyncio.Semaphore(at_once)
    outcomes: Counter[str] = Counter()

    took_s: dict[str, float] = {}

    async def one(number: int, domain: str) -> None:
        if per_s:
            await asyncio.sleep(begin + number / per_s - time.monotonic())
        async with room:
            started = time.monotonic()
            world = World(
                spine=NoSpine(domain), memory=NoMemory(), resolver=probing.resolver, permits=free, controls=free,
                refusals=free, tier2=Tier2Off(), probers=lambda stopwatch: probing.prober(free, stopwatch),
            )  # fmt: skip
            farewells: list[Coroutine[Any, Any, None]] = []
            driver = PassDriver(
                uuid.uuid4(), rules, world, deadline_s=settings.pass_deadline_s, see_off=farewells.append
            )
            verdict = await driver.run()
            took_s[domain] = time.monotonic() - started
            for farewell in farewells:
                await farewell
            outcomes[verdict.method_type if isinstance(verdict, Passed) else type(verdict).__name__] += 1

    begin, used = time.monotonic(), cpu_s()
    async with asyncio.TaskGroup() as group:
        for number, domain in enumerate(domains):
            group.create_task(one(number, domain))
    return {
        "wall_s": time.monotonic() - begin, "cpu_s": cpu_s() - used, "outcomes": dict(outcomes), "took_s": took_s,
    }  # fmt: skip


def cpu_s() -> float:
    """Return the CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Read domains, a line each; print what they cost."""
    at_once, per_s = int(sys.argv[1]), float(sys.argv[2])
    domains = sys.stdin.read().split()
    sys.stdout.buffer.write(orjson.dumps(uvloop.run(run(domains, at_once, per_s))) + b"\n")


if __name__ == "__main__":
    main()
