-- Our own way: an absence or silence is believed only inside an unbroken chain of proofs, and a clock of Postgres that
-- was set back breaks it (ADR-CT-IMO-023).

-- Do stamps of a control lie ahead? Then the clock was set back since. A second is allowed for clocks that are slewed.
CREATE OR REPLACE FUNCTION outreach.ct_control_is_ahead(c outreach.ct_controls) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT greatest(
        c.started_at, c.ok_begun_at, c.failed_at, c.proven_at, c.trouble_from,
        nullif(c.proven_since, 'infinity'), nullif(c.trouble_until, 'infinity')
    ) > clock_timestamp() + interval '1 second'
$$;

-- A row of the controls as far as it can be believed now. Nobody knows how long ago a stamp from ahead was made:
-- nothing is proven, what is broken is still broken, and all that was asked before now is asked again.
CREATE OR REPLACE FUNCTION outreach.ct_control_now(c outreach.ct_controls) RETURNS outreach.ct_controls
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    just_now timestamptz := clock_timestamp() - interval '1 millisecond';  -- a control that begins now proves more
    is_failing boolean := c.failed_at > c.ok_begun_at;
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
    c.trouble_from := '-infinity';
    c.trouble_until := CASE WHEN is_failing THEN 'infinity' ELSE clock_timestamp() END;
    RETURN c;
END $$;

-- The beginning of the chain after a proof begun at `begun`: the next one must begin within `most_s` of the last one's
-- end.
CREATE OR REPLACE FUNCTION outreach.ct_proven_since(chain outreach.ct_controls, begun timestamptz, most_s float8)
RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN begun <= chain.failed_at THEN chain.proven_since  -- a proof from before the failure mends nothing
        WHEN chain.failed_at < chain.proven_since AND begun <= chain.proven_at + most_s * interval '1 second'
            THEN chain.proven_since
        ELSE begun
    END
$$;
