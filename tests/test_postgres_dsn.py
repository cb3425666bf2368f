"""A DSN as people have it is read, and no complaint about one shows its password."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
from asyncpg.connect_utils import _parse_connect_arguments  # type: ignore[attr-defined]

from ct_stream.postgres_dsn import read_dsn
from ct_stream.problems import ProblemError
from ct_stream.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "s3cret"


def arguments(dsn: str) -> tuple[list[tuple[str, int]], str | None, str | None, str | None]:
    """Return hosts, user, password and database as asyncpg reads them."""
    hosts, parameters, *_ = _parse_connect_arguments(
        dsn=read_dsn(dsn).dsn, host=None, port=None, user=None, password=None, passfile=None, database=None,
        command_timeout=None, statement_cache_size=100, max_cached_statement_lifetime=1,
        max_cacheable_statement_size=1,
        ssl=None, direct_tls=None, server_settings=None, target_session_attrs=None, krbsrvname=None, gsslib=None,
        service=None, servicefile=None,
    )  # fmt: skip
    return hosts, parameters.user, parameters.password, parameters.database


@pytest.mark.parametrize(
    "password", ["p%23a", "p%2Fa", "p%40a", "p%25a", "p%3Fa", "p:a", "p[a", "p]a", "p&a=b", "pä℀", "p+a"]
)
def test_any_password_arrives_as_it_is(password: str) -> None:
    from urllib.parse import unquote

    _, user, read, database = arguments(f"postgresql://ct_gate:{password}@db.example:6432/outreach?sslmode=disable")
    assert (user, read, database) == ("ct_gate", unquote(password), "outreach")


@pytest.mark.parametrize(
    ("dsn", "hosts"),
    [
        ("postgresql://u:p@db.example/outreach?sslmode=disable", [("db.example", 5432)]),
        ("postgres://u:p@a.example:1,b.example:2/outreach?sslmode=disable", [("a.example", 1), ("b.example", 2)]),
        ("postgresql://u:p@[2001:db8::1]:6432/outreach?sslmode=disable", [("2001:db8::1", 6432)]),
        ("postgresql://u:p@/outreach?host=db.example&port=6432&sslmode=disable", [("db.example", 6432)]),
        ("postgresql:///outreach?host=db.example&user=u&password=p%23%2F&sslmode=disable", [("db.example", 5432)]),
        ("postgresql://u:p@%2Fvar%2Frun%2Fpostgresql/outreach", ["/var/run/postgresql/.s.PGSQL.5432"]),
    ],
)
def test_the_forms_of_libpq_are_read(dsn: str, hosts: object) -> None:
    assert arguments(dsn)[0] == hosts


def test_a_database_may_be_named_elsewhere_than_in_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    services = tmp_path / "services.conf"
    services.write_text("[outreach]\nhost=db.example\ndbname=of_the_service\nuser=u\npassword=p\nsslmode=disable\n")
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    hosts = [("db.example", 5432)]
    for dsn in ("postgresql://?service=outreach", "postgresql:///?service=outreach"):
        assert arguments(dsn) == (hosts, "u", "p", "of_the_service")
    assert arguments("postgresql:///mine?service=outreach") == (hosts, "u", "p", "mine")
    assert arguments("postgresql://u:p@db.example/?dbname=mine&sslmode=disable") == (hosts, "u", "p", "mine")


def test_what_only_libpq_knows_is_left_out_and_named() -> None:
    read = read_dsn(
        "postgresql://u:p@db.example/outreach?channel_binding=require&connect_timeout=10&keepalives=1&keepalives_idle=30"
        "&gssencmode=disable&application_name=mine&sslmode=require"
    )
    assert read.ignored == ("channel_binding", "connect_timeout", "gssencmode", "keepalives", "keepalives_idle")
    assert read.dsn == "postgresql://u:p@db.example/outreach?application_name=mine&sslmode=require"
    settings = load_settings({"CT_POSTGRES_DSN": "postgresql://u:p@db.example/outreach?gssencmode=disable"})
    assert settings.notes == ("CT_POSTGRES_DSN: gssencmode ignored, which only libpq knows",)


def test_the_systems_authorities_are_those_of_the_system() -> None:
    read = read_dsn("postgresql://u:p@db.example/outreach?sslrootcert=system")
    assert "sslmode=verify-full" in read.dsn
    file = ssl.get_default_verify_paths().cafile
    assert file is not None
    assert read_dsn(read.dsn).dsn == read.dsn
    assert file.rpartition("/")[2] in read.dsn


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        (f"postgresql://u:{SECRET}#x@db.example/outreach", "%23"),
        (f"postgresql://u:{SECRET}/x@db.example/outreach", "%2F"),
        (f"postgresql://u:x/{SECRET}@db.example/outreach", "%2F"),
        (f"postgresql://u:{SECRET}@x@db.example/outreach", "%40"),
        (f"postgresql://u:{SECRET}%x@db.example/outreach", "%25"),
        (f"postgresql://u:x?{SECRET}@db.example/outreach", "%3F"),
        (f"postgresql://u:{SECRET} x@db.example/outreach", "%20"),
        (f"postgresql://u:{SECRET}\x1b[2J@db.example/outreach", "%20"),
        (f"postgresql://u:{SECRET}@db.example:port/outreach", "host or a port"),
        (f"postgresql://u:{SECRET}@db.example/outreach?sslmode=maybe", "sslmode"),
        (f"postgresql://u:{SECRET}@db.example/outreach?{SECRET}", "parameter 1"),
        (f"postgresql://u:{SECRET}@db.example/outreach?sslrootcert=system&sslmode=require", "verify-full"),
        (f"mysql://u:{SECRET}@db.example/outreach", "postgresql://"),
        (f"host=db.example password={SECRET}", "postgresql://"),
        (f"{SECRET}", "postgresql://"),
    ],
)
def test_what_cannot_be_read_is_one_line_without_the_password(dsn: str, says: str) -> None:
    with pytest.raises(ProblemError) as refused:
        read_dsn(dsn)
    with pytest.raises(SettingsError) as error:
        load_settings({"CT_POSTGRES_OPS_DSN": dsn})
    for text in (str(refused.value), str(error.value)):
        assert says in text
        assert SECRET not in text
        assert "\n" not in text
    assert str(error.value).startswith("CT_POSTGRES_OPS_DSN ")


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("db.example:99999/outreach", "has the port 99999, which cannot be; write a port from 1 to 65535"),
        ("db.example:0/outreach", "has the port 0, which cannot be"),
        (
            "db.example/outreach?target_session_attrs=bogus",
            "has an unknown target_session_attrs; use one of any,",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_it_is_tried(end: str, said: str) -> None:
    with pytest.raises(ProblemError) as refused:
        read_dsn(f"postgresql://u:{SECRET}@{end}")
    assert str(refused.value).startswith(said)
    assert SECRET not in str(refused.value)


def test_the_newest_libpqs_options_are_left_out_too() -> None:
    assert read_dsn("postgresql://u:p@db.example/outreach?oauth_issuer=https://x&sslmode=require").ignored == (
        "oauth_issuer",
    )
