-- Final means final: no role, and no replication apply, changes or removes an outcome.

CREATE FUNCTION outreach.ct_guard_outcome() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'UPDATE' THEN
        RAISE EXCEPTION 'ct_outcomes is final: % is refused', lower(TG_OP) USING ERRCODE = 'restrict_violation';
    END IF;
    -- Only the publish claim may move, and published_at be set once.
    IF OLD.published_at IS NOT NULL
        OR (to_jsonb(NEW) - 'publish_until' - 'published_at') <> (to_jsonb(OLD) - 'publish_until' - 'published_at')
    THEN
        RAISE EXCEPTION 'outcome % is final', OLD.outreach_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION outreach.ct_guard_company_target() RETURNS trigger LANGUAGE plpgsql AS $$
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

CREATE FUNCTION outreach.ct_guard_errors() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- People may note a resolution; what failed, and why, stays.
    IF TG_OP <> 'UPDATE'
        OR (to_jsonb(NEW) - 'resolved_at' - 'resolution_note') <> (to_jsonb(OLD) - 'resolved_at' - 'resolution_note')
    THEN
        RAISE EXCEPTION 'company_target_errors is final: % is refused', lower(TG_OP)
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER ct_final BEFORE UPDATE OR DELETE ON outreach.ct_outcomes
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_outcome();
CREATE TRIGGER ct_final_truncate BEFORE TRUNCATE ON outreach.ct_outcomes
    FOR EACH STATEMENT EXECUTE FUNCTION outreach.ct_guard_outcome();
CREATE TRIGGER ct_final BEFORE UPDATE OR DELETE ON outreach.company_target
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_company_target();
CREATE TRIGGER ct_final_truncate BEFORE TRUNCATE ON outreach.company_target
    FOR EACH STATEMENT EXECUTE FUNCTION outreach.ct_guard_company_target();
CREATE TRIGGER ct_final BEFORE UPDATE OR DELETE ON outreach.company_target_errors
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_errors();
CREATE TRIGGER ct_final_truncate BEFORE TRUNCATE ON outreach.company_target_errors
    FOR EACH STATEMENT EXECUTE FUNCTION outreach.ct_guard_errors();

ALTER TABLE outreach.ct_outcomes ENABLE ALWAYS TRIGGER ct_final;
ALTER TABLE outreach.ct_outcomes ENABLE ALWAYS TRIGGER ct_final_truncate;
ALTER TABLE outreach.company_target ENABLE ALWAYS TRIGGER ct_final;
ALTER TABLE outreach.company_target ENABLE ALWAYS TRIGGER ct_final_truncate;
ALTER TABLE outreach.company_target_errors ENABLE ALWAYS TRIGGER ct_final;
ALTER TABLE outreach.company_target_errors ENABLE ALWAYS TRIGGER ct_final_truncate;
