-- An absence or silence is believed only inside an unbroken chain of proofs (ADR-CT-IMO-023).

ALTER TABLE outreach.ct_controls
    -- When the chain began that still holds; infinity: there is none. A failure since then breaks it.
    ADD COLUMN proven_since timestamptz NOT NULL DEFAULT 'infinity',
    ADD COLUMN proven_at timestamptz NOT NULL DEFAULT '-infinity';  -- the end of its last proof

-- The beginning of the chain after a proof begun at `begun`: the next one must begin within `most_s` of the last one's end.
CREATE FUNCTION outreach.ct_proven_since(chain outreach.ct_controls, begun timestamptz, most_s float8)
RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE
        WHEN begun <= chain.failed_at THEN chain.proven_since  -- a proof from before the failure mends nothing
        WHEN chain.failed_at < chain.proven_since AND begun <= chain.proven_at + most_s * interval '1 second'
            THEN chain.proven_since
        ELSE begun
    END
$$;
