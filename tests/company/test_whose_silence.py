"""What a provider leaves without an answer counts only if it was closed to none of our addresses at that time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from ct_stream.gate.evidence import Moments
from ct_stream.gate.output_stage import rfc3339
from ct_stream.gate.questions import ControlAnswer, ControlKind, MailboxAnswer
from ct_stream.gate.transcript import Exchange
from ct_stream.gate.waits import Wait, WaitReason
from tests.company.test_coming_back import OWN, SHARED, attempt
from tests.company.test_whose_guardrails import proofs_of, proves, silent
from tests.store.test_egress import Fleet, fleet

if TYPE_CHECKING:
    from ct_stream.company.proofs import Proofs
    from tests.conftest import DatabaseDsns

PROVIDER = "provider:bigmail.example"
SETTLED_S, FRESH_S = 1000.0, 1.0
FAR = timedelta(seconds=200)  #: longer than one question takes


async def proven_silence(
    f: Fleet, hosts: tuple[str, ...] = SHARED, *, before: timedelta = timedelta(0), refused_at: str = ""
) -> Exchange:
    """Park a company of the first egress whose hosts were silent so long before it was parked, and prove its way."""
    await proves(f.one)
    asked_at = f.one.db.now() - before - timedelta(seconds=1)
    its = Exchange(
        key="rcpt:info", asked="info@acme.example", answer=MailboxAnswer(attempts=(attempt(hosts[0]),)),
        at=rfc3339(f.one.db.now() - before), by=f.one.name,
    )  # fmt: skip
    await f.one.parked.park(replace(silent(f.one, asked_at, hosts, its), refused_at=refused_at))
    await asyncio.sleep(0.05)
    await f.admin.execute(
        "UPDATE outreach.ct_controls SET proven_since = proven_since - interval '1 hour' WHERE worker = $1", f.one.name
    )
    await proves(f.one)
    return its


async def weighed(f: Fleet, *, age_s: float = SETTLED_S) -> tuple[Proofs, ControlAnswer | Wait]:
    """Return what becomes of it now."""
    await f.one.rails.refresh(now=True)
    [resumed] = await f.one.parked.claim_due(9)
    proofs = proofs_of(f.one, age_s=age_s)
    kept = await proofs.weigh(resumed)
    assert kept.wait is None
    proofs.moments = Moments.of(resumed, kept, taken=len(kept.exchanges))
    return proofs, await proofs.confirm(ControlKind.SMTP, kept.exchanges)


async def opens(f: Fleet, rail: str, at: datetime) -> None:
    """Let a guardrail that is not open have been opened at this moment."""
    await f.resume(rail)
    await f.admin.execute("UPDATE outreach.ct_guardrails SET since = $2 WHERE key = $1", rail, at)
    await f.admin.execute(
        "UPDATE outreach.ct_guardrail_log SET at = $2 WHERE key = $1 AND state IN ('open', 'trial')", rail, at
    )


async def test_it_counts_once_it_is_settled_where_nothing_was_closed(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        await proven_silence(f)
        _, answer = await weighed(f)
        assert isinstance(answer, ControlAnswer)


@pytest.mark.parametrize("egress", ["", "@dc2"])
async def test_it_counts_at_none_while_it_is_closed_however_few_companies_are_counted(
    database: DatabaseDsns, egress: str
) -> None:
    """A person resumed TOOL-005, which makes older evidence void, or the evidence is of yesterday."""
    async with fleet(database) as f:
        await f.one.rails.set_state(f"{PROVIDER}{egress}", "closed", "silent to three companies", 600.0)
        await proven_silence(f)
        _, wait = await weighed(f)
        assert isinstance(wait, Wait), "it fails for ever"
        assert wait.waits_on == f"{PROVIDER}{egress}"


@pytest.mark.parametrize("egress", ["", "@dc2"])
@pytest.mark.parametrize(
    ("silent_before", "opened_before", "counts"),
    [(600.0, 300.0, False), (600.0, 602.0, True), (600.0, 750.0, True), (0.0, 120.0, True)],
)
async def test_it_is_asked_again_if_it_opened_after_that(
    database: DatabaseDsns, egress: str, silent_before: float, opened_before: float, counts: bool
) -> None:
    """What counts is when it was silent: a backup may have answered other questions long after that."""
    async with fleet(database) as f:
        rail = f"{PROVIDER}{egress}"
        await f.one.rails.set_state(rail, "closed", "silent to three companies", 600.0)
        await proven_silence(f, before=timedelta(seconds=silent_before))
        await opens(f, rail, f.one.db.now() - timedelta(seconds=opened_before))
        _, answer = await weighed(f)
        assert isinstance(answer, ControlAnswer) == counts
        if isinstance(answer, Wait):
            assert (answer.reason, answer.waits_on) == (WaitReason.PROVIDER_CLOSED, "")
            assert (answer.after_s or 0.0) >= 90.0, "then its answer is from after the opening"


async def test_a_closed_address_counts_though_its_network_was_opened_before(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        network, address = "provider:192.0.2.0/24", "provider:192.0.2.1"
        await f.one.rails.set_state(network, "closed", "the own servers of three companies refuse us", 600.0)
        await opens(f, network, f.one.db.now() - timedelta(hours=1))
        await f.one.rails.set_state(address, "closed", "the own servers of two companies refuse us", 600.0)
        await proven_silence(f, OWN[:1], before=FAR)
        await opens(f, address, f.one.db.now())
        _, answer = await weighed(f)
        assert isinstance(answer, Wait), "it opened after the silence"


@pytest.mark.parametrize("hosts", [OWN[:1], SHARED], ids=["own server", "shared provider"])
async def test_silence_while_our_address_is_halted_counts_at_nobodys(
    database: DatabaseDsns, hosts: tuple[str, ...]
) -> None:
    """Servers may drop the packets of an address that others refuse in words."""
    async with fleet(database) as f:
        await proven_silence(f, hosts, before=FAR)
        await f.one.rails.set_state("tool:TOOL-005", "halted", "listed", None)
        _, wait = await weighed(f)
        assert isinstance(wait, Wait)
        assert (wait.reason, wait.waits_on) == (WaitReason.HALTED, "tool:TOOL-005")
        await opens(f, "tool:TOOL-005", f.one.db.now())
        await f.admin.execute("UPDATE outreach.ct_passes SET lease_owner = NULL, lease_until = NULL")
        _, wait = await weighed(f)
        assert isinstance(wait, Wait), "it was silent before a person resumed our address"
        await f.admin.execute("UPDATE outreach.ct_passes SET lease_until = NULL, reason = 'halted', waits_on = $1", "x")
        [resumed] = await f.one.parked.claim_due(9)
        kept = await proofs_of(f.one, age_s=SETTLED_S).weigh(resumed)
        assert [exchange.key for exchange in kept.exchanges] == ["spine", "mx"], "and is asked again"


async def test_a_pause_that_ended_says_nothing_of_silence(database: DatabaseDsns) -> None:
    """Otherwise a provider that now and then finds us too fast would have each of its dead companies asked for ever."""
    async with fleet(database) as f:
        await f.one.rails.set_state(PROVIDER, "paused", "says that we ask too fast", 60.0)
        await proven_silence(f, before=FAR)
        await opens(f, PROVIDER, f.one.db.now())
        _, answer = await weighed(f)
        assert isinstance(answer, ControlAnswer)


async def test_a_network_that_opened_since_is_asked_again(database: DatabaseDsns) -> None:
    """Its own server may have shunned us as the others there did."""
    async with fleet(database) as f:
        rail = "provider:192.0.2.0/24"
        await f.one.rails.set_state(rail, "closed", "the own servers of three companies refuse us", 600.0)
        await proven_silence(f, OWN[:1], before=FAR)
        await opens(f, rail, f.one.db.now())
        _, answer = await weighed(f)
        assert isinstance(answer, Wait)


@pytest.mark.parametrize("refused_at", ["", "dc2"])
async def test_a_network_that_is_closed_to_the_address_that_was_refused_counts(
    database: DatabaseDsns, refused_at: str
) -> None:
    """The servers there refuse another of our addresses. That matters only to a company that was asked from it."""
    async with fleet(database) as f:
        await f.one.rails.set_state("provider:192.0.2.0/24@dc2", "closed", "own servers refuse us", 600.0)
        await proven_silence(f, OWN[:1], before=FAR, refused_at=refused_at)
        _, answer = await weighed(f)
        assert isinstance(answer, Wait) == bool(refused_at)


async def test_an_opening_of_the_future_is_over_once_it_was_seen(database: DatabaseDsns) -> None:
    """The clock ran a year ahead when the provider opened, and was set back."""
    async with fleet(database) as f:
        await f.one.rails.set_state(PROVIDER, "closed", "silent to three companies", 600.0)
        await opens(f, PROVIDER, f.one.db.now() + timedelta(days=365))
        await f.one.rails.refresh(now=True)
        seen_at = f.one.rails.shut["default"]["bigmail.example"]
        assert seen_at is not None
        assert seen_at <= f.one.db.now()
        await asyncio.sleep(0.05)
        await f.one.rails.refresh(now=True)
        assert f.one.rails.shut["default"]["bigmail.example"] == seen_at, "then its silence never counts"


async def test_openings_that_were_seen_before_the_clock_was_set_back_are_over(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise silence, and refusals of us, would count for nobody until the clock comes there again."""
    async with fleet(database) as f:
        for rail, state in ((PROVIDER, "closed"), ("tool:TOOL-005", "halted")):
            await f.one.rails.set_state(rail, state, "listed", 600.0 if state == "closed" else None)
        await f.one.rails.refresh(now=True)
        for rail in (PROVIDER, "tool:TOOL-005"):
            await f.resume(rail)
        await f.one.rails.refresh(now=True)
        now = f.one.db.now() - timedelta(hours=2)
        monkeypatch.setattr(f.one.db, "now", lambda: now)
        await f.one.rails.refresh(now=True)
        opened_at, resumed_at = f.one.rails.shut["default"]["bigmail.example"], f.one.rails.settling(0.0).resumed_at
        assert opened_at is not None
        assert opened_at <= now
        assert resumed_at is None or resumed_at <= now


@pytest.mark.parametrize("is_between", [False, True], ids=["before we look", "between two statements of one look"])
async def test_an_opening_counts_from_when_others_can_see_it(database: DatabaseDsns, is_between: bool) -> None:
    """A person resumed it, went to lunch, and committed. For everybody else it was closed meanwhile."""
    async with fleet(database) as f:
        rail = f"{PROVIDER}@dc2"
        await f.one.rails.set_state(rail, "closed", "silent to three companies", 600.0)
        await f.one.rails.refresh(now=True)
        person = await asyncpg.connect(database.admin)
        change = person.transaction()
        await change.start()
        await person.fetchval("SELECT outreach.resume_guardrail($1, 'because')", rail)
        await asyncio.sleep(0.1)
        silent_at = f.one.db.now()
        persist, commits = f.one.db.persist, [change.commit]

        async def and_commits(name: str, *args: Any) -> Any:
            rows = await persist(name, *args)
            if commits:
                await commits.pop()()
            return rows

        if is_between:
            f.one.db.persist = and_commits  # type: ignore[method-assign]
        else:
            await commits.pop()()
        await f.one.rails.refresh(now=True)
        for _ in range(2):
            opened_at = f.one.rails.shut["dc2"]["bigmail.example"]
            assert opened_at is None or opened_at > silent_at, "silence of that time counts"
            await f.one.rails.refresh(now=True)
        assert opened_at is not None
        await f.two.rails.set_state(rail, "paused", "says that we ask too fast", 60.0)
        await f.one.rails.refresh(now=True)
        assert f.one.rails.shut["dc2"]["bigmail.example"] == opened_at, "whatever came after that"
        await person.close()


async def test_the_oldest_silence_at_an_address_is_held_against_its_last_halt(database: DatabaseDsns) -> None:
    async with fleet(database) as f:
        its = await proven_silence(f, OWN[:1], before=timedelta(seconds=600))
        await f.one.rails.set_state("tool:TOOL-005", "halted", "listed", None)
        await opens(f, "tool:TOOL-005", f.one.db.now() - timedelta(seconds=300))
        proofs, _ = await weighed(f)
        proofs.moments = Moments()
        older = replace(its, proven=True)
        younger = replace(its, key="rcpt:contact", at=rfc3339(f.one.db.now()), proven=True)
        assert isinstance(await proofs.confirm(ControlKind.SMTP, [older, younger]), Wait)


async def test_proven_silence_is_settled_by_its_own_time(database: DatabaseDsns) -> None:
    """Another worker met it. Since then a reply about us was in the way, so no moment of a failure is on record."""
    async with fleet(database) as f:
        its = await proven_silence(f, before=FAR)
        proofs, _ = await weighed(f)
        proofs.moments = Moments()
        proven = [replace(its, proven=True)]
        assert isinstance(await proofs.confirm(ControlKind.SMTP, proven), ControlAnswer)
        young = proofs_of(f.one, age_s=FRESH_S)
        wait = await young.confirm(ControlKind.SMTP, proven)
        assert isinstance(wait, Wait)
        assert 0.0 < (wait.after_s or 0.0) < 60.0, "and that ends"
