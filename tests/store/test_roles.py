"""What Postgres itself refuses, whoever asks."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns

DECIDED = """
INSERT INTO outreach.ct_outcomes (outreach_id, outcome, decided_at) VALUES ('{0}', 'PASS', now());
INSERT INTO outreach.company_target (outreach_id, execution_status, imo_completed_at) VALUES ('{0}', 'ready', now());
INSERT INTO outreach.company_target_errors (outreach_id, failure_code) VALUES ('{0}', 'CT-M-NO-MX');
"""
REFUSED = (asyncpg.InsufficientPrivilegeError, asyncpg.RestrictViolationError)


async def run(dsn: str, statement: str) -> None:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("SELECT sovereign_id FROM outreach.outreach", id="reading sovereign_id"),
        pytest.param("SELECT count(*) FROM outreach.outreach AS s WHERE s.sovereign_id IS NULL", id="filtering by it"),
        pytest.param("SELECT company_name FROM cl.company_identity", id="reading the cl schema"),
        pytest.param("UPDATE outreach.outreach SET domain = 'b.example'", id="patching a domain"),
        pytest.param("UPDATE outreach.ct_outcomes SET outcome = 'FAIL'", id="changing an outcome"),
        pytest.param("UPDATE outreach.company_target SET execution_status = 'pending'", id="reopening a company"),
        pytest.param("UPDATE outreach.company_target SET confidence_score = 1", id="changing a confidence"),
        pytest.param("UPDATE outreach.company_target_errors SET failure_code = 'x'", id="changing an error"),
        pytest.param("DELETE FROM outreach.ct_outcomes", id="deleting outcomes"),
        pytest.param("DELETE FROM outreach.company_target", id="deleting companies"),
        pytest.param("DELETE FROM outreach.company_target_errors", id="deleting errors"),
        pytest.param("DELETE FROM outreach.ct_passes", id="deleting undecided passes"),
        pytest.param("TRUNCATE outreach.ct_outcomes", id="truncating outcomes"),
        pytest.param("SELECT outreach.resume_guardrail('spine', 'because')", id="resuming a guardrail"),
    ],
)
async def test_the_gate_is_refused(database: DatabaseDsns, statement: str) -> None:
    await run(database.admin, f"INSERT INTO outreach.outreach (outreach_id, domain) VALUES ('{uuid4()}', 'a.example')")
    await run(database.admin, DECIDED.format(uuid4()))
    with pytest.raises(REFUSED):
        await run(database.gate, statement)


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("UPDATE outreach.ct_outcomes SET outcome = 'FAIL'", id="changing an outcome"),
        pytest.param("DELETE FROM outreach.ct_outcomes", id="deleting outcomes"),
        pytest.param("DELETE FROM outreach.company_target", id="deleting companies"),
        pytest.param("DELETE FROM outreach.company_target_errors", id="deleting errors"),
        pytest.param("UPDATE outreach.company_target SET execution_status = 'pending'", id="reopening a company"),
        pytest.param("TRUNCATE outreach.company_target", id="truncating"),
    ],
)
async def test_a_final_outcome_is_final_for_the_administrator_too(database: DatabaseDsns, statement: str) -> None:
    await run(database.admin, DECIDED.format(uuid4()))
    with pytest.raises(asyncpg.RestrictViolationError):
        await run(database.admin, statement)


async def test_people_read_the_spine_without_sovereign_id(database: DatabaseDsns) -> None:
    await run(database.ops, "SELECT outreach_id, domain FROM outreach.outreach")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await run(database.ops, "SELECT sovereign_id FROM outreach.outreach")
