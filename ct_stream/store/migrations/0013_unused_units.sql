-- A worker that must let go of a company between the unit and the session gives the unit back, so that the day's cap is
-- reached by sessions that servers saw.

-- Give back one SMTPCheck unit that was asked for `asked_s` seconds ago and never used, and wake a company for it. One of
-- before midnight stays taken: the new day has not paid for it.
CREATE FUNCTION outreach.ct_give_back_smtp(asked_s double precision) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    today date := outreach.ct_utc_day();
BEGIN
    UPDATE outreach.ct_usage SET used = used - 1
        WHERE tool_id = 'TOOL-005' AND span = 'day' AND begins = today AND used > 0
            AND begins <= ((moment - (asked_s + 1) * interval '1 second') AT TIME ZONE 'UTC')::date;
    IF FOUND THEN
        PERFORM outreach.ct_wake('cap:TOOL-005', 1, moment);
    END IF;
END $$;
