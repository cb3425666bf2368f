"""The whole stream in the schema that the runbook was written for, beside those who use it for their own work."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path  # noqa: TC003 - pytest reads the annotation
from uuid import uuid4

import orjson

from ct_stream.ops.verify import Limits, verify
from ct_stream.settings import load_settings
from ct_stream.store.migrate import migrate
from ct_stream.stream.topology import CT_FAIL, CT_PASS
from tests.faults.harness import Stack
from tests.store.users_schema import NOT_NULL, ddl

KINDS = ("info", "contact", "nomx", "catchall", "allreject")
DECIDED_BEFORE = """
INSERT INTO outreach.outreach (outreach_id, domain)
    SELECT ('00000000-0000-4000-8000-00000000000' || n)::uuid, 'info-old' || n || '.example'
    FROM generate_series(1, 3) AS n;
INSERT INTO outreach.company_target (outreach_id, execution_status, outreach_status)
    SELECT outreach_id, (ARRAY['ready', 'failed', 'blocked'])[row_number() OVER ()], 'active' FROM outreach.outreach;
INSERT INTO outreach.company_target_errors (outreach_id, pipeline_stage, failure_code, blocking_reason)
    SELECT outreach_id, 'company_target_imo', 'CT-M-NO-MX', 'no MX' FROM outreach.company_target
    WHERE execution_status <> 'ready';
"""
#: What a sequencer and an archive job of the users do all the time, to decided companies too.
OTHERS = (
    "UPDATE outreach.company_target SET sequence_count = sequence_count + 1, updated_at = now()",
    "UPDATE outreach.company_target SET outreach_status = 'active' WHERE execution_status = 'ready'",
    "UPDATE outreach.company_target_errors SET archived_at = now(), retry_count = 0 WHERE archived_at IS NULL",
)


async def test_every_outcome_beside_the_work_of_others(tmp_path: Path) -> None:
    async with Stack(tmp_path, tables=ddl() + DECIDED_BEFORE) as stack:
        await stack.admin.execute("ALTER ROLE ct_ops LOGIN PASSWORD 'ops'")
        ids = await stack.mint([f"{kind}-{n}.example" for kind in KINDS for n in range(4)] + [None])
        await stack.admin.execute(
            "INSERT INTO outreach.company_target (outreach_id, source)"
            " SELECT outreach_id, 'crm' FROM outreach.outreach WHERE domain ~ '-[12].example'"
        )
        missing = [uuid4(), uuid4()]
        old = [row[0] for row in await stack.admin.fetch("SELECT outreach_id FROM outreach.ct_outcomes")]
        assert len(old) == 3
        worker = stack.start_worker()
        await stack.publish([*ids, *missing, *old])
        everything = len(ids) + len(missing) + len(old)
        while await stack.count_decided() < everything and worker.poll() is None:
            for change in OTHERS:
                await stack.admin.execute(change)
            await asyncio.sleep(0.1)
        assert "was rehearsed" in stack.worker_log()
        assert await stack.wait_published() == 0
        assert await stack.admin.fetchval("SELECT count(*) FROM outreach.ct_passes") == 0, "none is stuck"
        status = await stack.admin.fetch(
            "SELECT split_part(s.domain, '-', 1) AS kind, t.execution_status AS status, count(*) AS companies"
            " FROM outreach.outreach AS s JOIN outreach.company_target AS t USING (outreach_id)"
            " WHERE s.domain NOT LIKE 'info-old%' GROUP BY 1, 2 ORDER BY 1"
        )
        assert [tuple(row) for row in status] == [
            ("allreject", "failed", 4), ("catchall", "ready", 4), ("contact", "ready", 4), ("info", "ready", 4),
            ("nomx", "failed", 4),
        ]  # fmt: skip
        records = await stack.records(CT_PASS, CT_FAIL)
        assert len(records) == everything - len(old), "nothing of before is published"
        codes = {orjson.loads(record.value).get("failure_code") for record in records}
        assert {"CT-I-NOT-FOUND", "CT-I-NO-DOMAIN", "CT-M-NO-MX", "CT-M-NO-PATTERN", None} == codes

        # A company goes, with its rows; the ledger knows it still.
        passed, failed = ids[0], ids[8]
        await stack.admin.execute(
            "ALTER TABLE outreach.company_target_errors DROP CONSTRAINT company_target_errors_outreach_id_fkey,"
            " ADD FOREIGN KEY (outreach_id) REFERENCES outreach.outreach ON DELETE CASCADE"
        )
        await stack.admin.execute("DELETE FROM outreach.outreach WHERE outreach_id IN ($1, $2)", passed, failed)
        await stack.publish([passed, failed])
        settings = replace(load_settings(stack.env), postgres_ops_dsn=stack.postgres.dsn("postgres", "ct_ops", "ops"))
        report = await verify(settings, Limits(), lambda _what, _count: None)
        assert report.violations == {}, report.told()
        assert await stack.count_decided() == everything
        assert stack.end_worker(worker) == 0


async def test_a_worker_refuses_tables_that_would_make_each_company_stuck(tmp_path: Path) -> None:
    async with Stack(tmp_path, tables=ddl(NOT_NULL)) as stack:
        await stack.mint(["info-1.example"])
        worker = stack.start_worker()
        assert await stack.wait_end(worker, 30) == 78, stack.worker_log()
        assert (
            "outreach.company_target.company_unique_id is NOT NULL, and the gate does not fill it; ALTER TABLE "
            in stack.worker_log()
        )
        await stack.admin.execute(
            "ALTER TABLE outreach.company_target ALTER COLUMN company_unique_id SET DEFAULT gen_random_uuid()::text"
        )
        assert "was rehearsed" in (await migrate(stack.postgres.admin_dsn)).rehearsal
        [company] = await stack.mint(["info-2.example"])
        stack.start_worker()
        await stack.publish([company])
        assert await stack.wait_decided(1) == 1
        assert await stack.wait_published() == 0
