-- Who may do what. Runs at each migrate, because the spine may have been created since the last time.

GRANT USAGE ON SCHEMA outreach TO ct_gate, ct_ops, ct_reader;
-- Functions that run as ct_owner look names up in this schema.
REVOKE CREATE ON SCHEMA outreach FROM PUBLIC, ct_gate, ct_ops, ct_reader;

-- The owner owns the gate's tables, and reads none of the users': whoever owns a table decides what runs when it is read
-- (expressions of an index, of statistics). It notes migrations in tables that it does not own, so that it cannot put a
-- trigger there that an administrator would run.
GRANT SELECT, INSERT ON outreach.ct_migrations, outreach.ct_functions TO ct_owner;
GRANT DELETE ON outreach.ct_functions TO ct_owner;  -- migrate --again

-- A table that is made gets the default privileges of whoever migrates, which may name other roles or everybody. Others may
-- read the gate's tables, as their owner likes, but for the tokens of paid attempts: who knows one answers the attempt.
DO $$
DECLARE
    wide record;
BEGIN
    FOR wide IN
        SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE ' ELSE '' END || c.oid::regclass AS what,
            a.privilege_type || CASE WHEN a.privilege_type = 'SELECT' AND r.its_column IS NOT NULL THEN ' (token)' ELSE '' END
                AS its_right,
            CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS who
        FROM pg_class AS c
        CROSS JOIN LATERAL (
            SELECT c.relacl AS acl, NULL::name AS its_column
            UNION ALL
            SELECT t.attacl, t.attname FROM pg_attribute AS t WHERE t.attrelid = c.oid
        ) AS r
        CROSS JOIN LATERAL aclexplode(r.acl) AS a
        WHERE c.relnamespace = 'outreach'::regnamespace
            AND (c.relowner = 'ct_owner'::regrole OR c.relname ~ '^ct_(migrations|functions)(_ordinal_seq)?$')
            AND a.grantee NOT IN (c.relowner, 'ct_owner'::regrole)
            AND CASE
                WHEN c.relkind = 'S' THEN true
                WHEN a.privilege_type = 'SELECT' THEN c.relname = 'ct_tier2_attempts' AND coalesce(r.its_column, 'token') = 'token'
                ELSE true
            END
    LOOP
        EXECUTE format('REVOKE %s ON %s FROM %s CASCADE', wide.its_right, wide.what, wide.who);
    END LOOP;
END $$;

-- The gate inserts outcomes, moves the publish claim and keeps waits. It cannot delete rows by itself.
-- What it inserts is named column by column: numbers, times and sources are the database's own (see ct_guard_given).
GRANT SELECT ON outreach.ct_outcomes, outreach.ct_unwritten, outreach.ct_watchdog_exits, outreach.ct_refusals TO ct_gate;
GRANT INSERT (outreach_id, outcome, failure_code, reason, domain, rules_version, transcript, decided_at, duration_ms,
    event_topic, event_partition, event_offset, topic, key, value, headers, publish_until, attempt)
    ON outreach.ct_outcomes TO ct_gate;
GRANT UPDATE (publish_until, published_at) ON outreach.ct_outcomes TO ct_gate;
GRANT INSERT (outreach_id, its_table) ON outreach.ct_unwritten TO ct_gate;
GRANT INSERT (places, reason, worker, worker_version) ON outreach.ct_watchdog_exits TO ct_gate;
GRANT INSERT (provider, domain, kind, host, reason, is_own, address, network, worker, egress, is_sender) ON outreach.ct_refusals TO ct_gate;
-- Of the runbook's tables it writes the columns that it has something to say of: a foreign key on another one would carry
-- a change into tables on which it has no right. Others may grant it a column of theirs, for a trigger that writes there;
-- that is kept. A right to the whole table is not, nor one to delete rows or to add a trigger.
GRANT SELECT ON outreach.company_target, outreach.company_target_errors TO ct_gate;
DO $$
DECLARE
    wide record;
    granted record;
BEGIN
    FOR wide IN
        SELECT c.oid::regclass AS its_table, a.privilege_type FROM pg_class AS c CROSS JOIN LATERAL aclexplode(c.relacl) AS a
        WHERE c.oid IN ('outreach.company_target'::regclass, 'outreach.company_target_errors'::regclass)
            AND a.grantee = 'ct_gate'::regrole AND a.privilege_type <> 'SELECT'
    LOOP
        -- Takes the column's rights away as well.
        SELECT string_agg(format('GRANT %s (%I) ON %s TO ct_gate', wide.privilege_type, t.attname, wide.its_table), '; ')
            AS again INTO granted
            FROM pg_attribute AS t CROSS JOIN LATERAL aclexplode(t.attacl) AS a
            WHERE t.attrelid = wide.its_table AND NOT t.attisdropped AND a.grantee = 'ct_gate'::regrole
                AND a.privilege_type = wide.privilege_type;
        EXECUTE format('REVOKE %s ON %s FROM ct_gate', wide.privilege_type, wide.its_table);
        EXECUTE coalesce(granted.again, 'SELECT');
    END LOOP;
END $$;
-- What everybody may do, the gate and people may too: a trigger's condition runs as whoever writes, and a foreign key's casts
-- as the owner of the table that it names.
REVOKE TRIGGER, REFERENCES ON outreach.company_target, outreach.company_target_errors FROM PUBLIC, ct_ops, ct_gate;
GRANT INSERT (outreach_id, email_method, method_type, confidence_score, is_catchall, execution_status, imo_completed_at,
    updated_at) ON outreach.company_target TO ct_gate;
GRANT UPDATE (email_method, method_type, confidence_score, is_catchall, execution_status, imo_completed_at, updated_at)
    ON outreach.company_target TO ct_gate;
GRANT INSERT (outreach_id, pipeline_stage, failure_code, blocking_reason, severity, imo_stage, retry_allowed, created_at,
    raw_input) ON outreach.company_target_errors TO ct_gate;
-- A wait stays its company's: it could be given to a decided company, and forgotten with that one.
GRANT SELECT, INSERT ON outreach.ct_passes TO ct_gate;
GRANT UPDATE (state, domain, reason, detail, waits_on, not_before, since, parked_at, answers, pending, spent_ms, asked_at,
    failed_at, event_topic, event_partition, event_offset, event_at, correlation_id, traceparent, correlation_header,
    looks, met_by, met_at, first_at, refused_at, exceptions, traceback, worker_version, lease_owner, lease_until) ON outreach.ct_passes TO ct_gate;
GRANT SELECT, INSERT, UPDATE ON outreach.ct_rates, outreach.ct_domains, outreach.ct_memory, outreach.ct_workers
    TO ct_gate;
-- ct_take_tier2 notes that a budget refused a call; people are alerted once.
GRANT SELECT ON outreach.ct_usage TO ct_gate;
GRANT INSERT (tool_id, span, begins, used, usd) ON outreach.ct_usage TO ct_gate;
GRANT UPDATE (used, usd) ON outreach.ct_usage TO ct_gate;
GRANT SELECT, INSERT, UPDATE ON outreach.ct_controls TO ct_gate;
-- The users' own tables may number their rows by a sequence of their own (serial).
DO $$
DECLARE
    serial regclass;
BEGIN
    FOR serial IN
        SELECT d.objid::regclass FROM pg_depend AS d JOIN pg_class AS c ON c.oid = d.objid
        WHERE d.refobjid IN ('outreach.company_target'::regclass, 'outreach.company_target_errors'::regclass)
            AND d.deptype = 'a' AND d.classid = 'pg_class'::regclass AND c.relkind = 'S'
    LOOP
        EXECUTE format('GRANT USAGE ON SEQUENCE %s TO ct_gate', serial);
    END LOOP;
END $$;
GRANT SELECT ON outreach.ct_epoch, outreach.ct_guardrails, outreach.ct_guardrail_log, outreach.ct_held,
    outreach.ct_migrations, outreach.ct_functions, outreach.ct_toolboxes TO ct_gate;
-- Only the next try: states change only through functions, which keep a log.
GRANT UPDATE (tries, next_try_at) ON outreach.ct_guardrails TO ct_gate;
-- Paid attempts change only through two functions, so that the gate can neither invent one nor take one back. Who knows a
-- token has the attempt: it is its caller's alone.
GRANT SELECT (outreach_id, provider, address, usd, reserved_at, answer_due, status, detail, answered_at)
    ON outreach.ct_tier2_attempts TO ct_gate, ct_ops;

-- People may read everything of the gate, and call the audited functions.
GRANT SELECT ON outreach.ct_outcomes, outreach.company_target, outreach.company_target_errors, outreach.ct_passes,
    outreach.ct_usage, outreach.ct_rates, outreach.ct_domains, outreach.ct_refusals, outreach.ct_controls,
    outreach.ct_epoch, outreach.ct_guardrails, outreach.ct_guardrail_log, outreach.ct_held, outreach.ct_migrations,
    outreach.ct_functions, outreach.ct_memory, outreach.ct_alerts,
    outreach.ct_watchdog_exits, outreach.ct_workers, outreach.ct_toolboxes, outreach.ct_unwritten,
    outreach.ct_adoption TO ct_ops;

-- Functions: only the roles named here may call them. Each of our functions is in one of these lists, and a
-- function that is not ours is never touched, whatever its name. No right is taken away from the gate itself, because a worker of the previous
-- version may still call a function that this version does not name.
DO $$
DECLARE
    of_gate CONSTANT name[] := ARRAY[
        'ct_utc_day', 'ct_lock_rate', 'ct_take_mx', 'ct_free_in', 'ct_note_talk', 'ct_begin_probes', 'ct_enter_provider',
        'ct_go_on', 'ct_end_probes',
        'ct_may_claim', 'ct_errors_are_bound',
        'ct_wake', 'ct_wake_one', 'ct_wake_proven', 'ct_woken_at_once', 'ct_wake_sleepers', 'ct_wake_capped',
        'ct_forget_passes',
        'ct_recall', 'ct_tidy',
        'ct_rail', 'ct_egress_of', 'ct_network_of', 'ct_egresses', 'ct_is_asking', 'ct_close_everywhere', 'ct_begin_egress',
        'ct_control_is_ahead', 'ct_control_now', 'ct_proven_since', 'ct_is_running', 'ct_was_astray', 'ct_alive_s',
        'ct_count_try', 'ct_lock_try', 'ct_talks_wanted', 'ct_trial_talks', 'ct_set_guardrail', 'ct_end_trial',
        'ct_take_tier2', 'ct_answer_tier2',
        'ct_take_alerts', 'ct_recorded_here', 'ct_written_here', 'ct_nearest', 'ct_next_number', 'ct_opened_at'
    ];
    of_people CONSTANT name[] := ARRAY['resume_guardrail', 'ct_accept_toolbox'];
    -- Triggers of the runbook's tables call them as whoever changes a row there.
    of_everybody CONSTANT name[] := ARRAY[
        'ct_is_decided', 'ct_left_the_spine', 'ct_first_change', 'ct_acts_as_gate', 'ct_require_fresh'
    ];
    -- Triggers, and what other functions call.
    of_owner CONSTANT name[] := ARRAY[
        'ct_adopt', 'ct_alert', 'ct_alert_conflict', 'ct_alert_control', 'ct_alert_guardrail', 'ct_alert_stuck',
        'ct_guard_attempt', 'ct_end_adoption', 'ct_guard_company_target', 'ct_guard_errors', 'ct_guard_given', 'ct_guard_new_row',
        'ct_guard_outcome', 'ct_guard_usage', 'ct_guard_worker', 'ct_is_adopted', 'ct_require_person', 'ct_tier2_in_a_row'
    ];
    made record;
    caller record;
BEGIN
    FOR made IN
        SELECT p.oid::regprocedure AS signature, p.proname, p.proacl, p.proowner FROM pg_proc AS p
        WHERE p.pronamespace = 'outreach'::regnamespace
            AND p.proname = ANY (of_gate || of_people || of_everybody || of_owner)
            AND p.proowner IN ('ct_owner'::regrole, 'ct_reader'::regrole)  -- an overload of others stays theirs
    LOOP
        -- Not only from PUBLIC: a function that was there before the first migrate has kept whom its maker let call it.
        FOR caller IN
            SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS who
            FROM aclexplode(coalesce(made.proacl, acldefault('f', made.proowner))) AS a WHERE a.grantee <> made.proowner
        LOOP
            EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %s CASCADE', made.signature, caller.who);
        END LOOP;
        IF made.proname = ANY (of_gate) THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO ct_gate', made.signature);
        ELSIF made.proname = ANY (of_people) THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO ct_ops', made.signature);
        ELSIF made.proname = ANY (of_everybody) THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', made.signature);
        END IF;
    END LOOP;
END $$;

-- The spine, by column: never sovereign_id (law 4), and no copy of it that somebody keeps in the other tables.
DO $$
DECLARE
    its_table regclass;
    readable text;
BEGIN
    FOR its_table IN
        SELECT a.attrelid::regclass FROM pg_attribute AS a
        WHERE a.attrelid IN ('outreach.company_target'::regclass, 'outreach.company_target_errors'::regclass)
            AND a.attname = 'sovereign_id' AND NOT a.attisdropped
    LOOP
        SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO readable FROM pg_attribute AS a
            WHERE a.attrelid = its_table AND NOT a.attisdropped AND a.attname <> 'sovereign_id'
                AND (a.attnum > 0 OR a.attname = 'xmin');  -- triggers ask who wrote a row
        EXECUTE format('REVOKE SELECT ON %s FROM ct_gate, ct_ops', its_table);
        EXECUTE format('GRANT SELECT (%s) ON %s TO ct_gate, ct_ops', readable, its_table);
    END LOOP;
    IF to_regclass('outreach.outreach') IS NOT NULL THEN
        REVOKE ALL ON outreach.outreach FROM ct_gate, ct_ops;
        REVOKE TRIGGER, REFERENCES ON outreach.outreach FROM PUBLIC;  -- as above
        GRANT SELECT (outreach_id, domain) ON outreach.outreach TO ct_gate, ct_ops;
        -- Is a company gone? Asked when a row of a decided one is to go with it.
        GRANT SELECT (outreach_id) ON outreach.outreach TO ct_reader;
        -- How old is a company without an outcome? Only people ask.
        IF EXISTS (
            SELECT 1 FROM pg_attribute AS a
            WHERE a.attrelid = 'outreach.outreach'::regclass AND a.attname = 'created_at' AND NOT a.attisdropped
        ) THEN
            GRANT SELECT (created_at) ON outreach.outreach TO ct_ops;
        END IF;
    END IF;
END $$;

-- Who comes through a table needs no right on its partitions. Those of another owner are that one's to look after.
DO $$
DECLARE
    part regclass;
BEGIN
    FOR part IN
        SELECT q.oid FROM pg_class AS c CROSS JOIN LATERAL pg_partition_tree(c.oid) AS b JOIN pg_class AS q ON q.oid = b.relid
        WHERE c.relnamespace = 'outreach'::regnamespace AND b.level > 0
            AND c.relname IN ('outreach', 'company_target', 'company_target_errors')
            AND pg_has_role(q.relowner, 'USAGE')
    LOOP
        EXECUTE format('REVOKE ALL ON %s FROM ct_gate, ct_ops', part);
        EXECUTE format('REVOKE TRIGGER, REFERENCES ON %s FROM PUBLIC', part);
    END LOOP;
END $$;
