-- The gate's tables in their final form, for a database that has none of them. migrations/ brings an existing database
-- to the same form, and a test compares the two. Functions are in functions/, triggers in triggers.sql, rights in
-- grants.sql.
--
-- The spine, outreach.outreach, belongs to upstream and is never created here. company_target and company_target_errors
-- may exist already: adopt.sql has adapted them, and IF NOT EXISTS keeps their rows.

CREATE SCHEMA IF NOT EXISTS outreach;

-- ---------------------------------------------------------------- which version this is

-- The migrations that were applied to the tables, with the checksums of their files. 0000_baseline is schema.sql
-- itself.
CREATE TABLE outreach.ct_migrations (
    name text PRIMARY KEY,
    checksum text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The versions of functions/ that this database has had; the one with the highest ordinal is current.
CREATE TABLE outreach.ct_functions (
    ordinal bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    checksum text NOT NULL UNIQUE,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- ---------------------------------------------------------------- the runbook's tables

-- One row for each company of the spine: the decision as the hubs and the runbook read it.
CREATE TABLE IF NOT EXISTS outreach.company_target (
    outreach_id uuid PRIMARY KEY,
    email_method text,
    method_type text,
    confidence_score numeric(5, 4),
    is_catchall boolean,
    execution_status text NOT NULL DEFAULT 'pending'
        CONSTRAINT company_target_status_check CHECK (execution_status IN ('pending', 'ready', 'failed', 'blocked')),
    imo_completed_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
-- An adopted table may have another primary key; the gate writes one row for each outreach_id.
CREATE UNIQUE INDEX IF NOT EXISTS company_target_outreach_id_key ON outreach.company_target (outreach_id);
CREATE INDEX IF NOT EXISTS company_target_completed_idx ON outreach.company_target (imo_completed_at);

-- Why a company failed, one row for each FAIL. No foreign key: a NOT-FOUND has neither a spine row nor a company_target
-- row.
CREATE TABLE IF NOT EXISTS outreach.company_target_errors (
    error_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    outreach_id uuid NOT NULL,
    pipeline_stage text,
    failure_code text NOT NULL,
    blocking_reason text,
    severity text,
    imo_stage text,
    retry_allowed boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    resolved_at timestamptz,
    resolution_note text,
    raw_input jsonb,
    stack_trace text
);
CREATE INDEX IF NOT EXISTS company_target_errors_created_idx ON outreach.company_target_errors (created_at);
CREATE INDEX IF NOT EXISTS company_target_errors_outreach_id_idx ON outreach.company_target_errors (outreach_id);

-- ---------------------------------------------------------------- the ledger and outbox

-- The ledger's identity: a different epoch means that the database was restored or replaced.
CREATE TABLE outreach.ct_epoch (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    epoch uuid NOT NULL DEFAULT gen_random_uuid(),
    begun_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO outreach.ct_epoch DEFAULT VALUES;

-- The arbiter: the first row of an outreach_id is its outcome, for good. It carries the exact bytes to publish.
CREATE TABLE outreach.ct_outcomes (
    outreach_id uuid PRIMARY KEY,
    ordinal bigint GENERATED ALWAYS AS IDENTITY,
    outcome text NOT NULL CHECK (outcome IN ('PASS', 'FAIL')),
    source text NOT NULL DEFAULT 'gate' CHECK (source IN ('gate', 'adopted', 'override')),
    failure_code text CHECK ((failure_code IS NULL) = (outcome = 'PASS') OR source = 'adopted'),
    reason text,
    domain text,
    rules_version text,
    transcript jsonb,
    decided_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    recorded_in xid8 NOT NULL DEFAULT pg_current_xact_id(),  -- only this transaction writes its other rows
    duration_ms bigint,               -- a company may wait for months
    event_topic text,
    event_partition integer,
    event_offset bigint,
    topic text,                       -- NULL: nothing to publish (adopted)
    key bytea,
    value bytea,
    headers jsonb,                    -- [[name, text or {"base64": ...}], ...] in order
    publish_until timestamptz,        -- the running claim's end
    published_at timestamptz,
    -- The attempt that recorded it. By this a batch whose COMMIT was not answered, or one of two workers with the very
    -- same bytes, recognises its own rows.
    attempt uuid
);
CREATE UNIQUE INDEX ct_outcomes_ordinal_idx ON outreach.ct_outcomes (ordinal);
-- Which outcomes are of a span? They are appended in about this order, so the smallest kind of index will do.
CREATE INDEX ct_outcomes_decided_idx ON outreach.ct_outcomes USING brin (decided_at) WITH (autosummarize = on);
CREATE INDEX ct_outcomes_unpublished_idx ON outreach.ct_outcomes (publish_until)
    WHERE published_at IS NULL AND topic IS NOT NULL;

-- Rows that an outcome could not write because of what the users' own tables hold.
CREATE TABLE outreach.ct_unwritten (
    outreach_id uuid,
    -- company_target: its row was final already, and not by the gate, which leaves it as it is.
    -- company_target_errors: a foreign key binds it, and a NOT-FOUND has no company that it could refer to.
    its_table text CHECK (its_table IN ('company_target', 'company_target_errors')),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (outreach_id, its_table)
);

-- When companies that were decided before the gate came got their ledger rows. That happens once: a final row that
-- appears later was not decided by anybody whom the gate takes over from.
CREATE TABLE outreach.ct_adoption (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    adopted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    companies bigint NOT NULL
);

-- ---------------------------------------------------------------- undecided companies

-- Companies without an outcome that no worker is deciding now: why they wait, and their answers so far.
CREATE TABLE outreach.ct_passes (
    outreach_id uuid PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('waiting', 'stuck')),
    domain text,
    reason text NOT NULL,             -- gate/waits.py
    detail text NOT NULL,             -- one sentence for a person
    waits_on text,                    -- what ends the wait besides not_before, such as provider:bigmail.example
    not_before timestamptz NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    parked_at timestamptz NOT NULL DEFAULT clock_timestamp(),  -- when it last began to wait
    answers jsonb NOT NULL DEFAULT '[]',
    pending jsonb,                    -- an answer about us whose scope is not settled
    spent_ms integer NOT NULL DEFAULT 0,
    asked_at timestamptz,             -- when this pass first asked a server
    failed_at timestamptz,            -- when its last failed answer came; only later controls prove anything about it
    event_topic text,
    event_partition integer,
    event_offset bigint,
    event_at timestamptz,             -- the record's timestamp
    correlation_id text,
    traceparent bytea,
    correlation_header bytea,
    looks integer NOT NULL DEFAULT 0, -- how often it met silence, and a control then proved that our own way works
    met_by text,                      -- the worker run that met its last failed answer, or put it away unasked
    met_at text,                      -- the egress of that run
    first_at text,                    -- the egress that met its silence first: another one looks next, if there is one
    refused_at text,                  -- the egress that was refused, or met silence, before another one asked in its place
    exceptions integer NOT NULL DEFAULT 0,
    traceback text,
    worker_version text,
    lease_owner text,
    lease_until timestamptz
);
CREATE INDEX ct_passes_due_idx ON outreach.ct_passes (not_before) WHERE state = 'waiting';
-- How many companies wait for what, and since when?
CREATE INDEX ct_passes_reason_idx ON outreach.ct_passes (reason, since) INCLUDE (state);
-- Which companies are continued without asking anybody? A worker whose own way is broken takes them (query claim_due).
CREATE INDEX ct_passes_quiet_idx ON outreach.ct_passes (not_before)
    WHERE state = 'waiting' AND reason IN ('spine_grace', 'spine_control', 'row_held');
-- How many companies wait because this worker's own way is not proven? (query count_for_own_way)
CREATE INDEX ct_passes_own_way_idx ON outreach.ct_passes (met_by) WHERE state = 'waiting' AND waits_on = 'way';
CREATE INDEX ct_passes_since_idx ON outreach.ct_passes (since);
CREATE INDEX ct_passes_lease_idx ON outreach.ct_passes (lease_owner) WHERE lease_owner IS NOT NULL;
CREATE INDEX ct_passes_pending_idx ON outreach.ct_passes (waits_on) WHERE pending IS NOT NULL;
CREATE INDEX ct_passes_stuck_idx ON outreach.ct_passes (not_before) WHERE state = 'stuck';
CREATE INDEX ct_passes_waits_on_idx ON outreach.ct_passes (waits_on, not_before, since) WHERE state = 'waiting';
-- Whose turn is it to try a provider that is not open, and whom does a worker take over first?
CREATE INDEX ct_passes_turn_idx ON outreach.ct_passes (waits_on, parked_at)
    WHERE state = 'waiting' AND waits_on IS NOT NULL;
-- Which companies of a domain wait for something other than the domain itself?
CREATE INDEX ct_passes_ahead_idx ON outreach.ct_passes (domain) WHERE state = 'waiting' AND reason <> 'domain_busy';

-- ---------------------------------------------------------------- limits and leases

-- How much of the toolbox's caps is used up, by UTC day or month.
CREATE TABLE outreach.ct_usage (
    tool_id text NOT NULL,
    span text NOT NULL CHECK (span IN ('day', 'month')),
    begins date NOT NULL,             -- UTC
    used bigint NOT NULL DEFAULT 0,
    usd numeric(12, 6) NOT NULL DEFAULT 0,
    refused_at timestamptz,           -- when the budget of this span first refused a call: alerted once
    PRIMARY KEY (tool_id, span, begins)
);

-- When each tool with a rate a second may be called next.
CREATE TABLE outreach.ct_rates (
    tool_id text PRIMARY KEY,
    tat timestamptz NOT NULL          -- theoretical arrival time of the next call (GCRA)
);

-- Domains that were probed within a day: who is probing one now, when it is free again, and its last normal session.
-- Each lease has its own name, so that a pass that was frozen for longer than its lease notices if another pass has the
-- domain now, even one of its own worker (ADR-CT-IMO-006).
CREATE TABLE outreach.ct_domains (
    domain text PRIMARY KEY,          -- '@' and a provider: its last normal session with a domain that has moved on
    provider text NOT NULL,
    is_own boolean NOT NULL DEFAULT false,  -- the provider is the company itself: it takes no place
    lease_owner text,
    lease uuid,                       -- chosen by the pass that holds it
    sessions integer,                 -- how many sessions it has units for
    unit_day date,                    -- the day that paid for the last of them
    lease_until timestamptz,
    free_at timestamptz NOT NULL,     -- the pause after the last session ends here
    talked_at timestamptz,            -- a server of this domain last talked to us normally
    address text,                     -- where that server is: its address, and the network around it
    network text,
    egress text NOT NULL DEFAULT 'default',  -- from which that session came
    lease_egress text                 -- from which the pass asks that holds it
);
CREATE INDEX ct_domains_provider_idx ON outreach.ct_domains (provider) WHERE lease_owner IS NOT NULL;
CREATE INDEX ct_domains_free_at_idx ON outreach.ct_domains (free_at);
CREATE INDEX ct_domains_talked_idx ON outreach.ct_domains (provider, talked_at DESC);
CREATE INDEX ct_domains_network_idx ON outreach.ct_domains (network) WHERE network IS NOT NULL;

-- ---------------------------------------------------------------- our own way

-- What the controls of each worker run last proved of its own way (ADR-CT-IMO-023, 033), one row for each kind.
CREATE TABLE outreach.ct_controls (
    worker text NOT NULL,             -- the run, as in ct_workers
    kind text NOT NULL CHECK (kind IN ('dns', 'smtp', 'smtp6', 'dns_tcp')),
    started_at timestamptz NOT NULL DEFAULT '-infinity',
    lease_until timestamptz NOT NULL DEFAULT '-infinity',
    ok_begun_at timestamptz NOT NULL DEFAULT '-infinity',
    ok_detail text NOT NULL DEFAULT '',
    failed_at timestamptz NOT NULL DEFAULT '-infinity',
    failed_detail text NOT NULL DEFAULT '',
    trouble_from timestamptz NOT NULL DEFAULT '-infinity',   -- the last stretch in which our own way was broken
    trouble_until timestamptz NOT NULL DEFAULT '-infinity',
    -- When the present chain of proofs began; infinity: there is none. A later failure breaks it.
    proven_since timestamptz NOT NULL DEFAULT 'infinity',
    proven_at timestamptz NOT NULL DEFAULT '-infinity',      -- the end of its last proof
    -- When the last control began that succeeded. A company's normal session is a proof too, but not of who answered it.
    control_at timestamptz NOT NULL DEFAULT '-infinity',
    earlier tstzmultirange NOT NULL DEFAULT '{}',            -- the stretches before the last one, of some days
    PRIMARY KEY (worker, kind)
);
CREATE INDEX ct_controls_started_at_idx ON outreach.ct_controls (started_at);

-- ---------------------------------------------------------------- guardrails

-- Which tools, providers and inputs are open, paused, closed or halted; functions/guardrails.sql explains the states.
CREATE TABLE outreach.ct_guardrails (
    -- 'tool:TOOL-005', 'provider:bigmail.example', 'provider:203.0.113.0/24', of another egress than `default`
    -- 'tool:TOOL-005@dc2' and so on; 'mail_from', 'spine', 'input', 'watchdog'
    key text PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('open', 'paused', 'closed', 'halted', 'trial')),
    reason text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- One company is tried then; NULL: a person resumes it. Postgres 15 and 16 cannot subtract from an infinite time.
    next_try_at timestamptz CHECK (isfinite(next_try_at)),
    first_try_s double precision NOT NULL DEFAULT 600,  -- until the first try; then twice as long each time
    tries integer NOT NULL DEFAULT 0,
    changed_by text NOT NULL DEFAULT session_user
);
CREATE INDEX ct_guardrails_open_idx ON outreach.ct_guardrails (since) WHERE state = 'open';
CREATE INDEX ct_guardrails_not_open_idx ON outreach.ct_guardrails (key) WHERE state <> 'open';

-- Every change of a guardrail, and who made it.
CREATE TABLE outreach.ct_guardrail_log (
    log_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    key text NOT NULL,
    state text NOT NULL,
    reason text NOT NULL,
    by_role text NOT NULL DEFAULT session_user
);
CREATE INDEX ct_guardrail_log_key_idx ON outreach.ct_guardrail_log (key, log_id);
CREATE INDEX ct_guardrail_log_shut_idx ON outreach.ct_guardrail_log (key, log_id) WHERE state IN ('closed', 'halted');
CREATE INDEX ct_guardrail_log_at_idx ON outreach.ct_guardrail_log (at);

-- Evidence of servers that refuse us, for the scopes domain, provider and address. Evidence of the last 24 hours
-- counts.
CREATE TABLE outreach.ct_refusals (
    refusal_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    provider text NOT NULL,
    domain text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('refused', 'rate', 'silent')),  -- silent: none of its servers could be reached
    host text NOT NULL DEFAULT '',
    reason text NOT NULL DEFAULT '',
    is_own boolean NOT NULL DEFAULT false,  -- the host is the company's own by its name
    address text NOT NULL DEFAULT '',       -- of the server, and the network around it; '': unknown
    network text NOT NULL DEFAULT '',
    worker text NOT NULL DEFAULT '',        -- the run that met it
    egress text NOT NULL DEFAULT 'default', -- the address that it came from
    is_sender boolean NOT NULL DEFAULT false  -- it is about our MAIL FROM or its domain, whatever address we come from
);
CREATE INDEX ct_refusals_provider_idx ON outreach.ct_refusals (provider, at DESC);
CREATE INDEX ct_refusals_at_idx ON outreach.ct_refusals (at DESC);
CREATE INDEX ct_refusals_network_idx ON outreach.ct_refusals (network, at DESC) WHERE is_own;

-- ---------------------------------------------------------------- domain memory

-- What a domain answered to one company, for the next ones (ADR-CT-IMO-014). One row for each domain and rules version.
CREATE TABLE outreach.ct_memory (
    domain text NOT NULL,
    rules_version text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('PASS', 'FAIL')),
    answers jsonb NOT NULL,           -- the exchanges of the pass from MX on
    answered_at timestamptz NOT NULL, -- when the oldest of them was answered, the first one not counted
    mx_at timestamptz NOT NULL,       -- when the first one was answered, the MX hosts
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    runs text[] NOT NULL DEFAULT '{}',  -- the worker runs that asked
    PRIMARY KEY (domain, rules_version)
);
CREATE INDEX ct_memory_answered_at_idx ON outreach.ct_memory (answered_at);

-- ---------------------------------------------------------------- paid attempts

-- Tier-2 (EmailVerifier, TOOL-019): the one paid attempt of each company, for ever (ADR-CT-IMO-017). Written before the
-- call, so that no crash pays twice.
CREATE TABLE outreach.ct_tier2_attempts (
    outreach_id uuid PRIMARY KEY,
    provider text NOT NULL,
    address text NOT NULL,            -- what was asked about: an invented name or a role, never a person
    token uuid NOT NULL,              -- the caller's: by it a reservation whose answer was lost is recognised
    usd numeric(12, 6) NOT NULL,      -- charged to the month, whatever the result
    reserved_at timestamptz NOT NULL,
    answer_due timestamptz NOT NULL,  -- until then others wait for the caller's answer
    status text CHECK (status IN ('valid', 'catch_all', 'invalid', 'no_answer')),
    detail text NOT NULL DEFAULT '',
    answered_at timestamptz           -- when the call ended; NULL with a status: its worker ended first
);
CREATE INDEX ct_tier2_attempts_answered_idx ON outreach.ct_tier2_attempts (answered_at) WHERE answered_at IS NOT NULL;
CREATE INDEX ct_tier2_attempts_open_idx ON outreach.ct_tier2_attempts (answer_due) WHERE status IS NULL;

-- ---------------------------------------------------------------- for people

-- Alerts for people, each sent once. The change itself writes the alert in its own transaction, whoever makes it (a
-- worker, or a person who resumes a guardrail), and one worker takes it.
CREATE TABLE outreach.ct_alerts (
    alert_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    event text NOT NULL CHECK (event IN ('guardrail', 'control', 'stuck', 'conflict')),
    rail text,                        -- guardrail: its key; control: control:dns, control:smtp
    run text,                         -- control: the worker run whose own way it is
    egress text,                      -- control: the egress of that run
    outreach_id uuid,                 -- of a stuck company, or of a row in conflict
    state text NOT NULL,
    reason text NOT NULL,
    taken_by text,
    taken_at timestamptz
);
CREATE INDEX ct_alerts_open_idx ON outreach.ct_alerts (alert_id) WHERE taken_at IS NULL;
CREATE INDEX ct_alerts_at_idx ON outreach.ct_alerts (at);

-- Exits by the watchdog (ADR-CT-IMO-022), each with the places where the worker may have hung. After three at one
-- place, workers that start wait for a person.
CREATE TABLE outreach.ct_watchdog_exits (
    exit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    places text[] NOT NULL,           -- such as 'spine.created[3] offset 1234'
    reason text NOT NULL,
    worker text NOT NULL,
    worker_version text NOT NULL
);
CREATE INDEX ct_watchdog_exits_at_idx ON outreach.ct_watchdog_exits (at);

-- Worker runs: which machines decide companies, with which limits and patterns, and whether they are ready. Each writes
-- its row every few seconds.
CREATE TABLE outreach.ct_workers (
    worker text PRIMARY KEY,          -- host/pid/random, as in leases
    machine text NOT NULL,
    -- The name of the address that its probes come from, which becomes a part of the names of guardrails.
    egress text NOT NULL CHECK (egress COLLATE "C" ~ '^[A-Za-z0-9._-]{0,64}$'),
    address text,                     -- its address of IPv4, as a control's server last saw it; NULL: none has named it
    version text NOT NULL,
    toolbox jsonb NOT NULL,           -- its limits and patterns
    troubles jsonb NOT NULL,          -- why it is not ready, by part; {}: it is ready
    notes jsonb NOT NULL DEFAULT '{}',  -- what else is worth knowing: what its machine lacks, for one
    partitions integer[] NOT NULL,    -- of spine.created
    running integer NOT NULL,         -- companies in hand
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at timestamptz              -- it said goodbye
);
CREATE INDEX ct_workers_seen_at_idx ON outreach.ct_workers (seen_at);

-- Toolboxes that a person accepted while workers with another one were running. The newest one counts.
CREATE TABLE outreach.ct_toolboxes (
    ordinal bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    toolbox jsonb NOT NULL,
    reason text NOT NULL,
    by_role text NOT NULL DEFAULT session_user
);

-- Undecided companies, with what ends each wait in a sentence. `now()`: all rows of one answer speak of one moment.
CREATE VIEW outreach.ct_held AS
SELECT
    p.outreach_id,
    p.domain,
    p.since,
    p.state,
    p.reason,
    p.detail,
    CASE
        WHEN p.state = 'stuck' THEN 'a worker of another version tries it again when it starts'
        WHEN p.lease_until > now() THEN 'it is over: a worker has the company in hand'
        WHEN p.not_before <= now() THEN 'it is over: the next free worker continues with the company'
        WHEN p.reason = 'halted' AND g.state = 'trial'
            THEN 'its turn comes: companies are tried one at a time until enough providers have talked normally'
        WHEN p.reason IN ('halted', 'spine_control') AND g.state = 'halted'
            THEN 'a person resumes it: ct-stream guardrails resume ' || k.rail || coalesce(e.said, '')
        WHEN p.reason IN ('provider_closed', 'our_rate') AND p.not_before = 'infinity'
            THEN 'another company talks normally with ' || k.provider
                || coalesce(' (one is tried at ' || g.next_try_at::timestamptz(0) || ')', '')
                || ', or a person resumes it: ct-stream guardrails resume ' || k.rail || coalesce(e.said, '')
        WHEN p.waits_on = 'way' OR p.waits_on LIKE 'way:%'
            THEN CASE p.waits_on
                WHEN 'way' THEN 'a worker takes it whose own way out is proven'
                WHEN 'way:smtp6' THEN 'a worker takes it whose machine reaches port 25 over IPv6'
                WHEN 'way:dns_tcp' THEN 'a worker takes it whose resolvers answer over TCP (port 53)'
                ELSE 'a worker takes it whose machine reaches port 25 over IPv4' END
                || CASE WHEN EXISTS (
                    SELECT FROM outreach.ct_workers AS o
                    WHERE o.ended_at IS NULL AND o.seen_at > now() - interval '30 seconds'
                        AND NOT o.troubles ?| ARRAY['start', 'control_dns', 'control_smtp']
                        AND NOT o.notes ? split_part(p.waits_on, ':', 2)  -- it notes what its machine lacks
                ) THEN '' ELSE '; there is none now, see ct-stream workers' END
        WHEN p.waits_on LIKE 'egress:%' THEN 'a worker of another egress than '
            || substring(p.waits_on FROM '^egress:(.*)$') || ' asks instead'
        WHEN p.reason = 'control' AND k.run IS NOT NULL AND w.is_running IS NOT TRUE
            THEN 'another worker takes it within seconds: worker ' || k.run || ', which met its last answer, has ended'
        WHEN p.reason = 'control' AND k.run IS NOT NULL
            THEN 'a control shows that ' || CASE split_part(p.waits_on, ':', 2)
                    WHEN 'dns' THEN 'the resolvers' WHEN 'dns_tcp' THEN 'the resolvers over TCP'
                    WHEN 'smtp6' THEN 'the way out to port 25 over IPv6' ELSE 'the way out to port 25' END
                || ' of worker ' || k.run || ' (egress ' || w.egress || ')'
                || CASE WHEN p.waits_on LIKE 'control:dns%' THEN ' work' ELSE ' works' END
                || coalesce(', after ' || p.failed_at::timestamptz(0), '')
        WHEN p.reason = 'domain_busy' AND p.waits_on IS NOT NULL
            THEN 'the company that asks ' || split_part(p.waits_on, ':', 2) || ' now is done, and a short pause is over'
        WHEN p.reason = 'provider_busy' AND p.waits_on IS NOT NULL
            THEN 'one of our sessions at ' || substring(p.waits_on FROM position(':' IN p.waits_on) + 1) || ' ends'
        WHEN p.not_before = 'infinity' THEN 'a worker sees within seconds that nothing is in the way any more'
        WHEN p.reason = 'spine_grace' THEN 'it appears in the spine, or it was looked up for CT_SPINE_GRACE_S'
        WHEN p.reason = 'spine_control' THEN 'the check of the spine succeeds'
        WHEN p.reason = 'daily_cap' AND p.waits_on IS NOT NULL
            THEN 'the next UTC day begins, or a unit of today is given back'
        WHEN p.reason = 'daily_cap' THEN 'the next UTC day begins'
        WHEN p.reason = 'refused' THEN 'it is known whether other companies are refused too'
        WHEN p.reason = 'provider_closed' AND p.waits_on IS NULL THEN 'its server is asked again'
        WHEN p.reason = 'provider_silent' AND p.waits_on IS NOT NULL
            THEN split_part(k.provider, ' from egress ', 1) || ' is open to egress ' || k.egress || ' again, or answers the worker that looks'
                || ' again, or a person resumes it: ct-stream guardrails resume ' || k.rail
        WHEN p.reason = 'provider_silent' THEN 'it is known whether the provider is silent for other companies too'
        WHEN p.reason = 'tier2' AND p.waits_on = 'tier2:turn' THEN 'the vendor gives a usable answer, or its turn comes'
        WHEN p.reason = 'tier2' THEN 'its paid call is answered, or the time for an answer is over'
        WHEN p.reason = 'row_held' THEN 'its rows can be written: who holds them, or what refuses them, is named beside'
        ELSE 'a short time passes'
    END || CASE WHEN p.state = 'waiting' AND p.not_before > now() AND p.not_before < 'infinity'
        AND (p.lease_until IS NULL OR p.lease_until <= now())
        THEN '; looked at again at ' || p.not_before::timestamptz(0) ELSE ''
    END AS what_ends_it,
    p.not_before,
    p.waits_on,
    p.exceptions,
    p.traceback
FROM outreach.ct_passes AS p
LEFT JOIN outreach.ct_guardrails AS g ON g.key = p.waits_on
CROSS JOIN LATERAL (
    SELECT
        -- The key as an argument of a command, which people paste into a shell.
        CASE WHEN p.waits_on ~ '^[A-Za-z0-9:._/@-]+$' THEN p.waits_on ELSE quote_literal(p.waits_on) END AS rail,
        -- The provider that such a key names, and the egress to which it is closed.
        regexp_replace(substring(p.waits_on FROM position(':' IN p.waits_on) + 1), '@([^@]*)$', ' from egress \1') AS provider,
        coalesce(substring(p.waits_on FROM '@([^@]*)$'), 'default') AS egress,
        substring(p.waits_on FROM '^control:[^:]*:(.*)$') AS run  -- that has to ask a control
) AS k
LEFT JOIN LATERAL (
    SELECT r.egress, r.ended_at IS NULL AND r.seen_at > now() - interval '30 seconds' AS is_running
    FROM outreach.ct_workers AS r WHERE r.worker = k.run
) AS w ON true
-- What is in the way of one address is taken over by workers with another one.
LEFT JOIN LATERAL (
    SELECT ', or a worker of another egress takes it' AS said
    WHERE (p.waits_on LIKE 'tool:TOOL-005%' OR p.waits_on LIKE 'provider:%') AND EXISTS (
        SELECT FROM outreach.ct_workers AS o
        WHERE o.egress <> k.egress AND o.ended_at IS NULL AND o.seen_at > now() - interval '30 seconds'
            AND NOT o.troubles ?| ARRAY['start', 'control_dns', 'control_smtp']
            AND NOT EXISTS (
                SELECT FROM outreach.ct_guardrails AS t
                WHERE t.state = 'halted'
                    AND t.key = 'tool:TOOL-005' || CASE WHEN o.egress = 'default' THEN '' ELSE '@' || o.egress END
            )
    )
) AS e ON true;
