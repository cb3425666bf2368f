-- Our own way, which each worker run proves for itself: an absence or a silence counts only inside an unbroken chain of
-- proofs of the run that met it. If the clock of Postgres is set back, the chain is broken (ADR-CT-IMO-023, 033).

-- Are times of a control in the future? Then the clock was set back since. One second is allowed for slewed clocks.
CREATE OR REPLACE FUNCTION outreach.ct_control_is_ahead(c outreach.ct_controls) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT greatest(
        c.started_at, c.ok_begun_at, c.failed_at, c.proven_at, c.control_at, c.trouble_from,
        nullif(c.proven_since, 'infinity'), nullif(c.trouble_until, 'infinity')
    ) > clock_timestamp() + interval '1 second'
$$;

-- Return a row of ct_controls as far as it can be trusted now. Nobody knows how long ago a time in the future was
-- written. So nothing is proven, what is broken stays broken, and everything asked before now is asked again.
CREATE OR REPLACE FUNCTION outreach.ct_control_now(c outreach.ct_controls) RETURNS outreach.ct_controls
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    just_now timestamptz := clock_timestamp() - interval '1 millisecond';  -- a control that begins now proves more
    is_failing boolean := c.failed_at > c.ok_begun_at;
    was_proven boolean := c.control_at > '-infinity' OR c.trouble_from > '-infinity';
BEGIN
    IF NOT outreach.ct_control_is_ahead(c) THEN
        RETURN c;
    END IF;
    c.started_at := '-infinity';
    c.lease_until := '-infinity';
    c.ok_begun_at := '-infinity';
    c.failed_at := CASE WHEN is_failing THEN just_now ELSE '-infinity' END;
    c.proven_since := 'infinity';
    c.proven_at := '-infinity';
    c.control_at := '-infinity';
    c.earlier := '{}';
    -- A way that was never proven was never used: what begins at -infinity makes nothing void that was heard.
    c.trouble_from := CASE WHEN was_proven THEN 'epoch' ELSE '-infinity' END;
    c.trouble_until := CASE WHEN is_failing THEN 'infinity' ELSE clock_timestamp() END;
    RETURN c;
END $$;

-- Return where the chain begins after a proof that began at `begun`. Within a chain each proof begins at most `most_s`
-- after the end of the one before.
CREATE OR REPLACE FUNCTION outreach.ct_proven_since(chain outreach.ct_controls, begun timestamptz, most_s float8)
RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN begun <= chain.failed_at THEN chain.proven_since  -- a proof from before the failure proves nothing
        WHEN chain.failed_at < chain.proven_since AND begun <= chain.proven_at + most_s * interval '1 second'
            THEN chain.proven_since
        ELSE begun
    END
$$;

-- Is a worker run still there? One that said goodbye is not, nor one that was silent for `alive_s`.
CREATE OR REPLACE FUNCTION outreach.ct_is_running(its_worker text, alive_s float8) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT 1 FROM outreach.ct_workers AS w
        WHERE w.worker = its_worker AND w.ended_at IS NULL
            AND w.seen_at > clock_timestamp() - alive_s * interval '1 second'
    )
$$;

-- For so many seconds after its last sign a worker run counts as running (store/worker_record.py).
CREATE OR REPLACE FUNCTION outreach.ct_alive_s() RETURNS float8 LANGUAGE sql IMMUTABLE AS $$ SELECT 30.0::float8 $$;

-- Did one of these runs lose its way in this span? Whoever answers in the place of others says yes as well as no, so
-- nothing counts that a run heard between its last control and one that failed.
CREATE OR REPLACE FUNCTION outreach.ct_was_astray(runs text[], begins timestamptz, ends timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT 1 FROM outreach.ct_controls AS c
        -- What was never proven was never used.
        WHERE c.worker = ANY (runs) AND c.kind <> 'dns_tcp'  -- without that a long answer is not heard at all
            AND greatest(c.control_at, c.trouble_from) > '-infinity'
            AND (c.trouble_from > '-infinity' AND c.trouble_from <= ends AND begins < c.trouble_until
                -- Nobody asks the control any more that would have shown it.
                OR c.control_at < ends AND NOT outreach.ct_is_running(c.worker, outreach.ct_alive_s())
                OR c.earlier && tstzrange(begins, greatest(begins, ends), '[]'))
    )
$$;
