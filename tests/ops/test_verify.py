"""The outside checker finds each broken promise, and calls nothing broken that is only in flight."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path  # noqa: TC003 - pytest reads the annotation
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest

from ct_stream.ops.troubles import ServiceTrouble
from ct_stream.ops.verify import Limits, verify
from ct_stream.ops.verify.kinds import MEANINGS, Kind
from ct_stream.ops.verify.spill import digest_of
from ct_stream.settings import Settings
from ct_stream.stream.position import committed_offsets
from ct_stream.stream.topology import create_topics
from tests.brokers import kafka, keep_producers_times, lend_broker
from tests.ops.planted import Place, many, plant_violations, undecided, well
from tests.ops.rows import execute

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from ct_stream.ops.verify import Report
    from tests.conftest import DatabaseDsns

SOON = Limits(grace=timedelta(0), examples=10)


@asynccontextmanager
async def a_place(folder: Path, database: DatabaseDsns) -> AsyncIterator[tuple[Place, Settings]]:
    async with lend_broker(folder) as bootstrap:
        settings = Settings(kafka_bootstrap=bootstrap, postgres_ops_dsn=database.ops)
        await create_topics(settings)
        await keep_producers_times(bootstrap, "spine.created")  # the events are planted with the times of older ones
        yield Place(database.admin, bootstrap), settings


async def compare(settings: Settings, limits: Limits = SOON) -> Report:
    return await verify(settings, limits, lambda _what, _count: None)


def ids(report: Report) -> dict[str, set[str | None]]:
    return {
        kind.value: {example.told().get("outreach_id") for example in found.examples}
        for kind, found in report.found.items()
    }


async def test_verify_finds_each_kind_of_violation_among_thousands_that_agree(
    tmp_path: Path, database: DatabaseDsns
) -> None:
    async with a_place(tmp_path, database) as (place, settings):
        await place.plant(many(3000))
        await place.plant(well())
        planted = await plant_violations(place)
        report = await compare(settings)
    assert ids(report) == {
        kind: {None if one is None else str(one) for one in companies} for kind, companies in planted.items()
    }
    assert {kind.value: found.count for kind, found in report.found.items()} == {
        kind: len(companies) for kind, companies in planted.items()
    }
    assert {kind.value for kind in report.notes} == {"stuck", "waiting_long", "overdue", "not_committed"}
    assert report.checked["companies"] > 3000
    assert report.checked["spine.created"] > 3000
    lost = report.found[Kind.SPINE_WITHOUT_OUTCOME]
    assert "ct-stream publish --undecided --older-than 1h" in MEANINGS[Kind.SPINE_WITHOUT_OUTCOME].todo
    assert lost.examples[0].told()["outreach_id"] == str(planted["spine_without_outcome"][0])


async def test_verify_finds_nothing_where_all_agrees_and_changes_nothing(
    tmp_path: Path, database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_place(tmp_path, database) as (place, settings):
        await place.plant(many(500))
        await place.plant(well())
        await place.commit()
        before = await state(database.admin), await committed_offsets(settings)
        (tmp_path / "spill").mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spill"))
        report = await compare(settings)
        assert report.found == {}
        assert (await state(database.admin), await committed_offsets(settings)) == before
        assert list((tmp_path / "spill").iterdir()) == []
    assert any("records removed unread: not supported by this broker" in what for what in report.not_told) != bool(
        kafka()
    )


async def test_a_difference_that_is_gone_at_the_second_look_is_no_violation(
    tmp_path: Path, database: DatabaseDsns
) -> None:
    """A spine row without an outcome at the first look gets one before the second."""
    async with a_place(tmp_path, database) as (place, settings):
        await place.plant(many(20))
        outreach_id = uuid4()
        old = "INSERT INTO outreach.outreach (outreach_id, created_at) VALUES ($1, now() - interval '2 hours')"
        await execute(database.admin, old, outreach_id)
        looked = asyncio.Event()

        def on_progress(what: str, _count: int) -> None:
            if what.startswith("grace"):
                looked.set()

        run = asyncio.create_task(verify(settings, Limits(grace=timedelta(seconds=2)), on_progress))
        await looked.wait()
        await execute(
            database.admin,
            "INSERT INTO outreach.ct_passes (outreach_id, state, reason, detail, not_before) "
            "VALUES ($1, 'waiting', 'daily_cap', 'why', now() + interval '1 hour')",
            outreach_id,
        )
        assert (await run).found == {}


async def test_verify_says_that_it_cannot_know_the_age_of_spine_rows_without_created_at(
    tmp_path: Path, database: DatabaseDsns
) -> None:
    await execute(database.admin, "ALTER TABLE outreach.outreach DROP COLUMN created_at")
    await execute(database.admin, "INSERT INTO outreach.outreach (outreach_id) VALUES ($1)", uuid4())
    async with a_place(tmp_path, database) as (_, settings):
        report = await compare(settings)
    assert not report.violations
    assert report.found[Kind.SPINE_OF_UNKNOWN_AGE].count == 1
    assert any("has no timestamp column created_at" in what for what in report.not_told)


async def test_verify_says_in_one_line_what_is_missing_or_does_not_answer(
    tmp_path: Path, database: DatabaseDsns
) -> None:
    async with lend_broker(tmp_path) as bootstrap:
        with pytest.raises(ServiceTrouble, match=r"topic \S+ is missing; create it with `ct-stream topics`"):
            await compare(Settings(kafka_bootstrap=bootstrap, postgres_ops_dsn=database.ops))
    with pytest.raises(ServiceTrouble, match="does not answer"):
        await compare(Settings(kafka_bootstrap="127.0.0.1:1", postgres_ops_dsn=database.ops))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
async def test_verify_leaves_no_files_behind_when_it_is_interrupted(
    tmp_path: Path, database: DatabaseDsns, how: signal.Signals
) -> None:
    async with a_place(tmp_path, database) as (place, settings):
        await place.plant([undecided(has_event=False)])
        spill = tmp_path / "spill"
        spill.mkdir()
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("CT_")},
            "CT_KAFKA_BOOTSTRAP": settings.kafka_bootstrap or "",
            "CT_POSTGRES_OPS_DSN": database.ops,
            "TMPDIR": str(spill),
        }
        program = "import sys; from ct_stream.cli import main; main(sys.argv[1:])"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, "verify", "--grace", "1h"), env=env
        )
        async with asyncio.timeout(30):
            while True:
                if list(spill.iterdir()):
                    break
                await asyncio.sleep(0.05)
        process.send_signal(how)
        async with asyncio.timeout(60):
            assert await process.wait() == 130
        assert list(spill.iterdir()) == []


def test_every_finding_of_verify_says_what_to_do() -> None:
    assert set(MEANINGS) == set(Kind)
    assert all(meaning.todo and meaning.sentence for meaning in MEANINGS.values())


def test_the_digest_of_a_record_depends_on_its_key_its_value_and_each_header() -> None:
    headers = [("a", b"1"), ("b", b"\xff")]
    whole = digest_of(b"k", b"v", headers)
    others = [
        digest_of(b"K", b"v", headers),
        digest_of(b"k", b"V", headers),
        digest_of(b"k", b"v", headers[::-1]),
        digest_of(b"k", b"v", [("a", b"1"), ("b", b"\xfe")]),
        digest_of(b"k", b"v", [("a", b"1"), ("b", None)]),
    ]
    assert len({whole, *others}) == 6


async def state(dsn: str) -> list[Any]:
    """Return a number for the contents of each table of the schema."""
    connection: asyncpg.Connection[Any] = await asyncpg.connect(dsn)
    try:
        tables = await connection.fetch(
            "SELECT c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace "
            "WHERE n.nspname = 'outreach' AND c.relkind = 'r' ORDER BY c.relname"
        )
        return [
            await connection.fetchval(f"SELECT sum(hashtext(t::text)) FROM outreach.{table['relname']} AS t")
            for table in tables
        ]
    finally:
        await connection.close()


async def test_a_confidence_from_before_may_be_a_percentage_or_a_word(tmp_path: Path, database: DatabaseDsns) -> None:
    """All companies are compared in one statement, and one that cannot be read would end it for good."""
    await execute(
        database.admin,
        "ALTER TABLE outreach.company_target ALTER COLUMN confidence_score TYPE text;"
        "INSERT INTO outreach.company_target (outreach_id, execution_status, confidence_score)"
        " SELECT gen_random_uuid(), 'ready', said FROM unnest(ARRAY['high', '85.00', '99999', '']) AS said",
    )
    async with a_place(tmp_path, database) as (_, settings):
        found = (await compare(settings)).found
    assert found  # they have no outcome
