"""Find the companies of the spine that the gate never saw, and publish an event for each.

An event may be lost upstream, or by retention before it was read. The company is in the spine all the same, so a new
event brings it to the gate. A company that is decided, waits or is stuck is never sent: an event would change nothing.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import orjson

from ct_stream.ops.publish import SENT_AT_ONCE, Event, Sender, sending
from ct_stream.ops.reader import reader
from ct_stream.ops.spine import query_with_age, why_ageless
from ct_stream.ops.troubles import ServiceTrouble, postgres_answers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from uuid import UUID

    from ct_stream.ops.reader import Reader
    from ct_stream.settings import Settings

_COMMAND_S = 600.0


async def publish_undecided(
    settings: Settings, *, older_than: timedelta | None, limit: int | None, dry_run: bool
) -> int:
    """Send an event for each spine row that has neither an outcome nor a wait; return how many.

    Older than `older_than`, by the spine's created_at; None: of any age. Rows are read at one moment, and looked at
    once more right before they are sent. `dry_run` sends nothing and needs no Kafka. Needs CT_POSTGRES_OPS_DSN.
    Raises SettingsError or ServiceTrouble.
    """
    settings.require("postgres_ops_dsn", *(() if dry_run else ("kafka_bootstrap",)))
    count = 0
    async with AsyncExitStack() as stack:
        # Two connections: the one that reads the spine sees one moment, and the other one sees now.
        rows = await stack.enter_async_context(reader(settings, command_s=_COMMAND_S))
        now = await stack.enter_async_context(reader(settings))
        if older_than is not None and (why := await why_ageless(rows)) is not None:
            raise ServiceTrouble(
                f"the age of spine rows is not known: {why.what}",
                f"{why.action}; or give --all instead of --older-than: it sends undecided companies of any age, even "
                "those whose first event is on its way",
            )
        sender = None if dry_run else await stack.enter_async_context(sending(settings))
        statement = query_with_age("undecided", has_age=older_than is not None)
        with postgres_answers("CT_POSTGRES_OPS_DSN"):
            async for page in rows.pages(statement, older_than, limit, size=SENT_AT_ONCE):
                count += await _send([row["outreach_id"] for row in page], now, sender)
    return count


async def _send(ids: Sequence[UUID], now: Reader, sender: Sender | None) -> int:
    """Send the events of those that are still undecided; return how many."""
    known = {row["outreach_id"] for row in await now.rows("known_of", list(ids))}
    left = [outreach_id for outreach_id in ids if outreach_id not in known]
    if sender is not None:
        await sender.send([_event(outreach_id) for outreach_id in left])
    return len(left)


def _event(outreach_id: UUID) -> Event:
    return Event(key=str(outreach_id).encode(), value=orjson.dumps({"outreach_id": str(outreach_id)}))
