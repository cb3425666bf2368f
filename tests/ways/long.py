"""Each way broken for minutes under 400 companies: who is harmed, and what do the whole workers' companies notice?

    make ways MINUTES=5 ONLY='proxy resolver'     # the ways whose names begin so

First three workers run alone, with the same companies at the same rate. Prints what it measured, and exits with 1 where
something does not hold.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tests.ways.breaking import WAYS
from tests.ways.namespaces import missing
from tests.ways.play import options_of, run

if TYPE_CHECKING:
    from collections.abc import Mapping

_SLOWER, _SLACK_S = 1.5, 0.5  #: what a busy machine may add to a latency


def slower(alone: Mapping[str, float], beside: Mapping[str, float]) -> list[str]:
    """Return what does not hold of the whole workers' companies, which are the faster 70 % of all."""
    pairs = {"median": ("median_s", "median_s"), "70 % within": ("p70_s", "p95_s")}
    return [
        f"{words} {beside[theirs]:.2f} s, and {alone[own]:.2f} s where the whole workers are alone"
        for words, (theirs, own) in pairs.items()
        if beside.get(theirs, 0.0) > _SLOWER * alone[own] + _SLACK_S
    ]


def main() -> int:
    """Read the options; play the ways, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.ways.long", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="of each way")
    parser.add_argument("--companies", type=int, default=400, help="of each way")
    parser.add_argument("--only", default="", metavar="NAMES", help="the ways whose names begin with one of these")
    options_of(parser)
    options = parser.parse_args()
    if sentence := missing():
        sys.exit(f"make ways {sentence}")
    begins = tuple(options.only.split()) or ("",)
    chosen = [name for name in WAYS if name.startswith(begins)]
    if not chosen:
        parser.error(f"no way has a name that begins with {options.only!r}; the ways are {', '.join(WAYS)}")
    given = ["--companies", str(options.companies), "--per-s", str(options.companies / (options.minutes * 60))]
    given += ["--whole", str(options.whole), "--broker", options.broker]
    given += ["--one-egress"] if options.one_egress else []
    alone = run("", *given)
    print(f"{options.whole} workers alone: {_told(alone)}", flush=True)
    broken = [f"whole workers alone: {line}" for line in alone["broken"]]
    for name in chosen:
        figures = run(name, *given)
        found = list(figures["broken"])
        if "while_broken" in figures and "while_broken" in alone:
            found += slower(alone["while_broken"], figures["while_broken"])
        print(f"{name}: {WAYS[name].shows}: {_told(figures)}", flush=True)
        for line in found:
            print(f"    does not hold: {line}", flush=True)
        broken += [f"{name}: {line}" for line in found]
    print("all of it holds" if not broken else f"{len(broken)} things do not hold")
    return 1 if broken else 0


def _told(figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures.items() if name != "broken")


if __name__ == "__main__":
    sys.exit(main())
