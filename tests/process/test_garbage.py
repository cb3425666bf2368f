"""The collector leaves alone what stays, and still finds the cycles that come."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest

from ct_stream.process.garbage import collect_seldom

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


class Node:
    """Something that holds itself."""

    def __init__(self) -> None:
        self.itself = self


def test_existing_objects_are_excluded_and_new_garbage_is_collected() -> None:
    frozen = gc.get_freeze_count()
    collect_seldom()
    assert gc.get_freeze_count() > frozen
    assert gc.get_threshold() == (2000, 10, 50)
    node = weakref.ref(Node())
    assert node() is not None
    kept = [[] for _ in range(20_000)]  # type: list[list[object]]
    assert node() is None, "a cycle stays for ever"
    assert len(kept) == 20_000
