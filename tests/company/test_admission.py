"""May another event be taken in hand? Each obstacle by itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ct_stream.company.admission import Admission
from ct_stream.gate.questions import ControlKind
from ct_stream.gate.waits import control_wait

BROKEN = control_wait(ControlKind.SMTP, "our way out to port 25: refused; companies wait")


def admission(**changed: Any) -> Admission:
    """Return one with nothing in the way, of ten in flight; three resumed companies are running."""
    parts = {"is_up": True, "is_halted": False, "trouble": None, "parked_for_it": 0, "running": 3} | changed
    world: Any = SimpleNamespace(**parts)
    return Admission(database=world, input_check=world, own_way=world, scheduler=world, in_flight=10)


def test_resumed_companies_take_places_too() -> None:
    assert admission().may_pull(6)
    assert not admission().may_pull(7)


@pytest.mark.parametrize("changed", [{"is_up": False}, {"is_halted": True}], ids=["no database", "a person must look"])
def test_nothing_is_pulled_while_something_is_in_the_way(changed: dict[str, bool]) -> None:
    assert not admission(**changed).may_pull(0)


def test_a_worker_puts_away_as_many_as_may_be_in_flight_for_its_own_way_and_pulls_no_more() -> None:
    assert admission(trouble=BROKEN, parked_for_it=9).may_pull(0), "what needs no network goes through"
    assert not admission(trouble=BROKEN, parked_for_it=10).may_pull(0)
    assert admission(parked_for_it=100).may_pull(0), "what it parked before holds up nobody once its way is proven"
