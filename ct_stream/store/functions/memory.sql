-- What a domain answered to one company, for the next ones (ADR-CT-IMO-014).

-- What a domain answered lately: all answers of a pass while they are current (a PASS for pass_kept, a FAIL for
-- fail_kept), and the MX hosts for mx_kept. Also whether a company of the domain is being probed now, and whether one
-- has started and now waits for something else. Written in a form that Postgres inlines.
CREATE OR REPLACE FUNCTION outreach.ct_recall(
    its_domain text, version text, pass_kept interval, fail_kept interval, mx_kept interval
) RETURNS TABLE (
    answers jsonb, answered_at timestamptz, is_current boolean, is_mx_current boolean, is_busy boolean, has_begun boolean
)
LANGUAGE sql STABLE AS $$
    SELECT m.answers, m.answered_at,
        coalesce(m.answered_at > statement_timestamp() - CASE m.outcome WHEN 'PASS' THEN pass_kept ELSE fail_kept END,
            false),
        coalesce(m.mx_at > statement_timestamp() - mx_kept, false),
        (d.lease_owner IS NOT NULL AND d.lease_until > statement_timestamp()) IS TRUE,
        EXISTS (
            SELECT 1 FROM outreach.ct_passes AS p
            WHERE p.domain = its_domain AND p.state = 'waiting' AND p.reason <> 'domain_busy'
        )
    FROM (SELECT 1) AS one
    LEFT JOIN outreach.ct_memory AS m ON m.domain = its_domain AND m.rules_version = version
    LEFT JOIN outreach.ct_domains AS d ON d.domain = its_domain
$$;

-- Remove what is no longer needed: domains whose last session no longer counts, old refusals, memories that nobody may
-- use.
CREATE OR REPLACE FUNCTION outreach.ct_tidy(memory_kept interval, talk_kept interval) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    DELETE FROM outreach.ct_domains WHERE lease_owner IS NULL AND free_at < clock_timestamp() - talk_kept;
    DELETE FROM outreach.ct_refusals WHERE at < clock_timestamp() - interval '7 days';
    DELETE FROM outreach.ct_memory WHERE answered_at < clock_timestamp() - memory_kept;
    DELETE FROM outreach.ct_workers WHERE seen_at < clock_timestamp() - interval '7 days';
$$;
