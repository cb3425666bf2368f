"""Checks events against the JSON Schemas of their topics.

The schemas are package data; `schemas/` at the top of the repository holds the same bytes (a test compares them).
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jsonschema_rs
import orjson


class Contract:
    """One event's JSON Schema (2020-12), with formats checked."""

    def __init__(self, name: str) -> None:
        self.name = name
        text = files("ct_stream.gate").joinpath("schemas", f"{name}.v1.json").read_bytes()
        self.schema: dict[str, Any] = orjson.loads(text)
        self._validator = jsonschema_rs.Draft202012Validator(self.schema, validate_formats=True)

    def problem(self, value: object) -> str | None:
        """Return what is wrong with `value` and where, or None."""
        error = next(iter(self._validator.iter_errors(value)), None)
        if error is None:
            return None
        where = "/".join(str(part) for part in error.instance_path) or "the value"
        return f"{where}: {error.message}"


SPINE_CREATED = Contract("spine.created")
CT_PASS = Contract("ct.pass")
CT_FAIL = Contract("ct.fail")
ALERT = Contract("alert")
