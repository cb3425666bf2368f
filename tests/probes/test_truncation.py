"""Only the resolver's own word says that its answer is cut off."""

from __future__ import annotations

import asyncio
import errno
import struct
from typing import TYPE_CHECKING, Any, cast

import dns.flags
import dns.message
import pytest

from ct_stream.probes.truncation import _address, is_cut_off

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Answers = Callable[[bytes], list[bytes]]


class Resolver(asyncio.DatagramProtocol):
    """Sends what it was told to send for each question."""

    def __init__(self) -> None:
        self.answers: Answers = lambda _: []
        self.asked: list[dns.message.Message] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.asked.append(dns.message.from_wire(data))
        for answer in self.answers(data):
            self.transport.sendto(answer, addr)

    @property
    def address(self) -> str:
        return "127.0.0.1:{1}".format(*self.transport.get_extra_info("sockname"))


@pytest.fixture
async def resolver() -> AsyncIterator[Resolver]:
    loop = asyncio.get_running_loop()
    transport, resolver = await loop.create_datagram_endpoint(Resolver, ("127.0.0.1", 0))
    yield resolver
    transport.close()


def answer(question: bytes, *, cut: bool = True, **changes: int) -> bytes:
    message = dns.message.make_response(dns.message.from_wire(question))
    message.flags |= dns.flags.TC if cut else 0
    for name, value in changes.items():
        setattr(message, name, value)
    return message.to_wire()


async def test_the_question_is_one_for_the_mx_with_room_for_1232_bytes(resolver: Resolver) -> None:
    resolver.answers = lambda question: [answer(question)]
    assert await is_cut_off(resolver.address, "Acme.example.", 1.0)
    (asked,) = resolver.asked
    assert [str(part) for part in asked.question] == ["Acme.example. IN MX"]
    assert (asked.payload, bool(asked.flags & dns.flags.RD)) == (1232, True)


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param(lambda question: [answer(question, cut=False)], id="whole"),
        pytest.param(lambda question: [answer(question, id=(question[0] << 8 | question[1]) ^ 1)], id="another number"),
        pytest.param(lambda question: [answer(question.replace(b"acme", b"ecma"))], id="another name"),
        pytest.param(lambda question: [question[:2] + struct.pack("!H", 0x0300) + question[4:]], id="a question"),
        pytest.param(lambda question: [question[:2] + b"\x82"], id="three bytes"),
        pytest.param(lambda _: [b""], id="nothing in it"),
        pytest.param(lambda _: [], id="silence"),
        pytest.param(lambda question: [answer(question, cut=False), answer(question)], id="the first counts"),
    ],
)
async def test_anything_else_is_not_cut_off(resolver: Resolver, answers: Answers) -> None:
    resolver.answers = answers
    assert not await is_cut_off(resolver.address, "acme.example", 0.2)


async def test_a_stray_datagram_does_not_hide_the_answer(resolver: Resolver) -> None:
    resolver.answers = lambda question: [b"junk", answer(question, cut=False, id=7), answer(question)]
    assert await is_cut_off(resolver.address, "acme.example", 1.0)


async def test_a_port_where_nobody_listens_says_nothing(resolver: Resolver) -> None:
    address = resolver.address
    resolver.transport.close()
    await asyncio.sleep(0)
    assert not await is_cut_off(address, "acme.example", 5.0)


async def test_a_lack_of_descriptors_is_not_read_as_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_more(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_datagram_endpoint", no_more)
    with pytest.raises(OSError, match="too many open files"):
        await is_cut_off("127.0.0.1:53", "acme.example", 1.0)


@pytest.mark.parametrize(
    ("server", "address"),
    [
        ("192.0.2.1:5353", ("192.0.2.1", 5353)),
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("[2001:db8::1]:5353", ("2001:db8::1", 5353)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[fe80::1]:53%eth0", ("fe80::1%eth0", 53)),
    ],
)
def test_a_resolvers_address_is_read_as_c_ares_writes_it(server: str, address: tuple[str, int]) -> None:
    assert _address(server) == address
