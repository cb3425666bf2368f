"""Lets a worker whose own way is broken stand aside: it leaves the group while others can work, and comes back.

Only reading events stops. All else continues: its controls, its web port, companies that need no network.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ct_stream.process.loops import Loop

if TYPE_CHECKING:
    from ct_stream.company.own_way import OwnWay
    from ct_stream.metrics import Health
    from ct_stream.stream.membership import Membership

log = logging.getLogger(__name__)

LEAVE_AFTER_S = 60.0  #: of a way that is broken, where a healthy worker can read in our place
_LOOK_EVERY_S = 1.0


class StandsAside:
    """Decides when this worker leaves the group, and when it joins it."""

    def __init__(
        self, own_way: OwnWay, membership: Membership, health: Health, *, leave_after_s: float = LEAVE_AFTER_S
    ) -> None:
        self._own_way = own_way
        self._membership = membership
        self._health = health
        self._leave_after_s = leave_after_s
        self._is_aside = False  #: out of the group by our own decision
        self._is_told = False  #: it cannot leave before it has joined: that is said once

    def loop(self) -> Loop:
        """Return the loop of this watch. A Kafka that does not answer costs one round."""
        return Loop(name="standing_aside", step=self.look, every_s=_LOOK_EVERY_S, may_fail=True)

    async def before_joining(self, stop: asyncio.Event) -> None:
        """Return once this worker's way is proven, or nobody else can work, or it is told to stop.

        Who joins only to park companies would take partitions from those who can decide them.
        """
        is_said = False
        while self._own_way.trouble is not None and self._own_way.healthy and not stop.is_set():
            if not is_said:
                log.warning(
                    "Not joining the group yet, since others can work: %s",
                    self._own_way.trouble.detail,
                    extra={"action": "standing_aside"},
                )
                self._health.notes["partitions"] = (
                    "this worker has not joined the group: its own way is not proven, and other workers can read"
                )
                is_said = True
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _LOOK_EVERY_S)
        if is_said:
            self._health.notes.pop("partitions", None)

    async def look(self) -> None:
        """Leave the group if our way has been broken for long enough and others can work; rejoin once it is proven."""
        since = self._own_way.trouble_since
        if since is None:
            self._is_told = False
            if self._is_aside:
                await self._membership.rejoin()
                self._is_aside = False
        elif time.monotonic() - since >= self._leave_after_s and self._own_way.healthy and not self._membership.is_left:
            if not self._is_told:
                log.warning(
                    "Our way out has been broken for %.0f s, and others can work, so this worker leaves the group",
                    time.monotonic() - since,
                    extra={"action": "standing_aside"},
                )
            self._is_told = True
            await self._membership.leave()
            self._is_aside = self._membership.is_left
