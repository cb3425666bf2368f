"""One text that holds what a stranger may write to harm whoever shows it, and what no place may make of it."""

from __future__ import annotations

import re
import unicodedata

#: What a server, a record or a name may say, as far as Postgres stores it (no NUL, no half of a surrogate pair).
NASTY = (
    "550 5.7.1 no\r\n2026-01-07 03:00:00,000 CRITICAL Stopping: all outcomes are lost\n"
    "\x1b[2J\x1b]0;title\x07\x08\x7f\x9b31m \u202eesrever\u2066\u2028 \ufeff\u200b "
    "<!channel> @here [click](https://evil.example/a) <https://evil.example|b> WWW.evil.example "
    "mailto:x@evil.example %s {0} ' \" \\ \U0001f4a9"
)
#: The same with what only Python holds.
NASTIEST = NASTY + "\x00\ud800\udcff"


def assert_no_terminal_is_steered(shown: str) -> None:
    """Fail if a text holds a character that moves a cursor, hides or turns text around, or breaks a line unseen."""
    found = {c for c in shown if c not in "\n\t" and unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"}}
    assert not found, f"{sorted(map(ascii, found))} in {shown!a}"


def assert_no_line_is_forged(shown: str) -> None:
    """Fail if a line of a log begins like a record that we did not write."""
    assert_no_terminal_is_steered(shown)
    assert not re.search(r"^2026-01-07 03:00:00,000 CRITICAL", shown, re.MULTILINE)


def assert_no_chat_is_steered(shown: str) -> None:
    """Fail if a chat would find a mention or a link, or more than one line."""
    assert_no_terminal_is_steered(shown)
    assert "\n" not in shown
    assert not re.search(r"[<>@\[\]]|://|mailto:|www\.", shown, re.IGNORECASE), shown
