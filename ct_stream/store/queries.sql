-- The gate's statements, by name. `$n` are asyncpg's parameters. Arrays are parallel, with one element for each
-- company, sorted by outreach_id by the caller (opposite orders would deadlock). `= ANY (ARRAY(SELECT ... LIMIT))` and no
-- IN: a plan that was made while the table was empty may run such a SELECT again for each row. Parameters that the gate's
-- functions get have their types: otherwise somebody else's function of the same name could fit better. look_up, record,
-- spine_control and rehearsal_companies run with the path of the login, on which others may have functions: they name
-- pg_catalog's in full, and its operators on users' columns (store/database.py).

-- name: server
-- What server is this, and which ledger does it hold?
SELECT pg_is_in_recovery() AS in_recovery,
    current_setting('transaction_read_only') AS read_only,
    current_setting('synchronous_commit') AS synchronous_commit,
    current_setting('session_replication_role') = 'replica' AS is_replica,
    quote_ident(session_user) AS login,
    (SELECT r.rolconnlimit FROM pg_roles AS r WHERE r.rolname = session_user) AS connection_limit,
    clock_timestamp() AS now,
    (SELECT e.epoch FROM outreach.ct_epoch AS e) AS epoch,
    (SELECT coalesce(max(o.ordinal), 0) FROM outreach.ct_outcomes AS o) AS last_ordinal;

-- name: applied
-- Which migrations and which versions of functions has this database had?
SELECT m.name AS part FROM outreach.ct_migrations AS m
UNION ALL
SELECT f.checksum FROM outreach.ct_functions AS f;

-- name: look_up
-- Everything that is known of these companies: outcome, wait, paid attempt, spine row, and what the domain answered
-- lately (see recall), looked up under the form in which domains are usually stored.
SELECT i.id AS outreach_id,
    o.outcome,
    (o.published_at IS NOT NULL OR o.topic IS NULL) AS settled,
    p.state AS pass_state,
    (a.outreach_id IS NOT NULL) AS is_paid,
    (s.outreach_id IS NOT NULL) AS in_spine,
    s.domain::text,
    pg_catalog.lower(s.domain::text) AS recalled,
    m.answers, m.answered_at, m.is_current, m.is_mx_current, m.is_busy, m.has_begun
FROM pg_catalog.unnest($1::uuid[]) AS i (id)
LEFT JOIN outreach.ct_outcomes AS o ON o.outreach_id = i.id
LEFT JOIN outreach.ct_passes AS p ON p.outreach_id = i.id
LEFT JOIN outreach.ct_tier2_attempts AS a ON a.outreach_id = i.id
LEFT JOIN outreach.outreach AS s ON s.outreach_id OPERATOR(pg_catalog.=) i.id
CROSS JOIN LATERAL outreach.ct_recall(pg_catalog.lower(s.domain::text), $2::text, $3::interval, $4::interval, $5::interval) AS m;

-- name: record
-- Record outcomes: the first one of an outreach_id wins, and only winners get rows. Returns the winners, with this
-- worker's claim to publish them for $27 seconds. It waits $28 ms for a row that somebody else holds. A status that is not one of the three final ones waits for the gate,
-- whatever it says. in_conflict: its row was final already, and was left as it is.
WITH patience AS MATERIALIZED (
    SELECT pg_catalog.set_config('lock_timeout', $28::text, true)
), input AS (
    -- Of several arrays it is always pg_catalog's, and may not be named so.
    SELECT i.* FROM patience, unnest(
        $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[],
        $9::bigint[], $10::text[], $11::integer[], $12::bigint[], $13::text[], $14::bytea[], $15::bytea[],
        $16::text[], $17::text[], $18::text[], $19::float8[], $20::boolean[], $21::text[], $22::text[],
        $23::text[], $24::timestamptz[], $25::timestamptz[], $26::uuid[], $29::text[]
    ) AS i (
        outreach_id, outcome, failure_code, reason, domain, rules_version, transcript, decided_at,
        duration_ms, event_topic, event_partition, event_offset, topic, key, value,
        headers, email_method, method_type, confidence, is_catchall, imo_stage, raw_input,
        memory, answered_at, mx_at, attempt, runs
    )
), won AS (
    INSERT INTO outreach.ct_outcomes AS o (
        outreach_id, outcome, failure_code, reason, domain, rules_version, transcript, decided_at, duration_ms,
        event_topic, event_partition, event_offset, topic, key, value, headers, publish_until, attempt
    )
    SELECT i.outreach_id, i.outcome, i.failure_code, i.reason, i.domain, i.rules_version, i.transcript::jsonb,
        i.decided_at, i.duration_ms, i.event_topic, i.event_partition, i.event_offset, i.topic, i.key, i.value,
        i.headers::jsonb, pg_catalog.clock_timestamp() + $27::float8 * interval '1 second', i.attempt
    FROM input AS i
    ON CONFLICT (outreach_id) DO NOTHING
    RETURNING o.outreach_id, o.ordinal
), target AS (
    INSERT INTO outreach.company_target AS t (
        outreach_id, email_method, method_type, confidence_score, is_catchall, execution_status, imo_completed_at,
        updated_at
    )
    SELECT i.outreach_id, i.email_method, i.method_type, i.confidence::numeric(5, 4), i.is_catchall,
        CASE WHEN i.outcome = 'PASS' THEN 'ready' ELSE 'failed' END, i.decided_at, pg_catalog.clock_timestamp()
    FROM input AS i JOIN won AS w ON w.outreach_id = i.outreach_id
    WHERE i.failure_code IS DISTINCT FROM 'CT-I-NOT-FOUND'
    ON CONFLICT (outreach_id) DO UPDATE SET
        email_method = excluded.email_method, method_type = excluded.method_type,
        confidence_score = excluded.confidence_score, is_catchall = excluded.is_catchall,
        execution_status = excluded.execution_status, imo_completed_at = excluded.imo_completed_at,
        updated_at = excluded.updated_at
    WHERE coalesce(t.execution_status::text, '') NOT IN ('ready', 'failed', 'blocked')
    RETURNING t.outreach_id
), errors AS (
    INSERT INTO outreach.company_target_errors (
        outreach_id, pipeline_stage, failure_code, blocking_reason, severity, imo_stage, retry_allowed, created_at,
        raw_input
    )
    SELECT i.outreach_id, 'company_target_imo', i.failure_code, i.reason, 'blocking', i.imo_stage, false, i.decided_at,
        i.raw_input::jsonb
    FROM input AS i JOIN won AS w ON w.outreach_id = i.outreach_id
    WHERE i.outcome = 'FAIL' AND NOT (i.failure_code = 'CT-I-NOT-FOUND' AND outreach.ct_errors_are_bound())
), unwritten AS (
    INSERT INTO outreach.ct_unwritten (outreach_id, its_table)
    SELECT i.outreach_id, 'company_target' FROM input AS i JOIN won AS w ON w.outreach_id = i.outreach_id
    WHERE i.failure_code IS DISTINCT FROM 'CT-I-NOT-FOUND'
        AND NOT EXISTS (SELECT t.outreach_id FROM target AS t WHERE t.outreach_id OPERATOR(pg_catalog.=) i.outreach_id)
    UNION ALL
    SELECT i.outreach_id, 'company_target_errors' FROM input AS i JOIN won AS w ON w.outreach_id = i.outreach_id
    WHERE i.failure_code = 'CT-I-NOT-FOUND' AND outreach.ct_errors_are_bound()
    ON CONFLICT DO NOTHING
    RETURNING outreach_id, its_table
), memory AS (
    -- Sorted by domain, because opposite orders deadlock. A clock that runs ahead must not make a memory last longer.
    INSERT INTO outreach.ct_memory AS m (domain, rules_version, outcome, answers, answered_at, mx_at, runs)
    SELECT DISTINCT ON (i.domain, i.rules_version) i.domain, i.rules_version, i.outcome, i.memory::jsonb,
        least(i.answered_at, pg_catalog.clock_timestamp()), least(i.mx_at, pg_catalog.clock_timestamp()),
        pg_catalog.string_to_array(i.runs, ' ')
    FROM input AS i JOIN won AS w ON w.outreach_id = i.outreach_id
    WHERE i.memory IS NOT NULL
    ORDER BY i.domain, i.rules_version, i.answered_at DESC
    ON CONFLICT (domain, rules_version) DO UPDATE SET
        outcome = excluded.outcome, answers = excluded.answers, answered_at = excluded.answered_at,
        mx_at = excluded.mx_at, recorded_at = pg_catalog.clock_timestamp(), runs = excluded.runs
    WHERE m.answered_at < excluded.answered_at
)
SELECT w.outreach_id, w.ordinal,
    EXISTS (
        SELECT u.outreach_id FROM unwritten AS u
        WHERE u.outreach_id = w.outreach_id AND u.its_table = 'company_target'
    ) AS in_conflict
FROM won AS w;

-- name: decided_before
-- Companies that the users' own tables call final, from the id $1 on, at most $2. Its first failure says why.
SELECT t.outreach_id, CASE WHEN t.execution_status::text = 'ready' THEN 'PASS' ELSE 'FAIL' END AS outcome,
    e.failure_code::text, e.blocking_reason::text, coalesce(t.imo_completed_at, e.created_at)::timestamptz AS decided_at
FROM outreach.company_target AS t
LEFT JOIN LATERAL (
    SELECT x.failure_code, x.blocking_reason, x.created_at FROM outreach.company_target_errors AS x
    -- A pair: by created_at alone, a planner without statistics would walk through the index of all failures' times.
    WHERE x.outreach_id = t.outreach_id ORDER BY (x.created_at, x.failure_code::text) LIMIT 1
) AS e ON true
WHERE t.outreach_id >= $1 AND t.execution_status::text IN ('ready', 'failed', 'blocked')
ORDER BY t.outreach_id LIMIT $2;

-- name: failed_before
-- Companies with a recorded failure, from the id $1 on, at most $2.
SELECT DISTINCT ON (x.outreach_id) x.outreach_id, 'FAIL' AS outcome, x.failure_code::text, x.blocking_reason::text,
    x.created_at::timestamptz AS decided_at
FROM outreach.company_target_errors AS x
WHERE x.outreach_id >= $1
ORDER BY x.outreach_id, x.created_at LIMIT $2;

-- name: adopt
-- See ct_adopt.
SELECT outreach.ct_adopt($1::uuid[], $2::text[], $3::text[], $4::text[], $5::timestamptz[]) AS adopted;

-- name: is_adopted
-- See ct_is_adopted.
SELECT outreach.ct_is_adopted();

-- name: end_adoption
-- See ct_end_adoption.
SELECT outreach.ct_end_adoption($1::bigint);

-- name: without_outcome
-- Rows of company_target without an outcome: those that the gate will decide, and those whose status is final already.
SELECT count(*) FILTER (WHERE NOT r.is_final) AS pending, count(*) FILTER (WHERE r.is_final) AS made_final
FROM (
    SELECT coalesce(t.execution_status::text, '') IN ('ready', 'failed', 'blocked') AS is_final
    FROM outreach.company_target AS t
    WHERE t.outreach_id IS NOT NULL
        AND NOT EXISTS (SELECT o.outreach_id FROM outreach.ct_outcomes AS o WHERE o.outreach_id = t.outreach_id)
) AS r;

-- name: rehearsal_companies
-- Some undecided companies that a rehearsal may record, with and without a row in company_target (rehearsal.py).
SELECT s.outreach_id, t.outreach_id IS NOT NULL AS has_row
FROM (
    SELECT u.outreach_id FROM outreach.outreach AS u
    WHERE u.outreach_id IS NOT NULL
        AND NOT EXISTS (
            SELECT o.outreach_id FROM outreach.ct_outcomes AS o WHERE o.outreach_id OPERATOR(pg_catalog.=) u.outreach_id
        )
        AND NOT EXISTS (
            SELECT e.outreach_id FROM outreach.company_target_errors AS e
            WHERE e.outreach_id OPERATOR(pg_catalog.=) u.outreach_id
        )
    LIMIT 1000
) AS s
LEFT JOIN outreach.company_target AS t ON t.outreach_id OPERATOR(pg_catalog.=) s.outreach_id
WHERE coalesce(t.execution_status::text, '') NOT IN ('ready', 'failed', 'blocked');

-- name: rehearsed
-- What did the users' tables keep of a rehearsed outcome?
SELECT t.execution_status::text, t.email_method::text, t.method_type::text, t.confidence_score::float8,
    t.is_catchall::text, t.imo_completed_at IS NOT NULL AS has_completed, e.failure_code::text,
    e.blocking_reason::text, e.pipeline_stage::text, e.severity::text, e.imo_stage::text,
    outreach.ct_errors_are_bound() AS errors_are_bound,
    current_setting('synchronous_commit') IN ('off', 'local') AS is_not_durable
FROM outreach.ct_outcomes AS o
LEFT JOIN outreach.company_target AS t ON t.outreach_id = o.outreach_id
LEFT JOIN outreach.company_target_errors AS e ON e.outreach_id = o.outreach_id
WHERE o.outreach_id = $1
LIMIT 1;

-- name: recall
-- See ct_recall.
SELECT i.domain, m.answers, m.answered_at, m.is_current, m.is_mx_current, m.is_busy, m.has_begun
FROM unnest($1::text[]) AS i (domain)
CROSS JOIN LATERAL outreach.ct_recall(i.domain, $2::text, $3::interval, $4::interval, $5::interval) AS m;

-- name: wake_domains
-- Wake all companies that wait for these domains, whose answers are now remembered.
SELECT outreach.ct_wake('domain:' || d, 1000000, clock_timestamp()) FROM unnest($1::text[]) AS d;

-- name: recorded_attempts
-- What is the outcome of these companies, and is it the attempt $2 with the value $3, the topic $4 and the key $5? It needs its
-- own statement, because an INSERT cannot see another winner's row, and its own session, because users' triggers ran in
-- the other.
SELECT o.outreach_id, o.ordinal,
    (o.attempt = i.attempt AND o.topic = i.topic AND o.key = i.key AND o.value = i.value) AS is_it
FROM unnest($1::uuid[], $2::uuid[], $3::bytea[], $4::text[], $5::bytea[]) AS i (outreach_id, attempt, value, topic, key)
JOIN outreach.ct_outcomes AS o ON o.outreach_id = i.outreach_id;

-- name: claim_unpublished_of
-- Claim the recorded bytes of these companies for publishing for $2 seconds, if nobody else holds the claim.
UPDATE outreach.ct_outcomes AS o SET publish_until = clock_timestamp() + $2::float8 * interval '1 second'
WHERE o.outreach_id = ANY ($1::uuid[]) AND o.published_at IS NULL AND o.topic IS NOT NULL
    AND outreach.ct_may_claim(o.publish_until, $2::float8)
RETURNING o.outreach_id, o.topic, o.key, o.value, o.headers;

-- name: claim_unpublished
-- Claim what a crash left unpublished for $2 seconds, oldest claim first.
UPDATE outreach.ct_outcomes AS o SET publish_until = clock_timestamp() + $2::float8 * interval '1 second'
WHERE o.outreach_id = ANY (ARRAY(
    SELECT u.outreach_id FROM outreach.ct_outcomes AS u
    WHERE u.published_at IS NULL AND u.topic IS NOT NULL AND outreach.ct_may_claim(u.publish_until, $2::float8)
    ORDER BY u.publish_until LIMIT $1 FOR UPDATE SKIP LOCKED
)) AND o.published_at IS NULL AND outreach.ct_may_claim(o.publish_until, $2::float8)
RETURNING o.outreach_id, o.topic, o.key, o.value, o.headers;

-- name: stamp
-- Mark outcomes as published: the broker has them.
UPDATE outreach.ct_outcomes AS o SET published_at = clock_timestamp()
WHERE o.outreach_id = ANY ($1::uuid[]) AND o.published_at IS NULL;

-- name: count_unpublished
SELECT count(*) AS unpublished FROM outreach.ct_outcomes AS o WHERE o.published_at IS NULL AND o.topic IS NOT NULL;

-- name: forget
-- Remove the waits of companies that have an outcome now.
SELECT outreach.ct_forget_passes($1::uuid[]);

-- name: park
-- Record why companies wait, and their answers so far. A company that another worker has leased meanwhile is left to
-- it, and a stuck one stays stuck. `asked_at`: its oldest answer is not older; NULL: as on record. `failed`: its last
-- failed answer came 'now', or at the time on 'record' (now, if that is gone), or there is 'none'.
INSERT INTO outreach.ct_passes AS p (
    outreach_id, state, domain, reason, detail, waits_on, not_before, answers, pending, spent_ms, asked_at, failed_at,
    event_topic, event_partition, event_offset, event_at, correlation_id, traceparent, correlation_header,
    worker_version, since, looks, met_by, met_at, first_at, refused_at
)
SELECT i.outreach_id, 'waiting', i.domain, i.reason, i.detail, nullif(i.waits_on, ''),
    CASE WHEN i.after_s < 0 THEN 'infinity' ELSE clock_timestamp() + i.after_s * interval '1 second' END,
    i.answers::jsonb, i.pending::jsonb, i.spent_ms,
    CASE WHEN i.asked_at IS NULL THEN r.asked_at ELSE least(i.asked_at, clock_timestamp()) END,
    CASE i.failed WHEN 'now' THEN clock_timestamp() WHEN 'record' THEN coalesce(r.failed_at, clock_timestamp()) END,
    i.event_topic, i.event_partition, i.event_offset, i.event_at, i.correlation_id, i.traceparent,
    i.correlation_header, $20::text, coalesce(i.asked_at, clock_timestamp()), i.looks, i.met_by, i.met_at,
    nullif(i.first_at, ''), nullif(i.refused_at, '')
FROM unnest(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::float8[], $7::text[], $8::text[], $9::integer[],
    $10::timestamptz[], $11::text[], $12::text[], $13::integer[], $14::bigint[], $15::timestamptz[], $16::text[],
    $17::bytea[], $18::bytea[], $19::integer[], $22::text[], $23::text[], $24::text[], $25::text[]
) AS i (
    outreach_id, domain, reason, detail, waits_on, after_s, answers, pending, spent_ms, asked_at, failed,
    event_topic, event_partition, event_offset, event_at, correlation_id, traceparent, correlation_header, looks,
    met_by, met_at, first_at, refused_at
)
LEFT JOIN outreach.ct_passes AS r ON r.outreach_id = i.outreach_id
ON CONFLICT (outreach_id) DO UPDATE SET
    domain = excluded.domain, reason = excluded.reason, detail = excluded.detail, waits_on = excluded.waits_on,
    not_before = excluded.not_before, answers = excluded.answers, pending = excluded.pending,
    spent_ms = excluded.spent_ms, asked_at = excluded.asked_at, failed_at = excluded.failed_at, looks = excluded.looks,
    met_by = excluded.met_by, met_at = excluded.met_at, first_at = excluded.first_at, refused_at = excluded.refused_at, parked_at = excluded.parked_at, lease_owner = NULL, lease_until = NULL
WHERE p.state = 'waiting'
    AND (p.lease_owner IS NULL OR p.lease_owner = $21::text OR p.lease_until < clock_timestamp());

-- name: claim_due
-- Lease companies whose wait is over, the longest over first. If times are in the future, the clock was set back since:
-- no proof can say anything about answers from an unknown time. $4: those that need the network too. $5: what companies
-- wait for that is in the way of other workers alone: it takes them. $6: its egress, if another one is at work: for 5
-- seconds that one may take who met silence at this one, or was refused. $7: its egress.
UPDATE outreach.ct_passes AS p SET
    lease_owner = $1,
    lease_until = clock_timestamp() + $3 * interval '1 second',
    asked_at = CASE
        WHEN greatest(p.asked_at, p.failed_at) > clock_timestamp() + interval '1 second' THEN 'epoch' ELSE p.asked_at
    END,
    failed_at = CASE
        WHEN p.failed_at > clock_timestamp() + interval '1 second' THEN clock_timestamp() ELSE p.failed_at
    END
WHERE p.outreach_id = ANY (ARRAY(
    SELECT q.outreach_id FROM outreach.ct_passes AS q
    -- statement_timestamp: with a clock that moves during the statement, the index would be read to its end.
    WHERE q.state = 'waiting' AND q.not_before <= statement_timestamp()
        AND (q.lease_until IS NULL OR q.lease_until < clock_timestamp())
        AND ($6::text IN (q.first_at, q.refused_at) AND q.not_before > statement_timestamp() - interval '5 seconds') IS NOT TRUE
    ORDER BY q.not_before LIMIT CASE WHEN $4::boolean THEN $2::integer ELSE 0 END FOR UPDATE SKIP LOCKED
) || ARRAY(
    SELECT q.outreach_id FROM outreach.ct_passes AS q
    WHERE q.state = 'waiting' AND q.reason IN ('spine_grace', 'spine_control', 'row_held')  -- ct_passes_quiet_idx
        AND q.not_before <= statement_timestamp() AND (q.lease_until IS NULL OR q.lease_until < clock_timestamp())
    ORDER BY q.not_before LIMIT CASE WHEN $4::boolean THEN 0 ELSE $2::integer END FOR UPDATE SKIP LOCKED
) || ARRAY(
    -- One look at the index for each of them: a plan for all at once may read the table.
    SELECT t.outreach_id FROM unnest($5::text[]) AS w (what) CROSS JOIN LATERAL (
        SELECT q.outreach_id, q.parked_at, q.since FROM outreach.ct_passes AS q
        WHERE q.waits_on = w.what AND q.state = 'waiting' AND (q.not_before = 'infinity' OR w.what LIKE 'egress:%')
            AND (q.lease_until IS NULL OR q.lease_until < clock_timestamp())
            -- Refused here, it waits for what is in another egress' way: taken back, it would be refused again.
            AND (q.refused_at = $7::text AND w.what NOT LIKE 'way%') IS NOT TRUE
        ORDER BY q.parked_at LIMIT $2::integer FOR UPDATE SKIP LOCKED
    ) AS t
    -- Who was taken over and had to be parked again is not taken at once: each time it waits a tenth of its age, and at
    -- most a minute. Where two workers do pass somebody back and forth, that is cheap.
    WHERE t.parked_at <= clock_timestamp() - least(interval '1 minute', (clock_timestamp() - t.since) / 10)
    LIMIT CASE WHEN $4::boolean THEN $2::integer ELSE 0 END
))
RETURNING p.outreach_id, p.domain, p.reason, p.answers, p.pending, p.spent_ms, p.asked_at, p.failed_at, p.since,
    p.event_topic, p.event_partition, p.event_offset, p.event_at, p.correlation_id, p.traceparent,
    p.correlation_header, p.exceptions, p.looks, p.waits_on, p.met_by,
    p.met_at, p.refused_at;

-- name: count_for_own_way
-- How many companies wait, at most $2, that this worker run parked because its own way is not proven?
SELECT count(*) AS companies FROM (
    SELECT p.outreach_id FROM outreach.ct_passes AS p
    WHERE p.waits_on = 'way' AND p.state = 'waiting' AND p.met_by = $1 LIMIT $2
) AS few;

-- name: to_take_over
-- What do companies wait for that is in the way of other workers alone? The controls of runs that fail now (of those that
-- are gone, $2 seconds without a sign, ct_wake_sleepers wakes who waits). While our egress ($3) may ask: the guardrails of
-- another one, if ours is open, and who was refused there. At most 200 of those: the rest waits for its own. What is closed
-- there as one address may be closed here with its whole network.
WITH rails AS (
    SELECT g.key, g.state, outreach.ct_egress_of(g.key) AS egress,
        CASE WHEN g.key ~ '^provider:([0-9.]+|[0-9a-f:.]+:[0-9a-f:.]*)(/|@|$)' THEN outreach.ct_network_of(g.key) END AS network
    FROM outreach.ct_guardrails AS g
    WHERE g.state <> 'open' AND (g.key LIKE 'provider:%' OR g.key LIKE 'tool:TOOL-005%')
), here AS (
    SELECT outreach.ct_rail('tool:TOOL-005', $3::text) NOT IN (SELECT r.key FROM rails AS r) AS may_ask
)
SELECT 'control:' || c.kind || ':' || c.worker AS what FROM outreach.ct_controls AS c
JOIN outreach.ct_workers AS w ON w.worker = c.worker
WHERE c.worker <> $1 AND c.failed_at > c.ok_begun_at AND w.ended_at IS NULL
    AND w.seen_at > clock_timestamp() - $2::float8 * interval '1 second'
UNION ALL
SELECT r.key FROM rails AS r WHERE r.key LIKE 'tool:%' AND r.egress <> $3::text AND (SELECT h.may_ask FROM here AS h)
UNION ALL
SELECT * FROM (
    SELECT r.key FROM rails AS r
    -- Who says that we ask too fast is not asked at once from elsewhere.
    WHERE r.key LIKE 'provider:%' AND r.state <> 'paused' AND r.egress <> $3::text AND (SELECT h.may_ask FROM here AS h)
        AND outreach.ct_rail(split_part(r.key, '@', 1), $3::text) NOT IN (SELECT o.key FROM rails AS o)
        AND (
            r.network IS NULL
            OR r.network NOT IN (
                SELECT o.network FROM rails AS o
                WHERE o.egress = $3::text AND o.network IS NOT NULL AND split_part(o.key, '@', 1) LIKE '%/%'
            )
        )
    LIMIT 200
) AS theirs
UNION ALL
SELECT 'egress:' || e.name FROM outreach.ct_egresses() AS e (name) CROSS JOIN here AS h
WHERE e.name <> $3::text AND h.may_ask;

-- name: at_work
-- Which other workers can decide companies now, from which egress, and is that on trial? What a beat says of guardrails
-- is about any of them, such as a vendor's.
SELECT w.worker, w.egress, coalesce(g.state = 'trial', false) AS on_trial
FROM outreach.ct_workers AS w
LEFT JOIN outreach.ct_guardrails AS g ON g.key = outreach.ct_rail('tool:TOOL-005', w.egress)
WHERE w.worker <> $1::text AND w.ended_at IS NULL
    AND w.seen_at > clock_timestamp() - $2::float8 * interval '1 second'
    AND NOT w.troubles ?| ARRAY[
        'start', 'control_dns', 'control_smtp', 'postgres', 'ledger', 'kafka', 'kafka_group', 'watchdog'
    ]
    AND g.state IS DISTINCT FROM 'halted'
    AND NOT EXISTS (SELECT FROM outreach.ct_guardrails AS s WHERE s.key = 'mail_from' AND s.state = 'halted');

-- name: retry_stuck
-- Make companies due that are stuck since a worker of another version tried them.
UPDATE outreach.ct_passes AS p SET state = 'waiting', exceptions = 0, not_before = clock_timestamp()
WHERE p.outreach_id = ANY (ARRAY(
    SELECT q.outreach_id FROM outreach.ct_passes AS q
    WHERE q.state = 'stuck' AND q.worker_version IS DISTINCT FROM $1
    ORDER BY q.not_before LIMIT $2 FOR UPDATE SKIP LOCKED
))
RETURNING p.outreach_id;

-- name: renew_leases
-- Renew the leases of the companies and domains that this worker has in hand. A lease that it does not know about (the
-- answer that granted it was lost with its connection) runs out.
WITH passes AS (
    UPDATE outreach.ct_passes SET lease_until = clock_timestamp() + $2 * interval '1 second'
    WHERE lease_owner = $1 AND outreach_id = ANY ($3::uuid[])
)
UPDATE outreach.ct_domains SET lease_until = clock_timestamp() + $2 * interval '1 second'
WHERE domain IN (
    SELECT d.domain FROM outreach.ct_domains AS d
    WHERE d.lease_owner = $1 AND d.domain = ANY ($4::text[]) AND d.lease = ANY ($5::uuid[])
    ORDER BY d.domain FOR UPDATE
);

-- name: give_back
-- End this worker's leases of these companies without any other change: they are due again at once.
UPDATE outreach.ct_passes SET lease_owner = NULL, lease_until = NULL
WHERE lease_owner = $1 AND outreach_id = ANY ($2::uuid[]);

-- name: count_exception
-- Count an exception in our own code for the company; the third one makes it stuck.
INSERT INTO outreach.ct_passes AS p (
    outreach_id, state, reason, detail, not_before, event_topic, event_partition, event_offset, event_at,
    correlation_id, traceparent, correlation_header, exceptions, traceback, worker_version
)
VALUES ($1, 'waiting', 'our_bug', $2, clock_timestamp() + interval '5 seconds', $4, $5, $6, $7, $8, $9, $10, 1, $3, $11)
ON CONFLICT (outreach_id) DO UPDATE SET
    exceptions = least(p.exceptions, 1000) + 1,
    state = CASE WHEN p.exceptions >= 2 THEN 'stuck' ELSE p.state END,
    reason = 'our_bug', detail = excluded.detail, traceback = excluded.traceback,
    worker_version = excluded.worker_version, waits_on = NULL,
    not_before = excluded.not_before, lease_owner = NULL, lease_until = NULL
RETURNING p.exceptions, p.state;

-- name: stuck_lately
-- Where did companies become stuck within the last hour, and how many were decided since the first of them did?
WITH lately AS (
    SELECT p.not_before AS since, coalesce(p.traceback, '') AS traceback FROM outreach.ct_passes AS p
    WHERE p.state = 'stuck' AND p.not_before > statement_timestamp() - interval '1 hour'
    ORDER BY p.not_before DESC LIMIT 100
), decided AS (
    SELECT o.recorded_at FROM outreach.ct_outcomes AS o ORDER BY o.ordinal DESC LIMIT 100
)
SELECT coalesce(array_agg(l.traceback), '{}') AS tracebacks,
    (SELECT count(*) FROM decided AS d WHERE d.recorded_at > (SELECT min(m.since) FROM lately AS m)) AS decided
FROM lately AS l;

-- name: waiting_by_reason
-- How many companies are undecided, and why?
SELECT p.state, p.reason, count(*) AS companies, min(p.since) AS oldest FROM outreach.ct_passes AS p
GROUP BY p.state, p.reason;

-- name: wake_sleepers
-- See ct_wake_sleepers.
SELECT outreach.ct_wake_sleepers($1::integer, $2::float8);

-- name: wake_capped
-- See ct_wake_capped.
SELECT outreach.ct_wake_capped($1::bigint);

-- name: tidy
-- See ct_tidy.
SELECT outreach.ct_tidy($1::integer, $2::interval, $3::interval) AS is_more_left;

-- name: take_mx
-- See ct_take_mx.
SELECT t.granted, t.delay_s, t.refusal, t.retry_s
FROM outreach.ct_take_mx($1::integer, $2::float8, $3::bigint, $4::float8) AS t;

-- name: begin_probes
-- See ct_begin_probes.
SELECT b.place, b.answer, b.retry_s, b.detail
FROM outreach.ct_begin_probes(
    $1::text, $2::text[], $3::text[], $4::boolean[], $5::uuid[], $6::text[], $7::timestamptz[], $8::float8, $9::bigint,
    $10::integer, $11::text
) AS b;

-- name: go_on
-- See ct_go_on.
SELECT g.place, g.answer, g.retry_s, NULL AS detail
FROM outreach.ct_go_on(
    $1::text, $2::text[], $3::uuid[], $4::integer[], $5::float8, $6::bigint, $7::integer
) AS g;

-- name: enter_provider
-- See ct_enter_provider.
SELECT e.answer, e.retry_s, e.detail
FROM outreach.ct_enter_provider(
    $1::text, $2::uuid, $3::text, $4::text, $5::boolean, $6::boolean, $7::bigint, $8::integer, $9::text
) AS e;

-- name: note_talk
-- See ct_note_talk.
SELECT outreach.ct_note_talk($1::text, clock_timestamp(), $2::text, $3::text, $4::text);

-- name: end_probes
-- See ct_end_probes.
SELECT outreach.ct_end_probes(
    $1::text, $2::text[], $3::uuid[], $4::float8[], $5::boolean[], $6::text[], $7::text[], $8::integer[], $9::float8,
    $10::text
);

-- name: take_tier2
-- See ct_take_tier2.
SELECT t.place, t.answer, t.said, t.detail, t.asked, t.delay_s, t.retry_s, t.is_first
FROM outreach.ct_take_tier2(
    $1::uuid[], $2::text[], $3::uuid[], $4::text, $5::float8, $6::bigint, $7::float8, $8::float8, $9::float8,
    $10::float8, $11::integer
) AS t;

-- name: answer_tier2
-- See ct_answer_tier2.
SELECT a.final_said, a.final_detail, a.halted_now
FROM outreach.ct_answer_tier2($1::uuid, $2::uuid, $3::text, $4::text, $5::text, $6::integer, $7::integer) AS a;

-- name: make_controls
-- Begin the record of a worker run's own way.
INSERT INTO outreach.ct_controls (worker, kind) SELECT $1, k FROM unnest($2::text[]) AS k ON CONFLICT DO NOTHING;

-- name: control
-- What is known of the ways of these worker runs? Times from before the clock was set back are forgotten before the clock
-- catches up with them. $2: after how many seconds without a sign a run is gone.
WITH forgotten AS (
    UPDATE outreach.ct_controls AS r SET (
        started_at, lease_until, ok_begun_at, failed_at, proven_since, proven_at, control_at, trouble_from,
        trouble_until, earlier
    ) = (
        SELECT c.started_at, c.lease_until, c.ok_begun_at, c.failed_at, c.proven_since, c.proven_at, c.control_at,
            c.trouble_from, c.trouble_until, c.earlier
        FROM outreach.ct_control_now(r) AS c
    )
    WHERE r.worker = ANY ($1::text[]) AND outreach.ct_control_is_ahead(r)
)
SELECT c.worker, c.kind, c.ok_begun_at, c.ok_detail, c.failed_at, c.failed_detail, c.trouble_from, c.trouble_until,
    c.proven_since, c.control_at, ARRAY(SELECT coalesce(lower(r), '-infinity') FROM unnest(c.earlier) AS r) AS began,
    ARRAY(SELECT coalesce(upper(r), 'infinity') FROM unnest(c.earlier) AS r) AS ended, NOT outreach.ct_is_running(c.worker, $2::float8) AS is_gone,
    w.worker IS NULL OR w.ended_at IS NOT NULL AS has_ended, w.egress,
    coalesce(extract(epoch FROM clock_timestamp() - w.seen_at), 0)::float8 AS quiet_s, clock_timestamp() AS now
FROM outreach.ct_controls AS r CROSS JOIN LATERAL outreach.ct_control_now(r) AS c
LEFT JOIN outreach.ct_workers AS w ON w.worker = c.worker
WHERE r.worker = ANY ($1::text[]);

-- name: begin_control
-- Take this worker run's right to ask a control: one of each kind at a time, and at most one in $2 seconds. It is asked
-- at first and then every $5 seconds, after the last one failed, and while somebody waits for a control of this run, of
-- either kind (or was woken by one and asks again). Either kind, because a company that needs both waits for one after
-- the other, and the other chain of proofs must not break meanwhile. Where the answer to this statement is lost, the
-- right is lost for $3 seconds. A right taken in the future, before the clock was set back, is void.
UPDATE outreach.ct_controls AS c
SET started_at = clock_timestamp(), lease_until = clock_timestamp() + $3::float8 * interval '1 second'
WHERE c.kind = $1::text AND c.worker = $4::text
    AND (c.lease_until < clock_timestamp() OR c.lease_until > clock_timestamp() + $3::float8 * interval '1 second')
    AND (c.started_at + $2 * interval '1 second' <= clock_timestamp() OR c.started_at > clock_timestamp())
    AND (
        c.failed_at > c.ok_begun_at
        OR c.control_at + $5::float8 * interval '1 second' <= clock_timestamp() OR c.control_at > clock_timestamp()
        -- Looks at the index. Where many waited a while ago, an EXISTS would read the table up to the first that waits.
        OR c.kind <> 'dns_tcp' AND coalesce(
            (SELECT min(p.not_before) FROM outreach.ct_passes AS p
                WHERE p.waits_on = 'control:dns:' || $4::text AND p.state = 'waiting'),
            (SELECT min(p.not_before) FROM outreach.ct_passes AS p
                WHERE p.waits_on = 'control:smtp:' || $4::text AND p.state = 'waiting'),
            (SELECT min(p.not_before) FROM outreach.ct_passes AS p
                WHERE p.waits_on = 'control:smtp6:' || $4::text AND p.state = 'waiting')
        ) IS NOT NULL
    )
RETURNING c.started_at;

-- name: control_succeeded
-- A proof that began at $2 succeeded. It serves everything that this run met before it, and ends earlier trouble.
WITH proof AS (
    UPDATE outreach.ct_controls AS r SET (
        lease_until, started_at, ok_begun_at, ok_detail, failed_at, proven_since, proven_at, control_at, trouble_from,
        trouble_until, earlier
    ) = (
        SELECT '-infinity'::timestamptz, c.started_at, greatest(c.ok_begun_at, $2), $3, c.failed_at,
            outreach.ct_proven_since(c, $2::timestamptz, $4::float8),
            CASE WHEN $2 > c.failed_at THEN clock_timestamp() ELSE c.proven_at END,
            CASE WHEN $2 > c.failed_at THEN greatest(c.control_at, $2) ELSE c.control_at END,
            c.trouble_from,
            CASE WHEN c.trouble_until = 'infinity' AND $2 > c.failed_at THEN clock_timestamp() ELSE c.trouble_until END,
            c.earlier
        FROM outreach.ct_control_now(r) AS c
    )
    -- Not one that was begun before the clock was set back.
    WHERE r.kind = $1::text AND r.worker = $5::text AND $2 <= clock_timestamp() + interval '1 second'
    RETURNING r.ok_begun_at
)
SELECT outreach.ct_wake_proven($1::text, $5::text, p.ok_begun_at) FROM proof AS p;

-- name: control_failed
-- This run's own way is broken: from its last control that succeeded until the next one.
UPDATE outreach.ct_controls AS r SET (
    lease_until, started_at, ok_begun_at, failed_at, failed_detail, proven_since, proven_at, control_at, trouble_from,
    trouble_until, earlier
) = (
    SELECT '-infinity'::timestamptz, c.started_at, c.ok_begun_at, clock_timestamp(), $2, c.proven_since, c.proven_at,
        c.control_at,
        CASE WHEN o.goes_on AND c.trouble_from > '-infinity' THEN c.trouble_from ELSE c.control_at END,
        'infinity'::timestamptz,
        CASE WHEN o.goes_on OR c.trouble_until = '-infinity' THEN c.earlier
            ELSE (c.earlier + tstzmultirange(tstzrange(c.trouble_from, c.trouble_until)))
                * tstzmultirange(tstzrange(clock_timestamp() - interval '8 days', NULL))
        END
    FROM outreach.ct_control_now(r) AS c
    -- If it breaks again within a quarter of an hour, the time in between does not count as working.
    CROSS JOIN LATERAL (SELECT c.trouble_until > clock_timestamp() - interval '15 minutes' AS goes_on) AS o
)
WHERE r.kind = $1::text AND r.worker = $3::text;

-- name: good_talk
-- A company's server talked to us normally in a session that began at $1 (by a worker's clock, which may run ahead).
-- That counts like an SMTP control of this run, also for the chain. It mends nothing: if the last control failed, whoever
-- talks may answer in the place of others.
WITH talk AS (
    SELECT least($1::timestamptz, clock_timestamp()) AS begun_at
), proof AS (
    UPDATE outreach.ct_controls AS r SET (
        started_at, ok_begun_at, ok_detail, failed_at, proven_since, proven_at, control_at, trouble_from, trouble_until,
        earlier
    ) = (
        SELECT c.started_at, t.begun_at, $2, c.failed_at, outreach.ct_proven_since(c, t.begun_at, $3::float8),
            greatest(c.proven_at, t.begun_at), c.control_at, c.trouble_from, c.trouble_until, c.earlier
        FROM talk AS t, outreach.ct_control_now(r) AS c
    )
    WHERE r.kind = $5::text AND r.worker = $4::text
        AND (SELECT c.ok_begun_at < t.begun_at AND c.failed_at <= c.ok_begun_at AND c.failed_at < t.begun_at
            FROM talk AS t, outreach.ct_control_now(r) AS c)
    RETURNING r.ok_begun_at
)
SELECT outreach.ct_wake_proven($5::text, $4::text, p.ok_begun_at) FROM proof AS p;

-- name: greeting
-- A server greeted us in a session that began at $1, so port 25 is open to this run. Whether it accepts us is not known
-- yet.
UPDATE outreach.ct_controls AS r SET (proven_since, proven_at) = (
    SELECT outreach.ct_proven_since(c, t.begun_at, $2::float8), greatest(c.proven_at, t.begun_at)
    FROM outreach.ct_control_now(r) AS c, (SELECT least($1::timestamptz, clock_timestamp()) AS begun_at) AS t
)
WHERE r.kind = $4::text AND r.worker = $3::text
    AND (SELECT c.failed_at FROM outreach.ct_control_now(r) AS c) < least($1::timestamptz, clock_timestamp());

-- name: note_refusal
-- Record evidence about a provider: it refused us, said that we ask too fast, or could not be reached. $6: its server is
-- the company's own; $7, $8: the server's address and network; $9, $10: the worker run that met
-- it, and its egress; $11: it is about our sender.
INSERT INTO outreach.ct_refusals (provider, domain, kind, host, reason, is_own, address, network, worker, egress,
    is_sender)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11);

-- name: refusals_at_provider
-- How many companies at this provider met a refusal or silence within $2 from this egress ($3), with no normal session
-- since? Silence while the worker's own way out was broken does not count.
SELECT count(DISTINCT r.domain) AS companies FROM outreach.ct_refusals AS r
WHERE r.provider = $1 AND r.at > statement_timestamp() - $2::interval AND r.at <= statement_timestamp()
    AND r.egress = $3::text
    AND r.at > (
        SELECT greatest(max(d.talked_at), outreach.ct_opened_at(outreach.ct_rail('provider:' || $1::text, $3::text)),
            outreach.ct_opened_at(outreach.ct_rail('tool:TOOL-005', $3::text)))
        FROM outreach.ct_domains AS d WHERE d.provider = $1 AND d.egress = $3::text
    )
    AND (r.kind <> 'silent' OR NOT EXISTS (
        SELECT 1 FROM outreach.ct_controls AS c
        WHERE c.kind IN ('smtp', 'smtp6') AND c.worker = r.worker AND c.trouble_from > '-infinity' AND r.at BETWEEN c.trouble_from AND c.trouble_until
    ));

-- name: refusals_around
-- The own servers of how many companies refused us in this network ($1), at how many addresses, and at this address ($2)
-- alone, within $3 and with no normal session there since? From this egress ($4).
WITH refusals AS (
    SELECT r.provider, r.address, r.at FROM outreach.ct_refusals AS r
    WHERE r.network = $1 AND r.is_own AND r.kind = 'refused' AND r.at > statement_timestamp() - $3::interval
        AND r.at <= statement_timestamp() AND r.egress = $4::text
        AND r.at > outreach.ct_opened_at(outreach.ct_rail('tool:TOOL-005', $4::text))
), talks AS (
    SELECT greatest(max(d.talked_at), outreach.ct_opened_at(outreach.ct_rail('provider:' || $1::text, $4::text)))
            AS in_network,
        -- A machine that refuses us is no better for its neighbours, who talk to us.
        greatest(max(d.talked_at) FILTER (WHERE d.address = $2),
            outreach.ct_opened_at(outreach.ct_rail('provider:' || $2::text, $4::text)),
            outreach.ct_opened_at(outreach.ct_rail('provider:' || $1::text, $4::text))) AS at_address
    FROM outreach.ct_domains AS d WHERE d.network = $1 AND d.egress = $4::text
)
SELECT count(DISTINCT r.provider) FILTER (WHERE r.at > t.in_network) AS in_network,
    count(DISTINCT r.address) FILTER (WHERE r.at > t.in_network) AS addresses,
    count(DISTINCT r.provider) FILTER (WHERE r.address = $2 AND r.at > t.at_address) AS at_address
FROM talks AS t LEFT JOIN refusals AS r ON true;

-- name: neighbours
-- Does a server at this address ($1, in the network $2) receive mail for others than the company of $3 (its provider, by
-- its name) too? And may what it says of us to the domain $4 be that company's own policy: did it talk normally with a
-- neighbour from this egress ($6) after it first refused us for that domain, or is that longer ago than $5?
SELECT
    EXISTS (
        SELECT d.domain FROM outreach.ct_domains AS d
        WHERE d.network = $2::text AND d.address = $1::text AND d.provider <> $3::text
    ) OR EXISTS (
        SELECT r.domain FROM outreach.ct_refusals AS r
        WHERE r.network = $2::text AND r.is_own AND r.address = $1::text AND r.provider <> $3::text
            AND r.at > statement_timestamp() - $5::interval AND r.at <= statement_timestamp()
    ) AS is_shared,
    coalesce(f.at < statement_timestamp() - $5::interval OR EXISTS (
        SELECT d.domain FROM outreach.ct_domains AS d
        WHERE d.network = $2::text AND d.address = $1::text AND d.provider <> $3::text AND d.egress = $6::text
            AND d.talked_at > f.at AND d.talked_at <= statement_timestamp()
    ), false) AS may_be_policy
FROM (
    SELECT min(r.at) AS at FROM outreach.ct_refusals AS r
    WHERE r.network = $2::text AND r.is_own AND r.address = $1::text AND r.domain = $4::text AND r.egress = $6::text
) AS f;

-- name: refusing_networks
-- Of the last $2 distinct providers contacted within $1, and since a person resumed the tool, in how many networks do
-- those stand that refuse us? Servers that refuse us in one network count as one, also among the $2: a stranger may
-- register as many names as he likes for one machine. A refusal from an unknown address counts by its provider. From the
-- egress $3 alone; what is about our sender ($4) from all of them.
-- The last openings are looked up once, for all providers.
WITH opened AS MATERIALIZED (
    SELECT l.key, max(l.at) AS at FROM outreach.ct_guardrail_log AS l
    WHERE l.at > statement_timestamp() - $1::interval AND l.at <= statement_timestamp() AND l.state IN ('open', 'trial')
    GROUP BY l.key
)
SELECT count(*) FILTER (WHERE recent.refused) AS refusing
FROM (
    SELECT source.refused FROM (
        SELECT DISTINCT ON (latest.refused, latest.source) latest.refused, latest.at FROM (
            SELECT DISTINCT ON (c.provider) c.provider, c.refused, c.source, c.at FROM (
                SELECT r.provider, r.kind = 'refused' AS refused, r.at,
                    CASE WHEN r.kind = 'refused' AND r.network <> '' THEN r.network ELSE r.provider END AS source
                FROM outreach.ct_refusals AS r
                WHERE r.kind <> 'silent' AND (r.egress = $3::text OR $4::boolean) AND r.is_sender >= $4::boolean
                    -- Opened since: what this provider said before is void.
                    AND r.at > coalesce(
                        (SELECT o.at FROM opened AS o WHERE o.key = outreach.ct_rail('provider:' || r.provider, r.egress)),
                        '-infinity'
                    )
                UNION ALL
                SELECT d.provider, false, d.talked_at, d.provider FROM outreach.ct_domains AS d
                WHERE d.talked_at IS NOT NULL AND (d.egress = $3::text OR $4::boolean)
            ) AS c
            WHERE c.at > statement_timestamp() - $1::interval AND c.at <= statement_timestamp()
                AND c.at > coalesce((
                    SELECT max(o.at) FROM opened AS o WHERE o.key = 'mail_from'
                        OR o.key = outreach.ct_rail('tool:TOOL-005', $3::text) AND NOT $4::boolean
                ), '-infinity')
            ORDER BY c.provider, c.at DESC
        ) AS latest
        ORDER BY latest.refused, latest.source, latest.at DESC
    ) AS source
    ORDER BY source.at DESC LIMIT $2
) AS recent;

-- name: set_guardrail
-- See ct_set_guardrail; $4 says in how many seconds one company may try, -1 for never.
SELECT outreach.ct_set_guardrail(
    $1::text, $2::text, $3::text, CASE WHEN $4::float8 >= 0 THEN clock_timestamp() + $4::float8 * interval '1 second' END
) AS changed;

-- name: end_trial
-- See ct_end_trial.
SELECT outreach.ct_end_trial($1::text) AS opened;

-- name: close_everywhere
-- See ct_close_everywhere.
SELECT c.name FROM outreach.ct_close_everywhere($1::text, $2::text, $3::float8) AS c (name);

-- name: begin_egress
-- See ct_begin_egress.
SELECT b.rail FROM outreach.ct_begin_egress($1::text, $2::text) AS b (rail);

-- name: guardrails
-- Which tools and providers are closed or halted, and why?
-- Opened in the future, before the clock was set back: what counts is when it was last opened before now.
SELECT g.key, g.state, g.reason, g.next_try_at, g.tries, g.changed_by,
    CASE WHEN g.since <= clock_timestamp() OR g.state NOT IN ('open', 'trial') THEN g.since ELSE coalesce((
        SELECT l.at FROM outreach.ct_guardrail_log AS l
        WHERE l.key = g.key AND l.state IN ('open', 'trial') AND l.at <= statement_timestamp()
        ORDER BY l.log_id DESC LIMIT 1
    ), g.since) END AS since
FROM outreach.ct_guardrails AS g
-- What a person must look at comes first.
ORDER BY array_position(ARRAY['halted', 'closed', 'paused', 'trial', 'open'], g.state), g.key;

-- name: shut_providers
-- Which providers are closed to an egress that workers had within a week, and when was one opened first that was closed last?
SELECT g.key, g.state IN ('closed', 'halted') AS is_shut, coalesce((
    SELECT o.at FROM outreach.ct_guardrail_log AS o
    WHERE o.key = g.key AND o.log_id > shut.log_id AND o.state = 'open' ORDER BY o.key, o.log_id LIMIT 1
), g.since) AS opened_at, (
    SELECT n.log_id FROM outreach.ct_guardrail_log AS n
    WHERE n.key = g.key AND n.log_id > shut.log_id AND n.state <> 'open' ORDER BY n.key, n.log_id LIMIT 1
) IS NULL AS is_open_since
FROM outreach.ct_guardrails AS g
-- Whatever it was after that: a provider that has just opened may find us too fast, and is paused.
CROSS JOIN LATERAL (
    SELECT l.log_id FROM outreach.ct_guardrail_log AS l
    WHERE l.key = g.key AND l.state IN ('closed', 'halted') ORDER BY l.key DESC, l.log_id DESC LIMIT 1
) AS shut
WHERE g.key LIKE 'provider:%' AND outreach.ct_egress_of(g.key) IN (SELECT e.name FROM outreach.ct_egresses() AS e (name));

-- name: record_exit
-- Record the exit of a worker that hung, and where.
INSERT INTO outreach.ct_watchdog_exits (places, reason, worker, worker_version) VALUES ($1, $2, $3, $4);

-- name: hung_again
-- The place where most workers hung within $1 s, if at least $2 did since a person resumed the guardrail `watchdog`.
SELECT p.place, count(*) AS exits, (array_agg(e.reason ORDER BY e.at DESC))[1] AS reason
FROM outreach.ct_watchdog_exits AS e CROSS JOIN LATERAL unnest(e.places) AS p (place)
WHERE e.at > statement_timestamp() - make_interval(secs => $1::float8)
    AND e.at > coalesce(
        (SELECT g.since FROM outreach.ct_guardrails AS g WHERE g.key = 'watchdog' AND g.state = 'open'), '-infinity'
    )
GROUP BY p.place HAVING count(*) >= $2::integer ORDER BY exits DESC, p.place LIMIT 1;

-- name: spine_control
-- May a missing row count? Only on a primary, and if the spine holds companies at all.
SELECT pg_catalog.pg_is_in_recovery() AS in_recovery,
    EXISTS (SELECT s.outreach_id FROM outreach.outreach AS s) AS has_rows;

-- name: release_owner
-- A worker ends: give back all its companies and domains at once.
WITH passes AS (
    UPDATE outreach.ct_passes SET lease_owner = NULL, lease_until = NULL WHERE lease_owner = $1
)
UPDATE outreach.ct_domains SET lease_owner = NULL, lease = NULL, lease_until = NULL,
    free_at = greatest(free_at, clock_timestamp() + $2 * interval '1 second')
WHERE domain IN (
    SELECT d.domain FROM outreach.ct_domains AS d WHERE d.lease_owner = $1 ORDER BY d.domain FOR UPDATE
);

-- name: has_own_outcomes
-- Has our gate ever decided a company here?
SELECT EXISTS (SELECT o.outreach_id FROM outreach.ct_outcomes AS o WHERE o.source = 'gate') AS has_outcomes;

-- name: story_outcome
-- Everything that is kept of one decided company.
SELECT o.outreach_id, o.outcome, o.source, o.failure_code, o.reason, o.domain, o.rules_version, o.transcript,
    o.decided_at, o.recorded_at, o.duration_ms, o.event_topic, o.event_partition, o.event_offset, o.topic,
    o.published_at
FROM outreach.ct_outcomes AS o WHERE o.outreach_id = $1;

-- name: transcripts
-- The gate's own outcomes of a span, oldest first, with everything that they rest on.
SELECT o.outreach_id, o.domain, o.outcome, o.failure_code, o.value, o.rules_version, o.transcript
FROM outreach.ct_outcomes AS o
WHERE o.source = 'gate' AND o.decided_at > now() - $1::interval
ORDER BY o.ordinal;

-- name: story_pass
-- Everything that is kept of one undecided company.
SELECT h.domain, h.since, h.state, h.reason, h.detail, h.what_ends_it, h.exceptions, h.traceback,
    p.answers, p.event_topic, p.event_partition, p.event_offset
FROM outreach.ct_held AS h JOIN outreach.ct_passes AS p USING (outreach_id) WHERE h.outreach_id = $1;

-- name: story_spine
SELECT s.domain FROM outreach.outreach AS s WHERE s.outreach_id = $1;

-- name: story_target
SELECT t.email_method, t.method_type, t.confidence_score, t.is_catchall, t.execution_status, t.imo_completed_at
FROM outreach.company_target AS t WHERE t.outreach_id = $1;

-- name: story_errors
SELECT e.failure_code, e.blocking_reason, e.imo_stage, e.retry_allowed, e.created_at, e.resolved_at, e.resolution_note
FROM outreach.company_target_errors AS e WHERE e.outreach_id = $1 ORDER BY e.created_at;

-- name: held
-- Undecided companies, the longest waiting first.
SELECT h.outreach_id, h.domain, h.since, h.state, h.reason, h.detail, h.what_ends_it
FROM outreach.ct_held AS h
WHERE $1::text IS NULL OR h.reason = $1
ORDER BY h.since LIMIT $2;

-- name: recent_failures
-- The runbook's "View Recent Failures", for any span and code.
-- A NOT-FOUND that could not have an errors row is read from the ledger.
SELECT e.outreach_id, e.failure_code, e.blocking_reason, e.created_at
FROM (
    SELECT r.outreach_id, r.failure_code, r.blocking_reason, r.created_at FROM outreach.company_target_errors AS r
    UNION ALL
    SELECT o.outreach_id, o.failure_code, o.reason, o.decided_at
    FROM outreach.ct_unwritten AS u JOIN outreach.ct_outcomes AS o ON o.outreach_id = u.outreach_id
    WHERE u.its_table = 'company_target_errors'
) AS e
WHERE e.created_at > now() - $1::interval AND ($2::text IS NULL OR e.failure_code = $2)
ORDER BY e.created_at DESC
LIMIT $3;

-- name: failure_distribution
-- The runbook's "Failure Distribution", for any span.
SELECT e.failure_code, count(*) AS count
FROM (
    SELECT r.failure_code, r.created_at FROM outreach.company_target_errors AS r
    UNION ALL
    SELECT o.failure_code, o.decided_at
    FROM outreach.ct_unwritten AS u JOIN outreach.ct_outcomes AS o ON o.outreach_id = u.outreach_id
    WHERE u.its_table = 'company_target_errors'
) AS e
WHERE e.created_at > now() - $1::interval
GROUP BY e.failure_code ORDER BY count DESC, e.failure_code;

-- name: pass_rate
-- The runbook's "Pass Rate", for any span; NULL if nothing was decided.
SELECT count(*) FILTER (WHERE t.execution_status = 'ready') AS passed,
    count(*) FILTER (WHERE t.execution_status = 'failed') AS failed,
    round(100.0 * count(*) FILTER (WHERE t.execution_status = 'ready') / nullif(count(*), 0), 2) AS pass_rate
FROM outreach.company_target AS t WHERE t.imo_completed_at > now() - $1::interval;

-- name: outcomes_of
-- What was decided about these companies?
SELECT o.outreach_id, o.outcome, o.failure_code, o.decided_at FROM outreach.ct_outcomes AS o
WHERE o.outreach_id = ANY ($1::uuid[]);

-- name: resume_guardrail
-- See resume_guardrail.
SELECT outreach.resume_guardrail($1::text, $2::text) AS change;

-- name: runbook_recent_failures
-- The runbook's words, unchanged: "View Recent Failures".
SELECT outreach_id, failure_code, blocking_reason, created_at
FROM outreach.company_target_errors
WHERE created_at > NOW() - INTERVAL '24 hours'
ORDER BY created_at DESC
LIMIT 100;

-- name: runbook_failure_distribution
-- The runbook's words, unchanged: "Failure Distribution".
SELECT failure_code, COUNT(*) as count
FROM outreach.company_target_errors
WHERE created_at > NOW() - INTERVAL '7 days'
GROUP BY failure_code
ORDER BY count DESC;

-- name: runbook_pass_rate
-- The runbook's words, unchanged: "Pass Rate (Last 24h)". Divides by zero on a quiet day.
SELECT
  COUNT(*) FILTER (WHERE execution_status = 'ready') as passed,
  COUNT(*) FILTER (WHERE execution_status = 'failed') as failed,
  ROUND(100.0 * COUNT(*) FILTER (WHERE execution_status = 'ready') / COUNT(*), 2) as pass_rate
FROM outreach.company_target
WHERE imo_completed_at > NOW() - INTERVAL '24 hours';

-- name: progress
-- How far has the gate come?
SELECT o.outcome, o.failure_code, count(*) AS companies, count(o.published_at) AS published
FROM outreach.ct_outcomes AS o GROUP BY o.outcome, o.failure_code;

-- name: latency
-- How long companies took from event to outcome, in seconds, and how long all of them took together.
SELECT count(*) AS decided,
    percentile_cont(0.5) WITHIN GROUP (ORDER BY o.duration_ms) / 1000 AS p50_s,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY o.duration_ms) / 1000 AS p95_s,
    extract(epoch FROM max(o.decided_at) - min(o.decided_at - o.duration_ms * interval '1 millisecond')) AS span_s
FROM outreach.ct_outcomes AS o WHERE o.source = 'gate';

-- name: decided
-- What was decided about each company, in a form that can be compared with a plan.
SELECT o.outreach_id, coalesce(o.failure_code, o.outcome) AS outcome, o.reason, t.method_type, t.confidence_score,
    t.is_catchall
FROM outreach.ct_outcomes AS o LEFT JOIN outreach.company_target AS t USING (outreach_id);

-- name: partition_triggers_now
-- Triggers that a partition of these tables has from them, and that fire at other times than those of the table, or that it
-- should have.
SELECT c.relname AS its_table, q.relname AS partition, t.tgname AS name, t.tgenabled::text AS enabled
FROM pg_class AS c
CROSS JOIN LATERAL pg_partition_tree(c.oid) AS b
JOIN pg_class AS q ON q.oid = b.relid
JOIN pg_trigger AS t ON t.tgrelid = q.oid
JOIN pg_trigger AS w ON w.tgrelid = c.oid AND w.tgname = t.tgname
WHERE b.level > 0 AND t.tgparentid <> 0 AND t.tgenabled <> w.tgenabled AND c.relname = ANY ($1::text[])
    AND c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'outreach')
UNION ALL
SELECT c.relname, q.relname, w.tgname, coalesce(t.tgenabled::text, '')
FROM pg_class AS c
CROSS JOIN LATERAL pg_partition_tree(c.oid) AS b
JOIN pg_class AS q ON q.oid = b.relid AND q.relkind IN ('r', 'p')
JOIN pg_trigger AS w ON w.tgrelid = c.oid AND w.tgtype & 32 <> 0
LEFT JOIN pg_trigger AS t ON t.tgrelid = q.oid AND t.tgname = w.tgname AND t.tgfoid = w.tgfoid AND t.tgtype = w.tgtype
WHERE b.level > 0 AND t.tgenabled IS DISTINCT FROM w.tgenabled AND c.relname = ANY ($1::text[])
    AND c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'outreach')
ORDER BY 1, 2, 3;

-- name: functions_version
-- Which version's functions, triggers and rights did the last `migrate` put in place?
SELECT f.checksum FROM outreach.ct_functions AS f ORDER BY f.ordinal DESC LIMIT 1;

-- name: triggers_now
-- The triggers and rules of these tables.
SELECT c.relname AS its_table, t.tgname AS name, t.tgenabled::text AS enabled, t.tgtype::integer AS kind,
    t.tgqual IS NOT NULL AS has_condition, t.tgattr::text <> '' AS columns, n.nspname || '.' || p.proname AS function,
    rtrim(encode(t.tgargs, 'escape'), '\000') AS argument, false AS is_rule
FROM pg_trigger AS t
JOIN pg_class AS c ON c.oid = t.tgrelid
JOIN pg_proc AS p ON p.oid = t.tgfoid
JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE NOT t.tgisinternal AND c.relname = ANY ($1::text[])
    AND c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'outreach')
UNION ALL
SELECT c.relname, r.rulename, r.ev_enabled::text, 0, false, false, '', '', true
FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class
WHERE c.relkind IN ('r', 'p') AND c.relname = ANY ($1::text[])
    AND c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'outreach');

-- name: functions_now
-- The gate's own functions of these names ($2: those that are ct_reader's), and who may call them besides their owner.
SELECT p.proname AS name, p.oid::regprocedure::text AS signature, p.prosrc AS body, p.prosecdef AS is_definer,
    coalesce(p.proconfig, '{}') AS config,
    ARRAY(
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END
        FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a WHERE a.grantee <> p.proowner
    ) AS callers
FROM pg_proc AS p
WHERE p.proname = ANY ($1::text[])
    AND pg_get_userbyid(p.proowner) = CASE WHEN p.proname = ANY ($2::text[]) THEN 'ct_reader' ELSE 'ct_owner' END
    AND p.pronamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'outreach')
ORDER BY p.oid;

-- name: functions_beside
-- Functions that could be called in the place of one of these, which are the gate's: others' of their names, and such of
-- the gate's roles that are not the gate's.
SELECT p.oid::regprocedure::text AS signature, quote_ident(pg_get_userbyid(p.proowner)) AS who
FROM pg_proc AS p
WHERE p.pronamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'outreach')
    AND CASE WHEN p.proname = ANY ($1::text[]) THEN pg_get_userbyid(p.proowner) NOT IN ('ct_owner', 'ct_reader')
        ELSE pg_get_userbyid(p.proowner) IN ('ct_owner', 'ct_reader', 'ct_gate', 'ct_ops') END
ORDER BY 1;

-- name: owners_now
-- Which of these tables and views are not ct_owner's? And which of our roles may create objects beside them?
SELECT c.relname AS name, quote_ident(pg_get_userbyid(c.relowner)) AS who, false AS is_schema
FROM pg_class AS c
WHERE c.relname = ANY ($1::text[]) AND pg_get_userbyid(c.relowner) <> 'ct_owner'
    AND c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'outreach')
UNION ALL
SELECT n.nspname, r.who, true
FROM pg_namespace AS n
CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
CROSS JOIN LATERAL (SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(a.grantee) END AS who) AS r
WHERE n.nspname = 'outreach' AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner
    AND r.who IN ('PUBLIC', 'ct_gate', 'ct_ops', 'ct_reader');

-- name: rights_now
-- What others than their owner may do with these tables, with one column of them, or with a sequence of theirs.
SELECT '' AS kind, c.relname AS its_table, c.oid::regclass::text AS place, r.its_column, a.privilege_type AS right,
    CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee,
    CASE WHEN a.grantor <> c.relowner THEN quote_ident(pg_get_userbyid(a.grantor)) END AS grantor
FROM pg_class AS c
CROSS JOIN LATERAL (
    SELECT NULL::name AS its_column, c.relacl AS acl
    UNION ALL
    SELECT t.attname, t.attacl FROM pg_attribute AS t WHERE t.attrelid = c.oid AND NOT t.attisdropped
) AS r
CROSS JOIN LATERAL aclexplode(r.acl) AS a
WHERE a.grantee <> c.relowner AND EXISTS (
        SELECT w.oid FROM pg_class AS w  -- the table of a partition, wherever that one is
        WHERE w.oid = CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid ELSE c.oid END
            AND w.relname = ANY ($1::text[])
            AND w.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'outreach')
    )
UNION ALL
SELECT 'SEQUENCE ', s.relname, s.oid::regclass::text, NULL, a.privilege_type,
    CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END,
    CASE WHEN a.grantor <> s.relowner THEN quote_ident(pg_get_userbyid(a.grantor)) END
FROM pg_class AS c
JOIN pg_depend AS d ON d.refobjid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.classid = 'pg_class'::regclass
    AND d.deptype IN ('a', 'i')
JOIN pg_class AS s ON s.oid = d.objid AND s.relkind = 'S'
CROSS JOIN LATERAL aclexplode(s.relacl) AS a
WHERE c.relname = ANY ($1::text[]) AND a.grantee <> s.relowner AND a.privilege_type IN ('USAGE', 'UPDATE')
    AND c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'outreach');

-- name: keys_now
-- Foreign keys to these tables ($1), and those that the gate's login or people have to a users' table ($2), where another
-- than the owner of the table that is named made them. A key is checked as that owner, and what is compared is cast where its
-- type is another one: by a cast of whoever made the type.
SELECT quote_ident(k.conname) AS name, k.conrelid::regclass::text AS of_table, i.relname AS its_table,
    quote_ident(pg_get_userbyid(t.relowner)) AS who
FROM pg_constraint AS k
JOIN pg_class AS c ON c.oid = k.confrelid
JOIN pg_class AS i ON i.oid = CASE WHEN c.relispartition THEN pg_partition_root(c.oid)::oid ELSE c.oid END
JOIN pg_class AS t ON t.oid = k.conrelid
JOIN pg_roles AS r ON r.oid = t.relowner
WHERE k.contype = 'f' AND k.conparentid = 0 AND t.relowner <> c.relowner AND NOT r.rolsuper
    AND i.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'outreach')
    AND EXISTS (
        SELECT 1 FROM unnest(k.conkey, k.confkey) AS pair (theirs, ours)
        JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = pair.theirs
        JOIN pg_attribute AS b ON b.attrelid = k.confrelid AND b.attnum = pair.ours
        WHERE a.atttypid <> b.atttypid
    )
    AND (
        i.relname = ANY ($1::text[])
        OR i.relname = ANY ($2::text[])
            AND (pg_has_role(r.oid, 'ct_gate', 'MEMBER') OR pg_has_role(r.oid, 'ct_ops', 'MEMBER'))
            AND NOT pg_has_role(r.oid, c.relowner, 'USAGE')
    )
ORDER BY 2, 1;

-- name: doctor_server
-- May this login do what the gate does, and nothing more?
SELECT quote_ident(session_user) AS login,
    pg_is_in_recovery() AS in_recovery,
    current_setting('transaction_read_only') AS read_only,
    current_setting('session_replication_role') = 'replica' AS is_replica,
    current_setting('autovacuum') = 'on' AND current_setting('track_counts') = 'on' AS autovacuum,
    ARRAY(SELECT r.rolname::text FROM pg_roles AS r WHERE r.rolname LIKE 'ct\_%') AS roles,
    s.oid IS NOT NULL AS spine,
    coalesce(
        (SELECT bool_and(has_column_privilege(a.attrelid, a.attnum, 'SELECT')) FROM pg_attribute AS a
        WHERE a.attrelid = s.oid AND a.attname IN ('outreach_id', 'domain')), false
    ) AS reads_domain,
    ARRAY(
        SELECT c.relname::text FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
        WHERE c.relname IN ('outreach', 'company_target', 'company_target_errors')
            AND c.relnamespace = (SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = 'outreach')
            AND a.attname = 'sovereign_id' AND NOT a.attisdropped
            AND has_column_privilege(a.attrelid, a.attnum, 'SELECT')
        ORDER BY c.relname
    ) AS reads_sovereign_id,
    coalesce(
        (SELECT has_schema_privilege(n.oid, 'USAGE') FROM pg_namespace AS n WHERE n.nspname = 'cl'), false
    ) AS uses_cl,
    EXISTS (
        SELECT 1 FROM pg_namespace AS n CROSS JOIN LATERAL aclexplode(n.nspacl) AS a
        WHERE n.nspname = 'public' AND a.grantee = 0 AND a.privilege_type = 'CREATE'
    ) AS public_is_open,
    ARRAY(
        SELECT quote_ident(n.nspname) FROM pg_namespace AS n
        WHERE n.nspname NOT LIKE 'pg\_%' AND has_schema_privilege(n.oid, 'CREATE') ORDER BY n.nspname
    ) AS creates_in,
    has_database_privilege(current_database(), 'TEMPORARY') AS creates_temporary,
    quote_ident(current_database()) AS database
FROM (SELECT 1) AS one
LEFT JOIN (
    SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'outreach' AND c.relname = 'outreach'
) AS s ON true;

-- name: spine_has_age
-- Does the spine have a created_at, and may this login read it? Upstream's table need not have one.
SELECT a.attname IS NOT NULL AS has_column,
    coalesce(has_column_privilege(a.attrelid, a.attnum, 'SELECT'), false) AS may_read
FROM (SELECT 1) AS one
LEFT JOIN pg_attribute AS a ON a.attrelid = to_regclass('outreach.outreach') AND a.attname = 'created_at'
    AND NOT a.attisdropped AND a.atttypid IN ('timestamptz'::regtype, 'timestamp'::regtype, 'date'::regtype);

-- name: verify_clock
SELECT clock_timestamp() AS now;

-- name: verify_companies
-- Everything that is known of each company, by outreach_id, at one moment. $1: a moment before the ends of the topics
-- were read. $2, $3, $4: from which age on an unpublished outcome, a wait, a spine row is late. $5, $6: what was
-- published on ct.pass and ct.fail before these moments is no longer kept; NULL: all is kept. $7: only these companies;
-- NULL: all. The digest is ops/verify/spill.digest_of. NULL::timestamptz is replaced by the spine's created_at, if
-- there is one (ops/spine.py).
-- says_otherwise: its row of company_target was final before the gate came to it, and was not put right since.
-- says_instead: what its row says where it is not what was published. Triggers do not see an ALTER TABLE.
SELECT uuid_send(outreach_id) AS id, o.outcome, o.source, o.failure_code, o.topic, o.digest, o.must_be_there,
    o.is_unpublished, p.state, p.reason, p.is_waiting_long, p.is_overdue, t.execution_status,
    coalesce(e.errors, 0)::integer AS errors, e.first_code, s.spine IS NOT NULL AS in_spine,
    s.spine_at < now() - $4::interval AS is_spine_old, coalesce(x.says_otherwise, false) AS says_otherwise,
    coalesce(x.has_no_errors_row, false) AS has_no_errors_row,
    CASE WHEN t.execution_status IN ('ready', 'failed') AND t.said <> o.told AND NOT coalesce(x.is_as_found, false)
        THEN t.said::text END AS says_instead
FROM (
    SELECT c.outreach_id, c.outcome, c.source, c.failure_code, c.topic,
        CASE WHEN c.source = 'gate' AND c.value IS NOT NULL THEN (
            SELECT jsonb_build_object('email_method', left(v.told ->> 'email_method', 1000),
                'method_type', left(v.told ->> 'method_type', 1000),
                'confidence_score', CASE jsonb_typeof(v.told -> 'confidence_score') WHEN 'number'
                    THEN round((v.told -> 'confidence_score')::numeric, 4)::text ELSE v.told ->> 'confidence_score' END,
                'is_catchall', v.told ->> 'is_catchall')
            FROM (SELECT convert_from(c.value, 'UTF8')::jsonb AS told) AS v
        ) END AS told,
        CASE WHEN c.topic IS NOT NULL THEN
            sha256(c.key || '\x00'::bytea || sha256(c.value) || convert_to(c.headers::text, 'UTF8'))
        END AS digest,
        c.topic IS NOT NULL AND c.published_at < $1::timestamptz
            AND c.published_at > coalesce(CASE c.outcome WHEN 'PASS' THEN $5::timestamptz ELSE $6::timestamptz END, '-infinity')
            AS must_be_there,
        c.topic IS NOT NULL AND c.published_at IS NULL AND c.recorded_at < now() - $2::interval AS is_unpublished
    FROM outreach.ct_outcomes AS c WHERE $7::uuid[] IS NULL OR c.outreach_id = ANY ($7::uuid[])
) AS o
FULL JOIN (
    SELECT w.outreach_id, w.state, w.reason,
        w.state = 'waiting' AND w.since < now() - $3::interval AS is_waiting_long,
        w.state = 'waiting' AND w.not_before < now() - $2::interval
            AND coalesce(w.lease_until, '-infinity') < now() - $2::interval AS is_overdue
    FROM outreach.ct_passes AS w WHERE $7::uuid[] IS NULL OR w.outreach_id = ANY ($7::uuid[])
) AS p USING (outreach_id)
FULL JOIN (
    SELECT r.outreach_id, r.execution_status::text,
        jsonb_build_object('email_method', left(r.email_method::text, 1000),
            'method_type', left(r.method_type::text, 1000),
            -- Of a company decided before the gate came it may be a percentage, or a word.
            'confidence_score', CASE WHEN r.confidence_score::text ~ '^-?[0-9]{1,9}([.][0-9]{1,20})?$'
                THEN round(r.confidence_score::text::numeric, 4)::text ELSE left(r.confidence_score::text, 1000) END,
            'is_catchall', left(r.is_catchall::text, 1000)) AS said
    FROM outreach.company_target AS r
    WHERE r.outreach_id IS NOT NULL AND ($7::uuid[] IS NULL OR r.outreach_id = ANY ($7::uuid[]))
) AS t USING (outreach_id)
FULL JOIN (
    SELECT f.outreach_id, count(*) AS errors, min(f.failure_code) AS first_code
    FROM outreach.company_target_errors AS f WHERE $7::uuid[] IS NULL OR f.outreach_id = ANY ($7::uuid[])
    GROUP BY f.outreach_id
) AS e USING (outreach_id)
FULL JOIN (
    SELECT u.outreach_id, u.outreach_id AS spine, NULL::timestamptz AS spine_at
    FROM outreach.outreach AS u WHERE $7::uuid[] IS NULL OR u.outreach_id = ANY ($7::uuid[])
) AS s USING (outreach_id)
LEFT JOIN (
    SELECT k.outreach_id, bool_or(k.its_table = 'company_target_errors') AS has_no_errors_row,
        bool_or(k.its_table = 'company_target') AS is_as_found,
        bool_or(k.its_table = 'company_target' AND (g.execution_status::text, g.email_method::text) IS DISTINCT FROM
            (CASE l.outcome WHEN 'PASS' THEN 'ready' ELSE 'failed' END,
                convert_from(l.value, 'UTF8')::jsonb ->> 'email_method')) AS says_otherwise
    FROM outreach.ct_unwritten AS k
    JOIN outreach.ct_outcomes AS l ON l.outreach_id = k.outreach_id
    LEFT JOIN outreach.company_target AS g ON g.outreach_id = k.outreach_id
    WHERE $7::uuid[] IS NULL OR k.outreach_id = ANY ($7::uuid[])
    GROUP BY k.outreach_id
) AS x USING (outreach_id)
ORDER BY outreach_id;

-- name: undecided
-- Spine rows that have neither an outcome nor a wait and are older than $1 (NULL: of any age), at most $2 of them
-- (NULL: all). NULL::timestamptz is replaced by the spine's created_at, if there is one (ops/spine.py).
SELECT s.outreach_id FROM (SELECT u.outreach_id, NULL::timestamptz AS spine_at FROM outreach.outreach AS u) AS s
WHERE ($1::interval IS NULL OR s.spine_at < now() - $1::interval)
    AND NOT EXISTS (SELECT o.outreach_id FROM outreach.ct_outcomes AS o WHERE o.outreach_id = s.outreach_id)
    AND NOT EXISTS (SELECT p.outreach_id FROM outreach.ct_passes AS p WHERE p.outreach_id = s.outreach_id)
LIMIT $2;

-- name: known_of
-- Which of these companies have an outcome or a wait now?
SELECT o.outreach_id FROM outreach.ct_outcomes AS o WHERE o.outreach_id = ANY ($1::uuid[])
UNION
SELECT p.outreach_id FROM outreach.ct_passes AS p WHERE p.outreach_id = ANY ($1::uuid[]);

-- name: take_alerts
-- See ct_take_alerts; an alert older than $3 is stale.
SELECT a.alert_id, a.at, a.event, a.rail, a.run, a.egress, a.outreach_id, a.state, a.reason,
    a.at < clock_timestamp() - $3::interval AS is_stale
FROM outreach.ct_take_alerts($1::text, $2::integer) AS a ORDER BY a.alert_id;

-- name: worker_beat
-- Write what a worker says of itself now.
INSERT INTO outreach.ct_workers AS w (
    worker, machine, egress, version, toolbox, troubles, notes, partitions, running, address
)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT (worker) DO UPDATE SET troubles = excluded.troubles, notes = excluded.notes,
    partitions = excluded.partitions, running = excluded.running, address = excluded.address,
    seen_at = clock_timestamp(), ended_at = NULL;

-- name: worker_ended
-- A worker says goodbye.
UPDATE outreach.ct_workers SET ended_at = clock_timestamp(), partitions = '{}', running = 0 WHERE worker = $1;

-- name: worker_with_another_toolbox
-- Which worker runs with other limits or patterns, began before this one, and nobody accepted ours?
SELECT w.worker, w.toolbox, extract(epoch FROM clock_timestamp() - w.seen_at)::double precision AS seen_s_ago
FROM outreach.ct_workers AS me
JOIN outreach.ct_workers AS w ON w.toolbox <> me.toolbox
    AND (w.started_at, w.worker) < (me.started_at, me.worker)
    AND w.ended_at IS NULL AND w.seen_at > clock_timestamp() - $2::double precision * interval '1 second'
    AND w.seen_at < clock_timestamp() + interval '1 second'  -- the clock was set back since
WHERE me.worker = $1
    -- Accepted while that worker was running, and nothing else since.
    AND NOT EXISTS (
        SELECT 1 FROM outreach.ct_toolboxes AS t
        WHERE t.toolbox = me.toolbox AND t.at > w.started_at
            AND t.ordinal = (SELECT max(u.ordinal) FROM outreach.ct_toolboxes AS u)
    )
ORDER BY w.seen_at DESC LIMIT 1;

-- name: workers
-- Which workers ran within the last day?
SELECT w.worker, w.machine, w.egress, w.address, w.version, w.toolbox, w.troubles, w.notes, w.partitions, w.running,
    w.started_at, w.seen_at, w.ended_at,
    w.ended_at IS NULL AND w.seen_at > clock_timestamp() - $1::double precision * interval '1 second' AS is_running
FROM outreach.ct_workers AS w
WHERE w.seen_at > statement_timestamp() - interval '24 hours'
ORDER BY is_running DESC, w.seen_at DESC LIMIT 1000;

-- name: addresses
-- As whom were the workers seen that run now?
SELECT w.worker, w.egress, w.address FROM outreach.ct_workers AS w
WHERE w.address IS NOT NULL AND w.ended_at IS NULL AND w.seen_at > clock_timestamp() - $1::float8 * interval '1 second'
ORDER BY w.egress, w.worker;

-- name: accept_toolbox
-- See ct_accept_toolbox.
SELECT outreach.ct_accept_toolbox($1::jsonb, $2::text) AS ordinal;
