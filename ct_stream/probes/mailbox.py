"""Reaches the mail servers of one company: which host, which address, over which session."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from ct_stream.gate.questions import Attempt, ControlKind, MailboxAnswer, Trouble, way_to
from ct_stream.gate.replies import Stage, read_reply
from ct_stream.gate.waits import Wait
from ct_stream.probes.mx import MAX_ADDRESSES, NameTrouble
from ct_stream.probes.needs import Met
from ct_stream.probes.routable import is_ip_literal
from ct_stream.probes.smtp import MAX_RCPTS, SmtpSession, SmtpSettings
from ct_stream.probes.stopwatch import OutOfTime, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ct_stream.gate.patterns import Address
    from ct_stream.gate.verdicts import Held
    from ct_stream.probes.needs import Permits, ProbeLease

MAX_HOSTS = 3


class AddressLookup(Protocol):
    """The part of a resolver that finds a host's addresses."""

    async def lookup_addresses(self, host: str) -> tuple[str, ...] | NameTrouble:
        """Return the addresses that may be connected to, or why there are none."""


class MailboxProber:
    """Asks about one mailbox after the other, over one open session if the server lets us.

    The lease is taken at the first connection, so a company whose hosts have no usable address uses up no limit. What
    is learnt on the way (addresses, the one that answered, a broken STARTTLS) holds for the rest of the pass.
    """

    def __init__(
        self, *, resolver: AddressLookup, permits: Permits, settings: SmtpSettings, stopwatch: Stopwatch
    ) -> None:
        self._resolver = resolver
        self._permits = permits
        self._settings = settings
        self._stopwatch = stopwatch
        self._session: SmtpSession | None = None
        self._lease: ProbeLease | None = None
        self._provider = ""  #: of the last session's host
        self._met: dict[str, Met] = {}  #: by provider, once one of its servers has been tried to the end
        self._greeted_at: dict[str, str] = {}  #: by provider: the last address that greeted us
        self._addresses: dict[str, tuple[str, ...] | NameTrouble] = {}
        self._without_tls: set[str] = set()  #: hosts whose STARTTLS is broken
        self.heard: list[Attempt] = []  #: for the current question

    async def ask(self, address: Address, hosts: tuple[str, ...]) -> MailboxAnswer | Wait:
        """Ask the first of `hosts` that can be talked to RCPT TO for `address`; its reply is the last attempt."""
        attempts = self.heard = []
        if await self._can_go_on(hosts):
            assert self._session is not None
            attempts.append(await self._session.rcpt(address))
            # If a server hangs up, or will hear no more in this session, that is because of the earlier questions. This
            # one was not answered, so it is asked again (ADR-CT-IMO-015).
            if attempts[-1].trouble is not Trouble.CLOSED and not _is_session_limit(attempts[-1]):
                return MailboxAnswer(attempts=tuple(attempts))
            await self._end_session(self._lease)
        for host in hosts[:MAX_HOSTS]:
            wait = await self._ask_host(host, address, attempts)
            if wait is not None:
                return wait
            if attempts[-1].stage is Stage.RCPT or attempts[-1].trouble is Trouble.DEADLINE:
                break
        return MailboxAnswer(attempts=tuple(attempts))

    async def close(self, *, refused: Sequence[Held] = ()) -> None:
        """End the session and give the lease back, even if the pass is cancelled meanwhile."""
        closing = asyncio.create_task(self._close(refused))
        cancelled: asyncio.CancelledError | None = None
        while not closing.done():
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None and not closing.cancelled():
            raise cancelled
        closing.result()

    async def _close(self, refused: Sequence[Held]) -> None:
        lease, self._lease = self._lease, None
        try:
            await self._end_session(lease)
        finally:
            if lease is not None:
                await lease.release(met=self._met, greeted_at=self._greeted_at, refused=refused)

    async def _can_go_on(self, hosts: tuple[str, ...]) -> bool:
        """Return whether the open session can take the next question; end it if not."""
        session = self._session
        if session is None:
            return False
        if session.host in hosts and session.rcpts < MAX_RCPTS and await session.in_step():
            return True
        await self._end_session(self._lease)
        return False

    async def _ask_host(self, host: str, address: Address, attempts: list[Attempt]) -> Wait | None:
        """Add what `host` did at each of its addresses, up to its first reply to RCPT TO."""
        if host not in self._addresses and (wait := self._permits.lacks(ControlKind.DNS)) is not None:
            return wait
        found = await self._lookup(host)
        if isinstance(found, NameTrouble):
            attempts.append(Attempt(host=host, stage=Stage.CONNECT, trouble=found.trouble, detail=found.detail))
            return None
        usable = [ip for ip in found if self._permits.lacks(way_to(ip)) is None]
        if not usable:
            return self._permits.lacks(way_to(found[0]))  # only a machine that has it knows whether the host is silent
        for ip in usable[:MAX_ADDRESSES]:
            session = await self._open(host, ip, address.domain, attempts)
            if isinstance(session, Wait):
                return session
            if session is not None:
                self._addresses[host] = (ip, *(other for other in found if other != ip))
                attempts.append(await session.rcpt(address))
                return None
            if attempts[-1].trouble is Trouble.DEADLINE:
                return None
        return None

    async def _lookup(self, host: str) -> tuple[str, ...] | NameTrouble:
        if host not in self._addresses:
            if is_ip_literal(host):
                return NameTrouble(trouble=Trouble.UNROUTABLE, detail="MX is an IP literal")
            try:
                async with self._stopwatch.waiting():
                    self._addresses[host] = await self._resolver.lookup_addresses(host)
            except OutOfTime:
                return NameTrouble(trouble=Trouble.DEADLINE, detail="")
        return self._addresses[host]

    async def _open(self, host: str, ip: str, domain: str, attempts: list[Attempt]) -> SmtpSession | Wait | None:
        """Return a session in which RCPT TO may be asked; None after noting in `attempts` why there is none."""
        for tls in (True, False):
            if tls and host in self._without_tls:
                continue
            lease = await self._next_session(host, ip, domain)
            if isinstance(lease, Wait):
                return lease
            session = self._session = SmtpSession(host, ip, self._settings, self._stopwatch)
            begun_at = time.monotonic()
            stopped = await session.start(tls=tls)
            if session.greeted:
                lease.greeted(begun_at, ip)
            self._note(session, stopped)
            if stopped is None:
                return session
            attempts.append(stopped)
            await self._end_session(lease)
            if not session.tls_failed:
                return None
            self._without_tls.add(host)
        return None

    def _note(self, session: SmtpSession, stopped: Attempt | None) -> None:
        if stopped is None or session.greeted:
            met = Met.GREETED
            self._greeted_at[self._provider] = session.ip
        elif stopped.trouble is Trouble.DEADLINE:
            return  # we left before it could say a word
        else:
            met = Met.SILENT if stopped.reply is None else Met.REPLIED
        self._met[self._provider] = max(met, self._met.get(self._provider, met))

    async def _next_session(self, host: str, ip: str, domain: str) -> ProbeLease | Wait:
        provider = self._permits.provider_at(host, ip, domain)
        if self._lease is None:
            lease = await self._permits.begin_probe(domain, provider)
            if isinstance(lease, Wait):
                return lease
            self._lease = lease
        elif provider != self._provider:
            # Each provider has its own guardrail and places, whichever host was tried before.
            wait = await self._lease.enter(provider)
            if wait is not None:
                return wait
        self._provider = provider
        return await self._lease.next_session() or self._lease

    async def _end_session(self, lease: ProbeLease | None) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        try:
            await session.end()
        finally:
            if lease is not None:
                lease.session_ended()


def _is_session_limit(attempt: Attempt) -> bool:
    return attempt.reply is not None and read_reply(attempt.stage, attempt.reply).is_session_limit
