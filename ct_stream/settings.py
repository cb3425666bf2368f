"""Read the settings, which are environment variables with the prefix `CT_`, and say what is wrong with them.

A variable `NAME_FILE` names a file that holds the value (for secrets). All that are missing or wrong are named at once,
each in a line of its own.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from ct_stream.control_domains import ControlDomain, plain_note, trusting
from ct_stream.gate.providers import is_anybodys
from ct_stream.kafka_tls import WrongTlsFile, tls_context
from ct_stream.postgres_dsn import PostgresDsn, read_dsn
from ct_stream.problems import Problem, ProblemError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrongSetting(Problem):
    """A setting that is missing or wrong; `what` continues a sentence that begins with the setting's name."""

    setting: str  #: such as CT_SMTP_HELO

    def __str__(self) -> str:
        return f"{self.setting} {self.what}; {self.action}"


class SettingsError(Exception):
    """One or more settings are missing or wrong; one line for each."""

    def __init__(self, problems: Sequence[WrongSetting]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


class _Unusable(ProblemError):
    """A value that no setting can have; the message starts where the setting's name ends."""


#: What Kubernetes adds for each Service of the namespace, named `ct-...` (docker links did the same).
_SERVICE_LINK = re.compile(
    r"CT_\w+_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
)
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://\S+:\d+")


def _is_service_link(key: str, value: str) -> bool:
    """Return whether a variable was made for a Service, such as CT_STREAM_PORT=tcp://10.0.0.1:80: no person set it."""
    return bool(_SERVICE_LINK.fullmatch(key) or (key.endswith("_PORT") and _SERVICE_ADDRESS.fullmatch(value)))


def _default_data_dir() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "ct-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, checked. Secrets are left out of its repr."""

    kafka_bootstrap: str | None = None  #: host:port,... of the Kafka brokers
    kafka_prefix: str = ""  #: goes before the name of each topic and of the group
    kafka_security_protocol: str = "PLAINTEXT"  #: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL
    kafka_sasl_mechanism: str | None = None  #: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512
    kafka_sasl_username: str | None = None
    kafka_sasl_password: str | None = field(default=None, repr=False)
    kafka_ssl_cafile: Path | None = None  #: certificates of authorities, PEM; default: the system's
    kafka_ssl_certfile: Path | None = None  #: client certificate, PEM
    kafka_ssl_keyfile: Path | None = None  #: client key, PEM
    kafka_ssl_password: str | None = field(default=None, repr=False)  #: passphrase of the client key
    postgres_dsn: str | None = field(default=None, repr=False)  #: for the gate, role ct_gate
    postgres_ops_dsn: str | None = field(default=None, repr=False)  #: for people, role ct_ops
    postgres_admin_dsn: str | None = field(default=None, repr=False)  #: for migrations
    postgres_connections: int = 8  #: that one worker opens at most
    dns_servers: tuple[str, ...] = ()  #: ip:port of each resolver, in order; default: the system's
    smtp_port: int = 25
    smtp_helo: str | None = None  #: the name that our address's reverse DNS gives
    smtp_mail_from: str | None = None  #: the sender of our probes, an address that accepts bounces
    egress: str = "default"  #: the name of the address that this worker's probes come from
    smtp_allow_cidrs: tuple[str, ...] = ()  #: networks that may be connected to besides the public ones
    control_domains: tuple[ControlDomain, ...] = (  #: prove that our own resolvers and port 25 work
        ControlDomain(domain="gmail.com", pin="google.com"),
        ControlDomain(domain="outlook.com", pin="outlook.com"),
    )
    control_ca_file: Path | None = (
        None  #: certificates of the authorities that sign the controls', PEM; default: the system's
    )
    toolbox: Path | None = None  #: another SNAP_ON_TOOLBOX.yaml
    in_flight: int = 1000  #: companies that one worker asks about at the same time
    pass_deadline_s: float = 90.0  #: how long one company may wait for servers' answers
    drain_s: float = 20.0  #: how long running passes may still take when a worker stops
    spine_grace_s: float = 60.0  #: how long a missing spine row is looked up again before it counts
    tier2_provider: str = "none"  #: none, millionverifier or reacher
    tier2_url: str | None = None  #: of the vendor; default: the public one, where it has one
    tier2_api_key: str | None = field(default=None, repr=False)
    alert_webhook: str | None = field(default=None, repr=False)  #: where alerts are posted; its path is a secret
    web_host: str = "127.0.0.1"
    web_port: int = 6066  #: 0: a free one
    log: str = "text"  #: text for people, json for machines
    data_dir: Path = field(default_factory=_default_data_dir)  #: of the embedded stack
    notes: tuple[str, ...] = ()  #: what was read otherwise than written, a sentence each

    def require(self, *names: str) -> None:
        """Raise SettingsError with a line for each of `names` that is not set."""
        problems = [
            WrongSetting(setting=variable(name), what="is not set", action=f"set it to {_EXAMPLES[name]}")
            for name in names
            if getattr(self, name) is None
        ]
        if problems:
            raise SettingsError(problems)


_EXAMPLES = {
    "kafka_bootstrap": "your brokers, such as kafka1.example.com:9092,kafka2.example.com:9092",
    "postgres_dsn": "the gate's database, such as postgresql://ct_gate:...@db.example.com/outreach",
    "postgres_ops_dsn": "a database login with the role ct_ops, such as postgresql://ct_ops:...@db.example.com/outreach",
    "postgres_admin_dsn": "a login that may create roles and tables, for migrations",
    "smtp_helo": "the name in your address's reverse DNS, such as probe.example.com",
    "smtp_mail_from": "a sender that accepts bounces, such as probe@example.com",
}


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"CT_{name.upper()}"


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Read all settings from `environ`. Raises SettingsError with a line for each wrong one."""
    problems: list[WrongSetting] = []
    values: dict[str, Any] = {}
    notes: list[str] = []
    links = sorted(key for key, value in environ.items() if key.startswith("CT_") and _is_service_link(key, value))
    if links:
        notes.append(
            f"{', '.join(links)}: ignored: Kubernetes sets them for a Service, and they are not settings of ct-stream"
        )
    environ = {key: value for key, value in environ.items() if key not in links}
    for name, read in _READERS.items():
        try:
            raw = _raw(environ, variable(name))
            if raw is not None:
                values[name] = read(raw)
        except ProblemError as error:
            problem = error.problem
            problems.append(WrongSetting(setting=variable(name), what=problem.what, action=problem.action))
    for name, value in values.items():
        if isinstance(value, PostgresDsn):
            values[name] = value.dsn
            if value.ignored:
                notes.append(f"{variable(name)}: {', '.join(value.ignored)} ignored, which only libpq knows")
    known = {variable(name) for name in _READERS}
    problems.extend(
        WrongSetting(setting=key, what="is not a setting of ct-stream", action="see the README's table of settings")
        for key in sorted(environ)
        if key.startswith("CT_") and key not in known and key.removesuffix("_FILE") not in known
    )
    note = plain_note(values.get("control_domains", ()))
    if note is not None:
        notes.append(note)
    problems.extend(_tier2_problems(values))
    problems.extend(_tls_problems(values))
    sasl = values.get("kafka_security_protocol", "").startswith("SASL")
    problems.extend(
        WrongSetting(setting=variable(name), what="is not set; CT_KAFKA_SECURITY_PROTOCOL needs it", action="set it")
        for name in ("kafka_sasl_mechanism", "kafka_sasl_username", "kafka_sasl_password")
        if sasl and name not in values
    )
    if problems:
        raise SettingsError(problems)
    return Settings(**values, notes=tuple(notes))


def _tier2_problems(values: Mapping[str, Any]) -> list[WrongSetting]:
    """Return what is missing or wrong for the chosen Tier-2 vendor. No line contains the key."""
    provider, url = values.get("tier2_provider"), values.get("tier2_url")
    key = values.get("tier2_api_key")
    problems = []
    if provider == "millionverifier":
        if key is None:
            problems.append(
                WrongSetting(
                    setting="CT_TIER2_API_KEY",
                    what="is not set; CT_TIER2_PROVIDER 'millionverifier' needs it",
                    action="set it, best from a file: CT_TIER2_API_KEY_FILE",
                )
            )
        elif key.startswith("API_KEY_FOR_"):
            problems.append(
                WrongSetting(
                    setting="CT_TIER2_API_KEY",
                    what="is one of the vendor's test keys, whose results are made up",
                    action="set it to a real key",
                )
            )
        if url is not None and url.startswith("http://") and not _is_loopback(url):
            problems.append(
                WrongSetting(
                    setting="CT_TIER2_URL",
                    what=f"{url!r} would send the key unencrypted",
                    action="use https://, or unset it to use the vendor's own URL",
                )
            )
    if provider == "reacher" and url is None:
        problems.append(
            WrongSetting(
                setting="CT_TIER2_URL",
                what="is not set; CT_TIER2_PROVIDER 'reacher' needs it",
                action="set it to the URL of your back end, such as http://reacher.internal:8080/v1/check_email",
            )
        )
    return problems


def _tls_problems(values: Mapping[str, Any]) -> list[WrongSetting]:
    """Return what is wrong with the certificates and the key for Kafka, if it speaks TLS."""
    if not values.get("kafka_security_protocol", "").endswith("SSL"):
        return []
    names = ("kafka_ssl_cafile", "kafka_ssl_certfile", "kafka_ssl_keyfile", "kafka_ssl_password")
    try:
        tls_context(*map(values.get, names))
    except WrongTlsFile as error:
        return [WrongSetting(setting=variable(error.setting), what=error.problem.what, action=error.problem.action)]
    return []


def _is_loopback(url: str) -> bool:
    try:
        return ipaddress.ip_address(urlsplit(url).hostname or "").is_loopback
    except ValueError:
        return False


def _raw(environ: Mapping[str, str], key: str) -> str | None:
    """Return a variable's value, or the contents of the file that NAME_FILE names; empty means unset."""
    value = environ.get(key, "").strip()
    path = environ.get(f"{key}_FILE", "").strip()
    if value and path:
        raise _Unusable(f"and {key}_FILE are both set", "keep one of them")
    if path:
        try:
            return Path(path).read_text("utf-8").strip() or None
        except (OSError, UnicodeDecodeError) as error:
            raise _Unusable(f"cannot be read from {key}_FILE {path!r}: {error}", "name a text file there") from error
    return value or None


def _choice(*options: str) -> Callable[[str], str]:
    def read(raw: str) -> str:
        if raw not in options:
            raise _Unusable(f"{raw!r} is unknown", f"use one of {', '.join(options)}")
        return raw

    return read


def _number(kind: Callable[[str], Value], least: float, most: float) -> Callable[[str], Value]:
    def read(raw: str) -> Value:
        try:
            number = kind(raw)
        except ValueError:
            raise _Unusable(f"{raw!r} is not a number", f"use {least:g} to {most:g}") from None
        if not least <= number <= most:  # type: ignore[operator]
            raise _Unusable(f"{raw!r} is out of range", f"use {least:g} to {most:g}")
        return number

    return read


def _bootstrap(raw: str) -> str:
    for broker in raw.split(","):
        host, colon, port = broker.strip().rpartition(":")
        if not (colon and host and port.isdigit()) or "/" in broker:
            raise _Unusable(f"{broker!r} is not host:port", "write host:port,host:port")
    return ",".join(broker.strip() for broker in raw.split(","))


def _egress(raw: str) -> str:
    """Read the name of an address; it becomes a part of the names of guardrails."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", raw):
        raise _Unusable(f"{raw!r} cannot name an egress", "use letters, digits, '.', '_' and '-', up to 64")
    return raw


def _prefix(raw: str) -> str:
    """Read the beginning of topic names, which Kafka limits to 249 letters of few kinds."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", raw):
        raise _Unusable(f"{raw!r} cannot begin the name of a topic", "use letters, digits, '.', '_' and '-', up to 100")
    return raw


def _dns_servers(raw: str) -> tuple[str, ...]:
    servers = []
    for server in raw.split(","):
        text = server.strip()
        host, colon, port = text.rpartition(":")
        if text.startswith("[") and "]" in text:
            host, port = text[1:].split("]", 1)[0], text.rpartition("]:")[2] or "53"
        elif not colon or text.count(":") > 1:
            host, port = text, "53"
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise _Unusable(f"{text!r} is not ip:port", "write addresses, such as 192.0.2.53:53") from None
        if not port.isdecimal() or not 0 < int(port) < 65536:
            raise _Unusable(f"{text!r} has no usable port", "write ip:port")
        servers.append(f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")
    return tuple(servers)


def _cidrs(raw: str) -> tuple[str, ...]:
    networks = []
    for text in raw.split(","):
        try:
            networks.append(str(ipaddress.ip_network(text.strip())))
        except ValueError as error:
            raise _Unusable(
                f"{text.strip()!r} is not a network: {error}", "write networks, such as 192.0.2.0/24"
            ) from None
    return tuple(networks)


def _host_name(raw: str, action: str = "set it to the name in your reverse DNS") -> str:
    labels = raw.rstrip(".").split(".")
    if len(labels) < 2 or not all(label.replace("-", "a").isalnum() and label.isascii() for label in labels):
        raise _Unusable(f"{raw!r} is not a full host name", action)
    return raw.rstrip(".").lower()


def _mail_address(raw: str) -> str:
    local_part, at, domain = raw.rpartition("@")
    if not at or not local_part or any(c.isspace() or c in "<>" for c in raw):
        raise _Unusable(f"{raw!r} is not a mail address", "set it to a sender that accepts bounces")
    _host_name(domain, "set it to an address whose domain receives mail, such as probe@example.com")
    return raw


def _control_domains(raw: str) -> tuple[ControlDomain, ...]:
    controls: dict[str, ControlDomain] = {}
    for part in raw.split(","):
        control = _control_domain(part.strip())
        if control.domain in controls:
            raise _Unusable(f"names {control.domain} twice", "keep one of them")
        controls[control.domain] = control
    return tuple(controls.values())


def _control_domain(text: str) -> ControlDomain:
    name, equals, pin = (word.strip() for word in text.partition("="))
    action = "name domains whose mail servers always answer, such as gmail.com=google.com,outlook.com=outlook.com"
    domain = _host_name(name, action)
    if not equals:
        return ControlDomain(domain=domain)
    if pin == "plain":
        return ControlDomain(domain=domain, is_plain=True)
    action = f"write behind {domain}= the name that the server's certificate must equal or end in, such as google.com"
    if not pin:
        raise _Unusable(f"{text!r} has nothing behind '='", action)
    pin = _host_name(pin, action)
    if is_anybodys(pin):
        raise _Unusable(f"{text!r} pins a name below which anybody gets a certificate", action)
    return ControlDomain(domain=domain, pin=pin)


def _authorities_file(raw: str) -> Path:
    trusting(Path(raw), check_hostname=True)
    return Path(raw)


def _webhook(raw: str) -> str:
    """Read an address that is a secret: an error never quotes it."""
    try:
        parts = urlsplit(raw)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # its port is no number
        usable = False
    if not usable or any(c.isspace() for c in raw):
        raise _Unusable("is not an http or https address", "write https://hooks.example.com/...")
    return raw


def _vendor_url(raw: str) -> str:
    try:
        parts = urlsplit(raw)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise _Unusable("is not an http:// or https:// URL", "write scheme://host:port/path")
    if parts.username is not None or parts.password is not None:
        raise _Unusable("holds a password", "put the secret into CT_TIER2_API_KEY")
    if parts.query or parts.fragment:
        raise _Unusable("has a query or a fragment", "write scheme://host:port/path; ct-stream adds the rest")
    return raw


def _secret(raw: str) -> str:
    if not raw.isascii() or not raw.isprintable() or " " in raw:
        raise _Unusable("holds a space, a line break or a character that no key has", "set it to the key alone")
    return raw


def _existing_file(raw: str) -> Path:
    if not Path(raw).is_file():
        raise _Unusable(f"{raw!r} is not a file", "name a file that exists")
    return Path(raw)


_READERS: dict[str, Callable[[str], Any]] = {
    "kafka_bootstrap": _bootstrap,
    "kafka_prefix": _prefix,
    "kafka_security_protocol": _choice("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"),
    "kafka_sasl_mechanism": _choice("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"),
    "kafka_sasl_username": str,
    "kafka_sasl_password": str,
    "kafka_ssl_cafile": _existing_file,
    "kafka_ssl_certfile": _existing_file,
    "kafka_ssl_keyfile": _existing_file,
    "kafka_ssl_password": str,
    "postgres_dsn": read_dsn,
    "postgres_ops_dsn": read_dsn,
    "postgres_admin_dsn": read_dsn,
    "postgres_connections": _number(int, 2, 100),
    "dns_servers": _dns_servers,
    "smtp_port": _number(int, 1, 65535),
    "smtp_helo": _host_name,
    "smtp_mail_from": _mail_address,
    "egress": _egress,
    "smtp_allow_cidrs": _cidrs,
    "control_domains": _control_domains,
    "control_ca_file": _authorities_file,
    "toolbox": _existing_file,
    "in_flight": _number(int, 1, 100_000),
    "pass_deadline_s": _number(float, 1, 3600),
    "drain_s": _number(float, 0, 50),  # the group waits 60 s for a member in a rebalance
    "spine_grace_s": _number(float, 0, 86400),
    "tier2_provider": _choice("none", "millionverifier", "reacher"),
    "tier2_url": _vendor_url,
    "tier2_api_key": _secret,
    "alert_webhook": _webhook,
    "web_host": str,
    "web_port": _number(int, 0, 65535),
    "log": _choice("text", "json"),
    "data_dir": Path,
}
