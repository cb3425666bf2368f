"""A managed server: who migrates is no superuser, and roles belong to all its databases."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ct_stream.local.postgres import EmbeddedPostgres, _reachable_install
from ct_stream.store.migrate import MigrationError, MigrationReport, migrate
from tests.conftest import PASSWORD, UPSTREAM
from tests.store.parts import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOGIN_ROLES = Path(__file__).parents[2] / "ops" / "postgres" / "login_roles.sql"
REHEARSED = "recording a PASS, a FAIL and a NOT-FOUND was rehearsed, and nothing of it kept"
SECRETS = {"gate": "g'a#te p@ss/w:rd%", "ops": 'o"ps \\ $1 pw'}


@pytest.fixture
async def server() -> AsyncIterator[EmbeddedPostgres]:
    """Run a server on which nobody has migrated anything yet."""
    async with EmbeddedPostgres(durable=False, autovacuum=False) as running:
        yield running


async def as_superuser(server: EmbeddedPostgres, *statements: str) -> None:
    connection = await asyncpg.connect(server.admin_dsn)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


async def major(server: EmbeddedPostgres) -> int:
    connection = await asyncpg.connect(server.admin_dsn)
    version = connection.get_server_version().major
    await connection.close()
    return version


async def owned(server: EmbeddedPostgres, name: str, owner: str) -> str:
    """Make a database with a spine, and return its owner's DSN."""
    await server.create_database(name)
    await as_superuser(server, f"ALTER DATABASE {name} OWNER TO {owner}")
    connection = await asyncpg.connect(server.dsn(name, owner, PASSWORD))
    await connection.execute(UPSTREAM)
    await connection.execute("INSERT INTO outreach.outreach VALUES (gen_random_uuid(), 'acme.example')")
    await connection.close()
    return server.dsn(name, owner, PASSWORD)


def let_log_in(dsn: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the script that the README names, as its reader does."""
    for name, secret in SECRETS.items():
        (folder / name).write_text(secret)
    return subprocess.run(
        [_reachable_install(None) / "bin" / "psql", "--no-psqlrc", dsn, "-f", LOGIN_ROLES],
        env=os.environ | {"GATE_PASSWORD_FILE": str(folder / "gate"), "OPS_PASSWORD_FILE": str(folder / "ops")},
        capture_output=True,
        text=True,
        check=False,
    )


def is_ready(report: MigrationReport) -> bool:
    return report.rehearsal == REHEARSED and report.temp_revoked


async def test_partitions_of_the_spine_may_belong_to_somebody_else(server: EmbeddedPostgres) -> None:
    """Who migrates has then no right on them, and takes none away."""
    await as_superuser(
        server, f"CREATE ROLE cloud LOGIN PASSWORD '{PASSWORD}' CREATEROLE INHERIT", "CREATE ROLE hub_owner"
    )
    owner_dsn = await owned(server, "one", "cloud")
    connection = await asyncpg.connect(server.dsn("one"))
    await connection.execute(
        "DROP TABLE outreach.outreach; GRANT USAGE, CREATE ON SCHEMA outreach TO hub_owner; SET ROLE hub_owner;"
        "CREATE TABLE outreach.outreach (outreach_id uuid PRIMARY KEY, domain text, sovereign_id uuid,"
        " created_at timestamptz DEFAULT now()) PARTITION BY HASH (outreach_id);"
        "CREATE TABLE outreach.s0 PARTITION OF outreach.outreach FOR VALUES WITH (MODULUS 1, REMAINDER 0);"
        "INSERT INTO outreach.outreach VALUES (gen_random_uuid(), 'acme.example');"
        "GRANT ALL ON outreach.outreach TO cloud WITH GRANT OPTION"
    )
    await connection.close()
    for _ in range(2):
        assert (await migrate(owner_dsn)).rehearsal == REHEARSED


@pytest.mark.parametrize("inherits", ["INHERIT", "NOINHERIT"])
async def test_an_owner_with_createrole_sets_up_two_databases_and_their_logins(
    server: EmbeddedPostgres, tmp_path: Path, inherits: str
) -> None:
    """Since PostgreSQL 16 who creates a role may administer it, and neither act as it nor use its rights."""
    await as_superuser(server, f"CREATE ROLE cloud LOGIN PASSWORD '{PASSWORD}' CREATEROLE {inherits}")
    dsn = await owned(server, "one", "cloud")
    if (
        inherits == "NOINHERIT" and await major(server) < 16
    ):  # no grant gives its rights to a role that does not inherit
        with pytest.raises(MigrationError, match="cloud has the role ct_owner, but not its rights") as refused:
            await migrate(dsn)
        await as_superuser(server, refused.value.problem.action.partition(": ")[2])
    assert is_ready(await migrate(dsn))
    assert (await migrate(dsn)).rehearsal == REHEARSED
    psql = let_log_in(dsn, tmp_path)
    assert (psql.returncode, psql.stderr) == (0, "")
    assert "This login may not switch off the log of statements" in psql.stdout
    assert is_ready(await migrate(await owned(server, "two", "cloud"))), "a second database on the server"
    for name in ("one", "two"):
        async with opened(server.dsn(name, "ct_gate", SECRETS["gate"])):
            pass
        people = await asyncpg.connect(server.dsn(name, "ct_ops", SECRETS["ops"]))
        assert await people.fetchval("SELECT count(*) FROM outreach.ct_held") == 0
        await people.close()


@pytest.mark.parametrize("inherits", ["INHERIT", "NOINHERIT"])
async def test_who_may_not_make_roles_hears_what_to_ask_for_and_it_is_enough(
    server: EmbeddedPostgres, inherits: str
) -> None:
    await as_superuser(server, f"CREATE ROLE plain LOGIN PASSWORD '{PASSWORD}' {inherits}")
    dsn = await owned(server, "one", "plain")
    with pytest.raises(MigrationError, match="there is no role ct_owner, and plain may not create roles") as refused:
        await migrate(dsn)
    await as_superuser(server, *refused.value.problem.action.partition("run: ")[2].split("; "))
    assert is_ready(await migrate(dsn))


async def test_the_owner_of_a_second_database_hears_who_must_let_it_use_the_roles(server: EmbeddedPostgres) -> None:
    if await major(server) < 16:
        pytest.skip("before PostgreSQL 16 whoever may create roles may give itself any of them")
    await as_superuser(
        server,
        f"CREATE ROLE first LOGIN PASSWORD '{PASSWORD}' CREATEROLE",
        f"CREATE ROLE second LOGIN PASSWORD '{PASSWORD}' CREATEROLE",
    )
    await migrate(await owned(server, "one", "first"))
    dsn = await owned(server, "two", "second")
    with pytest.raises(MigrationError, match="the roles are there already, and second may not act as ct_owner") as no:
        await migrate(dsn)
    # Whoever made the roles may give them on, without being superuser.
    connection = await asyncpg.connect(server.dsn("one", "first", PASSWORD))
    await connection.execute(no.value.problem.action.partition("run: ")[2])
    await connection.close()
    assert is_ready(await migrate(dsn))


async def test_without_the_right_to_act_as_the_gate_nothing_is_rehearsed_and_it_says_so(
    server: EmbeddedPostgres,
) -> None:
    await as_superuser(
        server,
        f"CREATE ROLE plain LOGIN PASSWORD '{PASSWORD}'",
        "CREATE ROLE ct_owner; CREATE ROLE ct_reader; CREATE ROLE ct_gate; CREATE ROLE ct_ops;"
        "GRANT ct_owner, ct_reader TO plain",
    )
    report = await migrate(await owned(server, "one", "plain"))
    assert report.rehearsal.startswith("not rehearsed: this login may not act as ct_gate")
    assert report.rehearsal.endswith("with GRANT ct_gate TO this login it would")
    assert "\n" not in report.rehearsal


async def test_a_superusers_passwords_stay_out_of_the_servers_log(server: EmbeddedPostgres, tmp_path: Path) -> None:
    await migrate(await server.create_database("one"))
    await as_superuser(server, "ALTER ROLE postgres SET log_statement = 'all'")
    psql = let_log_in(server.dsn("one"), tmp_path)
    assert (psql.returncode, psql.stderr, "may not" in psql.stdout) == (0, "", False)
    assert server._home is not None
    log = (server._home / "postgres.log").read_text()
    assert "may_hide" in log, "statements are logged"
    assert "ALTER ROLE" not in log
