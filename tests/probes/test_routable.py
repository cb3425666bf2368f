"""Which addresses may be connected to?"""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from ct_stream.gate.providers import is_own_server, provider_of
from ct_stream.probes.routable import is_ip_literal, is_routable

DROPPED = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/3",
    "4000::/2",
    "8000::/1",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "64:ff9b::/96",
]


@pytest.mark.parametrize("network", DROPPED)
def test_a_dropped_range_is_dropped_from_its_first_address_to_its_last(network: str) -> None:
    whole = ip_network(network)
    for address in (whole[0], whole[-1], whole[whole.num_addresses // 2]):
        assert not is_routable(str(address))


@pytest.mark.parametrize(
    "neighbour",
    [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.3.0",
        "192.88.98.255",
        "192.88.100.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "8.8.8.8",
        "2001:200::",
        "2001:db7:ffff::",
        "2001:db9::",
        "2003::",
        "2000::",
        "3ffe::",
        "2606:4700::1111",
    ],
)
def test_the_neighbours_of_dropped_ranges_are_routable(neighbour: str) -> None:
    assert is_routable(neighbour)


@pytest.mark.parametrize(
    "hostile",
    [
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::127.0.0.1",
        "2002:7f00:1::",
        "2002:a00:1::",
        "::1",
        "::",
        "fec0::1",
        "ff02::1",
        "fe80::1%eth0",
        "2606:4700::1%1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "::ffff:0:127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "010.0.0.1",
        "8.8.8.8/32",
        "[8.8.8.8]",
        "8.8.8",
        "localhost",
        "255.255.255.255",
    ],
)
def test_hostile_forms_are_not_routable(hostile: str) -> None:
    assert not is_routable(hostile)


@pytest.mark.parametrize("text", ["", " 8.8.8.8", "8.8.8.8\n", "8.8.8.8 ", "\u0661.1.1.1"])
def test_what_is_not_exactly_an_address_is_not_routable(text: str) -> None:
    assert not is_routable(text)


def test_a_mapped_public_address_is_the_public_address() -> None:
    assert is_routable("::ffff:8.8.8.8")


def test_allowed_networks_are_routable_and_nothing_beside_them() -> None:
    allowed = [ip_network("127.0.0.0/30"), ip_network("fd00::/64")]
    assert is_routable("127.0.0.3", allowed)
    assert is_routable("::ffff:127.0.0.3", allowed)
    assert is_routable("fd00::1", allowed)
    assert not is_routable("127.0.0.4", allowed)
    assert not is_routable("fd00:0:0:1::1", allowed)


@pytest.mark.parametrize("host", ["192.0.2.1", "[192.0.2.1]", "::1", "[ipv6:::1]", "127.1", "2130706433", "0x7f000001"])
def test_ip_literals_in_any_spelling(host: str) -> None:
    assert is_ip_literal(host)


@pytest.mark.parametrize("host", ["mx.example", "mx1.example", "1.example", "localhost", "", "a.0xample"])
def test_names_are_no_ip_literals(host: str) -> None:
    assert is_ip_literal(host) is (host == "a.0xample")  # no top-level domain begins with 0x


@pytest.mark.parametrize(
    ("host", "domain", "provider", "own"),
    [
        pytest.param("mx1.bigmail.example", "acme.example", "bigmail.example", False, id="shared"),
        pytest.param("mail.acme.co.uk", "acme.co.uk", "acme.co.uk", True, id="own below a public suffix"),
        pytest.param("mail.other.co.uk", "acme.co.uk", "other.co.uk", False, id="same public suffix"),
        pytest.param("MX.Acme.Example.", "sub.acme.example", "acme.example", True, id="own, in capitals"),
        pytest.param("co.uk", "acme.co.uk", "acme.co.uk", True, id="a bare suffix"),
        pytest.param("localhost", "acme.example", "acme.example", True, id="one label"),
        pytest.param("mx.a.github.io", "b.github.io", "a.github.io", False, id="neighbours below a private suffix"),
        pytest.param("a..b", "acme.example", "acme.example", True, id="no name"),
    ],
)
def test_whose_server_it_is(host: str, domain: str, provider: str, own: bool) -> None:
    assert provider_of(host, domain) == provider
    assert is_own_server(host, domain) is own
