"""Nothing is sent before everything was read, and what is sent is what the gate reads."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path  # noqa: TC003 - pytest reads the annotation
from uuid import uuid4

import pytest

from ct_stream.gate.events import SpineCreated, read_spine_created
from ct_stream.local.broker import EmbeddedBroker
from ct_stream.ops.publish import publish, read_events
from ct_stream.ops.replay import lag, replay
from ct_stream.ops.troubles import NotSupported, ServiceTrouble, WrongInput
from ct_stream.settings import Settings
from ct_stream.stream.topology import create_topics
from tests.brokers import lend_broker

ID = "4B0C2F5E-6A0B-4F57-9D4E-0F6F3B0C7A11"


def test_publish_uses_the_id_in_its_canonical_spelling_as_the_key() -> None:
    (event,) = read_events([f'{{"outreach_id": "{ID}", "correlation_id": "c-1"}}\n'], ids=False)
    assert event.key == ID.lower().encode()
    read = read_spine_created(event.key, event.value)
    assert isinstance(read, SpineCreated)
    assert (str(read.outreach_id), read.correlation_id, read.key_missing) == (ID.lower(), "c-1", False)


def test_publish_reads_bare_ids_and_skips_empty_lines() -> None:
    events = read_events([f"{ID}\n", "\n", f"  {uuid4()}  "], ids=True)
    assert len(events) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        pytest.param("{", "line 2: not-json", id="not JSON"),
        pytest.param("[]", "line 2: not-an-object", id="a list"),
        pytest.param("{}", "line 2: schema: ", id="no id"),
        pytest.param('{"outreach_id": "acme.example"}', "line 2: schema: outreach_id", id="no UUID"),
        pytest.param(f'{{"outreach_id": "{ID}", "schema_version": 2}}', "line 2: schema-version", id="newer"),
        pytest.param("\udcff", "line 2: not-json", id="not UTF-8"),
    ],
)
def test_publish_names_a_wrong_line_and_sends_nothing(line: str, says: str) -> None:
    with pytest.raises(WrongInput) as caught:
        read_events([f'{{"outreach_id": "{ID}"}}', line], ids=False)
    first, last = caught.value.problems
    assert first.startswith(says)
    assert last.startswith("nothing was sent; correct these lines")


def test_publish_shows_some_wrong_lines_and_counts_the_rest() -> None:
    with pytest.raises(WrongInput, match="and 15 more wrong lines"):
        read_events(["x"] * 25, ids=True)


async def test_replay_reads_back_what_publish_sent(tmp_path: Path) -> None:
    async with lend_broker(tmp_path) as bootstrap:
        settings = Settings(kafka_bootstrap=bootstrap)
        with pytest.raises(ServiceTrouble, match=r"topic spine\.created is missing; create it with `ct-stream topics`"):
            await publish(settings, read_events([ID], ids=True))
        await create_topics(settings)
        ids = [str(uuid4()) for _ in range(1200)]
        assert await publish(settings, read_events(ids, ids=True)) == 1200
        records = [record async for record in replay(settings)]
        assert sorted(str(record["outreach_id"]) for record in records) == sorted(ids)
        assert "outcome" not in records[0]
        some = [record async for record in replay(settings, partition=records[0]["partition"], from_offset=2, limit=3)]
        assert [record["offset"] for record in some] == [2, 3, 4]
        assert [record async for record in replay(settings, from_offset=5000)] == [], "behind all that is there"
        with pytest.raises(WrongInput, match=r"--partition 99: spine\.created has partitions 0 to 11"):
            await anext(replay(settings, partition=99))


async def test_lag_and_replay_by_time_say_that_the_embedded_broker_does_not_support_them(tmp_path: Path) -> None:
    """The embedded one; what Apache Kafka says is in tests/kafka."""
    async with EmbeddedBroker(tmp_path) as broker:
        settings = Settings(kafka_bootstrap=broker.bootstrap)
        await create_topics(settings)
        with pytest.raises(NotSupported, match="not supported by this broker"):
            await anext(replay(settings, from_time=datetime.now(UTC)))
        with pytest.raises(NotSupported, match="not supported by this broker"):
            await lag(settings)


async def test_publish_says_in_one_line_that_no_broker_answers() -> None:
    with pytest.raises(ServiceTrouble, match=r"Kafka at 127\.0\.0\.1:1 does not answer"):
        await publish(Settings(kafka_bootstrap="127.0.0.1:1"), read_events([ID], ids=True))
