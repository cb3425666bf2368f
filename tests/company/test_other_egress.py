"""A company whose server refuses one of our addresses is asked from another one, once, before anybody settles it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ct_stream.gate.questions import ControlKind
from ct_stream.gate.verdicts import Failed, Passed
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn, control_wait
from tests.company import test_coming_back as coming_back
from tests.company.test_coming_back import OWN, Company, refuses
from tests.company.ways import proven_way
from tests.gate.world import NO, YES

if TYPE_CHECKING:
    from typing import Any


def of_egress(name: str, *others: str) -> Any:
    """Return the way of a worker at this egress, beside workers of others."""
    way = proven_way()
    way.egress, way.others = name, list(others)

    def elsewhere(wait: Wait) -> Wait | None:
        if not way.others:
            return None
        return Wait(reason=WaitReason.REFUSED, detail=wait.detail, after_s=60.0, waits_on=WaitsOn.other_than(name))

    way.elsewhere = elsewhere
    return way


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the next worker be of this egress."""

    def be(name: str, *others: str) -> None:
        monkeypatch.setattr(coming_back, "proven_way", lambda: of_egress(name, *others))

    return be


async def test_a_refusal_is_passed_on_to_another_address_and_its_word_counts_there(at: Any) -> None:
    company = Company(OWN, refuses(OWN[0]), failed_at=None, waits_on=WaitsOn(""), reason="rate_limit")
    at("default", "dc2")
    wait = await company.come_back()
    assert isinstance(wait, Wait)
    assert (wait.waits_on, company.row["failed_at"]) == ("egress:default", None)
    assert company.row["refused_at"] == "default"
    at("dc2", "default")
    company.says = YES
    assert isinstance(await company.come_back(), Passed), "the first one's refusal says nothing of the second"
    assert company.judged == ["acme.example"]


async def test_a_company_that_two_addresses_are_refused_by_is_settled_as_ever(at: Any) -> None:
    company = Company(OWN, refuses(OWN[0]), failed_at=None, waits_on=WaitsOn(""), reason="rate_limit")
    at("default", "dc2")
    await company.come_back()
    at("dc2", "default")
    wait = await company.come_back()
    assert isinstance(wait, Wait)
    assert wait == control_wait(ControlKind.SMTP, f"{OWN[0]} refuses us"), (
        "not passed on again, or nobody would decide it"
    )
    assert isinstance(await company.until_decided(), Failed)


async def test_an_address_that_is_refused_twice_passes_nobody_on_twice(at: Any) -> None:
    """The others had their time, and what is in their way may last: it would be asked from here for ever."""
    company = Company(OWN, refuses(OWN[0]), failed_at=None, waits_on=WaitsOn(""), reason="rate_limit")
    at("default", "dc2")
    await company.come_back()
    wait = await company.come_back()
    assert isinstance(wait, Wait)
    assert wait.waits_on == "control:smtp"


async def test_where_no_other_address_is_at_work_nothing_is_passed_on(at: Any) -> None:
    company = Company(OWN, refuses(OWN[0]), failed_at=None, waits_on=WaitsOn(""), reason="rate_limit")
    at("default")
    wait = await company.come_back()
    assert isinstance(wait, Wait)
    assert wait.waits_on.is_control


async def test_what_was_answered_is_not_passed_on(at: Any) -> None:
    company = Company(OWN, NO, failed_at=None, waits_on=WaitsOn(""), reason="rate_limit")
    at("default", "dc2")
    assert isinstance(await company.come_back(), Failed)
