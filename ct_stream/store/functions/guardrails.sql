-- How guardrails close, pause and open again (ADR-CT-IMO-019).
--   open     nothing is in the way
--   paused   a provider said that we ask too fast: one company is tried after 60 s, then after 120 s, ...
--   closed   a provider refuses us or cannot be reached: one company is tried after 10 min, then after 20 min, ...
--   halted   a person must resume it
--   trial    a person resumed TOOL-005: one company at a time until enough providers have talked normally

-- What servers think of us they think of the address that we come from. So the guardrails of TOOL-005 and of providers
-- are an egress's own: 'tool:TOOL-005@dc2', 'provider:bigmail.example@dc2'. Those of the egress `default` bear no name.
CREATE OR REPLACE FUNCTION outreach.ct_rail(base text, its_egress text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT base || CASE WHEN its_egress = 'default' THEN '' ELSE '@' || its_egress END
$$;

-- The egress of such a guardrail: no tool and no provider has an @ in its name.
CREATE OR REPLACE FUNCTION outreach.ct_egress_of(rail text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(substring(rail FROM '@([^@]*)$'), 'default')
$$;

-- The network (a /24 or a /48) of such a guardrail if it is named after an address or a network; NULL if after anything else.
CREATE OR REPLACE FUNCTION outreach.ct_network_of(rail text) RETURNS cidr
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    place inet;
BEGIN
    place := substring(rail FROM '^provider:([^@]*)')::inet;
    RETURN network(set_masklen(place, CASE family(place) WHEN 4 THEN 24 ELSE 48 END));
EXCEPTION WHEN invalid_text_representation THEN
    RETURN NULL;
END $$;

-- The names of egresses that workers had within a week.
CREATE OR REPLACE FUNCTION outreach.ct_egresses() RETURNS SETOF text LANGUAGE sql STABLE AS $$
    SELECT DISTINCT w.egress FROM outreach.ct_workers AS w
$$;

-- Is a session open from this egress?
CREATE OR REPLACE FUNCTION outreach.ct_is_asking(its_egress text, moment timestamptz) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (
        SELECT 1 FROM outreach.ct_domains AS d
        WHERE d.lease_owner IS NOT NULL AND d.lease_until > moment AND d.lease_egress = its_egress
    )
$$;

-- Lock a provider's one try; return false if a person is opening it at this moment, for however long: nobody waits.
CREATE OR REPLACE FUNCTION outreach.ct_lock_try(rail text) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM outreach.ct_guardrails AS g WHERE g.key = rail FOR UPDATE SKIP LOCKED;
    RETURN FOUND;
END $$;

-- Use up the one try of a provider that is not open. Each next try comes after twice the time, up to 6 hours.
CREATE OR REPLACE FUNCTION outreach.ct_count_try(rail text, moment timestamptz) RETURNS void LANGUAGE sql AS $$
    UPDATE outreach.ct_guardrails AS g SET tries = least(g.tries, 1000) + 1,
        next_try_at = moment
            + least(g.first_try_s * power(2, least(g.tries + 1, 20)) * interval '1 second', interval '6 hours')
    WHERE g.key = rail
$$;

-- How many providers must talk normally before TOOL-005 is open for all again?
CREATE OR REPLACE FUNCTION outreach.ct_talks_wanted() RETURNS integer LANGUAGE sql IMMUTABLE AS $$ SELECT 3 $$;

-- When, within the span that evidence counts for, did a person last resume a guardrail, or a normal session open it? What
-- servers said of us before that counts no more. A time in the future was written before the clock was set back.
CREATE OR REPLACE FUNCTION outreach.ct_opened_at(rail text) RETURNS timestamptz
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    -- In the order of its index: a max(at) would walk through all guardrails' changes.
    SELECT coalesce((
        SELECT l.at FROM outreach.ct_guardrail_log AS l
        WHERE l.key = rail AND l.state IN ('open', 'trial')
            AND l.at > statement_timestamp() - interval '24 hours' AND l.at <= statement_timestamp()
        ORDER BY l.log_id DESC LIMIT 1
    ), '-infinity')
$$;

-- How many providers have talked normally since the trial of this egress began?
CREATE OR REPLACE FUNCTION outreach.ct_trial_talks(its_egress text DEFAULT 'default') RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT count(DISTINCT d.provider)::integer FROM outreach.ct_domains AS d
    WHERE d.talked_at > (
            -- One that began in the future is from before the clock was set back.
            SELECT CASE WHEN g.since <= clock_timestamp() THEN g.since ELSE outreach.ct_opened_at(g.key) END
            FROM outreach.ct_guardrails AS g WHERE g.key = outreach.ct_rail('tool:TOOL-005', its_egress)
        )
        AND d.talked_at <= clock_timestamp() AND d.egress = its_egress
$$;

-- Put a guardrail into a state, with the reason in the log; return true if that changed it. The gate may only tighten:
-- it pauses and closes providers, and halts anything. It opens providers, after a normal session as it says; what is
-- halted is opened by resume_guardrail alone. A closed guardrail is not paused. Where a person is opening it and does not
-- come to an end, it is as if this change had come before: that person's opening counts. For anything else it waits.
CREATE OR REPLACE FUNCTION outreach.ct_set_guardrail(rail text, new_state text, why text, next_try timestamptz)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- A caller's collation could take others for the same.
    its_key CONSTANT text COLLATE "default" := rail;
    its_state CONSTANT text COLLATE "default" := new_state;
    changed boolean;
    distance double precision := coalesce(greatest(1, extract(epoch FROM next_try - clock_timestamp())), 600);
BEGIN
    -- People resume a guardrail by its key, and TOOL-005 is short for tool:TOOL-005: no key may look like another one.
    IF (its_key COLLATE "C" ~ '^(provider:.+|tool:TOOL-[0-9]{3}(@[A-Za-z0-9._-]+)?|[a-z_]+)$') IS NOT TRUE THEN
        RAISE EXCEPTION '% is no key of a guardrail', quote_nullable(its_key)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF its_state <> 'halted' AND its_key NOT LIKE 'provider:%' OR its_state = 'trial' THEN
        RAISE EXCEPTION 'only a person resumes %', rail USING ERRCODE = 'insufficient_privilege';
    END IF;
    -- A provider without a row is open (ct_tidy). A normal session there changes nothing, but may end somebody's wait.
    IF its_state = 'open' AND NOT EXISTS (SELECT 1 FROM outreach.ct_guardrails AS g WHERE g.key = its_key) THEN
        PERFORM outreach.ct_wake(rail, outreach.ct_woken_at_once(), clock_timestamp());
        RETURN false;
    END IF;
    FOR n IN 1..20 LOOP
        PERFORM FROM outreach.ct_guardrails AS g WHERE g.key = its_key FOR UPDATE SKIP LOCKED;
        EXIT WHEN FOUND OR NOT EXISTS (SELECT g.key FROM outreach.ct_guardrails AS g WHERE g.key = its_key);
        IF n = 20 THEN
            -- An open one is no person's to lock: who holds it is to be waited for.
            IF EXISTS (SELECT g.key FROM outreach.ct_guardrails AS g WHERE g.key = its_key AND g.state IN ('open', 'trial'))
            THEN
                RAISE EXCEPTION 'somebody holds the guardrail %', rail USING ERRCODE = 'lock_not_available';
            END IF;
            RETURN false;
        END IF;
        PERFORM pg_sleep(0.1);
    END LOOP;
    INSERT INTO outreach.ct_guardrails AS g (key, state, reason, next_try_at, first_try_s, changed_by)
        VALUES (rail, its_state, left(why, 1000), next_try, distance, session_user)
        ON CONFLICT (key) DO UPDATE SET state = excluded.state, reason = excluded.reason, since = clock_timestamp(),
            next_try_at = excluded.next_try_at, first_try_s = excluded.first_try_s, tries = 0,
            changed_by = excluded.changed_by
        WHERE g.state NOT IN (excluded.state, 'halted') AND NOT (g.state = 'closed' AND excluded.state = 'paused')
        RETURNING true INTO changed;
    IF changed THEN
        INSERT INTO outreach.ct_guardrail_log (key, state, reason) VALUES (rail, its_state, left(why, 1000));
        IF its_state = 'open' THEN
            PERFORM outreach.ct_wake(rail, outreach.ct_woken_at_once(), clock_timestamp());
        END IF;
    END IF;
    RETURN coalesce(changed, false);
END $$;

-- Open TOOL-005 for this egress if enough providers have talked normally since a person resumed it; return true if that
-- opened it.
CREATE OR REPLACE FUNCTION outreach.ct_end_trial(its_egress text DEFAULT 'default') RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    rail CONSTANT text COLLATE "default" := outreach.ct_rail('tool:TOOL-005', its_egress);
    talks integer;
BEGIN
    -- A worker may ask for a few seconds longer than the trial lasts. Counting reads the domains of the day.
    IF NOT EXISTS (SELECT 1 FROM outreach.ct_guardrails AS g WHERE g.key = rail AND g.state = 'trial') THEN
        RETURN false;
    END IF;
    talks := outreach.ct_trial_talks(its_egress);
    IF talks < outreach.ct_talks_wanted() THEN
        RETURN false;
    END IF;
    UPDATE outreach.ct_guardrails SET state = 'open', since = clock_timestamp(), changed_by = session_user,
        reason = talks || ' providers talk normally again'
        WHERE key = rail AND state = 'trial';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO outreach.ct_guardrail_log (key, state, reason)
        VALUES (rail, 'open', talks || ' providers talk normally again');
    PERFORM outreach.ct_wake(rail, outreach.ct_woken_at_once(), clock_timestamp());
    RETURN true;
END $$;

-- Close a provider on every egress if it is closed on two: whoever refuses us at a second address does not mean the
-- address, and a third one must not be spent on finding out.
CREATE OR REPLACE FUNCTION outreach.ct_close_everywhere(provider text, why text, first_try_s double precision)
RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;
BEGIN
    IF (
        SELECT count(*) FROM outreach.ct_guardrails AS g JOIN outreach.ct_egresses() AS e (name)
            ON g.key = outreach.ct_rail('provider:' || provider, e.name)
        WHERE g.state = 'closed'
    ) < 2 THEN
        RETURN;
    END IF;
    FOR name IN SELECT e.name FROM outreach.ct_egresses() AS e (name) ORDER BY e.name LOOP
        IF outreach.ct_set_guardrail(outreach.ct_rail('provider:' || provider, name), 'closed',
                'two of our addresses meet this; ' || why, clock_timestamp() + first_try_s * interval '1 second')
        THEN
            RETURN NEXT name;
        END IF;
    END LOOP;
END $$;

-- A worker begins. If its egress is a new name, whatever is in the way of another one is in its way too: nobody slips out
-- of a halt by a restart under another name. Returns what was halted or closed for it.
CREATE OR REPLACE FUNCTION outreach.ct_begin_egress(its_worker text, its_egress text) RETURNS SETOF text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    other record;
    its_rail text;
BEGIN
    IF EXISTS (
        SELECT 1 FROM outreach.ct_workers AS w WHERE w.egress = its_egress AND w.worker <> its_worker
    ) THEN
        RETURN;
    END IF;
    FOR other IN
        SELECT g.key, g.state, g.next_try_at, g.first_try_s FROM outreach.ct_guardrails AS g
        WHERE g.state <> 'open' AND (g.key LIKE 'tool:TOOL-005%' OR g.key LIKE 'provider:%')
            AND outreach.ct_egress_of(g.key) <> its_egress
        ORDER BY g.key
    LOOP
        its_rail := outreach.ct_rail(split_part(other.key, '@', 1), its_egress);
        IF outreach.ct_set_guardrail(
            its_rail, CASE other.state WHEN 'trial' THEN 'halted' ELSE other.state END,
            'the egress ' || its_egress || ' is a new name, and ' || other.key || ' is ' || other.state,
            CASE WHEN other.state NOT IN ('trial', 'halted') THEN
                clock_timestamp() + other.first_try_s * interval '1 second' END
        ) THEN
            RETURN NEXT its_rail;
        END IF;
    END LOOP;
END $$;

-- Refuse a snapshot: who decides by the state of others must see what they have just committed.
CREATE OR REPLACE FUNCTION outreach.ct_require_fresh() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'this is done in READ COMMITTED, which sees what others have just changed'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
END $$;

-- The log names the login of the session. Others could lend it this right, by a function of theirs that it calls.
CREATE OR REPLACE FUNCTION outreach.ct_require_person() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pg_has_role(session_user, 'ct_ops', 'MEMBER') AND NOT pg_has_role(session_user, 'ct_owner', 'MEMBER') THEN
        RAISE EXCEPTION 'login % is not one of the people: grant it ct_ops', session_user
            USING ERRCODE = 'insufficient_privilege';
    END IF;
END $$;

-- For people (ct_ops): open a paused, closed or halted guardrail, with a reason for the log. TOOL-005 goes on trial
-- first, and so does that of every egress when our sender is resumed: see ct_begin_probes. The evidence of before is void by its time (ct_opened_at, ct_stream/gate/evidence.py), and
-- workers wake who waits (ct_wake_sleepers): a person's transaction may stay open for as long as a lunch, so it locks
-- nothing but the guardrail itself, for which nobody waits.
CREATE OR REPLACE FUNCTION outreach.resume_guardrail(rail text, why text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    its_key CONSTANT text COLLATE "default" := rail;  -- a caller's collation could take other keys for the same
    before text;
    after text := CASE WHEN split_part(its_key, '@', 1) = 'tool:TOOL-005' THEN 'trial' ELSE 'open' END;
BEGIN
    IF why IS NULL OR why !~ '[^[:space:]]' OR length(why) > 1000 THEN
        RAISE EXCEPTION 'a reason is needed to resume %, of at most 1000 characters', rail;
    END IF;
    PERFORM outreach.ct_require_person();
    PERFORM outreach.ct_require_fresh();
    -- One that is open is not locked: the gate must be able to halt at any moment. Waiting here would lock a row that has
    -- meanwhile been opened, even though it is not returned: nobody waits, and the error gives such a lock back.
    BEGIN
        SELECT g.state INTO before FROM outreach.ct_guardrails AS g
            WHERE g.key = its_key AND g.state NOT IN ('open', 'trial') FOR UPDATE NOWAIT;
        IF before IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'CT002';
        END IF;
    EXCEPTION
        WHEN SQLSTATE 'CT002' THEN NULL;
        WHEN lock_not_available THEN
            RAISE EXCEPTION 'somebody else is resuming % in a transaction that has not ended', rail
                USING ERRCODE = 'lock_not_available';
    END;
    IF before IS NULL THEN
        SELECT g.state INTO before FROM outreach.ct_guardrails AS g WHERE g.key = its_key;
        -- Opened in the future, before the clock was set back: that opening does not count yet, and this one does.
        IF EXISTS (SELECT g.key FROM outreach.ct_guardrails AS g WHERE g.key = its_key AND g.since > clock_timestamp()) THEN
            INSERT INTO outreach.ct_guardrail_log (key, state, reason) VALUES (rail, before, why);
        END IF;
        RETURN coalesce(before, 'open') || ' already';
    END IF;
    UPDATE outreach.ct_guardrails SET state = after, reason = why, since = clock_timestamp(), next_try_at = NULL,
        tries = 0, changed_by = session_user WHERE key = its_key;
    INSERT INTO outreach.ct_guardrail_log (key, state, reason) VALUES (rail, after, why);
    IF its_key = 'mail_from' THEN
        -- Our sender comes back as carefully as an address does, from each of them.
        WITH tried AS (
            INSERT INTO outreach.ct_guardrails AS g (key, state, reason, changed_by)
                SELECT outreach.ct_rail('tool:TOOL-005', e.name), 'trial', why, session_user
                FROM outreach.ct_egresses() AS e (name)
                ON CONFLICT (key) DO UPDATE SET state = 'trial', reason = excluded.reason, since = clock_timestamp(),
                    changed_by = excluded.changed_by
                WHERE g.state = 'open'
                RETURNING g.key
        )
        INSERT INTO outreach.ct_guardrail_log (key, state, reason) SELECT t.key, 'trial', why FROM tried AS t;
    END IF;
    RETURN before || ' -> ' || after;
END $$;

-- For people (ct_ops): let workers start with these limits and patterns beside workers that have others, until those are
-- restarted too. The row is the log.
CREATE OR REPLACE FUNCTION outreach.ct_accept_toolbox(accepted jsonb, why text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made bigint;
BEGIN
    IF why IS NULL OR why !~ '[^[:space:]]' OR length(why) > 1000 THEN
        RAISE EXCEPTION 'a reason is needed to accept a toolbox, of at most 1000 characters';
    END IF;
    IF length(accepted::text) > 100000 THEN
        RAISE EXCEPTION 'a toolbox has at most 100000 characters as JSON';
    END IF;
    PERFORM outreach.ct_require_person();
    INSERT INTO outreach.ct_toolboxes (toolbox, reason) VALUES (accepted, why) RETURNING ordinal INTO made;
    RETURN made;
END $$;
