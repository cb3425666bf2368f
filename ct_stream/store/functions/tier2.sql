-- Tier-2 (EmailVerifier, TOOL-019): one paid attempt for each company, for ever, and the month's budget
-- (ADR-CT-IMO-017).

-- How many of the newest answers, at most `most`, were unusable in a row since a person last opened the tool? NULL if
-- there has been no answer since. An attempt that its worker abandoned says nothing about the vendor.
CREATE OR REPLACE FUNCTION outreach.ct_tier2_in_a_row(most integer) RETURNS integer LANGUAGE sql STABLE AS $$
    SELECT CASE WHEN count(*) > 0 THEN count(*) FILTER (WHERE NOT n.is_broken) END::integer
    FROM (
        SELECT bool_or(a.status <> 'no_answer') OVER (ORDER BY a.answered_at DESC, a.outreach_id) AS is_broken
        FROM (
            SELECT t.outreach_id, t.status, t.answered_at FROM outreach.ct_tier2_attempts AS t
            WHERE t.answered_at > coalesce((
                SELECT g.since FROM outreach.ct_guardrails AS g WHERE g.key = 'tool:TOOL-019' AND g.state <> 'halted'
            ), '-infinity')
            ORDER BY t.answered_at DESC, t.outreach_id LIMIT most
        ) AS a
    ) AS n
$$;

-- Reserve the one attempt of each company, or say why not. All limits are checked in this transaction, exact over all
-- workers, in the order of `ids`; it never runs at the same time as ct_answer_tier2. `answer`:
--   granted    call after `delay_s`, and store the answer within `due_s`
--   answered   `said` and `detail` are the answer about the address `asked`
--   under_way  another call is running; it ends within `retry_s`
--   off        no provider
--   budget     the month's calls or dollars are spent, for another `retry_s`; `is_first` once a month
--   halted     a person must resume the tool; `detail` says why
--   turn       the vendor has not shown yet that it works: few calls at a time, so that a wrong key costs few companies
--   rate       `retry_s` until the next second's slot
CREATE OR REPLACE FUNCTION outreach.ct_take_tier2(
    ids uuid[], addresses text[], tokens uuid[], provider text, per_second double precision, per_month bigint,
    usd_per_month double precision, usd_per_call double precision, due_s double precision, max_delay_s double precision,
    most_in_a_row integer
) RETURNS TABLE (
    place integer, answer text, said text, detail text, asked text, delay_s double precision, retry_s double precision,
    is_first boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    month date;
    moment timestamptz;
    usage record;
    calls bigint;
    spent numeric;
    price numeric := usd_per_call::numeric;
    next_slot timestamptz;
    halted_why text;
    in_a_row integer;
    room bigint;
    behind bigint;
    late integer := 0;
    item record;
    attempt record;
BEGIN
    PERFORM outreach.ct_require_fresh();
    IF (usd_per_call >= 0 AND usd_per_call < 'Infinity' AND usd_per_month >= 0 AND usd_per_month < 'Infinity') IS NOT TRUE THEN
        RAISE EXCEPTION 'a price of % USD and a budget of % USD are no amounts of money', usd_per_call, usd_per_month
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF (due_s BETWEEN 0 AND 3600 AND per_second > 0.001) IS NOT TRUE THEN
        RAISE EXCEPTION 'an answer due in % s, or % calls a second, are no limits', due_s, per_second
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Answers wait for this row: one that came between the looks at the guardrail and at the attempts would free its
    -- place for a second company, although it has just halted the tool. It is locked before the month's row, because it
    -- is the only lock of ct_answer_tier2.
    next_slot := outreach.ct_lock_rate('TOOL-019');
    LOOP
        month := date_trunc('month', clock_timestamp() AT TIME ZONE interval '0')::date;
        INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-019', 'month', month) ON CONFLICT DO NOTHING;
        SELECT u.used, u.usd, u.refused_at INTO usage FROM outreach.ct_usage AS u
            WHERE u.tool_id = 'TOOL-019' AND u.span = 'month' AND u.begins = month FOR UPDATE;
        moment := clock_timestamp();
        -- A new month may have begun while this waited for the row.
        EXIT WHEN month = date_trunc('month', moment AT TIME ZONE interval '0')::date;
    END LOOP;
    calls := usage.used;
    spent := usage.usd;
    next_slot := greatest(next_slot, moment);
    SELECT g.reason INTO halted_why FROM outreach.ct_guardrails AS g
        WHERE g.key = 'tool:TOOL-019' AND g.state = 'halted';
    in_a_row := outreach.ct_tier2_in_a_row(most_in_a_row);
    room := CASE
        WHEN in_a_row = 0 THEN NULL -- the newest answer was useful
        ELSE greatest(1, most_in_a_row - coalesce(in_a_row, most_in_a_row)) - (
            SELECT count(*) FROM outreach.ct_tier2_attempts AS t WHERE t.status IS NULL AND t.answer_due > moment
        )
    END;
    FOR item IN
        SELECT i.id, i.address, i.token, i.n::integer AS n
        FROM unnest(ids, addresses, tokens) WITH ORDINALITY AS i (id, address, token, n) ORDER BY i.id
    LOOP
        place := item.n; answer := NULL; said := NULL; detail := NULL; asked := NULL; delay_s := 0; retry_s := NULL;
        is_first := false;
        SELECT t.* INTO attempt FROM outreach.ct_tier2_attempts AS t WHERE t.outreach_id = item.id FOR UPDATE;
        IF FOUND THEN
            IF attempt.status IS NULL AND attempt.token = item.token AND attempt.answer_due > moment THEN
                answer := 'granted'; -- by a transaction whose COMMIT was not answered; nobody has called yet
                RETURN NEXT; CONTINUE;
            END IF;
            IF attempt.status IS NULL AND attempt.answer_due > moment THEN
                answer := 'under_way'; retry_s := extract(epoch FROM attempt.answer_due - moment);
                RETURN NEXT; CONTINUE;
            END IF;
            IF attempt.status IS NULL THEN
                UPDATE outreach.ct_tier2_attempts AS t SET status = 'no_answer',
                    detail = 'the worker that asked ended before it stored an answer'
                    WHERE t.outreach_id = item.id RETURNING t.* INTO attempt;
            END IF;
            answer := 'answered'; said := attempt.status; detail := attempt.detail; asked := attempt.address;
            RETURN NEXT; CONTINUE;
        END IF;
        IF provider = '' THEN
            answer := 'off';
            RETURN NEXT; CONTINUE;
        END IF;
        IF calls >= per_month OR spent + price > usd_per_month::numeric THEN
            answer := 'budget';
            detail := format('the Tier-2 budget of %s is spent: %s of %s calls, %s of %s USD', to_char(month, 'YYYY-MM'),
                calls, per_month, trim_scale(spent), usd_per_month::numeric);
            retry_s := extract(epoch FROM ((month + interval '1 month')::timestamp AT TIME ZONE interval '0') - moment);
            IF usage.refused_at IS NULL THEN
                UPDATE outreach.ct_usage AS u SET refused_at = moment
                    WHERE u.tool_id = 'TOOL-019' AND u.span = 'month' AND u.begins = month
                    RETURNING u.used, u.usd, u.refused_at INTO usage;
                INSERT INTO outreach.ct_guardrail_log (key, state, reason) VALUES ('budget:TOOL-019', 'closed', detail);
                is_first := true;
            END IF;
            RETURN NEXT; CONTINUE;
        END IF;
        IF halted_why IS NOT NULL THEN
            answer := 'halted'; detail := halted_why;
            RETURN NEXT; CONTINUE;
        END IF;
        IF room <= 0 THEN
            -- The next answer wakes some. A company that is parked just after it tries again soon; the more wait, the
            -- later.
            IF behind IS NULL THEN
                SELECT count(*) INTO behind FROM outreach.ct_passes AS p
                    WHERE p.waits_on = 'tier2:turn' AND p.state = 'waiting';
            END IF;
            answer := 'turn'; retry_s := 2 + behind / per_second; behind := behind + 1;
            RETURN NEXT; CONTINUE;
        END IF;
        delay_s := extract(epoch FROM next_slot - moment);
        IF delay_s > max_delay_s THEN
            answer := 'rate'; retry_s := delay_s + late / per_second; late := late + 1;
            RETURN NEXT; CONTINUE;
        END IF;
        INSERT INTO outreach.ct_tier2_attempts (outreach_id, provider, address, token, usd, reserved_at, answer_due)
            VALUES (item.id, ct_take_tier2.provider, item.address, item.token, price, moment,
                moment + due_s * interval '1 second');
        calls := calls + 1;
        spent := spent + price;
        room := room - 1;
        next_slot := next_slot + interval '1 second' / per_second;
        answer := 'granted';
        RETURN NEXT;
    END LOOP;
    UPDATE outreach.ct_usage AS u SET used = calls, usd = spent
        WHERE u.tool_id = 'TOOL-019' AND u.span = 'month' AND u.begins = month AND (u.used, u.usd) <> (calls, spent);
    UPDATE outreach.ct_rates AS r SET tat = next_slot WHERE r.tool_id = 'TOOL-019' AND r.tat < next_slot;
END $$;

-- Store the answer to a call, unless it comes too late, and wake who waits for it. `final_said` and `final_detail` are
-- the answer that counts. A reply about our account (`halt_why`) or `most_in_a_row` unusable answers halt the tool;
-- `halted_now` is the reason if this call did it.
CREATE OR REPLACE FUNCTION outreach.ct_answer_tier2(
    id uuid, its_token uuid, said text, why text, halt_why text, most_in_a_row integer, most_woken integer,
    OUT final_said text, OUT final_detail text, OUT halted_now text
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    reason text := halt_why;
BEGIN
    IF said IS NULL THEN
        RAISE EXCEPTION 'an answer about % needs its word', id USING ERRCODE = 'null_value_not_allowed';
    END IF;
    -- One after the other: answers that come at the same time would not see each other, and miscount.
    PERFORM outreach.ct_lock_rate('TOOL-019');
    UPDATE outreach.ct_tier2_attempts AS t SET status = said, detail = why, answered_at = clock_timestamp()
        WHERE t.outreach_id = id AND t.token = its_token AND t.status IS NULL;
    SELECT t.status, t.detail INTO final_said, final_detail FROM outreach.ct_tier2_attempts AS t
        WHERE t.outreach_id = id;
    IF reason IS NULL AND said = 'no_answer' AND outreach.ct_tier2_in_a_row(most_in_a_row) >= most_in_a_row THEN
        reason := format('%s answers in a row were of no use, the last one: %s', most_in_a_row, why);
    END IF;
    IF reason IS NOT NULL AND outreach.ct_set_guardrail('tool:TOOL-019', 'halted', reason, NULL::timestamptz) THEN
        halted_now := reason;
    END IF;
    PERFORM outreach.ct_wake('tier2:' || id, 1, clock_timestamp());
    PERFORM outreach.ct_wake('tier2:turn', most_woken, clock_timestamp());
END $$;
