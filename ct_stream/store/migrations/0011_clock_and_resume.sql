-- A clock of Postgres that was set back (ADR-CT-IMO-023), and the time that a halt of ours cost (ADR-CT-IMO-019).

-- Do stamps of a control lie ahead? Then the clock was set back since. A second is allowed for clocks that are slewed.
CREATE FUNCTION outreach.ct_control_is_ahead(c outreach.ct_controls) RETURNS boolean LANGUAGE sql VOLATILE AS $$
    SELECT greatest(
        c.started_at, c.ok_begun_at, c.failed_at, c.proven_at, c.trouble_from,
        nullif(c.proven_since, 'infinity'), nullif(c.trouble_until, 'infinity')
    ) > clock_timestamp() + interval '1 second'
$$;

-- A row of the controls as far as it can be believed now. How long ago it is that a stamp from ahead was made nobody knows:
-- nothing is proven, what is broken is broken still, and all that was asked before now is asked anew.
CREATE FUNCTION outreach.ct_control_now(c outreach.ct_controls) RETURNS outreach.ct_controls
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

-- Take up to `wanted` MXLookup units: as before (0003), and a slot from before the clock was set back is free.
CREATE OR REPLACE FUNCTION outreach.ct_take_mx(
    wanted integer, per_second double precision, per_day bigint, max_delay_s double precision,
    OUT granted integer, OUT delay_s double precision, OUT refusal text, OUT retry_s double precision
) LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz;
    today date := outreach.ct_utc_day();
    already bigint;
    next_slot timestamptz;
    by_rate integer;
BEGIN
    INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-004', 'day', today) ON CONFLICT DO NOTHING;
    SELECT u.used INTO already FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-004' AND u.span = 'day' AND u.begins = today FOR UPDATE;
    INSERT INTO outreach.ct_rates (tool_id, tat) VALUES ('TOOL-004', clock_timestamp()) ON CONFLICT DO NOTHING;
    SELECT r.tat INTO next_slot FROM outreach.ct_rates AS r WHERE r.tool_id = 'TOOL-004' FOR UPDATE;
    moment := clock_timestamp();
    IF next_slot > moment + (max_delay_s + 1 / per_second + 1) * interval '1 second' THEN
        next_slot := moment;  -- further than any grant: the clock was set back
    END IF;
    next_slot := greatest(next_slot, moment);
    delay_s := extract(epoch FROM next_slot - moment);
    by_rate := greatest(0, 1 + floor((max_delay_s - delay_s) * per_second)::integer);
    IF delay_s > max_delay_s THEN
        by_rate := 0;
    END IF;
    granted := least(wanted::bigint, by_rate::bigint, greatest(per_day - already, 0))::integer;
    IF granted > 0 THEN
        UPDATE outreach.ct_rates SET tat = next_slot + granted / per_second * interval '1 second'
            WHERE tool_id = 'TOOL-004';
        UPDATE outreach.ct_usage SET used = used + granted
            WHERE tool_id = 'TOOL-004' AND span = 'day' AND begins = today;
    END IF;
    IF granted < wanted THEN
        IF already + granted >= per_day THEN
            refusal := 'cap';
            retry_s := extract(epoch FROM ((today + 1)::timestamp AT TIME ZONE 'UTC') - moment);
        ELSE
            refusal := 'rate';
            retry_s := delay_s + granted / per_second;
        END IF;
    END IF;
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
