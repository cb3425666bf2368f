"""Why Faust ended decides what the worker tells its supervisor: try again, or a person must look."""

from __future__ import annotations

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

from ct_stream.stream.reading import is_outage


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
