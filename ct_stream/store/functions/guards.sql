-- Final means final: no role and no replication apply may change or remove an outcome. triggers.sql names the tables.

-- What is published is the company's own outcome, under its key: a worker sends it as it is recorded. An outcome never
-- changes. Only its publish claim may move, and published_at may be set once.
CREATE OR REPLACE FUNCTION outreach.ct_guard_outcome() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    event jsonb;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NOT outreach.ct_acts_as_gate(TG_RELID, 'topic', 'INSERT') THEN
            RETURN NEW;
        END IF;
        -- What the database gives, as in ct_guard_given.
        NEW.ordinal := outreach.ct_next_number('ct_outcomes');
        NEW.source := 'gate';
        NEW.recorded_at := clock_timestamp();
        NEW.recorded_in := pg_current_xact_id();
        NEW.published_at := NULL;
        -- By the server's clock, which may have been set.
        IF NOT isfinite(NEW.decided_at) OR NEW.decided_at
            NOT BETWEEN clock_timestamp() - interval '366 days' AND clock_timestamp() + interval '366 days'
        THEN
            RAISE EXCEPTION 'outcome %: decided at %', NEW.outreach_id, NEW.decided_at USING ERRCODE = 'check_violation';
        END IF;
        -- A row too large for a jsonb could not be compared when it is updated: it would never be published, nor would
        -- what is claimed with it.
        -- By their text: a value that comes from another table may be compressed. Of headers, users bring two.
        IF octet_length(concat(NEW.failure_code, NEW.reason, NEW.domain, NEW.rules_version, NEW.event_topic,
                NEW.transcript)) > 10000000
            OR octet_length(NEW.value) > 1000000 OR octet_length(NEW.headers::text) > 32000
        THEN
            RAISE EXCEPTION 'outcome %: it is too large', NEW.outreach_id USING ERRCODE = 'check_violation';
        END IF;
        IF NEW.topic IS NOT NULL OR NEW.value IS NOT NULL THEN
            event := convert_from(NEW.value, 'UTF8');
            IF NEW.topic IS DISTINCT FROM (CASE NEW.outcome WHEN 'PASS' THEN 'ct.pass' ELSE 'ct.fail' END)
                OR NEW.key IS DISTINCT FROM convert_to(NEW.outreach_id::text, 'UTF8')
                OR jsonb_typeof(NEW.headers) IS DISTINCT FROM 'array'
                OR event ->> 'outreach_id' IS DISTINCT FROM NEW.outreach_id::text
                OR event ->> 'failure_code' IS DISTINCT FROM NEW.failure_code
                OR event ? 'domain' AND event ->> 'domain' IS DISTINCT FROM NEW.domain
                OR event ? 'blocking_reason' AND event ->> 'blocking_reason' IS DISTINCT FROM left(NEW.reason, 1000)
                OR event ? 'retry_allowed' AND event -> 'retry_allowed' <> 'false'
                OR event ? 'imo_stage' AND event ->> 'imo_stage' IS DISTINCT FROM substr(NEW.failure_code, 4, 1)
                OR event ? 'verified_by' AND event ->> 'verified_by' NOT IN ('smtp', 'catch_all', 'tier2')
                OR event ? 'duration_ms' AND event ->> 'duration_ms' IS DISTINCT FROM NEW.duration_ms::text
                OR event ? 'schema_version' AND event -> 'schema_version' <> '1'
                OR event ? 'decided_at' AND event ->> 'decided_at' IS DISTINCT FROM
                    -- A session's time zone may say what the word UTC means.
                    to_char(NEW.decided_at AT TIME ZONE interval '0', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')
                -- schemas/ct.pass.v1.json and ct.fail.v1.json
                OR event - ARRAY['schema_version', 'outreach_id', 'domain', 'tools_used', 'correlation_id', 'decided_at',
                    'duration_ms'] - (CASE NEW.outcome
                        WHEN 'PASS' THEN ARRAY['email_method', 'method_type', 'confidence_score', 'is_catchall', 'verified_by']
                        ELSE ARRAY['failure_code', 'imo_stage', 'blocking_reason', 'retry_allowed']
                    END) <> '{}'
                OR NEW.outcome = 'PASS' AND event ? 'confidence_score' AND (
                    jsonb_typeof(event -> 'confidence_score') <> 'number'
                    OR (event ->> 'confidence_score')::numeric NOT BETWEEN 0 AND 1
                )
                OR event ? 'is_catchall' AND jsonb_typeof(event -> 'is_catchall') <> 'boolean'
                -- If a name occurs twice, readers disagree on which one counts; some ignore case, and take other letters for
                -- the same.
                OR (
                    SELECT count(*) <> count(DISTINCT k.key) OR bool_or(k.key COLLATE "C" !~ '^[a-z0-9_]+$')
                    FROM json_object_keys(convert_from(NEW.value, 'UTF8')::json) AS k (key)
                )
            THEN
                RAISE EXCEPTION 'outcome %: what is to be published is not its own', NEW.outreach_id
                    USING ERRCODE = 'check_violation';
            END IF;
        END IF;
        RETURN NEW;
    END IF;
    IF TG_OP <> 'UPDATE' THEN
        RAISE EXCEPTION 'ct_outcomes is final: % is refused', lower(TG_OP) USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.published_at IS NOT NULL
        OR (to_jsonb(NEW) - 'publish_until' - 'published_at') <> (to_jsonb(OLD) - 'publish_until' - 'published_at')
    THEN
        RAISE EXCEPTION 'outcome % is final', OLD.outreach_id USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.published_at IS NOT NULL THEN
        NEW.published_at := clock_timestamp();  -- `verify` looks on the topics for what was published lately
    END IF;
    RETURN NEW;
END $$;

-- The next number of one of our tables. The gate has no right on the sequences, and may name no number.
CREATE OR REPLACE FUNCTION outreach.ct_next_number(its_table text) RETURNS bigint
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT nextval(CASE its_table
        WHEN 'ct_outcomes' THEN pg_get_serial_sequence('outreach.ct_outcomes', 'ordinal')
        WHEN 'ct_refusals' THEN pg_get_serial_sequence('outreach.ct_refusals', 'refusal_id')
        WHEN 'ct_watchdog_exits' THEN pg_get_serial_sequence('outreach.ct_watchdog_exits', 'exit_id')
    END::regclass)
$$;

-- The database gives these columns their values here. The rights on columns do not cover that: a view of the gate's may
-- have defaults of its own, and Postgres asks for a right only on columns that a statement names.
CREATE OR REPLACE FUNCTION outreach.ct_guard_given() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A restore by the owner keeps what was given then.
    IF NOT pg_has_role(current_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = TG_RELID), 'USAGE') THEN
        NEW.at := clock_timestamp();
        IF TG_TABLE_NAME = 'ct_refusals' THEN
            NEW.refusal_id := outreach.ct_next_number('ct_refusals');
        ELSIF TG_TABLE_NAME = 'ct_watchdog_exits' THEN
            NEW.exit_id := outreach.ct_next_number('ct_watchdog_exits');
        END IF;
    END IF;
    RETURN NEW;
END $$;

-- Is this company decided, by the gate or before it came, and its row of this table not one that the gate found final
-- already? Triggers call this and the next function as whoever changes a row, so everybody may; they tell nothing but
-- yes or no.
CREATE OR REPLACE FUNCTION outreach.ct_is_decided(id uuid, its_table text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (SELECT o.outreach_id FROM outreach.ct_outcomes AS o WHERE o.outreach_id = id)
        AND NOT EXISTS (
            SELECT u.outreach_id FROM outreach.ct_unwritten AS u
            WHERE u.outreach_id = id AND u.its_table = ct_is_decided.its_table
        )
$$;

-- Is this row deleted because its company was, by a foreign key of its table? Then the spine has no such row any more.
-- Row security that would hide the company makes this an error: what cannot be seen is not gone. It runs as ct_reader,
-- which may see the ids of the spine and nothing else: expressions of the spine's owner (of an index, of statistics) run
-- whenever a query of the spine is planned, with the rights of whoever asks.
-- What such code does is undone, and it may change nothing meanwhile: a role may alter what it owns, this function too.
CREATE OR REPLACE FUNCTION outreach.ct_left_the_spine(id uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
#variable_conflict use_variable  -- users may have columns of any name
DECLARE
    is_gone boolean := false;
    said text;
    failed_by text;
    planted text;
    -- With their times: one of them could be prepared again.
    prepared text[] := ARRAY(SELECT p.name || p.prepare_time::text FROM pg_prepared_statements AS p WHERE p.from_sql);
BEGIN
    BEGIN
        PERFORM set_config('transaction_read_only', 'on', true);
        -- Only of a table: functions in a view would run with the rights of this one.
        is_gone := EXISTS (
                SELECT c.oid FROM pg_class AS c
                WHERE c.oid = to_regclass('outreach.outreach') AND c.relkind IN ('r', 'p')
            )
            AND NOT EXISTS (SELECT s.outreach_id FROM outreach.outreach AS s WHERE s.outreach_id = id);
        RAISE EXCEPTION USING ERRCODE = 'CT001';
    EXCEPTION
        WHEN SQLSTATE 'CT001' THEN NULL;
        WHEN OTHERS OR query_canceled OR assert_failure THEN said := SQLERRM; failed_by := SQLSTATE;
    END;
    -- No rollback undoes a PREPARE: it could stand in the place of a statement that the session's owner has prepared.
    FOR planted IN
        SELECT p.name FROM pg_prepared_statements AS p
        WHERE p.from_sql AND p.name || p.prepare_time::text <> ALL (prepared)
    LOOP
        EXECUTE format('DEALLOCATE %I', planted);
    END LOOP;
    IF failed_by IS NOT NULL THEN
        RAISE EXCEPTION '%', said USING ERRCODE = failed_by;
    END IF;
    RETURN is_gone;
END $$;

-- The first of these columns whose text an update changes; NULL: none. Column by column, and never the row as JSON: others
-- may have columns there that are large, or that hold what JSON cannot be read with (\u0000, half a surrogate pair).
CREATE OR REPLACE FUNCTION outreach.ct_first_change(before text[], after text[], columns text[]) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.name FROM unnest(before, after, columns) WITH ORDINALITY AS c (old_text, new_text, name, n)
    WHERE c.old_text COLLATE "C" IS DISTINCT FROM c.new_text COLLATE "C" ORDER BY c.n LIMIT 1
$$;

-- Does whoever acts on this table do so by the rights of ct_gate, and not by one of their own? Through a view of ct_gate's
-- anybody comes with its rights. Of a partition, what counts are the rights on its table. Triggers call this as whoever
-- changes a row, so everybody may; it tells what everybody may read in the catalog.
CREATE OR REPLACE FUNCTION outreach.ct_acts_as_gate(its_table oid, its_column text, operation text) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NOT pg_has_role(current_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = its_table), 'USAGE')
        AND (
            pg_has_role(current_user, 'ct_gate', 'USAGE')
            OR NOT has_column_privilege(
                current_user, coalesce(pg_partition_root(its_table), its_table)::oid, its_column, operation
            )
        )
$$;

-- The number nearest to this one whose last 32 bits are these.
CREATE OR REPLACE FUNCTION outreach.ct_nearest(near bigint, bits bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT greatest(near + (bits - near % 4294967296 + 6442450944) % 4294967296 - 2147483648, 0)
$$;

-- Was this row version written by the present transaction, or by a savepoint of it? A row of another one that is not
-- committed yet cannot be seen. xmin has the last 32 bits of a transaction's number, which may be later than the snapshot.
CREATE OR REPLACE FUNCTION outreach.ct_written_here(row_xmin xid) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN coalesce(pg_xact_status(outreach.ct_nearest(
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint, row_xmin::text::bigint
    )::text::xid8) = 'in progress', false);
EXCEPTION
    -- There is no such transaction yet: the row is older than two billion of them.
    WHEN invalid_parameter_value THEN RETURN false;
END $$;

-- In the row of a decided company the gate's columns are final; the others belong to whoever made them. A row goes with
-- its company when the spine's row is deleted: the ledger row stays. A pending row may be decided, or removed.
-- Whoever changes a row may have come through a view, without a right on this schema: what is in it is named only where it
-- is needed.
CREATE OR REPLACE FUNCTION outreach.ct_guard_company_target() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ours CONSTANT text[] := ARRAY[
        'outreach_id', 'email_method', 'method_type', 'confidence_score', 'is_catchall', 'execution_status',
        'imo_completed_at'
    ];
    before text[];
    after text[];
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        -- A partition that was detached is not the gate's affair any more.
        IF pg_partition_root(TG_RELID) IS NULL AND TG_TABLE_NAME <> 'company_target' THEN
            RETURN NULL;
        END IF;
        RAISE EXCEPTION 'company_target is final: truncate is refused' USING ERRCODE = 'restrict_violation';
    END IF;
    IF TG_OP = 'UPDATE' THEN
        -- The gate by itself touches nothing that is final: not updated_at, and no trigger of others runs for it.
        IF TG_WHEN = 'BEFORE' AND pg_trigger_depth() = 1 AND OLD.execution_status::text IN ('ready', 'failed', 'blocked')
            AND to_regrole('ct_gate') IS NOT NULL
        THEN
            IF pg_has_role(current_user, 'ct_gate', 'USAGE')
                AND NOT pg_has_role(current_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = TG_RELID), 'USAGE')
            THEN
                RAISE EXCEPTION 'company_target: the gate changes no row that is final or of another company (%, %)',
                    OLD.outreach_id, OLD.execution_status USING ERRCODE = 'restrict_violation';
            END IF;
        END IF;
        -- Most updates are those of others, of many rows at once: compared like this they cost next to nothing. By their
        -- bytes: a column may have a collation by which different words are equal.
        IF (NEW.outreach_id, NEW.email_method::text COLLATE "C", NEW.method_type::text COLLATE "C",
                NEW.confidence_score, NEW.confidence_score::text COLLATE "C", NEW.is_catchall::text COLLATE "C",
                NEW.execution_status::text COLLATE "C", NEW.imo_completed_at, NEW.imo_completed_at::text COLLATE "C")
            IS NOT DISTINCT FROM (OLD.outreach_id, OLD.email_method::text COLLATE "C", OLD.method_type::text COLLATE "C",
                OLD.confidence_score, OLD.confidence_score::text COLLATE "C", OLD.is_catchall::text COLLATE "C",
                OLD.execution_status::text COLLATE "C", OLD.imo_completed_at, OLD.imo_completed_at::text COLLATE "C")
        THEN
            RETURN NEW;
        END IF;
    END IF;
    IF OLD.execution_status::text IN ('ready', 'failed', 'blocked') THEN
        IF NOT has_schema_privilege(current_user, 'outreach', 'USAGE') THEN
            RAISE EXCEPTION 'company_target: % may not ask whether the gate has decided %, whose row is final (%)',
                current_user, OLD.outreach_id, OLD.execution_status
                USING ERRCODE = 'insufficient_privilege',
                    HINT = format('GRANT USAGE ON SCHEMA outreach TO %I', current_user);
        END IF;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        before := ARRAY[OLD.outreach_id::text, OLD.email_method::text, OLD.method_type::text, OLD.confidence_score::text,
            OLD.is_catchall::text, OLD.execution_status::text, OLD.imo_completed_at::text];
        after := ARRAY[NEW.outreach_id::text, NEW.email_method::text, NEW.method_type::text, NEW.confidence_score::text,
            NEW.is_catchall::text, NEW.execution_status::text, NEW.imo_completed_at::text];
        -- ON DELETE SET NULL: the row stays, and belongs to no company any more. A foreign key has its AFTER triggers run
        -- by the statement that deleted the company.
        IF (pg_trigger_depth() > 1 OR TG_WHEN = 'AFTER') AND NEW.outreach_id IS NULL
            AND OLD.execution_status::text IN ('ready', 'failed', 'blocked')
        THEN
            IF outreach.ct_first_change(before[2:], after[2:], ours[2:]) IS NULL
                -- Two moments may have one text: when a summer ends.
                AND (NEW.confidence_score, NEW.imo_completed_at) IS NOT DISTINCT FROM
                    (OLD.confidence_score, OLD.imo_completed_at)
                -- A foreign key acts as the table's owner; before 18, what comes AFTER does so as whoever deleted the company.
                AND (TG_WHEN = 'AFTER' OR NOT outreach.ct_acts_as_gate(TG_RELID, 'execution_status', 'UPDATE'))
            THEN
                -- The spine may have row security: it is asked of those alone who are guarded.
                IF outreach.ct_is_decided(OLD.outreach_id::uuid, 'company_target') THEN
                    IF outreach.ct_left_the_spine(OLD.outreach_id::uuid) THEN
                        RETURN NEW;
                    END IF;
                END IF;
            END IF;
        END IF;
        -- A row that moves to another partition meets AFTER triggers as a new one, so the gate hears here what
        -- ct_guard_new_row says to it elsewhere.
        IF TG_WHEN = 'BEFORE' AND pg_partition_root(TG_RELID) IS NOT NULL
            AND NEW.outreach_id IS DISTINCT FROM OLD.outreach_id
        THEN
            IF NOT has_schema_privilege(current_user, 'outreach', 'USAGE') THEN
                RAISE EXCEPTION 'company_target: % may not ask by whose right the row of % goes to another partition',
                    current_user, OLD.outreach_id
                    USING ERRCODE = 'insufficient_privilege',
                        HINT = format('GRANT USAGE ON SCHEMA outreach TO %I', current_user);
            END IF;
            IF outreach.ct_acts_as_gate(TG_RELID, 'outreach_id', 'UPDATE') THEN
                RAISE EXCEPTION 'company_target: the gate changes no row that is final or of another company (%, %)',
                    OLD.outreach_id, OLD.execution_status USING ERRCODE = 'restrict_violation';
            END IF;
        END IF;
    -- Where rows are replicated from, the cascade has deleted them one by one.
    ELSIF OLD.execution_status::text IN ('ready', 'failed', 'blocked')
        AND (pg_trigger_depth() > 1 OR current_setting('session_replication_role') = 'replica')
    THEN
        IF outreach.ct_is_decided(OLD.outreach_id::uuid, 'company_target') THEN
            IF outreach.ct_left_the_spine(OLD.outreach_id::uuid) THEN
                RETURN OLD;
            END IF;
        END IF;
    END IF;
    IF OLD.execution_status::text IN ('ready', 'failed', 'blocked') THEN
        IF outreach.ct_is_decided(OLD.outreach_id::uuid, 'company_target') THEN
            RAISE EXCEPTION 'company_target % is final (%): % is refused', OLD.outreach_id, OLD.execution_status,
                CASE TG_OP
                    WHEN 'UPDATE' THEN 'a change of ' || coalesce(outreach.ct_first_change(before, after, ours), 'a value')
                    ELSE lower(TG_OP)
                END
                USING ERRCODE = 'restrict_violation';
        END IF;
    END IF;
    RETURN CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
END $$;

-- The record of a failure never changes; people may note how it was resolved, and columns of their own are theirs. A row
-- of a company that is not decided was made by something else, and is not ours to guard.
CREATE OR REPLACE FUNCTION outreach.ct_guard_errors() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ours CONSTANT text[] := ARRAY[
        'outreach_id', 'pipeline_stage', 'failure_code', 'blocking_reason', 'severity', 'imo_stage', 'retry_allowed',
        'created_at', 'raw_input', 'stack_trace'
    ];
    before text[];
    after text[];
BEGIN
    IF TG_OP = 'UPDATE' THEN
        before := ARRAY[OLD.outreach_id::text, OLD.pipeline_stage::text, OLD.failure_code::text, OLD.blocking_reason::text,
            OLD.severity::text, OLD.imo_stage::text, OLD.retry_allowed::text, OLD.created_at::text,
            OLD.raw_input::text, OLD.stack_trace::text];
        after := ARRAY[NEW.outreach_id::text, NEW.pipeline_stage::text, NEW.failure_code::text, NEW.blocking_reason::text,
            NEW.severity::text, NEW.imo_stage::text, NEW.retry_allowed::text, NEW.created_at::text,
            NEW.raw_input::text, NEW.stack_trace::text];
        -- Two moments may have one text: when a summer ends.
        IF before COLLATE "C" = after COLLATE "C" AND NEW.created_at IS NOT DISTINCT FROM OLD.created_at THEN
            RETURN NEW;
        END IF;
    END IF;
    IF TG_OP = 'TRUNCATE' THEN
        IF pg_partition_root(TG_RELID) IS NULL AND TG_TABLE_NAME <> 'company_target_errors' THEN
            RETURN NULL;
        END IF;
    ELSE
        IF NOT has_schema_privilege(current_user, 'outreach', 'USAGE') THEN
            RAISE EXCEPTION 'company_target_errors: % may not ask whether the gate has decided %', current_user,
                OLD.outreach_id
                USING ERRCODE = 'insufficient_privilege',
                    HINT = format('GRANT USAGE ON SCHEMA outreach TO %I', current_user);
        END IF;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF NOT outreach.ct_is_decided(OLD.outreach_id::uuid, 'company_target_errors') THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'company_target_errors is final: a change of % is refused',
            coalesce(outreach.ct_first_change(before, after, ours), 'created_at') USING ERRCODE = 'restrict_violation';
    END IF;
    IF TG_OP = 'DELETE' AND (
        NOT outreach.ct_is_decided(OLD.outreach_id::uuid, 'company_target_errors')
        -- A company that was never there goes with nothing.
        OR (pg_trigger_depth() > 1 OR current_setting('session_replication_role') = 'replica')
            AND OLD.failure_code::text <> 'CT-I-NOT-FOUND'
            AND outreach.ct_left_the_spine(OLD.outreach_id::uuid)
    ) THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'company_target_errors is final: % is refused', lower(TG_OP) USING ERRCODE = 'restrict_violation';
END $$;

-- There is one attempt: its answer is stored once, and no attempt is ever removed (ADR-CT-IMO-017).
CREATE OR REPLACE FUNCTION outreach.ct_guard_attempt() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP <> 'UPDATE' THEN
        RAISE EXCEPTION 'ct_tier2_attempts is final: % is refused', lower(TG_OP) USING ERRCODE = 'restrict_violation';
    END IF;
    IF OLD.status IS NOT NULL
        OR (to_jsonb(NEW) - 'status' - 'detail' - 'answered_at') <> (to_jsonb(OLD) - 'status' - 'detail' - 'answered_at')
    THEN
        RAISE EXCEPTION 'the attempt of % is spent', OLD.outreach_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

-- What was paid is paid: calls and money of Tier-2 are only added to, and no count is below nothing.
CREATE OR REPLACE FUNCTION outreach.ct_guard_usage() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.used < 0 OR NEW.usd < 0 OR NEW.usd = 'NaN' THEN
        RAISE EXCEPTION 'usage of % cannot be negative', NEW.tool_id USING ERRCODE = 'check_violation';
    END IF;
    IF TG_OP = 'INSERT' THEN
        IF NOT pg_has_role(current_user, (SELECT c.relowner FROM pg_class AS c WHERE c.oid = TG_RELID), 'USAGE') THEN
            NEW.refused_at := NULL;  -- as in ct_guard_given
        END IF;
    ELSIF (
        (NEW.tool_id, NEW.span, NEW.begins) IS DISTINCT FROM (OLD.tool_id, OLD.span, OLD.begins)
        OR OLD.tool_id = 'TOOL-019' AND (NEW.used < OLD.used OR NEW.usd < OLD.usd)
        OR NEW.refused_at IS DISTINCT FROM OLD.refused_at AND OLD.refused_at IS NOT NULL  -- people are told once
    ) THEN
        RAISE EXCEPTION 'usage of % is only added to', OLD.tool_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END $$;

-- Was this company's outcome recorded by the present transaction?
CREATE OR REPLACE FUNCTION outreach.ct_recorded_here(id uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT EXISTS (
        SELECT o.outreach_id FROM outreach.ct_outcomes AS o
        WHERE o.outreach_id = id AND o.recorded_in = pg_current_xact_id()
            -- A restored ledger has numbers of another server, and a transaction may have begun before the restore. A
            -- minute, because clocks are set back.
            AND outreach.ct_written_here(o.xmin)
            AND o.recorded_at BETWEEN clock_timestamp() - interval '1 minute' AND clock_timestamp() + interval '1 minute'
    )
$$;

-- What the gate says of a company in the users' tables it says together with the outcome, in one statement, and it says
-- the same. Later it would be another decision: a final row for a company whose row is gone, a further failure, or a guard
-- taken off a row that is said to be left as it was. Others may write rows of their own; `verify` names those without an
-- outcome. Times are compared in the gate's own zone and style, whatever the session has set: a column of theirs may have
-- no zone, or be text.
CREATE OR REPLACE FUNCTION outreach.ct_guard_new_row() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET TimeZone = utc SET DateStyle = iso, mdy AS $$
#variable_conflict use_variable  -- users may have columns of any name
DECLARE
    said record;
    event jsonb;
    wrong text;
    a_day CONSTANT interval := '24 hours';  -- '1 day' may have 25
    root CONSTANT oid := coalesce(pg_partition_root(TG_RELID), TG_RELID);
    owner CONSTANT oid := (SELECT c.relowner FROM pg_class AS c WHERE c.oid = root);
    is_final boolean := true;
    was_final boolean := false;
    may_record boolean := false;
    only_its_id boolean := false;
    says_something boolean := true;
    -- Who may write this one may write such a row; NULL: any column.
    its_column text := CASE TG_ARGV[0] WHEN 'company_target' THEN 'execution_status' WHEN 'ct_unwritten' THEN 'its_table'
        ELSE 'failure_code' END;
BEGIN
    -- Column by column: others may have columns that are large, or hold what jsonb cannot.
    IF TG_ARGV[0] = 'company_target' THEN  -- of a partition the name is another one
        -- Others write their own columns, and so do triggers of theirs that run as the gate.
        IF TG_OP = 'UPDATE' THEN
            IF (NEW.outreach_id, NEW.email_method::text COLLATE "C", NEW.method_type::text COLLATE "C",
                    NEW.confidence_score, NEW.confidence_score::text COLLATE "C", NEW.is_catchall::text COLLATE "C",
                    NEW.execution_status::text COLLATE "C", NEW.imo_completed_at, NEW.imo_completed_at::text COLLATE "C")
                IS NOT DISTINCT FROM (OLD.outreach_id, OLD.email_method::text COLLATE "C", OLD.method_type::text COLLATE "C",
                    OLD.confidence_score, OLD.confidence_score::text COLLATE "C", OLD.is_catchall::text COLLATE "C",
                    OLD.execution_status::text COLLATE "C", OLD.imo_completed_at, OLD.imo_completed_at::text COLLATE "C")
            THEN
                RETURN NULL;
            END IF;
        END IF;
        is_final := coalesce(NEW.execution_status::text COLLATE "C", '') IN ('ready', 'failed', 'blocked');
        IF NOT is_final THEN
            -- More than that there is such a company. Their columns may have defaults.
            says_something := coalesce(NEW.email_method::text COLLATE "C", '') <> ''
                OR coalesce(NEW.method_type::text COLLATE "C", '') <> ''
                OR coalesce(NEW.confidence_score::text COLLATE "C", '') !~ '^[0.]*$'
                OR lower(coalesce(NEW.is_catchall::text COLLATE "C", '')) NOT IN ('', 'false', 'f', '0', 'no', 'n', 'off')
                OR NEW.imo_completed_at IS NOT NULL AND NOT EXISTS (
                    SELECT a.attnum FROM pg_attribute AS a
                    WHERE a.attrelid = root AND a.attname = 'imo_completed_at' AND a.atthasdef
                );
            its_column := CASE WHEN says_something THEN 'email_method' END;
        END IF;
        -- Who changes a row may change what is changed: first of all whose it is, or that it is final.
        IF TG_OP = 'UPDATE' THEN
            was_final := coalesce(OLD.execution_status::text COLLATE "C", '') IN ('ready', 'failed', 'blocked');
            IF is_final OR was_final OR NEW.outreach_id IS DISTINCT FROM OLD.outreach_id THEN
                its_column := CASE
                    WHEN NEW.outreach_id IS DISTINCT FROM OLD.outreach_id THEN 'outreach_id'
                    WHEN NEW.execution_status::text COLLATE "C" IS DISTINCT FROM OLD.execution_status::text COLLATE "C"
                        THEN 'execution_status'
                    WHEN NEW.email_method::text COLLATE "C" IS DISTINCT FROM OLD.email_method::text COLLATE "C"
                        THEN 'email_method'
                    WHEN NEW.method_type::text COLLATE "C" IS DISTINCT FROM OLD.method_type::text COLLATE "C"
                        THEN 'method_type'
                    WHEN NEW.is_catchall::text COLLATE "C" IS DISTINCT FROM OLD.is_catchall::text COLLATE "C"
                        THEN 'is_catchall'
                    WHEN NEW.confidence_score IS DISTINCT FROM OLD.confidence_score THEN 'confidence_score'
                    ELSE 'imo_completed_at'
                END;
                only_its_id := its_column = 'outreach_id'
                    AND (NEW.email_method::text COLLATE "C", NEW.method_type::text COLLATE "C", NEW.confidence_score,
                        NEW.is_catchall::text COLLATE "C", NEW.execution_status::text COLLATE "C", NEW.imo_completed_at)
                    IS NOT DISTINCT FROM (OLD.email_method::text COLLATE "C", OLD.method_type::text COLLATE "C",
                        OLD.confidence_score, OLD.is_catchall::text COLLATE "C", OLD.execution_status::text COLLATE "C",
                        OLD.imo_completed_at);
            END IF;
        END IF;
    END IF;
    -- The same of a failure: first of all whose it is, and what it says.
    IF TG_ARGV[0] = 'company_target_errors' AND TG_OP = 'UPDATE' THEN
        its_column := CASE
            WHEN NEW.outreach_id IS DISTINCT FROM OLD.outreach_id THEN 'outreach_id'
            WHEN NEW.failure_code::text COLLATE "C" IS DISTINCT FROM OLD.failure_code::text COLLATE "C" THEN 'failure_code'
            WHEN NEW.blocking_reason::text COLLATE "C" IS DISTINCT FROM OLD.blocking_reason::text COLLATE "C"
                THEN 'blocking_reason'
            WHEN NEW.retry_allowed::text COLLATE "C" IS DISTINCT FROM OLD.retry_allowed::text COLLATE "C" THEN 'retry_allowed'
            WHEN NEW.pipeline_stage::text COLLATE "C" IS DISTINCT FROM OLD.pipeline_stage::text COLLATE "C"
                THEN 'pipeline_stage'
            WHEN NEW.severity::text COLLATE "C" IS DISTINCT FROM OLD.severity::text COLLATE "C" THEN 'severity'
            WHEN NEW.imo_stage::text COLLATE "C" IS DISTINCT FROM OLD.imo_stage::text COLLATE "C" THEN 'imo_stage'
            WHEN NEW.created_at IS DISTINCT FROM OLD.created_at THEN 'created_at'
            WHEN NEW.raw_input::text COLLATE "C" IS DISTINCT FROM OLD.raw_input::text COLLATE "C" THEN 'raw_input'
        END;
        IF its_column IS NULL THEN
            RETURN NULL;
        END IF;
        only_its_id := its_column = 'outreach_id'
            AND (NEW.failure_code::text COLLATE "C", NEW.blocking_reason::text COLLATE "C")
            IS NOT DISTINCT FROM (OLD.failure_code::text COLLATE "C", OLD.blocking_reason::text COLLATE "C");
    END IF;
    -- First of all: a copy of the database may be on a server without the gate's roles.
    IF pg_has_role(current_user, owner, 'USAGE') THEN
        RETURN NULL;
    END IF;
    -- A foreign key takes a row from its company, or renumbers it with the company; before 18 its AFTER triggers run as whoever
    -- changed the spine. Not for the gate, and never to a company that is decided.
    IF only_its_id AND NEW.outreach_id IS NULL THEN
        IF NOT pg_has_role(current_user, 'ct_gate', 'MEMBER') THEN
            RETURN NULL;
        END IF;
    END IF;
    -- Not for the gate's people: a view of the gate's could be what they come through.
    IF TG_OP = 'UPDATE' AND NOT pg_has_role(current_user, 'ct_gate', 'MEMBER')
        AND NOT pg_has_role(current_user, 'ct_ops', 'MEMBER')
    THEN
        -- A failure of a company that is not decided is no affair of the gate's: ct_final has let it pass.
        IF TG_ARGV[0] = 'company_target_errors' AND its_column <> 'outreach_id' THEN
            RETURN NULL;
        END IF;
        IF only_its_id AND has_schema_privilege(current_user, 'outreach', 'USAGE') THEN
            IF NOT outreach.ct_is_decided(NEW.outreach_id::uuid, '') THEN
                RETURN NULL;
            END IF;
        END IF;
    END IF;
    -- Others come by a right of their own, on the table or on a view of its owner's. Who has only the view may have no right
    -- on this schema, and could not even ask: no name in it is used before this is known.
    IF NOT pg_has_role(current_user, 'ct_gate', 'USAGE') THEN
        IF its_column IS NULL AND has_any_column_privilege(current_user, root, TG_OP)
            OR has_column_privilege(current_user, root, its_column, TG_OP)
            OR has_column_privilege(current_user, TG_RELID, its_column, TG_OP)
            -- Triggers of others may change more than the statement does.
            OR TG_ARGV[0] = 'company_target' AND (is_final OR was_final) AND its_column <> 'outreach_id'
                AND has_column_privilege(current_user, root, 'execution_status', TG_OP)
        THEN
            RETURN NULL;
        END IF;
        -- A role that fills in one of the others.
        IF NOT is_final AND NOT was_final AND its_column IS DISTINCT FROM 'outreach_id' AND (
            has_column_privilege(current_user, root, 'method_type', TG_OP)
            OR has_column_privilege(current_user, root, 'confidence_score', TG_OP)
            OR has_column_privilege(current_user, root, 'is_catchall', TG_OP)
            OR has_column_privilege(current_user, root, 'execution_status', TG_OP)
            OR has_column_privilege(current_user, root, 'imo_completed_at', TG_OP)
        ) THEN
            RETURN NULL;
        END IF;
        -- Not for the gate's own people: a view of the gate's could be what they come through.
        IF NOT pg_has_role(current_user, 'ct_ops', 'MEMBER') AND NOT pg_has_role(current_user, 'ct_gate', 'MEMBER') THEN
            IF EXISTS (
                WITH RECURSIVE seen_through (rel) AS (
                    SELECT root
                    UNION
                    SELECT r.ev_class FROM seen_through AS s
                    JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = s.rel
                        AND d.classid = 'pg_rewrite'::regclass AND (
                            its_column IS NULL OR d.refobjsubid = (
                                SELECT a.attnum FROM pg_attribute AS a WHERE a.attrelid = s.rel AND a.attname = its_column
                            )
                        )
                    JOIN pg_rewrite AS r ON r.oid = d.objid
                    JOIN pg_class AS v ON v.oid = r.ev_class AND v.relkind = 'v' AND NOT v.relhastriggers
                    WHERE (
                        pg_has_role(v.relowner, owner, 'USAGE')
                        OR NOT pg_has_role(v.relowner, 'ct_gate', 'MEMBER')
                            AND has_any_column_privilege(v.relowner, root, TG_OP)
                            AND coalesce(has_column_privilege(v.relowner, root, its_column, TG_OP), true)
                    ) AND NOT EXISTS (
                        SELECT o.option_name FROM pg_options_to_table(v.reloptions) AS o
                        WHERE o.option_name = 'check_option' OR o.option_name = 'security_invoker' AND o.option_value::boolean
                    )
                )
                SELECT s.rel FROM seen_through AS s
                JOIN pg_attribute AS a ON a.attrelid = s.rel AND a.attnum > 0 AND NOT a.attisdropped
                WHERE s.rel <> root AND a.attname = coalesce(its_column, a.attname)
                    AND has_column_privilege(current_user, s.rel, a.attnum, TG_OP)
                    AND pg_column_is_updatable(s.rel, a.attnum, false)
            ) THEN
                RETURN NULL;
            END IF;
        END IF;
    END IF;
    IF has_schema_privilege(current_user, 'outreach', 'USAGE') THEN
        may_record := has_function_privilege(current_user, 'outreach.ct_recorded_here(uuid)', 'EXECUTE');
    END IF;
    IF NOT may_record THEN
        RAISE EXCEPTION '%: % has no right of its own to write the row of %', TG_ARGV[0], current_user, NEW.outreach_id
            USING ERRCODE = 'insufficient_privilege', HINT = CASE
                WHEN TG_ARGV[0] = 'ct_unwritten' THEN 'Only the gate writes there.'
                ELSE format(
                    CASE WHEN pg_has_role(current_user, 'ct_ops', 'MEMBER') OR pg_has_role(current_user, 'ct_gate', 'MEMBER')
                        THEN 'Who has ct_ops or ct_gate comes through no view: GRANT %2$s (%1$I) ON %3$s TO %4$I'
                        ELSE 'A view counts if it belongs to the owner of the table, shows %1$I under this name, and has no '
                            'CHECK OPTION. Else: GRANT %2$s (%1$I) ON %3$s TO %4$I, which lets it do no more if it has no '
                            'right on the schema.'
                    END, coalesce(its_column, 'outreach_id'), TG_OP, root::regclass, current_user
                )
            END;
    END IF;
    -- The gate decides a row that waits, and gives none to another company.
    IF TG_OP = 'UPDATE' AND TG_ARGV[0] = 'company_target' THEN
        IF was_final OR NEW.outreach_id IS DISTINCT FROM OLD.outreach_id THEN
            RAISE EXCEPTION 'company_target: the gate changes no row that is final or of another company (%, %)',
                OLD.outreach_id, OLD.execution_status USING ERRCODE = 'restrict_violation';
        END IF;
    END IF;
    IF TG_OP = 'UPDATE' AND TG_ARGV[0] = 'company_target_errors' THEN
        RAISE EXCEPTION 'company_target_errors: the gate changes no failure (%)', OLD.outreach_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF TG_ARGV[0] = 'company_target' THEN
        -- A company that is not decided yet, as everybody sees it now. The gate has nothing to say of it; triggers of
        -- others may.
        IF NOT is_final THEN
            -- A trigger of others, run as the gate, may name a company, and say nothing of it.
            IF pg_trigger_depth() = 1 OR says_something
                -- Some readers do not tell other words from the three final ones.
                OR coalesce(NEW.execution_status::text COLLATE "C", '') NOT IN ('', 'pending') AND NOT EXISTS (
                    SELECT d.oid FROM pg_attrdef AS d
                    JOIN pg_attribute AS a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
                    WHERE d.adrelid = root AND a.attname = 'execution_status'
                        AND starts_with(pg_get_expr(d.adbin, d.adrelid), quote_literal(NEW.execution_status::text))
                )
            THEN
                IF NOT outreach.ct_recorded_here(NEW.outreach_id::uuid) THEN
                    RAISE EXCEPTION 'company_target: the gate writes no row that is not final (%, %)', NEW.outreach_id,
                        NEW.execution_status USING ERRCODE = 'restrict_violation';
                END IF;
            END IF;
            PERFORM outreach.ct_require_fresh();
            -- A note that a row was left alone does not count: this one may be that row.
            IF NOT outreach.ct_is_decided(NEW.outreach_id::uuid, '') THEN
                RETURN NULL;
            END IF;
        END IF;
    END IF;
    IF NOT outreach.ct_recorded_here(NEW.outreach_id::uuid) THEN
        RAISE EXCEPTION '%: the outcome of % was not recorded by this transaction', TG_ARGV[0], NEW.outreach_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF TG_ARGV[0] = 'ct_unwritten' THEN
        PERFORM outreach.ct_require_fresh();
    END IF;
    SELECT o.outcome, o.failure_code, o.reason, o.value, o.decided_at INTO said
        FROM outreach.ct_outcomes AS o WHERE o.outreach_id = NEW.outreach_id::uuid;
    IF TG_ARGV[0] = 'company_target' THEN
        event := convert_from(said.value, 'UTF8');
        -- As text, and not as JSON: char(n) has its blanks there.
        wrong := CASE
            WHEN NEW.execution_status::text COLLATE "C" IS DISTINCT FROM CASE said.outcome WHEN 'PASS' THEN 'ready' ELSE 'failed' END
                THEN format('execution_status is %L', NEW.execution_status::text)
            -- Triggers of others may set it, and it may be a date.
            WHEN (NEW.imo_completed_at::timestamptz BETWEEN said.decided_at - a_day AND said.decided_at + a_day) IS NOT TRUE
                THEN format('imo_completed_at is %L', NEW.imo_completed_at::text)
            -- Triggers of others may write nothing in another way.
            WHEN said.outcome <> 'PASS' THEN CASE
                WHEN NEW.email_method::text COLLATE "C" <> '' THEN format('email_method is %L', NEW.email_method::text)
                WHEN NEW.method_type::text COLLATE "C" <> '' THEN format('method_type is %L', NEW.method_type::text)
                WHEN NEW.confidence_score::text COLLATE "C" !~ '^[0.]*$'
                    THEN format('confidence_score is %L', NEW.confidence_score::text)
                WHEN lower(NEW.is_catchall::text COLLATE "C") NOT IN ('', 'false', 'f', '0', 'no', 'n', 'off')
                    THEN format('is_catchall is %L', NEW.is_catchall::text)
            END
            WHEN event IS NULL THEN 'nothing is published of it'
            WHEN NEW.email_method::text COLLATE "C" IS DISTINCT FROM event ->> 'email_method'
                THEN format('email_method is %L', NEW.email_method::text)
            WHEN NEW.method_type::text COLLATE "C" IS DISTINCT FROM event ->> 'method_type'
                THEN format('method_type is %L', NEW.method_type::text)
            WHEN NEW.is_catchall::text COLLATE "C" IS DISTINCT FROM event ->> 'is_catchall'
                THEN format('is_catchall is %L', NEW.is_catchall::text)
            WHEN (round(NEW.confidence_score::numeric, 4) = round((event ->> 'confidence_score')::numeric, 4)) IS NOT TRUE
                THEN format('confidence_score is %L', NEW.confidence_score::text)
        END;
    ELSIF TG_ARGV[0] = 'company_target_errors' THEN
        IF said.outcome <> 'FAIL' OR NEW.failure_code::text COLLATE "C" IS DISTINCT FROM said.failure_code THEN
            wrong := format('failure_code is %L', NEW.failure_code::text);
        ELSIF NEW.blocking_reason::text COLLATE "C" IS DISTINCT FROM said.reason THEN
            wrong := format('blocking_reason is %L', NEW.blocking_reason::text);
        ELSIF NEW.imo_stage::text COLLATE "C" <> substr(said.failure_code, 4, 1) THEN
            wrong := format('imo_stage is %L', NEW.imo_stage::text);
        ELSIF NEW.pipeline_stage::text COLLATE "C" <> 'company_target_imo' THEN
            wrong := format('pipeline_stage is %L', NEW.pipeline_stage::text);
        ELSIF NEW.severity::text COLLATE "C" <> 'blocking' THEN
            wrong := format('severity is %L', NEW.severity::text);
        ELSIF NEW.retry_allowed::text COLLATE "C" NOT IN ('false', '0') THEN
            wrong := format('retry_allowed is %L', NEW.retry_allowed::text);
        ELSIF (NEW.created_at::timestamptz BETWEEN said.decided_at - a_day AND said.decided_at + a_day) IS NOT TRUE THEN
            wrong := format('created_at is %L', NEW.created_at::text);
        ELSIF (
            SELECT count(*) > 1 FROM outreach.company_target_errors AS e
            WHERE e.outreach_id = NEW.outreach_id AND outreach.ct_written_here(e.xmin)
                -- Triggers of others may note at older ones that they are resolved.
                AND e.failure_code = NEW.failure_code
                AND e.created_at::timestamptz BETWEEN said.decided_at - a_day AND said.decided_at + a_day
        ) THEN
            wrong := 'it has another one';
        END IF;
    ELSIF NEW.its_table = 'company_target' THEN
        IF EXISTS (
            SELECT t.outreach_id FROM outreach.company_target AS t
            WHERE t.outreach_id = NEW.outreach_id AND outreach.ct_written_here(t.xmin)
                -- A trigger of others may have written their own columns here, of a row that was final before.
                AND (
                    (SELECT y.typcategory FROM pg_type AS y WHERE y.oid = pg_typeof(t.imo_completed_at)) <> 'D'
                    OR t.imo_completed_at::timestamptz BETWEEN said.decided_at - a_day AND said.decided_at + a_day
                )
        ) THEN
            wrong := 'it was written';
        ELSE
            -- Held: an importer may be changing it.
            PERFORM t.outreach_id FROM outreach.company_target AS t
                WHERE t.outreach_id = NEW.outreach_id AND t.execution_status::text IN ('ready', 'failed', 'blocked')
                FOR SHARE;
            IF NOT FOUND THEN
                wrong := 'there is no final row to leave alone';
            END IF;
        END IF;
    ELSIF said.failure_code IS DISTINCT FROM 'CT-I-NOT-FOUND' OR NOT outreach.ct_errors_are_bound() OR EXISTS (
        SELECT e.outreach_id FROM outreach.company_target_errors AS e
        WHERE e.outreach_id = NEW.outreach_id AND outreach.ct_written_here(e.xmin)
    ) THEN
        wrong := 'it was written, or is to be';
    END IF;
    -- A row is either written or noted as left alone, never both, in whatever order.
    IF TG_ARGV[0] <> 'ct_unwritten' AND EXISTS (
        SELECT u.outreach_id FROM outreach.ct_unwritten AS u
        WHERE u.outreach_id = NEW.outreach_id::uuid AND u.its_table = TG_ARGV[0]
    ) THEN
        wrong := 'it is noted as left alone';
    END IF;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION '%: the row of % contradicts what this transaction records: %',
            TG_ARGV[0], NEW.outreach_id, wrong USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END $$;

-- When a worker began and was last seen is what the clock of this server says, whatever the worker writes.
CREATE OR REPLACE FUNCTION outreach.ct_guard_worker() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.started_at := CASE WHEN TG_OP = 'INSERT' THEN clock_timestamp() ELSE OLD.started_at END;
    NEW.seen_at := clock_timestamp();
    RETURN NEW;
END $$;
