"""What one address met is settled by its guardrails, and dropped only by who may ask in its place."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from ct_stream.company.proofs import Proofs
from ct_stream.gate.evidence import Moments, Witness, is_about_address, open_needs, weigh
from ct_stream.gate.output_stage import rfc3339
from ct_stream.gate.questions import Attempt, ControlKind, MailboxAnswer, SpineAnswer
from ct_stream.gate.records import FailedAt, Parked, Resumed
from ct_stream.gate.replies import Reply, Stage
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.store.control_ledger import ControlLedger
from ct_stream.store.worker_record import Beat
from tests.company import test_coming_back as coming_back
from tests.company.test_coming_back import OWN, SHARED, refuses
from tests.gate.test_evidence import TABLE
from tests.gate.world import NO, mx
from tests.store.parts import parked
from tests.store.test_egress import Fleet, Worker, fleet, taken

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from tests.conftest import DatabaseDsns

KINDS = (ControlKind.DNS, ControlKind.SMTP)


async def proves(worker: Worker) -> None:
    ways = ControlLedger(worker.db, 30.0, worker.name)
    for kind in KINDS:
        await ways.succeeded(kind, worker.db.now(), "works")


def proofs_of(worker: Worker, *others: str, age_s: float = 1000.0) -> Proofs:
    own_way: Any = SimpleNamespace(egress=worker.egress, others=list(others), astray=lambda _: None)
    return Proofs(ControlLedger(worker.db, 30.0, worker.name), worker.rails, lambda _: age_s, own_way)


async def refused(worker: Worker) -> None:
    """Park a company whose own server refused this worker, and which is due, its way proven since."""
    await proves(worker)
    said = Exchange(key="rcpt:info", answer=refuses(OWN[0]), at=rfc3339(worker.db.now()), by=worker.name)
    company = parked(
        after_s=0.0, waits_on="control:smtp", reason=WaitReason.CONTROL, pending=said, asked_at=worker.db.now(),
        failed=FailedAt.NOW,
    )  # fmt: skip
    await worker.parked.park(company)
    await asyncio.sleep(0.05)
    await proves(worker)


def silent(
    worker: Worker,
    asked_at: datetime,
    hosts: Sequence[str],
    *answers: Exchange,
    waits_on: str = "control:smtp",
    **fields: Any,
) -> Parked:
    """Return a company that was looked at twice and is due, as this worker parks it."""
    spine = Exchange(key="spine", answer=SpineAnswer(found=True, domain="acme.example"))
    its_mx = Exchange(key="mx", answer=mx(*hosts), at=rfc3339(asked_at), by=worker.name)
    company = parked(
        after_s=0.0, waits_on=waits_on, reason=WaitReason.CONTROL, asked_at=asked_at, failed=FailedAt.NOW,
        looks=1, **fields,
    )  # fmt: skip
    return replace(company, exchanges=(spine, its_mx, *answers))


async def goes_on(worker: Worker, resumed: Resumed, *others: str, provider: str = "acme.example") -> Wait:
    """Weigh what a company brings, ask, and park it for what is in the way."""
    await worker.rails.refresh(now=True)
    kept = await proofs_of(worker, *others).weigh(resumed)
    assert kept.wait is None
    wait = await worker.limits.begin_probe("acme.example", provider)
    assert isinstance(wait, Wait)
    again = parked(
        resumed.origin.outreach_id, after_s=wait.after_s, waits_on=wait.waits_on, reason=wait.reason, looks=kept.looks,
        refused_at=kept.refused_at or resumed.refused_at,
    )  # fmt: skip
    await worker.parked.park(again)
    return wait


async def later(f: Fleet, worker: Worker) -> None:
    """Let an hour pass, and wake who sleeps."""
    await f.admin.execute(
        "UPDATE outreach.ct_passes SET since = since - interval '1 h', parked_at = parked_at - interval '1 h',"
        " not_before = not_before - interval '1 h'"
    )
    await worker.parked.wake_sleepers(10)


async def test_a_halted_address_takes_no_due_company_away_from_the_one_that_may_ask(database: DatabaseDsns) -> None:
    """dc2 is listed and halted, and still resumes whoever is due: it drops what `default` met, and cannot ask."""
    async with fleet(database) as f:
        await f.three.record.end()
        await f.two.rails.set_state(f.two.rails.smtp_rail, "halted", "listed", None)
        assert set((await f.one.parked.at_work()).values()) == set(), "nobody can ask in the place of `default`"
        await refused(f.one)
        await asyncio.sleep(0.2)
        due = await f.two.parked.claim_due(9, take_over=await f.two.parked.to_take_over(), others_ask=True)
        for resumed in due:
            assert (await goes_on(f.two, resumed, "default")).waits_on == "tool:TOOL-005@dc2"
        await f.two.record.end()  # it is given up: a listed address
        await later(f, f.one)
        assert len(await taken(f.one)) == 1, "`default` works, and may never take it back"


async def test_a_provider_closed_at_another_address_keeps_nobody_from_the_one_where_it_is_open(
    database: DatabaseDsns,
) -> None:
    """The company's network refused dc2 often, and `default` once. `default` alone would decide it in ten minutes."""
    async with fleet(database) as f:
        await f.three.record.end()
        await f.two.rails.set_state("provider:192.0.2.0/24@dc2", "closed", "three refused", 600.0)
        await refused(f.one)
        [resumed] = await f.one.parked.claim_due(9)
        kept = await proofs_of(f.one, *sorted({e for e in (await f.one.parked.at_work()).values() if e})).weigh(resumed)
        assert kept.wait is not None
        assert kept.wait.waits_on == "egress:default"
        await f.one.parked.park(
            parked(
                resumed.origin.outreach_id,
                after_s=kept.wait.after_s,
                waits_on=kept.wait.waits_on,
                reason=kept.wait.reason,
                pending=resumed.pending,
                failed=FailedAt.ON_RECORD,
                met_by=resumed.met_by,
                met_at=resumed.met_at,
                refused_at=kept.refused_at,
            )
        )
        await asyncio.sleep(0.2)
        [resumed] = await f.two.parked.claim_due(9, take_over=await f.two.parked.to_take_over(), others_ask=True)
        await f.two.rails.refresh(now=True)
        # Its try comes once in ten minutes to six hours, for one company of all that wait there.
        waits = await proofs_of(f.two, "default", age_s=1.0).weigh(resumed)
        assert waits.wait is not None, "what `default` heard is kept"
        assert (waits.wait.reason, waits.wait.waits_on) == (WaitReason.REFUSED, "")
        settled = await proofs_of(f.two, "default").weigh(resumed)
        assert isinstance(settled.exchanges[-1].answer, MailboxAnswer)
        assert settled.exchanges[-1].answer.is_private_policy


async def test_a_halted_tool_is_taken_over_however_many_providers_are_closed_there(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        for n in range(250):
            await f.one.rails.set_state(f"provider:p{n}.example", "closed", "refuses us", 600.0)
        await f.one.rails.set_state("tool:TOOL-005", "halted", "listed", None)
        names = await f.two.parked.to_take_over()
        assert "tool:TOOL-005" in names, "whoever waits for that halt waits for a person, though dc2 may ask"


async def test_a_provider_that_shuns_two_addresses_fails_nobody_whose_silence_the_second_one_met(
    database: DatabaseDsns,
) -> None:
    """`default` closed it after three companies. This one was silent there twice, and once to dc2, which asked last."""
    async with fleet(database) as f:
        await f.three.record.end()
        for domain in ("acme.example", "b.example", "c.example"):
            await f.one.rails.silent("bigmail.example", domain)
        closed = await f.one.rails.unreached("bigmail.example", 1000.0)
        assert closed is not None
        assert closed.reason is WaitReason.PROVIDER_CLOSED
        await proves(f.two)
        asked_at = f.two.db.now()
        await f.two.rails.silent("bigmail.example", "acme.example")
        silence = Exchange(
            key="rcpt:info", asked="info@acme.example",
            answer=MailboxAnswer(attempts=(coming_back.attempt(SHARED[0]),)), at=rfc3339(f.two.db.now()), by=f.two.name,
        )  # fmt: skip
        await f.two.parked.park(silent(f.two, asked_at, SHARED, silence, refused_at="default"))
        await asyncio.sleep(0.05)
        await proves(f.two)
        said: dict[str, Any] = {}
        for worker in (f.one, f.two):
            await f.admin.execute("UPDATE outreach.ct_passes SET lease_owner = NULL, lease_until = NULL")
            await worker.rails.refresh(now=True)
            [resumed] = await worker.parked.claim_due(9)
            proofs = proofs_of(worker)
            kept = await proofs.weigh(resumed)
            assert kept.wait is None
            proofs.moments = Moments.of(resumed, kept, taken=len(kept.exchanges))
            said[worker.egress] = await proofs.confirm(ControlKind.SMTP, kept.exchanges)
        assert isinstance(said["default"], Wait), "by who weighs it"
        assert isinstance(said["dc2"], Wait), f"the company fails for ever, by one look from dc2: {said['dc2']}"


@pytest.mark.parametrize("kind", [ControlKind.SMTP, ControlKind.SMTP6])
async def test_a_shared_providers_silence_over_ipv6_is_settled_as_over_ipv4(
    database: DatabaseDsns, kind: ControlKind
) -> None:
    """A machine with IPv6 alone is shunned there by a whole provider: three companies met that, so it is closed."""
    ip = "192.0.2.1" if kind is ControlKind.SMTP else "2001:db8::1"
    async with fleet(database) as f:
        for domain in ("acme.example", "b.example", "c.example"):
            await f.one.rails.silent("bigmail.example", domain)
        ways = ControlLedger(f.one.db, 30.0, f.one.name)
        for each in (*KINDS, ControlKind.SMTP6):
            await ways.succeeded(each, f.one.db.now(), "works")
        asked_at = f.one.db.now()
        attempt = replace(coming_back.attempt(SHARED[0]), ip=ip)
        silence = Exchange(
            key="rcpt:info", asked="info@acme.example", answer=MailboxAnswer(attempts=(attempt,)),
            at=rfc3339(asked_at), by=f.one.name,
        )  # fmt: skip
        await f.one.parked.park(silent(f.one, asked_at, SHARED, silence, waits_on=f"control:{kind}"))
        await asyncio.sleep(0.05)
        for each in (*KINDS, ControlKind.SMTP6):
            await ways.succeeded(each, f.one.db.now(), "works")
        [resumed] = await f.one.parked.claim_due(9)
        proofs = proofs_of(f.one, age_s=1.0)
        kept = await proofs.weigh(resumed)
        assert kept.wait is None
        assert open_needs(kept.exchanges) == [kind], "what the pass confirms"
        proofs.moments = Moments.of(resumed, kept, taken=len(kept.exchanges))
        assert isinstance(await proofs.confirm(kind, kept.exchanges), Wait), "it fails at once, and for ever"


async def test_silence_that_one_address_met_is_weighed_by_its_guardrails_after_another_met_some_too(
    database: DatabaseDsns,
) -> None:
    """`default` met the first provider's silence, which is proven; then dc2 met that of the second MX's provider.

    `default` has the first one closed. Of the company only one address is kept (met_at): that of the last one.
    """
    async with fleet(database) as f:
        await f.three.record.end()
        for domain in ("acme.example", "b.example", "c.example"):
            await f.one.rails.silent("bigmail.example", domain)
        assert await f.one.rails.unreached("bigmail.example", 1000.0) is not None
        await proves(f.one)
        await proves(f.two)
        asked_at = f.two.db.now()
        first, second = SHARED[0], "mx1.othermail.example"
        proven = Exchange(
            key="rcpt:info", asked="info@acme.example", at=rfc3339(asked_at), by=f.one.name, proven=True,
            answer=MailboxAnswer(attempts=(coming_back.attempt(first),)),
        )  # fmt: skip
        its_own = Exchange(
            key="rcpt:contact", asked="contact@acme.example", at=rfc3339(asked_at), by=f.two.name,
            answer=MailboxAnswer(attempts=(coming_back.attempt(second),)),
        )  # fmt: skip
        await f.two.parked.park(silent(f.two, asked_at, (first, second), proven, its_own, refused_at="dc3"))
        await asyncio.sleep(0.05)
        await proves(f.two)
        await f.two.rails.refresh(now=True)
        [resumed] = await f.two.parked.claim_due(9)
        proofs = proofs_of(f.two)
        kept = await proofs.weigh(resumed)
        proofs.moments = Moments.of(resumed, kept, taken=len(kept.exchanges))
        assert isinstance(await proofs.confirm(ControlKind.SMTP, kept.exchanges), Wait)


def test_what_is_said_of_our_sender_is_not_asked_again_from_another_address() -> None:
    """ADR-CT-IMO-034, 5: "What is said of our sender is not passed on"; it is the same from everywhere."""
    its = TABLE["its own server refuses us, for ten minutes"]
    assert its.resumed.pending is not None
    reply = Reply(code=550, enhanced="5.1.8", text="Domain of sender address does not exist")
    answer = MailboxAnswer(attempts=(Attempt(host=OWN[1], ip="192.0.2.2", stage=Stage.MAIL, reply=reply),))
    pending = replace(its.resumed.pending, answer=answer)
    assert not is_about_address(pending)
    resumed = replace(its.resumed, pending=pending, met_by="two/1/b", met_at="dc2")
    witness = Witness(run="two/1/b", is_self=False, is_elsewhere=True)
    assert weigh(resumed, its.ways, its.settling, witness=witness).refused_at == ""


async def test_an_outage_of_postgres_makes_no_other_worker_gone(database: DatabaseDsns) -> None:
    """Nobody could give a sign of life, and the first one that is back weighs what another one heard."""
    async with fleet(database) as f:
        await proves(f.two)
        await asyncio.sleep(0.05)
        heard_at = f.two.db.now()
        heard = [
            Exchange(key=f"rcpt:{name}", answer=NO, asked=f"{name}@acme.example", at=rfc3339(heard_at), by=f.two.name)
            for name in ("first.last", "firstlast")
        ]
        company = silent(f.two, heard_at, OWN, *heard, waits_on="")
        await f.two.parked.park(replace(company, looks=0, failed=FailedAt.NONE))
        await f.admin.execute("ALTER TABLE outreach.ct_workers DISABLE TRIGGER ALL")
        await f.admin.execute("UPDATE outreach.ct_workers SET seen_at = seen_at - interval '31 s'")
        [resumed] = await f.one.parked.claim_due(9)
        kept = await proofs_of(f.one).weigh(resumed)
        assert len(kept.exchanges) == len(resumed.exchanges) == 4
        assert kept.wait is not None, "decided on the word of a worker that may have ended without its last control"
        assert kept.wait.reason == resumed.reason
        assert 0.0 < (kept.wait.after_s or 0.0) <= 30.0
        assert isinstance(await proofs_of(f.one).astray(resumed.exchanges), Wait)
        await f.two.record.beat(Beat(troubles={}, partitions=(), running=0))
        assert (await proofs_of(f.one).weigh(resumed)).wait is None, "it still runs"
        await f.admin.execute("UPDATE outreach.ct_workers SET seen_at = seen_at - interval '31 s'")
        f.one.db._heard_since -= 31.0
        kept = await proofs_of(f.one).weigh(resumed)
        assert [exchange.key for exchange in kept.exchanges] == ["spine"], "and nobody asks its controls any more"
