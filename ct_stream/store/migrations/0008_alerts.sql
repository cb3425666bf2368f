-- What people should hear of, once: written in the transaction of the change itself, whoever makes it (a worker, or a
-- person who resumes a guardrail), and taken by one worker.

CREATE TABLE outreach.ct_alerts (
    alert_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    event text NOT NULL CHECK (event IN ('guardrail', 'control', 'stuck')),
    rail text,                        -- guardrail: its key; control: control:dns, control:smtp
    outreach_id uuid,                 -- of a stuck company
    state text NOT NULL,
    reason text NOT NULL,
    taken_by text,
    taken_at timestamptz
);
CREATE INDEX ct_alerts_open_idx ON outreach.ct_alerts (alert_id) WHERE taken_at IS NULL;
CREATE INDEX ct_alerts_at_idx ON outreach.ct_alerts (at);
CREATE INDEX ct_guardrail_log_key_idx ON outreach.ct_guardrail_log (key, log_id);

-- Alerts are few; what is older than a week is of no use, whether somebody took it or not.
CREATE FUNCTION outreach.ct_alert(what text, its_rail text, company uuid, its_state text, why text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
BEGIN
    DELETE FROM outreach.ct_alerts AS a WHERE a.at < clock_timestamp() - interval '7 days';
    INSERT INTO outreach.ct_alerts (event, rail, outreach_id, state, reason)
        VALUES (what, its_rail, company, its_state, left(why, 1000));
END $$;

CREATE FUNCTION outreach.ct_alert_guardrail() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
DECLARE
    before text := (
        SELECT l.state FROM outreach.ct_guardrail_log AS l WHERE l.key = NEW.key AND l.log_id < NEW.log_id
        ORDER BY l.log_id DESC LIMIT 1
    );
BEGIN
    -- A pause of a minute, and its end, ask nothing of a person.
    IF NEW.state <> 'paused' AND NOT (NEW.state = 'open' AND before = 'paused') THEN
        PERFORM outreach.ct_alert('guardrail', NEW.key, NULL, NEW.state, NEW.reason);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION outreach.ct_alert_control() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
BEGIN
    IF NEW.failed_at > NEW.ok_begun_at THEN
        PERFORM outreach.ct_alert('control', 'control:' || NEW.kind, NULL, 'failing', NEW.failed_detail);
    ELSE
        PERFORM outreach.ct_alert('control', 'control:' || NEW.kind, NULL, 'working', NEW.ok_detail);
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION outreach.ct_alert_stuck() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
BEGIN
    PERFORM outreach.ct_alert('stuck', NULL, NEW.outreach_id, 'stuck', NEW.detail);
    RETURN NULL;
END $$;

CREATE TRIGGER ct_alert AFTER INSERT ON outreach.ct_guardrail_log
    FOR EACH ROW EXECUTE FUNCTION outreach.ct_alert_guardrail();
-- A first proof is no recovery: at the beginning neither has happened, and neither is the greater.
CREATE TRIGGER ct_alert AFTER UPDATE ON outreach.ct_controls FOR EACH ROW
    WHEN ((OLD.failed_at > OLD.ok_begun_at) IS DISTINCT FROM (NEW.failed_at > NEW.ok_begun_at))
    EXECUTE FUNCTION outreach.ct_alert_control();
CREATE TRIGGER ct_alert AFTER UPDATE ON outreach.ct_passes FOR EACH ROW
    WHEN (OLD.state <> 'stuck' AND NEW.state = 'stuck')
    EXECUTE FUNCTION outreach.ct_alert_stuck();

-- Take what nobody has taken yet, oldest first: one worker alerts for one change.
CREATE FUNCTION outreach.ct_take_alerts(worker text, many integer) RETURNS SETOF outreach.ct_alerts
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
    UPDATE outreach.ct_alerts AS a SET taken_by = worker, taken_at = clock_timestamp()
    WHERE a.alert_id IN (
        SELECT o.alert_id FROM outreach.ct_alerts AS o WHERE o.taken_at IS NULL
        ORDER BY o.alert_id LIMIT many FOR UPDATE SKIP LOCKED
    )
    RETURNING a.*
$$;
