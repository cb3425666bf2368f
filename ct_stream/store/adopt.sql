-- Adapt tables that existed before the gate: missing columns are added, and every row is kept. Runs before schema.sql,
-- which creates the tables that do not exist. ct_adopt turns their decisions into outcomes. No constraint is added:
-- others may have words of their own in execution_status, and go on writing them.

ALTER TABLE IF EXISTS outreach.company_target
    ADD COLUMN IF NOT EXISTS email_method text,
    ADD COLUMN IF NOT EXISTS method_type text,
    ADD COLUMN IF NOT EXISTS confidence_score numeric(5, 4),
    ADD COLUMN IF NOT EXISTS is_catchall boolean,
    ADD COLUMN IF NOT EXISTS execution_status text NOT NULL DEFAULT 'pending',
    ADD COLUMN IF NOT EXISTS imo_completed_at timestamptz,
    ADD COLUMN IF NOT EXISTS created_at timestamptz NOT NULL DEFAULT now(),
    ADD COLUMN IF NOT EXISTS updated_at timestamptz NOT NULL DEFAULT now();

ALTER TABLE IF EXISTS outreach.company_target_errors
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
