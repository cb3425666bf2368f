"""Which answers still count when a company comes back from its wait, and how much of its time is spent?"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from ct_stream.gate.company import Known, Resumed
from ct_stream.gate.output_stage import Origin
from ct_stream.gate.questions import Answer, ControlKind, MxStatus, SpineAnswer, Trouble
from ct_stream.gate.transcript import Exchange
from ct_stream.store.controls import ControlState
from ct_stream.wiring.world import CompanyPass, WorkerGate
from tests.gate.world import RULES, mx, no_mx, trouble

ID = UUID("3f0c6f0e-6f5e-4f6e-9a53-1f3c2f0f9a10")
ASKED = datetime(2026, 1, 7, 9, 30, tzinfo=UTC)
FAILED = ASKED + timedelta(seconds=2)
LONG_AGO = ASKED - timedelta(days=1)
PATTERN = RULES.patterns[0].name


def proven(*, since_s: float, until_s: float, trouble_s: tuple[float, float] = (-9000, -8000)) -> ControlState:
    """Return a way that proofs show to work from `since_s` to `until_s`, in seconds after the question."""
    at = [ASKED + timedelta(seconds=s) for s in (until_s, *trouble_s, since_s)]
    return ControlState(
        ok_begun_at=at[0], ok_detail="", failed_at=LONG_AGO, failed_detail="", trouble_from=at[1], trouble_until=at[2],
        proven_since=at[3],
    )  # fmt: skip


GOOD = proven(since_s=-60, until_s=5)


async def resume(
    answers: dict[str, Answer],
    waits_on: str,
    *,
    reason: str = "control",
    looks: int = 1,
    dns: ControlState = GOOD,
    smtp: ControlState = GOOD,
) -> CompanyPass:
    async def state(kind: ControlKind) -> ControlState:
        return {ControlKind.DNS: dns, ControlKind.SMTP: smtp}[kind]

    parts: Any = SimpleNamespace(
        rules=RULES, controls=SimpleNamespace(state=state), probing=SimpleNamespace(resolver=None),
        paid_calls=SimpleNamespace(off_because=lambda: "off"), pass_deadline_s=90.0,
        stalled_since=lambda _moment: False,
    )  # fmt: skip
    origin = Origin(outreach_id=ID)
    kept = tuple(Exchange(key=key, answer=answer) for key, answer in answers.items())
    resumed = Resumed(
        origin=origin, event_at=None, domain="acme.example", reason=reason, exchanges=kept, pending=None,
        spent_s=80.0, asked_at=ASKED, failed_at=FAILED, since=ASKED, exceptions=0, looks=looks, waits_on=waits_on,
    )  # fmt: skip
    known = Known(outcome=None, is_settled=False, pass_state="waiting", in_spine=True, domain="acme.example")
    return await WorkerGate(parts).begin(origin, None, known, resumed)


ABSENT: dict[str, Answer] = {
    "spine": SpineAnswer(found=True, domain="acme.example"),
    "mx": no_mx(MxStatus.NXDOMAIN),
}
SILENT: dict[str, Answer] = {
    "spine": SpineAnswer(found=True, domain="acme.example"),
    "mx": mx(),
    f"rcpt:{PATTERN}": trouble(Trouble.TIMEOUT),
}


def keys(company: CompanyPass) -> list[str]:
    return [exchange.key for exchange in company.exchanges]


async def test_what_lies_in_an_unbroken_chain_of_proofs_is_kept_with_its_time() -> None:
    company = await resume(ABSENT, "control:dns")
    assert keys(company) == ["spine", "mx"]
    assert company.spent_s == 80.0


@pytest.mark.parametrize(
    ("answers", "waits_on", "ways", "left"),
    [
        pytest.param(ABSENT, "control:dns", {"dns": proven(since_s=1, until_s=5)}, ["spine"], id="no proof before it"),
        pytest.param(
            SILENT, "control:smtp", {"smtp": proven(since_s=1, until_s=5)}, ["spine", "mx"], id="of port 25 neither"
        ),
        pytest.param(
            ABSENT, "control:dns", {"dns": proven(since_s=-60, until_s=5, trouble_s=(-1, 3))}, ["spine"],
            id="in our own trouble",
        ),
        pytest.param(SILENT, "control:smtp", {"looks": 0}, ["spine", "mx"], id="the first look at silence"),
    ],
)  # fmt: skip
async def test_void_answers_give_their_time_back(
    answers: dict[str, Answer], waits_on: str, ways: dict[str, Any], left: list[str]
) -> None:
    company = await resume(answers, waits_on, **ways)
    assert keys(company) == left
    assert company.spent_s == 0.0, "else a company that met many of our troubles fails by its deadline"


@pytest.mark.parametrize("reason", ["drain", "our_machine"])
async def test_a_session_that_we_broke_off_costs_a_company_no_time(reason: str) -> None:
    """Its greeting and EHLO are waited for once more after each: some rebalances in a row, and time would be up."""
    company = await resume({"spine": ABSENT["spine"], "mx": mx()}, "", reason=reason)
    assert keys(company) == ["spine", "mx"]
    assert company.spent_s == 0.0


async def test_only_the_way_that_it_waits_for_needs_a_chain() -> None:
    """Nobody asks for proofs of the other way meanwhile."""
    company = await resume(ABSENT, "control:dns", smtp=proven(since_s=1, until_s=5))
    assert keys(company) == ["spine", "mx"]


async def test_without_a_proof_after_it_nothing_is_void_yet() -> None:
    company = await resume(ABSENT, "control:dns", dns=proven(since_s=1, until_s=1))
    assert keys(company) == ["spine", "mx"]
