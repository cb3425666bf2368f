-- The outbox: who publishes a recorded outcome.

-- May an outcome be claimed for publishing? Yes, if no claim is running. A claim that would run for longer than claims
-- do is from before the clock was set back; one second is allowed for slewed clocks.
CREATE OR REPLACE FUNCTION outreach.ct_may_claim(publish_until timestamptz, claim_s double precision) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
    SELECT publish_until IS NULL OR publish_until < clock_timestamp() OR publish_until > clock_timestamp() + (claim_s + 1) * interval '1 second'
$$;
