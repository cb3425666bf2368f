"""What an administrator has altered is told by `doctor` and `verify`, and `migrate` puts back what it made."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ct_stream.ops.doctor import examine
from ct_stream.store.as_migrated import compare, fetching
from ct_stream.store.migrate import migrate
from ct_stream.store.sql_files import sql_files
from tests.conftest import UPSTREAM
from tests.store import users_schema
from tests.store.test_attacks import PARTITIONED

if TYPE_CHECKING:
    from ct_stream.local.postgres import EmbeddedPostgres
    from tests.conftest import DatabaseDsns

TRIGGER = "CREATE OR REPLACE TRIGGER ct_final BEFORE UPDATE ON outreach.ct_outcomes FOR EACH ROW"
WIDER, CALL = "CREATE OR REPLACE TRIGGER ct_final", "EXECUTE FUNCTION outreach.ct_guard_outcome()"
BODY = "LANGUAGE sql IMMUTABLE AS $$ SELECT 1 $$"
ALTERED = {
    "ALTER TABLE outreach.ct_outcomes DISABLE TRIGGER ct_final": (
        "the trigger ct_final of outreach.ct_outcomes is disabled"
    ),
    "ALTER TABLE outreach.company_target DISABLE TRIGGER ALL": (
        "the trigger ct_final of outreach.company_target is disabled"
    ),
    "ALTER TABLE outreach.company_target_errors ENABLE TRIGGER ct_final": (
        "the trigger ct_final of outreach.company_target_errors does not fire always"
    ),
    "DROP TRIGGER ct_final_truncate ON outreach.ct_tier2_attempts": (
        "the trigger ct_final_truncate of outreach.ct_tier2_attempts is gone"
    ),
    f"{TRIGGER} EXECUTE FUNCTION suppress_redundant_updates_trigger()": (
        "the trigger ct_final of outreach.ct_outcomes calls another function, "
        "pg_catalog.suppress_redundant_updates_trigger"
    ),
    f"CREATE OR REPLACE FUNCTION outreach.ct_talks_wanted() RETURNS integer {BODY}": (
        "the function outreach.ct_talks_wanted was replaced"
    ),
    "ALTER FUNCTION outreach.resume_guardrail SECURITY INVOKER": "the function outreach.resume_guardrail was replaced",
    "ALTER FUNCTION outreach.resume_guardrail RESET search_path": (
        "the function outreach.resume_guardrail has other settings, such as search_path"
    ),
    "ALTER FUNCTION outreach.ct_end_trial OWNER TO CURRENT_USER": (
        "the function outreach.ct_end_trial is gone, or not ct_owner's"
    ),
    "GRANT EXECUTE ON FUNCTION outreach.resume_guardrail TO ct_gate": (
        "ct_gate may call outreach.resume_guardrail(text,text)"
    ),
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA outreach TO PUBLIC": (
        "PUBLIC may call outreach.ct_accept_toolbox(jsonb,text) and"
    ),
    f"{WIDER} BEFORE UPDATE OR DELETE ON outreach.ct_outcomes FOR EACH ROW WHEN (false) {CALL}": (
        "the trigger ct_final of outreach.ct_outcomes fires at other events, or under a condition"
    ),
    f"{WIDER} BEFORE DELETE ON outreach.ct_outcomes FOR EACH ROW {CALL}": (
        "the trigger ct_final of outreach.ct_outcomes fires at other events, or under a condition"
    ),
    f"{WIDER} BEFORE UPDATE OF domain OR DELETE ON outreach.ct_outcomes FOR EACH ROW {CALL}": (
        "the trigger ct_final of outreach.ct_outcomes fires at other events, or under a condition"
    ),
    "CREATE TRIGGER theirs BEFORE INSERT ON outreach.ct_outcomes FOR EACH ROW"
    " EXECUTE FUNCTION suppress_redundant_updates_trigger()": (
        "outreach.ct_outcomes has a trigger that is not the gate's, theirs"
    ),
    "CREATE RULE theirs AS ON UPDATE TO outreach.ct_outcomes DO INSTEAD NOTHING": (
        "outreach.ct_outcomes has a rule that is not the gate's, theirs"
    ),
    "ALTER TABLE outreach.ct_outcomes OWNER TO CURRENT_USER": (
        "outreach.ct_outcomes belongs to postgres, not to ct_owner"
    ),
    "GRANT CREATE ON SCHEMA outreach TO ct_gate": "ct_gate may create objects in the schema outreach",
    "ALTER FUNCTION outreach.ct_guard_outcome RESET search_path": (
        "the function outreach.ct_guard_outcome has other settings, such as search_path"
    ),
    "ALTER FUNCTION outreach.resume_guardrail SET search_path = pg_catalog, public, outreach, pg_temp": (
        "the function outreach.resume_guardrail has other settings, such as search_path"
    ),
    f"CREATE FUNCTION outreach.ct_talks_wanted(integer) RETURNS integer {BODY};"
    "ALTER FUNCTION outreach.ct_talks_wanted(integer) OWNER TO ct_owner;"
    "REVOKE ALL ON FUNCTION outreach.ct_talks_wanted(integer) FROM PUBLIC": (
        "the function outreach.ct_talks_wanted is there with other arguments too: outreach.ct_talks_wanted(integer)"
    ),
    'CREATE ROLE "app-user"; GRANT UPDATE ON ALL TABLES IN SCHEMA outreach TO "app-user"': (
        '"app-user" may UPDATE on outreach.ct_adoption and'
    ),
    "GRANT DELETE ON outreach.ct_outcomes TO ct_ops": "ct_ops may DELETE on outreach.ct_outcomes",
    "GRANT UPDATE ON outreach.ct_outcomes TO ct_gate": "ct_gate may UPDATE on outreach.ct_outcomes",
    "GRANT UPDATE (state) ON outreach.ct_guardrails TO ct_gate": "ct_gate may UPDATE (state) on outreach.ct_guardrails",
    "GRANT INSERT ON outreach.ct_usage TO PUBLIC": "PUBLIC may INSERT on outreach.ct_usage",
    "GRANT UPDATE ON SEQUENCE outreach.ct_outcomes_ordinal_seq TO ct_gate": (
        "ct_gate may UPDATE on sequence outreach.ct_outcomes_ordinal_seq"
    ),
    "CREATE OR REPLACE TRIGGER ct_guard AFTER INSERT OR UPDATE ON outreach.company_target FOR EACH ROW"
    " EXECUTE FUNCTION outreach.ct_guard_new_row('theirs')": (
        "the trigger ct_guard of outreach.company_target calls its function with another argument"
    ),
}


async def told(dsn: str) -> list[str]:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    found = await compare(fetching(connection))
    await connection.close()
    assert found.is_whole
    return [f"{one.what} -> {one.action}" for one in found.altered]


async def execute(dsn: str, *statements: str) -> None:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_a_migrated_database_is_as_it_was_made_and_reading_rights_are_the_users_own_affair(
    database: DatabaseDsns,
) -> None:
    await execute(
        database.admin,
        "GRANT SELECT ON ALL TABLES IN SCHEMA outreach TO PUBLIC",
        "REVOKE SELECT ON outreach.ct_tier2_attempts FROM PUBLIC",
        "GRANT SELECT (outreach_id, status, usd) ON outreach.ct_tier2_attempts TO PUBLIC",
    )
    assert await told(database.gate) == await told(database.ops) == []


@pytest.mark.parametrize("to", ["PUBLIC", "app_role", "ct_ops", "ct_gate"])
async def test_default_privileges_of_who_migrates_open_none_of_the_gates_tables(
    postgres: EmbeddedPostgres, to: str
) -> None:
    """As guides for the role of an application set them, once and for all tables to come."""
    async with users_schema.made(postgres, UPSTREAM) as database:
        await execute(
            database.admin,
            "DO $$ BEGIN CREATE ROLE app_role; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA outreach GRANT ALL ON TABLES TO {to}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA outreach GRANT ALL ON SEQUENCES TO {to}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA outreach GRANT ALL ON FUNCTIONS TO {to}",
        )
        await migrate(database.admin)
        both = "outreach.company_target, outreach.company_target_errors"
        rights = ("DELETE", "INSERT", "TRUNCATE", "UPDATE") if to == "PUBLIC" else ()  # the users' tables are theirs
        assert await told(database.ops) == [
            f"PUBLIC may {right} on outreach.company_target and 1 more -> REVOKE {right} ON {both} FROM PUBLIC"
            for right in rights
        ]
        for login in (database.gate, database.ops):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await execute(login, "CREATE TRIGGER aaa AFTER INSERT ON outreach.company_target_errors FOR EACH ROW"
                    " WHEN (outreach.resume_guardrail('spine', 'x') IS NULL)"
                    " EXECUTE FUNCTION tsvector_update_trigger()")  # fmt: skip
        for secret in ("SELECT token FROM outreach.ct_tier2_attempts", "SELECT a FROM outreach.ct_tier2_attempts AS a"):
            for dsn in (database.gate, database.ops):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await execute(dsn, secret)


async def test_a_foreign_key_to_the_gates_tables_is_told_and_may_no_more_be_made_after_migrate(
    database: DatabaseDsns,
) -> None:
    """It casts as the table's owner, with casts of whoever made the key."""
    await execute(database.admin, "GRANT REFERENCES ON outreach.ct_outcomes TO ct_ops",
        "GRANT REFERENCES ON outreach.outreach, outreach.company_target TO PUBLIC",
        "GRANT ALL (outreach_id) ON outreach.company_target TO ct_gate")  # fmt: skip
    assert [line.partition(" -> ")[0] for line in await told(database.ops)] == [
        "PUBLIC may REFERENCES on outreach.company_target",
        "ct_gate may REFERENCES (outreach_id) on outreach.company_target",
        "ct_ops may REFERENCES on outreach.ct_outcomes",
    ]
    await migrate(database.admin)
    assert await told(database.ops) == []
    await execute(
        database.admin,
        "DO $$ BEGIN ASSERT NOT (SELECT bool_or(has_any_column_privilege(r, 'outreach.' || t, 'REFERENCES')"
        " OR has_table_privilege(r, 'outreach.' || t, 'TRIGGER'))"
        " FROM unnest(ARRAY['ct_gate', 'ct_ops']) AS r, unnest(ARRAY['outreach', 'company_target',"
        " 'company_target_errors', 'ct_outcomes']) AS t); END $$",
    )


async def test_a_column_that_everybody_may_write_is_told(database: DatabaseDsns) -> None:
    await execute(database.admin, "GRANT INSERT (outreach_id, execution_status) ON outreach.company_target TO PUBLIC")
    assert [line.partition(" -> ")[0] for line in await told(database.ops)] == [
        "PUBLIC may INSERT (execution_status) on outreach.company_target",
        "PUBLIC may INSERT (outreach_id) on outreach.company_target",
    ]


async def test_a_partition_in_another_schema_is_looked_at_too(database: DatabaseDsns) -> None:
    await execute(
        database.admin,
        PARTITIONED,
        "CREATE SCHEMA parts; ALTER TABLE outreach.low SET SCHEMA parts; GRANT INSERT ON parts.low TO PUBLIC",
    )
    await migrate(database.admin)
    (line,) = await told(database.ops)
    assert line == "PUBLIC may INSERT on parts.low -> REVOKE INSERT ON parts.low FROM PUBLIC"


async def test_a_foreign_key_that_is_still_there_is_told(database: DatabaseDsns) -> None:
    """If what it compares is cast: whose ever it is, and to the users' tables if it is one of the gate's people's."""
    await execute(
        database.admin,
        PARTITIONED,
        "DO $$ BEGIN CREATE ROLE hub; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "CREATE SCHEMA theirs; GRANT CREATE, USAGE ON SCHEMA theirs TO ct_ops, hub",
        "CREATE TYPE theirs.kind AS (x uuid)",
        "CREATE FUNCTION theirs.bare(theirs.kind) RETURNS uuid LANGUAGE sql AS 'SELECT ($1).x'",
        "CREATE CAST (theirs.kind AS uuid) WITH FUNCTION theirs.bare(theirs.kind) AS IMPLICIT",
        "GRANT USAGE ON SCHEMA outreach TO hub",
        "GRANT REFERENCES ON outreach.ct_outcomes, outreach.company_target, outreach.low TO ct_ops, hub",
    )
    for who in ("ct_ops", "hub"):
        for table in ("ct_outcomes", "company_target", "low"):
            for kind, suffix in (("theirs.kind", ""), ("uuid", "_plain")):
                name, key = f"theirs.{who}_{table}{suffix}", f"id {kind} REFERENCES outreach.{table} (outreach_id)"
                await execute(database.admin, f"SET ROLE {who}", f"CREATE TABLE {name} ({key})")
    await migrate(database.admin)
    found = await told(database.ops)
    assert [line.partition(", ")[0] for line in found] == [
        "theirs.ct_ops_company_target of ct_ops has a foreign key to outreach.company_target",
        "theirs.ct_ops_ct_outcomes of ct_ops has a foreign key to outreach.ct_outcomes",
        "theirs.ct_ops_low of ct_ops has a foreign key to outreach.company_target",
        "theirs.hub_ct_outcomes of hub has a foreign key to outreach.ct_outcomes",
    ]
    await execute(database.admin, *(line.partition("find out who made it: ")[2] for line in found))
    assert await told(database.ops) == []


async def test_who_reads_columns_of_the_paid_attempts_keeps_them(database: DatabaseDsns) -> None:
    """All but the token."""
    await execute(
        database.admin,
        "DO $$ BEGIN CREATE ROLE fin; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "GRANT USAGE ON SCHEMA outreach TO fin; GRANT SELECT (usd, token) ON outreach.ct_tier2_attempts TO fin",
    )
    (line,) = await told(database.ops)
    assert line.startswith("fin may SELECT (token) on outreach.ct_tier2_attempts")
    await migrate(database.admin)
    assert await told(database.ops) == []
    await execute(database.admin, "SET ROLE fin", "SELECT usd FROM outreach.ct_tier2_attempts")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await execute(database.admin, "SET ROLE fin", "SELECT token FROM outreach.ct_tier2_attempts")


async def test_who_may_read_tokens_is_told_and_may_no_more_after_migrate(database: DatabaseDsns) -> None:
    await execute(database.admin, "GRANT SELECT ON outreach.ct_tier2_attempts TO PUBLIC")
    assert await told(database.ops) == [
        "PUBLIC may SELECT on outreach.ct_tier2_attempts -> REVOKE SELECT ON outreach.ct_tier2_attempts FROM PUBLIC"
    ]
    await migrate(database.admin)
    assert await told(database.ops) == []


@pytest.mark.parametrize(("statement", "said"), ALTERED.items())
async def test_what_is_altered_is_told_and_what_the_line_says_mends_it(
    database: DatabaseDsns, statement: str, said: str
) -> None:
    await execute(database.admin, statement)
    found = await told(database.gate)
    assert any(line.startswith(said) for line in found), found
    assert await told(database.ops) == found
    await execute(
        database.admin,
        *(statement for line in found if (statement := "".join(re.findall(r"(?:REVOKE|DROP) .*", line)))),
    )
    await migrate(database.admin)
    assert await told(database.ops) == []


@pytest.mark.parametrize(
    ("statement", "said"),
    {
        "ALTER TABLE outreach.low DISABLE TRIGGER ct_guard": "the trigger ct_guard of the partition low of"
        " outreach.company_target is disabled",
        "ALTER TABLE outreach.low DISABLE TRIGGER ALL": "the trigger ct_final of the partition low of"
        " outreach.company_target is disabled",
        "ALTER TABLE outreach.high ENABLE TRIGGER ct_final": "the trigger ct_final of the partition high of"
        " outreach.company_target does not fire as it does for the whole table",
        "DROP TRIGGER ct_final_truncate ON outreach.low": "the trigger ct_final_truncate of the partition low of"
        " outreach.company_target is missing",
    }.items(),
)
async def test_a_guard_that_is_off_in_one_partition_is_told_and_put_back(
    database: DatabaseDsns, statement: str, said: str
) -> None:
    await execute(database.admin, PARTITIONED)
    await migrate(database.admin)
    assert await told(database.ops) == []
    await execute(database.admin, statement)
    assert said in "\n".join(await told(database.ops))
    await migrate(database.admin)
    assert await told(database.ops) == []


async def test_a_partition_that_is_made_later_is_told(database: DatabaseDsns) -> None:
    await execute(database.admin, PARTITIONED)
    await migrate(database.admin)
    await execute(database.admin, "CREATE TABLE outreach.rest PARTITION OF outreach.company_target DEFAULT")
    (line,) = await told(database.ops)
    assert line.startswith("the trigger ct_final_truncate of the partition rest of outreach.company_target is missing")
    await migrate(database.admin)
    for part in ("low", "high", "rest", "company_target"):
        with pytest.raises(asyncpg.RestrictViolationError, match="truncate is refused"):
            await execute(database.admin, f"TRUNCATE outreach.{part}")
    await execute(
        database.admin, "ALTER TABLE outreach.company_target DETACH PARTITION outreach.rest", "TRUNCATE outreach.rest"
    )


async def test_a_right_that_its_owner_did_not_grant_is_told(database: DatabaseDsns) -> None:
    """`migrate` acts as the owner, and takes away what that one has granted."""
    await execute(
        database.admin,
        "CREATE ROLE hub_admin; GRANT USAGE ON SCHEMA outreach TO hub_admin",
        "GRANT ALL ON outreach.company_target TO hub_admin WITH GRANT OPTION",
        "SET ROLE hub_admin; GRANT INSERT ON outreach.company_target TO ct_gate",
    )
    await migrate(database.admin)
    said = "as hub_admin: REVOKE INSERT ON outreach.company_target FROM ct_gate"
    assert await told(database.ops) == [f"ct_gate may INSERT on outreach.company_target -> {said}"]
    await execute(
        database.admin,
        "SET ROLE hub_admin",
        "REVOKE INSERT ON outreach.company_target FROM ct_gate",
        "RESET ROLE",
        "DROP OWNED BY hub_admin; DROP ROLE hub_admin",
    )
    assert await told(database.ops) == []


async def test_migrate_says_that_it_puts_triggers_back(database: DatabaseDsns) -> None:
    await execute(database.admin, next(iter(ALTERED)))
    assert (await migrate(database.admin)).applied == ("triggers",)
    assert (await migrate(database.admin)).applied == ()


async def test_doctor_names_each_in_a_line_of_its_own(database: DatabaseDsns) -> None:
    await execute(database.admin, *list(ALTERED)[:2])
    checks = [check for check in await examine({"CT_POSTGRES_DSN": database.gate}) if check.name == "guards"]
    assert [check.ok for check in checks] == [False] * 5
    assert checks[0].detail == "the trigger ct_final of outreach.ct_outcomes is disabled"
    assert checks[0].action == "run `ct-stream migrate`, which puts it back"


async def test_another_versions_database_is_not_compared(database: DatabaseDsns) -> None:
    """But what is switched off is told all the same: else one row more would hide it."""
    await execute(
        database.admin,
        "INSERT INTO outreach.ct_functions (checksum) VALUES ('of a later version')",
        next(iter(ALTERED)),
    )
    checks = [check for check in await examine({"CT_POSTGRES_DSN": database.gate}) if check.name == "guards"]
    assert [check.ok for check in checks] == [False, None]
    assert checks[0].detail == "the trigger ct_final of outreach.ct_outcomes is disabled"


def test_each_function_and_trigger_of_the_files_is_compared() -> None:
    from ct_stream.store import as_migrated

    sql = sql_files()
    found = as_migrated._FUNCTION.findall("\n".join(sql.functions.values()))
    assert [name for name, _, _ in found] == list(sql.made_functions)
    assert len(list(as_migrated._triggers(sql))) == sql.triggers.count("EXECUTE FUNCTION outreach.")
