-- Undecided companies: what wakes them, and when their waits are removed.

-- Wake `many` companies that wait on `what`: first those whose time ends first, then those that have waited longest for
-- nothing else. In the order of the index, and from an array that is made once: no plan reads all who wait, however old
-- the statistics are that it was made from.
CREATE OR REPLACE FUNCTION outreach.ct_wake(what text, many integer, at_time timestamptz) RETURNS void LANGUAGE sql AS $$
    UPDATE outreach.ct_passes AS p SET not_before = at_time
    WHERE p.outreach_id = ANY (ARRAY(
        SELECT q.outreach_id FROM outreach.ct_passes AS q
        WHERE q.waits_on = what AND q.state = 'waiting' AND q.not_before > at_time
        ORDER BY q.not_before, q.since LIMIT many
        FOR UPDATE SKIP LOCKED
    ))
$$;

-- Wake one company to try a provider that is not open: the one that has waited longest since it was last tried, or turned
-- away. If it
-- were the one that has waited longest, it would be the same one each time; and where a network is closed, the server of
-- that company may be the only one there that refuses us.
CREATE OR REPLACE FUNCTION outreach.ct_wake_one(what text, at_time timestamptz) RETURNS void LANGUAGE sql AS $$
    UPDATE outreach.ct_passes AS p SET not_before = at_time
    WHERE p.outreach_id = ANY (ARRAY(
        SELECT q.outreach_id FROM outreach.ct_passes AS q
        WHERE q.waits_on = what AND q.waits_on LIKE 'provider:%' AND q.state = 'waiting' AND q.not_before > at_time
        ORDER BY q.parked_at LIMIT 1
        FOR UPDATE SKIP LOCKED
    ))
$$;

-- How many companies are woken in one statement? Millions may wait for a provider or for midnight. ct_wake_sleepers wakes
-- the rest, so many every few seconds.
CREATE OR REPLACE FUNCTION outreach.ct_woken_at_once() RETURNS integer LANGUAGE sql IMMUTABLE AS $$ SELECT 1000 $$;

-- Wake companies that wait for a control of this kind by this worker run, and whose last failed answer came before
-- `proven_at`. If that is in the future, the clock was set back since. The next proof, or ct_wake_sleepers, wakes the rest.
CREATE OR REPLACE FUNCTION outreach.ct_wake_proven(its_kind text, its_worker text, proven_at timestamptz) RETURNS void
LANGUAGE sql AS $$
    UPDATE outreach.ct_passes AS p SET not_before = clock_timestamp()
    WHERE p.outreach_id = ANY (ARRAY(
        SELECT q.outreach_id FROM outreach.ct_passes AS q
        WHERE q.waits_on = 'control:' || its_kind || ':' || its_worker AND q.state = 'waiting' AND q.not_before > statement_timestamp()
            AND (q.failed_at < proven_at OR q.failed_at > clock_timestamp())
        ORDER BY q.not_before, q.since LIMIT outreach.ct_woken_at_once()
        FOR UPDATE SKIP LOCKED
    ))
$$;

-- Wake companies that a crash or a race left waiting: the safety net for the wakes that come with each change. Workers
-- run it every few seconds. `alive_s`: after so long without a sign a worker run is gone, and proves nothing any more.
CREATE OR REPLACE FUNCTION outreach.ct_wake_sleepers(per_provider integer, alive_s float8) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    asleep record;
    busy integer;
    run text;
BEGIN
    FOR asleep IN
        -- From one value of the index to the next: a DISTINCT would read each company that waits.
        WITH RECURSIVE waited AS (
            SELECT min(p.waits_on) AS what FROM outreach.ct_passes AS p WHERE p.state = 'waiting'
            UNION ALL
            SELECT (
                SELECT min(p.waits_on) FROM outreach.ct_passes AS p
                WHERE p.state = 'waiting' AND p.waits_on > w.what
            )
            FROM waited AS w WHERE w.what IS NOT NULL
        )
        SELECT w.what, split_part(w.what, ':', 1) AS kind, substring(w.what FROM position(':' IN w.what) + 1) AS name
        FROM waited AS w
        WHERE (w.what LIKE 'domain:%' OR w.what LIKE 'places:%' OR w.what LIKE 'provider:%' OR w.what LIKE 'tool:%'
                OR w.what LIKE 'control:%' OR w.what IN ('spine', 'mail_from'))
            -- Only companies that do not wait for a fixed time,
            AND (EXISTS (
                SELECT 1 FROM outreach.ct_passes AS p
                WHERE p.waits_on = w.what AND p.state = 'waiting' AND p.not_before = 'infinity'
            )
            -- or that were refused before a person resumed their provider: they wait for its first try.
            OR EXISTS (
                SELECT 1 FROM outreach.ct_guardrails AS g
                JOIN outreach.ct_passes AS p ON p.waits_on = g.key AND p.state = 'waiting'
                WHERE g.key = w.what AND g.key LIKE 'provider:%' AND g.state = 'open' AND g.since <= moment
                    AND p.not_before > moment AND p.parked_at < g.since
            ))
    LOOP
        IF asleep.kind = 'domain' THEN
            IF NOT EXISTS (
                SELECT 1 FROM outreach.ct_domains AS d
                WHERE d.domain = asleep.name AND (d.free_at > moment OR (d.lease_owner IS NOT NULL AND d.lease_until > moment))
            ) AND NOT EXISTS (
                SELECT 1 FROM outreach.ct_passes AS q WHERE q.waits_on = asleep.what AND q.not_before <= moment
            ) THEN
                PERFORM outreach.ct_wake(asleep.what, 1, moment);
            END IF;
        ELSIF asleep.kind = 'places' THEN
            SELECT count(*) INTO busy FROM outreach.ct_domains AS d
                WHERE d.provider = asleep.name AND d.lease_owner IS NOT NULL AND d.lease_until > moment;
            IF busy < per_provider THEN
                PERFORM outreach.ct_wake(asleep.what, per_provider - busy, moment);
            END IF;
        ELSIF asleep.kind = 'control' THEN
            run := substring(asleep.name FROM position(':' IN asleep.name) + 1);
            IF outreach.ct_is_running(run, alive_s) THEN
                PERFORM outreach.ct_wake_proven(r.kind, r.worker, c.ok_begun_at)
                    FROM outreach.ct_controls AS r, outreach.ct_control_now(r) AS c
                    WHERE r.kind = split_part(asleep.name, ':', 1) AND r.worker = run
                        AND c.ok_begun_at > c.failed_at;  -- otherwise all would be read, for nobody
            ELSE
                PERFORM outreach.ct_wake(asleep.what, outreach.ct_woken_at_once(), moment);
            END IF;
        ELSIF asleep.kind = 'tool' THEN
            IF EXISTS (SELECT 1 FROM outreach.ct_guardrails AS g WHERE g.key = asleep.what AND g.state = 'halted') THEN
                CONTINUE;
            END IF;
            -- During a trial one at a time; once open, also companies that were parked just after the opening woke the
            -- rest.
            IF NOT EXISTS (SELECT 1 FROM outreach.ct_guardrails AS g WHERE g.key = asleep.what AND g.state = 'trial') THEN
                PERFORM outreach.ct_wake(asleep.what, outreach.ct_woken_at_once(), moment);
            ELSIF NOT outreach.ct_is_asking(outreach.ct_egress_of(asleep.what), moment) THEN
                PERFORM outreach.ct_wake(asleep.what, 1, moment);
            END IF;
        ELSE
            IF NOT EXISTS (
                SELECT 1 FROM outreach.ct_guardrails AS g
                WHERE g.key = asleep.what AND g.state <> 'open' AND (g.next_try_at IS NULL OR g.next_try_at > moment)
            ) THEN
                IF EXISTS (
                    SELECT 1 FROM outreach.ct_guardrails AS g WHERE g.key = asleep.what AND g.state <> 'open'
                ) THEN
                    PERFORM outreach.ct_wake_one(asleep.what, moment);
                ELSE
                    PERFORM outreach.ct_wake(asleep.what, outreach.ct_woken_at_once(), moment);
                END IF;
            END IF;
        END IF;
    END LOOP;
END $$;

-- Wake companies that wait for midnight: as many as the day has SMTPCheck units left, at most 500, minus those already
-- woken that have not started. A returned unit may have woken a company that then met another wait, and the toolbox may allow more
-- units than before. Each worker runs this every few seconds.
CREATE OR REPLACE FUNCTION outreach.ct_wake_capped(per_day bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    units bigint;
BEGIN
    SELECT least(per_day - coalesce(max(u.used), 0), 500) INTO units FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins = outreach.ct_utc_day();
    IF units > 0 THEN
        -- No more are looked at: just after midnight all that waited for it are due.
        SELECT units - count(*) INTO units FROM (
            SELECT p.outreach_id FROM outreach.ct_passes AS p
            WHERE p.waits_on = 'cap:TOOL-005' AND p.state = 'waiting' AND p.not_before <= moment
                AND (p.lease_until IS NULL OR p.lease_until < moment)
            ORDER BY p.not_before LIMIT units
        ) AS woken;
    END IF;
    IF units > 0 THEN
        PERFORM outreach.ct_wake('cap:TOOL-005', units::integer, moment);
    END IF;
END $$;

-- Remove waits, but only of companies that have an outcome, so that no waiting company can be lost.
CREATE OR REPLACE FUNCTION outreach.ct_forget_passes(ids uuid[]) RETURNS integer
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH gone AS (
        DELETE FROM outreach.ct_passes AS p USING outreach.ct_outcomes AS o
        WHERE p.outreach_id = ANY (ids) AND o.outreach_id = p.outreach_id
        RETURNING 1
    )
    SELECT count(*)::integer FROM gone
$$;
