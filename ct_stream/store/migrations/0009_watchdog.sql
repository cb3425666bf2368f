-- Exits by the watchdog (ADR-CT-IMO-022): each with the places that it may have hung at, so that three at one place stop
-- the restarts.

CREATE TABLE outreach.ct_watchdog_exits (
    exit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    places text[] NOT NULL,           -- such as 'spine.created[3] offset 1234'
    reason text NOT NULL,
    worker text NOT NULL,
    worker_version text NOT NULL
);
CREATE INDEX ct_watchdog_exits_at_idx ON outreach.ct_watchdog_exits (at);
