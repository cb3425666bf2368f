"""The farm's mail servers talk as their scenarios say, to a real SMTP client and to a bare socket."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiodns
import aiosmtplib
import pytest
from pycares import ARecordData

from ct_stream.local.farm import EVERYWHERE, PATTERNS, SCENARIOS, FarmLog, MailFarm
from ct_stream.local.farm.networks import Networks

JORDAN = {"first": "jordan", "last": "whitfield", "f": "j", "l": "w"}


@pytest.fixture
async def farm(tmp_path: Path) -> AsyncIterator[MailFarm]:
    async with MailFarm(log_path=tmp_path / "farm.jsonl") as running:
        yield running


async def address(farm: MailFarm, host: str) -> str:
    resolver = aiodns.DNSResolver(nameservers=farm.dns_servers.split(","), timeout=2, tries=1)
    answer = await resolver.query_dns(host, "A")
    return next(record.data.addr for record in answer.answer if isinstance(record.data, ARecordData))


async def connected(farm: MailFarm, host: str, **options: object) -> aiosmtplib.SMTP:
    client = aiosmtplib.SMTP(
        hostname=await address(farm, host),
        port=farm.smtp_port,
        timeout=2,
        local_hostname="probe.ct-stream.example",
        **{"start_tls": False} | options,  # type: ignore[arg-type]
    )
    await client.connect()
    return client


async def rcpts(farm: MailFarm, host: str, *recipients: str, **options: object) -> list[int]:
    """Return the code for each recipient; 0 once the server hung up."""
    client = await connected(farm, host, **options)
    codes = []
    try:
        await client.mail("probe@ct-stream.example")
        for recipient in recipients:
            try:
                code, _ = await client.rcpt(recipient)
            except aiosmtplib.SMTPServerDisconnected:
                code = 0
            except aiosmtplib.SMTPResponseException as refusal:
                code = refusal.code
            codes.append(code)
    finally:
        client.close()
    return codes


async def raw(farm: MailFarm, host: str, *lines: str) -> bytes:
    """Return everything a server sends to a client that speaks these lines at once."""
    reader, writer = await asyncio.open_connection(await address(farm, host), farm.smtp_port)
    writer.write("".join(f"{line}\r\n" for line in lines).encode())
    try:
        async with asyncio.timeout(2):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("scenario", "known"),
    [
        ("firstdotlast", "first.last"),
        ("firstlast", "firstlast"),
        ("fdotlast", "f.last"),
        ("firstdotl", "first.l"),
        ("first", "first"),
        ("last", "last"),
        ("info", "info"),
        ("contact", "contact"),
        ("allreject", None),
        ("heloonly", "info"),
        ("multiline", "info"),
        ("eightbit", "info"),
        ("quitsilent", "info"),
    ],
)
async def test_only_the_known_mailbox_is_accepted(farm: MailFarm, scenario: str, known: str | None) -> None:
    domain = f"{scenario}-1.example"
    recipients = [f"{template.format(**JORDAN)}@{domain}" for _, template, _ in PATTERNS]
    codes = await rcpts(farm, f"mx1.{domain}", *recipients, f"q7x2@{domain}")
    assert codes == [250 if name == known else 550 for name, _, _ in PATTERNS] + [550]
    assert SCENARIOS[scenario].expected.method_type == known


@pytest.mark.parametrize(
    ("scenario", "codes"),
    [
        ("catchall", [250, 250, 250, 250, 250]),
        ("grey", [450] * 5),
        ("tempfail", [451] * 5),
        ("full", [552] * 5),
        ("blocklist", [550] * 5),
        ("greyunknown", [450, 450, 250, 450, 450]),
        ("closeafter550", [550, 0, 0, 0, 0]),
        ("421after3", [550, 550, 250, 421, 0]),
        ("452after3", [550, 550, 250, 452, 452]),
        ("blockafter3", [550, 550, 250, 550, 550]),
    ],
)
async def test_each_scenario_replies_to_recipients_as_it_should(
    farm: MailFarm, scenario: str, codes: list[int]
) -> None:
    domain = f"{scenario}-1.example"
    asked = [f"{local}@{domain}" for local in ("a", "b", "info", "c", "d")]
    assert await rcpts(farm, f"mx1.{domain}", *asked) == codes


async def test_the_exim_scenario_denies_every_recipient_after_ten(farm: MailFarm) -> None:
    asked = [f"{n}@exim10-1.example" for n in range(10)] + ["info@exim10-1.example"]
    assert await rcpts(farm, "mx1.exim10-1.example", *asked) == [550] * 11


async def test_a_providers_server_replies_according_to_the_recipients_domain(farm: MailFarm) -> None:
    asked = ["x@catchall-at-bigmail-1.example", "x@allreject-at-bigmail-2.example", "x@elsewhere.example"]
    assert await rcpts(farm, "mx1.bigmail.example", *asked) == [250, 550, 554]


@pytest.mark.parametrize(
    ("scenario", "begins"),
    [
        ("banner554", b"554 5.7.1 "),
        ("banner421", b"421 4.3.2 "),
        ("ratelimit", b"421 4.7.0 "),
        ("httpgarbage", b"HTTP/1.1 400"),
        ("nulgarbage", b"\0" * 512),
        ("lfonly", b"220 mx1.lfonly-1.example ESMTP ready\n250-mx1."),
        ("glued", b"220 mx1.glued-1.example ESMTP ready\r\n250-"),
    ],
)
async def test_each_scenario_begins_a_session_as_it_should(farm: MailFarm, scenario: str, begins: bytes) -> None:
    data = await raw(farm, f"mx1.{scenario}-1.example", "EHLO probe.ct-stream.example", "QUIT")
    assert data.startswith(begins)


async def test_the_glued_scenario_sends_two_replies_to_one_recipient(farm: MailFarm) -> None:
    data = await raw(farm, "mx1.glued-1.example", "RCPT TO:<x@glued-1.example>", "QUIT")
    assert b"User unknown in virtual mailbox table\r\n250 2.1.5 Ok\r\n221" in data


async def test_two_scenarios_send_a_line_of_64_kib_and_a_banner_without_an_end(farm: MailFarm) -> None:
    assert len(await raw(farm, "mx1.longline-1.example", "QUIT")) > 65536
    reader, writer = await asyncio.open_connection(await address(farm, "mx1.endless-1.example"), farm.smtp_port)
    assert len(await reader.readexactly(20_000)) == 20_000
    writer.close()


async def test_the_slow_bytes_scenario_sends_a_reply_byte_by_byte(farm: MailFarm) -> None:
    reader, writer = await asyncio.open_connection(await address(farm, "mx1.slowbytes-1.example"), farm.smtp_port)
    assert len(await reader.read(4096)) < 10
    writer.close()


async def test_a_server_without_a_banner_keeps_silent(farm: MailFarm) -> None:
    with pytest.raises(TimeoutError):
        await raw(farm, "mx1.nobanner-1.example")


async def test_a_self_signed_certificate_works_only_without_validation(farm: MailFarm) -> None:
    host, recipient = "mx1.starttlsrequired-1.example", "info@starttlsrequired-1.example"
    with pytest.raises(aiosmtplib.SMTPSenderRefused, match="STARTTLS"):
        await rcpts(farm, host, recipient)
    with pytest.raises((ssl.SSLError, aiosmtplib.SMTPException)):
        await rcpts(farm, host, recipient, start_tls=True)
    assert await rcpts(farm, host, recipient, start_tls=True, validate_certs=False) == [250]


async def test_a_broken_starttls_ends_the_connection(farm: MailFarm) -> None:
    with pytest.raises((ssl.SSLError, aiosmtplib.SMTPException, ConnectionError)):
        await rcpts(farm, "mx1.starttlsbroken-1.example", "info@x.example", start_tls=True, validate_certs=False)


async def test_the_second_host_answers_when_the_first_is_dead(farm: MailFarm) -> None:
    with pytest.raises(aiosmtplib.SMTPConnectError):
        await rcpts(farm, "mx1.firstdown-1.example")
    assert await rcpts(farm, "mx2.firstdown-1.example", "info@firstdown-1.example") == [250]


async def test_a_black_hole_drops_the_connection_attempt(farm: MailFarm) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await asyncio.open_connection(await address(farm, "mx1.blackhole-1.example"), farm.smtp_port)


async def test_the_connection_limit_scenario_refuses_a_fourth_connection_at_one_time(farm: MailFarm) -> None:
    clients = [await connected(farm, "mx1.connlimit-1.example") for _ in range(3)]
    with pytest.raises(aiosmtplib.SMTPConnectError):
        await connected(farm, "mx1.connlimit-1.example")
    for client in clients:
        client.close()
    assert farm.log.most_sessions_at_once("mx1.connlimit-1.example") == 4


async def test_port_25_is_blocked_and_opened_again(farm: MailFarm) -> None:
    host, recipient = "mx1.info-1.example", "info@info-1.example"
    assert await rcpts(farm, host, recipient) == [250]
    farm.faults.block_smtp("refused")
    with pytest.raises(aiosmtplib.SMTPConnectError):
        await rcpts(farm, host, recipient)
    with pytest.raises(aiosmtplib.SMTPConnectError):  # a host that is first heard of during the fault
        await rcpts(farm, "mx1.info-2.example", "info@info-2.example")
    farm.faults.block_smtp("timeout")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await rcpts(farm, host, recipient)
    farm.faults.clear()
    assert await rcpts(farm, host, recipient) == [250]
    assert await rcpts(farm, "mx1.info-2.example", "info@info-2.example") == [250]


async def test_a_provider_refuses_us_while_the_others_talk(farm: MailFarm) -> None:
    refusal = "550 5.7.1 Service unavailable, client host [192.0.2.1] blocked using zen.spamhaus.org"
    farm.faults.refuse("bigmail.example", refusal)
    asked = "info@info-at-bigmail-1.example"
    assert await rcpts(farm, "mx1.bigmail.example", asked) == [550]
    assert await rcpts(farm, "mx1.info-1.example", "info@info-1.example") == [250]
    farm.faults.refuse(EVERYWHERE, "554 5.7.1 No", stage="banner")
    with pytest.raises(aiosmtplib.SMTPConnectError):
        await rcpts(farm, "mx1.info-1.example", "info@info-1.example")
    farm.faults.accept(EVERYWHERE)
    farm.faults.accept("bigmail.example")
    assert await rcpts(farm, "mx1.bigmail.example", asked) == [250]


async def test_the_farms_log_reports_repeated_questions_and_sessions_that_were_too_close(
    farm: MailFarm, tmp_path: Path
) -> None:
    for domain in ("info-1.example", "info-1.example", "info-2.example"):
        await rcpts(farm, f"mx1.{domain}", f"info@{domain}", f"q7x2@{domain}")
    await asyncio.sleep(0.05)  # the server sees the last close
    farm.log.flush()
    for log in (farm.log, FarmLog.read(tmp_path / "farm.jsonl")):
        assert set(log.answered_twice()) == {"info@info-1.example", "q7x2@info-1.example"}
        assert [(first.id, second.id) for first, second in log.too_close()] == [(0, 1)]
        assert log.too_close(gap_s=0.0) == []
        assert [code[:3] for _, code in log.sessions("info-2.example")[0].recipients] == ["250", "550"]


async def test_hosts_share_addresses_once_the_farm_has_none_left_of_their_own() -> None:
    async with MailFarm(own_addresses=2) as farm:
        used = [await address(farm, f"mx1.info-{n}.example") for n in range(6)]
        assert len(set(used)) == 3
        assert await rcpts(farm, "mx1.info-5.example", "info@info-5.example") == [250]
        assert [session.domain for session in farm.log.sessions()] == ["info-5.example"]


async def test_a_session_of_a_control_is_none_of_a_company_even_before_its_recipient_is_known() -> None:
    async with MailFarm(own_addresses=0) as farm:
        await rcpts(farm, "mx1.info-1.example", "info@info-1.example")
        await rcpts(farm, "mx1.control.example", "postmaster@control.example")
        client = await connected(farm, "mx1.control.example")  # as a control is cut off, or still on its way
        assert [session.host for session in farm.log.company_sessions()] == ["mx1.info-1.example"]
        assert len(farm.log.sessions()) == 3
        client.close()


async def test_the_farm_delays_each_reply_as_set() -> None:
    async with MailFarm(reply_delay_s=0.1) as farm:
        began = time.monotonic()
        await rcpts(farm, "mx1.info-1.example", "info@info-1.example")
        assert 0.3 <= time.monotonic() - began < 1.0  # EHLO, MAIL, RCPT


def test_every_scenario_expects_an_outcome_that_exists() -> None:
    outcomes = {"PASS", "HELD", "CT-M-NO-MX", "CT-M-NO-PATTERN", "CT-M-SMTP-FAIL"}
    for scenario in SCENARIOS.values():
        assert {scenario.expected.outcome, *scenario.expected.also} <= outcomes
        assert "-" not in scenario.name


async def test_one_client_is_refused_everywhere_while_others_are_welcome(farm: MailFarm) -> None:
    farm.faults.refuse_client("127.0.0.9", "550 5.7.1 {peer} is blocked", "rcpt")
    listed, other = ({"source_address": (source, 0)} for source in ("127.0.0.9", "127.0.0.8"))
    assert await rcpts(farm, "mx1.info-a.example", "info@info-a.example", **listed) == [550]
    assert await rcpts(farm, "mx1.info-a.example", "info@info-a.example", **other) == [250]
    assert [session.peer for session in farm.log.sessions()] == ["127.0.0.9", "127.0.0.8"]
    farm.faults.accept_client("127.0.0.9")
    assert await rcpts(farm, "mx1.info-a.example", "info@info-a.example", **listed) == [250]


async def test_the_farm_takes_its_addresses_from_the_networks_that_it_is_given() -> None:
    async with MailFarm(networks=Networks.of(["127.78.0.0/16"])) as farm:
        assert await address(farm, "mx1.info-a.example") == "127.78.0.1"
        assert farm.env()["CT_SMTP_ALLOW_CIDRS"] == "127.78.0.0/16"
        assert await rcpts(farm, "mx1.info-a.example", "info@info-a.example") == [250]


def test_addresses_of_ipv6_are_each_in_another_network() -> None:
    networks = Networks.of(["10.77.0.0/16", "fd77::/32"])
    assert [networks.address(6, number) for number in (0, 1, 250)] == ["fd77::1", "fd77:0:1::1", "fd77::2"]
    assert (networks.address(4, 1), networks.resolvers) == ("10.77.1.1", "10.77.255.53")
