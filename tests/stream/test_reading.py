"""Why Faust ended decides what the worker tells its supervisor: try again, or a person must look."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import (
    CommitFailedError,
    CoordinatorLoadInProgressError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    KafkaTimeoutError,
    NodeNotReadyError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    UnknownMemberIdError,
    UnsupportedCodecError,
    UnsupportedVersionError,
)

from ct_stream.metrics import Health
from ct_stream.stream.membership import Membership
from ct_stream.stream.reading import Reading, is_outage
from ct_stream.stream.topology import UNPREFIXED


@pytest.mark.parametrize(
    "error",
    [
        KafkaConnectionError("Unable to bootstrap"), NodeNotReadyError(), CoordinatorLoadInProgressError(),
        NotLeaderForPartitionError(), RequestTimedOutError(), KafkaTimeoutError(), TimeoutError(),
        ConnectionResetError(), CommitFailedError(), UnknownMemberIdError(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_passes_by_itself_is_an_outage(error: Exception) -> None:
    assert is_outage(error)


@pytest.mark.parametrize(
    "error",
    [
        UnsupportedCodecError("zstd"), UnsupportedVersionError(), TopicAuthorizationFailedError(),
        GroupAuthorizationFailedError(), ValueError("a bug"), RuntimeError("Faust's"), OSError(28, "disk full"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_stays_needs_a_person(error: Exception) -> None:
    assert not is_outage(error)


async def test_a_worker_that_is_told_to_stop_while_faust_starts_does_not_call_itself_ready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    started, health = asyncio.Event(), Health()
    health.set("start", "stopping")

    async def stop() -> None:
        started.set()
        await asyncio.sleep(0.01)

    def fail(_: object) -> None:
        pytest.fail("the worker ends by itself")

    app = SimpleNamespace(
        on_partitions_assigned=SimpleNamespace(connect=lambda *_, **__: None), topic=lambda *_, **__: None,
        agent=lambda *_, **__: lambda _: None, start=started.wait, stop=stop, crashed=False,
    )  # fmt: skip
    parts: Any = SimpleNamespace(
        drain=None, consume=None, join=lambda: None, busy_at=0.0, positions=None, first_records=None, names=UNPREFIXED,
        explain=None,
    )  # fmt: skip
    reading = Reading(
        cast("Any", app), parts, parts, parts, health, fail, membership=Membership(cast("Any", app), parts, health),
        partitions=1,
        on_more_partitions=fail, on_kafka_gone=fail,
    )  # fmt: skip
    with caplog.at_level("INFO"):
        reading.start()
        await asyncio.sleep(0)
        await reading.stop()
    assert "Ready" not in caplog.text
    assert health.troubles["start"] == "stopping"
