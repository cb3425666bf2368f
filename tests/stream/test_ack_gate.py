"""Acks leave in the order of arrival, whatever the order in which events are done."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ct_stream.stream.ack_gate import AckGates


class Event:
    def __init__(self, offset: int, acked: list[int]) -> None:
        self.offset = offset
        self._acked = acked

    def ack(self) -> bool:
        self._acked.append(self.offset)
        return True


@given(st.permutations(range(8)))
def test_whatever_the_order_of_ends_an_ack_never_passes_an_unfinished_event(order: list[int]) -> None:
    acked: list[int] = []
    gates: AckGates[Event] = AckGates()
    cells = [gates.arrive("p0", Event(offset, acked)) for offset in range(8)]
    done: set[int] = set()
    for offset in order:
        gates.finish("p0", cells[offset])
        done.add(offset)
        assert acked == sorted(acked)
        assert all(earlier in done for earlier in range(len(acked)))
    assert acked == list(range(8))
    assert len(gates) == 0


def test_partitions_do_not_wait_for_each_other() -> None:
    acked: list[int] = []
    gates: AckGates[Event] = AckGates()
    gates.arrive("p0", Event(1, acked))
    other = gates.arrive("p1", Event(100, acked))
    assert gates.finish("p1", other) == 1
    assert acked == [100]


def test_an_event_of_a_revoked_assignment_is_not_acked() -> None:
    acked: list[int] = []
    gates: AckGates[Event] = AckGates()
    stale = gates.arrive("p0", Event(1, acked))
    gates.clear()
    fresh = gates.arrive("p0", Event(1, acked))
    assert gates.finish("p0", stale) == 0
    assert acked == []
    assert gates.finish("p0", fresh) == 1


def test_a_slow_head_bounds_what_is_pulled_behind_it() -> None:
    gates: AckGates[Event] = AckGates(most_unacked=3)
    for offset in range(3):
        assert gates.has_room("p0")
        gates.arrive("p0", Event(offset, []))
    assert not gates.has_room("p0")
    assert gates.has_room("p1")
    assert gates.oldest_age_s() >= 0
