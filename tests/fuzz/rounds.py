"""How long do the fuzzers run? Seconds in `make test`, as many as CT_TEST_FUZZ_S says in `make fuzz`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SECONDS = float(os.environ.get("CT_TEST_FUZZ_S", "0"))
EXAMPLES = 500 if SECONDS else 120


def rounds(one: Callable[[], None]) -> None:
    """Run `one`, some hundred new examples each time, until the time is up; at least once."""
    deadline, examples = time.monotonic() + SECONDS, 0
    while True:
        one()
        examples += EXAMPLES
        if time.monotonic() >= deadline:
            break
    print(f"{one.__name__}: {examples} examples", flush=True)
