-- How guardrails close, pause and come back (ADR-CT-IMO-019).
--   open     nothing stands in the way
--   paused   a provider said that we ask too fast: one company is tried after 60 s, then 120 s, ... 6 h
--   closed   a provider refuses us or cannot be reached: one is tried after 10 min, then 20 min, ... 6 h
--   halted   a person must resume it
--   trial    a person resumed TOOL-005: one company at a time until three providers have talked normally

ALTER TABLE outreach.ct_guardrails DROP CONSTRAINT ct_guardrails_state_check;
ALTER TABLE outreach.ct_guardrails ADD CONSTRAINT ct_guardrails_state_check
    CHECK (state IN ('open', 'paused', 'closed', 'halted', 'trial'));
-- The first distance between two tries; each next one is twice as long.
ALTER TABLE outreach.ct_guardrails ADD COLUMN first_try_s double precision NOT NULL DEFAULT 600;

-- 'silent': no server of the provider could be reached.
ALTER TABLE outreach.ct_refusals DROP CONSTRAINT ct_refusals_kind_check;
ALTER TABLE outreach.ct_refusals ADD CONSTRAINT ct_refusals_kind_check CHECK (kind IN ('refused', 'rate', 'silent'));

-- How many providers have talked normally since the careful resume began?
CREATE FUNCTION outreach.ct_trial_talks() RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT count(DISTINCT d.provider)::integer FROM outreach.ct_domains AS d
    WHERE d.talked_at > (SELECT g.since FROM outreach.ct_guardrails AS g WHERE g.key = 'tool:TOOL-005')
$$;

-- Begin probe chains: for each (domain, provider) the domain's slot, a place at the provider and one SMTPCheck unit,
-- or none of them. `answer`: granted, halted, trial, provider_closed, provider_busy, domain_busy, cap.
CREATE OR REPLACE FUNCTION outreach.ct_begin_probes(
    owner text, domains text[], providers text[], lease_s double precision, per_day bigint, per_provider integer
) RETURNS TABLE (place integer, answer text, retry_s double precision, detail text) LANGUAGE plpgsql AS $$
DECLARE
    today date := outreach.ct_utc_day();
    moment timestamptz;
    already bigint;
    taken bigint := 0;
    tool record;
    item record;
    rail record;
    slot record;
    locked_provider text := '';
    busy integer;
BEGIN
    INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-005', 'day', today) ON CONFLICT DO NOTHING;
    -- This lock makes one caller wait for the other, so that "one at a time" and the cap are exact.
    SELECT u.used INTO already FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins = today FOR UPDATE;
    SELECT g.state, g.reason INTO tool FROM outreach.ct_guardrails AS g
        WHERE g.key = 'tool:TOOL-005' AND g.state IN ('halted', 'trial');
    FOR item IN
        SELECT i.d AS domain, i.p AS provider, i.n::integer AS n
        FROM unnest(domains, providers) WITH ORDINALITY AS i (d, p, n) ORDER BY i.p, i.d
    LOOP
        place := item.n; retry_s := NULL; detail := NULL;
        moment := clock_timestamp();
        IF tool.state = 'halted' THEN
            answer := 'halted'; detail := tool.reason;
            RETURN NEXT; CONTINUE;
        END IF;
        IF tool.state = 'trial' AND EXISTS (
            SELECT 1 FROM outreach.ct_domains AS d WHERE d.lease_owner IS NOT NULL AND d.lease_until > moment
        ) THEN
            answer := 'trial'; detail := outreach.ct_trial_talks() || ' of 3 providers have talked normally';
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
            -- The one try of a provider that is not open: the next one comes later, each time twice as late.
            UPDATE outreach.ct_guardrails SET tries = tries + 1,
                next_try_at = moment + least(first_try_s * power(2, least(tries + 1, 20)), 21600) * interval '1 second'
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

-- End probe chains: the pause of each domain counts from `ended_s` seconds ago. The next company of each of those
-- domains is woken for the pause's end, one for each place that came free at a provider, and in a careful resume one.
CREATE OR REPLACE FUNCTION outreach.ct_end_probes(
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
    IF EXISTS (SELECT 1 FROM outreach.ct_guardrails AS g WHERE g.key = 'tool:TOOL-005' AND g.state = 'trial') THEN
        PERFORM outreach.ct_wake('tool:TOOL-005', 1, moment);
    END IF;
END $$;

-- The safety net of the wakes above, for what a crash or a race kept asleep: run every few seconds by some worker.
CREATE OR REPLACE FUNCTION outreach.ct_wake_sleepers(per_provider integer) RETURNS void LANGUAGE plpgsql AS $$
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
            AND (p.waits_on LIKE 'domain:%' OR p.waits_on LIKE 'places:%' OR p.waits_on LIKE 'provider:%'
                OR p.waits_on LIKE 'tool:%')
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
        ELSIF asleep.kind = 'tool' THEN
            IF EXISTS (SELECT 1 FROM outreach.ct_guardrails AS g WHERE g.key = asleep.what AND g.state = 'halted') THEN
                CONTINUE;
            END IF;
            -- In a careful resume one at a time; when open, whoever was put away after the wake of its opening.
            IF NOT EXISTS (SELECT 1 FROM outreach.ct_guardrails AS g WHERE g.key = asleep.what AND g.state = 'trial') THEN
                PERFORM outreach.ct_wake(asleep.what, 1000, moment);
            ELSIF NOT EXISTS (
                SELECT 1 FROM outreach.ct_domains AS d WHERE d.lease_owner IS NOT NULL AND d.lease_until > moment
            ) THEN
                PERFORM outreach.ct_wake(asleep.what, 1, moment);
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

-- Put a guardrail into a state, with its reason in the log. The gate pauses, closes and halts; opening is for
-- resume_guardrail, or for a provider that talked normally. A provider that is closed is not paused.
CREATE OR REPLACE FUNCTION outreach.ct_set_guardrail(rail text, new_state text, why text, next_try timestamptz)
RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
DECLARE
    changed boolean;
    distance double precision := coalesce(greatest(1, extract(epoch FROM next_try - clock_timestamp())), 600);
BEGIN
    IF new_state IN ('open', 'trial') AND rail NOT LIKE 'provider:%' THEN
        RAISE EXCEPTION 'only a person resumes %', rail USING ERRCODE = 'insufficient_privilege';
    END IF;
    INSERT INTO outreach.ct_guardrails AS g (key, state, reason, next_try_at, first_try_s, changed_by)
        VALUES (rail, new_state, why, next_try, distance, session_user)
        ON CONFLICT (key) DO UPDATE SET state = excluded.state, reason = excluded.reason, since = clock_timestamp(),
            next_try_at = excluded.next_try_at, first_try_s = excluded.first_try_s, tries = 0,
            changed_by = excluded.changed_by
        WHERE g.state <> excluded.state AND NOT (g.state = 'closed' AND excluded.state = 'paused')
        RETURNING true INTO changed;
    IF changed THEN
        INSERT INTO outreach.ct_guardrail_log (key, state, reason) VALUES (rail, new_state, why);
        IF new_state = 'open' THEN
            UPDATE outreach.ct_passes SET not_before = clock_timestamp() WHERE waits_on = rail AND state = 'waiting';
        END IF;
    END IF;
    RETURN coalesce(changed, false);
END $$;

-- Three providers have talked normally since a person resumed TOOL-005: the rest goes on. True when that opened it.
CREATE FUNCTION outreach.ct_end_trial() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
DECLARE
    talks integer := outreach.ct_trial_talks();
BEGIN
    IF talks < 3 THEN
        RETURN false;
    END IF;
    UPDATE outreach.ct_guardrails SET state = 'open', since = clock_timestamp(), changed_by = session_user,
        reason = talks || ' providers talk normally again'
        WHERE key = 'tool:TOOL-005' AND state = 'trial';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO outreach.ct_guardrail_log (key, state, reason)
        VALUES ('tool:TOOL-005', 'open', talks || ' providers talk normally again');
    UPDATE outreach.ct_passes SET not_before = clock_timestamp()
        WHERE waits_on = 'tool:TOOL-005' AND state = 'waiting';
    RETURN true;
END $$;

-- For people (ct_ops): open a paused, closed or halted guardrail. Audited; its evidence so far is void, and so are the
-- replies about us that companies wait with. TOOL-005 comes back carefully: see ct_begin_probes.
CREATE OR REPLACE FUNCTION outreach.resume_guardrail(rail text, why text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
DECLARE
    before text;
    after text := CASE WHEN rail = 'tool:TOOL-005' THEN 'trial' ELSE 'open' END;
BEGIN
    IF coalesce(trim(why), '') = '' THEN
        RAISE EXCEPTION 'a reason is needed to resume %', rail;
    END IF;
    SELECT g.state INTO before FROM outreach.ct_guardrails AS g WHERE g.key = rail FOR UPDATE;
    IF before IS NULL OR before IN ('open', 'trial') THEN
        RETURN coalesce(before, 'open') || ' already';
    END IF;
    UPDATE outreach.ct_guardrails SET state = after, reason = why, since = clock_timestamp(), next_try_at = NULL,
        tries = 0, changed_by = session_user WHERE key = rail;
    INSERT INTO outreach.ct_guardrail_log (key, state, reason) VALUES (rail, after, why);
    UPDATE outreach.ct_refusals SET void = true WHERE NOT void
        AND (rail = 'tool:TOOL-005' OR provider = substring(rail FROM '^provider:(.*)$'));
    UPDATE outreach.ct_passes SET pending = NULL WHERE pending IS NOT NULL
        AND (rail = 'tool:TOOL-005' OR waits_on = rail);
    IF after = 'trial' THEN
        PERFORM outreach.ct_wake(rail, 1, clock_timestamp());
    ELSE
        UPDATE outreach.ct_passes SET not_before = clock_timestamp() WHERE waits_on = rail AND state = 'waiting';
    END IF;
    RETURN before || ' -> ' || after;
END $$;

CREATE OR REPLACE VIEW outreach.ct_held AS
SELECT
    p.outreach_id,
    p.domain,
    p.since,
    p.state,
    p.reason,
    p.detail,
    CASE
        WHEN p.state = 'stuck' THEN 'a worker of another version tries it again'
        WHEN p.reason = 'halted' AND g.state = 'trial'
            THEN 'its turn: one company at a time until three providers have talked normally'
        WHEN p.reason IN ('halted', 'spine_control', 'tier2') AND g.state = 'halted'
            THEN 'a person: ct-stream guardrails resume ' || p.waits_on
        WHEN p.reason IN ('provider_closed', 'our_rate') AND p.not_before = 'infinity'
            THEN 'a company that talks normally with ' || split_part(p.waits_on, ':', 2)
                || coalesce(' (one is tried at ' || g.next_try_at::timestamptz(0) || ')', '') || ', or a person: '
                || 'ct-stream guardrails resume ' || p.waits_on
        WHEN p.reason = 'control' THEN 'a control that succeeds after ' || coalesce(p.failed_at::text, 'now')
        WHEN p.reason = 'spine_grace' THEN 'the spine row, or the end of the grace at ' || p.not_before
        WHEN p.not_before = 'infinity' THEN coalesce(p.waits_on, 'unknown')
        ELSE 'time: looked at again at ' || p.not_before
    END AS what_ends_it,
    p.not_before,
    p.waits_on,
    p.exceptions,
    p.traceback
FROM outreach.ct_passes AS p
LEFT JOIN outreach.ct_guardrails AS g ON g.key = p.waits_on;
