"""What is set for Tier-2 is usable, or one line says what is wrong with it; the key is in no line."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - pytest reads the annotation

import pytest

from ct_stream.probes.tier2_millionverifier import MillionVerifier
from ct_stream.probes.tier2_reacher import Reacher
from ct_stream.probes.tier2_vendors import make_vendor
from ct_stream.settings import Settings, SettingsError, load_settings
from tests.probes.vendors import KEY

REACHER = "http://reacher.internal:8080"


def vendor(settings: Settings) -> MillionVerifier | Reacher | None:
    return make_vendor(settings.tier2_provider, settings.tier2_url, settings.tier2_api_key)


def test_tier2_is_off_unless_it_is_set() -> None:
    assert vendor(load_settings({})) is None
    assert vendor(load_settings({"CT_TIER2_PROVIDER": "none", "CT_TIER2_API_KEY": KEY})) is None


def test_millionverifier_needs_only_a_key(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    for key in ({"CT_TIER2_API_KEY": KEY}, {"CT_TIER2_API_KEY_FILE": str(file)}):
        found = vendor(load_settings({"CT_TIER2_PROVIDER": "millionverifier"} | key))
        assert found == MillionVerifier(secret=KEY, url="https://api.millionverifier.com/api/v3/")


def test_reacher_needs_only_a_url() -> None:
    settings = load_settings({"CT_TIER2_PROVIDER": "reacher", "CT_TIER2_URL": REACHER})
    assert vendor(settings) == Reacher(secret=None, url=f"{REACHER}/v1/check_email")


def test_the_key_is_not_in_the_settings_repr() -> None:
    settings = load_settings({"CT_TIER2_PROVIDER": "millionverifier", "CT_TIER2_API_KEY": KEY})
    assert settings.tier2_api_key == KEY
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        pytest.param({"PROVIDER": "zerobounce"}, "CT_TIER2_PROVIDER 'zerobounce' is unknown; use", id="provider"),
        pytest.param({"PROVIDER": "millionverifier"}, "CT_TIER2_API_KEY is not set; CT_TIER2_PROVIDER", id="no key"),
        pytest.param(
            {"PROVIDER": "millionverifier", "API_KEY": "API_KEY_FOR_OK"}, "CT_TIER2_API_KEY is one of the vendor's",
            id="a key that makes results up",
        ),
        pytest.param(
            {"PROVIDER": "millionverifier", "API_KEY": KEY, "URL": "http://proxy.example.com/"},
            "CT_TIER2_URL 'http://proxy.example.com/' would send the key unencrypted", id="no TLS",
        ),
        pytest.param({"PROVIDER": "reacher", "API_KEY": KEY}, "CT_TIER2_URL is not set; CT_TIER2", id="no url"),
        pytest.param({"URL": "reacher:8080"}, "CT_TIER2_URL is not an http:// or https:// URL", id="no scheme"),
        pytest.param({"URL": "https://"}, "CT_TIER2_URL is not an http:// or https:// URL", id="no host"),
        pytest.param({"URL": "https://a.example:x/"}, "CT_TIER2_URL is not an http:// or https:// URL", id="port"),
        pytest.param({"URL": f"https://u:{KEY}@a.example/"}, "CT_TIER2_URL holds a password; put", id="password"),
        pytest.param({"URL": f"https://a.example/?api={KEY}"}, "CT_TIER2_URL has a query or a fragment", id="a query"),
        pytest.param({"API_KEY": f"{KEY} {KEY}"}, "CT_TIER2_API_KEY holds a space", id="two keys"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line_without_the_key(environ: dict[str, str], words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({f"CT_TIER2_{name}": value for name, value in environ.items()})
    (problem,) = caught.value.problems
    assert str(problem).startswith(words)
    assert KEY not in str(problem)
    assert problem.action, "it says what to do"
