-- What a domain answered to one company, for the next ones (ADR-CT-IMO-014).

-- What a domain answered lately: all answers of a pass while they are current (a PASS for pass_kept, a FAIL for
-- fail_kept), and the MX hosts for mx_kept, unless a run that asked had lost its way then. Also whether a company of the domain is being probed now, and whether one
-- has started and now waits for something else. Written in a form that Postgres inlines.
CREATE OR REPLACE FUNCTION outreach.ct_recall(
    its_domain text, version text, pass_kept interval, fail_kept interval, mx_kept interval
) RETURNS TABLE (
    answers jsonb, answered_at timestamptz, is_current boolean, is_mx_current boolean, is_busy boolean, has_begun boolean
)
LANGUAGE sql STABLE AS $$
    SELECT m.answers, m.answered_at,
        coalesce(m.answered_at > statement_timestamp() - CASE m.outcome WHEN 'PASS' THEN pass_kept ELSE fail_kept END
            AND NOT a.astray, false),
        coalesce(m.mx_at > statement_timestamp() - mx_kept AND NOT a.astray, false),
        (d.lease_owner IS NOT NULL AND d.lease_until > statement_timestamp()) IS TRUE,
        EXISTS (
            SELECT 1 FROM outreach.ct_passes AS p
            WHERE p.domain = its_domain AND p.state = 'waiting' AND p.reason <> 'domain_busy'
        )
    FROM (SELECT 1) AS one
    LEFT JOIN outreach.ct_memory AS m ON m.domain = its_domain AND m.rules_version = version
    CROSS JOIN LATERAL (SELECT outreach.ct_was_astray(m.runs, m.mx_at, m.recorded_at) AS astray) AS a
    LEFT JOIN outreach.ct_domains AS d ON d.domain = its_domain
$$;

-- Remove what is no longer needed, at most `most` rows of each table; return whether more may be left. After months
-- without a worker there may be millions of rows, and one statement would take longer than it may. Not removed: a row
-- that somebody holds, until the next time. statement_timestamp: with a clock that moves during the statement, no index
-- could be used. tests/store/test_tidy.py says for each table what
-- bounds it. In UTC: in a caller's zone days may have a gap of weeks, and 7 days ago be in the future.
CREATE OR REPLACE FUNCTION outreach.ct_tidy(most integer, memory_kept interval, talk_kept interval) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET TimeZone = utc AS $$
    WITH domains AS (
        -- Domains whose last session no longer counts.
        DELETE FROM outreach.ct_domains WHERE ctid = ANY (ARRAY(
            SELECT d.ctid FROM outreach.ct_domains AS d
            WHERE d.free_at < statement_timestamp() - talk_kept AND d.lease_owner IS NULL
            ORDER BY d.free_at LIMIT most FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), leases AS (
        -- Domains that a worker held when it died, and that nobody has asked since.
        DELETE FROM outreach.ct_domains WHERE ctid = ANY (ARRAY(
            SELECT d.ctid FROM outreach.ct_domains AS d
            WHERE d.lease_owner IS NOT NULL
                AND greatest(d.free_at, d.lease_until) < statement_timestamp() - talk_kept
            LIMIT most FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), refusals AS (
        DELETE FROM outreach.ct_refusals WHERE ctid = ANY (ARRAY(
            SELECT r.ctid FROM outreach.ct_refusals AS r WHERE r.at < statement_timestamp() - interval '7 days'
            ORDER BY r.at LIMIT most FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), memories AS (
        -- What nobody may use any more.
        DELETE FROM outreach.ct_memory WHERE ctid = ANY (ARRAY(
            SELECT m.ctid FROM outreach.ct_memory AS m WHERE m.answered_at < statement_timestamp() - memory_kept
            ORDER BY m.answered_at LIMIT most FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), workers AS (
        DELETE FROM outreach.ct_workers WHERE ctid = ANY (ARRAY(
            SELECT w.ctid FROM outreach.ct_workers AS w WHERE w.seen_at < statement_timestamp() - interval '7 days'
            ORDER BY w.seen_at LIMIT most FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), controls AS (
        -- Of runs that ended so long ago that nothing is left that they heard.
        DELETE FROM outreach.ct_controls WHERE ctid = ANY (ARRAY(
            SELECT c.ctid FROM outreach.ct_controls AS c
            WHERE c.started_at < statement_timestamp() - memory_kept - interval '1 day'
                AND NOT EXISTS (SELECT w.worker FROM outreach.ct_workers AS w WHERE w.worker = c.worker)
            ORDER BY c.started_at LIMIT most FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), alerts AS (
        -- Whether somebody took them or not: they are in the log too.
        DELETE FROM outreach.ct_alerts WHERE ctid = ANY (ARRAY(
            SELECT a.ctid FROM outreach.ct_alerts AS a WHERE a.at < statement_timestamp() - interval '7 days'
            ORDER BY a.at LIMIT most FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), rails AS (
        -- A provider without a row is open. The few other guardrails stay: when a person last opened them counts.
        DELETE FROM outreach.ct_guardrails WHERE ctid = ANY (ARRAY(
            SELECT g.ctid FROM outreach.ct_guardrails AS g
            WHERE g.state = 'open' AND g.since < statement_timestamp() - interval '30 days' AND g.key LIKE 'provider:%'
            ORDER BY g.since LIMIT most FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    ), changes AS (
        -- More than a year, so that people can compare with the year before. The last change of a guardrail stays unless
        -- it opened it: why it is closed must be known, and its next change looks back at it (ct_alert_guardrail).
        DELETE FROM outreach.ct_guardrail_log WHERE ctid = ANY (ARRAY(
            SELECT l.ctid FROM outreach.ct_guardrail_log AS l
            WHERE l.at < statement_timestamp() - interval '400 days' AND (l.state = 'open' OR EXISTS (
                SELECT 1 FROM outreach.ct_guardrail_log AS n WHERE n.key = l.key AND n.log_id > l.log_id
            ))
            ORDER BY l.at, l.log_id LIMIT most FOR UPDATE OF l SKIP LOCKED
        )) RETURNING 1
    ), exits AS (
        DELETE FROM outreach.ct_watchdog_exits WHERE ctid = ANY (ARRAY(
            SELECT e.ctid FROM outreach.ct_watchdog_exits AS e
            WHERE e.at < statement_timestamp() - interval '400 days'
            ORDER BY e.at LIMIT most FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    )
    SELECT greatest(
        (SELECT count(*) FROM domains), (SELECT count(*) FROM leases), (SELECT count(*) FROM refusals),
        (SELECT count(*) FROM memories), (SELECT count(*) FROM workers), (SELECT count(*) FROM controls),
        (SELECT count(*) FROM alerts),
        (SELECT count(*) FROM rails), (SELECT count(*) FROM changes), (SELECT count(*) FROM exits)
    ) >= most
$$;
