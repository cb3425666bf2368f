-- Record an adopted outcome for each company that was decided before the gate came, and return how many are new. Runs
-- at each migrate. Adopted outcomes are final and never published; there is one row for each outreach_id. It runs with
-- the rights of ct_owner, so that triggers on these tables do not run as the administrator.
CREATE OR REPLACE FUNCTION outreach.ct_adopt() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, outreach, pg_temp AS $$
    WITH adopted AS (
        INSERT INTO outreach.ct_outcomes (outreach_id, outcome, source, failure_code, reason, decided_at)
        SELECT
            coalesce(t.outreach_id, e.outreach_id),
            CASE WHEN t.execution_status = 'ready' THEN 'PASS' ELSE 'FAIL' END,
            'adopted',
            e.failure_code,
            e.blocking_reason,
            coalesce(t.imo_completed_at, e.created_at, clock_timestamp())
        FROM (
            SELECT c.outreach_id, c.execution_status, c.imo_completed_at FROM outreach.company_target AS c
            WHERE c.execution_status IN ('ready', 'failed', 'blocked')
        ) AS t
        FULL JOIN (
            SELECT DISTINCT ON (x.outreach_id) x.outreach_id, x.failure_code, x.blocking_reason, x.created_at
            FROM outreach.company_target_errors AS x ORDER BY x.outreach_id, x.created_at
        ) AS e USING (outreach_id)
        ON CONFLICT (outreach_id) DO NOTHING
        RETURNING 1
    )
    SELECT count(*) FROM adopted
$$;
