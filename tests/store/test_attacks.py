"""What somebody with the gate's or a person's login tries: to lift a halt, to free a budget, to stop the probing.

Each statement was first seen succeeding.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from tests.store.test_roles import run

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns

TAKE = (
    "SELECT outreach.ct_take_tier2(ARRAY[gen_random_uuid()], ARRAY['info@a.example'], ARRAY[gen_random_uuid()],"
    " 'vendor', 50, 10000, {usd_per_month}, {usd_per_call}, 30, 1, 5)"
)
HALTS = ("tool:TOOL-005", "tool:TOOL-019", "spine", "input", "watchdog")


async def value(dsn: str, statement: str) -> object:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize("rail", HALTS)
@pytest.mark.parametrize("state", ["paused", "closed", "open", "trial"])
async def test_the_gate_lifts_no_halt(database: DatabaseDsns, rail: str, state: str) -> None:
    await run(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', 'halted', 'refused by 5', NULL)")
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only a person resumes"):
        await run(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', '{state}', 'never mind', NULL)")
    assert await value(database.ops, f"SELECT state FROM outreach.ct_guardrails WHERE key = '{rail}'") == "halted"


async def test_the_gate_loosens_no_provider_but_after_a_normal_session(database: DatabaseDsns) -> None:
    rail = "provider:bigmail.example"
    for state, then in [("paused", "paused"), ("closed", "closed"), ("paused", "closed"), ("halted", "halted")]:
        await run(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', '{state}', 'why', NULL)")
        assert await value(database.ops, f"SELECT state FROM outreach.ct_guardrails WHERE key = '{rail}'") == then
    for state in ("open", "paused", "closed"):
        await run(database.gate, f"SELECT outreach.ct_set_guardrail('{rail}', '{state}', 'why', NULL)")
        assert await value(database.ops, f"SELECT state FROM outreach.ct_guardrails WHERE key = '{rail}'") == "halted"


async def test_the_log_names_the_login_that_resumed(database: DatabaseDsns) -> None:
    await run(database.gate, "SELECT outreach.ct_set_guardrail('spine', 'halted', 'empty', NULL)")
    await run(database.ops, "SELECT outreach.resume_guardrail('spine', 'restored')")
    by = await value(database.ops, "SELECT by_role FROM outreach.ct_guardrail_log ORDER BY log_id DESC LIMIT 1")
    assert by == "ct_ops"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await run(database.gate, "SELECT outreach.resume_guardrail('spine', 'restored')")


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(TAKE.format(usd_per_month=50, usd_per_call=-1000), id="a call that costs less than nothing"),
        pytest.param(TAKE.format(usd_per_month=50, usd_per_call="'-Infinity'"), id="and infinitely less"),
        pytest.param(TAKE.format(usd_per_month="'NaN'", usd_per_call=0.004), id="a budget that is no number"),
        pytest.param("UPDATE outreach.ct_usage SET usd = -1000000", id="a month with money to come"),
        pytest.param("UPDATE outreach.ct_usage SET usd = 0", id="a month without spending"),
        pytest.param("UPDATE outreach.ct_usage SET used = 0", id="a month without calls"),
        pytest.param("UPDATE outreach.ct_usage SET begins = '2000-01-01'", id="calls of another month"),
        pytest.param("UPDATE outreach.ct_usage SET tool_id = 'TOOL-000'", id="calls of another tool"),
        pytest.param("DELETE FROM outreach.ct_usage", id="no month at all"),
        pytest.param("INSERT INTO outreach.ct_usage VALUES ('TOOL-019', 'month', '2030-01-01', -5, -5)", id="a gift"),
    ],
)
async def test_the_gate_books_no_negative_money_and_takes_none_back(database: DatabaseDsns, statement: str) -> None:
    await run(database.gate, TAKE.format(usd_per_month=50, usd_per_call=0.004))
    with pytest.raises((asyncpg.PostgresError,)):
        await run(database.gate, statement)
    row = "SELECT (used, usd)::text FROM outreach.ct_usage WHERE tool_id = 'TOOL-019'"
    assert await value(database.ops, row) == "(1,0.004000)"


async def test_a_person_stops_no_probing_by_holding_a_lock(database: DatabaseDsns) -> None:
    """Advisory locks are everybody's: nothing that the gate waits for is one."""
    person: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.ops)
    try:
        for name in ("ct:tier2", "ct:provider:bigmail.example"):
            await person.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", name)
        await person.execute("BEGIN; LOCK TABLE outreach.ct_rates, outreach.ct_usage IN ACCESS SHARE MODE")
        async with asyncio.timeout(10):
            await run(database.gate, TAKE.format(usd_per_month=50, usd_per_call=0.004))
            begun = await value(
                database.gate,
                "SELECT answer FROM outreach.ct_begin_probes('w', ARRAY['a.example'], ARRAY['bigmail.example'],"
                " ARRAY[false], ARRAY[gen_random_uuid()], ARRAY['1'], ARRAY[now()], 20, 100, 10)",
            )
        assert begun == "granted"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await person.execute("LOCK TABLE outreach.ct_rates IN ROW EXCLUSIVE MODE")
    finally:
        await person.close()
