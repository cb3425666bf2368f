-- The triggers; functions/guards.sql and functions/alerts.sql say what they do. They are replaced by each version that
-- has different functions or triggers.

-- ---------------------------------------------------------------- final means final

CREATE OR REPLACE TRIGGER ct_final BEFORE INSERT OR UPDATE OR DELETE ON outreach.ct_outcomes
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_outcome();
CREATE OR REPLACE TRIGGER ct_final_truncate BEFORE TRUNCATE ON outreach.ct_outcomes
    FOR EACH STATEMENT EXECUTE FUNCTION outreach.ct_guard_outcome();
CREATE OR REPLACE TRIGGER ct_final BEFORE UPDATE OR DELETE ON outreach.company_target
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_company_target();
CREATE OR REPLACE TRIGGER ct_final_truncate BEFORE TRUNCATE ON outreach.company_target
    FOR EACH STATEMENT EXECUTE FUNCTION outreach.ct_guard_company_target();
CREATE OR REPLACE TRIGGER ct_final BEFORE UPDATE OR DELETE ON outreach.company_target_errors
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_errors();
CREATE OR REPLACE TRIGGER ct_final_truncate BEFORE TRUNCATE ON outreach.company_target_errors
    FOR EACH STATEMENT EXECUTE FUNCTION outreach.ct_guard_errors();
CREATE OR REPLACE TRIGGER ct_final BEFORE UPDATE OR DELETE ON outreach.ct_tier2_attempts
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_attempt();
CREATE OR REPLACE TRIGGER ct_final_truncate BEFORE TRUNCATE ON outreach.ct_tier2_attempts
    FOR EACH STATEMENT EXECUTE FUNCTION outreach.ct_guard_attempt();

CREATE OR REPLACE TRIGGER ct_guard BEFORE INSERT OR UPDATE ON outreach.ct_workers
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_worker();
CREATE OR REPLACE TRIGGER ct_given BEFORE INSERT ON outreach.ct_unwritten
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_given();
CREATE OR REPLACE TRIGGER ct_given BEFORE INSERT ON outreach.ct_refusals
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_given();
CREATE OR REPLACE TRIGGER ct_given BEFORE INSERT ON outreach.ct_watchdog_exits
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_given();
-- AFTER: at the end of the statement, whose parts may be written in any order.
CREATE OR REPLACE TRIGGER ct_guard AFTER INSERT OR UPDATE ON outreach.ct_unwritten
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_new_row('ct_unwritten');
CREATE OR REPLACE TRIGGER ct_guard AFTER INSERT OR UPDATE ON outreach.company_target
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_new_row('company_target');
CREATE OR REPLACE TRIGGER ct_guard AFTER INSERT OR UPDATE ON outreach.company_target_errors
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_new_row('company_target_errors');
CREATE OR REPLACE TRIGGER ct_guard BEFORE INSERT OR UPDATE ON outreach.ct_usage
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_usage();

-- And once more at the end: triggers of others that come after ct_final, by their names, may change a row that it let pass.
CREATE OR REPLACE TRIGGER ct_final_after AFTER UPDATE ON outreach.company_target
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_company_target();
CREATE OR REPLACE TRIGGER ct_final_after AFTER UPDATE ON outreach.company_target_errors
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_guard_errors();

-- A replication apply may not change or remove anything either.
ALTER TABLE outreach.ct_outcomes ENABLE ALWAYS TRIGGER ct_final;
ALTER TABLE outreach.ct_outcomes ENABLE ALWAYS TRIGGER ct_final_truncate;
ALTER TABLE outreach.company_target ENABLE ALWAYS TRIGGER ct_final;
ALTER TABLE outreach.company_target ENABLE ALWAYS TRIGGER ct_final_truncate;
ALTER TABLE outreach.company_target ENABLE ALWAYS TRIGGER ct_final_after;
ALTER TABLE outreach.company_target_errors ENABLE ALWAYS TRIGGER ct_final;
ALTER TABLE outreach.company_target_errors ENABLE ALWAYS TRIGGER ct_final_after;
ALTER TABLE outreach.company_target_errors ENABLE ALWAYS TRIGGER ct_final_truncate;
ALTER TABLE outreach.ct_tier2_attempts ENABLE ALWAYS TRIGGER ct_final;
ALTER TABLE outreach.ct_tier2_attempts ENABLE ALWAYS TRIGGER ct_final_truncate;

-- Nor does a login for which somebody has set session_replication_role write what it likes.
ALTER TABLE outreach.ct_unwritten ENABLE ALWAYS TRIGGER ct_guard;
ALTER TABLE outreach.company_target ENABLE ALWAYS TRIGGER ct_guard;
ALTER TABLE outreach.company_target_errors ENABLE ALWAYS TRIGGER ct_guard;
ALTER TABLE outreach.ct_usage ENABLE ALWAYS TRIGGER ct_guard;
ALTER TABLE outreach.ct_unwritten ENABLE ALWAYS TRIGGER ct_given;
ALTER TABLE outreach.ct_refusals ENABLE ALWAYS TRIGGER ct_given;
ALTER TABLE outreach.ct_watchdog_exits ENABLE ALWAYS TRIGGER ct_given;

-- A partition has the triggers of its table that fire for each row, and none that fires for a statement.
DO $$
DECLARE
    part record;
BEGIN
    FOR part IN
        SELECT w.tgfoid::regproc AS guard, q.oid::regclass AS name
        FROM pg_trigger AS w CROSS JOIN LATERAL pg_partition_tree(w.tgrelid) AS b JOIN pg_class AS q ON q.oid = b.relid
        WHERE w.tgrelid IN ('outreach.company_target'::regclass, 'outreach.company_target_errors'::regclass)
            AND w.tgname = 'ct_final_truncate' AND b.level > 0 AND q.relkind IN ('r', 'p')
    LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER ct_final_truncate BEFORE TRUNCATE ON %s '
            'FOR EACH STATEMENT EXECUTE FUNCTION %s()', part.name, part.guard);
        EXECUTE format('ALTER TABLE ONLY %s ENABLE ALWAYS TRIGGER ct_final_truncate', part.name);
    END LOOP;
END $$;

-- ---------------------------------------------------------------- alerts

CREATE OR REPLACE TRIGGER ct_alert AFTER INSERT ON outreach.ct_guardrail_log
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_alert_guardrail();
-- A first proof is not a recovery: at the beginning both moments are -infinity, and neither is greater.
CREATE OR REPLACE TRIGGER ct_alert AFTER UPDATE ON outreach.ct_controls FOR EACH ROW
    WHEN (NEW.kind IN ('dns', 'smtp')  -- the others are what a machine may lack
        AND (OLD.failed_at > OLD.ok_begun_at) IS DISTINCT FROM (NEW.failed_at > NEW.ok_begun_at))
    EXECUTE FUNCTION outreach.ct_alert_control();
CREATE OR REPLACE TRIGGER ct_alert AFTER UPDATE ON outreach.ct_passes FOR EACH ROW
    WHEN (OLD.state <> 'stuck' AND NEW.state = 'stuck')
    EXECUTE FUNCTION outreach.ct_alert_stuck();
CREATE OR REPLACE TRIGGER ct_alert AFTER INSERT ON outreach.ct_unwritten FOR EACH ROW
    WHEN (NEW.its_table = 'company_target') EXECUTE FUNCTION outreach.ct_alert_conflict();
