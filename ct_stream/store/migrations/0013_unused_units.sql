-- A worker that must let go of a company between the unit and the session gives the unit back, so that the day's cap is
-- reached by sessions that servers saw.

-- End probe chains. `begun`: how many sessions a pass really began; a unit that it has beyond them goes back to the day
-- that paid for it, and a company that waits for midnight is woken for it. Only under the caller's own lease: a batch that
-- runs again after a lost answer ends nothing twice. Where units come back it locks the days' units before domains, as
-- begins do; that of a session which was still asked for when its pass was cancelled may come too late for that, and then
-- one of two deadlocked statements runs again. (Without `leases` it is the function of workers before this version.)
CREATE FUNCTION outreach.ct_end_probes(
    owner text, ended_domains text[], leases uuid[], ended_s double precision[], talked boolean[], begun integer[],
    pause_s double precision
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz;
    today date := outreach.ct_utc_day();
    come_back integer := 0;
    ended record;
BEGIN
    PERFORM 1 FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins IN (
            SELECT d.unit_day FROM unnest(ended_domains, leases, begun) AS i (d, l, b)
            JOIN outreach.ct_domains AS d ON d.domain = i.d AND d.lease = i.l AND d.lease_owner = owner
            WHERE d.sessions > i.b
        ) ORDER BY u.begins FOR UPDATE;
    PERFORM 1 FROM outreach.ct_domains AS d WHERE d.domain = ANY (ended_domains) ORDER BY d.domain FOR UPDATE;
    moment := clock_timestamp();
    FOR ended IN
        UPDATE outreach.ct_domains AS d
            SET lease_owner = NULL, lease = NULL, lease_until = NULL,
                free_at = moment + (pause_s - i.s) * interval '1 second',
                talked_at = CASE WHEN i.t THEN moment ELSE d.talked_at END
            FROM unnest(ended_domains, leases, ended_s, talked, begun) AS i (d, l, s, t, b)
            WHERE d.domain = i.d AND d.lease = i.l AND d.lease_owner = owner
            RETURNING d.domain, d.provider, d.free_at, d.unit_day, greatest(d.sessions - i.b, 0) AS unused
    LOOP
        PERFORM outreach.ct_wake('domain:' || ended.domain, 1, ended.free_at);
        IF ended.provider <> ended.domain THEN
            PERFORM outreach.ct_wake('places:' || ended.provider, 1, moment);
        END IF;
        IF ended.unused > 0 THEN
            UPDATE outreach.ct_usage AS u SET used = greatest(u.used - ended.unused, 0)
                WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins = ended.unit_day;
            come_back := come_back + CASE WHEN ended.unit_day = today THEN ended.unused ELSE 0 END;
        END IF;
    END LOOP;
    IF come_back > 0 THEN
        PERFORM outreach.ct_wake('cap:TOOL-005', come_back, moment);
    END IF;
    IF EXISTS (SELECT 1 FROM outreach.ct_guardrails AS g WHERE g.key = 'tool:TOOL-005' AND g.state = 'trial') THEN
        PERFORM outreach.ct_wake('tool:TOOL-005', 1, moment);
    END IF;
END $$;

-- Wake as many companies that wait for midnight as the day has SMTPCheck units left, less those that are awake and not
-- begun: a unit that came back may have woken one that then met another wait, and the toolbox may allow more than it did.
-- Run every few seconds by each worker.
CREATE FUNCTION outreach.ct_wake_capped(per_day bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    units bigint;
BEGIN
    SELECT per_day - coalesce(max(u.used), 0) INTO units FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins = outreach.ct_utc_day();
    IF units > 0 THEN
        SELECT units - count(*) INTO units FROM outreach.ct_passes AS p
            WHERE p.waits_on = 'cap:TOOL-005' AND p.state = 'waiting' AND p.not_before <= moment
                AND (p.lease_until IS NULL OR p.lease_until < moment);
    END IF;
    IF units > 0 THEN
        PERFORM outreach.ct_wake('cap:TOOL-005', least(units, 500)::integer, moment);
    END IF;
END $$;
