"""Code of the users' tables runs in the gate's sessions; what it leaves there reaches no statement that counts."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from ct_stream.store.ledger import Ledger
from ct_stream.store.queries import meets_users
from tests.store.parts import NO_MX, opened, outcome, running
from tests.store.test_roles import run

if TYPE_CHECKING:
    from ct_stream.store.database import Database
    from tests.conftest import DatabaseDsns

#: A trigger that, once armed, puts {forged} in the place of each prepared statement that has {word} in it.
PLANT = """
CREATE FUNCTION public.plants() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    s record;
BEGIN
    PERFORM set_config('search_path', 'nowhere', false);
    FOR s IN SELECT * FROM pg_prepared_statements WHERE statement LIKE '%{word}%' LOOP
        EXECUTE format('DEALLOCATE %I', s.name);
        EXECUTE format(
            'PREPARE %I (%s) AS {forged}', s.name,
            (SELECT string_agg(t::text, ', ' ORDER BY n) FROM unnest(s.parameter_types) WITH ORDINALITY AS u (t, n))
        );
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER plants AFTER INSERT ON outreach.company_target FOR EACH ROW EXECUTE FUNCTION public.plants();
"""


async def test_no_forged_statement_hands_out_what_is_published(database: DatabaseDsns) -> None:
    forged = (
        "SELECT o.outreach_id, ''ct.pass''::text AS topic, o.key, ''forged''::bytea AS value, o.headers::text"
        " FROM outreach.ct_outcomes AS o WHERE $1 IS NOT NULL AND $2 IS NOT NULL"
    )
    async with opened(database.gate) as db:
        ledger = Ledger(db)
        async with running(*ledger.batches):
            await ledger.claim_unpublished(10)  # prepared in the session that the next statement gets
            await run(database.admin, PLANT.format(word="Claim what", forged=forged))
            failed = outcome(verdict=NO_MX)
            assert await ledger.record(failed)
            await run(
                database.admin,
                "UPDATE outreach.ct_outcomes SET publish_until = clock_timestamp() - interval '1 day'",
            )
            claimed = await ledger.claim_unpublished(10)
    assert [(one.topic, one.value) for one in claimed] == [(failed.topic, failed.value)]


async def test_what_is_said_to_be_recorded_and_is_not_in_the_ledger_is_recorded_again(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db:
        ledger = Ledger(db)
        async with running(*ledger.batches):
            await run(
                database.admin,
                PLANT.format(word="INSERT INTO outreach.ct_outcomes", forged="SELECT unnest($1), 1::bigint, false"),
            )
            assert await ledger.record(outcome())  # and plants
            second = outcome()
            with suppress(TimeoutError):
                async with asyncio.timeout(7):
                    assert await ledger.record(second)
        rows = await db.fetch("recorded_attempts", [second.outreach_id], [uuid4()], [b""], [""], [b""])
        assert rows or "is not in the ledger" in (db.trouble or "")


async def test_no_session_that_met_the_users_tables_runs_anything_else(database: DatabaseDsns) -> None:
    async def session(db: Database, name: str) -> int:
        async with db.connection(meets_users=meets_users(name)) as connection:
            await asyncio.sleep(0.01)  # so that others get another one
            return int(await connection.fetchval("SELECT pg_backend_pid()"))

    async with opened(database.gate) as db:
        for _ in range(3):
            beside = await asyncio.gather(*(session(db, name) for name in ("look_up", "record", "spine_control") * 5))
            apart = await asyncio.gather(
                *(session(db, name) for name in ("claim_unpublished", "begin_probes", "stamp", "recorded_attempts") * 5)
            )
            assert not {*beside} & {*apart}
            assert len({*beside, *apart}) <= db.most_connections


async def test_a_path_that_is_set_for_the_gates_role_reaches_no_statement_that_counts(database: DatabaseDsns) -> None:
    """Such code may set it for the role itself, and so for each session from then on."""
    await run(
        database.admin,
        "CREATE SCHEMA evil; GRANT USAGE ON SCHEMA evil TO PUBLIC;"
        "CREATE FUNCTION evil.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT timestamptz ''-infinity''';"
        "DO $$ BEGIN EXECUTE format("
        "'ALTER ROLE ct_gate IN DATABASE %I SET search_path = evil, pg_catalog', current_database()); END $$",
    )
    async with opened(database.gate) as db:
        async with db.connection() as connection:
            assert await connection.fetchval("SHOW search_path") == "pg_catalog, pg_temp"
            assert await connection.fetchval("SELECT now() > 'epoch'")
        async with db.connection(meets_users=True) as connection:  # triggers of the users' tables may rest on it
            assert await connection.fetchval("SHOW search_path") == "evil", "pg_catalog is searched first"


@pytest.mark.parametrize("query", ["look_up", "record", "spine_control"])
def test_a_query_is_known_by_its_tables(query: str) -> None:
    assert meets_users(query)
    assert not meets_users("claim_unpublished")
    assert not meets_users("begin_probes")
