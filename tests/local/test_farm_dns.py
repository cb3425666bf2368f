"""The farm's resolvers answer as a DNS client of the wild would see it."""

import asyncio
import time
from collections.abc import AsyncIterator

import aiodns
import pytest
from pycares import ARecordData, MXRecordData

from ct_stream.local.farm import MailFarm, ResolverMode

NXDOMAIN, NODATA, SERVFAIL = 4, 1, 3
REFUSED, TIMEOUT = 6, 12


@pytest.fixture
async def farm() -> AsyncIterator[MailFarm]:
    async with MailFarm() as running:
        yield running


def resolver(farm: MailFarm, *indexes: int, timeout_s: float) -> aiodns.DNSResolver:
    servers = farm.dns_servers.split(",")
    return aiodns.DNSResolver(nameservers=[servers[index] for index in indexes or (0,)], timeout=timeout_s, tries=1)


async def ask(
    farm: MailFarm, name: str, rtype: str = "MX", *indexes: int, timeout_s: float = 10.0
) -> list[tuple[int, str]] | list[str] | int:
    """Return the MX records or the addresses in the order of the answer, or the number of the error."""
    try:
        answer = await resolver(farm, *indexes, timeout_s=timeout_s).query_dns(name, rtype)
    except aiodns.error.DNSError as error:
        return int(error.args[0])
    if rtype == "MX":
        return [(r.data.priority, r.data.exchange) for r in answer.answer if isinstance(r.data, MXRecordData)]
    return [r.data.addr for r in answer.answer if isinstance(r.data, ARecordData)]


def patience(seen: object) -> float:
    """Return how long to wait: on a busy machine an answer takes its time, and a time-out needs none."""
    return 0.3 if seen == TIMEOUT else 10.0


@pytest.mark.parametrize(
    ("scenario", "seen"),
    [
        ("info", [(10, "mx1.info-1.example")]),
        ("nullmx", [(0, "")]),
        ("nxdomain", NXDOMAIN),
        ("txtonly", NODATA),
        ("addronly", NODATA),
        ("servfail", SERVFAIL),
        ("dnsrefused", REFUSED),
        ("dnstimeout", TIMEOUT),
        ("apexcname", [(10, "mx1.apexcname-1.example")]),
        (
            "unsorted",
            [(30, "mx3.unsorted-1.example"), (10, "mx1.unsorted-1.example"), (20, "mx2.unsorted-1.example")],
        ),
        ("mxgone", [(10, "gone1.mxgone-1.example"), (20, "mx2.mxgone-1.example")]),
        ("mxip", [(10, "127.77.0.1")]),
    ],
)
async def test_the_name_of_a_domain_chooses_its_scenario(farm: MailFarm, scenario: str, seen: object) -> None:
    assert await ask(farm, f"{scenario}-1.example", timeout_s=patience(seen)) == seen


async def test_forty_mx_records_come_over_tcp_after_a_truncated_udp_answer(farm: MailFarm) -> None:
    answer = await ask(farm, "bigmx-1.example")
    assert isinstance(answer, list)
    assert len(answer) == 40
    assert [query.transport for query in farm.log.queries("bigmx-1.example")] == ["udp", "tcp"]


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("mx1.info-1.example", ["127.77.0.1"]),
        ("mx1.cnamemx-1.example", ["127.77.0.1"]),
        ("mx1.mxprivate-1.example", ["10.0.0.1"]),
        ("mx1.mxloop-1.example", ["127.0.0.1"]),
        ("gone1.mxgone-1.example", NXDOMAIN),
        ("mx1.bigmail.example", ["127.77.0.1"]),
        ("mx1.control.example", ["127.77.0.1"]),
        ("x8f2k.control.example", NXDOMAIN),
        ("addronly-1.example", ["127.77.0.1"]),
    ],
)
async def test_mx_hosts_have_addresses(farm: MailFarm, host: str, addresses: object) -> None:
    assert await ask(farm, host, "A") == addresses


async def test_companies_of_one_provider_share_its_host(farm: MailFarm) -> None:
    farm.add("acme.example", "catchall", provider="bigmail.example")
    shared = [(10, "mx1.bigmail.example")]
    assert await ask(farm, "acme.example") == await ask(farm, "info-at-bigmail-7.example") == shared


async def test_an_international_name_is_read_in_its_ascii_form(farm: MailFarm) -> None:
    name = "idn-bücher-1.example".encode("idna").decode()
    assert await ask(farm, name) == [(10, f"mx1.{name}")]


async def test_the_slow_scenario_answers_after_three_seconds(farm: MailFarm) -> None:
    began = time.monotonic()
    answer = await resolver(farm, timeout_s=20).query_dns("dnsslow-1.example", "MX")
    assert answer.answer
    assert time.monotonic() - began > 2.9


@pytest.mark.parametrize(
    ("mode", "seen"),
    [
        (ResolverMode.DOWN, TIMEOUT),
        (ResolverMode.SERVFAIL, SERVFAIL),
        (ResolverMode.REFUSED, REFUSED),
        (ResolverMode.NXDOMAIN_ALL, NXDOMAIN),
        (ResolverMode.WILDCARD, [(10, "mx1.parked.example")]),
    ],
)
async def test_one_resolver_fails_while_the_other_answers(farm: MailFarm, mode: ResolverMode, seen: object) -> None:
    right = [(10, "mx1.control.example")]
    farm.faults.set_resolver(0, mode)
    assert await ask(farm, "control.example", "MX", 0, timeout_s=patience(seen)) == seen
    assert await ask(farm, "control.example", "MX", 1) == right
    farm.faults.clear()
    assert await ask(farm, "control.example", "MX", 0) == right


async def test_a_wildcard_resolver_answers_even_for_names_that_do_not_exist(farm: MailFarm) -> None:
    farm.faults.set_resolvers("wildcard")
    assert await ask(farm, "x8f2k.control.example", "A") == await ask(farm, "gone.example", "A") == ["127.77.0.1"]


async def test_only_the_first_resolver_denies_a_company(farm: MailFarm) -> None:
    assert await ask(farm, "nxfirst-1.example", "MX", 0) == NXDOMAIN
    assert await ask(farm, "nxfirst-1.example", "MX", 1) == [(10, "mx1.nxfirst-1.example")]


async def test_the_log_counts_queries_in_a_window(farm: MailFarm) -> None:
    await asyncio.gather(*(ask(farm, f"info-{n}.example") for n in range(20)))
    assert farm.log.most_queries_in(1.0) == 20
    assert {query.rtype for query in farm.log.queries()} == {"MX"}
