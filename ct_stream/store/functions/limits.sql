-- The limits and leases of the toolbox, exact over all workers. Each call is one round trip for a whole batch, and all
-- durations are by this server's clock. A company's hosts may be at several providers; each provider has its own
-- guardrail and its own places (ADR-CT-IMO-019). Limits and places are all workers'; guardrails are an egress's own
-- (ADR-CT-IMO-034).

-- The UTC day whose caps count now.
CREATE OR REPLACE FUNCTION outreach.ct_utc_day() RETURNS date LANGUAGE sql STABLE AS
$$ SELECT (clock_timestamp() AT TIME ZONE interval '0')::date $$;

-- Lock a tool's row of ct_rates up to the end of the transaction, and return when the tool may be called next. A row and
-- no advisory lock: anybody who may log in can hold one of those for ever.
CREATE OR REPLACE FUNCTION outreach.ct_lock_rate(tool text) RETURNS timestamptz
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    next_slot timestamptz;
BEGIN
    INSERT INTO outreach.ct_rates (tool_id, tat) VALUES (tool, clock_timestamp()) ON CONFLICT DO NOTHING;
    SELECT r.tat INTO next_slot FROM outreach.ct_rates AS r WHERE r.tool_id = tool FOR UPDATE;
    RETURN next_slot;
END $$;

-- Take up to `wanted` MXLookup units. `granted` look-ups may start: the first after `delay_s`, each next one 1 /
-- per_second later. For the rest `refusal` says 'rate' or 'cap', and `retry_s` when to try again.
CREATE OR REPLACE FUNCTION outreach.ct_take_mx(
    wanted integer, per_second double precision, per_day bigint, max_delay_s double precision,
    OUT granted integer, OUT delay_s double precision, OUT refusal text, OUT retry_s double precision
) LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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
    next_slot := outreach.ct_lock_rate('TOOL-004');
    moment := clock_timestamp();
    IF next_slot > moment + (max_delay_s + 1 / per_second + 1) * interval '1 second' THEN
        next_slot := moment;  -- further ahead than any grant, so the clock was set back
    END IF;
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
            retry_s := extract(epoch FROM ((today + 1)::timestamp AT TIME ZONE interval '0') - moment);
        ELSE
            refusal := 'rate';
            retry_s := delay_s + granted / per_second;
        END IF;
    END IF;
END $$;

-- In how many seconds does a domain's pause end? NULL under a lease: the end of the lease wakes the next company.
CREATE OR REPLACE FUNCTION outreach.ct_free_in(its_domain text) RETURNS double precision LANGUAGE sql STABLE AS $$
    SELECT extract(epoch FROM d.free_at - clock_timestamp())::double precision FROM outreach.ct_domains AS d
    WHERE d.domain = its_domain AND d.lease_owner IS NULL
$$;

-- Keep the time and the place of a normal session with its provider, when its domain is asked at another provider next,
-- or from another egress. The row has a name that no domain has.
CREATE OR REPLACE FUNCTION outreach.ct_note_talk(
    with_provider text, at_time timestamptz, at_address text, in_network text, its_egress text DEFAULT 'default'
) RETURNS void LANGUAGE sql AS $$
    INSERT INTO outreach.ct_domains AS d (domain, provider, talked_at, free_at, address, network, egress)
        -- free_at: ct_tidy counts its age from here
        VALUES ('@' || outreach.ct_rail(with_provider, its_egress), with_provider, at_time, at_time, at_address,
            in_network, its_egress)
        ON CONFLICT (domain) DO UPDATE SET talked_at = greatest(d.talked_at, excluded.talked_at),
            free_at = greatest(d.free_at, excluded.free_at),
            address = CASE WHEN excluded.talked_at >= d.talked_at THEN excluded.address ELSE d.address END,
            network = CASE WHEN excluded.talked_at >= d.talked_at THEN excluded.network ELSE d.network END
$$;

-- Start probing: for each (domain, provider) take the domain's slot under a new lease, a place at the provider and one
-- SMTPCheck unit, or none of them. `answer`: granted, halted, trial, provider_closed, provider_busy, domain_busy,
-- answered, cap. The time of the last normal session stays with its provider. If a batch runs again because its answer
-- was lost, it finds its own leases, and takes nothing again for those that have not run out. `versions` and `seen`
-- come from passes that looked at the domain memory: if it holds answers newer than `seen`, those are used instead.
-- NULL: the pass did not look. `own`: the provider is the company itself (ct_stream/gate/providers.py), so it takes no
-- place.
CREATE OR REPLACE FUNCTION outreach.ct_begin_probes(
    owner text, domains text[], providers text[], own boolean[], leases uuid[], versions text[], seen timestamptz[],
    lease_s double precision, per_day bigint, per_provider integer, its_egress text DEFAULT 'default'
) RETURNS TABLE (place integer, answer text, retry_s double precision, detail text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today date := outreach.ct_utc_day();
    moment timestamptz;
    already bigint;
    taken bigint := 0;
    tool record;
    item record;
    rail record;
    busy integer;
    begun uuid[];
BEGIN
    PERFORM outreach.ct_require_fresh();
    INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-005', 'day', today) ON CONFLICT DO NOTHING;
    -- These locks let one caller in at a time, so that "one at a time", the cap and the places at a provider are exact.
    -- Around midnight two callers may lock two days.
    SELECT u.used INTO already FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins = today FOR UPDATE;
    PERFORM outreach.ct_lock_rate('TOOL-005');
    -- Locked in the order of ct_end_probes; the loop below goes by provider.
    PERFORM 1 FROM outreach.ct_domains AS d WHERE d.domain = ANY (domains) ORDER BY d.domain FOR UPDATE;
    WITH again AS (
        UPDATE outreach.ct_domains AS d SET lease_until = clock_timestamp() + lease_s * interval '1 second'
            FROM unnest(domains, leases) AS i (d, l)
            WHERE d.domain = i.d AND d.lease = i.l AND d.lease_owner = owner AND d.lease_until > clock_timestamp()
            RETURNING d.lease
    )
    SELECT array_agg(a.lease) INTO begun FROM again AS a;
    SELECT g.state, g.reason, g.key INTO tool FROM outreach.ct_guardrails AS g
        WHERE g.key IN ('mail_from', outreach.ct_rail('tool:TOOL-005', its_egress)) AND g.state IN ('halted', 'trial')
        ORDER BY g.state, g.key LIMIT 1;
    FOR item IN
        SELECT i.d AS domain, i.p AS provider, i.o AS is_own, i.l AS lease, i.v AS version, i.s AS seen, i.n::integer AS n
        FROM unnest(domains, providers, own, leases, versions, seen) WITH ORDINALITY AS i (d, p, o, l, v, s, n)
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
            answer := CASE tool.key WHEN 'mail_from' THEN 'sender' ELSE 'halted' END; detail := tool.reason;
            RETURN NEXT; CONTINUE;
        END IF;
        -- A separate IF: joined by AND, the look-up would also run for an open tool (its state is NULL, and NULL does
        -- not end an AND), for each company, in a table with all domains of the day.
        IF tool.state = 'trial' THEN
            IF outreach.ct_is_asking(its_egress, moment) THEN
                answer := 'trial'; detail := outreach.ct_trial_talks(its_egress) || ' of ' || outreach.ct_talks_wanted()
                    || ' providers have talked normally';
                RETURN NEXT; CONTINUE;
            END IF;
        END IF;
        SELECT g.state, g.reason, g.next_try_at INTO rail FROM outreach.ct_guardrails AS g
            WHERE g.key = outreach.ct_rail('provider:' || item.provider, its_egress) AND g.state <> 'open';
        IF FOUND AND (rail.state = 'halted' OR rail.next_try_at IS NULL OR rail.next_try_at > moment) THEN
            answer := 'provider_closed'; detail := rail.reason;
            retry_s := extract(epoch FROM rail.next_try_at - moment);
            RETURN NEXT; CONTINUE;
        END IF;
        IF rail.state IS NOT NULL AND NOT outreach.ct_lock_try(outreach.ct_rail('provider:' || item.provider, its_egress)) THEN
            answer := 'provider_closed'; detail := rail.reason; retry_s := 5;
            RETURN NEXT; CONTINUE;
        END IF;
        IF already + taken >= per_day THEN
            answer := 'cap'; retry_s := extract(epoch FROM ((today + 1)::timestamp AT TIME ZONE interval '0') - moment);
            RETURN NEXT; CONTINUE;
        END IF;
        IF NOT item.is_own THEN
            SELECT count(*) INTO busy FROM outreach.ct_domains AS d
                WHERE d.provider = item.provider AND d.lease_owner IS NOT NULL AND d.lease_until > moment;
            IF busy >= per_provider THEN
                answer := 'provider_busy';
                RETURN NEXT; CONTINUE;
            END IF;
        END IF;
        PERFORM outreach.ct_note_talk(d.provider, d.talked_at, d.address, d.network, d.egress) FROM outreach.ct_domains AS d
            WHERE d.domain = item.domain AND d.provider <> item.provider AND d.talked_at IS NOT NULL;
        INSERT INTO outreach.ct_domains AS d (
            domain, provider, is_own, lease_owner, lease, lease_egress, sessions, unit_day, lease_until, free_at
        )
            VALUES (
                item.domain, item.provider, item.is_own, owner, item.lease, its_egress, 1, today,
                moment + lease_s * interval '1 second', '-infinity'
            )
            ON CONFLICT (domain) DO UPDATE
                SET provider = excluded.provider, is_own = excluded.is_own, lease_owner = excluded.lease_owner,
                    lease = excluded.lease, lease_egress = excluded.lease_egress, sessions = 1, unit_day = today, lease_until = excluded.lease_until,
                    talked_at = CASE WHEN d.provider = excluded.provider THEN d.talked_at END
                WHERE (d.lease_owner IS NULL OR d.lease_until <= moment) AND d.free_at <= moment;
        IF NOT FOUND THEN
            answer := 'domain_busy'; retry_s := outreach.ct_free_in(item.domain);
            RETURN NEXT; CONTINUE;
        END IF;
        IF rail.state IS NOT NULL THEN
            PERFORM outreach.ct_count_try(outreach.ct_rail('provider:' || item.provider, its_egress), moment);
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

-- Move a lease to another provider: past its guardrail and to a place there, or not at all. `answer`: granted, halted,
-- domain_busy (another one has the domain now), cap, provider_closed, provider_busy. A company's own servers need no
-- place, so the held place is kept for its next host. `is_known`: the guardrail has let this lease in before. Locks in
-- the order of ct_begin_probes.
CREATE OR REPLACE FUNCTION outreach.ct_enter_provider(
    owner text, its_lease uuid, its_domain text, to_provider text, is_own boolean, is_known boolean, per_day bigint,
    per_provider integer, its_egress text DEFAULT 'default'
) RETURNS TABLE (answer text, retry_s double precision, detail text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    today date := outreach.ct_utc_day();
    already bigint;
    moment timestamptz;
    rail record;
    was record;
    busy integer;
BEGIN
    PERFORM outreach.ct_require_fresh();
    retry_s := NULL; detail := NULL;
    INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-005', 'day', today) ON CONFLICT DO NOTHING;
    SELECT u.used INTO already FROM outreach.ct_usage AS u
        WHERE u.tool_id = 'TOOL-005' AND u.span = 'day' AND u.begins = today FOR UPDATE;
    SELECT g.reason, CASE g.key WHEN 'mail_from' THEN 'sender' ELSE 'halted' END INTO detail, answer
        FROM outreach.ct_guardrails AS g
        WHERE g.key IN ('mail_from', outreach.ct_rail('tool:TOOL-005', its_egress)) AND g.state = 'halted'
        ORDER BY g.key LIMIT 1;
    IF FOUND THEN
        RETURN NEXT; RETURN;
    END IF;
    PERFORM outreach.ct_lock_rate('TOOL-005');
    moment := clock_timestamp();
    IF NOT EXISTS (
        SELECT 1 FROM outreach.ct_domains AS d
        WHERE d.domain = its_domain AND d.lease_owner = owner AND d.lease = its_lease
    ) THEN
        answer := 'domain_busy'; retry_s := outreach.ct_free_in(its_domain);
        RETURN NEXT; RETURN;
    END IF;
    SELECT g.state, g.reason, g.next_try_at INTO rail FROM outreach.ct_guardrails AS g
        WHERE g.key = outreach.ct_rail('provider:' || to_provider, its_egress) AND g.state <> 'open' AND NOT is_known;
    IF FOUND AND (rail.state = 'halted' OR rail.next_try_at IS NULL OR rail.next_try_at > moment) THEN
        answer := 'provider_closed'; detail := rail.reason;
        retry_s := extract(epoch FROM rail.next_try_at - moment);
        RETURN NEXT; RETURN;
    END IF;
    IF rail.state IS NOT NULL AND NOT outreach.ct_lock_try(outreach.ct_rail('provider:' || to_provider, its_egress)) THEN
        answer := 'provider_closed'; detail := rail.reason; retry_s := 5;
        RETURN NEXT; RETURN;
    END IF;
    IF already >= per_day THEN  -- checked before the provider's one try is used up
        answer := 'cap'; retry_s := extract(epoch FROM ((today + 1)::timestamp AT TIME ZONE interval '0') - moment);
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
        SELECT d.provider, d.talked_at, d.address, d.network, d.egress INTO was FROM outreach.ct_domains AS d
            WHERE d.domain = its_domain AND d.provider <> to_provider FOR UPDATE;
        IF FOUND THEN
            UPDATE outreach.ct_domains SET provider = to_provider, is_own = false, talked_at = NULL
                WHERE domain = its_domain;
            IF was.talked_at IS NOT NULL THEN
                PERFORM outreach.ct_note_talk(was.provider, was.talked_at, was.address, was.network, was.egress);
            END IF;
            PERFORM outreach.ct_wake('places:' || was.provider, 1, moment);
        END IF;
    END IF;
    IF rail.state IS NOT NULL THEN
        PERFORM outreach.ct_count_try(outreach.ct_rail('provider:' || to_provider, its_egress), moment);
    END IF;
    answer := 'granted';
    RETURN NEXT;
END $$;

-- Start a further session under each lease, the `numbers`-th: take one SMTPCheck unit, if the lease is still the
-- caller's. `answer`: granted, domain_busy, provider_busy, cap. A lease that ran out is continued if nobody has taken
-- the domain or the last place at its provider meanwhile. If a batch runs again because its answer was lost, it takes
-- no unit twice. Locks in the order of ct_begin_probes.
CREATE OR REPLACE FUNCTION outreach.ct_go_on(
    owner text, domains text[], leases uuid[], numbers integer[], lease_s double precision, per_day bigint,
    per_provider integer
) RETURNS TABLE (place integer, answer text, retry_s double precision)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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
        SELECT d.provider, d.is_own, d.sessions INTO held FROM outreach.ct_domains AS d
            WHERE d.domain = item.domain AND d.lease = item.lease AND d.lease_owner = owner;
        IF NOT FOUND THEN
            answer := 'domain_busy'; retry_s := outreach.ct_free_in(item.domain);
            RETURN NEXT; CONTINUE;
        END IF;
        IF NOT held.is_own THEN
            -- Checked even for a lease that has not run out: a renewal may have revived it. The provider's own company
            -- needs no place.
            SELECT count(*) INTO busy FROM outreach.ct_domains AS d
                WHERE d.provider = held.provider AND d.lease_owner IS NOT NULL AND d.lease_until > moment
                    AND d.domain <> item.domain AND NOT d.is_own;
            IF busy >= per_provider THEN
                answer := 'provider_busy';
                RETURN NEXT; CONTINUE;
            END IF;
        END IF;
        IF held.sessions < item.number THEN
            IF already + taken >= per_day THEN
                answer := 'cap'; retry_s := extract(epoch FROM ((today + 1)::timestamp AT TIME ZONE interval '0') - moment);
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

-- End leases: the pause of each domain counts from `ended_s` seconds ago. This wakes the next company of each domain
-- for the end of the pause, one company for each place that came free at a provider, and one if TOOL-005 is on trial.
-- `begun`: how many sessions a pass really began. A unit that it took beyond them goes back to the day that paid for
-- it, and wakes a company that waits for midnight, so that only sessions that servers saw count towards the day's cap.
-- Only the caller's own leases end, so a batch that runs again because its answer was lost ends nothing twice. If units
-- come back, the days' units are locked before the domains, as in ct_begin_probes. The unit of a session that was still
-- being asked for when its pass was cancelled may come too late for that order; then one of two deadlocked statements
-- runs again. `addresses`, `networks`: where the server is that talked.
CREATE OR REPLACE FUNCTION outreach.ct_end_probes(
    owner text, ended_domains text[], leases uuid[], ended_s double precision[], talked boolean[], addresses text[],
    networks text[], begun integer[], pause_s double precision, its_egress text DEFAULT 'default'
) RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
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
    PERFORM outreach.ct_note_talk(d.provider, d.talked_at, d.address, d.network, d.egress)
        FROM unnest(ended_domains, leases, talked) AS i (d, l, t)
        JOIN outreach.ct_domains AS d ON d.domain = i.d AND d.lease = i.l AND d.lease_owner = owner
        WHERE i.t AND d.talked_at IS NOT NULL AND d.egress <> its_egress;
    FOR ended IN
        UPDATE outreach.ct_domains AS d
            SET lease_owner = NULL, lease = NULL, lease_until = NULL,
                free_at = moment + (pause_s - i.s) * interval '1 second',
                talked_at = CASE WHEN i.t THEN moment ELSE d.talked_at END,
                address = CASE WHEN i.t THEN i.a ELSE d.address END,
                network = CASE WHEN i.t THEN i.w ELSE d.network END,
                egress = CASE WHEN i.t THEN its_egress ELSE d.egress END
            FROM unnest(ended_domains, leases, ended_s, talked, addresses, networks, begun) AS i (d, l, s, t, a, w, b)
            WHERE d.domain = i.d AND d.lease = i.l AND d.lease_owner = owner
            RETURNING d.domain, d.provider, d.is_own, d.free_at, d.unit_day, greatest(d.sessions - i.b, 0) AS unused
    LOOP
        PERFORM outreach.ct_wake('domain:' || ended.domain, 1, ended.free_at);
        IF NOT ended.is_own THEN
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
    IF EXISTS (
        SELECT 1 FROM outreach.ct_guardrails AS g
        WHERE g.key = outreach.ct_rail('tool:TOOL-005', its_egress) AND g.state = 'trial'
    ) THEN
        PERFORM outreach.ct_wake(outreach.ct_rail('tool:TOOL-005', its_egress), 1, moment);
    END IF;
END $$;
