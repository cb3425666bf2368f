"""Looks up what a domain answered to other companies, and lets one company of a domain ask at a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ct_stream.gate.waits import Wait, WaitReason, WaitsOn
from ct_stream.store.limits import Looked

if TYPE_CHECKING:
    from ct_stream.gate.memory import Memory
    from ct_stream.gate.records import Known
    from ct_stream.store.domain_memory import DomainMemory

_LOOKED_UP_S = 0.5  #: how long a look at the memory that came with the company's row stays valid


class Askers:
    """The companies of this worker that are asking their domain now, one for each domain."""

    def __init__(self) -> None:
        self._by_domain: dict[str, object] = {}

    def join(self, domain: str, company: object) -> bool:
        """Become the company that asks the domain; return False if another one of this worker does."""
        return self._by_domain.setdefault(domain, company) is company

    def leave(self, domain: str, company: object) -> None:
        """Let another one ask."""
        if self._by_domain.get(domain) is company:
            del self._by_domain[domain]


class Recall:
    """One company's look at the domain memory, and its turn to ask the domain."""

    def __init__(self, memory: DomainMemory, askers: Askers, known: Known, *, rules_version: str, is_new: bool) -> None:
        """`is_new`: the company has not waited before."""
        self._memory = memory
        self._askers = askers
        self._looked_up = known if known.memory is not None else None
        self._rules_version = rules_version
        self._is_new = is_new
        self._asks: str | None = None
        self.looked: Looked | None = None  #: what it saw last

    async def recall(self, domain: str) -> Memory | Wait:
        """Return what is remembered of the domain. If that decides nothing, ask the domain, or wait for who asks it.

        Without this, companies of one domain that arrive together would each look up its MX.
        """
        memory = self._came_along(domain) or await self._memory.recall(domain)
        self.looked = Looked(rules_version=self._rules_version, answered_at=memory.answered_at)
        if memory.answers:
            return memory
        is_asker = self._askers.join(domain, self)
        if is_asker:
            self._asks = domain
        # Only a new company waits for one that has started and is parked: resumed ones would wait for each other.
        if not is_asker or memory.is_busy or (memory.has_begun and self._is_new):
            return Wait(
                reason=WaitReason.DOMAIN_BUSY,
                detail=f"another company is asking {domain}; this one will use its answers",
                waits_on=WaitsOn.domain(domain),
            )
        return memory

    def leave(self) -> None:
        """Let another company ask the domain."""
        if self._asks is not None:
            self._askers.leave(self._asks, self)

    def _came_along(self, domain: str) -> Memory | None:
        """Return what was looked up with the company, only once, and only if it is recent."""
        known, self._looked_up = self._looked_up, None
        if known is None or known.recalled != domain or time.monotonic() - known.looked_up_at >= _LOOKED_UP_S:
            return None
        return known.memory
