"""The schema `outreach` that the runbook was written for, as its public repository has it, and companies in it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import asyncpg

from ct_stream.store.migrate import migrate
from tests.conftest import PASSWORD, DatabaseDsns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ct_stream.local.postgres import EmbeddedPostgres

#: Two versions of it are in use: company_unique_id was NOT NULL first.
NULLABLE, NOT_NULL = "", " NOT NULL"

SPINE = """
CREATE SCHEMA outreach;
CREATE TABLE outreach.outreach (
    outreach_id uuid PRIMARY KEY,
    sovereign_id uuid,
    domain varchar(255),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
"""
TARGET = """
CREATE TABLE outreach.company_target (
    target_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    company_unique_id text%s,
    outreach_status text NOT NULL DEFAULT 'queued'
        CHECK (outreach_status IN ('queued', 'active', 'paused', 'completed', 'disqualified')),
    bit_score_snapshot integer,
    first_targeted_at timestamptz,
    last_targeted_at timestamptz,
    sequence_count integer NOT NULL DEFAULT 0,
    active_sequence_id text,
    source text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    outreach_id uuid NULL REFERENCES outreach.outreach (outreach_id) ON DELETE CASCADE,
    email_method varchar(100),
    method_type varchar(50),
    confidence_score numeric(5, 4),
    execution_status varchar(50) DEFAULT 'pending'
        CHECK (execution_status IN ('pending', 'ready', 'failed', 'blocked')),
    imo_completed_at timestamptz,
    is_catchall boolean DEFAULT false
);
CREATE UNIQUE INDEX idx_company_target_company ON outreach.company_target (company_unique_id);
"""
ERRORS = """
CREATE TABLE outreach.company_target_errors (
    error_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    outreach_id uuid NOT NULL REFERENCES outreach.outreach (outreach_id)%s,
    pipeline_stage varchar(100) NOT NULL,
    failure_code varchar(50) NOT NULL,
    blocking_reason text NOT NULL,
    severity varchar(20) NOT NULL DEFAULT 'blocking',
    imo_stage varchar(10),
    retry_allowed boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    resolution_note text,
    raw_input jsonb,
    stack_trace text,
    retry_count integer,
    archived_at timestamptz
);
"""


def ddl(company_unique_id: str = NULLABLE, *, errors_cascade: bool = False) -> str:
    """Return the whole schema; `errors_cascade`: errors rows go with their company."""
    return SPINE + TARGET % company_unique_id + ERRORS % (" ON DELETE CASCADE" if errors_cascade else "")


@asynccontextmanager
async def made(postgres: EmbeddedPostgres, statements: str) -> AsyncIterator[DatabaseDsns]:
    """Lend a database with these tables, not migrated yet."""
    name = f"users_{uuid4().hex}"
    admin = await postgres.create_database(name)
    await run(admin, statements)
    yield DatabaseDsns(
        admin=admin, gate=postgres.dsn(name, "ct_gate", PASSWORD), ops=postgres.dsn(name, "ct_ops", PASSWORD)
    )
    await postgres.drop_database(name)


@asynccontextmanager
async def migrated(postgres: EmbeddedPostgres, statements: str) -> AsyncIterator[DatabaseDsns]:
    """Lend a database with these tables, migrated."""
    async with made(postgres, statements) as database:
        await migrate(database.admin)
        yield database


async def run(dsn: str, statement: str, *args: object) -> str:
    """Run one statement, or several without arguments."""
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    try:
        return await connection.execute(statement, *args)
    finally:
        await connection.close()


async def rows(dsn: str, statement: str, *args: object) -> list[tuple[object, ...]]:
    """Return the rows of one statement."""
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(statement, *args)]
    finally:
        await connection.close()


async def mint(dsn: str, *, pending: bool = False, domain: str = "acme.example") -> UUID:
    """Put a company into the spine, and a row that waits for the gate into company_target."""
    outreach_id = uuid4()
    await run(dsn, "INSERT INTO outreach.outreach (outreach_id, domain) VALUES ($1, $2)", outreach_id, domain)
    if pending:
        await run(dsn, "INSERT INTO outreach.company_target (outreach_id, source) VALUES ($1, 'crm')", outreach_id)
    return outreach_id
