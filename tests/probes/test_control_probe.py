"""A control proves whom it talks to: no proxy, no other server and no lying resolver passes for it."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from ct_stream.control_domains import ControlDomain
from ct_stream.gate.questions import MxAnswer, MxStatus, Trouble
from ct_stream.probes.control_probe import SmtpControl, address_seen, first_success
from ct_stream.probes.mx import ControlResult, NameTrouble
from ct_stream.probes.peer import Identity, Impostor, Mismatch, Peer, Peers
from ct_stream.probes.smtp import SmtpSettings

if TYPE_CHECKING:
    from pathlib import Path

    from ct_stream.probes.mx import Family
    from tests.probes.conftest import Dialogue, MailFarm, SmtpServer, Step

HOST = "mx.control.example"
OFFER = "250-mx.control.example\n250-SIZE 1000\n250 STARTTLS"
SEEN = "250-mx.control.example at your service, [203.0.113.9]\n250 SIZE 1000"
PINNED = ControlDomain(domain="control.example", pin="google.example")
ALONE = ControlDomain(domain="control.example")
PLAIN = ControlDomain(domain="control.example", is_plain=True)
EHLO, MAIL = "EHLO gate.example", "MAIL FROM:<probe@gate.example>"
TODAY = datetime.now(UTC)


class Names:
    """A resolver of control.example, whose hosts have these addresses."""

    def __init__(self, **addresses: tuple[str, ...]) -> None:
        self.addresses = {f"{label}.control.example": found for label, found in addresses.items()} or {
            HOST: ("127.0.0.1",)
        }

    async def lookup_mx(self, domain: str) -> MxAnswer:
        assert domain == "control.example"
        return MxAnswer(status=MxStatus.FOUND, hosts=tuple(self.addresses))

    async def lookup_addresses(self, host: str, family: Family | None = None) -> tuple[str, ...] | NameTrouble:
        found = tuple(ip for ip in self.addresses[host] if family in (None, ip_address(ip).version))
        return found or NameTrouble(trouble=Trouble.NO_ADDRESS, detail="")

    async def dns_control(self, domain: str) -> ControlResult:
        raise AssertionError(f"nobody asks DNS about {domain}")


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA(organization_name="Known Authority")


@pytest.fixture
def peers(authority: trustme.CA, tmp_path: Path) -> Peers:
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    return Peers(tmp_path / "authority.pem")


def shows(authority: trustme.CA, *names: str, **validity: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **validity).configure_cert(context)
    return context


def up_to_tls(*inside: Step, offer: str = OFFER) -> Dialogue:
    return ["220 mx", (EHLO, offer), ("STARTTLS", "220 go"), *inside]


INSIDE: tuple[Step, ...] = ((EHLO, SEEN), (MAIL, "250 ok"))


async def ask(
    farm: MailFarm, peers: Peers, control: ControlDomain = PINNED, names: Names | None = None, **options: Any
) -> ControlResult:
    settings = SmtpSettings(
        helo="gate.example", mail_from="probe@gate.example", port=farm.port, connect_s=0.5, command_s=0.5, quit_s=0.1
    )
    return await SmtpControl(names or Names(), settings, peers).smtp_control(control, **options)


def asked_for_mail(server: SmtpServer) -> bool:
    return any(line.startswith("MAIL") for line in server.commands)


# ---------------------------------------------------------------- whose certificate


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["mx.google.example"], id="below the pin"),
        pytest.param(["google.example"], id="the pin"),
        pytest.param(["*.google.example"], id="a wildcard"),
        pytest.param(["elsewhere.example", "a.smtp.google.example"], id="one of several"),
    ],
)
async def test_a_certificate_for_the_pinned_name_proves_the_control(
    farm: MailFarm, authority: trustme.CA, peers: Peers, names: list[str]
) -> None:
    server = await farm.server(up_to_tls(*INSIDE), tls=shows(authority, *names))
    result = await ask(farm, peers)
    assert result == ControlResult(
        ok=True,
        detail=f"{HOST} takes MAIL FROM; authenticated as {names[-1]} by Known Authority",
        our_address="203.0.113.9",
        family=4,
    )
    assert server.commands == [EHLO, "STARTTLS", EHLO, MAIL, "QUIT"]


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["notgoogle.example"], id="a longer word"),
        pytest.param(["google.example.evil.example"], id="a longer name"),
        pytest.param(["mx.control.example"], id="the MX host that a resolver named"),
        pytest.param(["*.example"], id="a wider wildcard"),
        pytest.param(["192.0.2.1"], id="an address"),
    ],
)
async def test_a_certificate_for_another_name_proves_nothing(
    farm: MailFarm, authority: trustme.CA, peers: Peers, names: list[str]
) -> None:
    server = await farm.server(up_to_tls(), tls=shows(authority, *names))
    result = await ask(farm, peers)
    assert not result.ok
    shown = "no name" if names == ["192.0.2.1"] else names[0]
    assert result.detail == (
        f"{HOST}: somebody answers in its place: its certificate is for {shown}, not for google.example"
    )
    assert (result.impostor and result.impostor.mismatch) is Mismatch.OTHER_NAME
    assert not asked_for_mail(server)


@pytest.mark.parametrize(
    ("name", "is_pinned"),
    [
        ("MX.Google.Example.", True),
        ("google.example", True),
        (".google.example", False),
        ("*google.example", False),
        ("*.*.google.example", False),
        ("evil.example\0.google.example", False),
        ("evil.example .google.example", False),
        ("google.example\n", False),
        ("example", False),
        ("*", False),
        ("", False),
    ],
)
def test_a_name_counts_only_as_a_whole(name: str, is_pinned: bool) -> None:
    peer = Peer(context=ssl.create_default_context(), pin="google.example")
    issuer = ((("commonName", "A"),),)
    seen = peer.identify({"subjectAltName": (("DNS", name),), "issuer": issuer}, HOST)
    assert isinstance(seen, Identity if is_pinned else Impostor)


def test_only_a_dns_name_counts() -> None:
    """An address of mail or the subject's common name is whatever the certificate's owner wrote."""
    peer = Peer(context=ssl.create_default_context(), pin="google.example")
    certificate = {
        "subject": ((("commonName", "mx.google.example"),),),
        "subjectAltName": (("email", "x.google.example"), ("URI", "mx.google.example"), ("DNS", "evil.example")),
    }
    assert isinstance(peer.identify(certificate, HOST), Impostor)


@pytest.mark.parametrize("name", [HOST, "*.control.example"])
async def test_without_a_pin_the_certificate_must_be_the_mx_hosts(
    farm: MailFarm, authority: trustme.CA, peers: Peers, name: str
) -> None:
    await farm.server(up_to_tls(*INSIDE), tls=shows(authority, name))
    result = await ask(farm, peers, ALONE)
    assert (result.ok, f"authenticated as {HOST} by" in result.detail) == (True, True)


@pytest.mark.parametrize("name", ["control.example", "other.control.example", "*.mx.control.example", "google.example"])
async def test_without_a_pin_no_other_certificate_will_do(
    farm: MailFarm, authority: trustme.CA, peers: Peers, name: str
) -> None:
    server = await farm.server(up_to_tls(), tls=shows(authority, name))
    result = await ask(farm, peers, ALONE)
    assert result.detail == f"{HOST}: somebody answers in its place: its certificate is not for {HOST}"
    assert not asked_for_mail(server)


@pytest.mark.parametrize(
    ("certificate", "mismatch", "reason"),
    [
        pytest.param(
            lambda _: shows(trustme.CA(), "mx.google.example", HOST),
            Mismatch.NOT_SIGNED,
            "its certificate is not signed by a known authority",
            id="an authority of its own",
        ),
        pytest.param(
            lambda ca: shows(
                ca, "google.example", HOST, not_before=TODAY - timedelta(9), not_after=TODAY - timedelta(1)
            ),
            Mismatch.NOT_NOW,
            f"its certificate has expired: is this machine's clock wrong? It says {TODAY.date()}",
            id="expired",
        ),
        pytest.param(
            lambda ca: shows(
                ca, "google.example", HOST, not_before=TODAY + timedelta(1), not_after=TODAY + timedelta(9)
            ),
            Mismatch.NOT_NOW,
            "its certificate is not valid yet: is this machine's clock wrong?",
            id="not valid yet",
        ),
    ],
)
@pytest.mark.parametrize("control", [PINNED, ALONE], ids=["pinned", "alone"])
async def test_a_certificate_that_is_not_valid_proves_nothing(
    farm: MailFarm,
    authority: trustme.CA,
    peers: Peers,
    certificate: Any,
    mismatch: Mismatch,
    reason: str,
    control: ControlDomain,
) -> None:
    server = await farm.server(up_to_tls(), tls=certificate(authority))
    result = await ask(farm, peers, control)
    assert not result.ok
    assert result.detail.startswith(f"{HOST}: somebody answers in its place: {reason}")
    assert result.impostor is not None
    assert result.impostor.mismatch is mismatch
    assert not asked_for_mail(server)


async def test_without_authorities_the_reason_says_that_this_machine_knows_none(
    farm: MailFarm, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    await farm.server(up_to_tls(), tls=shows(authority, "mx.google.example"))
    result = await ask(farm, Peers())
    assert "this machine knows none at all: install ca-certificates, or set CT_CONTROL_CA_FILE" in result.detail


async def test_the_hosts_name_is_sent_along(farm: MailFarm, authority: trustme.CA, peers: Peers) -> None:
    """Without it Google shows a certificate that nobody signed."""
    asked: list[str | None] = []
    tls = shows(authority, "mx.google.example")
    tls.sni_callback = lambda _, name, __: asked.append(name)
    await farm.server(up_to_tls(*INSIDE), tls=tls)
    assert (await ask(farm, peers)).ok
    assert asked == [HOST]


# ---------------------------------------------------------------- no way around the certificate


@pytest.mark.parametrize(
    ("dialogue", "reason"),
    [
        pytest.param(["220 mx", (EHLO, "250 mx")], "STARTTLS is stripped on the way: it is not offered", id="silent"),
        pytest.param(
            ["220 mx", (EHLO, "250-mx\n250 XXXXXXXA")],
            "STARTTLS is stripped on the way: it is not offered",
            id="overwritten",
        ),
        pytest.param(
            ["220 mx", (EHLO, "250-mx STARTTLS\n250-STARTTLSX\n250 SIZE STARTTLS")],
            "STARTTLS is stripped on the way: it is not offered",
            id="other words",
        ),
        pytest.param(
            ["220 mx", (EHLO, "502 no"), ("HELO gate.example", "250 mx")],
            "STARTTLS is stripped on the way: it is not offered",
            id="HELO alone",
        ),
        pytest.param(
            ["220 mx", (EHLO, OFFER), ("STARTTLS", "454 4.7.0 not now")],
            "STARTTLS is stripped on the way: it is offered, and refused with '454 not now'",
            id="refused",
        ),
    ],
)
async def test_a_control_never_falls_back_to_the_greeting(
    farm: MailFarm, peers: Peers, dialogue: Dialogue, reason: str
) -> None:
    server = await farm.server(dialogue)
    result = await ask(farm, peers)
    assert not result.ok
    assert result.detail == f"{HOST}: somebody answers in its place: {reason}"
    assert (result.impostor and result.impostor.mismatch) is Mismatch.NO_TLS
    assert not asked_for_mail(server)


@pytest.mark.parametrize("junk", ["220 go", "220 go\n250 injected"], ids=["silent", "more replies"])
async def test_a_handshake_that_fails_proves_nothing(farm: MailFarm, peers: Peers, junk: str) -> None:
    server = await farm.server(["220 mx", (EHLO, OFFER), ("STARTTLS", junk)])
    server.hang_up_after = True
    result = await ask(farm, peers)
    assert (result.ok, result.impostor) == (False, None)
    assert result.detail.startswith(f"{HOST} at starttls: tls")


async def test_starttls_with_a_parameter_is_starttls(farm: MailFarm, authority: trustme.CA, peers: Peers) -> None:
    offer = "250-mx.control.example\n250-starttls required\n250 SIZE 1000"
    await farm.server(up_to_tls(*INSIDE, offer=offer), tls=shows(authority, "mx.google.example"))
    assert (await ask(farm, peers)).ok


async def test_replies_that_came_before_the_handshake_are_not_believed(
    farm: MailFarm, authority: trustme.CA, peers: Peers
) -> None:
    """Who sits on the way can put text before the encryption (CVE-2011-0411): it is not read as said inside."""
    dialogue: Dialogue = [
        "220 mx",
        (EHLO, OFFER),
        ("STARTTLS", b"220 go\r\n250 mx at your service, [192.0.2.66]\r\n250 ok\r\n"),
        *INSIDE,
    ]
    await farm.server(dialogue, tls=shows(authority, "mx.google.example"))
    assert (await ask(farm, peers)).our_address == "203.0.113.9"


async def test_a_control_must_take_mail_from_us_inside(farm: MailFarm, authority: trustme.CA, peers: Peers) -> None:
    listed = "550 5.7.1 blocked using list.example at spamhaus"
    await farm.server(up_to_tls((EHLO, SEEN), (MAIL, listed)), tls=shows(authority, "mx.google.example"))
    result = await ask(farm, peers)
    assert (result.ok, result.refused, result.impostor) == (False, True, None)
    assert "spamhaus" in result.detail


async def test_a_second_server_may_prove_what_the_first_could_not(
    farm: MailFarm, authority: trustme.CA, peers: Peers
) -> None:
    await farm.server(["421 busy"])
    await farm.server(up_to_tls(*INSIDE), tls=shows(authority, "mx.google.example"))
    assert (await ask(farm, peers, names=Names(a=("127.0.0.1",), b=("127.0.0.2",)))).ok


async def test_a_second_server_proves_nothing_where_somebody_answers_in_the_place_of_the_first(
    farm: MailFarm, authority: trustme.CA, peers: Peers
) -> None:
    """Who intercepts a part of port 25 may let a control through, and answer for companies."""
    await farm.server(["220 proxy", (EHLO, "250 proxy")])
    behind = await farm.server(up_to_tls(*INSIDE), tls=shows(authority, "mx.google.example"))
    result = await ask(farm, peers, names=Names(a=("127.0.0.1",), b=("127.0.0.2",)))
    assert not result.ok
    assert result.impostor is not None
    assert behind.connections == 0


async def test_a_plain_control_says_that_nobody_was_checked(farm: MailFarm, peers: Peers) -> None:
    await farm.server(["220 mx", (EHLO, "250 mx Hello [192.0.2.7]"), (MAIL, "250 ok")])
    assert await ask(farm, peers, PLAIN) == ControlResult(
        ok=True,
        detail=f"{HOST} takes MAIL FROM, but who answers there was not checked",
        our_address="192.0.2.7",
        family=4,
    )


# ---------------------------------------------------------------- which way


async def test_a_control_over_one_family_connects_to_no_address_of_the_other(
    farm: MailFarm, authority: trustme.CA, peers: Peers
) -> None:
    server = await farm.server(up_to_tls(*INSIDE), tls=shows(authority, "mx.google.example"))
    names = Names(a=("::1",), b=("::1",), c=("::1", "127.0.0.1"))
    result = await ask(farm, peers, names=names, family=4)
    assert (result.ok, result.family) == (True, 4)
    result = await ask(farm, peers, names=names, family=6)
    assert (result.ok, result.family, server.connections) == (False, 6, 1)
    result = await ask(farm, peers, names=Names(a=("127.0.0.1",)), family=6)
    assert (result.ok, result.family, result.detail) == (False, 0, "a.control.example: no_address")


@pytest.mark.parametrize(
    ("greeting", "address"),
    [
        ("mx.google.com at your service, [203.0.113.9]", "203.0.113.9"),
        ("mx.google.com at your service, [2001:DB8::9]", "2001:db8::9"),
        ("AM.mail.protection.outlook.com Hello [203.0.113.9]", "203.0.113.9"),
        ("mx Hello gate.example [IPv6:2001:db8::9], pleased to meet you", "2001:db8::9"),
        ("mx [mx1] Hello [203.0.113.9]", "203.0.113.9"),
        ("mx Hello [203.0.113.900]", ""),
        ("mx Hello [dead]", ""),
        ("mx Hello 203.0.113.9", ""),
        ("mx", ""),
        ("", ""),
    ],
)
def test_our_address_is_read_only_where_it_is_one(greeting: str, address: str) -> None:
    assert address_seen(greeting) == address


async def test_all_failures_together_keep_what_was_found_out() -> None:
    impostor = Impostor(mismatch=Mismatch.NO_TLS, reason="r")
    failures = {
        "a": ControlResult(ok=False, detail="a", refused=True, is_authentic=True, family=4),
        "b": ControlResult(ok=False, detail="b", family=4),
        "c": ControlResult(ok=False, detail="c", impostor=impostor, family=4),
    }

    async def failing(name: str) -> ControlResult:
        return failures[name]

    together = ControlResult(ok=False, detail="a; b", refused=True, is_authentic=True, family=4)
    assert await first_success(failing, ["a", "b"]) == together
    assert await first_success(failing, ["c", "a"]) == failures["c"], "the next one is not asked"
    failures["b"] = ControlResult(ok=True, detail="b")
    assert (await first_success(failing, ["a", "b"])).ok
