"""Only companies that the gate never saw are sent again, and never one that is decided."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path  # noqa: TC003 - pytest reads the annotation
from typing import TYPE_CHECKING

import pytest

from ct_stream.ops import undecided as sending_again
from ct_stream.ops.publish import read_events
from ct_stream.ops.replay import replay
from ct_stream.ops.troubles import ServiceTrouble
from ct_stream.ops.undecided import publish_undecided
from ct_stream.settings import Settings
from ct_stream.stream.topology import create_topics
from tests.brokers import lend_broker
from tests.ops.planted import Place, company, old_wait, undecided
from tests.ops.rows import execute

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from ct_stream.ops.publish import Sender
    from ct_stream.ops.reader import Reader
    from tests.conftest import DatabaseDsns

HOUR = timedelta(hours=1)


async def sent(settings: Settings) -> list[UUID]:
    return [record["outreach_id"] async for record in replay(Settings(kafka_bootstrap=settings.kafka_bootstrap))]


async def test_publish_undecided_sends_only_old_companies_without_an_outcome_or_a_wait(
    tmp_path: Path, database: DatabaseDsns
) -> None:
    lost = [undecided(has_event=False) for _ in range(1100)]
    others = [
        undecided(has_event=False, spine_at=datetime.now(UTC)),
        undecided(has_event=False, wait=old_wait()),
        undecided(has_event=False, wait=old_wait(state="stuck", reason="our_bug")),
        company(has_event=False, records=()),
        company("FAIL", has_event=False, records=()),
        company("FAIL", source="adopted", has_event=False),
    ]
    async with lend_broker(tmp_path) as bootstrap:
        settings = Settings(kafka_bootstrap=bootstrap, postgres_ops_dsn=database.ops)
        await create_topics(settings)
        await Place(database.admin, bootstrap).plant([*lost, *others])
        assert await publish_undecided(settings, older_than=HOUR, limit=None, dry_run=True) == 1100
        assert await sent(settings) == []
        assert await publish_undecided(settings, older_than=HOUR, limit=7, dry_run=False) == 7
        assert len(await sent(settings)) == 7
        assert await publish_undecided(settings, older_than=HOUR, limit=None, dry_run=False) == 1100
        assert set(await sent(settings)) == {one.id for one in lost}
        # Of any age: the new one too.
        assert await publish_undecided(settings, older_than=None, limit=None, dry_run=True) == 1101


async def test_a_company_that_is_decided_during_publish_undecided_is_not_sent(
    tmp_path: Path, database: DatabaseDsns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the reading of the spine and the sending of a batch the gate decides one of the companies."""
    companies = [undecided(has_event=False) for _ in range(3)]
    decided = companies[1].id
    first_send = sending_again._send

    async def send(ids: Sequence[UUID], now: Reader, sender: Sender | None) -> int:
        await execute(
            database.admin,
            "INSERT INTO outreach.ct_outcomes (outreach_id, outcome, decided_at) VALUES ($1, 'PASS', now())",
            decided,
        )
        return await first_send(ids, now, sender)

    monkeypatch.setattr(sending_again, "_send", send)
    async with lend_broker(tmp_path) as bootstrap:
        settings = Settings(kafka_bootstrap=bootstrap, postgres_ops_dsn=database.ops)
        await create_topics(settings)
        await Place(database.admin, bootstrap).plant(companies)
        assert await publish_undecided(settings, older_than=HOUR, limit=None, dry_run=False) == 2
        assert set(await sent(settings)) == {one.id for one in companies} - {decided}


async def test_publish_undecided_sends_the_same_event_as_publish() -> None:
    outreach_id = undecided().id
    assert [sending_again._event(outreach_id)] == read_events([str(outreach_id)], ids=True)


async def test_publish_undecided_needs_all_where_the_spine_has_no_created_at(database: DatabaseDsns) -> None:
    await execute(database.admin, "ALTER TABLE outreach.outreach DROP COLUMN created_at")
    await execute(database.admin, "INSERT INTO outreach.outreach (outreach_id) VALUES (gen_random_uuid())")
    settings = Settings(postgres_ops_dsn=database.ops)
    with pytest.raises(ServiceTrouble, match=r"no timestamp column created_at; .* give --all instead of --older-than"):
        await publish_undecided(settings, older_than=HOUR, limit=None, dry_run=True)
    assert await publish_undecided(settings, older_than=None, limit=None, dry_run=True) == 1


async def test_a_login_without_a_grant_on_the_spine_is_told_to_run_migrate(database: DatabaseDsns) -> None:
    await execute(database.admin, "REVOKE ALL ON outreach.outreach FROM ct_ops")
    await execute(database.admin, "GRANT SELECT (outreach_id, domain) ON outreach.outreach TO ct_ops")
    with pytest.raises(ServiceTrouble, match="run `ct-stream migrate`"):
        await publish_undecided(Settings(postgres_ops_dsn=database.ops), older_than=HOUR, limit=None, dry_run=True)
