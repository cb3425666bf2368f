-- The limits and leases of the toolbox, exact over all workers: each call is one round trip for a whole batch, and
-- all durations are by this server's clock.

CREATE FUNCTION outreach.ct_utc_day() RETURNS date LANGUAGE sql STABLE AS
$$ SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date $$;

-- Take up to `wanted` MXLookup units. `granted` of them may go, the first after `delay_s`, each next one
-- 1 / per_second later; for the rest `refusal` says 'rate' or 'cap' and `retry_s` when to come back.
CREATE FUNCTION outreach.ct_take_mx(
    wanted integer, per_second double precision, per_day bigint, max_delay_s double precision,
    OUT granted integer, OUT delay_s double precision, OUT refusal text, OUT retry_s double precision
) LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz;
    today date := outreach.ct_utc_day();
    already bigint;
    next_slot timestamptz;
    by_rate integer;
BEGIN
    INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-004', 'day', today) ON CONFLICT DO NOTHING;
    SELECT u.used INTO already FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-004' AND u.span = 'day' AND u.begins = today FOR UPDATE;
    INSERT INTO outreach.ct_rates (tool_id, tat) VALUES ('TOOL-004', clock_timestamp()) ON CONFLICT DO NOTHING;
    SELECT r.tat INTO next_slot FROM outreach.ct_rates AS r WHERE r.tool_id = 'TOOL-004' FOR UPDATE;
    moment := clock_timestamp();
    next_slot := greatest(next_slot, moment);
    delay_s := extract(epoch FROM next_slot - moment);
    by_rate := greatest(0, 1 + floor((max_delay_s - delay_s) * per_second)::integer);
    IF delay_s > max_delay_s THEN
        by_rate := 0;
    END IF;
    granted := least(wanted::bigint, by_rate::bigint, greatest(per_day - already, 0))::integer;
    IF granted > 0 THEN
        UPDATE outreach.ct_rates SET tat = next_slot + granted / per_second * interval '1 second'
            WHERE tool_id = 'TOOL-004';
        UPDATE outreach.ct_usage SET used = used + granted
            WHERE tool_id = 'TOOL-004' AND span = 'day' AND begins = today;
    END IF;
    IF granted < wanted THEN
        IF already + granted >= per_day THEN
            refusal := 'cap';
            retry_s := extract(epoch FROM ((today + 1)::timestamp AT TIME ZONE 'UTC') - moment);
        ELSE
            refusal := 'rate';
            retry_s := delay_s + granted / per_second;
        END IF;
    END IF;
END $$;

-- Take SMTPCheck units for sessions that follow the first one of a pass.
CREATE FUNCTION outreach.ct_take_smtp(wanted integer, per_day bigint, OUT granted integer, OUT retry_s double precision)
LANGUAGE plpgsql AS $$
DECLARE
    today date := outreach.ct_utc_day();
    already bigint;
BEGIN
    INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-005', 'day', today) ON CONFLICT DO NOTHING;
    SELECT u.used INTO already FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins = today FOR UPDATE;
    granted := least(wanted::bigint, greatest(per_day - already, 0))::integer;
    UPDATE outreach.ct_usage SET used = used + granted
        WHERE tool_id = 'TOOL-005' AND span = 'day' AND begins = today;
    retry_s := extract(epoch FROM ((today + 1)::timestamp AT TIME ZONE 'UTC') - clock_timestamp());
END $$;

-- Begin probe chains: for each (domain, provider) the domain's slot, a place at the provider and one SMTPCheck unit,
-- or none of them. `answer`: granted, halted, provider_closed, provider_busy, domain_busy, cap.
CREATE FUNCTION outreach.ct_begin_probes(
    owner text, domains text[], providers text[], lease_s double precision, per_day bigint, per_provider integer
) RETURNS TABLE (place integer, answer text, retry_s double precision, detail text) LANGUAGE plpgsql AS $$
DECLARE
    today date := outreach.ct_utc_day();
    moment timestamptz;
    already bigint;
    taken bigint := 0;
    halted_why text;
    item record;
    rail record;
    slot record;
    locked_provider text := '';
    busy integer;
BEGIN
    SELECT g.reason INTO halted_why FROM outreach.ct_guardrails AS g
        WHERE g.key = 'tool:TOOL-005' AND g.state = 'halted';
    INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-005', 'day', today) ON CONFLICT DO NOTHING;
    SELECT u.used INTO already FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins = today FOR UPDATE;
    FOR item IN
        SELECT i.d AS domain, i.p AS provider, i.n::integer AS n
        FROM unnest(domains, providers) WITH ORDINALITY AS i (d, p, n) ORDER BY i.p, i.d
    LOOP
        place := item.n; retry_s := NULL; detail := NULL;
        moment := clock_timestamp();
        IF halted_why IS NOT NULL THEN
            answer := 'halted'; detail := halted_why;
            RETURN NEXT; CONTINUE;
        END IF;
        IF item.provider <> locked_provider THEN
            PERFORM pg_advisory_xact_lock(hashtextextended('ct:provider:' || item.provider, 0));
            locked_provider := item.provider;
        END IF;
        SELECT g.state, g.reason, g.next_try_at INTO rail FROM outreach.ct_guardrails AS g
            WHERE g.key = 'provider:' || item.provider AND g.state <> 'open';
        IF FOUND AND (rail.next_try_at IS NULL OR rail.next_try_at > moment) THEN
            answer := 'provider_closed'; detail := rail.reason;
            retry_s := extract(epoch FROM rail.next_try_at - moment);
            RETURN NEXT; CONTINUE;
        END IF;
        IF already + taken >= per_day THEN
            answer := 'cap'; retry_s := extract(epoch FROM ((today + 1)::timestamp AT TIME ZONE 'UTC') - moment);
            RETURN NEXT; CONTINUE;
        END IF;
        IF item.provider <> item.domain THEN
            SELECT count(*) INTO busy FROM outreach.ct_domains AS d
                WHERE d.provider = item.provider AND d.lease_owner IS NOT NULL AND d.lease_until > moment;
            IF busy >= per_provider THEN
                answer := 'provider_busy';
                RETURN NEXT; CONTINUE;
            END IF;
        END IF;
        INSERT INTO outreach.ct_domains AS d (domain, provider, lease_owner, lease_until, free_at)
            VALUES (item.domain, item.provider, owner, moment + lease_s * interval '1 second', '-infinity')
            ON CONFLICT (domain) DO UPDATE
                SET provider = excluded.provider, lease_owner = excluded.lease_owner, lease_until = excluded.lease_until
                WHERE (d.lease_owner IS NULL OR d.lease_until <= moment) AND d.free_at <= moment;
        IF NOT FOUND THEN
            -- Within its pause the domain is free at a known time; under a lease its end wakes the next company.
            SELECT CASE WHEN d.lease_owner IS NULL THEN d.free_at END AS free_at INTO slot
                FROM outreach.ct_domains AS d WHERE d.domain = item.domain;
            answer := 'domain_busy'; retry_s := extract(epoch FROM slot.free_at - moment);
            RETURN NEXT; CONTINUE;
        END IF;
        IF rail.state IS NOT NULL THEN
            -- A closed provider's one try: the next one comes later, doubling from 10 minutes to 6 hours.
            UPDATE outreach.ct_guardrails SET tries = tries + 1,
                next_try_at = moment + least(interval '10 minutes' * power(2, tries), interval '6 hours')
                WHERE key = 'provider:' || item.provider;
        END IF;
        taken := taken + 1;
        answer := 'granted';
        RETURN NEXT;
    END LOOP;
    IF taken > 0 THEN
        UPDATE outreach.ct_usage SET used = used + taken
            WHERE tool_id = 'TOOL-005' AND span = 'day' AND begins = today;
    END IF;
END $$;

-- Wake the `many` companies that have waited longest on `what`.
CREATE FUNCTION outreach.ct_wake(what text, many integer, at_time timestamptz) RETURNS void LANGUAGE sql AS $$
    UPDATE outreach.ct_passes AS p SET not_before = at_time
    WHERE p.outreach_id IN (
        SELECT q.outreach_id FROM outreach.ct_passes AS q
        WHERE q.waits_on = what AND q.state = 'waiting' AND q.not_before > at_time
        ORDER BY q.since LIMIT many
        FOR UPDATE SKIP LOCKED
    )
$$;

-- End probe chains: the pause of each domain counts from `ended_s` seconds ago. The next company of each of those
-- domains is woken for the pause's end, and one for each place that came free at a provider.
CREATE FUNCTION outreach.ct_end_probes(
    owner text, ended_domains text[], ended_s double precision[], talked boolean[], pause_s double precision
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    ended record;
BEGIN
    PERFORM 1 FROM outreach.ct_domains AS d WHERE d.domain = ANY (ended_domains) ORDER BY d.domain FOR UPDATE;
    FOR ended IN
        UPDATE outreach.ct_domains AS d
            SET lease_owner = NULL, lease_until = NULL, free_at = moment + (pause_s - i.s) * interval '1 second',
                talked_at = CASE WHEN i.t THEN moment ELSE d.talked_at END
            FROM unnest(ended_domains, ended_s, talked) AS i (d, s, t)
            WHERE d.domain = i.d AND d.lease_owner = owner
            RETURNING d.domain, d.provider, d.free_at
    LOOP
        PERFORM outreach.ct_wake('domain:' || ended.domain, 1, ended.free_at);
        IF ended.provider <> ended.domain THEN
            PERFORM outreach.ct_wake('places:' || ended.provider, 1, moment);
        END IF;
    END LOOP;
END $$;

-- The safety net of the wakes above, for what a crash or a race kept asleep: run every few seconds by some worker.
CREATE FUNCTION outreach.ct_wake_sleepers(per_provider integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    asleep record;
    busy integer;
BEGIN
    FOR asleep IN
        SELECT DISTINCT p.waits_on AS what, split_part(p.waits_on, ':', 1) AS kind,
            substring(p.waits_on FROM position(':' IN p.waits_on) + 1) AS name
        FROM outreach.ct_passes AS p
        -- Only those without a time of their own.
        WHERE p.state = 'waiting' AND p.not_before = 'infinity'
            AND (p.waits_on LIKE 'domain:%' OR p.waits_on LIKE 'places:%' OR p.waits_on LIKE 'provider:%')
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
        ELSE
            IF NOT EXISTS (
                SELECT 1 FROM outreach.ct_guardrails AS g
                WHERE g.key = asleep.what AND g.state <> 'open' AND (g.next_try_at IS NULL OR g.next_try_at > moment)
            ) THEN
                PERFORM outreach.ct_wake(asleep.what, CASE WHEN EXISTS (
                    SELECT 1 FROM outreach.ct_guardrails AS g WHERE g.key = asleep.what AND g.state <> 'open'
                ) THEN 1 ELSE 1000 END, moment);
            END IF;
        END IF;
    END LOOP;
END $$;

-- Forget undecided passes, only of companies that have an outcome: a waiting company cannot be lost by it.
CREATE FUNCTION outreach.ct_forget_passes(ids uuid[]) RETURNS integer
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
    WITH gone AS (
        DELETE FROM outreach.ct_passes AS p USING outreach.ct_outcomes AS o
        WHERE p.outreach_id = ANY (ids) AND o.outreach_id = p.outreach_id
        RETURNING 1
    )
    SELECT count(*)::integer FROM gone
$$;

-- Remove what nothing needs any more: domains whose last talk is no evidence now, refusals of older days.
CREATE FUNCTION outreach.ct_tidy() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
    DELETE FROM outreach.ct_domains WHERE lease_owner IS NULL AND free_at < clock_timestamp() - interval '24 hours';
    DELETE FROM outreach.ct_refusals WHERE at < clock_timestamp() - interval '7 days';
$$;

-- Put a guardrail into a state, with its reason in the log. The gate closes and halts; opening is for
-- resume_guardrail, or for a provider that talked normally.
CREATE FUNCTION outreach.ct_set_guardrail(rail text, new_state text, why text, next_try timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
DECLARE
    changed boolean;
BEGIN
    IF new_state = 'open' AND rail NOT LIKE 'provider:%' THEN
        RAISE EXCEPTION 'only a person resumes %', rail USING ERRCODE = 'insufficient_privilege';
    END IF;
    INSERT INTO outreach.ct_guardrails AS g (key, state, reason, next_try_at, changed_by)
        VALUES (rail, new_state, why, next_try, session_user)
        ON CONFLICT (key) DO UPDATE SET state = excluded.state, reason = excluded.reason, since = clock_timestamp(),
            next_try_at = excluded.next_try_at, tries = 0, changed_by = excluded.changed_by
        WHERE g.state <> excluded.state
        RETURNING true INTO changed;
    IF changed THEN
        INSERT INTO outreach.ct_guardrail_log (key, state, reason) VALUES (rail, new_state, why);
        IF new_state = 'open' THEN
            UPDATE outreach.ct_passes SET not_before = clock_timestamp() WHERE waits_on = rail AND state = 'waiting';
        END IF;
    END IF;
    RETURN coalesce(changed, false);
END $$;

-- For people (ct_ops): open a closed or halted guardrail. Audited; its evidence so far is void.
CREATE FUNCTION outreach.resume_guardrail(rail text, why text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
DECLARE
    before text;
BEGIN
    IF coalesce(trim(why), '') = '' THEN
        RAISE EXCEPTION 'a reason is needed to resume %', rail;
    END IF;
    SELECT g.state INTO before FROM outreach.ct_guardrails AS g WHERE g.key = rail FOR UPDATE;
    IF before IS NULL OR before = 'open' THEN
        RETURN 'open already';
    END IF;
    UPDATE outreach.ct_guardrails SET state = 'open', reason = why, since = clock_timestamp(), next_try_at = NULL,
        tries = 0, changed_by = session_user WHERE key = rail;
    INSERT INTO outreach.ct_guardrail_log (key, state, reason) VALUES (rail, 'open', why);
    UPDATE outreach.ct_refusals SET void = true WHERE NOT void
        AND (rail LIKE 'tool:%' OR provider = substring(rail FROM '^provider:(.*)$'));
    UPDATE outreach.ct_passes SET not_before = clock_timestamp() WHERE waits_on = rail AND state = 'waiting';
    RETURN before || ' -> open';
END $$;
