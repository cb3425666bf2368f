"""docker-compose.yml and the Dockerfile start what the code is, with settings that exist."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from ct_stream.settings import Settings, variable

_ROOT = Path(__file__).parents[2]
_COMPOSE: dict[str, Any] = yaml.safe_load((_ROOT / "docker-compose.yml").read_text("utf-8"))
_SERVICES: dict[str, dict[str, Any]] = _COMPOSE["services"]
_SETTINGS = {variable(field.name) for field in fields(Settings)}
_PINNED = re.compile(r"[a-z0-9./-]+:\d+\.\d+(\.\d+)?(-[a-z0-9.-]+)?")
_SECONDS = re.compile(r"(\d+)s")
_LONG_RUNNING = {name: service for name, service in _SERVICES.items() if service["restart"] != "no"}
_each_service = pytest.mark.parametrize("service", _SERVICES.values(), ids=_SERVICES)


def _variables(text: str) -> set[str]:
    return set(re.findall(r"\bCT_[A-Z0-9_]+", text))


@pytest.mark.parametrize("name", ["docker-compose.yml", "Dockerfile", "ops/compose/make-secrets"])
def test_every_setting_that_is_named_exists(name: str) -> None:
    """A worker refuses to start on a CT_ variable that it does not know; `NAME_FILE` is the twin of `NAME`."""
    named = _variables((_ROOT / name).read_text("utf-8"))
    assert not {v for v in named if v not in _SETTINGS and v.removesuffix("_FILE") not in _SETTINGS}


@_each_service
def test_no_secret_is_in_an_environment_variable(service: dict[str, Any]) -> None:
    """DSNs, passwords and a webhook's address come from files: an environment is shown by `docker inspect`."""
    for name in service.get("environment", {}):
        assert not re.search(r"(DSN|PASSWORD|API_KEY|WEBHOOK)$", name)


@_each_service
def test_every_image_is_pinned(service: dict[str, Any]) -> None:
    """Tomorrow's start runs what today's did."""
    assert _PINNED.fullmatch(service["image"])


def test_the_image_is_built_from_a_pinned_one() -> None:
    """The Dockerfile's bases name a version, too."""
    bases = re.findall(r"^FROM (\S+)", (_ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
    assert bases
    assert all(_PINNED.fullmatch(base) for base in bases)


@_each_service
def test_ports_are_open_on_loopback_only(service: dict[str, Any]) -> None:
    """The broker asks for no password, and /readyz and /metrics tell anybody what the gate does."""
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_long_running_services_have_a_health_check() -> None:
    """What others wait for, and what a person looks at, can say that it is well."""
    assert set(_LONG_RUNNING) == {"kafka", "postgres", "gate"}
    for service in _LONG_RUNNING.values():
        assert service["healthcheck"]["test"][0] == "CMD"


def test_the_gate_may_drain_before_it_is_killed() -> None:
    """SIGKILL comes after CT_DRAIN_S and the 5 s that follow it."""
    gate = _SERVICES["gate"]
    grace = _SECONDS.fullmatch(gate["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) > float(gate["environment"]["CT_DRAIN_S"]) + 5


def test_the_gate_starts_after_migrations_logins_and_topics() -> None:
    """Tables before logins, and both before the worker."""
    assert _SERVICES["gate"]["depends_on"] == {
        "roles": {"condition": "service_completed_successfully"},
        "topics": {"condition": "service_completed_successfully"},
    }
    assert _SERVICES["roles"]["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert _SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}


@_each_service
def test_secrets_and_mounted_files_are_there(service: dict[str, Any]) -> None:
    """Each secret is declared and written by make-secrets; each mounted file is in the repository."""
    written = (_ROOT / "ops/compose/make-secrets").read_text("utf-8")
    for secret in service.get("secrets", []):
        assert _COMPOSE["secrets"][secret]["file"] == f"./.secrets/{secret}"
        assert f"write {secret} " in written or (secret.endswith("_password") and "_password" in written)
    for volume in service.get("volumes", []):
        source = volume.partition(":")[0]
        assert (_ROOT / source).is_file() if source.startswith("./") else source in _COMPOSE["volumes"]


def test_the_worker_is_no_root() -> None:
    """The image names its user."""
    assert re.search(r"^USER ct-stream$", (_ROOT / "Dockerfile").read_text("utf-8"), re.MULTILINE)
