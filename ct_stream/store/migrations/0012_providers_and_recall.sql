-- A company's hosts may stand at several providers: each has its own rail and its own places (ADR-CT-IMO-019). Each lease
-- of a domain has a name of its own: a pass that was frozen, or whose Postgres was away, for longer than its lease finds
-- that another has the domain now, also another one of its own worker (ADR-CT-IMO-006).

ALTER TABLE outreach.ct_domains
    ADD COLUMN lease uuid,       -- chosen by the pass that holds it
    ADD COLUMN sessions integer, -- that it has units for
    ADD COLUMN unit_day date;    -- that paid for the last of them

-- A good talk stays with the provider that it was with, also when its domain is asked at another one next: then it is
-- kept under a name that no domain has.
CREATE FUNCTION outreach.ct_note_talk(with_provider text, at_time timestamptz) RETURNS void LANGUAGE sql AS $$
    INSERT INTO outreach.ct_domains AS d (domain, provider, talked_at, free_at)
        VALUES ('@' || with_provider, with_provider, at_time, at_time)  -- free_at: kept for a day
        ON CONFLICT (domain) DO UPDATE SET talked_at = greatest(d.talked_at, excluded.talked_at),
            free_at = greatest(d.free_at, excluded.free_at)
$$;

-- In how many seconds may a domain be asked, where its pause says so? NULL under a lease: its end wakes the next company.
CREATE FUNCTION outreach.ct_free_in(its_domain text) RETURNS double precision LANGUAGE sql STABLE AS $$
    SELECT extract(epoch FROM d.free_at - clock_timestamp())::double precision FROM outreach.ct_domains AS d
    WHERE d.domain = its_domain AND d.lease_owner IS NULL
$$;

-- Move a probe chain that holds its domain to another provider: its rail and a place there, or neither. A company's own
-- servers need no place, so that the one it holds is kept for its next host. `is_known`: the rail let this chain in before.
-- `answer`: granted, halted, domain_busy (another has the domain now), cap, provider_closed, provider_busy. Locks in the
-- order of ct_begin_probes.
CREATE FUNCTION outreach.ct_enter_provider(
    owner text, its_lease uuid, its_domain text, to_provider text, is_own boolean, is_known boolean, per_day bigint,
    per_provider integer
) RETURNS TABLE (answer text, retry_s double precision, detail text) LANGUAGE plpgsql AS $$
DECLARE
    today date := outreach.ct_utc_day();
    already bigint;
    moment timestamptz;
    rail record;
    was record;
    busy integer;
BEGIN
    retry_s := NULL; detail := NULL;
    INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-005', 'day', today) ON CONFLICT DO NOTHING;
    SELECT u.used INTO already FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins = today FOR UPDATE;
    SELECT g.reason INTO detail FROM outreach.ct_guardrails AS g
        WHERE g.key = 'tool:TOOL-005' AND g.state = 'halted';
    IF FOUND THEN
        answer := 'halted';
        RETURN NEXT; RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('ct:provider:' || to_provider, 0));
    moment := clock_timestamp();
    IF NOT EXISTS (
        SELECT 1 FROM outreach.ct_domains AS d
        WHERE d.domain = its_domain AND d.lease_owner = owner AND d.lease = its_lease
    ) THEN
        answer := 'domain_busy'; retry_s := outreach.ct_free_in(its_domain);
        RETURN NEXT; RETURN;
    END IF;
    SELECT g.state, g.reason, g.next_try_at INTO rail FROM outreach.ct_guardrails AS g
        WHERE g.key = 'provider:' || to_provider AND g.state <> 'open' AND NOT is_known;
    IF FOUND AND (rail.next_try_at IS NULL OR rail.next_try_at > moment) THEN
        answer := 'provider_closed'; detail := rail.reason;
        retry_s := extract(epoch FROM rail.next_try_at - moment);
        RETURN NEXT; RETURN;
    END IF;
    IF already >= per_day THEN  -- before the provider's one try is spent
        answer := 'cap'; retry_s := extract(epoch FROM ((today + 1)::timestamp AT TIME ZONE 'UTC') - moment);
        RETURN NEXT; RETURN;
    END IF;
    IF NOT is_own THEN
        SELECT count(*) INTO busy FROM outreach.ct_domains AS d
            WHERE d.provider = to_provider AND d.lease_owner IS NOT NULL AND d.lease_until > moment
                AND d.domain <> its_domain;
        IF busy >= per_provider THEN
            answer := 'provider_busy';
            RETURN NEXT; RETURN;
        END IF;
        SELECT d.provider, d.talked_at INTO was FROM outreach.ct_domains AS d
            WHERE d.domain = its_domain AND d.provider <> to_provider FOR UPDATE;
        IF FOUND THEN
            UPDATE outreach.ct_domains SET provider = to_provider, talked_at = NULL WHERE domain = its_domain;
            IF was.talked_at IS NOT NULL THEN
                PERFORM outreach.ct_note_talk(was.provider, was.talked_at);
            END IF;
            PERFORM outreach.ct_wake('places:' || was.provider, 1, moment);
        END IF;
    END IF;
    IF rail.state IS NOT NULL THEN
        -- The one try of a provider that is not open, as in ct_begin_probes.
        UPDATE outreach.ct_guardrails SET tries = tries + 1,
            next_try_at = moment + least(first_try_s * power(2, least(tries + 1, 20)), 21600) * interval '1 second'
            WHERE key = 'provider:' || to_provider;
    END IF;
    answer := 'granted';
    RETURN NEXT;
END $$;

-- Begin probe chains: for each (domain, provider) the domain's slot under a new lease, a place at the provider and one
-- SMTPCheck unit, or none of them. A talk on record stays with the provider that it was with. A batch that runs again
-- after a lost answer finds its own leases, and takes nothing for those that have not run out. `versions` and `seen` are
-- of passes that looked at the domain memory: where it holds newer answers than `seen` by now, they serve. NULL: it did not
-- look. `answer`: granted, halted, trial, provider_closed, provider_busy, domain_busy, answered, cap. (Without `leases` it
-- is the function of workers before this version.)
CREATE FUNCTION outreach.ct_begin_probes(
    owner text, domains text[], providers text[], leases uuid[], versions text[], seen timestamptz[],
    lease_s double precision, per_day bigint, per_provider integer
) RETURNS TABLE (place integer, answer text, retry_s double precision, detail text) LANGUAGE plpgsql AS $$
DECLARE
    today date := outreach.ct_utc_day();
    moment timestamptz;
    already bigint;
    taken bigint := 0;
    tool record;
    item record;
    rail record;
    locked_provider text := '';
    busy integer;
    begun uuid[];
BEGIN
    INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-005', 'day', today) ON CONFLICT DO NOTHING;
    -- This lock makes one caller wait for the other, so that "one at a time" and the cap are exact.
    SELECT u.used INTO already FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins = today FOR UPDATE;
    -- In the order of ct_end_probes: below they come by provider.
    PERFORM 1 FROM outreach.ct_domains AS d WHERE d.domain = ANY (domains) ORDER BY d.domain FOR UPDATE;
    WITH again AS (
        UPDATE outreach.ct_domains AS d SET lease_until = clock_timestamp() + lease_s * interval '1 second'
            FROM unnest(domains, leases) AS i (d, l)
            WHERE d.domain = i.d AND d.lease = i.l AND d.lease_owner = owner AND d.lease_until > clock_timestamp()
            RETURNING d.lease
    )
    SELECT array_agg(a.lease) INTO begun FROM again AS a;
    SELECT g.state, g.reason INTO tool FROM outreach.ct_guardrails AS g
        WHERE g.key = 'tool:TOOL-005' AND g.state IN ('halted', 'trial');
    FOR item IN
        SELECT i.d AS domain, i.p AS provider, i.l AS lease, i.v AS version, i.s AS seen, i.n::integer AS n
        FROM unnest(domains, providers, leases, versions, seen) WITH ORDINALITY AS i (d, p, l, v, s, n)
        ORDER BY i.p, i.d
    LOOP
        place := item.n; retry_s := NULL; detail := NULL;
        moment := clock_timestamp();
        IF item.lease = ANY (begun) THEN
            answer := 'granted';
            RETURN NEXT; CONTINUE;
        END IF;
        IF EXISTS (
            SELECT 1 FROM outreach.ct_memory AS m
            WHERE m.domain = item.domain AND m.rules_version = item.version AND m.answered_at > item.seen
        ) THEN
            answer := 'answered';
            RETURN NEXT; CONTINUE;
        END IF;
        IF tool.state = 'halted' THEN
            answer := 'halted'; detail := tool.reason;
            RETURN NEXT; CONTINUE;
        END IF;
        -- By itself: behind an AND it would be looked up for a tool that is open too (its state is NULL then, and NULL
        -- does not settle an AND), for each company, in a table of all domains of the day.
        IF tool.state = 'trial' THEN
            IF EXISTS (
                SELECT 1 FROM outreach.ct_domains AS d WHERE d.lease_owner IS NOT NULL AND d.lease_until > moment
            ) THEN
                answer := 'trial'; detail := outreach.ct_trial_talks() || ' of 3 providers have talked normally';
                RETURN NEXT; CONTINUE;
            END IF;
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
        PERFORM outreach.ct_note_talk(d.provider, d.talked_at) FROM outreach.ct_domains AS d
            WHERE d.domain = item.domain AND d.provider <> item.provider AND d.talked_at IS NOT NULL;
        INSERT INTO outreach.ct_domains AS d (
            domain, provider, lease_owner, lease, sessions, unit_day, lease_until, free_at
        )
            VALUES (
                item.domain, item.provider, owner, item.lease, 1, today, moment + lease_s * interval '1 second',
                '-infinity'
            )
            ON CONFLICT (domain) DO UPDATE
                SET provider = excluded.provider, lease_owner = excluded.lease_owner, lease = excluded.lease,
                    sessions = 1, unit_day = today, lease_until = excluded.lease_until,
                    talked_at = CASE WHEN d.provider = excluded.provider THEN d.talked_at END
                WHERE (d.lease_owner IS NULL OR d.lease_until <= moment) AND d.free_at <= moment;
        IF NOT FOUND THEN
            answer := 'domain_busy'; retry_s := outreach.ct_free_in(item.domain);
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

-- Go on with a further session under each lease, the `numbers`-th: one SMTPCheck unit, where the lease is still the
-- caller's. One that ran out goes on too, if nobody took the domain meanwhile, and its place at the provider. A batch that
-- runs again after a lost answer takes no unit twice. `answer`: granted, domain_busy, provider_busy, cap. Locks in the
-- order of ct_begin_probes.
CREATE FUNCTION outreach.ct_go_on(
    owner text, domains text[], leases uuid[], numbers integer[], lease_s double precision, per_day bigint,
    per_provider integer
) RETURNS TABLE (place integer, answer text, retry_s double precision) LANGUAGE plpgsql AS $$
DECLARE
    today date := outreach.ct_utc_day();
    already bigint;
    taken bigint := 0;
    moment timestamptz;
    item record;
    held record;
    busy integer;
BEGIN
    INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-005', 'day', today) ON CONFLICT DO NOTHING;
    SELECT u.used INTO already FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins = today FOR UPDATE;
    PERFORM 1 FROM outreach.ct_domains AS d WHERE d.domain = ANY (domains) ORDER BY d.domain FOR UPDATE;
    FOR item IN
        SELECT i.d AS domain, i.l AS lease, i.s AS number, i.n::integer AS n
        FROM unnest(domains, leases, numbers) WITH ORDINALITY AS i (d, l, s, n)
    LOOP
        place := item.n; retry_s := NULL;
        moment := clock_timestamp();
        SELECT d.provider, d.sessions INTO held FROM outreach.ct_domains AS d
            WHERE d.domain = item.domain AND d.lease = item.lease AND d.lease_owner = owner;
        IF NOT FOUND THEN
            answer := 'domain_busy'; retry_s := outreach.ct_free_in(item.domain);
            RETURN NEXT; CONTINUE;
        END IF;
        IF held.provider <> item.domain THEN
            -- Also of one that has not run out: a renewal may have revived it. The provider's own company needs no place.
            SELECT count(*) INTO busy FROM outreach.ct_domains AS d
                WHERE d.provider = held.provider AND d.lease_owner IS NOT NULL AND d.lease_until > moment
                    AND d.domain NOT IN (item.domain, d.provider);
            IF busy >= per_provider THEN
                answer := 'provider_busy';
                RETURN NEXT; CONTINUE;
            END IF;
        END IF;
        IF held.sessions < item.number THEN
            IF already + taken >= per_day THEN
                answer := 'cap'; retry_s := extract(epoch FROM ((today + 1)::timestamp AT TIME ZONE 'UTC') - moment);
                RETURN NEXT; CONTINUE;
            END IF;
            taken := taken + 1;
        END IF;
        UPDATE outreach.ct_domains AS d
            SET sessions = item.number, unit_day = CASE WHEN d.sessions < item.number THEN today ELSE d.unit_day END,
                lease_until = greatest(d.lease_until, moment + lease_s * interval '1 second')
            WHERE d.domain = item.domain;
        answer := 'granted';
        RETURN NEXT;
    END LOOP;
    IF taken > 0 THEN
        UPDATE outreach.ct_usage SET used = used + taken
            WHERE tool_id = 'TOOL-005' AND span = 'day' AND begins = today;
    END IF;
END $$;

-- What a domain answered lately: all of a pass where it is current (a PASS for pass_kept, a FAIL for fail_kept), the MX
-- hosts for mx_kept; whether a company of it is being probed now, and whether one has begun and waits for something else.
-- Of a form that Postgres inlines.
CREATE FUNCTION outreach.ct_recall(
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
