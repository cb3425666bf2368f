-- The outbox: who publishes a recorded outcome.

-- May an outcome be claimed for publishing? When nobody's claim runs. One that would run for longer than claims do is
-- from before the clock was set back; a second is allowed for clocks that are slewed.
CREATE OR REPLACE FUNCTION outreach.ct_may_claim(publish_until timestamptz, claim_s double precision) RETURNS boolean
LANGUAGE sql VOLATILE AS $$
    SELECT publish_until < clock_timestamp() OR publish_until > clock_timestamp() + (claim_s + 1) * interval '1 second'
$$;
