"""Who refuses us, one company, a provider or everybody, and nobody fails for another's refusal (FAULTS row 21)."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import TYPE_CHECKING

from ct_stream.local.farm import EVERYWHERE
from ct_stream.store.guardrails import CLOSE_AFTER_COMPANIES
from tests.faults.harness import Stack

if TYPE_CHECKING:
    from pathlib import Path

LISTED = "550 5.7.1 Service unavailable, client host [{peer}] blocked using zen.spamhaus.org"


async def outcomes(stack: Stack) -> dict[str, str]:
    rows = await stack.admin.fetch("SELECT domain, coalesce(failure_code, 'PASS') AS code FROM outreach.ct_outcomes")
    return {row["domain"]: row["code"] for row in rows}


async def rail(stack: Stack, key: str) -> str | None:
    state: str | None = await stack.admin.fetchval("SELECT state FROM outreach.ct_guardrails WHERE key = $1", key)
    return state


async def rail_is(stack: Stack, key: str, state: str, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while (now := await rail(stack, key)) != state:
        assert time.monotonic() < deadline, f"{key} is {now}, not {state}: {stack.worker_log()[-2000:]}"
        await asyncio.sleep(0.1)


async def waiting(stack: Stack, reasons: set[str], number: int, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while True:
        count = await stack.admin.fetchval(
            "SELECT count(*) FROM outreach.ct_passes WHERE reason = ANY ($1::text[])", list(reasons)
        )
        if count >= number:
            return
        assert time.monotonic() < deadline, f"{count} of {number} wait: {stack.worker_log()[-2000:]}"
        await asyncio.sleep(0.1)


async def test_a_listed_address_halts_the_tool_fails_nobody_and_comes_back_one_by_one(tmp_path: Path) -> None:
    """The controls go up to MAIL FROM only, and talk normally: the list is met at RCPT, by every other server."""
    async with Stack(tmp_path, settle_s=20.0, reply_delay_s=0.02) as stack:
        stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        await stack.farm.refuse(EVERYWHERE, LISTED)
        names: list[str | None] = [f"info-{n}.example" for n in range(30)]
        names += [f"allreject-{n}.example" for n in range(5)]
        await stack.publish(await stack.mint(names))
        await rail_is(stack, "tool:TOOL-005", "halted")
        await waiting(stack, {"halted", "control", "refused"}, len(names))
        assert await outcomes(stack) == {}, "somebody failed for our listed address"
        seen = len((await stack.farm.log()).sessions())
        await asyncio.sleep(3)
        assert len((await stack.farm.log()).sessions()) <= seen + 1, "a halted tool goes on asking"  # a control

        await stack.farm.accept(EVERYWHERE)
        await stack.admin.fetchval("SELECT outreach.resume_guardrail('tool:TOOL-005', 'delisted')")
        await rail_is(stack, "tool:TOOL-005", "open", 60)
        log = await stack.farm.log()
        opened = await stack.admin.fetchval(
            "SELECT extract(epoch FROM at) FROM outreach.ct_guardrail_log WHERE state = 'open' ORDER BY at DESC LIMIT 1"
        )
        trial = sorted(
            ((s.opened, s.closed or s.opened) for s in log.sessions()[seen:]
             if s.wall < float(opened) - 0.05 and s.recipients),
        )  # fmt: skip
        assert len(trial) >= 2
        assert all(later[0] >= earlier[1] - 0.01 for earlier, later in pairwise(trial)), (
            "two companies were tried at once"
        )
        assert await stack.wait_decided(len(names), 90) == len(names), stack.worker_log()[-3000:]
        codes = await outcomes(stack)
        assert set(codes.values()) == {"PASS", "CT-M-NO-PATTERN"}
        assert all((code == "PASS") == domain.startswith("info") for domain, code in codes.items())


async def test_a_provider_that_refuses_us_is_closed_and_only_its_companies_wait(tmp_path: Path) -> None:
    async with Stack(tmp_path, settle_s=20.0, reply_delay_s=0.02) as stack:
        stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        await stack.farm.refuse("bigmail.example", LISTED)
        there: list[str | None] = [f"info-at-bigmail-{n}.example" for n in range(40)]
        elsewhere: list[str | None] = [f"info-{n}.example" for n in range(60)]
        await stack.publish(await stack.mint(there + elsewhere))
        await rail_is(stack, "provider:bigmail.example", "closed")
        assert await stack.wait_decided(len(elsewhere), 60) == len(elsewhere), "a closed provider held up the others"
        await waiting(stack, {"provider_closed", "refused"}, len(there))
        assert set(await outcomes(stack)) == set(elsewhere)
        at_provider = [s for s in (await stack.farm.log()).sessions() if s.host == "mx1.bigmail.example"]
        # Ten at once. The third refusal closes the provider, and each counts before it frees its place: the first two
        # let one more company in each.
        assert len(at_provider) <= 10 + CLOSE_AFTER_COMPANIES - 1, "a provider was asked on after it had closed"

        await stack.farm.accept("bigmail.example")
        # Its next try is ten minutes away.
        await stack.admin.execute("UPDATE outreach.ct_guardrails SET next_try_at = now() WHERE state = 'closed'")
        await stack.admin.execute("UPDATE outreach.ct_passes SET not_before = now() WHERE reason = 'refused'")
        await rail_is(stack, "provider:bigmail.example", "open", 60)
        assert await stack.wait_decided(100, 60) == 100, stack.worker_log()[-3000:]
        assert set((await outcomes(stack)).values()) == {"PASS"}


async def test_a_shared_provider_that_is_silent_for_three_companies_fails_none_of_them(tmp_path: Path) -> None:
    async with Stack(tmp_path, settle_s=15.0, CT_PASS_DEADLINE_S="30") as stack:
        for n in range(4):
            await stack.farm.add(f"deadhost{n}.example", "info", "silent.example")
        await stack.farm.add("alone.example", "info", "lonely.example")
        for provider in ("silent.example", "lonely.example"):
            await stack.farm.refuse(provider, "", "banner")
        stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        names: list[str | None] = [f"deadhost{n}.example" for n in range(4)]
        names += ["alone.example", "refuse-own.example", "info-1.example"]
        await stack.publish(await stack.mint(names))
        await rail_is(stack, "provider:silent.example", "closed", 60)
        assert await stack.wait_decided(3, 60) >= 3, stack.worker_log()[-3000:]
        assert await outcomes(stack) == {
            "alone.example": "CT-M-SMTP-FAIL", "refuse-own.example": "CT-M-SMTP-FAIL", "info-1.example": "PASS",
        }, "one company alone, or a company's own server, is settled by a control and by time"  # fmt: skip
        await waiting(stack, {"provider_closed"}, 4)


async def test_one_companys_own_server_that_refuses_us_concerns_that_company_only(tmp_path: Path) -> None:
    async with Stack(tmp_path, settle_s=5.0) as stack:
        stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        names: list[str | None] = ["blocklist-1.example", *(f"info-{n}.example" for n in range(30))]
        begin = time.monotonic()
        await stack.publish(await stack.mint(names))
        assert await stack.wait_decided(30, 30) >= 30
        assert "blocklist-1.example" not in await outcomes(stack), "settled before others could show that it is us"
        assert await stack.wait_decided(31, 60) == 31, stack.worker_log()[-3000:]
        assert time.monotonic() - begin >= 5.0
        codes = await outcomes(stack)
        assert codes.pop("blocklist-1.example") == "CT-M-SMTP-FAIL"
        assert set(codes.values()) == {"PASS"}
        assert await rail(stack, "tool:TOOL-005") is None


async def test_a_hoster_that_refuses_us_under_its_customers_names_fails_none_of_them_and_halts_nothing(
    tmp_path: Path,
) -> None:
    """Six customers with servers of their own names at one machine, and four at four machines in another network."""
    machine, network = "127.77.250.7", "127.77.251.0/24"
    async with Stack(tmp_path, settle_s=5.0, reply_delay_s=0.02) as stack:
        hosted = {f"customer{n}.example": machine for n in range(6)}
        hosted |= {f"spread{n}.example": f"127.77.251.{n + 1}" for n in range(4)}
        for domain, address in hosted.items():
            await stack.farm.add(domain, "info", None, address)
            await stack.farm.refuse(address, LISTED)
        stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        elsewhere = [f"info-{n}.example" for n in range(40)]
        await stack.publish(await stack.mint([*hosted, *elsewhere]))
        await rail_is(stack, f"provider:{machine}", "closed")
        await rail_is(stack, f"provider:{network}", "closed")
        assert await stack.wait_decided(len(elsewhere), 60) == len(elsewhere), "they held up the others"
        await waiting(stack, {"provider_closed", "refused"}, len(hosted))
        await asyncio.sleep(7)  # longer than settle_s
        await waiting(stack, {"provider_closed", "refused"}, len(hosted))
        assert set(await outcomes(stack)) == set(elsewhere), "a customer failed for the hoster's refusal"
        assert await rail(stack, "tool:TOOL-005") is None, "ten names of two owners halted the tool"

        for address in hosted.values():
            await stack.farm.accept(address)
        await stack.admin.execute("UPDATE outreach.ct_guardrails SET next_try_at = now() WHERE state = 'closed'")
        await stack.admin.execute("UPDATE outreach.ct_passes SET not_before = now() WHERE reason = 'refused'")
        await rail_is(stack, f"provider:{machine}", "open", 60)
        await rail_is(stack, f"provider:{network}", "open", 60)
        assert await stack.wait_decided(50, 60) == 50, stack.worker_log()[-3000:]
        assert set((await outcomes(stack)).values()) == {"PASS"}


async def test_twenty_thousand_companies_of_a_closed_provider_block_nobody(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        stack.start_worker()
        assert await stack.wait_said("Ready", 60)
        await stack.admin.execute(
            "INSERT INTO outreach.ct_guardrails (key, state, reason, next_try_at)"
            " VALUES ('provider:bigmail.example', 'closed', 'test', now() + interval '1 hour')"
        )
        await stack.admin.execute(
            """
            INSERT INTO outreach.ct_passes (outreach_id, state, domain, reason, detail, waits_on, not_before)
            SELECT gen_random_uuid(), 'waiting', 'info-at-bigmail-' || n || '.example', 'provider_closed', 'test',
                'provider:bigmail.example', 'infinity' FROM generate_series(1, 20000) AS n
            """
        )
        await stack.publish(await stack.mint([f"info-{n}.example" for n in range(200)]))
        assert await stack.wait_decided(200, 30) == 200, stack.worker_log()[-3000:]
