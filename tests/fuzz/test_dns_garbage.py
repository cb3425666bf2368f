"""Whatever a resolver answers, a look-up ends in time, and an absence is believed only from an answer that says so."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
from dns.rdatatype import RdataType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ct_stream.gate.questions import MxAnswer, MxStatus
from ct_stream.probes.mx import MAX_ADDRESSES, MAX_MX_HOSTS, NameTrouble, Resolver
from ct_stream.probes.routable import is_routable
from tests.fuzz.rounds import EXAMPLES, hang_up, rounds
from tests.probes.conftest import on_one_port

if TYPE_CHECKING:
    from collections.abc import Callable

END_S = 3.0
_WITHOUT_OPCODE = 0b1000_0111
_RECORDS = [
    ("MX", "10 mx1.acme.example."),
    ("MX", "0 ."),
    ("MX", "65535 127.0.0.1."),
    ("A", "192.0.2.1"),
    ("A", "8.8.8.8"),
    ("AAAA", "2606:4700::1"),
    ("AAAA", "::ffff:127.0.0.1"),
    ("CNAME", "acme.example."),
    ("TXT", '"v=spf1 -all"'),
]


@st.composite
def responses(draw: st.DrawFn) -> Callable[[bytes], bytes | None]:
    """Return how a resolver answers one question: right, broken in some places, or with anything."""
    rcode = draw(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5, 9]))
    flags = draw(st.sampled_from([0, 0, dns.flags.TC, dns.flags.AA]))
    records = draw(st.lists(st.sampled_from(_RECORDS), max_size=8))
    flips = draw(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 255)), max_size=6))
    cut = draw(st.one_of(st.none(), st.integers(0, 80)))
    tail = draw(st.one_of(st.just(b""), st.binary(max_size=40)))
    anything = draw(st.one_of(st.none(), st.none(), st.none(), st.binary(max_size=120)))
    silent = draw(st.integers(0, 30)) == 0

    def answer(query: bytes) -> bytes | None:
        if silent:
            return None
        if anything is not None:
            return query[:2] + anything
        question = dns.message.from_wire(query)
        response = dns.message.make_response(question)
        response.set_rcode(dns.rcode.Rcode.make(rcode))
        response.flags |= flags
        for kind, data in records:
            response.answer.append(dns.rrset.from_text(question.question[0].name, 60, "IN", kind, data))
        wire = bytearray(response.to_wire(max_size=65535))
        for place, bits in flips:
            if place + 2 < len(wire):
                wire[place + 2] ^= bits
        return bytes(wire[:cut]) + tail

    return answer


class Garbler(asyncio.DatagramProtocol):
    """A resolver that answers each question, over UDP and TCP, as it was told; notes what it sent."""

    def __init__(self, answer: Callable[[bytes], bytes | None]) -> None:
        self._answer = answer
        self.sent: list[tuple[bytes, bytes]] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> int:
        self._udp, self._tcp = await on_one_port(lambda: self, self._talk)
        port: int = self._tcp.sockets[0].getsockname()[1]
        return port

    async def stop(self) -> None:
        self._udp.close()
        await hang_up(self._tcp, self._writers)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        wire = self._answer(data)
        if wire is not None:
            self.sent.append((data, wire))
            self._udp.sendto(wire, addr)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
            wire = self._answer(query)
            if wire is not None:
                self.sent.append((query, wire))
                writer.write(len(wire).to_bytes(2, "big") + wire)
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


async def look_ups(answer: Callable[[bytes], bytes | None]) -> None:
    garbler = Garbler(answer)
    port = await garbler.start()
    resolver = Resolver([f"127.0.0.1:{port}"], timeout_s=0.25, again_s=0.1)
    try:
        async with asyncio.timeout(END_S):
            mx = await resolver.lookup_mx("acme.example")
            check_mx(mx, garbler)
            addresses = await resolver.lookup_addresses("mx1.acme.example")
    finally:
        await garbler.stop()
    if not isinstance(addresses, NameTrouble):
        assert 1 <= len(addresses) <= 2 * MAX_ADDRESSES
        assert all(is_routable(str(ipaddress.ip_address(address))) for address in addresses)


def check_mx(mx: MxAnswer, garbler: Garbler) -> None:
    assert len(mx.hosts) <= MAX_MX_HOSTS
    assert bool(mx.hosts) == (mx.status is MxStatus.FOUND)
    if mx.status in (MxStatus.NO_RECORDS, MxStatus.NXDOMAIN, MxStatus.NULL_MX):
        sent = [(query.hex(), wire.hex()) for query, wire in garbler.sent]
        assert any(says_so(query, wire, mx.status) for query, wire in garbler.sent), f"{mx.status}: {sent}"


def says_so(query: bytes, wire: bytes, status: MxStatus) -> bool:
    """Tell, by other eyes, if these bytes are an answer to the question with that meaning (RFC 1035 section 4.1.1).

    The header speaks of an absence, whatever is broken behind it. c-ares does not look at the bit that tells an answer
    from a question: a resolver that echoes is told by the control, for which it finds no MX either. A null MX is a
    record, and stands whatever the return code: c-ares does not tell the codes that it does not know. Nor does it look
    at the opcode, by which these eyes would read the same sections as those of an UPDATE (RFC 2136).
    """
    if len(wire) < 12 or wire[:2] != query[:2]:
        return False
    return_code, answers = wire[3] & 0xF, int.from_bytes(wire[6:8], "big")
    match status:
        case MxStatus.NXDOMAIN:
            return return_code == dns.rcode.NXDOMAIN
        case MxStatus.NO_RECORDS:
            return return_code == dns.rcode.NOERROR and answers == 0
    as_query = wire[:2] + bytes([wire[2] & _WITHOUT_OPCODE]) + wire[3:]
    response = dns.message.from_wire(as_query, ignore_trailing=True, continue_on_error=True, one_rr_per_rrset=True)
    exchanges = [str(record.exchange) for rrset in response.answer for record in rrset if record.rdtype == RdataType.MX]
    return bool(exchanges) and set(exchanges) == {"."}


@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(responses())
def garbage_in_dns(answer: Callable[[bytes], bytes | None]) -> None:
    asyncio.run(look_ups(answer))


def test_the_other_eyes_read_a_record_whatever_the_opcode() -> None:
    """One bit of a null MX answer was turned, and it called itself an UPDATE; garbage found it."""
    asked = "de24010000010000000000010461636d65076578616d706c6500000f000100002904d000000000000c000a0008e47397076da65216"
    header, rest = "de24a90000010001000000010461636d65076578616d706c6500000f0001", "0000292000000000000000"
    for record, is_null in (("c00c000f00010000003c0003000000", True), ("c00c000f00010000003c0005000a01610000", False)):
        answer = bytes.fromhex(header + record + rest)
        assert says_so(bytes.fromhex(asked), answer, MxStatus.NULL_MX) is is_null


def test_garbage_from_a_resolver_ends_a_look_up_and_proves_no_absence() -> None:
    rounds(garbage_in_dns)
