"""Run what takes too long for each change: soak, outages, broken ways, kills, garbage, hostility, a million companies.

    make nightly                                         # all of it, one part after the other
    make nightly ONLY='soak fuzz' MINUTES='soak=60 fuzz=2'

Says first what each part takes and what this machine lacks for it. A part that fails, or cannot run, does not keep the
others from running; a table at the end says what held, and the exit code is 1 unless everything did.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tools.needs import lacks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROOT = Path(__file__).parents[1]
#: What belongs to `make nightly`, and would reach the targets that it makes.
_NOT_THEIRS = {"MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "ONLY", "MINUTES", "SEED", "BROKER"}
_PYTHON = (sys.executable, "tools/no_orphans.py", sys.executable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing to run."""

    shows: str
    minutes: float | None  #: what it is given, unless a person says otherwise; None where it takes what it takes
    command: Callable[[float], tuple[str, ...]]
    takes: Callable[[float], float]  #: minutes from begin to end, for what it is given; measured on two cores
    lacks: Callable[[], str | None] = lambda: None
    env: Mapping[str, str] | None = None


PARTS = {
    "soak": Part(
        shows="three brokers of Apache Kafka, three workers: kills, freezes, broken ways and lies at random",
        minutes=60,
        command=lambda minutes: ("make", "soak", f"MINUTES={minutes:g}"),
        takes=lambda minutes: minutes + 4,
        lacks=lambda: lacks("java", "mvn", "unshare", "ip", "mount", root=True),
    ),
    "outages": Part(
        shows="port 25, resolvers and Postgres broken in turn under a stream, so many minutes each",
        minutes=5,
        command=lambda minutes: ("make", "outages", f"MINUTES={minutes:g}"),
        takes=lambda minutes: 5 * (minutes + 3),
        lacks=lambda: lacks("unshare", "ip", "nft", root=True),
    ),
    "ways": Part(
        shows="one worker's way out broken beside three whole ones, in eleven ways, so many minutes each",
        minutes=5,
        command=lambda minutes: ("make", "ways", f"MINUTES={minutes:g}"),
        takes=lambda minutes: 12 * (minutes + 2),
        lacks=lambda: lacks("unshare", "ip", "mount", root=True),
    ),
    "ways-kafka": Part(
        shows="the same on three brokers of Apache Kafka",
        minutes=2,
        command=lambda minutes: ("make", "ways", "BROKER=kafka", f"MINUTES={minutes:g}"),
        takes=lambda minutes: 12 * (minutes + 2),
        lacks=lambda: lacks("java", "mvn", "unshare", "ip", "mount", root=True),
    ),
    "kills": Part(
        shows="twenty times a worker killed with hundreds of companies in flight",
        minutes=None,
        command=lambda _: (*_PYTHON, "-m", "pytest", "tests/faults/test_kill.py"),
        takes=lambda _: 15,
        env={"CT_TEST_KILLS": "20"},
    ),
    "fuzz": Part(
        shows="garbage from mail servers and from resolvers, so many minutes each",
        minutes=5,
        command=lambda minutes: ("make", "fuzz", f"FUZZ_S={minutes * 60:.0f}"),
        takes=lambda minutes: 2 * minutes + 1,
    ),
    "hostile": Part(
        shows="a tenth of all mail servers hostile, for so many minutes: nobody else is worse off",
        minutes=10,
        command=lambda minutes: (
            *("env", f"CT_TEST_HOSTILE_S={minutes * 60:.0f}"),
            *(*_PYTHON, "-m", "pytest", "--capture=no", "tests/trouble/test_hostile.py"),
        ),
        takes=lambda minutes: minutes + 1,
    ),
    "verify": Part(
        shows="`ct-stream verify` finds what is planted among a million outcomes, and nothing else",
        minutes=None,
        command=lambda _: (*_PYTHON, "-m", "bench.verify"),
        takes=lambda _: 5,
        lacks=lambda: lacks(memory_gb=4),
    ),
    "growth": Part(
        shows="no statement reads all of a million outcomes or of a million waiting companies",
        minutes=None,
        command=lambda _: (*_PYTHON, "-m", "pytest", "tests/trouble/test_growth.py"),
        takes=lambda _: 2,
        lacks=lambda: lacks(memory_gb=6),
        env={"CT_TEST_GROWTH": "1000000"},
    ),
}


def plan(only: list[str], minutes: dict[str, float]) -> dict[str, tuple[Part, float]]:
    """Return the chosen parts, and the minutes that each is given. Raises ValueError."""
    for name in (*only, *minutes):
        if name not in PARTS:
            raise ValueError(f"there is no part {name!r}; the parts are {', '.join(PARTS)}")
    for name in minutes:
        if PARTS[name].minutes is None:
            raise ValueError(f"{name} takes what it takes; only {', '.join(_SETTABLE)} can be given minutes")
    return {
        name: (part, minutes.get(name, part.minutes or 0.0)) for name, part in PARTS.items() if not only or name in only
    }


_SETTABLE = [name for name, part in PARTS.items() if part.minutes is not None]


def run(part: Part, minutes: float) -> str:
    """Run one part; return what is to be said of it."""
    if missing := part.lacks():
        return f"NOT RUN: {missing}"
    env = {name: value for name, value in os.environ.items() if name not in _NOT_THEIRS} | dict(part.env or {})
    code = subprocess.run(part.command(minutes), cwd=ROOT, env=env, check=False).returncode
    return "holds" if code == 0 else f"BROKEN (exit code {code})"


def announce(chosen: dict[str, tuple[Part, float]]) -> None:
    """Say what each part takes and lacks."""
    for name, (part, minutes) in chosen.items():
        print(f"{name:10} {part.takes(minutes):4.0f} min  {part.shows}")
    print(f"{'in all':10} {sum(part.takes(minutes) for part, minutes in chosen.values()):4.0f} min", flush=True)
    for name, (part, _) in chosen.items():
        if missing := part.lacks():
            print(f"{name} cannot run here: it {missing}", flush=True)


def main() -> int:
    """Run the chosen parts, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tools.nightly", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="PARTS", help=f"some of: {' '.join(PARTS)}")
    parser.add_argument("--minutes", default="", metavar="PART=N...", help=f"for {', '.join(_SETTABLE)}")
    options = parser.parse_args()
    try:
        given = dict(word.split("=", 1) for word in options.minutes.split())
        chosen = plan(options.only.split(), {name: float(number) for name, number in given.items()})
    except ValueError as error:
        parser.error(str(error))
    announce(chosen)
    said: dict[str, tuple[float, str]] = {}
    try:
        for name, (part, minutes) in chosen.items():
            print(f"\n=== {name}", flush=True)
            begin = time.monotonic()
            said[name] = 0.0, "interrupted"
            result = run(part, minutes)
            said[name] = time.monotonic() - begin, result
    except KeyboardInterrupt:
        pass
    print()
    for name in chosen:
        seconds, result = said.get(name, (0.0, "not run"))
        print(f"{name:10} {seconds // 60:4.0f}:{seconds % 60:02.0f}  {result}")
    return 0 if all(result == "holds" for _, result in said.values()) and len(said) == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
