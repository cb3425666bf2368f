-- Tables that existed before the gate: what their rows say, and what binds them.

-- Were the companies that were decided before the gate came adopted already? That happens once, at the first migrate.
CREATE OR REPLACE FUNCTION outreach.ct_is_adopted() RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT a.singleton FROM outreach.ct_adoption AS a)
$$;

-- Record an adopted outcome for each of these companies, and return how many had none. Adopted outcomes are final and
-- never published. migrate.py reads the companies from the users' tables: this function runs with the rights of
-- ct_owner, which the expressions of other people's tables are not to have.
CREATE OR REPLACE FUNCTION outreach.ct_adopt(
    ids uuid[], outcomes text[], codes text[], reasons text[], decided timestamptz[]
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    adopted bigint;
BEGIN
    IF outreach.ct_is_adopted() THEN
        RAISE EXCEPTION 'companies decided before are adopted once' USING ERRCODE = 'restrict_violation';
    END IF;
    INSERT INTO outreach.ct_outcomes (outreach_id, outcome, source, failure_code, reason, decided_at)
        SELECT i.id, i.outcome, 'adopted', i.code, i.reason,
            -- What others wrote there may be 'infinity', or a year before our era, which few readers can show.
            greatest(least(coalesce(i.at, clock_timestamp()), clock_timestamp()), '1970-01-01 00:00:00+00')
        FROM unnest(ids, outcomes, codes, reasons, decided) AS i (id, outcome, code, reason, at)
        ON CONFLICT (outreach_id) DO NOTHING;
    GET DIAGNOSTICS adopted = ROW_COUNT;
    RETURN adopted;
END $$;

-- All are adopted, so many.
CREATE OR REPLACE FUNCTION outreach.ct_end_adoption(adopted bigint) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO outreach.ct_adoption (companies) VALUES (adopted)
$$;

-- Does a foreign key bind the outreach_id of an errors row? Then a NOT-FOUND, which has no company to refer to, cannot
-- have one. Asked each time, because the table's owner may drop the constraint.
CREATE OR REPLACE FUNCTION outreach.ct_errors_are_bound() RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT c.oid FROM pg_catalog.pg_constraint AS c
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = ANY (c.conkey)
        WHERE c.conrelid = 'outreach.company_target_errors'::regclass AND c.contype = 'f' AND a.attname = 'outreach_id'
            AND coalesce((to_jsonb(c) ->> 'conenforced')::boolean, true)  -- from PostgreSQL 18 on
    )
$$;
