-- Tables that existed before the gate: what their rows say, and what binds them.

-- Record an adopted outcome for each company that was decided before the gate came, and return how many. It does so
-- once, at the first migrate. Adopted outcomes are final and never published; there is one row for each outreach_id. It
-- runs with the rights of ct_owner, so that triggers on these tables do not run as the administrator.
CREATE OR REPLACE FUNCTION outreach.ct_adopt() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    adopted bigint;
BEGIN
    IF EXISTS (SELECT a.singleton FROM outreach.ct_adoption AS a) THEN
        RETURN 0;
    END IF;
    INSERT INTO outreach.ct_outcomes (outreach_id, outcome, source, failure_code, reason, decided_at)
    SELECT
        coalesce(t.outreach_id, e.outreach_id),
        CASE WHEN t.execution_status = 'ready' THEN 'PASS' ELSE 'FAIL' END,
        'adopted',
        e.failure_code,
        e.blocking_reason,
        coalesce(t.imo_completed_at, e.created_at, clock_timestamp())
    FROM (
        SELECT c.outreach_id, c.execution_status::text, c.imo_completed_at FROM outreach.company_target AS c
        WHERE c.execution_status::text IN ('ready', 'failed', 'blocked') AND c.outreach_id IS NOT NULL
    ) AS t
    FULL JOIN (
        SELECT DISTINCT ON (x.outreach_id) x.outreach_id, x.failure_code, x.blocking_reason, x.created_at
        FROM outreach.company_target_errors AS x WHERE x.outreach_id IS NOT NULL ORDER BY x.outreach_id, x.created_at
    ) AS e USING (outreach_id)
    ON CONFLICT (outreach_id) DO NOTHING;
    GET DIAGNOSTICS adopted = ROW_COUNT;
    INSERT INTO outreach.ct_adoption (companies) VALUES (adopted);
    RETURN adopted;
END $$;

-- Does a foreign key bind the outreach_id of an errors row? Then a NOT-FOUND, which has no company to refer to, cannot
-- have one. Asked each time, because the table's owner may drop the constraint.
CREATE OR REPLACE FUNCTION outreach.ct_errors_are_bound() RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT c.oid FROM pg_catalog.pg_constraint AS c
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
        WHERE c.conrelid = 'outreach.company_target_errors'::regclass AND c.contype = 'f' AND a.attname = 'outreach_id'
    )
$$;
