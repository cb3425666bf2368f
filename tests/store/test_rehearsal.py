"""Before anything is decided, recording is rehearsed in the users' own tables, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest

from ct_stream.store.migrate import MigrationError, migrate
from ct_stream.store.misfit import Misfit
from ct_stream.store.rehearsal import OneSelf, rehearse
from tests.conftest import PASSWORD
from tests.store.users_schema import NOT_NULL, ddl, made, migrated, mint, rows, run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ct_stream.local.postgres import EmbeddedPostgres

DONE = "recording a PASS, a FAIL and a NOT-FOUND was rehearsed, and nothing of it kept"


async def test_the_users_own_schema_is_rehearsed_and_nothing_is_left(postgres: EmbeddedPostgres) -> None:
    async with made(postgres, ddl()) as users:
        await mint(users.admin, pending=True)
        await mint(users.admin)
        report = await migrate(users.admin)
        assert report.rehearsal == DONE
        assert (await migrate(users.admin)).rehearsal == DONE, "also beside what is there already"
        gate = await asyncpg.connect(users.gate)
        assert str(await rehearse(gate)) == DONE, "as the login itself"
        await gate.close()
        for table in ("ct_outcomes", "ct_memory", "ct_alerts", "ct_unwritten", "company_target_errors"):
            assert await rows(users.admin, f"SELECT count(*) FROM outreach.{table}") == [(0,)], table
        assert await rows(users.admin, "SELECT execution_status, email_method FROM outreach.company_target") == [
            ("pending", None)
        ]
        left = "SELECT proname FROM pg_proc WHERE proname LIKE 'ct\\_as\\_gate%'"
        assert await rows(users.admin, left) == []
        may = "SELECT has_schema_privilege('ct_gate', 'outreach', 'CREATE')"
        assert await rows(users.admin, may) == [(False,)]


async def test_a_column_that_the_gate_does_not_fill_is_one_line_and_nothing_is_half_adopted(
    postgres: EmbeddedPostgres,
) -> None:
    async with made(postgres, ddl(NOT_NULL)) as users:
        await mint(users.admin)
        with pytest.raises(MigrationError) as refused:
            await migrate(users.admin)
        assert str(refused.value) == (
            "outreach.company_target.company_unique_id is NOT NULL, and the gate does not fill it; "
            "ALTER TABLE outreach.company_target ALTER COLUMN company_unique_id DROP NOT NULL, or give it a default"
        )
        left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'ct\\_%'"
        assert await rows(users.admin, left) == [(0,)]
        await run(users.admin, "ALTER TABLE outreach.company_target ALTER COLUMN company_unique_id DROP NOT NULL")
        assert (await migrate(users.admin)).rehearsal == DONE


async def test_an_empty_spine_is_not_rehearsed_and_says_so(postgres: EmbeddedPostgres) -> None:
    async with made(postgres, ddl(NOT_NULL)) as users:
        assert (await migrate(users.admin)).rehearsal == (
            "not rehearsed: the spine outreach.outreach is empty, or each of its companies is decided"
        )


async def test_who_may_not_act_as_the_gate_says_so(postgres: EmbeddedPostgres) -> None:
    role = f"admin_{uuid4().hex}"
    async with made(postgres, ddl()) as users:
        await mint(users.admin)
        name = await rows(users.admin, "SELECT current_database()")
        await run(
            users.admin,
            f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'; GRANT ct_owner, ct_reader TO {role} WITH ADMIN OPTION;"
            f"ALTER DATABASE {name[0][0]} OWNER TO {role}; ALTER SCHEMA outreach OWNER TO {role};"
            f"ALTER TABLE outreach.outreach OWNER TO {role}; ALTER TABLE outreach.company_target OWNER TO {role};"
            f"ALTER TABLE outreach.company_target_errors OWNER TO {role}",
        )
        dsn = postgres.dsn(str(name[0][0]), role, PASSWORD)
        assert (await migrate(dsn)).rehearsal.startswith("not rehearsed: this login may not act as ct_gate (")
        await run(users.admin, f"GRANT ct_gate TO {role} WITH ADMIN OPTION")
        assert (await migrate(dsn)).rehearsal == DONE
        await run(users.admin, f"ALTER DATABASE {name[0][0]} OWNER TO postgres; REASSIGN OWNED BY {role} TO postgres")


async def test_a_rehearsal_waits_for_no_worker_and_none_waits_for_it_for_long(postgres: EmbeddedPostgres) -> None:
    """A company that a worker is just recording is passed over: after a moment another one is tried."""
    async with migrated(postgres, ddl()) as users:
        company = await mint(users.admin)
        worker, gate = await asyncpg.connect(users.gate), await asyncpg.connect(users.gate)
        recording = worker.transaction()
        await recording.start()
        await worker.execute(
            "INSERT INTO outreach.ct_outcomes (outreach_id, outcome, decided_at) VALUES ($1, 'PASS', now())", company
        )
        said = await asyncio.wait_for(rehearse(gate), 10)
        assert str(said) == "not rehearsed: others were at work on the same rows each time"
        await recording.rollback()
        assert str(await rehearse(gate)) == DONE
        await worker.close()
        await gate.close()


async def test_the_rehearsal_runs_no_trigger_as_the_administrator(postgres: EmbeddedPostgres) -> None:
    """Who may put a trigger on company_target would be the administrator at the next migrate, with RESET ROLE."""
    async with migrated(postgres, ddl()) as users:
        await mint(users.admin)
        await run(
            users.admin,
            """
            CREATE TABLE public.ran (as_role text); GRANT INSERT ON public.ran TO PUBLIC;
            CREATE SEQUENCE public.ran_as_superuser;
            CREATE FUNCTION public.planted() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                BEGIN
                    RESET ROLE;
                EXCEPTION WHEN OTHERS THEN NULL;
                END;
                IF current_user <> 'ct_gate' THEN
                    PERFORM nextval('public.ran_as_superuser');  -- not rolled back
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER planted BEFORE INSERT ON outreach.company_target
                FOR EACH ROW EXECUTE FUNCTION public.planted();
            CREATE CONSTRAINT TRIGGER later AFTER INSERT ON outreach.company_target DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION public.planted();
            """,
        )
        assert (await migrate(users.admin)).rehearsal == DONE
        assert await rows(users.admin, "SELECT is_called FROM public.ran_as_superuser") == [(False,)]


async def test_what_the_worker_may_not_do_is_a_misfit(postgres: EmbeddedPostgres) -> None:
    async with migrated(postgres, ddl()) as users:
        await mint(users.admin)
        await run(users.admin, "REVOKE INSERT ON outreach.company_target FROM ct_gate")
        gate = await asyncpg.connect(users.gate)
        with pytest.raises(Misfit, match="is refused: permission denied for table company_target; run `ct-stream mig"):
            await rehearse(gate)
        await gate.close()


async def test_an_outage_is_no_misfit(postgres: EmbeddedPostgres) -> None:
    """Otherwise a full disk would keep each worker from starting again once there is room."""

    class Full(OneSelf):
        async def fetch(self, name: str, *args: Any) -> Sequence[Mapping[str, Any]]:
            if name == "record":
                raise asyncpg.DiskFullError("could not extend file: No space left on device")
            return await super().fetch(name, *args)

    async with migrated(postgres, ddl()) as users:
        await mint(users.admin)
        gate = await asyncpg.connect(users.gate)
        with pytest.raises(asyncpg.DiskFullError):
            await rehearse(gate, Full(gate))
        assert str(await rehearse(gate)) == DONE, "the connection can be used on"
        await gate.close()


async def test_a_trigger_that_makes_outcomes_forgettable_is_a_misfit(postgres: EmbeddedPostgres) -> None:
    """It runs at the end of the gate's transaction, so its setting would be that of the COMMIT."""
    async with made(postgres, ddl()) as users:
        await mint(users.admin)
        await migrate(users.admin)
        await run(
            users.admin,
            "CREATE FUNCTION outreach.hurry() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " PERFORM set_config('synchronous_commit', 'off', true); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER hurry AFTER INSERT OR UPDATE ON outreach.company_target"
            " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION outreach.hurry()",
        )
        with pytest.raises(MigrationError, match="sets synchronous_commit, so a crash"):
            await migrate(users.admin)
