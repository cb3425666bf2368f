"""Tables of many kinds: in each one every outcome is recorded right, or one line says what does not fit.

A refused migrate leaves nothing, and what its line says to do mends it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ct_stream.gate.patterns import CATCH_ALL_CONFIDENCE
from ct_stream.gate.verdicts import Passed, VerifiedBy
from ct_stream.store.ledger import Ledger
from ct_stream.store.migrate import MigrationError, migrate
from tests.store.parts import NO_MX, NOT_FOUND, PASSED, opened, outcome, running
from tests.store.users_schema import ERRORS, NULLABLE, SPINE, TARGET, made, mint, rows, run

if TYPE_CHECKING:
    from ct_stream.local.postgres import EmbeddedPostgres
    from tests.conftest import DatabaseDsns

USERS_TARGET, USERS_ERRORS = TARGET % NULLABLE, ERRORS % ""
CATCH_ALL = Passed(
    domain="acme.example", method_type="first.last", email_method="{first}.{last}@acme.example",
    confidence=CATCH_ALL_CONFIDENCE, is_catchall=True, verified_by=VerifiedBy.CATCH_ALL,
)  # fmt: skip
STATUS = """execution_status varchar(50) DEFAULT 'pending'
        CHECK (execution_status IN ('pending', 'ready', 'failed', 'blocked'))"""
AUDIT = """
CREATE SCHEMA audit; CREATE TABLE audit.log (said text);
CREATE FUNCTION audit.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO audit.log VALUES (NEW.outreach_id); RETURN NEW; END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE ON outreach.company_target FOR EACH ROW EXECUTE FUNCTION audit.note();
"""
LOUD = """
CREATE FUNCTION outreach.loud() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN NEW.execution_status := upper(NEW.execution_status); RETURN NEW; END $$;
CREATE TRIGGER loud BEFORE INSERT OR UPDATE ON outreach.company_target FOR EACH ROW EXECUTE FUNCTION outreach.loud();
"""
RANK = """
CREATE FUNCTION outreach.rank() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    UPDATE outreach.company_target AS t SET bit_score_snapshot = 1 WHERE t.outreach_id = NEW.outreach_id;
    RETURN NULL;
END $$;
CREATE TRIGGER rank AFTER INSERT OR UPDATE OF execution_status ON outreach.company_target
    FOR EACH ROW EXECUTE FUNCTION outreach.rank();
"""
SWALLOW = """
CREATE FUNCTION outreach.swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
CREATE TRIGGER swallow BEFORE INSERT ON outreach.company_target_errors
    FOR EACH ROW EXECUTE FUNCTION outreach.swallow();
"""
FREE_ERRORS = ERRORS.replace(" REFERENCES outreach.outreach (outreach_id)%s", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of tables."""

    name: str
    spine: str = SPINE
    target: str = USERS_TARGET
    errors: str = USERS_ERRORS
    more: str = ""
    refused: str = ""  #: what the one line says
    mended: str = ""  #: the statements that it asks for


def changed(before: str, after: str, text: str = USERS_TARGET) -> str:
    """Return the users' table with another column."""
    assert before in text
    return text.replace(before, after)


KINDS = (
    Kind(name="no tables but the spine", target="", errors=""),
    Kind(
        name="a serial key, and other types",
        target="CREATE TABLE outreach.company_target (id serial PRIMARY KEY, outreach_id uuid NOT NULL UNIQUE,"
        " email_method text, method_type char(20), confidence_score double precision, is_catchall boolean,"
        " execution_status char(10) NOT NULL, imo_completed_at timestamp, region text NOT NULL DEFAULT 'eu');",
        errors=changed(
            "error_id uuid PRIMARY KEY DEFAULT gen_random_uuid()", "error_id bigserial PRIMARY KEY", FREE_ERRORS
        ),
    ),
    Kind(
        name="an identity key",
        target=changed(
            "target_id uuid PRIMARY KEY DEFAULT gen_random_uuid()",
            "target_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        ),
    ),
    Kind(
        name="a generated column that rests on ours",
        target=changed("source text", "is_done boolean GENERATED ALWAYS AS (execution_status = 'ready') STORED"),
    ),
    Kind(
        name="a view as the spine",
        spine="CREATE SCHEMA outreach; CREATE TABLE public.companies (outreach_id uuid PRIMARY KEY, domain text);"
        "CREATE VIEW outreach.outreach AS SELECT outreach_id, domain FROM public.companies;",
        target=changed(" REFERENCES outreach.outreach (outreach_id) ON DELETE CASCADE", ""),
        errors=FREE_ERRORS,
    ),
    Kind(
        name="partitions by the company",
        target=changed(
            USERS_TARGET[USERS_TARGET.index(");") :],
            ") PARTITION BY HASH (outreach_id);"
            "CREATE TABLE outreach.company_target_0 PARTITION OF outreach.company_target"
            " FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
            "CREATE TABLE outreach.company_target_1 PARTITION OF outreach.company_target"
            " FOR VALUES WITH (MODULUS 2, REMAINDER 1);",
            changed("target_id uuid PRIMARY KEY", "target_id uuid"),
        ),
    ),
    Kind(name="an audit trigger with its owner's rights", more=AUDIT + "ALTER FUNCTION audit.note() SECURITY DEFINER;"),
    Kind(
        name="a column that is NOT NULL",
        target=TARGET % " NOT NULL",
        refused=r"^outreach\.company_target\.company_unique_id is NOT NULL, and the gate does not fill it; ALTER TABLE",
        mended="ALTER TABLE outreach.company_target ALTER COLUMN company_unique_id DROP NOT NULL",
    ),
    Kind(
        name="a column of ours that is NOT NULL",
        target=changed("is_catchall boolean", "is_catchall boolean NOT NULL"),
        refused=r"^outreach\.company_target\.is_catchall is NOT NULL, and a FAIL has no value there; ALTER TABLE",
        mended="ALTER TABLE outreach.company_target ALTER COLUMN is_catchall DROP NOT NULL",
    ),
    Kind(
        name="an enum status",
        target=changed(STATUS, "execution_status outreach.status DEFAULT 'pending'"),
        spine=SPINE + "CREATE TYPE outreach.status AS ENUM ('pending', 'ready', 'failed', 'blocked');",
        refused=r"^outreach\.company_target\.execution_status is of type outreach\.status, and the gate takes",
        mended="ALTER TABLE outreach.company_target ALTER COLUMN execution_status TYPE text",
    ),
    Kind(
        name="a CHECK without our words",
        target=changed("'pending', 'ready', 'failed', 'blocked'", "'pending', 'done'"),
        refused=r"^the constraint company_target_execution_status_check of outreach\.company_target refuses the"
        r" recording of a PASS; let it allow the gate's words, or ALTER TABLE outreach\.company_target DROP CONSTR",
        mended="ALTER TABLE outreach.company_target DROP CONSTRAINT company_target_execution_status_check",
    ),
    Kind(
        name="a CHECK that lacks one code",
        errors=changed(
            "failure_code varchar(50) NOT NULL",
            "failure_code varchar(50) CONSTRAINT codes CHECK (failure_code <> 'CT-M-VERIFY-FAIL')",
            USERS_ERRORS,
        ),
        refused=r"^the constraint codes of outreach\.company_target_errors refuses the recording of a FAIL \(CT-M",
        mended="ALTER TABLE outreach.company_target_errors DROP CONSTRAINT codes",
    ),
    Kind(
        name="a short varchar",
        target=changed("method_type varchar(50)", "method_type varchar(5)"),
        refused=r"^a column is too short for the recording of a PASS: value too long for type character varying\(5\)",
        mended="ALTER TABLE outreach.company_target ALTER COLUMN method_type TYPE text",
    ),
    Kind(
        name="a short reason",
        errors=changed("blocking_reason text", "blocking_reason varchar(255)", USERS_ERRORS),
        refused=r"^a column is too short for the recording of a FAIL .*character varying\(255\)",
        mended="ALTER TABLE outreach.company_target_errors ALTER COLUMN blocking_reason TYPE text",
    ),
    Kind(
        name="a sequence of its own",
        spine=SPINE + "CREATE SEQUENCE outreach.numbers;",
        target=changed("source text", "number bigint DEFAULT nextval('outreach.numbers')"),
        refused=r"^the recording of a PASS is refused: permission denied for sequence numbers; GRANT USAGE",
        mended="GRANT USAGE ON SEQUENCE outreach.numbers TO ct_gate",
    ),
    Kind(
        name="a default that may not be called",
        spine=SPINE + "CREATE FUNCTION outreach.reference() RETURNS text LANGUAGE sql AS 'SELECT ''x''';"
        "REVOKE EXECUTE ON FUNCTION outreach.reference() FROM PUBLIC;",
        target=changed("source text", "source text DEFAULT outreach.reference()"),
        refused=r"^the recording of a PASS is refused: permission denied for function reference; GRANT",
        mended="GRANT EXECUTE ON FUNCTION outreach.reference TO ct_gate",
    ),
    Kind(
        name="an audit trigger that runs as who writes",
        more=AUDIT,
        refused=r"^the recording of a PASS runs the function audit\.note of a trigger or a default, which fails:"
        r" permission denied for schema audit; it runs with the rights of ct_gate: ALTER FUNCTION audit\.note SEC",
        mended="ALTER FUNCTION audit.note SECURITY DEFINER",
    ),
    Kind(
        name="a trigger that writes a column of theirs as who writes",
        more=RANK,
        refused=r"^the recording of a PASS runs the function outreach\.rank of a trigger or a default, which fails:"
        r" permission denied for table company_target; .*GRANT UPDATE \(\.\.\.\) ON outreach\.company_target TO",
        mended="GRANT UPDATE (bit_score_snapshot) ON outreach.company_target TO ct_gate",
    ),
    Kind(
        name="a trigger that rewrites our words",
        target=changed(STATUS, "execution_status text"),
        more=LOUD,
        refused=r"^outreach\.company_target does not keep what the gate writes: execution_status is 'READY';",
        mended="DROP TRIGGER loud ON outreach.company_target",
    ),
    Kind(
        name="a trigger that swallows rows",
        more=SWALLOW,
        refused=r"^outreach\.company_target_errors does not keep what the gate writes: failure_code is None",
        mended="DROP TRIGGER swallow ON outreach.company_target_errors",
    ),
    Kind(
        name="a time kept as text",
        target=changed("imo_completed_at timestamptz", "imo_completed_at text"),
        refused=r"^outreach\.company_target\.imo_completed_at is of type text, and no time; ALTER TABLE outreach\.comp",
        mended="ALTER TABLE outreach.company_target ALTER COLUMN imo_completed_at TYPE timestamptz USING"
        " imo_completed_at::text::timestamptz",
    ),
    Kind(
        name="a text id",
        target=changed(
            "outreach_id uuid NULL REFERENCES outreach.outreach (outreach_id) ON DELETE CASCADE", "outreach_id text"
        ),
        refused=r"^outreach\.company_target\.outreach_id is of type text, not uuid; ALTER TABLE outreach\.com",
        mended="ALTER TABLE outreach.company_target ALTER COLUMN outreach_id TYPE uuid USING outreach_id::uuid",
    ),
    Kind(
        name="a text id in the spine",
        spine=changed("outreach_id uuid", "outreach_id text", SPINE),
        target=changed(" REFERENCES outreach.outreach (outreach_id) ON DELETE CASCADE", ""),
        errors=FREE_ERRORS,
        refused=r"^outreach\.outreach\.outreach_id is of type text, not uuid; ALTER TABLE outreach\.out",
        mended="ALTER TABLE outreach.outreach ALTER COLUMN outreach_id TYPE uuid USING outreach_id::uuid",
    ),
    Kind(
        name="a rule",
        more="CREATE RULE theirs AS ON UPDATE TO outreach.company_target DO ALSO NOTHING;",
        refused=r"^Postgres refuses the gate's statement record: .* rules; drop the rules of outreach\.company_",
        mended="DROP RULE theirs ON outreach.company_target",
    ),
    Kind(
        name="a publication of some rows",
        more="CREATE PUBLICATION ready FOR TABLE outreach.company_target WHERE (execution_status = 'ready');",
        refused=r"^a publication refuses .*; ALTER TABLE outreach\.company_target REPLICA IDENTITY FULL, or",
        mended="DROP PUBLICATION ready",
    ),
    Kind(
        name="a spine whose domain is no text",
        spine=changed("domain varchar(255)", "domain bytea", SPINE),
        refused=r"^the domain in the spine outreach\.outreach is of type bytea; have upstream keep it as text$",
        mended="ALTER TABLE outreach.outreach ALTER COLUMN domain TYPE text USING convert_from(domain, 'UTF8')",
    ),
    Kind(
        name="a domain with a CHECK",
        target=changed("email_method varchar(100)", "email_method public.method"),
        spine="CREATE DOMAIN public.method AS text CONSTRAINT odd CHECK (VALUE LIKE '%+%');" + SPINE,
        refused=r"^the domain public\.method refuses the recording of a PASS: .*; ALTER DOMAIN public\.method DROP CON",
        mended="ALTER DOMAIN public.method DROP CONSTRAINT odd",
    ),
    Kind(
        name="row security",
        more="ALTER TABLE outreach.company_target ENABLE ROW LEVEL SECURITY;",
        refused=r"^what company_target and company_target_errors say cannot be read: .*row-level security",
        mended="ALTER TABLE outreach.company_target DISABLE ROW LEVEL SECURITY",
    ),
    Kind(
        name="a taken name of an index",
        more="CREATE INDEX company_target_outreach_id_key ON outreach.outreach (domain);",
        refused=r"^the name company_target_outreach_id_key is taken by another index: CREATE INDEX comp",
        mended="ALTER INDEX outreach.company_target_outreach_id_key RENAME TO by_domain",
    ),
    Kind(
        name="a taken name of ours",
        more="CREATE INDEX ct_passes_due_idx ON outreach.outreach (domain);",
        refused=r"""^schema\.sql: relation "ct_passes_due_idx" already exists, and is not the gate's; rename it""",
        mended="ALTER INDEX outreach.ct_passes_due_idx RENAME TO by_domain",
    ),
    Kind(
        name="a generated column of ours",
        target=changed("is_catchall boolean DEFAULT false", "is_catchall boolean GENERATED ALWAYS AS (false) STORED"),
        refused=r"^the gate writes a column that Postgres generates: .*is_catchall.*; make it an ordinary column",
        mended="ALTER TABLE outreach.company_target ALTER COLUMN is_catchall DROP EXPRESSION",
    ),
    Kind(
        name="partitions by time",
        target="CREATE TABLE outreach.company_target (outreach_id uuid, created_at timestamptz NOT NULL DEFAULT now())"
        " PARTITION BY RANGE (created_at);",
        refused=r"^schema\.sql: a table that was there before does not fit: unique constraint on partit",
        mended="ALTER TABLE outreach.company_target RENAME TO by_time",
    ),
    Kind(
        name="a view as the target",
        target="CREATE VIEW outreach.company_target AS SELECT outreach_id FROM outreach.outreach;",
        refused=r"^outreach\.company_target is a view, and the gate writes rows there; rename it",
        mended="ALTER VIEW outreach.company_target RENAME TO targets",
    ),
    Kind(
        name="a method that only one company may have",
        target=changed("email_method varchar(100)", "email_method varchar(100) CONSTRAINT one UNIQUE"),
        refused=r"^one of outreach\.company_target refuses the recording of a PASS, which it takes for a second one; ",
        mended="ALTER TABLE outreach.company_target DROP CONSTRAINT one",
    ),
    Kind(
        name="a foreign key that is looked at last",
        spine=SPINE + "CREATE TABLE public.methods (name text PRIMARY KEY);",
        target=changed(
            "method_type varchar(50)",
            "method_type varchar(50) CONSTRAINT known REFERENCES public.methods DEFERRABLE INITIALLY DEFERRED",
        ),
        refused=r"^the foreign key known of outreach\.company_target refuses the recording of a PASS; ALTER TABLE",
        mended="ALTER TABLE outreach.company_target DROP CONSTRAINT known",
    ),
    Kind(
        name="a spine without domains",
        spine=changed("domain varchar(255),", "", SPINE),
        refused=r"^the spine outreach\.outreach has no column domain; have upstream add it",
        mended="ALTER TABLE outreach.outreach ADD COLUMN domain text",
    ),
)

EVERYTHING = """
SELECT c.relname::text, c.relkind::text, c.relowner::regrole::text, a.attname::text, a.attnotnull, a.attacl::text,
    c.relacl::text
FROM pg_class AS c LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND NOT a.attisdropped
WHERE c.relnamespace = 'outreach'::regnamespace
UNION ALL
SELECT p.proname, 'function', p.proowner::regrole::text, '', false, p.proacl::text, '' FROM pg_proc AS p
WHERE p.pronamespace = 'outreach'::regnamespace
UNION ALL
SELECT t.tgname, 'trigger', '', '', false, '', '' FROM pg_trigger AS t WHERE NOT t.tgisinternal
ORDER BY 1, 2, 3, 4
"""


@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in KINDS])
async def test_tables_of_this_kind(postgres: EmbeddedPostgres, kind: Kind) -> None:
    async with made(postgres, kind.spine + kind.target + kind.errors + kind.more) as users:
        has_domain = "domain" in kind.spine
        for _ in range(2):
            await run(
                users.admin,
                f"INSERT INTO outreach.outreach (outreach_id{', domain' * has_domain})"
                f" VALUES (gen_random_uuid(){', $$acme.example$$' * has_domain})",
            )
        if kind.refused:
            before = await rows(users.admin, EVERYTHING)
            with pytest.raises(MigrationError, match=kind.refused) as refused:
                await migrate(users.admin)
            assert "\n" not in str(refused.value)
            assert await rows(users.admin, EVERYTHING) == before, "nothing is half adopted"
            await run(users.admin, kind.mended)
        assert "was rehearsed" in (await migrate(users.admin)).rehearsal
        await _every_outcome_is_recorded(users)


async def _every_outcome_is_recorded(users: DatabaseDsns) -> None:
    passed, caught, failed = [await mint(users.admin) for _ in range(3)]
    missing = outcome(verdict=NOT_FOUND)
    async with opened(users.gate) as database:
        ledger = Ledger(database)
        async with running(*ledger.batches):
            assert await ledger.record(outcome(passed, PASSED))
            assert await ledger.record(outcome(caught, CATCH_ALL))
            assert await ledger.record(outcome(failed, NO_MX))
            assert await ledger.record(missing)
    target = (
        "SELECT outreach_id, execution_status::text, email_method::text, method_type::text,"
        " confidence_score::float8, is_catchall FROM outreach.company_target"
    )
    assert sorted(await rows(users.admin, target), key=str) == sorted(
        [
            (passed, "ready", "info@acme.example", "info", 0.7, False),
            (caught, "ready", "{first}.{last}@acme.example", "first.last", 0.5, True),
            (failed, "failed", None, None, None, None),
        ],
        key=str,
    )
    found = await rows(users.admin, "SELECT outreach_id, failure_code::text FROM outreach.company_target_errors")
    errors = {row[0]: row[1] for row in found}
    [(is_bound,)] = await rows(users.admin, "SELECT outreach.ct_errors_are_bound()")
    assert errors == {failed: "CT-M-NO-MX"} | ({} if is_bound else {missing.outreach_id: "CT-I-NOT-FOUND"})
