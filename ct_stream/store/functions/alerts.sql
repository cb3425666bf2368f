-- Alerts for people, each sent once: see ct_alerts.

-- Write an alert; ct_tidy removes it after a week. Nothing else happens here: it is a part of every transaction that
-- halts something.
CREATE OR REPLACE FUNCTION outreach.ct_alert(what text, its_rail text, company uuid, its_state text, why text)
RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO outreach.ct_alerts (event, rail, outreach_id, state, reason)
        VALUES (what, its_rail, company, its_state, left(why, 1000))
$$;

-- A guardrail changed: write an alert, except for a pause and its end, which need no person.
CREATE OR REPLACE FUNCTION outreach.ct_alert_guardrail() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before text := (
        SELECT l.state FROM outreach.ct_guardrail_log AS l WHERE l.key = NEW.key AND l.log_id < NEW.log_id
        ORDER BY l.log_id DESC LIMIT 1
    );
BEGIN
    IF NEW.state <> 'paused' AND NOT (NEW.state = 'open' AND before = 'paused') THEN
        PERFORM outreach.ct_alert('guardrail', NEW.key, NULL::uuid, NEW.state, NEW.reason);
    END IF;
    RETURN NULL;
END $$;

-- The own way of a worker run broke, or works again: the alert names the run and its egress.
CREATE OR REPLACE FUNCTION outreach.ct_alert_control() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_failing boolean := NEW.failed_at > NEW.ok_begun_at;
BEGIN
    INSERT INTO outreach.ct_alerts (event, rail, run, egress, state, reason) VALUES (
        'control', 'control:' || NEW.kind, NEW.worker,
        (SELECT w.egress FROM outreach.ct_workers AS w WHERE w.worker = NEW.worker),
        CASE WHEN is_failing THEN 'failing' ELSE 'working' END,
        left(CASE WHEN is_failing THEN NEW.failed_detail ELSE NEW.ok_detail END, 1000)
    );
    RETURN NULL;
END $$;

-- A company is stuck: a person has to look.
CREATE OR REPLACE FUNCTION outreach.ct_alert_stuck() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM outreach.ct_alert('stuck', NULL::text, NEW.outreach_id, 'stuck', NEW.detail);
    RETURN NULL;
END $$;

-- A row of company_target was final before its company was decided, and was left as it is.
CREATE OR REPLACE FUNCTION outreach.ct_alert_conflict() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM outreach.ct_alert('conflict', NULL::text, NEW.outreach_id, 'kept',
        'its row was final before the gate decided the company, and was left as it is; the outcome is in the ledger');
    RETURN NULL;
END $$;

-- Take alerts that nobody has taken yet, oldest first, so that only one worker sends each of them.
CREATE OR REPLACE FUNCTION outreach.ct_take_alerts(worker text, many integer) RETURNS SETOF outreach.ct_alerts
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    UPDATE outreach.ct_alerts AS a SET taken_by = worker, taken_at = clock_timestamp()
    WHERE a.alert_id = ANY (ARRAY(
        SELECT o.alert_id FROM outreach.ct_alerts AS o WHERE o.taken_at IS NULL
        ORDER BY o.alert_id LIMIT many FOR UPDATE SKIP LOCKED
    ))
    RETURNING a.*
$$;
