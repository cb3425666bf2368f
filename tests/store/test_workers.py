"""Workers on record: who runs, and two with different limits or patterns do not run side by side unnoticed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ct_stream.ops.troubles import ServiceTrouble
from ct_stream.ops.workers import accept_toolbox, workers
from ct_stream.probes.toolbox import Toolbox, load_toolbox
from ct_stream.settings import Settings
from ct_stream.store.database import Database
from ct_stream.store.worker_record import ALIVE_S, Beat, WorkerRecord
from tests.store.parts import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import DatabaseDsns

PLAIN = load_toolbox()
FASTER = replace(PLAIN, smtp=replace(PLAIN.smtp, per_day=20_000))
FEWER = replace(PLAIN, patterns=PLAIN.patterns[:-1])


@asynccontextmanager
async def recording(database: DatabaseDsns) -> AsyncIterator[Callable[[str, Toolbox], WorkerRecord]]:
    async with opened(database.gate) as db:
        yield lambda name, toolbox: WorkerRecord(
            db, worker=name, machine="m", egress="default", version="1", toolbox=toolbox.values()
        )


async def test_a_run_says_what_it_does_and_when_it_ends(database: DatabaseDsns) -> None:
    settings = Settings(postgres_ops_dsn=database.ops)
    assert await workers(settings) == []
    async with recording(database) as record:
        one, two = record("one", PLAIN), record("two", PLAIN)
        assert await one.begin() is None
        assert await two.begin() is None
        notes = {"smtp6": "no way over IPv6"}
        await one.beat(Beat(troubles={}, partitions=[0, 3], running=7, notes=notes, address="203.0.113.25"))
        await two.end()
    first, second = await workers(settings)
    assert (first["worker"], first["troubles"], first["partitions"], first["running"]) == ("one", {}, [0, 3], 7)
    assert (first["notes"], first["address"]) == (notes, "203.0.113.25")
    assert (second["notes"], second["address"]) == ({}, None)
    assert first["is_running"]
    assert first["toolbox"]["smtp"]["per_day"] == PLAIN.smtp.per_day
    assert (second["worker"], second["is_running"]) == ("two", False)
    assert second["ended_at"] is not None


@pytest.mark.parametrize(
    ("toolbox", "change"), [(FASTER, "smtp.per_day: 20000, not 10000"), (FEWER, "patterns.8.name")]
)
async def test_the_second_of_two_with_different_values_is_refused_until_a_person_accepts_them(
    database: DatabaseDsns, toolbox: Toolbox, change: str
) -> None:
    settings = Settings(postgres_ops_dsn=database.ops)
    async with recording(database) as record:
        assert await record("one", PLAIN).begin() is None
        refusal = await record("two", toolbox).begin()
        assert refusal is not None
        assert change in refusal
        assert "differs from that of one, seen 0 s ago" in refusal
        assert await record("three", PLAIN).begin() is None, "the refused one is in nobody's way"

        assert any(change in line for line in await accept_toolbox(settings, toolbox, "a higher cap"))
        assert await record("four", toolbox).begin() is None
        assert await record("five", PLAIN).begin() is not None, "what was accepted is what new workers have"
    admin = await asyncpg.connect(database.admin)
    logged = await admin.fetchrow("SELECT reason, by_role, toolbox->'smtp'->>'per_day' FROM outreach.ct_toolboxes")
    await admin.close()
    assert tuple(logged or ()) == ("a higher cap", "ct_ops", str(toolbox.smtp.per_day))


async def test_a_run_that_ended_or_vanished_is_in_nobodys_way(database: DatabaseDsns) -> None:
    async with recording(database) as record:
        gone, ended = record("gone", PLAIN), record("ended", PLAIN)
        await gone.begin()
        await ended.begin()
        await ended.end()
        admin = await asyncpg.connect(database.admin)
        await admin.execute("SET session_replication_role = replica")  # otherwise the server's clock is written
        await admin.execute(
            "UPDATE outreach.ct_workers SET seen_at = seen_at - interval '31 seconds' WHERE worker = 'gone'"
        )
        assert await record("new", FASTER).begin() is None
        await admin.execute(
            "UPDATE outreach.ct_workers SET seen_at = seen_at - interval '8 days' WHERE worker = 'gone'"
        )
        await admin.execute("SELECT outreach.ct_tidy(1000, '168 hours', '24 hours')")
        assert await admin.fetchval("SELECT count(*) FROM outreach.ct_workers WHERE worker = 'gone'") == 0
        await admin.close()


async def test_only_people_accept_a_toolbox(database: DatabaseDsns) -> None:
    with pytest.raises(ServiceTrouble, match="permission denied"):
        await accept_toolbox(Settings(postgres_ops_dsn=database.gate), FASTER, "by itself")


async def test_an_outage_at_the_first_beat_lets_no_other_limits_in(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch, outages = Database.fetch, [ConnectionError("away")]

    async def away_once(self: Database, name: str, *args: object) -> object:
        if name == "worker_beat" and outages:
            raise outages.pop()
        return await fetch(self, name, *args)

    async with recording(database) as record:
        assert await record("one", PLAIN).begin() is None
        monkeypatch.setattr(Database, "fetch", away_once)
        assert await record("two", FASTER).begin() is not None
        assert outages == []


async def test_sql_counts_a_worker_as_running_for_as_long_as_python_does(database: DatabaseDsns) -> None:
    async with opened(database.gate) as db, db.connection() as connection:
        assert await connection.fetchval("SELECT outreach.ct_alive_s()") == ALIVE_S
