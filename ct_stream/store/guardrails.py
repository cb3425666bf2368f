"""Decides what a refusal means: one company's policy, a provider that closes to us, or a halt of the whole tool.

A provider is closed if within 24 hours three of its companies end in a refusal of us, in "too fast" or in silence, with
no normal session in between. Companies' own servers are weighed by where they are: if those of two companies refuse us
at one address, or those of three in one network, that address or network is closed like a provider (ADR-CT-IMO-028). If
providers in five networks refuse us, of the last 20 providers, the tool is halted until a person resumes it. Trouble
that only one company met is settled by a control and by time: long enough for other companies to show whether they meet
it too (ADR-CT-IMO-024).
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from ct_stream.gate.egress import DEFAULT, base_of, egress_of, is_of_an_egress
from ct_stream.gate.evidence import Settling, closed_provider
from ct_stream.gate.providers import (
    address_of,
    is_own_server,
    is_whereabouts,
    network_of,
    provider_of,
    whereabouts,
)
from ct_stream.gate.questions import way_to
from ct_stream.gate.verdicts import Held, HeldBy
from ct_stream.gate.waits import Wait, WaitReason, WaitsOn, control_wait

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import asyncpg

    from ct_stream.store.database import Database

log = logging.getLogger(__name__)

CLOSE_AFTER_COMPANIES = 3  #: of a provider, or with own servers in one network
CLOSE_ADDRESS_AFTER_COMPANIES = 2  #: with own servers at one address: that is one machine
HALT_AFTER_NETWORKS, OF_PROVIDERS = 5, 20  #: refused in five networks, of the last 20 providers
EVIDENCE_KEPT = timedelta(hours=24)  #: how long a refusal or a normal session counts
FIRST_TRY_S = 600.0  #: until a closed provider is tried; then twice as long each time, see ct_count_try
RATE_PAUSE_S = 60.0  #: until a provider that says "too fast" is tried; then twice as long each time
_REFRESH_S = 5.0
_MOST_SUSPECTS = 10_000  #: so that a worker's memory does not grow for as long as it runs
_READS = 10  #: for who must know what is true now, while this worker itself halts what refuses us
_CLOCKS_DIFFER = timedelta(seconds=1)  #: our view of the database's clock is as old as the last look at it
_HOURS = EVIDENCE_KEPT // timedelta(hours=1)
_PROVIDER = WaitsOn.provider("")
SMTP_RAIL = "tool:TOOL-005"  #: of the egress `default`
MAIL_FROM_RAIL = "mail_from"  #: our sender, whatever address we come from
TIER2_RAIL = "tool:TOOL-019"
TIER2_BUDGET = "budget:TOOL-019"  #: only in the log of guardrails: the next month opens it


def say_guardrail(rail: str, state: str, reason: str) -> None:
    """Log a change of a guardrail, as an error if it closes or halts."""
    level = {"open": logging.INFO, "paused": logging.WARNING}.get(state, logging.ERROR)
    log.log(level, "Guardrail %s is %s: %s", rail, state, reason, extra={"action": "guardrail", "rail": rail})


@dataclass(frozen=True, slots=True, kw_only=True)
class _InTheWay:
    """The guardrails of one egress, and those in everybody's way, as last read."""

    halted: dict[str, str]
    closed: set[str]
    opened: dict[str, datetime]


class Guardrails:
    """The guardrails, shared by all workers."""

    def __init__(self, database: Database, settle_s: float, worker: str = "worker", egress: str = DEFAULT) -> None:
        """`worker` is the run that meets what is recorded here, `egress` the address that it comes from."""
        self._database = database
        self._worker = worker
        self._egress = egress
        self.smtp_rail = WaitsOn.tool("TOOL-005", egress)  #: of this egress
        self._settle_s = settle_s
        # Providers whose next normal session matters, the newest last.
        self._suspects: OrderedDict[str, None] = OrderedDict()
        self._on_trial = False
        self._refresh_at = 0.0
        self._changes = 0
        #: Guardrail to reason, as last read: those of this egress, and those that are in everybody's way.
        self.halted: dict[str, str] = {}
        #: Providers (networks and addresses too) that are not open to this egress, as last read.
        self.closed: set[str] = set()
        self._not_open: set[str] = set()  # guardrails, as last read
        self._first_seen: dict[str, datetime] = {}  # guardrails that are open
        self._read: Sequence[asyncpg.Record] = ()
        #: By egress: providers (networks and addresses too) that are closed to it, or were a while ago, with the moment
        #: when they were opened again; None: they are closed. Not those that were only paused, nor those of an egress
        #: that no worker had within a week.
        self.shut: dict[str, dict[str, datetime | None]] = {}
        self._openings: dict[str, datetime] = {}  # of all egresses, as last read
        self._of_others: dict[str, _InTheWay] = {}
        self.opened: dict[str, datetime] = {}  #: guardrail to when it was opened again or resumed, as last read

    async def judge(self, held: Held, domain: str, provider: str) -> Wait:
        """Record a reply about us, close or halt what it calls for, and return the wait for this company.

        `provider`: as what the server counted when it was asked: the network of an own server that is closed.
        """
        await self._note_reply(held, domain)
        self._suspect(provider)
        if held.by is HeldBy.RATE:
            await self.set_state(
                self._provider(provider), "paused", f"says that we ask too fast: {held.reason}", RATE_PAUSE_S
            )
            await self._close_where_due(provider, held.reason)
            return Wait(
                reason=WaitReason.OUR_RATE,
                detail=f"{provider} says that we ask too fast: {held.reason}",
                waits_on=self._provider(provider),
            )
        await self._halt_where_due(held, domain)
        if not is_own_server(held.host, domain):
            await self._close_where_due(provider, held.reason)
        else:
            provider = await self._close_around(held) or await self._shared_address(held, domain) or provider
            self._suspect(provider)  # so a normal talk with a neighbour there wakes who waits
            if not is_whereabouts(provider):
                # If a control domain's server accepts us, this is the company's own policy: that proof settles the
                # scope.
                sentence = f"{held.host} refuses us; a control must show whether others do too"
                return control_wait(way_to(held.ip), sentence)
        return Wait(
            reason=WaitReason.REFUSED,
            detail=f"{provider} refuses us: {held.reason}",
            after_s=FIRST_TRY_S,
            waits_on=self._provider(provider),
        )

    async def note(self, held: Held, domain: str, provider: str) -> None:
        """Record a reply about us that causes no wait for this company."""
        await self.judge(held, domain, provider)

    def settling(self, age_s: float, met_at: str = "") -> Settling:
        """Return what settles a failed answer of this age, with the last known halt.

        `met_at`: the egress that met it, if not this one. Whether servers refuse that one, its own guardrails know.
        """
        rails = self._seen_by(met_at or self._egress)
        smtp_rail = WaitsOn.tool("TOOL-005", met_at or self._egress)
        halted_by = next((rail for rail in (smtp_rail, WaitsOn.mail_from()) if rail in rails.halted), None)
        return Settling(
            settle_s=self._settle_s,
            age_s=age_s,
            halted_by=halted_by,
            halted="" if halted_by is None else rails.halted[halted_by],
            closed=rails.closed,
            opened={rail.removeprefix(_PROVIDER): since for rail, since in rails.opened.items()},
            resumed_at=max(
                (rails.opened[rail] for rail in (SMTP_RAIL, MAIL_FROM_RAIL) if rail in rails.opened), default=None
            ),
        )

    async def silent(self, provider: str, domain: str) -> None:
        """Record that no server of a shared provider could be reached for this company."""
        await self._database.persist(
            "note_refusal", provider, domain, "silent", "", "none of its servers could be reached", False, "", "",
            self._worker, self._egress, False,
        )  # fmt: skip
        self._suspect(provider)

    async def unreached(self, provider: str, age_s: float, met_at: str = "") -> Wait | None:
        """Return the wait for a shared provider's silence of this age; None: it counts against the company.

        In a network that is closed it never counts: an own server there may drop our packets, as others there refuse
        us. `met_at`: the egress that met it, if not this one.
        """
        egress = met_at or self._egress
        why = "none of its servers could be reached"
        if is_whereabouts(provider) or await self._close_where_due(provider, why, egress):
            return closed_provider(provider, egress)
        return self.settling(age_s, egress).silence(provider)

    def closed_to(self, met_at: str) -> set[str]:
        """Return the providers (networks and addresses too) that are not open to an egress, as last read."""
        return self._seen_by(met_at).closed

    async def note_talk(self, provider: str, ip: str) -> None:
        """Record a normal session at a provider, by a company that has its place at another one."""
        await self._database.persist(
            "note_talk", provider, address_of(ip) or None, network_of(ip) or None, self._egress
        )

    async def talked(self, provider: str, ip: str = "") -> None:
        """Open a closed provider after a normal session, and the network and the address of its server.

        During a trial of TOOL-005 the session counts.
        """
        for name in (provider, *whereabouts(ip)):
            if name in self._suspects or name in self.closed:
                self._suspects.pop(name, None)
                await self.set_state(self._provider(name), "open", "talks normally again", None)
        if self._on_trial and (await self._database.persist("end_trial", self._egress))[0]["opened"]:
            self._on_trial = False
            say_guardrail(self.smtp_rail, "open", "enough providers have talked normally")

    async def set_state(self, rail: str, state: str, reason: str, next_try_s: float | None) -> bool:
        """Pause, close, halt or open a guardrail, and log a change; return whether it is one."""
        rows = await self._database.persist(
            "set_guardrail", rail, state, reason, -1.0 if next_try_s is None else next_try_s
        )
        ours = not is_of_an_egress(rail) or egress_of(rail) == self._egress
        changed = bool(rows[0]["changed"])
        if state == "halted":
            self._changes += changed or rail not in self.halted
            self.halted.setdefault(rail, reason)
        elif state == "closed" and ours:
            self.closed.add(base_of(rail).removeprefix(_PROVIDER))
        elif state == "open" and ours:
            self.closed.discard(base_of(rail).removeprefix(_PROVIDER))
        if changed:
            say_guardrail(rail, state, reason)
        return changed

    async def refresh(self, *, now: bool = False) -> None:
        """Read the table, at most every few seconds unless `now`."""
        if not now and time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + _REFRESH_S
        for _ in range(_READS if now else 1):
            changes = self._changes
            # In this order: what is opened between the two counts as closed until the next time.
            shut = await self._database.persist("shut_providers")
            found = await self._database.persist("guardrails")
            if changes == self._changes:
                break
        else:
            return  # halted meanwhile: what was read may be older than the halt
        self._read, self._openings, self._of_others = found, self._when_opened(found), {}
        before, self.shut = self.shut, {}
        for row in shut:
            egress, name = egress_of(row["key"]), base_of(row["key"]).removeprefix(_PROVIDER)
            opened_at = None if row["is_shut"] else self._opened_at(row, before.get(egress, {}).get(name))
            self.shut.setdefault(egress, {})[name] = opened_at
        ours = self._in_the_way_of(self._egress)
        self.halted, self.closed, self.opened = ours.halted, ours.closed, ours.opened
        self._on_trial = any(row["key"] == self.smtp_rail and row["state"] == "trial" for row in found)

    def _opened_at(self, row: asyncpg.Record, seen: datetime | None) -> datetime:
        """Return when a provider was opened that was closed before. `seen`: as the last refresh had it."""
        now = self._database.now()
        opened_at: datetime = row["opened_at"]
        # What is later than now was written, or seen, before the clock was set back.
        seen = None if seen is None else min(seen, now)
        if opened_at > now + _CLOCKS_DIFFER:
            return seen or now
        if row["is_open_since"]:
            opened_at = max(opened_at, self._first_seen.get(row["key"], opened_at))
        return opened_at if seen is None else max(opened_at, seen)

    def _seen_by(self, egress: str) -> _InTheWay:
        if egress == self._egress:  # with what this worker itself has changed since they were read
            return _InTheWay(halted=self.halted, closed=self.closed, opened=self.opened)
        if egress not in self._of_others:
            self._of_others[egress] = self._in_the_way_of(egress)
        return self._of_others[egress]

    def _in_the_way_of(self, egress: str) -> _InTheWay:
        rows = [row for row in self._read if not is_of_an_egress(row["key"]) or egress_of(row["key"]) == egress]
        return _InTheWay(
            halted={row["key"]: row["reason"] for row in rows if row["state"] == "halted"},
            closed={
                base_of(row["key"]).removeprefix(_PROVIDER)
                for row in rows
                if row["state"] != "open" and row["key"].startswith(_PROVIDER)
            },
            opened={base_of(row["key"]): self._openings[row["key"]] for row in rows if row["key"] in self._openings},
        )

    def _when_opened(self, rows: Sequence[asyncpg.Record]) -> dict[str, datetime]:
        """Return when each open guardrail was opened.

        A person's transaction may end long after it has resumed one: then it counts from when we first saw it open.
        What is later than now was written before the clock was set back.
        """
        now = self._database.now()
        are_open = {row["key"]: row["since"] for row in rows if row["state"] in ("open", "trial")}
        self._first_seen = {
            rail: min(now, self._first_seen.get(rail) or (now if rail in self._not_open else since))
            for rail, since in are_open.items()
        }
        self._not_open = {row["key"] for row in rows} - set(are_open)
        latest = now + _CLOCKS_DIFFER
        return {rail: max(since, self._first_seen[rail]) for rail, since in are_open.items() if since <= latest}

    async def _note_reply(self, held: Held, domain: str) -> None:
        """Record a reply about us under the name of its server's provider, and where the server is."""
        await self._database.persist(
            "note_refusal",
            provider_of(held.host, domain),
            domain,
            "rate" if held.by is HeldBy.RATE else "refused",
            held.host,
            held.reason,
            is_own_server(held.host, domain),
            address_of(held.ip),
            network_of(held.ip),
            self._worker,
            self._egress,
            held.is_sender,
        )

    async def _halt_where_due(self, held: Held, domain: str) -> None:
        """Halt our sender, or this egress, if servers in many networks refuse it."""
        # What many say of our sender they would say of it from any address.
        for rail, is_sender in ((MAIL_FROM_RAIL, True), (self.smtp_rail, False)):
            if is_sender and not held.is_sender:
                continue
            rows = await self._database.persist(
                "refusing_networks", EVIDENCE_KEPT, OF_PROVIDERS, self._egress, is_sender
            )
            if rows[0]["refusing"] >= HALT_AFTER_NETWORKS:
                of_last = f"of the last {OF_PROVIDERS} providers, those in {rows[0]['refusing']} networks"
                what = "our sender" if is_sender else "us"
                reason = f"{of_last} refuse {what}, the last one {provider_of(held.host, domain)}: {held.reason}"
                await self.set_state(rail, "halted", reason, None)
                return

    def _suspect(self, provider: str) -> None:
        """Note that the next normal session there matters, though it is open, and forget the oldest of too many."""
        self._suspects[provider] = None
        self._suspects.move_to_end(provider)
        if len(self._suspects) > _MOST_SUSPECTS:
            self._suspects.popitem(last=False)

    def _provider(self, provider: str) -> WaitsOn:
        return WaitsOn.provider(provider, self._egress)

    async def _close_around(self, held: Held) -> str | None:
        """Close the network or the address of a company's own server, if those of others there refuse us too.

        Return which one is closed; None: so far this is one company's server alone.
        """
        network, address = network_of(held.ip), address_of(held.ip)
        if not network:
            return None
        row = (await self._database.persist("refusals_around", network, address, EVIDENCE_KEPT, self._egress))[0]
        # Three companies at one address are still one machine, which says nothing about the machines beside it.
        if row["in_network"] >= CLOSE_AFTER_COMPANIES and row["addresses"] > 1:
            where, companies = network, row["in_network"]
        elif row["at_address"] >= CLOSE_ADDRESS_AFTER_COMPANIES:
            where, companies = address, row["at_address"]
        else:
            return None
        what = f"the own servers of {companies} companies there refused us within {_HOURS} h"
        why = f"{what}, with no normal session in between; the last one: {held.reason}"
        await self._close(where, why)
        return where

    async def _shared_address(self, held: Held, domain: str) -> str | None:
        """Return the address of an own server that is shared with other companies, whatever its name says.

        What it says of us is no company's own policy, unless it talks normally with a neighbour meanwhile, or for a day
        nobody asks for one.
        """
        address = address_of(held.ip)
        if not address:
            return None
        rows = await self._database.persist(
            "neighbours",
            address,
            network_of(held.ip),
            provider_of(held.host, domain),
            domain,
            EVIDENCE_KEPT,
            self._egress,
        )
        return address if rows[0]["is_shared"] and not rows[0]["may_be_policy"] else None

    async def _close_where_due(self, provider: str, reason: str, egress: str = "") -> bool:
        egress = egress or self._egress
        rows = await self._database.persist("refusals_at_provider", provider, EVIDENCE_KEPT, egress)
        if rows[0]["companies"] < CLOSE_AFTER_COMPANIES:
            return False
        companies = f"{rows[0]['companies']} companies within {_HOURS} h were refused or got no answer"
        why = f"{companies}, with no normal session in between; the last one: {reason}"
        await self._close(provider, why, egress)
        return True

    async def _close(self, provider: str, why: str, egress: str = "") -> None:
        """Close a provider for an egress, and for all if another one was refused there too (no snowshoeing)."""
        rail = WaitsOn.provider(provider, egress or self._egress)
        if not await self.set_state(rail, "closed", why, FIRST_TRY_S):
            return
        for row in await self._database.persist("close_everywhere", provider, why, FIRST_TRY_S):
            say_guardrail(WaitsOn.provider(provider, row["name"]), "closed", f"two of our addresses meet this; {why}")
