"""Settings that nobody set do not keep a worker from starting, and misspelt ones do."""

from __future__ import annotations

import pytest

from ct_stream.settings import SettingsError, load_settings

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
