"""Through a PgBouncer in session mode everything works; one in another mode is refused in a sentence."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT
from typing import TYPE_CHECKING

import pytest

from ct_stream.ops import reports
from ct_stream.ops.doctor import examine
from ct_stream.settings import Settings, SettingsError
from ct_stream.store.connecting import UnusablePooler
from ct_stream.store.database import Database
from ct_stream.store.outage import UnfitDatabase
from tests.faults.harness import Stack
from tests.mta.pgbouncer import pgbouncer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import DatabaseDsns

SENTENCE = "leads to a pooler in transaction mode"


async def test_the_gate_decides_through_a_pooler_in_session_mode(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        dsn = stack.env["CT_POSTGRES_DSN"]
        with pgbouncer("session", [dsn]) as through:
            worker = stack.start_worker(CT_POSTGRES_DSN=through[dsn])
            ids = await stack.mint([f"info-{n}.example" for n in range(100)])
            await stack.publish(ids)
            assert await stack.wait_decided(100, 60) == 100, stack.worker_log()[-3000:]
            assert stack.end_worker(worker) == 0


@pytest.mark.parametrize("mode", ["transaction", "statement"])
@pytest.mark.parametrize("more", [{}, {"server_round_robin": "1"}], ids=["newest first", "round robin"])
async def test_another_mode_is_refused_at_each_try(database: DatabaseDsns, mode: str, more: dict[str, str]) -> None:
    with pgbouncer(mode, [database.gate, database.ops], **more) as through:
        for _ in range(5):  # others use the pool meanwhile, or do not
            with pytest.raises(UnusablePooler, match=SENTENCE):
                await Database(through[database.gate]).open()
            with pytest.raises(SettingsError, match=f"CT_POSTGRES_OPS_DSN {SENTENCE}"):
                await reports.guardrails(Settings(postgres_ops_dsn=through[database.ops]))


async def test_a_worker_and_the_doctor_say_so(database: DatabaseDsns) -> None:
    with pgbouncer("transaction", [database.gate]) as through:
        env = {
            "CT_POSTGRES_DSN": through[database.gate],
            "CT_KAFKA_BOOTSTRAP": "127.0.0.1:1",
            "CT_SMTP_HELO": "probe.example.com",
            "CT_SMTP_MAIL_FROM": "probe@example.com",
            "CT_WEB_PORT": "0",
            "CT_DNS_SERVERS": "127.0.0.1:1",
        }
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ct_stream", "worker", env=env, stdout=PIPE, stderr=STDOUT
        )
        async with asyncio.timeout(30):
            said = (await worker.communicate())[0].decode()
        assert worker.returncode == 78, said
        assert f"CT_POSTGRES_DSN {SENTENCE}" in said
        [check] = [check for check in await examine(env) if SENTENCE in check.detail]
        assert check.ok is False
        assert "pool_mode=session" in check.action


async def test_a_pooler_in_session_mode_serves_readers(database: DatabaseDsns) -> None:
    with pgbouncer("session", [database.gate, database.ops]) as through:
        settings = Settings(postgres_ops_dsn=through[database.ops])
        for _ in range(5):
            assert await reports.guardrails(settings) == []
        gate = Database(through[database.gate])
        await gate.open()
        async with gate.connection() as connection:
            assert await connection.fetchval("SHOW synchronous_commit") == "on"
        await gate.close()


async def test_a_pooler_with_too_few_sessions_is_told(database: DatabaseDsns) -> None:
    """One of the worker's pools would hold them all, and the other one wait for ever."""
    with pgbouncer("session", [database.gate], default_pool_size="3") as through:
        many = Database(through[database.gate])
        with pytest.raises(UnfitDatabase, match=r"only [23] of 8 connections .*lower CT_POSTGRES_CONNECTIONS"):
            await many.open()
        await many.close()
        few = Database(through[database.gate], pool_size=3)
        await few.open()
        await few.close()
