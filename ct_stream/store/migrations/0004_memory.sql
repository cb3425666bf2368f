-- What a domain answered to one company, for the next ones (ADR-CT-IMO-014). One row a domain and version of the rules.

CREATE TABLE outreach.ct_memory (
    domain text NOT NULL,
    rules_version text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('PASS', 'FAIL')),
    answers jsonb NOT NULL,           -- the exchanges of the pass from MX on
    answered_at timestamptz NOT NULL, -- the oldest of them but the first
    mx_at timestamptz NOT NULL,       -- the first of them, the MX hosts
    PRIMARY KEY (domain, rules_version)
);
CREATE INDEX ct_memory_answered_at_idx ON outreach.ct_memory (answered_at);

-- Who of a domain waits for something else than the domain itself?
CREATE INDEX ct_passes_ahead_idx ON outreach.ct_passes (domain) WHERE state = 'waiting' AND reason <> 'domain_busy';

-- Remove what nothing needs any more: domains whose last talk is no evidence now, refusals of older days, memories that
-- nobody may use.
CREATE OR REPLACE FUNCTION outreach.ct_tidy() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
    DELETE FROM outreach.ct_domains WHERE lease_owner IS NULL AND free_at < clock_timestamp() - interval '24 hours';
    DELETE FROM outreach.ct_refusals WHERE at < clock_timestamp() - interval '7 days';
    DELETE FROM outreach.ct_memory WHERE answered_at < clock_timestamp() - interval '168 hours';
$$;
