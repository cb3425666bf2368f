"""A name means what it should: nothing of others is taken for the gate's, or for Postgres' own."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest

from ct_stream.company.checks import SpineCheck
from ct_stream.ops.doctor import examine
from ct_stream.ops.reader import reader
from ct_stream.settings import Settings
from ct_stream.store.as_migrated import compare, fetching
from ct_stream.store.connecting import connect
from ct_stream.store.guardrails import Guardrails
from ct_stream.store.ledger import Ledger
from ct_stream.store.migrate import migrate
from ct_stream.store.queries import ON_LOGINS_PATH, _all
from ct_stream.store.rehearsal import rehearse
from ct_stream.store.sql_files import sql_files
from tests.conftest import PASSWORD, UPSTREAM
from tests.store import users_schema
from tests.store.parts import opened, outcome, role, running
from tests.store.test_attacks import TAKE, value
from tests.store.test_managed import SECRETS, let_log_in
from tests.store.test_roles import run

if TYPE_CHECKING:
    from pathlib import Path

    from ct_stream.local.postgres import EmbeddedPostgres
    from tests.conftest import DatabaseDsns

#: A place where planted code notes as whom it ran.
NOTED = (
    "CREATE SCHEMA noted; CREATE TABLE noted.ran (as_whom text, what text);"
    "GRANT USAGE ON SCHEMA noted TO PUBLIC; GRANT ALL ON noted.ran TO PUBLIC;"
)
_CALL = re.compile(r"outreach\.(?:ct_\w+|resume_guardrail)\(")


async def ran_as(dsn: str) -> set[str]:
    found = await value(dsn, "SELECT coalesce(string_agg(as_whom || ':' || what, ' '), '') FROM noted.ran")
    return set(str(found).split())


def body(what: str, then: str) -> str:
    """Return the body of a planted function that notes as whom it ran."""
    return f"LANGUAGE plpgsql AS $$ BEGIN INSERT INTO noted.ran VALUES (current_user, '{what}'); {then}; END $$;"


def arguments(text: str) -> list[tuple[str, str]]:
    """Return each argument of each call of one of the gate's functions, with the call."""
    found = []
    for call in _CALL.finditer(re.sub(r"--.*", "", text)):
        depth, begin, at = 1, call.end(), call.end()
        text_ = re.sub(r"--.*", "", text)
        while depth:
            if text_[at] == "(":
                depth += 1
            elif text_[at] == ")":
                depth -= 1
            if depth == 0 or (depth == 1 and text_[at] == ","):
                found.append((call[0], text_[begin:at].strip()))
                begin = at + 1
            at += 1
    return found


def test_what_is_given_to_a_function_of_the_gate_has_a_type() -> None:
    """What has none (a parameter, NULL) fits a function of somebody else's better that takes text."""
    functions = [re.sub(r"^CREATE OR REPLACE FUNCTION outreach\.\w+\(", "", text, flags=re.MULTILINE)
        for text in sql_files().functions.values()]  # fmt: skip
    found = [pair for text in (*functions, *_all().values()) for pair in arguments(text)]
    assert len(found) > 150
    assert [pair for pair in found if re.fullmatch(r"\$\d+|NULL", pair[1])] == []


async def test_a_function_of_others_with_our_name_is_not_called_and_is_told(database: DatabaseDsns) -> None:
    """One is planted for each of the gate's functions and each of these types, by somebody who may create here."""
    admin: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.admin)
    await admin.execute(NOTED + role("planter"))
    ours = await admin.fetch(
        "SELECT p.proname AS name, p.pronargs::integer AS many, oidvectortypes(p.proargtypes) AS takes"
        " FROM pg_proc AS p WHERE p.pronamespace = 'outreach'::regnamespace AND p.pronargs > 0"
    )
    for row in ours:
        for kind in ("text", "double precision", "bigint", "name"):
            takes = ", ".join([kind] * row["many"])
            if takes != row["takes"]:
                await admin.execute(
                    f"CREATE FUNCTION outreach.{row['name']}({takes}) RETURNS text {body(row['name'], 'RETURN NULL')}"
                    f"ALTER FUNCTION outreach.{row['name']}({takes}) OWNER TO planter"
                )
    async with opened(database.gate) as db:
        guardrails = Guardrails(db, 60.0)
        await guardrails.set_state("provider:p.example", "closed", "refused by 3", 60.0)
        await guardrails.set_state("spine", "halted", "empty", None)
        for statement in ("take_alerts", "tidy", "wake_sleepers", "wake_capped", "take_mx", "answer_tier2"):
            count = len(re.findall(r"\$\d+", _all()[statement]))
            async with db.connection() as connection:
                prepared = await connection.prepare(_all()[statement])
                try:
                    await prepared.fetch(*(None for _ in range(len(prepared.get_parameters()))))
                except asyncpg.PostgresError:
                    assert count  # the gate's own function was called, and misses its arguments
    await run(database.gate, TAKE.format(usd_per_month=50, usd_per_call=0.004))
    async with reader(Settings(postgres_ops_dsn=database.ops), read_only=False) as people:
        await people.change("accept_toolbox", "{}", "tried")
        await people.change("resume_guardrail", "spine", "restored")
    assert await ran_as(database.admin) == set()
    told = [one.what for one in (await compare(fetching(admin))).altered]
    assert "planter has the function outreach.ct_alert(text,text,text,text,text), which is not the gate's" in told
    await admin.close()


async def test_a_function_is_not_compiled_by_the_path_of_its_first_caller(database: DatabaseDsns) -> None:
    await run(
        database.admin,
        NOTED + "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;"
        f"CREATE FUNCTION evil.seen(anyelement) RETURNS boolean {body('compiled', 'RETURN true')}"
        + "".join(
            f"CREATE DOMAIN evil.{kind} AS pg_catalog.{kind} CHECK (evil.seen(VALUE));"
            for kind in ("timestamptz", "date", "int8", "text", "numeric", "uuid", "float8", "int4", "jsonb")
        ),
    )
    gate: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(database.gate)
    await gate.execute("SET search_path = evil, pg_catalog; SELECT outreach.ct_lock_rate('TOOL-019')")
    await gate.execute("RESET search_path;" + TAKE.format(usd_per_month=50, usd_per_call=0.004))
    await gate.close()
    assert await ran_as(database.admin) == set()


async def test_a_schema_with_a_logins_name_is_not_in_its_path(database: DatabaseDsns) -> None:
    await run(
        database.admin,
        NOTED
        + "".join(
            f"CREATE SCHEMA {who}; GRANT USAGE ON SCHEMA {who} TO PUBLIC;"
            f"CREATE FUNCTION {who}.unnest(uuid[]) RETURNS SETOF uuid"
            f" {body('unnest', 'RETURN QUERY SELECT pg_catalog.unnest($1)')}"
            f"CREATE FUNCTION {who}.array_position(text[], text) RETURNS integer {body('position', 'RETURN 1')}"
            for who in ("ct_gate", "ct_ops")
        ),
    )
    async with opened(database.gate) as db:
        ledger = Ledger(db)
        async with running(*ledger.batches):
            await ledger.look_up(uuid4())
    people = await connect(database.ops, application_name="test")
    await people.fetch(_all()["guardrails"])
    assert await people.fetchval("SHOW search_path") == "public"
    await people.close()
    assert await ran_as(database.admin) == set()


async def test_the_script_for_logins_calls_nothing_of_a_schema_with_its_own_name(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    dsn = await postgres.create_database(f"login_{uuid4().hex}")
    await migrate(dsn)
    await run(
        dsn,
        f"{NOTED} CREATE SCHEMA postgres; CREATE FUNCTION postgres.unnest(text[]) RETURNS SETOF text"
        f" {body('unnest', 'RETURN QUERY SELECT pg_catalog.unnest($1)')}",
    )
    try:
        assert let_log_in(dsn, tmp_path).returncode == 0
        assert await ran_as(dsn) == set()
    finally:  # roles belong to the whole server, and other tests log in as these
        for who in SECRETS:
            await run(dsn, f"ALTER ROLE ct_{who} PASSWORD '{PASSWORD}' CONNECTION LIMIT -1")


async def test_migrate_calls_nothing_of_the_path_that_a_databases_owner_sets(postgres: EmbeddedPostgres) -> None:
    name = f"pathed_{uuid4().hex}"
    dsn = await postgres.create_database(name)
    await run(
        dsn,
        UPSTREAM + NOTED + "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;"
        f"CREATE FUNCTION evil.pg_backend_pid() RETURNS integer {body('pid', 'RETURN pg_catalog.pg_backend_pid()')}"
        f"CREATE FUNCTION evil.unnest(text[], text[]) RETURNS TABLE (a text, b text) {body('unnest', 'RETURN')}"
        f"CREATE FUNCTION evil.unequal(text, text) RETURNS boolean {body('unequal', 'RETURN true')}"
        "CREATE OPERATOR evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.unequal);"
        f"ALTER DATABASE {name} SET search_path = evil, pg_catalog",
    )
    await migrate(dsn)
    await migrate(dsn)
    assert {who for who in await ran_as(dsn) if who.startswith("postgres")} == set()


#: What a planted function may fit better than pg_catalog's own, which take text, or anything.
_BETTER = ("character varying", "character", "name", "uuid", "uuid[]", "text[]", "anynonarray", "double precision")
_SYNTAX = frozenset(
    {"and", "any", "array", "as", "coalesce", "conflict", "exists", "from", "greatest", "i", "in", "input", "least",
     "not", "numeric", "on", "or", "then", "values", "when", "where"}
)  # fmt: skip


def called(name: str) -> set[str]:
    """Return the functions that a statement calls without a schema."""
    text = re.sub(r"--.*", "", _all()[name])
    return set(re.findall(r"(?<![.\w$])([a-z_]\w*)\s*\(", text)) - _SYNTAX


@pytest.mark.parametrize("name", sorted(ON_LOGINS_PATH))
def test_statements_on_the_path_of_others_name_functions_in_full(name: str) -> None:
    tables = set(re.findall(r"outreach\.(\w+)", _all()[name])) | {"t", "m", "o", "i"}
    assert called(name) - tables - {"target", "won", "errors", "unwritten", "memory"} == (
        {"unnest"} if name == "record" else set()  # of several arrays: see there
    )


@pytest.mark.parametrize("path", ["public", "public, pg_catalog"])
async def test_nothing_that_fits_better_is_called_as_the_gate(postgres: EmbeddedPostgres, path: str) -> None:
    """By a person, where everybody may create functions in public, as in databases from before PostgreSQL 15."""
    spine = users_schema.ddl()
    async with users_schema.made(postgres, spine) as database:
        await migrate(database.admin)
        await run(database.admin, f"{NOTED} GRANT CREATE ON SCHEMA public TO PUBLIC")
        company = uuid4()
        await run(
            database.admin, f"INSERT INTO outreach.outreach (outreach_id, domain) VALUES ('{company}', 'A.example')"
        )
        names = {word for text in _all().values() for word in re.findall(r"\b([a-z]\w*)\(", text)}
        known = await value(
            database.admin,
            "SELECT string_agg(DISTINCT p.proname, ' ') FROM pg_proc AS p"
            f" WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname = ANY ('{{{','.join(names)}}}')",
        )
        planted = [
            f'CREATE FUNCTION public."{word}"({kind}) RETURNS text {body(word, "RETURN NULL")}'
            for word in str(known).split()
            for kind in _BETTER
        ]
        assert {"lower", "quote_ident"} <= set(str(known).split())
        kinds = [("oid", "regclass"), ("varchar", "text"), ("varchar", "varchar"), ("name", "text"), ("name", "name")]
        # What fits as well is taken where pg_catalog is named behind public.
        kinds += [(kind, kind) for kind in ("uuid", "text", "oid")] if "pg_catalog" in path else []
        for left, right in kinds:
            arguments_ = f"{left}, {right}"
            # It answers as pg_catalog's does, so that all goes on.
            answer = f"RETURN $1::text OPERATOR(pg_catalog.=) $2::{'oid::' if right == 'regclass' else ''}text"
            planted.append(
                f"CREATE FUNCTION public.eq({arguments_}) RETURNS boolean {body(f'{left}={right}', answer)}"
                f"CREATE OPERATOR public.= (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.eq);"
            )
        await run(database.ops, "SET search_path = pg_catalog;" + "".join(planted))
        await run(
            database.admin,
            f"DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = {path}', current_database()); END $$",
        )
        async with opened(database.gate) as db:
            assert await SpineCheck(db, Guardrails(db, 60.0)).trouble() is None
            async with db.connection(meets_users=True) as connection:
                await rehearse(connection)
            ledger = Ledger(db, "1+test")
            async with running(*ledger.batches):
                assert (await ledger.look_up(company)).outcome is None
                assert await ledger.record(outcome(company))
        await examine({"CT_POSTGRES_DSN": database.gate, "CT_POSTGRES_OPS_DSN": database.ops})
        assert await ran_as(database.admin) == set()


async def test_who_could_call_a_function_of_ours_before_the_first_migrate_cannot_after_it(
    postgres: EmbeddedPostgres,
) -> None:
    dsn = await postgres.create_database(f"before_{uuid4().hex}")
    await run(
        dsn,
        UPSTREAM
        + role("planter")
        + "CREATE FUNCTION outreach.resume_guardrail(rail text, why text) RETURNS text LANGUAGE sql AS $$ SELECT '' $$;"
        "GRANT EXECUTE ON FUNCTION outreach.resume_guardrail(text, text) TO planter, ct_gate WITH GRANT OPTION",
    )
    await migrate(dsn)
    for who in ("planter", "ct_gate"):
        may = f"SELECT has_function_privilege('{who}', 'outreach.resume_guardrail(text, text)', 'EXECUTE')"
        assert await value(dsn, may) is False


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ('"$user", public', "public"),
        ("app, public", "app, public"),
        ('"$user"', "pg_catalog"),
        ('"we,ird", "$user",public', '"we,ird", public'),
        ("app, PG_catalog", "app"),
    ],
)
async def test_a_dbas_path_stays_without_the_logins_own_schema(database: DatabaseDsns, given: str, kept: str) -> None:
    await run(database.admin, f"ALTER ROLE ct_ops IN DATABASE {database.admin.rpartition('/')[2].partition('?')[0]}"
        f" SET search_path = {given}")  # fmt: skip
    people = await connect(database.ops, application_name="test")
    assert await people.fetchval("SHOW search_path") == kept
    await people.close()
