"""What keeps the lag from being known is said, also when another reason takes the first one's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ct_stream.metrics import Health, Metrics
from ct_stream.settings import Settings
from ct_stream.stream.position import LagUnknown
from ct_stream.stream.rights import Denied
from ct_stream.wiring import watching
from ct_stream.wiring.watching import LagWatch

if TYPE_CHECKING:
    import pytest


async def test_each_reason_is_said_once_and_the_end_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reasons: list[Exception | None] = [
        LagUnknown("spine.created is missing"), Denied("ct_gate may not READ"), Denied("ct_gate may not READ"), None,
    ]  # fmt: skip

    async def rights(_: Settings) -> None:
        if (reason := reasons.pop(0)) is not None:
            raise reason

    async def three(_: Settings) -> int:
        return 3

    monkeypatch.setattr(watching, "require_rights", rights)
    monkeypatch.setattr(watching, "lag", three)
    metrics, health = Metrics(), Health()
    watch = LagWatch(Settings(kafka_bootstrap="127.0.0.1:1"), metrics, health, refused=lambda: None, tells_ends=True)
    seen = []
    with caplog.at_level("INFO"):
        for _ in range(4):
            await watch.look()
            seen.append(health.troubles.get("kafka_group"))
    assert seen == ["spine.created is missing", "ct_gate may not READ", "ct_gate may not READ", None]
    said = ["spine.created is missing", "ct_gate may not READ", "Kafka can be read again"]
    assert [record.getMessage() for record in caplog.records] == said
