"""Which hosts accept mail for a domain, and at which addresses may they be connected to?

Every question has a c-ares channel of its own. A shared channel would (a) keep negative answers in c-ares' cache, so
that a poisoned NXDOMAIN outlives the control that clears it, and (b) learn a timeout of five times the resolver's mean
latency, at least 250 ms, so that a slow domain at a fast resolver times out after about a second.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
import time
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import aiodns
import pycares

from ct_stream.gate.questions import MxAnswer, MxStatus, Trouble
from ct_stream.probes.routable import is_routable
from ct_stream.probes.truncation import is_cut_off

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping, Sequence

    from ct_stream.probes.peer import Impostor
    from ct_stream.probes.routable import Network

Family: TypeAlias = Literal[4, 6]  #: of addresses: IPv4 or IPv6

MAX_MX_HOSTS = 5
MAX_ADDRESSES = 2  #: per host
_SILENT_S = 10.0  #: for so long a resolver that did not answer is asked last
_MAX_ALIASES = 8  #: that we follow ourselves, if a resolver returns an alias without its end
MAX_ASKING = 200  #: questions at a time, each with one or two sockets: a dead resolver must not use up descriptors
_HOST_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")

# NOCHECKRESP returns SERVFAIL and REFUSED at once: we choose the next resolver, not c-ares.
_FLAGS = pycares.ARES_FLAG_NOCHECKRESP | pycares.ARES_FLAG_EDNS | pycares.ARES_FLAG_NOSEARCH
_ADDRESS_KINDS: dict[Family | None, tuple[str, ...]] = {None: ("A", "AAAA"), 4: ("A",), 6: ("AAAA",)}
_ABSENCES = {
    aiodns.error.ARES_ENODATA: MxStatus.NO_RECORDS,
    aiodns.error.ARES_ENOTFOUND: MxStatus.NXDOMAIN,
}
# What can go wrong at a resolver, or on the way to it. Any other code is trouble in this process, and raises.
_TROUBLES = {
    aiodns.error.ARES_EFORMERR: "FORMERR",
    aiodns.error.ARES_ESERVFAIL: "SERVFAIL",
    aiodns.error.ARES_ENOTIMP: "NOTIMP",
    aiodns.error.ARES_EREFUSED: "REFUSED",
    aiodns.error.ARES_EBADRESP: "a malformed answer",
    aiodns.error.ARES_ECONNREFUSED: "connection refused",
    aiodns.error.ARES_ETIMEOUT: "timeout",
}
# How c-ares reports that nothing came: no answer, or one that is cut off while TCP is closed.
_SILENCE = frozenset({aiodns.error.ARES_ECONNREFUSED, aiodns.error.ARES_ETIMEOUT})


@dataclass(frozen=True, slots=True, kw_only=True)
class NameTrouble:
    """Why a host has no address that may be connected to."""

    trouble: Trouble  #: NO_ADDRESS, NAME_LOOKUP, UNROUTABLE, or DEADLINE before the question was asked
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlResult:
    """Whether a control succeeded, and what it saw."""

    ok: bool
    detail: str
    refused: bool = False  #: a control's server refuses us
    is_authentic: bool = False  #: who said that has proven to be the control's own server
    is_sender: bool = False  #: what it refuses is our sender, whatever address we come from
    our_address: str = ""  #: our public address, if the control's server named it
    family: Literal[0, 4, 6] = 0  #: of the addresses that were connected to; 0: of none, or of both
    impostor: Impostor | None = None  #: somebody answers in a control's place


@dataclass(frozen=True, slots=True, kw_only=True)
class _NoAnswer:
    detail: str
    silent_about: str = ""  #: the name that was asked about, if the resolver said nothing at all


_Records: TypeAlias = "list[pycares.DNSRecord]"
_Answer = TypeVar("_Answer")


class Resolver:
    """Asks the configured resolvers, in their order. Nothing stays open between questions."""

    def __init__(
        self,
        servers: Sequence[str] | None = None,
        *,
        allowed: Iterable[Network] = (),
        timeout_s: float = 5.0,
        again_s: float = 1.5,
        asking: int = MAX_ASKING,
        known: Sequence[str] = (),
    ) -> None:
        """Take `servers` as ip:port, or the system's; `allowed` networks may be connected to besides public ones.

        `known` are domains that have an MX. A resolver that finds no MX for any of them is not believed when it finds
        none for another domain.

        A question without an answer after `again_s` is sent a second time (a datagram may be lost), and the first
        answer counts. After `timeout_s` the next resolver is asked.
        """
        self.servers = tuple(servers) if servers else _system_servers()
        for server in self.servers:
            _check_server(server)
        self._allowed = tuple(allowed)
        self._timeout_s = timeout_s
        self._again_s = again_s
        self._places = asyncio.Semaphore(asking)
        self._known = tuple(known)
        self._silent_until: dict[str, float] = {}

    async def lookup_mx(self, domain: str) -> MxAnswer:
        """Return the hosts that accept mail for `domain`, most preferred first.

        If there are none, a second resolver must confirm it, if one is configured. A resolver that finds records wins.
        """
        troubles: list[str] = []
        silent: dict[str, str] = {}
        servers = self._by_turn()
        for number, server in enumerate(servers):
            answer = await self._mx_at(server, domain)
            if isinstance(answer, _NoAnswer):
                troubles.append(answer.detail)
                if answer.silent_about:
                    silent[server] = answer.silent_about
                continue
            if answer.status is MxStatus.FOUND:
                return answer
            lie = await self._lie(server)
            if lie is None:
                return await self._confirmed(answer, domain, servers[number + 1 :], troubles)
            troubles.append(f"{server} said {answer.status}, and {lie}")
        cut_off = await self._cut_off(silent)
        if cut_off is not None:
            detail = f"{cut_off}: its answer does not fit into UDP, and TCP/53 is closed to this machine"
            return MxAnswer(status=MxStatus.CUT_OFF, detail=detail, resolver=cut_off)
        return MxAnswer(status=MxStatus.UNAVAILABLE, detail=", ".join(troubles))

    async def lookup_addresses(self, host: str, family: Family | None = None) -> tuple[str, ...] | NameTrouble:
        """Return at most two addresses of each family that may be connected to, IPv4 first, or of one family alone.

        A machine that lacks a family leaves those addresses out; then two are tried.
        """
        if not _HOST_NAME.fullmatch(host):
            return NameTrouble(trouble=Trouble.NO_ADDRESS, detail="the MX is not a host name")
        answers = await _both(self._first_answer(host, kind) for kind in _ADDRESS_KINDS[family])
        families = [_addresses(answer) for answer in answers if not isinstance(answer, _NoAnswer)]
        routable = [[address for address in of if is_routable(address, self._allowed)] for of in families]
        if any(routable):
            return tuple(address for of in routable for address in of[:MAX_ADDRESSES])
        if found := [address for of in families for address in of]:
            return NameTrouble(trouble=Trouble.UNROUTABLE, detail=f"its address is {', '.join(found[:MAX_ADDRESSES])}")
        for answer in answers:
            if isinstance(answer, _NoAnswer):
                return NameTrouble(trouble=Trouble.NAME_LOOKUP, detail=answer.detail)
        return NameTrouble(trouble=Trouble.NO_ADDRESS, detail="")

    async def dns_control(self, domain: str, *, tcp: bool = False) -> ControlResult:
        """Return whether our resolvers find the MX of `domain` and say that a random name below it does not exist.

        With `tcp` they are asked over TCP alone, which long answers need.

        The random name unmasks a resolver that answers every name alike. One wrong resolver fails the control, whatever
        the others say: any of them may have given the answer that is in question.
        """
        works: list[str] = []
        silent: list[str] = []
        wrong: list[str] = []
        for server in self.servers:
            answer = await self._mx_at(server, domain, tcp=tcp)
            if isinstance(answer, _NoAnswer):
                silent.append(f"no answer about {domain} from {server} ({answer.detail})")
                continue
            if answer.status is not MxStatus.FOUND:
                wrong.append(f"{server} finds no MX of {domain} ({answer.detail or answer.status})")
                continue
            name = f"ct-{secrets.token_hex(8)}.{domain}"
            answers = await _both(self._ask(server, name, kind, tcp=tcp) for kind in ("MX", "A"))
            if all(answer is MxStatus.NXDOMAIN for answer in answers):
                works.append(server)
            elif any(isinstance(answer, _NoAnswer) for answer in answers):
                silent.append(f"no answer about a random name below {domain} from {server}")
            else:
                wrong.append(f"{server} does not say that a random name below {domain} is missing")
        if works and not wrong:
            found = (
                f"{', '.join(works)} finds{' over TCP' if tcp else ''} the MX of {domain} and no random name below it"
            )
            return ControlResult(ok=True, detail="; ".join([found, *silent]))
        return ControlResult(ok=False, detail="; ".join([*wrong, *silent]))

    async def _lie(self, server: str) -> str | None:
        """Return why an absence that this resolver has just reported is not believed, or None.

        A resolver that lies denies all names alike, so it is asked about known domains right after its answer, mostly
        from its own cache. This catches a poisoned resolver that is repaired before any worker's control sees it
        (ADR-CT-IMO-024).
        """
        said: list[str] = []
        for domain in self._known:
            answer = await self._mx_at(server, domain)
            if isinstance(answer, _NoAnswer):
                said.append(f"{MxStatus.UNAVAILABLE} of {domain} too ({answer.detail})")
                continue
            if answer.status is MxStatus.FOUND:
                return None
            said.append(f"{answer.status} of {domain} too")
        return ", ".join(said) or None

    async def _confirmed(self, answer: MxAnswer, domain: str, others: Sequence[str], troubles: list[str]) -> MxAnswer:
        """Return `answer`, an absence, with what the other resolvers say about it."""
        troubles = list(troubles)
        for server in others:
            second = await self._mx_at(server, domain)
            if isinstance(second, _NoAnswer):
                troubles.append(second.detail)
                continue
            if second.status is MxStatus.FOUND:
                return replace(second, detail=f"{answer.resolver} said {answer.status}")
            return replace(answer, detail=f"confirmed by {server}")
        return replace(answer, detail=f"not confirmed: {', '.join(troubles)}" if troubles else "")

    async def _cut_off(self, silent: Mapping[str, str]) -> str | None:
        """Return the first of these silent resolvers, by name asked about, that has an answer and cannot send it."""

        async def ask(server: str, name: str) -> bool:
            async with self._places:
                return await is_cut_off(server, name, self._again_s)

        cut_off = await _both(ask(server, name) for server, name in silent.items())
        return next((server for server, is_it in zip(silent, cut_off, strict=True) if is_it), None)

    async def _mx_at(self, server: str, domain: str, *, tcp: bool = False) -> MxAnswer | _NoAnswer:
        """Return what this resolver says. Only a return code or a null MX counts as an absence.

        An alias without its end (RFC 1034 section 3.6.2) is followed until there is one.
        """
        name = domain
        for _ in range(_MAX_ALIASES):
            answer = await self._ask(server, name, "MX", tcp=tcp)
            if isinstance(answer, _NoAnswer):
                return answer
            if isinstance(answer, MxStatus):
                return MxAnswer(status=answer, resolver=server)
            pairs = [(r.data.priority, r.data.exchange) for r in answer if isinstance(r.data, pycares.MXRecordData)]
            if pairs:
                hosts = mx_hosts(pairs)
                return MxAnswer(status=MxStatus.FOUND if hosts else MxStatus.NULL_MX, hosts=hosts, resolver=server)
            target = _end_of_aliases(answer, name)
            if target is None:
                return _NoAnswer(detail=f"neither an MX nor a reason from {server}")
            name = target
        return _NoAnswer(detail=f"too many aliases from {server}")

    def _by_turn(self) -> list[str]:
        """Return the resolvers in their order, those that were silent lately last.

        Otherwise each question would first wait for a dead resolver, and those that wait would use up all places.
        """
        now = time.monotonic()
        return sorted(self.servers, key=lambda server: self._silent_until.get(server, now) > now)

    async def _first_answer(self, name: str, kind: str) -> _Records | _NoAnswer:
        """Return the answer of the first resolver that gives one; an absence is an empty list."""
        troubles: list[str] = []
        for server in self._by_turn():
            answer = await self._ask(server, name, kind)
            if isinstance(answer, MxStatus):
                return []
            if not isinstance(answer, _NoAnswer):
                return answer
            troubles.append(answer.detail)
        return _NoAnswer(detail=", ".join(troubles))

    async def _ask(self, server: str, name: str, kind: str, *, tcp: bool = False) -> _Records | MxStatus | _NoAnswer:
        """Return the records, or NO_RECORDS or NXDOMAIN, or why this resolver gave no answer."""
        try:
            async with self._places, asyncio.timeout(self._timeout_s):
                records = await self._ask_twice(server, name, kind, tcp=tcp)
            # c-ares treats each return code that it does not know as a success (ares_dns_query_reply_tostatus), and
            # does not pass the code on. Without a record that is neither an answer nor an absence.
            return records or _NoAnswer(detail=f"neither records nor a reason from {server}")
        except TimeoutError:
            self._silent_until[server] = time.monotonic() + _SILENT_S
            return _NoAnswer(detail=f"timeout from {server}", silent_about=name)
        except aiodns.error.DNSError as error:
            code = error.args[0]
            if code in _ABSENCES:
                return _ABSENCES[code]
            if code == aiodns.error.ARES_ECONNREFUSED:
                _require_a_socket()
            if code in _TROUBLES:
                silent_about = name if code in _SILENCE else ""
                return _NoAnswer(detail=f"{_TROUBLES[code]} from {server}", silent_about=silent_about)
            raise

    async def _ask_twice(self, server: str, name: str, kind: str, *, tcp: bool) -> _Records:
        """Return the first answer. The futures are c-ares' own: a task for each would cost two rounds of the loop."""
        asked: set[asyncio.Future[pycares.DNSResult]] = set()
        try:
            async with self._channel(server, tcp) as first:
                asked.add(first.query_dns(name, kind))
                done, _ = await asyncio.wait(asked, timeout=self._again_s)
                if not done:
                    async with self._channel(server, tcp) as second:
                        asked.add(second.query_dns(name, kind))
                        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                return next(iter(done)).result().answer
        finally:
            for future in asked:
                if not future.cancel() and not future.cancelled():
                    future.exception()  # only one of two answers is read

    def _channel(self, server: str, tcp: bool) -> _Channel:
        flags = _FLAGS | (pycares.ARES_FLAG_USEVC if tcp else 0)
        # One try: c-ares drops the answer to an earlier datagram once it has sent a later one.
        return _Channel([server], flags=flags, timeout=self._timeout_s * 2, tries=1, lookups="b")


async def _both(questions: Iterable[Coroutine[Any, Any, _Answer]]) -> list[_Answer]:
    """Ask all questions at once. The error of one is raised as itself, not as a group, so that callers can catch it."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(question) for question in questions]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


def _require_a_socket() -> None:
    """Raise OSError if this process cannot make a socket; c-ares reports that as a refused connection."""
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()


def mx_hosts(records: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    """Return the hosts of MX records, most preferred first, each once; none for a null MX (RFC 7505).

    A null MX among real ones violates RFC 7505 section 3; the real ones are taken.
    """
    hosts: dict[str, None] = {}
    for _, host in sorted((preference, exchange.rstrip(".").lower()) for preference, exchange in records):
        if host:
            hosts[host] = None
    return tuple(hosts)[:MAX_MX_HOSTS]


class _Channel(aiodns.DNSResolver):
    """A resolver that uses only the event loop: aiodns' own keeps a thread and an inotify watch per channel."""

    def _make_channel(self, **options: Any) -> tuple[bool, pycares.Channel]:
        # Weak, as in aiodns: the channel must not keep its owner alive.
        owner = weakref.ref(self)

        def watch(fd: int, readable: bool, writable: bool) -> None:
            resolver = owner()
            if resolver is not None:
                resolver._sock_state_cb(fd, readable, writable)

        return False, pycares.Channel(sock_state_cb=watch, timeout=self._timeout, **options)


def _end_of_aliases(records: _Records, name: str) -> str | None:
    """Return the name at which the chain of CNAME records from `name` ends, or None if no chain begins there."""
    aliases = {_plain(r.name): _plain(r.data.cname) for r in records if isinstance(r.data, pycares.CNAMERecordData)}
    end = _plain(name)
    for _ in range(len(aliases)):
        end = aliases.pop(end, end)
    return end if end != _plain(name) and _HOST_NAME.fullmatch(end) else None


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


def _addresses(records: _Records) -> list[str]:
    return [r.data.addr for r in records if isinstance(r.data, pycares.ARecordData | pycares.AAAARecordData)]


def _system_servers() -> tuple[str, ...]:
    channel = pycares.Channel(sock_state_cb=_ignore)
    try:
        return tuple(channel.servers)
    finally:
        channel.close()


def _check_server(server: str) -> None:
    channel = pycares.Channel(sock_state_cb=_ignore)
    try:
        channel.servers = [server]
    except pycares.AresError as error:
        raise ValueError(f"{server!r} is not a DNS server; write ip:port") from error
    finally:
        channel.close()


def _ignore(fd: int, readable: bool, writable: bool) -> None:
    """Watch no socket of a channel that asks nothing."""
