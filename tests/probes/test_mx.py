"""What do the resolvers say, and whom do we believe?"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ct_stream.gate.questions import MxStatus, Trouble
from ct_stream.probes.mx import NameTrouble, Resolver, mx_hosts

if TYPE_CHECKING:
    from tests.probes.conftest import DnsFactory, DnsServer, Zone

A = "a.example."
LOOPBACK = [ip_network("127.0.0.0/8")]


def resolver(*servers: DnsServer, timeout_s: float = 1.2, again_s: float = 0.5) -> Resolver:
    return Resolver([server.address for server in servers], timeout_s=timeout_s, again_s=again_s)


def test_mx_hosts_come_in_preference_order_each_once_in_lower_case() -> None:
    records = [(30, "c.example."), (10, "B.example"), (10, "a.example"), (20, "b.example."), (40, "d.example")]
    assert mx_hosts(records) == ("a.example", "b.example", "c.example", "d.example")


def test_at_most_five_mx_hosts_are_taken() -> None:
    assert mx_hosts([(n, f"mx{n}.example") for n in range(40)]) == tuple(f"mx{n}.example" for n in range(5))


def test_a_null_mx_among_real_ones_is_ignored() -> None:
    assert mx_hosts([(0, ""), (10, "mx.example"), (0, ".")]) == ("mx.example",)


def test_an_exchange_that_is_an_ip_literal_is_kept_for_the_smtp_side_to_judge() -> None:
    assert mx_hosts([(10, "192.0.2.1.")]) == ("192.0.2.1",)


@pytest.mark.parametrize(
    ("told", "status", "hosts"),
    [
        pytest.param(
            ["20 mx2.a.example.", "10 MX1.a.example."], MxStatus.FOUND, ("mx1.a.example", "mx2.a.example"), id="two"
        ),
        pytest.param(["0 ."], MxStatus.NULL_MX, (), id="null MX"),
        pytest.param("NODATA", MxStatus.NO_RECORDS, (), id="no data"),
        pytest.param("NXDOMAIN", MxStatus.NXDOMAIN, (), id="no such name"),
        pytest.param(
            ["a.example. IN CNAME b.example.", "b.example. IN MX 5 mx.b.example."],
            MxStatus.FOUND,
            ("mx.b.example",),
            id="CNAME at the apex",
        ),
        pytest.param(["5 192.0.2.7."], MxStatus.FOUND, ("192.0.2.7",), id="IP literal"),
    ],
)
async def test_mx_answers(
    dns_server: DnsFactory, told: list[str] | str, status: MxStatus, hosts: tuple[str, ...]
) -> None:
    server = await dns_server({(A, "MX"): told})
    answer = await resolver(server).lookup_mx("a.example")
    assert (answer.status, answer.hosts, answer.resolver, answer.detail) == (status, hosts, server.address, "")


@pytest.mark.parametrize("rcode", ["NOTAUTH", "YXDOMAIN", "NXRRSET", "NOTZONE"])
async def test_an_answer_with_neither_records_nor_a_reason_is_no_absence(dns_server: DnsFactory, rcode: str) -> None:
    """c-ares calls any return code that it does not know a success (ares_dns_query_reply_tostatus)."""
    server = await dns_server({(A, "MX"): rcode, (A, "A"): rcode, (A, "AAAA"): rcode})
    assert (await resolver(server).lookup_mx("a.example")).status is MxStatus.UNAVAILABLE
    addresses = await resolver(server).lookup_addresses("a.example")
    assert isinstance(addresses, NameTrouble)
    assert addresses.trouble is Trouble.NAME_LOOKUP


async def test_records_of_a_type_that_nobody_asked_for_are_no_absence(dns_server: DnsFactory) -> None:
    server = await dns_server({(A, "MX"): ["a.example. IN A 8.8.8.8"]})
    assert (await resolver(server).lookup_mx("a.example")).status is MxStatus.UNAVAILABLE


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("NODATA", MxStatus.NO_RECORDS),
        ("NXDOMAIN", MxStatus.NXDOMAIN),
        ("NOTAUTH", MxStatus.UNAVAILABLE),
        (["5 mx.c.example."], MxStatus.FOUND),
        (["c.example. IN CNAME a.example."], MxStatus.UNAVAILABLE),
    ],
    ids=["no records", "no such name", "no reason", "found", "a loop"],
)
async def test_an_alias_alone_is_followed_to_an_answer_with_a_reason(
    dns_server: DnsFactory, end: list[str] | str, status: MxStatus
) -> None:
    chain = ["a.example. IN CNAME b.example.", "b.example. IN CNAME c.example."]
    server = await dns_server({(A, "MX"): chain, ("c.example.", "MX"): end})
    assert (await resolver(server).lookup_mx("a.example")).status is status


async def test_a_truncated_answer_is_fetched_over_tcp(dns_server: DnsFactory) -> None:
    server = await dns_server({(A, "MX"): [f"{n} mx{n}.a.example." for n in range(40, 0, -1)]}, truncate_udp=True)
    answer = await resolver(server).lookup_mx("a.example")
    assert answer.hosts == tuple(f"mx{n}.a.example" for n in range(1, 6))
    assert [transport for transport, _, _ in server.queries] == ["udp", "tcp"]


LONG: Zone = {(A, "MX"): [f"{n} mx{n}.a.example." for n in range(40)]}


@pytest.mark.parametrize("way", ["refused", "silent"])
async def test_an_answer_that_fits_into_no_datagram_is_cut_off_where_tcp_is_closed(
    dns_server: DnsFactory, way: str
) -> None:
    server = await dns_server(LONG, truncate_udp=True)
    server.silent_tcp = way == "silent"
    if way == "refused":
        server.close_tcp()
    answer = await resolver(server).lookup_mx("a.example")
    assert (answer.status, answer.hosts, answer.resolver) == (MxStatus.CUT_OFF, (), server.address)
    assert answer.detail == (
        f"{server.address}: its answer does not fit into UDP, and TCP/53 is closed to this machine"
    )


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (["5 mx.a.example."], MxStatus.FOUND),
        ("NODATA", MxStatus.NO_RECORDS),
        ("SERVFAIL", MxStatus.UNAVAILABLE),
        ("DROP", MxStatus.UNAVAILABLE),
        (["a.example. IN A 8.8.8.8"], MxStatus.UNAVAILABLE),
    ],
    ids=["found", "no data", "SERVFAIL", "no answer", "no MX and no reason"],
)
async def test_an_answer_that_fits_is_not_cut_off_where_tcp_is_closed(
    dns_server: DnsFactory, told: list[str] | str, status: MxStatus
) -> None:
    server = await dns_server({(A, "MX"): told})
    server.close_tcp()
    assert (await resolver(server).lookup_mx("a.example")).status is status


async def test_the_end_of_an_alias_may_be_what_is_cut_off(dns_server: DnsFactory) -> None:
    server = await dns_server({(A, "MX"): ["a.example. IN CNAME b.example."], ("b.example.", "MX"): LONG[A, "MX"]})
    server.truncated = {"b.example."}
    server.close_tcp()
    assert (await resolver(server).lookup_mx("a.example")).status is MxStatus.CUT_OFF


async def test_a_resolver_that_can_send_its_answer_wins_over_one_that_cannot(dns_server: DnsFactory) -> None:
    cut, whole, dead = [await dns_server(LONG, truncate_udp=True) for _ in range(2)] + [
        await dns_server({(A, "MX"): "SERVFAIL"})
    ]
    cut.close_tcp()
    assert (await resolver(cut, whole).lookup_mx("a.example")).resolver == whole.address
    assert (await resolver(dead, cut).lookup_mx("a.example")).status is MxStatus.CUT_OFF


@pytest.mark.parametrize("told", ["SERVFAIL", "REFUSED", "NOTIMP", "FORMERR", "DROP"])
async def test_a_resolver_that_fails_is_followed_by_the_next(dns_server: DnsFactory, told: str) -> None:
    bad, good = await dns_server({(A, "MX"): told}), await dns_server({(A, "MX"): ["5 mx.a.example."]})
    answer = await resolver(bad, good).lookup_mx("a.example")
    assert (answer.status, answer.resolver) == (MxStatus.FOUND, good.address)


async def test_when_all_resolvers_fail_the_detail_names_each(dns_server: DnsFactory) -> None:
    zones: list[Zone] = [{(A, "MX"): "SERVFAIL"}, {(A, "MX"): "DROP"}]
    first, second = [await dns_server(zone) for zone in zones]
    answer = await resolver(first, second).lookup_mx("a.example")
    assert answer.status is MxStatus.UNAVAILABLE
    assert answer.detail == f"SERVFAIL from {first.address}, timeout from {second.address}"


async def test_a_resolver_that_is_not_there_is_unavailable() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answer = await Resolver([f"127.0.0.1:{port}"], timeout_s=1.2, again_s=0.5).lookup_mx("a.example")
    assert answer.status is MxStatus.UNAVAILABLE


async def test_a_lack_of_descriptors_is_not_read_as_a_refusing_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """c-ares calls a socket that it cannot make a refused connection, which is a company's name trouble elsewhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def no_more(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    asked = Resolver([f"127.0.0.1:{port}"], timeout_s=1.2, again_s=0.5)
    monkeypatch.setattr("ct_stream.probes.mx._require_a_socket", no_more)
    with pytest.raises(OSError, match="Too many open files"):
        await asked.lookup_mx("a.example")
    with pytest.raises(OSError, match="Too many open files"):
        await asked.lookup_addresses("mx.a.example")


async def test_servfail_is_asked_once_of_each_resolver(dns_server: DnsFactory) -> None:
    server = await dns_server({(A, "MX"): "SERVFAIL"})
    await resolver(server).lookup_mx("a.example")
    assert len(server.queries) == 1


@pytest.mark.parametrize("told", ["NXDOMAIN", "NODATA"])
async def test_an_absence_is_confirmed_by_a_second_resolver(dns_server: DnsFactory, told: str) -> None:
    first, second = await dns_server({(A, "MX"): told}), await dns_server({(A, "MX"): told})
    answer = await resolver(first, second).lookup_mx("a.example")
    assert answer.resolver == first.address
    assert answer.detail == f"confirmed by {second.address}"


async def test_a_second_resolver_that_finds_records_wins(dns_server: DnsFactory) -> None:
    first, second = await dns_server({(A, "MX"): "NXDOMAIN"}), await dns_server({(A, "MX"): ["5 mx.a.example."]})
    answer = await resolver(first, second).lookup_mx("a.example")
    assert (answer.status, answer.resolver) == (MxStatus.FOUND, second.address)


async def test_an_absence_that_nobody_could_confirm_stands_and_says_so(dns_server: DnsFactory) -> None:
    first, second = await dns_server({(A, "MX"): "NXDOMAIN"}), await dns_server({(A, "MX"): "SERVFAIL"})
    answer = await resolver(first, second).lookup_mx("a.example")
    assert answer.status is MxStatus.NXDOMAIN
    assert answer.detail == f"not confirmed: SERVFAIL from {second.address}"


KNOWN: Zone = {("known.example.", "MX"): ["5 mx.known.example."]}


def wary(*servers: DnsServer, known: tuple[str, ...] = ("known.example",)) -> Resolver:
    return Resolver([server.address for server in servers], timeout_s=1.2, again_s=0.5, known=known)


@pytest.mark.parametrize("told", ["NXDOMAIN", "NODATA", ["0 ."]])
async def test_a_resolver_that_finds_no_mx_of_anybody_is_not_believed(
    dns_server: DnsFactory, told: list[str] | str
) -> None:
    poisoned = await dns_server({(A, "MX"): told, ("known.example.", "MX"): told})
    answer = await wary(poisoned).lookup_mx("a.example")
    assert answer.status is MxStatus.UNAVAILABLE
    assert "known.example too" in answer.detail


@pytest.mark.parametrize("told", ["SERVFAIL", "DROP"])
async def test_an_absence_from_a_resolver_that_fails_at_once_after_it_is_not_believed(
    dns_server: DnsFactory, told: str
) -> None:
    failing = await dns_server({(A, "MX"): "NXDOMAIN", ("known.example.", "MX"): told})
    assert (await wary(failing).lookup_mx("a.example")).status is MxStatus.UNAVAILABLE


async def test_an_absence_from_a_resolver_that_finds_one_known_domain_stands(dns_server: DnsFactory) -> None:
    good = await dns_server({(A, "MX"): "NXDOMAIN", ("gone.example.", "MX"): "NXDOMAIN"} | KNOWN)
    answer = await wary(good, known=("gone.example", "known.example")).lookup_mx("a.example")
    assert (answer.status, answer.resolver) == (MxStatus.NXDOMAIN, good.address)


async def test_the_resolver_after_a_poisoned_one_decides(dns_server: DnsFactory) -> None:
    poisoned = await dns_server({(A, "MX"): "NXDOMAIN", ("known.example.", "MX"): "NXDOMAIN"})
    good = await dns_server({(A, "MX"): ["5 mx.a.example."]} | KNOWN)
    answer = await wary(poisoned, good).lookup_mx("a.example")
    assert (answer.status, answer.hosts) == (MxStatus.FOUND, ("mx.a.example",))


async def test_a_resolver_that_was_silent_is_asked_last_for_a_while(dns_server: DnsFactory) -> None:
    """Else every question of a full worker would wait for it first."""
    silent, good = await dns_server({(A, "MX"): "DROP"}), await dns_server({(A, "MX"): ["5 mx.a.example."]})
    asked = resolver(silent, good)
    assert (await asked.lookup_mx("a.example")).status is MxStatus.FOUND
    waited_for = len(silent.queries)
    for _ in range(3):
        assert (await asked.lookup_mx("a.example")).status is MxStatus.FOUND
    assert len(silent.queries) == waited_for > 0, "the silent one was waited for again"


async def test_a_slow_domain_is_answered_even_when_the_resolver_is_fast_otherwise(dns_server: DnsFactory) -> None:
    """c-ares would learn a timeout from the fast answers, and drop the answer to the first of two datagrams."""
    server = await dns_server({("*.example.", "MX"): ["5 mx.example."]})
    fast = resolver(server, timeout_s=2.0, again_s=0.2)
    for n in range(5):
        await fast.lookup_mx(f"a{n}.example")
    server.delay_s = 0.6
    assert (await fast.lookup_mx("slow.example")).status is MxStatus.FOUND


async def test_a_lost_datagram_is_sent_again(dns_server: DnsFactory) -> None:
    server = await dns_server({(A, "MX"): ["5 mx.a.example."]})
    server.lose = 1
    assert (await resolver(server).lookup_mx("a.example")).status is MxStatus.FOUND
    assert len(server.queries) == 2


async def test_an_absence_is_never_remembered(dns_server: DnsFactory) -> None:
    """A poisoned NXDOMAIN must not outlive the control that clears it."""
    server = await dns_server({(A, "MX"): "NXDOMAIN"})
    asker = resolver(server)
    assert (await asker.lookup_mx("a.example")).status is MxStatus.NXDOMAIN
    server.zone = {(A, "MX"): ["5 mx.a.example."]}
    assert (await asker.lookup_mx("a.example")).status is MxStatus.FOUND


async def test_questions_leave_no_thread_and_no_task_behind(dns_server: DnsFactory) -> None:
    server = await dns_server({(A, "MX"): ["5 mx.a.example."]})
    asker = resolver(server)
    await asker.lookup_mx("a.example")
    before = threading.active_count(), len(asyncio.all_tasks())
    await asyncio.gather(*(asker.lookup_mx("a.example") for _ in range(20)))
    assert (threading.active_count(), len(asyncio.all_tasks())) <= before


async def test_a_server_that_is_no_address_is_named() -> None:
    with pytest.raises(ValueError, match=r"'dns\.example:53' is not a DNS server"):
        Resolver(["dns.example:53"])


def test_without_servers_the_systems_are_taken() -> None:
    assert all(":" in server for server in Resolver().servers)


# ---------------------------------------------------------------- addresses


def host(a: list[str] | str = "NODATA", aaaa: list[str] | str = "NODATA") -> Zone:
    return {("mx.a.example.", "A"): a, ("mx.a.example.", "AAAA"): aaaa}


@pytest.mark.parametrize(
    ("zone", "expected"),
    [
        pytest.param(host(["8.8.8.8"], ["2606:4700::1"]), ("8.8.8.8", "2606:4700::1"), id="IPv4 first"),
        pytest.param(host(["8.8.8.8", "9.9.9.9", "8.8.4.4"]), ("8.8.8.8", "9.9.9.9"), id="two of a family at most"),
        pytest.param(host(["10.0.0.5", "8.8.8.8"]), ("8.8.8.8",), id="private one dropped"),
        pytest.param(host(aaaa=["2606:4700::1"]), ("2606:4700::1",), id="IPv6 only"),
        pytest.param(host(["8.8.8.8"], "SERVFAIL"), ("8.8.8.8",), id="AAAA fails"),
        pytest.param(host(["mx.a.example. IN CNAME b.example.", "b.example. IN A 8.8.8.8"]), ("8.8.8.8",), id="CNAME"),
        pytest.param(host(), Trouble.NO_ADDRESS, id="none"),
        pytest.param(host("NXDOMAIN", "NXDOMAIN"), Trouble.NO_ADDRESS, id="no such name"),
        pytest.param(host("SERVFAIL", "SERVFAIL"), Trouble.NAME_LOOKUP, id="SERVFAIL"),
        pytest.param(host("NODATA", "SERVFAIL"), Trouble.NAME_LOOKUP, id="half an answer"),
        pytest.param(host(["127.0.0.1"], ["::1"]), Trouble.UNROUTABLE, id="loopback"),
        pytest.param(host(aaaa=["::ffff:10.0.0.1"]), Trouble.UNROUTABLE, id="mapped private"),
    ],
)
async def test_addresses(dns_server: DnsFactory, zone: Zone, expected: tuple[str, ...] | Trouble) -> None:
    found = await resolver(await dns_server(zone)).lookup_addresses("mx.a.example")
    assert (found.trouble if isinstance(found, NameTrouble) else found) == expected


async def test_addresses_of_one_family_leave_a_place_to_the_other(dns_server: DnsFactory) -> None:
    server = await dns_server(host(["8.8.8.8", "8.8.4.4", "9.9.9.9"], ["2606:4700::1"]))
    asker = resolver(server)
    assert await asker.lookup_addresses("mx.a.example") == ("8.8.8.8", "8.8.4.4", "2606:4700::1")
    assert await asker.lookup_addresses("mx.a.example", 6) == ("2606:4700::1",)
    server.queries.clear()
    assert await asker.lookup_addresses("mx.a.example", 4) == ("8.8.8.8", "8.8.4.4")
    assert [kind for _, _, kind in server.queries] == ["A"]


async def test_an_allowed_network_may_be_connected_to(dns_server: DnsFactory) -> None:
    server = await dns_server(host(["127.0.0.1", "10.0.0.1"]))
    assert await Resolver([server.address], allowed=LOOPBACK).lookup_addresses("mx.a.example") == ("127.0.0.1",)


@pytest.mark.parametrize(
    "name", ["", "a b.example", "a..example", "a\\032b.example", "x" * 64 + ".example", "é.example"]
)
async def test_an_mx_that_is_no_host_name_is_not_asked_about(dns_server: DnsFactory, name: str) -> None:
    found = await resolver(await dns_server({})).lookup_addresses(name)
    assert isinstance(found, NameTrouble)
    assert found.trouble is Trouble.NO_ADDRESS


async def test_localhost_is_asked_of_the_resolver_not_of_the_hosts_file(dns_server: DnsFactory) -> None:
    server = await dns_server({("localhost.", "A"): "NXDOMAIN", ("localhost.", "AAAA"): "NXDOMAIN"})
    assert isinstance(await resolver(server).lookup_addresses("localhost"), NameTrouble)
    assert len(server.queries) == 2


# ---------------------------------------------------------------- the control

CONTROL: Zone = {
    ("c.example.", "MX"): ["5 mx.c.example."],
    ("*.c.example.", "MX"): "NXDOMAIN",
    ("*.c.example.", "A"): "NXDOMAIN",
}


async def test_the_dns_control_holds_when_the_mx_is_found_and_a_random_name_is_not(dns_server: DnsFactory) -> None:
    assert (await resolver(await dns_server(CONTROL)).dns_control("c.example")).ok


@pytest.mark.parametrize(
    "poison",
    [
        pytest.param({("c.example.", "MX"): "NXDOMAIN"}, id="every name is absent"),
        pytest.param({("*.c.example.", "A"): ["192.0.2.1"]}, id="every name has an address"),
        pytest.param({("*.c.example.", "MX"): ["5 trap.example."]}, id="every name has an MX"),
        pytest.param({("*.c.example.", "MX"): "SERVFAIL"}, id="half dead"),
        pytest.param({("c.example.", "MX"): "SERVFAIL"}, id="dead"),
    ],
)
async def test_the_dns_control_fails_at_a_poisoned_resolver(dns_server: DnsFactory, poison: Zone) -> None:
    result = await resolver(await dns_server(CONTROL | poison)).dns_control("c.example")
    assert not result.ok
    assert "c.example" in result.detail


async def test_one_good_resolver_is_enough_for_the_dns_control(dns_server: DnsFactory) -> None:
    bad, good = await dns_server({("c.example.", "MX"): "SERVFAIL"}), await dns_server(CONTROL)
    assert (await resolver(bad, good).dns_control("c.example")).ok


async def test_the_dns_control_over_tcp_asks_nothing_over_udp(dns_server: DnsFactory) -> None:
    server = await dns_server(CONTROL)
    result = await resolver(server).dns_control("c.example", tcp=True)
    assert (result.ok, "over TCP" in result.detail) == (True, True)
    assert {transport for transport, _, _ in server.queries} == {"tcp"}
    server.close_tcp()
    assert not (await resolver(server).dns_control("c.example", tcp=True)).ok
    assert (await resolver(server).dns_control("c.example")).ok


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_a_dead_resolver_uses_a_bounded_number_of_descriptors(dns_server: DnsFactory) -> None:
    server = await dns_server({("*.example.", "MX"): "DROP"})
    before = descriptors()
    asker = resolver(server, timeout_s=0.2, again_s=0.05)
    asking = asyncio.gather(*(asker.lookup_mx(f"a{n}.example") for n in range(300)))
    await asyncio.sleep(0.1)
    assert descriptors() - before < 450
    assert {answer.status for answer in await asking} == {MxStatus.UNAVAILABLE}
