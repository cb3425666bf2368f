-- A clock of Postgres that was set back (ADR-CT-IMO-023), and the time that a halt of ours cost (ADR-CT-IMO-019).

-- A row of the controls as far as it can be believed now. Stamps that lie ahead are of before the clock was set back, and
-- how long ago that was nobody knows: nothing is proven, what is broken is broken still, and all that was asked before
-- now is asked anew. A second is allowed for clocks that are slewed.
CREATE FUNCTION outreach.ct_control_now(c outreach.ct_controls) RETURNS outreach.ct_controls
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    now_at timestamptz := clock_timestamp();
    is_failing boolean := c.failed_at > c.ok_begun_at;
BEGIN
    IF greatest(
        c.started_at, c.ok_begun_at, c.failed_at, c.proven_at, c.trouble_from,
        nullif(c.proven_since, 'infinity'), nullif(c.trouble_until, 'infinity')
    ) <= now_at + interval '1 second' THEN
        RETURN c;
    END IF;
    c.started_at := '-infinity';
    c.lease_until := '-infinity';
    c.ok_begun_at := '-infinity';
    c.failed_at := CASE WHEN is_failing THEN now_at ELSE '-infinity' END;
    c.proven_since := 'infinity';
    c.proven_at := '-infinity';
    c.trouble_from := '-infinity';
    c.trouble_until := CASE WHEN is_failing THEN 'infinity' ELSE now_at END;
    RETURN c;
END $$;

-- For people (ct_ops): as before (0006), and the companies whose reply about us is void get the time back that they waited
-- for it: else they come back with too little to ask their second host, and fail by our fault.
CREATE OR REPLACE FUNCTION outreach.resume_guardrail(rail text, why text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
DECLARE
    before text;
    after text := CASE WHEN rail = 'tool:TOOL-005' THEN 'trial' ELSE 'open' END;
BEGIN
    IF coalesce(trim(why), '') = '' THEN
        RAISE EXCEPTION 'a reason is needed to resume %', rail;
    END IF;
    SELECT g.state INTO before FROM outreach.ct_guardrails AS g WHERE g.key = rail FOR UPDATE;
    IF before IS NULL OR before IN ('open', 'trial') THEN
        RETURN coalesce(before, 'open') || ' already';
    END IF;
    UPDATE outreach.ct_guardrails SET state = after, reason = why, since = clock_timestamp(), next_try_at = NULL,
        tries = 0, changed_by = session_user WHERE key = rail;
    INSERT INTO outreach.ct_guardrail_log (key, state, reason) VALUES (rail, after, why);
    UPDATE outreach.ct_refusals SET void = true WHERE NOT void
        AND (rail = 'tool:TOOL-005' OR provider = substring(rail FROM '^provider:(.*)$'));
    UPDATE outreach.ct_passes SET pending = NULL, spent_ms = 0 WHERE pending IS NOT NULL
        AND (rail = 'tool:TOOL-005' OR waits_on = rail);
    IF after = 'trial' THEN
        PERFORM outreach.ct_wake(rail, 1, clock_timestamp());
    ELSE
        UPDATE outreach.ct_passes SET not_before = clock_timestamp() WHERE waits_on = rail AND state = 'waiting';
    END IF;
    RETURN before || ' -> ' || after;
END $$;
