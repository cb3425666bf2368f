"""What most tests that need a database share: one Postgres a session, one migrated database a test."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import hypothesis
import pytest

from ct_stream.local.postgres import EmbeddedPostgres
from ct_stream.store.migrate import migrate
from tests import brokers
from tools.needs import free_memory_gb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

# A shell that starts the tests in the background has SIGINT ignored, and so would each process that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says something about the machine only.
hypothesis.settings.register_profile("ct-stream", deadline=None)
hypothesis.settings.load_profile("ct-stream")

TEMPLATE = "template_ct"
PASSWORD = "only-on-loopback"

# Upstream's part: the spine, and a schema that the gate must never read.
UPSTREAM = """
CREATE SCHEMA outreach;
CREATE TABLE outreach.outreach (
    outreach_id uuid PRIMARY KEY,
    domain text,
    sovereign_id uuid,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE SCHEMA cl;
CREATE TABLE cl.company_identity (sovereign_id uuid PRIMARY KEY, company_name text);
"""


# Debian's mail servers, which need root (`make test-mta`), Apache Kafka, which needs Java (`make test-kafka`), troubles
# that take their time to be met and mended (`make test-trouble`), one worker's broken way out beside whole ones, which
# needs root (`make test-ways`), and what takes minutes, which `make test-kafka` shows on the broker that people have.
_ONLY_WHEN_NAMED = [
    Path(__file__).parent / name
    for name in ("mta", "kafka", "trouble", "ways", "faults/test_recovery_race.py", "faults/test_leaving.py")
]


_MEMORY, _ROOM_BYTES = Path("/dev/shm"), 4 * 10**9


def pytest_configure() -> None:
    """Take the Postgres that CT_TEST_POSTGRES names, and memory instead of a disk."""
    if programs := os.environ.get("CT_TEST_POSTGRES"):
        EmbeddedPostgres.programs = Path(programs).resolve(strict=True)
    _write_to_memory()


def _write_to_memory() -> None:
    """Keep what tests write in memory where there is room: a fifth less work for the processors.

    Each Postgres makes a thousand files, and each topic hundreds. Not in a container's 64 MB, and not where nothing may
    be executed.
    """
    if "TMPDIR" in os.environ or not os.access(_MEMORY, os.W_OK) or os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC:
        return
    if min(shutil.disk_usage(_MEMORY).free, free_memory_gb() * 1e9) > _ROOM_BYTES:
        os.environ["TMPDIR"] = tempfile.tempdir = str(_MEMORY)


def pytest_report_header() -> str | None:
    """Say which Postgres it is, unless it is the wheel's."""
    return f"Postgres: {EmbeddedPostgres.programs}" if EmbeddedPostgres.programs else None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a person choose the broker."""
    parser.addoption("--broker", choices=["embedded", "kafka"], default="embedded", help="what speaks Kafka")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the tests that need more of the machine to who names their folder."""
    if collection_path not in _ONLY_WHEN_NAMED:
        return None
    named = any(Path(arg.split("::")[0]).resolve().is_relative_to(collection_path) for arg in config.args)
    return None if named else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the long ones, so that at the end no processor waits for the last of them."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session", autouse=True)
def _broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run Apache Kafka for the session where it is asked for."""
    if request.config.getoption("--broker") == "kafka":
        yield from brokers.run_kafka(tmp_path_factory.mktemp("kafka"))
    else:
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseDsns:
    """One migrated database, as each role meets it."""

    admin: str
    gate: str
    ops: str


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """Run one Postgres for the session, with a migrated template database and logins for the gate and for people."""
    server = EmbeddedPostgres(durable=False, autovacuum=False)
    asyncio.run(_start(server))
    try:
        yield server
    finally:
        asyncio.run(server.__aexit__(None, None, None))


@asynccontextmanager
async def lend_copy(postgres: EmbeddedPostgres, template: str) -> AsyncIterator[DatabaseDsns]:
    """Lend a copy of a migrated database."""
    name = f"test_{uuid4().hex}"
    await postgres.create_database(name, template=template)
    yield DatabaseDsns(
        admin=postgres.dsn(name),
        gate=postgres.dsn(name, "ct_gate", PASSWORD),
        ops=postgres.dsn(name, "ct_ops", PASSWORD),
    )
    await postgres.drop_database(name)


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[DatabaseDsns]:
    """Lend a database of one's own: migrated, with an empty spine."""
    async with lend_copy(postgres, TEMPLATE) as dsns:
        yield dsns


@pytest.fixture
def database_dsn(database: DatabaseDsns) -> str:
    """Return the administrator's DSN of `database`."""
    return database.admin


async def _start(server: EmbeddedPostgres) -> None:
    await server.__aenter__()
    try:
        template = await server.create_database(TEMPLATE)
        connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(template)
        try:
            await connection.execute(UPSTREAM)
        finally:
            await connection.close()
        await migrate(template)
        connection = await asyncpg.connect(server.admin_dsn)
        try:
            for role in ("ct_gate", "ct_ops"):
                await connection.execute(f"ALTER ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
        finally:
            await connection.close()
    except BaseException:
        await server.__aexit__(None, None, None)
        raise
