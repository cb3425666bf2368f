-- Run at each migrate: a company that was decided before the gate came has its outcome already.
-- Final, never published, and one row for each outreach_id.

INSERT INTO outreach.ct_outcomes (outreach_id, outcome, source, failure_code, reason, decided_at)
SELECT
    known.outreach_id,
    CASE WHEN known.execution_status = 'ready' THEN 'PASS' ELSE 'FAIL' END,
    'adopted',
    known.failure_code,
    known.blocking_reason,
    coalesce(known.decided_at, clock_timestamp())
FROM (
    SELECT
        coalesce(t.outreach_id, e.outreach_id) AS outreach_id,
        t.execution_status,
        e.failure_code,
        e.blocking_reason,
        coalesce(t.imo_completed_at, e.created_at) AS decided_at
    FROM (
        SELECT c.outreach_id, c.execution_status, c.imo_completed_at FROM outreach.company_target AS c
        WHERE c.execution_status IN ('ready', 'failed', 'blocked')
    ) AS t
    FULL JOIN (
        SELECT DISTINCT ON (x.outreach_id) x.outreach_id, x.failure_code, x.blocking_reason, x.created_at
        FROM outreach.company_target_errors AS x ORDER BY x.outreach_id, x.created_at
    ) AS e USING (outreach_id)
) AS known
ON CONFLICT (outreach_id) DO NOTHING
