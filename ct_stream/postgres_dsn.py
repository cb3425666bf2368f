"""Reads a Postgres DSN as libpq writes it, and returns one that asyncpg takes.

No error and no note quotes the DSN: whatever is wrong with it, its password may be the part that was cut at the wrong
place.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, unquote_plus, urlencode

from ct_stream.problems import ProblemError

_EXAMPLE = "postgresql://user:password@host:port/database"
_ESCAPES = {"/": "%2F", "?": "%3F", "#": "%23", "@": "%40", "%": "%25", " ": "%20"}
#: What libpq reads and asyncpg would send to the server as a setting, which refuses the connection.
_NOT_ASYNCPGS = frozenset(
    [
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "fallback_application_name",
        "gssdelegation",
        "gssencmode",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "max_protocol_version",
        "min_protocol_version",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_issuer",
        "oauth_scope",
        "replication",
        "require_auth",
        "requirepeer",
        "requiressl",
        "scram_client_key",
        "scram_server_key",
        "sslcertmode",
        "sslcompression",
        "sslcrldir",
        "sslkeylogfile",
        "sslsni",
        "tcp_user_timeout",
    ]
)
#: Where Debian, Fedora and Alpine keep all authorities in one file.
_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
)
_SESSION_ATTRIBUTES = ("any", "read-write", "read-only", "primary", "standby", "prefer-standby")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresDsn:
    """A DSN for asyncpg, and what was left out of it."""

    dsn: str
    ignored: tuple[str, ...] = ()  #: the names of libpq's parameters that asyncpg does not have


def read_dsn(raw: str) -> PostgresDsn:
    """Read a connection URI (libpq, "Connection URIs"). Raises ProblemError, which starts where a name would end."""
    scheme, separator, rest = raw.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise ProblemError("does not start with postgresql://", f"write {_EXAMPLE}")
    _refuse_unescaped(rest)
    authority, slash, path_and_query = rest.partition("/")
    if not slash:
        authority, question_mark, query = authority.partition("?")
        path = ""
    else:
        path, question_mark, query = path_and_query.partition("?")
    login, at, hosts = authority.rpartition("@")
    parameters = _parameters(query) if question_mark and query else {}
    _check_hosts(hosts)
    if not hosts and "host" not in parameters and "hostaddr" in parameters:
        parameters["host"] = parameters.pop("hostaddr")  # an address where libpq needs no name
    ignored = tuple(sorted(_NOT_ASYNCPGS & parameters.keys()))
    for name in ignored:
        del parameters[name]
    mode = parameters.get("sslmode")
    if mode is not None and mode not in _SSL_MODES:
        raise ProblemError("has an unknown sslmode", f"use one of {', '.join(_SSL_MODES)}")
    wanted = parameters.get("target_session_attrs")
    if wanted is not None and wanted not in _SESSION_ATTRIBUTES:
        raise ProblemError("has an unknown target_session_attrs", f"use one of {', '.join(_SESSION_ATTRIBUTES)}")
    if parameters.get("sslrootcert") == "system":
        # As libpq: the system's authorities, and nothing less than verify-full.
        if mode not in (None, "verify-full"):
            raise ProblemError("has sslrootcert=system with a weaker sslmode", "write sslmode=verify-full")
        parameters |= {"sslmode": "verify-full", "sslrootcert": str(_system_authorities())}
    user, colon, password = login.partition(":")
    login = _requoted(user) + (f":{_requoted(password)}" if colon else "")
    made = f"postgresql://{login}{at}{hosts}"
    if path:  # asyncpg takes a slash alone for a database whose name is empty, and asks no parameter and no service
        made += f"/{_requoted(path)}"
    if parameters:
        made += f"?{urlencode(parameters)}"
    return PostgresDsn(dsn=made, ignored=ignored)


def _refuse_unescaped(rest: str) -> None:
    """Refuse a character that ends a part of a URL and was meant to be in the password."""
    wrong = None
    # The end of the authority: an `@` beyond it was meant to end the login.
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    if "#" in rest:
        wrong = "#"
    elif any(c.isspace() or not c.isprintable() for c in rest):
        wrong = " "
    elif "@" not in authority and "@" in rest.partition("?")[0]:
        wrong = "/"
    elif "@" not in authority and "@" in rest and "password=" not in rest and "user=" not in rest:
        wrong = "?"
    elif authority.count("@") > 1:
        wrong = "@"
    elif re.search(r"%(?![0-9A-Fa-f]{2})", rest):
        wrong = "%"
    if wrong is not None:
        name = "a space" if wrong == " " else repr(wrong)
        raise ProblemError(
            f"holds {name} where none can be",
            f"if it belongs to the password or the user, write {_ESCAPES[wrong]} for it",
        )


def _parameters(query: str) -> dict[str, str]:
    parameters = {}
    for number, pair in enumerate(query.split("&"), 1):
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9_.]+", name):
            raise ProblemError(f"has no name=value as parameter {number} after the '?'", f"write {_EXAMPLE}?name=value")
        if value:
            parameters[name] = unquote_plus(value)
    return parameters


def _check_hosts(hosts: str) -> None:
    for host in hosts.split(","):
        if not re.fullmatch(r"(?:\[[0-9A-Za-z:.%_-]*\]|[^:\[\]]*)(?::\d{0,5})?", host):
            raise ProblemError("has a host or a port that cannot be read", f"write {_EXAMPLE}, an IPv6 address in []")
        port = host.rpartition(":")[2] if ":" in host.rpartition("]")[2] else ""
        if port and not 0 < int(port) < 65536:
            raise ProblemError(f"has the port {port}, which cannot be", "write a port from 1 to 65535")


def _requoted(text: str) -> str:
    return quote(unquote(text), safe="")


def _system_authorities() -> Path:
    own: str | None = ssl.get_default_verify_paths().cafile
    file = own or next((name for name in _AUTHORITIES if Path(name).is_file()), None)
    if file is None:
        raise ProblemError(
            "has sslrootcert=system, and this system has no file of authorities", "name a PEM file there"
        )
    return Path(file)
