-- A paid call is reserved between two answers, never beside one (ADR-CT-IMO-017).

-- Reserve the one attempt of each company, or say what stands in its place; answers as in 0005.
CREATE OR REPLACE FUNCTION outreach.ct_take_tier2(
    ids uuid[], addresses text[], tokens uuid[], provider text, per_second double precision, per_month bigint,
    usd_per_month double precision, usd_per_call double precision, due_s double precision, max_delay_s double precision,
    most_in_a_row integer
) RETURNS TABLE (
    place integer, answer text, said text, detail text, asked text, delay_s double precision, retry_s double precision,
    is_first boolean
) LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, outreach AS $$
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
    -- Answers wait: one that came between the looks at the guardrail and at the attempts would give its place away to
    -- a second company, though it has just halted the tool. Before the month's row, as ct_answer_tier2 takes no other.
    PERFORM pg_advisory_xact_lock(hashtextextended('ct:tier2', 0));
    LOOP
        month := date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC')::date;
        INSERT INTO outreach.ct_usage (tool_id, span, begins) VALUES ('TOOL-019', 'month', month) ON CONFLICT DO NOTHING;
        SELECT u.used, u.usd, u.refused_at INTO usage FROM outreach.ct_usage AS u
            WHERE u.tool_id = 'TOOL-019' AND u.span = 'month' AND u.begins = month FOR UPDATE;
        moment := clock_timestamp();
        -- The month may have turned while this waited for its row.
        EXIT WHEN month = date_trunc('month', moment AT TIME ZONE 'UTC')::date;
    END LOOP;
    calls := usage.used;
    spent := usage.usd;
    INSERT INTO outreach.ct_rates (tool_id, tat) VALUES ('TOOL-019', moment) ON CONFLICT DO NOTHING;
    SELECT r.tat INTO next_slot FROM outreach.ct_rates AS r WHERE r.tool_id = 'TOOL-019' FOR UPDATE;
    next_slot := greatest(next_slot, moment);
    SELECT g.reason INTO halted_why FROM outreach.ct_guardrails AS g
        WHERE g.key = 'tool:TOOL-019' AND g.state = 'halted';
    in_a_row := outreach.ct_tier2_in_a_row(most_in_a_row);
    room := CASE
        WHEN in_a_row = 0 THEN NULL -- the newest answer was of use
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
            IF attempt.status IS NULL AND attempt.token = item.token THEN
                answer := 'granted'; -- by a transaction whose COMMIT was not heard of: nobody has called yet
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
            retry_s := extract(epoch FROM ((month + interval '1 month')::timestamp AT TIME ZONE 'UTC') - moment);
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
            -- The next answer wakes some. Who is put away just after it looks again soon, and the more wait, the later.
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
