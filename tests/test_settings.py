"""Settings that nobody set do not keep a worker from starting, and misspelt ones do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trustme

from ct_stream.control_domains import ControlDomain
from ct_stream.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from pathlib import Path

#: What Kubernetes sets for a Service `ct-stream`, and for `ct-web` and `ct-smtp`, whose variables look like ours.
SERVICE_LINKS = {
    "CT_STREAM_SERVICE_HOST": "10.96.0.11",
    "CT_STREAM_SERVICE_PORT": "6066",
    "CT_STREAM_SERVICE_PORT_HTTP_METRICS": "6066",
    "CT_STREAM_PORT": "tcp://10.96.0.11:6066",
    "CT_STREAM_PORT_6066_TCP": "tcp://10.96.0.11:6066",
    "CT_STREAM_PORT_6066_TCP_PROTO": "tcp",
    "CT_STREAM_PORT_6066_TCP_PORT": "6066",
    "CT_STREAM_PORT_6066_TCP_ADDR": "10.96.0.11",
    "CT_WEB_PORT": "tcp://10.96.0.12:80",
    "CT_SMTP_PORT": "tcp://10.96.0.13:25",
    "CT_SMTP_SERVICE_HOST": "10.96.0.13",
    "CT_DNS_PORT_53_UDP_ADDR": "10.96.0.10",
}


def test_the_service_links_of_kubernetes_are_passed_over_with_a_note() -> None:
    settings = load_settings(SERVICE_LINKS)
    assert (settings.web_port, settings.smtp_port) == (6066, 25)
    (note,) = settings.notes
    assert all(name in note for name in SERVICE_LINKS)
    assert load_settings({"CT_WEB_PORT": "7000"}).notes == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [("CT_WEBB_PORT", "6066"), ("CT_STREAM_PORTS", "tcp://10.96.0.11:1"), ("CT_SERVICE", "x"), ("CT_IN_FLIGTH", "10")],
)
def test_a_misspelt_setting_is_still_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"{name} is not a setting of ct-stream"):
        load_settings(SERVICE_LINKS | {name: value})


# ---------------------------------------------------------------- control domains


def test_controls_are_pinned_to_the_names_of_those_who_run_their_servers() -> None:
    assert load_settings({}).control_domains == (
        ControlDomain(domain="gmail.com", pin="google.com"),
        ControlDomain(domain="outlook.com", pin="outlook.com"),
    )


def test_a_control_is_pinned_or_its_own_or_plain() -> None:
    settings = load_settings({"CT_CONTROL_DOMAINS": " Gmail.com. = Google.com , a.example ,plain.example=plain"})
    assert settings.control_domains == (
        ControlDomain(domain="gmail.com", pin="google.com"),
        ControlDomain(domain="a.example"),
        ControlDomain(domain="plain.example", is_plain=True),
    )
    assert ",".join(map(str, settings.control_domains)) == "gmail.com=google.com,a.example,plain.example=plain"


def test_a_plain_control_comes_with_a_note() -> None:
    (note,) = load_settings({"CT_CONTROL_DOMAINS": "a.example=plain,b.example,c.example=plain"}).notes
    assert "nobody checks who answers for a.example, c.example (=plain)" in note
    assert load_settings({"CT_CONTROL_DOMAINS": "a.example,plain.example=plain.example"}).notes == ()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("gmail", "'gmail' is not a full host name; name domains"),
        ("gmail.com,,outlook.com", "'' is not a full host name; name domains"),
        ("=google.com", "'' is not a full host name; name domains"),
        ("gmail.com=", "'gmail.com=' has nothing behind '='; write behind gmail.com= the name"),
        ("gmail.com=google", "'google' is not a full host name; write behind gmail.com="),
        ("gmail.com=*.google.com", r"'\*.google.com' is not a full host name; write behind gmail.com="),
        ("gmail.com=google.com=plain", "'google.com=plain' is not a full host name"),
        ("gmail.com=co.uk", "'gmail.com=co.uk' pins a name below which anybody gets a certificate"),
        ("gmail.com=google.com,GMAIL.com", "names gmail.com twice; keep one of them"),
        ("gmail.com=Plain", "'Plain' is not a full host name"),
    ],
)
def test_a_control_that_cannot_be_read_is_refused_with_what_to_write(value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=f"^CT_CONTROL_DOMAINS {words}"):
        load_settings({"CT_CONTROL_DOMAINS": value})


def test_the_authorities_of_controls_are_read_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(file)
    assert load_settings({"CT_CONTROL_CA_FILE": str(file)}).control_ca_file == file
    for content in ("", "no certificate", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"):
        file.write_text(content)
        with pytest.raises(SettingsError, match=r"^CT_CONTROL_CA_FILE '.*' holds no certificate in PEM; name a PEM"):
            load_settings({"CT_CONTROL_CA_FILE": str(file)})


@pytest.mark.parametrize(("name", "why"), [("gone.pem", "No such file"), (".", "Is a directory")])
def test_authorities_that_cannot_be_read_are_refused(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(SettingsError, match=f"^CT_CONTROL_CA_FILE '.*' cannot be read: {why}.*; name a PEM file"):
        load_settings({"CT_CONTROL_CA_FILE": str(tmp_path / name)})
