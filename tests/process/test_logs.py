"""The log stays readable while something is broken."""

from __future__ import annotations

import json
import logging
import sys
from uuid import UUID

from ct_stream.process.logs import JsonLines, Sparing, TextLines
from tests.texts import NASTIEST, assert_no_line_is_forged


def test_a_librarys_repeated_message_is_logged_once_in_30_s_and_ours_always() -> None:
    now = 0.0
    sparing = Sparing(clock=lambda: now)

    def said(name: str, node: int) -> bool:
        return sparing.filter(logging.LogRecord(name, logging.ERROR, "", 0, "Failed fetch from %s", (node,), None))

    assert [said("aiokafka.consumer.fetcher", node) for node in (1, 2, 1)] == [True, False, False]
    assert [said("ct_stream.wiring.worker", 1) for _ in range(2)] == [True, True]
    now = 30.0
    assert said("aiokafka.consumer.fetcher", 2)


def written(formatter: logging.Formatter, message: str, **extra: object) -> str:
    try:
        raise ValueError(NASTIEST)
    except ValueError:
        record = logging.LogRecord("ct_stream", logging.WARNING, "", 0, "said %s", (message,), sys.exc_info())
    vars(record).update(extra)
    return formatter.format(record)


def test_no_text_in_a_record_or_its_traceback_forges_a_line() -> None:
    text = written(TextLines(), NASTIEST)
    assert_no_line_is_forged(text)
    first, *more = text.split("\n")
    assert first.endswith(" WARNING said 550 5.7.1 no\\r")
    assert more[0].startswith("    2026-01-07 03:00:00,000 CRITICAL")
    assert len(more) > 3
    assert all(line.startswith("    ") for line in more)


def test_json_loses_no_line_whatever_is_in_it() -> None:
    line = written(JsonLines(), NASTIEST, offset=2**80, answers={1: "\ud800"}, company=UUID(int=1))
    assert "\n" not in line
    body = json.loads(line.encode())
    assert (body["level"], body["offset"], body["company"]) == ("warning", 2**80, str(UUID(int=1)))
    assert "CRITICAL Stopping" in body["message"]
    assert "ValueError" in body["traceback"]
