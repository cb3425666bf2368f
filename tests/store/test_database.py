"""Statements over a pool: whatever becomes of one, the next one finds a connection."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import asyncpg
import pytest

from ct_stream.ops.doctor import examine
from ct_stream.store.connecting import WrongLogin, connect
from ct_stream.store.database import Database
from ct_stream.store.guardrails import Guardrails
from ct_stream.store.outage import OUTAGE, UnfitDatabase
from tests.conftest import PASSWORD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.conftest import DatabaseDsns


@pytest.fixture
async def narrow(database: DatabaseDsns) -> AsyncIterator[Database]:
    """A pool of two connections: one that is not given back is missed soon."""
    db = Database(database.gate, pool_size=2)
    await db.open()
    yield db
    await db.close()


async def sleeping(db: Database, seconds: float) -> None:
    async with db.connection() as connection:
        await connection.fetch("SELECT pg_sleep($1)", seconds)


async def test_statements_that_are_given_up_give_their_connections_back(narrow: Database) -> None:
    for _ in range(3):
        tasks = [asyncio.create_task(sleeping(narrow, 60)) for _ in range(5)]  # two at work, three wait for a place
        await asyncio.sleep(0.2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    async with asyncio.timeout(5):
        await asyncio.gather(*(narrow.fetch("server") for _ in range(10)))


async def test_a_connection_that_breaks_under_its_statement_is_replaced(
    narrow: Database, database: DatabaseDsns
) -> None:
    task = asyncio.create_task(sleeping(narrow, 60))
    admin = await asyncpg.connect(database.admin)
    ended = 0
    while not ended:
        await asyncio.sleep(0.05)
        ended = await admin.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
            " AND query LIKE 'SELECT pg_sleep(%'"
        )
    await admin.close()
    with pytest.raises(OUTAGE):
        await task
    async with asyncio.timeout(5):
        await asyncio.gather(*(narrow.fetch("server") for _ in range(10)))


async def test_an_age_is_no_more_than_what_has_passed_here(database: DatabaseDsns) -> None:
    db = Database(database.gate)
    await db.open()
    begin = time.monotonic()
    before = db.now()
    assert db.age_s(before - timedelta(hours=1)) <= time.monotonic() - begin + 60.0, "this process has just begun"
    db._watched_since -= 7200
    assert 3600 <= db.age_s(before - timedelta(hours=1)) < 3700
    db.saw_clock(db.now() + timedelta(hours=1))  # set ahead
    assert db.age_s(before) < 60.0, "not an hour"
    assert 3600 <= db.age_s(before - timedelta(hours=1)) < 3700
    assert db.age_s(db.now()) < 1.0
    db.saw_clock(db.now() - timedelta(hours=1))  # and back
    assert db.age_s(db.now() - timedelta(seconds=30)) < 31.0, "never more than it is"
    await db.close()


@pytest.mark.parametrize("ahead", [timedelta(hours=1), timedelta(days=365)])
def test_a_clock_that_was_put_right_again_ages_what_comes_after_it(ahead: timedelta) -> None:
    db = Database("")
    db._watched_since = time.monotonic() - 86_400  # the worker has run for a day
    noon = datetime(2026, 1, 7, 12, tzinfo=UTC)
    db.saw_clock(noon)
    db.saw_clock(noon + ahead)
    in_the_future = db.now()
    db.saw_clock(noon + timedelta(seconds=5))
    db._clock_base = (noon + timedelta(seconds=5), time.monotonic() - 705)  # 705 s later
    assert 699 < db.age_s(noon + timedelta(seconds=10)) < 702, "a refusal of after all that"
    wait = Guardrails(db, 600.0).settling(db.age_s(in_the_future)).refusal("its own server refuses us")
    assert wait is not None
    assert wait.after_s == 600.0, "not a year"


def test_of_a_jump_that_is_taken_back_in_part_the_rest_counts() -> None:
    db = Database("")
    db._watched_since = time.monotonic() - 86_400
    noon = datetime(2026, 1, 7, 12, tzinfo=UTC)
    db.saw_clock(noon)
    db.saw_clock(noon + timedelta(hours=1))
    db.saw_clock(noon + timedelta(minutes=30))
    assert db.age_s(noon - timedelta(seconds=10)) < 12
    assert db.age_s(db.now() - timedelta(seconds=1)) < 3


async def test_close_waits_for_connections_that_are_on_their_way_back(database: DatabaseDsns) -> None:
    db = Database(database.gate, pool_size=2)
    await db.open()
    await asyncio.gather(*(db.fetch("server") for _ in range(5)))
    async with asyncio.timeout(5):
        await db.close()
    with pytest.raises(OUTAGE):
        await db.fetch("server")


async def changed(database: DatabaseDsns, change: str) -> None:
    admin = await asyncpg.connect(database.admin)
    await admin.execute(f"ALTER ROLE ct_gate {change}")
    await admin.close()


async def test_a_login_with_fewer_connections_than_a_worker_opens_is_refused_in_a_sentence(
    database: DatabaseDsns,
) -> None:
    await changed(database, "CONNECTION LIMIT 3")
    try:
        with pytest.raises(
            UnfitDatabase, match="the login ct_gate may have 3 connections, and this worker opens up to 8"
        ):
            await Database(database.gate).open()
        few = Database(database.gate, pool_size=3)
        await few.open()
        await few.close()
    finally:
        await changed(database, "CONNECTION LIMIT -1")


async def test_what_a_dba_has_set_for_a_login_changes_no_day_and_no_rule_of_locks(database: DatabaseDsns) -> None:
    """A day of Europe/Berlin has 23 or 25 hours twice a year; limits are counted in what others have committed."""
    theirs = (
        "timezone = 'Europe/Berlin'", "default_transaction_isolation = 'serializable'",
        "standard_conforming_strings = off",
    )  # fmt: skip
    for setting in theirs:
        await changed(database, f"SET {setting}")
    try:
        db = Database(database.gate)
        await db.open()
        plain = await connect(database.gate, application_name="test")
        async with db.connection() as pooled:
            for connection in (pooled, plain):
                day = "'2026-10-26 00:00+00'::timestamptz - $1::interval = '2026-10-25 00:00+00'"
                assert await connection.fetchval(f"SELECT {day}", timedelta(hours=24))
                assert await connection.fetchval("SHOW transaction_isolation") == "read committed"
                assert await connection.fetchval("SHOW standard_conforming_strings") == "on"
        await plain.close()
        await db.close()
    finally:
        for setting in theirs:
            await changed(database, f"RESET {setting.partition(' ')[0]}")


@pytest.mark.parametrize(("setting", "kept"), [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")])
async def test_outcomes_are_durable_whatever_the_login_has(database: DatabaseDsns, setting: str, kept: str) -> None:
    await changed(database, f"SET synchronous_commit = {setting}")
    try:
        db = Database(database.gate)
        await db.open()
        async with db.connection() as connection:
            assert await connection.fetchval("SHOW synchronous_commit") == kept
        await db.close()
    finally:
        await changed(database, "RESET synchronous_commit")


async def test_servers_that_are_not_what_the_dsn_asks_for_are_waited_for(database: DatabaseDsns) -> None:
    """After a failover only standbys may answer for a while."""
    db = Database(f"{database.gate}&target_session_attrs=standby")
    waiting = asyncio.create_task(db.retrying("record", ConnectionRefusedError("refused")))
    await asyncio.sleep(1.5)
    assert "no server that is named there is what target_session_attrs asks for" in (db.trouble or "")
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await db.close()


async def test_a_login_for_people_is_not_the_gates(database: DatabaseDsns) -> None:
    with pytest.raises(WrongLogin) as refused:
        await Database(database.ops).open()
    assert str(refused.value) == "has the login ct_ops, which is for people (ct_ops); name the gate's login, ct_gate"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            "LOGIN",
            "has the login {}, which does not have the role ct_gate; name the gate's login, or GRANT",
        ),
        ("LOGIN NOINHERIT IN ROLE ct_gate", "has the login {}, which does not inherit the rights of its role ct_gate"),
    ],
)
async def test_a_login_without_the_gates_rights_hears_what_it_lacks(
    database: DatabaseDsns, made: str, said: str
) -> None:
    login = f"login_{uuid4().hex}"
    admin = await asyncpg.connect(database.admin)
    await admin.execute(f"CREATE ROLE {login} {made} PASSWORD '{PASSWORD}'")
    try:
        with pytest.raises(WrongLogin) as refused:
            await Database(database.gate.replace("//ct_gate:", f"//{login}:")).open()
        assert str(refused.value).startswith(said.format(login))
    finally:
        await admin.execute(f"DROP ROLE {login}")
        await admin.close()


async def test_a_login_that_is_read_only_hears_which_setting_it_is(database: DatabaseDsns) -> None:
    await changed(database, "SET default_transaction_read_only = on")
    try:
        with pytest.raises(UnfitDatabase, match=r"is read-only: .*ALTER ROLE ct_gate RESET default_trans"):
            await Database(database.gate).open()
    finally:
        await changed(database, "RESET default_transaction_read_only")


async def test_a_login_whose_sessions_run_no_triggers_is_refused(database: DatabaseDsns) -> None:
    """A superuser has it set for a bulk load, and forgets it."""
    await changed(database, "SET session_replication_role = replica")
    try:
        with pytest.raises(
            UnfitDatabase, match=r"neither your own triggers run.*ALTER ROLE ct_gate RESET session_replication"
        ):
            await Database(database.gate).open()
        (check,) = [each for each in await examine({"CT_POSTGRES_DSN": database.gate}) if each.name == "triggers"]
        assert not check.ok
        assert check.action == "ALTER ROLE ct_gate RESET session_replication_role, or the same for the database"
    finally:
        await changed(database, "RESET session_replication_role")


async def test_a_statement_that_keeps_failing_is_told_while_others_work(
    database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The server answers, and yet nothing can be written: that is no "Postgres answers again"."""
    monkeypatch.setattr("ct_stream.store.database._FAILING_S", 0.5)
    caplog.set_level("INFO")
    admin = await asyncpg.connect(database.admin)
    db = Database(database.gate)
    await db.open()
    await admin.execute("REVOKE SELECT ON outreach.ct_guardrails FROM ct_gate")
    failing = asyncio.create_task(db.persist("guardrails"))
    told = []
    for _ in range(20):
        await asyncio.sleep(0.1)
        await db.fetch("server")
        told.append(db.trouble)
    assert all("permission denied for table ct_guardrails" in (one or "") for one in told[-5:]), told
    assert [one.message for one in caplog.records].count("Postgres answers again") <= 1
    await admin.execute("GRANT SELECT ON outreach.ct_guardrails TO ct_gate")
    async with asyncio.timeout(10):
        await failing
    assert db.trouble is None
    await db.close()
    await admin.close()


async def test_a_time_is_what_postgres_has_or_the_nearest_that_python_can_show(database: DatabaseDsns) -> None:
    connection = await connect(database.gate, application_name="test")
    for text in (
        "2026-11-30 09:00:00.123456+00",
        "1999-12-31 23:59:59+00",
        "infinity",
        "-infinity",
    ):
        moment = await connection.fetchval(f"SELECT timestamptz '{text}'")
        assert moment.tzinfo is not None
        assert await connection.fetchval(f"SELECT $1::timestamptz = timestamptz '{text}'", moment) is True
    assert (await connection.fetchval("SELECT timestamptz '100000-01-01'")).year == 9999
    assert (await connection.fetchval("SELECT timestamptz '4000-01-01 BC'")).year == 1
    await connection.close()


async def test_whoever_waits_for_the_database_may_be_cancelled(database: DatabaseDsns) -> None:
    """A drain cancels passes; the database must not count as down from then on."""
    db = Database(database.gate)
    await db.open()
    waiting = [asyncio.create_task(db.retrying(what, ConnectionResetError("reset"))) for what in ("one", "two")]
    await asyncio.sleep(0.05)
    waiting[0].cancel()
    await asyncio.sleep(0)
    states = [db.is_up]
    waiting[1].cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    states.append(db.is_up)
    assert states == [False, True], "as long as another one waits, that one finds out"
    assert db.trouble is None
    await db.close()


async def test_no_free_connection_is_no_slow_statement(narrow: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ct_stream.store.database._ACQUIRE_S", 0.2)
    holder = asyncio.create_task(sleeping(narrow, 5))
    await asyncio.sleep(0.1)
    with pytest.raises(ConnectionError, match="no connection became free"):
        await narrow.fetch("server")
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)


async def test_a_closed_database_opens_no_new_connections(database: DatabaseDsns) -> None:
    db = Database(database.gate)
    await db.open()
    await db.close()
    with pytest.raises(ConnectionError):
        await db.open()
