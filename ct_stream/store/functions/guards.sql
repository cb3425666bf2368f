-- Final means final: no role and no replication apply may change or remove an outcome. triggers.sql names the tables.

-- An outcome never changes. Only its publish claim may move, and published_at may be set once.
CREATE OR REPLACE FUNCTION outreach.ct_guard_outcome() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, outreach, pg_temp AS $$
BEGIN
    IF TG_OP <> 'UPDATE' THEN
        RAISE EXCEPTION 'ct_outcomes is final: % is refused', lower(TG_OP) USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.published_at IS NOT NULL
        OR (to_jsonb(NEW) - 'publish_until' - 'published_at') <> (to_jsonb(OLD) - 'publish_until' - 'published_at')
    THEN
        RAISE EXCEPTION 'outcome % is final', OLD.outreach_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

-- A decided company is final; a pending one may still be decided, or removed.
CREATE OR REPLACE FUNCTION outreach.ct_guard_company_target() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, outreach, pg_temp AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        RAISE EXCEPTION 'company_target is final: truncate is refused' USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.execution_status IN ('ready', 'failed', 'blocked') THEN
        RAISE EXCEPTION 'company_target % is final (%)', OLD.outreach_id, OLD.execution_status
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END $$;

-- The record of a failure never changes; people may only note how it was resolved.
CREATE OR REPLACE FUNCTION outreach.ct_guard_errors() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, outreach, pg_temp AS $$
BEGIN
    IF TG_OP <> 'UPDATE'
        OR (to_jsonb(NEW) - 'resolved_at' - 'resolution_note') <> (to_jsonb(OLD) - 'resolved_at' - 'resolution_note')
    THEN
        RAISE EXCEPTION 'company_target_errors is final: % is refused', lower(TG_OP)
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

-- There is one attempt: its answer is stored once, and no attempt is ever removed (ADR-CT-IMO-017).
CREATE OR REPLACE FUNCTION outreach.ct_guard_attempt() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, outreach, pg_temp AS $$
BEGIN
    IF TG_OP <> 'UPDATE' THEN
        RAISE EXCEPTION 'ct_tier2_attempts is final: % is refused', lower(TG_OP) USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.status IS NOT NULL
        OR (to_jsonb(NEW) - 'status' - 'detail' - 'answered_at') <> (to_jsonb(OLD) - 'status' - 'detail' - 'answered_at')
    THEN
        RAISE EXCEPTION 'the attempt of % is spent', OLD.outreach_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

-- What was paid is paid: calls and money of Tier-2 are only added to, and no count is below nothing.
CREATE OR REPLACE FUNCTION outreach.ct_guard_usage() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, outreach, pg_temp AS $$
BEGIN
    IF NEW.used < 0 OR NEW.usd < 0 OR NEW.usd = 'NaN' THEN
        RAISE EXCEPTION 'usage of % cannot be negative', NEW.tool_id USING ERRCODE = 'check_violation';
    END IF;
    IF TG_OP = 'UPDATE' AND (
        (NEW.tool_id, NEW.span, NEW.begins) IS DISTINCT FROM (OLD.tool_id, OLD.span, OLD.begins)
        OR OLD.tool_id = 'TOOL-019' AND (NEW.used < OLD.used OR NEW.usd < OLD.usd)
    ) THEN
        RAISE EXCEPTION 'usage of % is only added to', OLD.tool_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;
