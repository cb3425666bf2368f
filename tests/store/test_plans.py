"""What one company costs the database does not grow with the companies that were decided or that wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg

from ct_stream.gate.waits import Wait
from ct_stream.store.database import Database
from ct_stream.store.domain_memory import DomainMemory
from ct_stream.store.ledger import Ledger
from ct_stream.store.limits import SharedLimits
from ct_stream.store.parked import ParkedCompanies
from tests.store.parts import LIMITS, outcome, parked, running

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns

ROWS = 20_000
COMPANIES = 8  #: from its sixth time on Postgres may keep a statement's plan
#: Domains of the day, the newest of them being probed; companies that wait for a provider; what was remembered.
GROW = f"""
CREATE TABLE numbers AS SELECT generate_series(1, {ROWS}) AS n;
INSERT INTO outreach.outreach (outreach_id, domain) SELECT gen_random_uuid(), 'd' || n || '.example' FROM numbers;
INSERT INTO outreach.ct_domains (domain, provider, free_at, lease_owner, lease_until)
    SELECT 'd' || n || '.example', 'd' || n || '.example', now(), CASE WHEN n > {ROWS - 200} THEN 'other' END,
        CASE WHEN n > {ROWS - 200} THEN now() + interval '1 hour' END
    FROM numbers;
INSERT INTO outreach.ct_memory (domain, rules_version, outcome, answers, answered_at, mx_at)
    SELECT 'd' || n || '.example', 'test', 'PASS', '[]', now(), now() FROM numbers;
INSERT INTO outreach.ct_passes (outreach_id, state, domain, reason, detail, waits_on, not_before, answers)
    SELECT gen_random_uuid(), 'waiting', 'd' || n || '.example', 'provider_closed', '', 'provider:closed.example',
        'infinity', '[]' FROM numbers;
ANALYZE;
"""


async def rows_read(connection: asyncpg.Connection[Any]) -> dict[str, int]:
    """Return how many rows or index entries were read, by table or index."""
    rows = await connection.fetch(
        """
        SELECT relname AS name, seq_tup_read AS read FROM pg_stat_user_tables WHERE schemaname = 'outreach'
        UNION ALL
        SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes WHERE schemaname = 'outreach'
        """
    )
    return {row["name"]: row["read"] for row in rows}


async def test_no_statement_of_a_company_reads_a_table_or_an_index_from_end_to_end(database: DatabaseDsns) -> None:
    admin = await asyncpg.connect(database.admin)
    await admin.execute(GROW)
    before = await rows_read(admin)
    db = Database(database.gate, pool_size=1)
    await db.open()
    limits, passes = SharedLimits(db, "worker", LIMITS), ParkedCompanies(db, "worker", "test")
    ledger, memory = Ledger(db, "test"), DomainMemory(db, "test")
    async with running(*limits.batches, *ledger.batches, passes.park, memory.recall):
        for number in range(COMPANIES):
            company, domain = uuid4(), f"new{number}.example"
            await admin.execute("INSERT INTO outreach.outreach (outreach_id, domain) VALUES ($1, $2)", company, domain)
            await ledger.look_up(company)
            await memory.recall(domain)
            await limits.mx_lookup()
            lease = await limits.begin_probe(domain, domain)
            assert not isinstance(lease, Wait)
            assert await lease.next_session() is None
            assert await lease.enter(f"provider-of-{domain}") is None
            await lease.release(talked=True)
            await passes.park(parked(company))
            assert len(await passes.claim_due(10)) == 1, "a poll finds fewer than it may take"
            assert await ledger.record(outcome(company))
            await ledger.claim(company)
            await ledger.stamp(company)
            unused = await limits.begin_probe(f"unused-{domain}", domain)
            assert not isinstance(unused, Wait)
            await unused.release(talked=False)
    await db.close()  # a session tells its counts at its end, at the latest
    after = await rows_read(admin)
    await admin.close()
    read = {name: after[name] - before[name] for name in after if after[name] - before[name] > ROWS / 2}
    assert read == {}
