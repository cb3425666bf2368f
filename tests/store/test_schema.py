"""The schema is what it is held to be."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from ct_stream.store.migrate import migrate
from tests.store.catalog import HELD, dump

if TYPE_CHECKING:
    from ct_stream.local.postgres import EmbeddedPostgres


async def test_the_schema_changes_on_purpose_only(postgres: EmbeddedPostgres) -> None:
    """The diff of data/schema.txt is what a change does to a database; catalog.py says how to write it."""
    dsn = await postgres.create_database(f"schema_{uuid4().hex}")
    await migrate(dsn)
    assert await dump(dsn) == HELD.read_text()
