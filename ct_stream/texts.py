"""Makes a text that strangers may have written safe for the place where it is shown: one function for each place.

A mail server's reply, a record on a topic and a name in DNS may hold anything: line breaks that forge a log line,
escape sequences that steer a terminal, half of a surrogate pair that no encoder takes, links that a chat makes
clickable.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

_IS_LINK = re.compile(r"(?i)\b(?=(?:https?|ftp|mailto|www)\b)(\w+)(?:://|:|\.)")


def for_terminal(text: str) -> str:
    """Return a text whose lines are kept and that cannot steer a terminal: other control characters are escaped."""
    if text.isprintable():  # nearly every text is
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def for_log(text: str) -> str:
    """Return a text as one line: line breaks and other control characters are escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def for_alert(text: str, most: int) -> str:
    """Return a text as one line of at most `most` characters in which no chat finds a mention, a link or an address."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    plain = plain.translate({ord("<"): "(", ord(">"): ")", ord("["): "(", ord("]"): ")", ord("@"): "(at)"})
    return " ".join(_IS_LINK.sub(r"\1 ", plain).split())[:most]


def for_json(value: object, default: Callable[[object], object] = str, *, indent: bool = False) -> str:
    """Return a value as one JSON document (RFC 8259), whatever texts and numbers are in it.

    `default` turns objects that JSON does not know into ones that it does. Lone surrogates are escaped as Python writes
    them, and NaN and the infinities become null; integers of any size are kept.
    """
    try:
        return orjson.dumps(value, default=default, option=orjson.OPT_INDENT_2 if indent else None).decode()
    except TypeError:  # also orjson.JSONEncodeError: it takes no lone surrogate, no large integer and no odd key
        return json.dumps(_encodable(value, default), indent=2 if indent else None, ensure_ascii=False, allow_nan=False)


def _escaped(character: str) -> str:
    return ascii(character)[1:-1]


def _encodable(value: object, default: Callable[[object], object]) -> object:
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(_encodable(str(key), default)): _encodable(item, default) for key, item in value.items()}
        case list() | tuple():
            return [_encodable(item, default) for item in value]
    try:
        return orjson.loads(orjson.dumps(value))  # what orjson writes without help: dates, UUIDs, dataclasses
    except TypeError:
        return _encodable(default(value), default)
