-- Who may do what. Run at each migrate: the spine may have been made since the last time.

GRANT USAGE ON SCHEMA outreach TO ct_gate, ct_ops;

-- The gate: inserts outcomes, moves the publish claim, keeps undecided passes; deletes nothing by itself.
GRANT SELECT, INSERT ON outreach.ct_outcomes TO ct_gate;
GRANT UPDATE (publish_until, published_at) ON outreach.ct_outcomes TO ct_gate;
GRANT SELECT, INSERT, UPDATE ON outreach.company_target TO ct_gate;
GRANT SELECT, INSERT ON outreach.company_target_errors, outreach.ct_watchdog_exits TO ct_gate;
GRANT SELECT, INSERT, UPDATE ON outreach.ct_passes, outreach.ct_usage, outreach.ct_rates, outreach.ct_domains,
    outreach.ct_refusals, outreach.ct_memory TO ct_gate;
GRANT SELECT, UPDATE ON outreach.ct_controls TO ct_gate;
GRANT SELECT ON outreach.ct_epoch, outreach.ct_guardrails, outreach.ct_guardrail_log, outreach.ct_held,
    outreach.ct_migrations, outreach.ct_functions TO ct_gate;
-- Only the next try: states change through the functions, which keep a log.
GRANT UPDATE (tries, next_try_at) ON outreach.ct_guardrails TO ct_gate;

-- People: read everything of the gate, and the audited functions.
GRANT SELECT ON outreach.ct_outcomes, outreach.company_target, outreach.company_target_errors, outreach.ct_passes,
    outreach.ct_usage, outreach.ct_rates, outreach.ct_domains, outreach.ct_refusals, outreach.ct_controls,
    outreach.ct_epoch, outreach.ct_guardrails, outreach.ct_guardrail_log, outreach.ct_held, outreach.ct_migrations,
    outreach.ct_functions,
    outreach.ct_memory, outreach.ct_alerts, outreach.ct_watchdog_exits TO ct_ops;

REVOKE ALL ON FUNCTION outreach.ct_forget_passes(uuid[]), outreach.ct_tidy(),
    outreach.ct_set_guardrail(text, text, text, timestamptz), outreach.ct_end_trial(),
    outreach.resume_guardrail(text, text), outreach.ct_take_alerts(text, integer),
    outreach.ct_alert(text, text, uuid, text, text), outreach.ct_alert_guardrail(), outreach.ct_alert_control(),
    outreach.ct_alert_stuck() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION outreach.ct_forget_passes(uuid[]), outreach.ct_tidy(),
    outreach.ct_set_guardrail(text, text, text, timestamptz), outreach.ct_end_trial(),
    outreach.ct_take_alerts(text, integer) TO ct_gate;
GRANT EXECUTE ON FUNCTION outreach.resume_guardrail(text, text) TO ct_ops;

-- Paid attempts: everybody reads them. They change through the two functions only, so that the gate can neither make
-- one up nor take one back.
GRANT SELECT ON outreach.ct_tier2_attempts TO ct_gate, ct_ops;
REVOKE ALL ON FUNCTION
    outreach.ct_take_tier2(uuid[], text[], uuid[], text, float8, bigint, float8, float8, float8, float8, integer),
    outreach.ct_answer_tier2(uuid, uuid, text, text, text, integer, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
    outreach.ct_take_tier2(uuid[], text[], uuid[], text, float8, bigint, float8, float8, float8, float8, integer),
    outreach.ct_answer_tier2(uuid, uuid, text, text, text, integer, integer) TO ct_gate;

-- The spine, by column: never sovereign_id (law 4).
DO $$
BEGIN
    IF to_regclass('outreach.outreach') IS NOT NULL THEN
        REVOKE ALL ON outreach.outreach FROM ct_gate, ct_ops;
        GRANT SELECT (outreach_id, domain) ON outreach.outreach TO ct_gate, ct_ops;
        -- How old is a company without an outcome? Only people ask.
        IF EXISTS (
            SELECT 1 FROM pg_attribute AS a
            WHERE a.attrelid = 'outreach.outreach'::regclass AND a.attname = 'created_at' AND NOT a.attisdropped
        ) THEN
            GRANT SELECT (created_at) ON outreach.outreach TO ct_ops;
        END IF;
    END IF;
END $$;
