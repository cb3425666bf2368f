"""A stranger's text is safe wherever it is shown."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest

from ct_stream.texts import for_alert, for_json, for_log, for_terminal
from tests.texts import NASTIEST, assert_no_chat_is_steered, assert_no_line_is_forged, assert_no_terminal_is_steered


def test_a_terminal_gets_the_lines_and_nothing_that_steers_it() -> None:
    shown = for_terminal(NASTIEST)
    assert_no_terminal_is_steered(shown)
    assert shown.count("\n") == 2
    assert "\\x1b[2J" in shown
    assert "\\u202e" in shown
    assert for_terminal("Ünïcode 日本") == "Ünïcode 日本"


def test_a_log_gets_one_line() -> None:
    assert_no_line_is_forged(for_log(NASTIEST))
    assert "\n" not in for_log(NASTIEST)


def test_a_chat_gets_no_link_and_no_mention() -> None:
    shown = for_alert(NASTIEST, 10_000)
    assert_no_chat_is_steered(shown)
    assert "evil.example/a" in shown
    assert len(for_alert("x" * 2000, 500)) == 500
    assert for_alert("provider bigmail.example is closed: 550 see http", 100).endswith("see http")


@pytest.mark.parametrize(
    ("value", "read"),
    [
        pytest.param({"a": [1, 2.5, None, True, "ü"]}, {"a": [1, 2.5, None, True, "ü"]}, id="plain"),
        pytest.param("x\ud800y", "x\\ud800y", id="half of a surrogate pair"),
        pytest.param({"\udcff": 1}, {"\\udcff": 1}, id="a key with one"),
        pytest.param([2**64, -(2**80)], [2**64, -(2**80)], id="large integers"),
        pytest.param([2**64, math.nan, math.inf], [2**64, None, None], id="no numbers"),
        pytest.param({1: "\ud800"}, {"1": "\\ud800"}, id="a key that is no text"),
        pytest.param([2**64, Decimal("0.7")], [2**64, "0.7"], id="what JSON does not know"),
        pytest.param(
            [2**64, UUID(int=1), datetime(2026, 1, 7, tzinfo=UTC)],
            [2**64, str(UUID(int=1)), "2026-01-07T00:00:00+00:00"],
            id="what orjson knows",
        ),
    ],
)
def test_json_takes_any_text_and_any_number(value: object, read: object) -> None:
    for indent in (False, True):
        text = for_json(value, indent=indent)
        text.encode()
        assert json.loads(text) == read
    assert json.loads(for_json(NASTIEST)).startswith("550 5.7.1 no\r\n2026")
