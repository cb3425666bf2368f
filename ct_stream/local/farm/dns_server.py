"""What do the farm's resolvers say? Real DNS messages over UDP and TCP, two or more resolvers on ports of their own."""

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ct_stream.local.farm.faults import Faults, ResolverMode
from ct_stream.local.farm.log import FarmLog
from ct_stream.local.farm.names import Company, MxHost, Names
from ct_stream.local.farm.scenarios import Dns
from ct_stream.local.processes import LocalError

try:
    import dns.exception
    import dns.flags
    import dns.message
    import dns.name
    import dns.rcode
    import dns.rdatatype
    import dns.rrset
except ModuleNotFoundError as error:
    raise LocalError("the mail farm is not installed; run: pip install 'ct-stream[local]'") from error

_TTL_S = 60
_MAX_UDP_BYTES = 1232  #: what servers send in one datagram (DNS flag day 2020)
_TCP_IDLE_S = 10.0
_WILDCARD_HOST = "mx1.parked.example"

Record = tuple[str, str, str]  #: owner, type, data
AddressesOf = Callable[[MxHost], tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a resolver answers; None as response code: nothing at all."""

    rcode: dns.rcode.Rcode | None = dns.rcode.NOERROR
    records: tuple[Record, ...] = ()
    delay_s: float = 0.0
    truncated_udp: bool = False

    @property
    def label(self) -> str:
        """Return the answer in a word, for the log."""
        if self.rcode is None:
            return "silent"
        if self.rcode != dns.rcode.NOERROR:
            return dns.rcode.to_text(self.rcode)
        return "answer" if self.records else "nodata"


_SILENT = Answer(rcode=None)
_NXDOMAIN = Answer(rcode=dns.rcode.NXDOMAIN)
_NODATA = Answer()
_BY_MODE = {
    ResolverMode.DOWN: _SILENT,
    ResolverMode.SERVFAIL: Answer(rcode=dns.rcode.SERVFAIL),
    ResolverMode.REFUSED: Answer(rcode=dns.rcode.REFUSED),
    ResolverMode.NXDOMAIN_ALL: _NXDOMAIN,
}
_BY_SCENARIO = {
    Dns.SERVFAIL: Answer(rcode=dns.rcode.SERVFAIL),
    Dns.REFUSED: Answer(rcode=dns.rcode.REFUSED),
    Dns.SILENT: _SILENT,
    Dns.NXDOMAIN: _NXDOMAIN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """All names of the farm, answered from their scenarios."""

    names: Names
    faults: Faults
    addresses_of: AddressesOf

    def answer(self, resolver: int, name: str, rtype: str) -> Answer:
        """Return what that resolver answers; `name` in lower case without the last dot."""
        mode = self.faults.resolvers[resolver]
        if mode is ResolverMode.WILDCARD:
            return self._wildcard(name, rtype)
        if mode is not ResolverMode.OK:
            return _BY_MODE[mode]
        company = self.names.company(name)
        if company is not None:
            return self._company(resolver, company, rtype)
        host = self.names.mx_host(name)
        if host is not None:
            return self._host(host, rtype)
        return _NXDOMAIN

    def _company(self, resolver: int, company: Company, rtype: str) -> Answer:
        scenario, domain = company.scenario, company.domain
        if scenario.dns in _BY_SCENARIO:
            return _BY_SCENARIO[scenario.dns]
        if scenario.dns is Dns.FIRST_RESOLVER_LIES and resolver == 0:
            return _NXDOMAIN
        match scenario.dns, rtype:
            case Dns.NULL_MX, "MX":
                return Answer(records=((domain, "MX", "0 ."),))
            case Dns.TXT_ONLY, "TXT":
                return Answer(records=((domain, "TXT", '"v=spf1 -all"'),))
            case Dns.ADDRESS_ONLY, "A":
                # A server that listens there: who takes the address for an implicit MX is seen in the log.
                return Answer(records=self._addresses(self._own_host(company), domain, "A"))
            case Dns.APEX_CNAME, _:
                real = f"web.{domain}"
                records = self._exchanges(company, real) if rtype == "MX" else ()
                return Answer(records=((domain, "CNAME", f"{real}."), *records))
            case Dns.NORMAL | Dns.FIRST_RESOLVER_LIES, "MX":
                return Answer(
                    records=self._exchanges(company, domain),
                    delay_s=scenario.dns_delay_s,
                    truncated_udp=scenario.truncated_udp,
                )
            case _:
                return _NODATA

    def _exchanges(self, company: Company, owner: str) -> tuple[Record, ...]:
        if company.provider is not None:
            return ((owner, "MX", f"10 mx1.{company.provider}."),)
        return tuple(
            (
                owner,
                "MX",
                f"{mx.preference} {self.addresses_of(self._own_host(company))[0]}."
                if mx.is_literal
                else f"{mx.preference} {mx.label}.{company.domain}.",
            )
            for mx in company.scenario.mx
        )

    def _own_host(self, company: Company) -> MxHost:
        mx = company.scenario.mx[0]
        return MxHost(name=f"{mx.label}.{company.domain}", domain=company.domain, scenario=company.scenario, mx=mx)

    def _host(self, host: MxHost, rtype: str) -> Answer:
        if not host.mx.exists:
            return _NXDOMAIN
        canonical = f"{host.mx.cname}.{host.domain}" if host.mx.cname else host.name
        alias: tuple[Record, ...] = ()
        if canonical != host.name:
            alias = ((host.name, "CNAME", f"{canonical}."),)
        return Answer(records=alias + self._addresses(host, canonical, rtype))

    def _addresses(self, host: MxHost, owner: str, rtype: str) -> tuple[Record, ...]:
        return tuple(
            (owner, rtype, address)
            for address in self.addresses_of(host)
            if rtype == ("AAAA" if ":" in address else "A")
        )

    def _wildcard(self, name: str, rtype: str) -> Answer:
        match rtype:
            case "MX":
                return Answer(records=((name, "MX", f"10 {_WILDCARD_HOST}."),))
            case "A":
                parked = self.names.mx_host(_WILDCARD_HOST)
                assert parked is not None
                return Answer(records=self._addresses(parked, name, "A"))
            case _:
                return _NODATA


class Resolver(asyncio.DatagramProtocol):
    """One resolver of the farm, on one port for UDP and TCP."""

    def __init__(self, index: int, zone: Zone, log: FarmLog, host: str) -> None:
        self.host = host
        self._index = index
        self._zone = zone
        self._log = log
        self._udp: asyncio.DatagramTransport | None = None
        self._tcp: asyncio.Server | None = None
        self._streams: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self) -> None:
        """Listen on one free port of the host for both transports."""
        loop = asyncio.get_running_loop()
        for _ in range(20):
            tcp = socket.create_server((self.host, 0))
            self.port = tcp.getsockname()[1]
            try:
                self._udp, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(self.host, self.port))
            except OSError:  # the port is taken for UDP
                tcp.close()
                continue
            self._tcp = await asyncio.start_server(self._talk_tcp, sock=tcp)
            return
        raise LocalError(f"no port of {self.host} is free for both UDP and TCP")

    async def stop(self) -> None:
        """Close the port and all connections."""
        if self._udp is not None:
            self._udp.close()
        if self._tcp is not None:
            self._tcp.close()
            for writer in self._streams:
                writer.close()
            await self._tcp.wait_closed()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer a question that came in a datagram."""
        loop = asyncio.get_running_loop()
        with suppress(dns.exception.DNSException):  # not a question: no answer
            answer, response = self._answer(data, addr[0], over_udp=True)
            if response is not None:
                loop.call_later(answer.delay_s, self._send_udp, response, addr)

    def _send_udp(self, response: bytes, addr: tuple[str, int]) -> None:
        if self._udp is not None and not self._udp.is_closing():
            self._udp.sendto(response, addr)

    async def _talk_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._streams.add(writer)
        peername = writer.get_extra_info("peername")
        peer = peername[0] if peername else "gone"
        try:
            with suppress(TimeoutError, ConnectionError, asyncio.IncompleteReadError, dns.exception.DNSException):
                while True:
                    async with asyncio.timeout(_TCP_IDLE_S):
                        (size,) = struct.unpack("!H", await reader.readexactly(2))
                        answer, response = self._answer(await reader.readexactly(size), peer, over_udp=False)
                    await asyncio.sleep(answer.delay_s)
                    if response is not None:
                        writer.write(struct.pack("!H", len(response)) + response)
        finally:
            self._streams.discard(writer)
            writer.close()

    def _answer(self, data: bytes, peer: str, *, over_udp: bool) -> tuple[Answer, bytes | None]:
        read_at = time.monotonic()
        question = dns.message.from_wire(data)
        asked = question.question[0]
        name, rtype = asked.name.to_text(omit_final_dot=True).lower(), dns.rdatatype.to_text(asked.rdtype)
        answer = self._zone.answer(self._index, name, rtype)
        response = _render(question, answer, over_udp=over_udp)
        self._log.query(
            read_at=read_at,
            resolver=self._index,
            transport="udp" if over_udp else "tcp",
            name=name,
            rtype=rtype,
            answer=answer.label,
            peer=peer,
        )
        return answer, response


def _render(question: dns.message.Message, answer: Answer, *, over_udp: bool) -> bytes | None:
    if answer.rcode is None:
        return None
    response = dns.message.make_response(question, recursion_available=True)
    response.set_rcode(answer.rcode)
    if not (over_udp and answer.truncated_udp):
        for owner, rtype, data in answer.records:
            rrset = dns.rrset.from_text(dns.name.from_text(owner), _TTL_S, "IN", rtype, data)
            response.answer.append(rrset)
        wire = response.to_wire(max_size=65535)
        if not over_udp or len(wire) <= min(question.payload or 512, _MAX_UDP_BYTES):
            return wire
        response.answer.clear()
    response.flags |= dns.flags.TC
    return response.to_wire()
