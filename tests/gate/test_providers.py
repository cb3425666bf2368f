"""A server is known by where it is, whatever its name says."""

from __future__ import annotations

import pytest

from ct_stream.gate.providers import address_of, is_whereabouts, network_of, provider_at, whereabouts


@pytest.mark.parametrize(
    ("ip", "address", "network"),
    [
        pytest.param("203.0.113.77", "203.0.113.77", "203.0.113.0/24", id="IPv4"),
        pytest.param("2001:db8:7:1::25", "2001:db8:7:1::25", "2001:db8:7::/48", id="IPv6"),
        pytest.param("2001:0DB8:7:1:0:0:0:25", "2001:db8:7:1::25", "2001:db8:7::/48", id="spelt at length"),
        pytest.param("::ffff:203.0.113.77", "203.0.113.77", "203.0.113.0/24", id="IPv4 inside IPv6"),
        pytest.param("::1", "::1", "::/48", id="a small number is not taken for IPv4"),
        pytest.param("fe80::1%eth0", "fe80::1", "fe80::/48", id="with its interface"),
        pytest.param("", "", "", id="none"),
        pytest.param("mx1.acme.example", "", "", id="no address"),
    ],
)
def test_an_address_has_one_spelling_and_one_network(ip: str, address: str, network: str) -> None:
    assert (address_of(ip), network_of(ip)) == (address, network)
    assert whereabouts(ip) == ((network, address) if address else ())


@pytest.mark.parametrize(
    ("closed", "provider"),
    [
        pytest.param(set(), "acme.example", id="nothing is closed"),
        pytest.param({"203.0.113.0/24"}, "203.0.113.0/24", id="its network"),
        pytest.param({"203.0.113.7"}, "203.0.113.7", id="its address"),
        pytest.param({"203.0.113.7", "203.0.113.0/24"}, "203.0.113.0/24", id="both"),
        pytest.param({"203.0.113.8", "198.51.100.0/24"}, "acme.example", id="others"),
    ],
)
def test_a_companys_own_server_counts_as_the_closed_network_around_it(closed: set[str], provider: str) -> None:
    assert provider_at("mx.acme.example", "203.0.113.7", "acme.example", closed) == provider
    assert provider_at("mx.bigmail.example", "203.0.113.7", "acme.example", closed) == "bigmail.example", "shared"
    assert provider_at("mx.acme.example", "", "acme.example", closed) == "acme.example", "its address is unknown"


def test_a_network_is_told_from_a_name() -> None:
    assert all(map(is_whereabouts, whereabouts("203.0.113.7") + whereabouts("2001:db8::1")))
    assert not any(map(is_whereabouts, ("acme.example", "com", "", "7")))
