"""Nobody's code runs with the rights of another role: not by a name that it shadows, and not at the next migration."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest

from ct_stream.store.migrate import migrate

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns

#: Types that a function body may name without a schema. Keywords such as `integer` always mean those of pg_catalog.
SHADOWED = ("text", "uuid", "uuid[]", "date", "timestamptz", "jsonb", "regclass")

#: How each function that runs with its owner's rights is called, so that each of its statements is run.
CALLS = {
    "ct_forget_passes": "SELECT outreach.ct_forget_passes(ARRAY[{id}])",
    "ct_tidy": "SELECT outreach.ct_tidy(1000, '168 hours', '24 hours')",
    "ct_set_guardrail": "SELECT outreach.ct_set_guardrail('provider:a.example', 'closed', 'refused by 3', NULL)",
    "ct_end_trial": "SELECT outreach.ct_end_trial()",
    "ct_take_alerts": "SELECT outreach.ct_take_alerts('a worker', 10)",
    "ct_take_tier2": "SELECT outreach.ct_take_tier2(ARRAY[{id}], ARRAY['a@a.example'::pg_catalog.text], ARRAY[{id}],"
    " 'vendor', 50, 10000, 50, 0.004, 30, 1, 5)",
    "ct_answer_tier2": "SELECT outreach.ct_answer_tier2({id}, {id}, 'no_answer', 'none came', 'a wrong key', 5, 5)",
    "ct_accept_toolbox": "SELECT outreach.ct_accept_toolbox('{{}}', 'because')",
    "ct_next_number": "SELECT outreach.ct_next_number('ct_refusals')",
    "ct_is_decided": "SELECT outreach.ct_is_decided({id}, 'company_target')",
    "ct_left_the_spine": "SELECT outreach.ct_left_the_spine({id})",
    "resume_guardrail": "SELECT outreach.resume_guardrail('tool:TOOL-005', 'delisted')",
}
#: Writes of the gate that fire a trigger.
FIRED = (
    "INSERT INTO outreach.ct_passes (outreach_id, state, reason, detail, not_before)"
    " VALUES ({id}, 'waiting', 'our_bug', 'why', pg_catalog.now())",
    "UPDATE outreach.ct_passes SET state = 'stuck' WHERE outreach_id = {id}",
    "UPDATE outreach.ct_controls SET failed_at = pg_catalog.now() WHERE kind = 'dns'",
)


async def plant(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Put a domain over each type's name, whose check notes as whom it runs. No right is needed but TEMP."""
    await connection.execute("SELECT set_config('planted.ran_as', current_user, false)")
    for kind in SHADOWED:
        base, array = kind.removesuffix("[]"), "[]" if kind.endswith("[]") else ""
        name = f"_{base}" if array else base
        await connection.execute(
            f"""
            CREATE FUNCTION pg_temp.planted(value pg_catalog.{base}{array}) RETURNS boolean LANGUAGE plpgsql AS $$
            BEGIN
                PERFORM pg_catalog.set_config('planted.ran_as',
                    pg_catalog.current_setting('planted.ran_as') || ' ' || current_user, false);
                RETURN true;
            END $$;
            CREATE DOMAIN pg_temp.{name} AS pg_catalog.{base}{array} CHECK (pg_temp.planted(VALUE));
            """
        )


async def ran_as(connection: asyncpg.Connection[asyncpg.Record]) -> set[str]:
    return set((await connection.fetchval("SELECT pg_catalog.current_setting('planted.ran_as')")).split())


async def definers(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    rows = await connection.fetch(
        """
        SELECT p.proname FROM pg_proc AS p
        WHERE p.pronamespace = 'outreach'::regnamespace AND p.prosecdef AND p.prorettype <> 'trigger'::regtype
            AND has_function_privilege(p.oid, 'EXECUTE')
        """
    )
    return sorted(row["proname"] for row in rows)


@pytest.mark.parametrize("role", ["ct_gate", "ct_ops"])
async def test_a_type_of_the_session_never_runs_code_as_the_owner(database: DatabaseDsns, role: str) -> None:
    """A session's own types are looked up before pg_catalog's where the path does not name pg_temp last."""
    admin = await asyncpg.connect(database.admin)
    await admin.execute("SELECT outreach.ct_set_guardrail('tool:TOOL-005', 'halted', 'refused by 5', NULL)")
    connection = await asyncpg.connect(database.gate if role == "ct_gate" else database.ops)
    callable_here = await definers(connection)
    assert callable_here
    await plant(connection)
    company = f"'{uuid4()}'::pg_catalog.uuid"
    fired = FIRED if role == "ct_gate" else ()
    for statement in (*(CALLS[name] for name in callable_here), *fired):
        await connection.execute(statement.format(id=company))
    assert await ran_as(connection) == {role}
    await connection.close()
    await admin.close()


async def test_a_function_of_another_schema_is_never_taken_for_one_of_postgres(database: DatabaseDsns) -> None:
    """Databases from before PostgreSQL 15 let everybody make functions in `public`, and a closer match is preferred."""
    admin = await asyncpg.connect(database.admin)
    await admin.execute(
        "GRANT CREATE ON SCHEMA public TO PUBLIC;"
        "CREATE TABLE public.ran (as_role text, at text); GRANT INSERT ON public.ran TO PUBLIC"
    )
    gate = await asyncpg.connect(database.gate)
    body = "BEGIN INSERT INTO public.ran VALUES (current_user, '{}'); RETURN {}; END"
    for arguments, result, value in (
        ("pg_catalog.text, pg_catalog.text, regclass", "text", "pg_catalog.concat('SELECT 1')"),
        ("pg_catalog.text, regprocedure", "text", "pg_catalog.concat('SELECT 1')"),
    ):
        await gate.execute(
            f"CREATE FUNCTION public.format({arguments}) RETURNS {result} LANGUAGE plpgsql AS $$"
            f"{body.format('migrate', value)}$$"
        )
    for table in ("ct_outcomes", "company_target_errors", "ct_tier2_attempts"):
        await gate.execute(
            f"CREATE FUNCTION public.to_jsonb(outreach.{table}) RETURNS jsonb LANGUAGE plpgsql AS $$"
            f"{body.format('a trigger', 'pg_catalog.jsonb_build_object()')}$$"
        )
    await gate.close()
    await migrate(database.admin)
    await admin.execute(
        "INSERT INTO outreach.ct_outcomes (outreach_id, outcome, decided_at) VALUES (gen_random_uuid(), 'PASS', now());"
        "UPDATE outreach.ct_outcomes SET published_at = now();"
        "INSERT INTO outreach.company_target_errors (outreach_id, failure_code)"
        " VALUES (gen_random_uuid(), 'CT-M-NO-MX');"
        "UPDATE outreach.company_target_errors SET resolution_note = 'noted';"
        "INSERT INTO outreach.ct_tier2_attempts (outreach_id, provider, address, token, usd, reserved_at, answer_due)"
        " VALUES (gen_random_uuid(), 'vendor', 'a@a.example', gen_random_uuid(), 0, now(), now());"
        "UPDATE outreach.ct_tier2_attempts SET status = 'valid'"
    )
    assert [tuple(row) for row in await admin.fetch("SELECT DISTINCT as_role, at FROM public.ran ORDER BY at")] == []
    await admin.close()


async def test_the_next_migration_runs_no_code_of_the_owner_as_the_administrator(database: DatabaseDsns) -> None:
    """Who became ct_owner may put a trigger on its tables, which a superuser's migration would run."""
    admin = await asyncpg.connect(database.admin)
    await admin.execute(
        "CREATE TABLE public.ran (as_role text); GRANT INSERT ON public.ran TO PUBLIC; SET ROLE ct_owner"
    )
    await admin.execute(
        """
        CREATE FUNCTION outreach.planted() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            BEGIN
                RESET ROLE;
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
            INSERT INTO public.ran VALUES (current_user);
            RETURN NEW;
        END $$
        """
    )
    for table in ("ct_outcomes", "ct_migrations", "ct_functions"):
        if await admin.fetchval("SELECT to_regclass($1) IS NOT NULL", f"outreach.{table}"):
            try:
                await admin.execute(
                    f"CREATE TRIGGER planted BEFORE INSERT OR UPDATE ON outreach.{table}"
                    " FOR EACH ROW EXECUTE FUNCTION outreach.planted()"
                )
            except asyncpg.InsufficientPrivilegeError:
                assert table != "ct_outcomes"
    await admin.execute("RESET ROLE")
    await admin.execute(
        "INSERT INTO outreach.company_target (outreach_id, execution_status) VALUES (gen_random_uuid(), 'ready');"
        "DELETE FROM outreach.ct_adoption"  # as if it were the first one
    )
    report = await migrate(database.admin)
    assert report.adopted == 1
    assert {row["as_role"] for row in await admin.fetch("SELECT as_role FROM public.ran")} <= {"ct_owner"}
    await admin.close()
