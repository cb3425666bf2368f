"""A company whose server refuses one of our addresses is asked from another one, once, before anybody settles it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from ct_stream.company.proofs import Proofs
from ct_stream.gate.evidence import Moments
from ct_stream.gate.output_stage import rfc3339
from ct_stream.gate.questions import ControlKind, MailboxAnswer, SpineAnswer
from ct_stream.gate.records import FailedAt
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.verdicts import Failed, Passed
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn, control_wait
from ct_stream.store.control_ledger import ControlLedger
from tests.company import test_coming_back as coming_back
from tests.company.test_coming_back import OWN, SHARED, Company, refuses
from tests.company.ways import proven_way
from tests.gate.world import NO, TOO_FAST, YES, mx
from tests.store.parts import parked
from tests.store.test_egress import fleet

if TYPE_CHECKING:
    from typing import Any

    from tests.conftest import DatabaseDsns


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
    assert wait.waits_on == "egress:default"
    assert company.row["failed_at"] is not None, "so it can be settled if nobody else may ask there"
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
    assert isinstance(await company.come_back(), Failed)
    assert company.asked == 1, "it is proven and settled meanwhile"


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


async def test_who_was_refused_while_no_other_address_was_at_work_is_passed_on_before_it_is_settled(at: Any) -> None:
    """ADR-CT-IMO-034, 5: if a worker of another egress can ask now, the company is passed on to it, once."""
    company = Company(OWN, refuses(OWN[0]), failed_at=None, waits_on=WaitsOn(""), reason="rate_limit")
    at("default")
    wait = await company.come_back()
    assert isinstance(wait, Wait)
    assert wait.waits_on.is_control
    at("default", "dc2")  # it has come back meanwhile
    wait = await company.come_back()
    assert isinstance(wait, Wait), f"failed by one address's refusal, though another one can ask: {wait}"
    assert wait.waits_on == "egress:default"


async def test_a_refusal_of_a_halted_address_is_no_policy_for_another_one_either(database: DatabaseDsns) -> None:
    """`default` was refused first, then dc2, which is halted since: what it heard may be about its address."""
    async with fleet(database) as f:
        ways = ControlLedger(f.two.db, 30.0, f.two.name)
        kinds = (ControlKind.DNS, ControlKind.SMTP)
        for kind in kinds:
            await ways.succeeded(kind, f.two.db.now(), "works")
        said = Exchange(key="rcpt:info", answer=refuses(OWN[0]), at=rfc3339(f.two.db.now()), by=f.two.name)
        heard = parked(
            after_s=0.0, reason=WaitReason.REFUSED, pending=said, asked_at=f.two.db.now(), failed=FailedAt.NOW,
            refused_at="default",
        )  # fmt: skip
        await f.two.parked.park(heard)
        await asyncio.sleep(0.05)  # our view of the database's clock is a little behind
        for kind in kinds:
            await ways.succeeded(kind, f.two.db.now(), "works")
        await f.two.rails.set_state(f.two.rails.smtp_rail, "halted", "five networks refuse us", None)
        await f.one.rails.refresh(now=True)
        [resumed] = await f.one.parked.claim_due(9)
        own_way: Any = SimpleNamespace(egress="default", others=[])
        proofs = Proofs(ControlLedger(f.one.db, 30.0, f.one.name), f.one.rails, lambda _: 1000.0, own_way)
        kept = await proofs.weigh(resumed)
        answers = [e.answer for e in kept.exchanges if isinstance(e.answer, MailboxAnswer)]
        assert not any(answer.is_private_policy for answer in answers), (
            "settled as the company's own policy by the guardrails of an address that did not hear it"
        )


async def test_silence_at_a_provider_that_is_closed_to_one_address_fails_nobody_at_another_one(
    database: DatabaseDsns,
) -> None:
    """`default` looked twice, and so did two other companies: the provider drops its packets. dc2 only weighs that."""
    async with fleet(database) as f:
        ways = ControlLedger(f.one.db, 30.0, f.one.name)
        kinds = (ControlKind.DNS, ControlKind.SMTP)
        for kind in kinds:
            await ways.succeeded(kind, f.one.db.now(), "works")
        asked_at = f.one.db.now()
        for domain in ("acme.example", "b.example", "c.example"):
            await f.one.rails.silent("bigmail.example", domain)
        company = replace(
            parked(
                after_s=None, waits_on="control:smtp", reason=WaitReason.CONTROL, asked_at=asked_at,
                failed=FailedAt.NOW, looks=1,
            ),
            exchanges=(
                Exchange(key="spine", answer=SpineAnswer(found=True, domain="acme.example")),
                Exchange(key="mx", answer=mx(*SHARED), at=rfc3339(asked_at), by=f.one.name),
                Exchange(
                    key="rcpt:info", answer=MailboxAnswer(attempts=(coming_back.attempt(SHARED[0]),)),
                    at=rfc3339(f.one.db.now()), by=f.one.name,
                ),
            ),
        )  # fmt: skip
        await f.one.parked.park(company)
        await asyncio.sleep(0.05)  # our view of the database's clock is a little behind
        for kind in kinds:
            await ways.succeeded(kind, f.one.db.now(), "works")
        at_home = await f.one.rails.unreached("bigmail.example", 1000.0)
        assert at_home is not None
        assert at_home.reason is WaitReason.PROVIDER_CLOSED, "this is what `default` would say of it"
        [resumed] = await f.two.parked.claim_due(9)
        own_way: Any = SimpleNamespace(egress="dc2", others=[])
        proofs = Proofs(ControlLedger(f.two.db, 30.0, f.two.name), f.two.rails, lambda _: 1000.0, own_way)
        kept = await proofs.weigh(resumed)
        assert (kept.refused_at, [e.key for e in kept.exchanges]) == ("default", ["spine", "mx"]), "asked from here"
        # Once for each company. Then it is settled by what `default` knows of that provider.
        again = replace(resumed, refused_at="dc3")
        kept = await proofs.weigh(again)
        proofs.moments = Moments.of(again, kept, taken=len(kept.exchanges))
        answer = await proofs.confirm(ControlKind.SMTP, kept.exchanges)
        assert isinstance(answer, Wait), "it counts against the company, which fails"
        assert (answer.reason, answer.waits_on) == (WaitReason.PROVIDER_CLOSED, "provider:bigmail.example")


async def test_who_says_that_we_ask_too_fast_is_heard_by_one_address(at: Any) -> None:
    company = Company(OWN, TOO_FAST, failed_at=None, waits_on=WaitsOn(""), reason="rate_limit")
    at("default", "dc2")
    wait = await company.come_back()
    assert isinstance(wait, Wait)
    assert (wait.reason, wait.waits_on) == (WaitReason.OUR_RATE, "provider:acme.example")
    assert company.row["refused_at"] == ""
