-- The tables of the gate, beside the spine (outreach.outreach), which belongs to upstream and is never made here.
-- An existing `outreach` schema is adopted: what is missing is added, rows are kept.

CREATE SCHEMA IF NOT EXISTS outreach;

-- ---------------------------------------------------------------- the runbook's tables

CREATE TABLE IF NOT EXISTS outreach.company_target (
    outreach_id uuid PRIMARY KEY,
    email_method text,
    method_type text,
    confidence_score numeric(5, 4),
    is_catchall boolean,
    execution_status text NOT NULL DEFAULT 'pending',
    imo_completed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE outreach.company_target
    ADD COLUMN IF NOT EXISTS email_method text,
    ADD COLUMN IF NOT EXISTS method_type text,
    ADD COLUMN IF NOT EXISTS confidence_score numeric(5, 4),
    ADD COLUMN IF NOT EXISTS is_catchall boolean,
    ADD COLUMN IF NOT EXISTS execution_status text NOT NULL DEFAULT 'pending',
    ADD COLUMN IF NOT EXISTS imo_completed_at timestamptz,
    ADD COLUMN IF NOT EXISTS created_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at timestamptz NOT NULL DEFAULT now();
-- An adopted table may have another primary key; the gate writes one row for each outreach_id.
CREATE UNIQUE INDEX IF NOT EXISTS company_target_outreach_id_key ON outreach.company_target (outreach_id);
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM pg_constraint AS c
        WHERE c.conrelid = 'outreach.company_target'::regclass AND c.conname = 'company_target_status_check'
    ) THEN
        -- Not validated: an adopted table may hold other words, and its rows are kept.
        ALTER TABLE outreach.company_target ADD CONSTRAINT company_target_status_check
            CHECK (execution_status IN ('pending', 'ready', 'failed', 'blocked')) NOT VALID;
    END IF;
END $$;
CREATE INDEX IF NOT EXISTS company_target_completed_idx ON outreach.company_target (imo_completed_at);

-- No foreign key: a NOT-FOUND has neither a spine row nor a company_target row.
CREATE TABLE IF NOT EXISTS outreach.company_target_errors (
    error_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    outreach_id uuid NOT NULL,
    pipeline_stage text,
    failure_code text NOT NULL,
    blocking_reason text,
    severity text,
    imo_stage text,
    retry_allowed boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    resolution_note text,
    raw_input jsonb,
    stack_trace text
);
ALTER TABLE outreach.company_target_errors
    ADD COLUMN IF NOT EXISTS pipeline_stage text,
    ADD COLUMN IF NOT EXISTS failure_code text,
    ADD COLUMN IF NOT EXISTS blocking_reason text,
    ADD COLUMN IF NOT EXISTS severity text,
    ADD COLUMN IF NOT EXISTS imo_stage text,
    ADD COLUMN IF NOT EXISTS retry_allowed boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS created_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS resolved_at timestamptz,
    ADD COLUMN IF NOT EXISTS resolution_note text,
    ADD COLUMN IF NOT EXISTS raw_input jsonb,
    ADD COLUMN IF NOT EXISTS stack_trace text;
CREATE INDEX IF NOT EXISTS company_target_errors_created_idx ON outreach.company_target_errors (created_at);
CREATE INDEX IF NOT EXISTS company_target_errors_outreach_id_idx ON outreach.company_target_errors (outreach_id);

-- ---------------------------------------------------------------- the ledger and outbox

-- One row for each database that was ever migrated: a restored or replaced database is told by it.
CREATE TABLE outreach.ct_epoch (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO outreach.ct_epoch DEFAULT VALUES;

-- The arbiter: the first row of an outreach_id is its outcome, for good. It carries the exact bytes to publish.
CREATE TABLE outreach.ct_outcomes (
    outreach_id uuid PRIMARY KEY,
    ordinal bigint GENERATED ALWAYS AS IDENTITY,
    outcome text NOT NULL CHECK (outcome IN ('PASS', 'FAIL')),
    source text NOT NULL DEFAULT 'gate' CHECK (source IN ('gate', 'adopted', 'override')),
    failure_code text CHECK ((failure_code IS NULL) = (outcome = 'PASS') OR source = 'adopted'),
    reason text,
    domain text,
    rules_version text,
    transcript jsonb,
    decided_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    duration_ms integer,
    event_topic text,
    event_partition integer,
    event_offset bigint,
    topic text,                       -- NULL: nothing to publish (adopted)
    key bytea,
    value bytea,
    headers jsonb,                    -- [[name, text or {"base64": ...}], ...] in order
    publish_until timestamptz,        -- the running claim's end
    published_at timestamptz
);
CREATE UNIQUE INDEX ct_outcomes_ordinal_idx ON outreach.ct_outcomes (ordinal);
CREATE INDEX ct_outcomes_unpublished_idx ON outreach.ct_outcomes (publish_until)
    WHERE published_at IS NULL AND topic IS NOT NULL;

-- ---------------------------------------------------------------- undecided companies

CREATE TABLE outreach.ct_passes (
    outreach_id uuid PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('waiting', 'stuck')),
    domain text,
    reason text NOT NULL,             -- gate/waits.py
    detail text NOT NULL,             -- one sentence for a person
    waits_on text,                    -- what ends the wait besides not_before, such as provider:bigmail.example
    not_before timestamptz NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    answers jsonb NOT NULL DEFAULT '[]',
    pending jsonb,                    -- an answer about us whose scope is not settled
    spent_ms integer NOT NULL DEFAULT 0,
    asked_at timestamptz,             -- when this pass first asked a server
    failed_at timestamptz,            -- when its last failed answer came: controls look forward from here
    event_topic text,
    event_partition integer,
    event_offset bigint,
    event_at timestamptz,             -- the record's timestamp
    correlation_id text,
    traceparent bytea,
    correlation_header bytea,
    looks integer NOT NULL DEFAULT 0,  -- how often nobody answered, and a control then proved our way
    exceptions integer NOT NULL DEFAULT 0,
    traceback text,
    worker_version text,
    lease_owner text,
    lease_until timestamptz
);
CREATE INDEX ct_passes_due_idx ON outreach.ct_passes (not_before) WHERE state = 'waiting';
CREATE INDEX ct_passes_waits_on_idx ON outreach.ct_passes (waits_on, not_before) WHERE state = 'waiting';

-- ---------------------------------------------------------------- limits, leases, controls, guardrails

CREATE TABLE outreach.ct_usage (
    tool_id text NOT NULL,
    span text NOT NULL CHECK (span IN ('day', 'month')),
    begins date NOT NULL,             -- UTC
    used bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (tool_id, span, begins)
);

CREATE TABLE outreach.ct_rates (
    tool_id text PRIMARY KEY,
    tat timestamptz NOT NULL          -- theoretical arrival time of the next call (GCRA)
);

CREATE TABLE outreach.ct_domains (
    domain text PRIMARY KEY,
    provider text NOT NULL,
    lease_owner text,
    lease_until timestamptz,
    free_at timestamptz NOT NULL,     -- the pause after the last session ends here
    talked_at timestamptz             -- a server of this domain last talked to us normally
);
CREATE INDEX ct_domains_provider_idx ON outreach.ct_domains (provider) WHERE lease_owner IS NOT NULL;
CREATE INDEX ct_domains_free_at_idx ON outreach.ct_domains (free_at);
CREATE INDEX ct_domains_talked_idx ON outreach.ct_domains (provider, talked_at DESC);

CREATE TABLE outreach.ct_controls (
    kind text PRIMARY KEY CHECK (kind IN ('dns', 'smtp')),
    started_at timestamptz NOT NULL DEFAULT '-infinity',
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    ok_begun_at timestamptz NOT NULL DEFAULT '-infinity',
    ok_detail text NOT NULL DEFAULT '',
    failed_at timestamptz NOT NULL DEFAULT '-infinity',
    failed_detail text NOT NULL DEFAULT '',
    trouble_from timestamptz NOT NULL DEFAULT '-infinity',   -- the last stretch in which our own way was broken
    trouble_until timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO outreach.ct_controls (kind) VALUES ('dns'), ('smtp');

-- key: 'tool:TOOL-005', 'provider:bigmail.example', 'spine'
CREATE TABLE outreach.ct_guardrails (
    key text PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('open', 'closed', 'halted')),
    reason text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_try_at timestamptz,          -- one company is tried then; NULL: a person resumes it
    tries integer NOT NULL DEFAULT 0,
    changed_by text NOT NULL DEFAULT session_user
);
CREATE TABLE outreach.ct_guardrail_log (
    log_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    key text NOT NULL,
    state text NOT NULL,
    reason text NOT NULL,
    by_role text NOT NULL DEFAULT session_user
);

-- Evidence of servers that refuse us, for the scopes domain, provider, address (24 hours are looked at).
CREATE TABLE outreach.ct_refusals (
    refusal_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    provider text NOT NULL,
    domain text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('refused', 'rate')),
    host text NOT NULL DEFAULT '',
    reason text NOT NULL DEFAULT '',
    void boolean NOT NULL DEFAULT false
);
CREATE INDEX ct_refusals_provider_idx ON outreach.ct_refusals (provider, at DESC);
CREATE INDEX ct_refusals_at_idx ON outreach.ct_refusals (at DESC);

-- ---------------------------------------------------------------- for people

CREATE VIEW outreach.ct_held AS
SELECT
    p.outreach_id,
    p.domain,
    p.since,
    p.state,
    p.reason,
    p.detail,
    CASE
        WHEN p.state = 'stuck' THEN 'a worker of another version tries it again'
        WHEN p.reason IN ('halted', 'spine_control') AND p.not_before = 'infinity'
            THEN 'a person: ct-stream guardrails resume ' || p.waits_on
        WHEN p.reason = 'provider_closed' THEN 'the provider talks normally again, or a person resumes it'
        WHEN p.reason = 'control' THEN 'a control that succeeds after ' || coalesce(p.failed_at::text, 'now')
        WHEN p.reason = 'spine_grace' THEN 'the spine row, or the end of the grace at ' || p.not_before
        WHEN p.not_before = 'infinity' THEN coalesce(p.waits_on, 'unknown')
        ELSE 'time: looked at again at ' || p.not_before
    END AS what_ends_it,
    p.not_before,
    p.waits_on,
    p.exceptions,
    p.traceback
FROM outreach.ct_passes AS p;
