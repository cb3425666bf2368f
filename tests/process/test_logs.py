"""The log stays readable while something is broken."""

from __future__ import annotations

import logging

from ct_stream.process.logs import Sparing


def test_a_librarys_repeated_message_is_logged_once_in_30_s_and_ours_always() -> None:
    now = 0.0
    sparing = Sparing(clock=lambda: now)

    def said(name: str, node: int) -> bool:
        return sparing.filter(logging.LogRecord(name, logging.ERROR, "", 0, "Failed fetch from %s", (node,), None))

    assert [said("aiokafka.consumer.fetcher", node) for node in (1, 2, 1)] == [True, False, False]
    assert [said("ct_stream.wiring.worker", 1) for _ in range(2)] == [True, True]
    now = 30.0
    assert said("aiokafka.consumer.fetcher", 2)
