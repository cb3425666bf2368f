"""What is missing to run for real? Each part is looked at, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiodns
import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from ct_stream.ops.troubles import ServiceTrouble, kafka_answers, postgres_answers
from ct_stream.probes.control_probe import SmtpControl
from ct_stream.probes.mx import NameTrouble, Resolver
from ct_stream.probes.smtp import SmtpSettings
from ct_stream.probes.tier2_vendors import make_vendor
from ct_stream.probes.toolbox import ToolboxError, load_toolbox
from ct_stream.settings import SettingsError, load_settings, variable
from ct_stream.store.migrate import ROLES, latest_migration, missing_part
from ct_stream.store.queries import query
from ct_stream.stream.producer import supports_idempotence
from ct_stream.stream.topology import kafka_options, misfit, partition_counts, topic_plans

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from ct_stream.settings import Settings

_PART_S = 40.0  #: for all checks of one part
_VENDOR_S = 10.0
_MIN_POSTGRES = 15
_NEEDED = ("kafka_bootstrap", "postgres_dsn", "smtp_helo", "smtp_mail_from")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool | None  #: None: worth knowing, and no problem
    detail: str  #: what was seen
    action: str = ""  #: what to do, where something is wrong


async def examine(environ: Mapping[str, str]) -> list[Check]:
    """Look at everything that the settings in `environ` lead to."""
    settings, checks = _read_settings(environ)
    parts: list[tuple[str, Callable[[Settings], Awaitable[list[Check]]]]] = [
        ("Kafka", _kafka),
        ("Postgres, gate", _postgres_gate),
        ("Postgres, people", _postgres_ops),
        ("Postgres, migrations", _postgres_admin),
        ("DNS", _dns),
        ("port 25", _port_25),
        ("HELO", _helo),
        ("Tier-2", _tier2),
    ]
    results = await asyncio.gather(*(_looked_at(name, look, settings) for name, look in parts))
    return [*checks, *(check for result in results for check in result)]


def _read_settings(environ: Mapping[str, str]) -> tuple[Settings, list[Check]]:
    """Return the settings that can be used, and what is wrong with the others."""
    usable = dict(environ)
    checks: list[Check] = []
    while True:
        try:
            settings = load_settings(usable)
            break
        except SettingsError as error:
            for problem in error.problems:
                name = problem.setting
                checks.append(Check(name=name, ok=False, detail=problem.what, action=problem.action))
                for key in (name, f"{name}_FILE"):
                    usable.pop(key, None)
            if any(problem.setting.startswith("CT_KAFKA_SASL") for problem in error.problems):
                usable.pop("CT_KAFKA_SECURITY_PROTOCOL", None)
            if any(problem.setting.startswith("CT_TIER2") for problem in error.problems):
                usable.pop("CT_TIER2_PROVIDER", None)
    for name in _NEEDED:
        try:
            settings.require(name)
        except SettingsError as error:
            checks += (
                Check(name=problem.setting, ok=False, detail=problem.what, action=problem.action)
                for problem in error.problems
            )
        else:
            checks.append(Check(name=variable(name), ok=True, detail="is set"))
    try:
        load_toolbox(settings.toolbox)
    except ToolboxError as error:
        action = error.problem.action or "correct the file"
        checks.append(Check(name="CT_TOOLBOX", ok=False, detail=error.problem.what, action=action))
    else:
        checks.append(Check(name="toolbox", ok=True, detail=f"read from {settings.toolbox or 'the package'}"))
    return settings, checks


async def _looked_at(name: str, look: Callable[[Settings], Awaitable[list[Check]]], settings: Settings) -> list[Check]:
    """Return a part's checks; a part that cannot be looked at is a problem of its own."""
    try:
        async with asyncio.timeout(_PART_S):
            return await look(settings)
    except ServiceTrouble as error:
        action = error.problem.action or "start it, or correct the setting"
        return [Check(name=name, ok=False, detail=error.problem.what, action=action)]
    except SettingsError as error:
        return [
            Check(name=name, ok=False, detail=f"{problem.setting} {problem.what}", action=problem.action)
            for problem in error.problems
        ]
    except TimeoutError:
        return [Check(name=name, ok=False, detail=f"no answer within {_PART_S:g} s", action="look at its network path")]


# ---------------------------------------------------------------- Kafka


async def _kafka(settings: Settings) -> list[Check]:
    if settings.kafka_bootstrap is None:
        return [_not_looked_at("Kafka", "CT_KAFKA_BOOTSTRAP")]
    with kafka_answers(settings.kafka_bootstrap):
        admin = AIOKafkaAdminClient(**kafka_options(settings), client_id="ct-stream-doctor")
        try:
            await admin.start()
            brokers = len((await admin.describe_cluster())["brokers"])
            checks = [Check(name="Kafka", ok=True, detail=f"{settings.kafka_bootstrap} answers, {brokers} brokers")]
            checks += await _topics(admin, brokers)
        finally:
            await admin.close()
        checks.append(
            Check(name="idempotent producer", ok=True, detail="supported")
            if await supports_idempotence(settings)
            else Check(
                name="idempotent producer",
                ok=None,
                detail="not supported by this broker, nor are lag and replay by time; enough for trying things out",
            )
        )
    return checks


async def _topics(admin: AIOKafkaAdminClient, brokers: int) -> list[Check]:
    plans = topic_plans(1, min_insync=None)
    names = tuple(plan.name for plan in plans)
    counts = await partition_counts(admin, names)
    problem = misfit(counts)
    if problem is not None:
        checks = [Check(name="topics", ok=False, detail=problem.what, action=problem.action)]
    else:
        partitions = sorted(set(counts.values()))
        checks = [
            Check(
                name="topics",
                ok=True,
                detail=f"all {len(names)} are there, with {' or '.join(map(str, partitions))} partitions",
            )
        ]
    present = [name for name in names if name in counts]
    if not present:
        return checks
    copies = {
        topic["topic"]: min(len(partition["replicas"]) for partition in topic["partitions"])
        for topic in await admin.describe_topics(present)
    }
    wanted = min(3, brokers)
    few = [f"{name} {copies[name]}" for name in present if copies[name] < wanted]
    checks.append(
        Check(
            name="replication",
            ok=False,
            detail=f"fewer than {wanted} copies: {', '.join(few)}",
            action="move them to more brokers with kafka-reassign-partitions",
        )
        if few
        else Check(
            name="replication",
            ok=True,
            detail=f"each partition has {wanted} of {wanted} copies that {brokers} brokers allow",
        )
    )
    try:
        configs = await _configs(admin, present)
    except (KafkaError, ValueError, IndexError) as error:
        checks.append(Check(name="topic settings", ok=None, detail=f"this broker does not tell them: {error}"))
        return checks
    wrong = []
    for plan in topic_plans(1, min_insync=2 if wanted == 3 else None):
        found = configs.get(plan.name, {})
        for key in ("cleanup.policy", "min.insync.replicas"):
            value, wish = found.get(key), plan.config.get(key)
            if value is None or wish is None:
                continue
            enough = int(value) >= int(wish) if key == "min.insync.replicas" else wish in value.split(",")
            if not enough:
                wrong.append(f"{plan.name} has {key}={value}, not {wish}")
    checks.append(
        Check(
            name="topic settings",
            ok=False,
            detail="; ".join(wrong),
            action="change them with kafka-configs --alter --entity-type topics",
        )
        if wrong
        else Check(name="topic settings", ok=True, detail="compaction and min.insync.replicas are as they must be")
    )
    return checks


async def _configs(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return each topic's settings. Raises KafkaError or ValueError where the broker does not tell them."""
    asked = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(asked):
        for code, message, _kind, name, entries, *_ in response.resources:
            if code:
                raise ValueError(message or f"error {code}")
            found[name] = {entry[0]: entry[1] for entry in entries}
    if not any(found.values()):
        raise ValueError("an empty answer")
    return found


# ---------------------------------------------------------------- Postgres


async def _postgres_gate(settings: Settings) -> list[Check]:
    if settings.postgres_dsn is None:
        return [_not_looked_at("Postgres, gate", "CT_POSTGRES_DSN")]
    with postgres_answers("CT_POSTGRES_DSN"):
        connection: asyncpg.Connection[Any] = await asyncpg.connect(settings.postgres_dsn, timeout=10)
        try:
            return await _gate_database(connection)
        finally:
            await connection.close()


async def _gate_database(connection: asyncpg.Connection[Any]) -> list[Check]:
    row = await connection.fetchrow(query("doctor_server"))
    assert row is not None
    major = connection.get_server_version().major
    checks = [
        _check(
            "Postgres",
            major >= _MIN_POSTGRES,
            f"version {major}, login {row['login']}",
            action=f"use PostgreSQL {_MIN_POSTGRES} or newer",
        ),
        _check(
            "primary",
            not row["in_recovery"] and row["read_only"] == "off",
            "a standby or read-only" if row["in_recovery"] or row["read_only"] == "on" else "it is one",
            action="name the primary in CT_POSTGRES_DSN",
        ),
        _check(
            "autovacuum",
            row["autovacuum"],
            "on" if row["autovacuum"] else "off: statements grow slower as tables grow and change",
            action="set autovacuum and track_counts to on in postgresql.conf, and reload it",
        ),
    ]
    missing = [role for role in ROLES if role not in row["roles"]]
    checks.append(
        _check(
            "roles",
            not missing,
            f"missing: {', '.join(missing)}" if missing else ", ".join(ROLES),
            action="run `ct-stream migrate`",
        )
    )
    try:
        applied = {part["part"] for part in await connection.fetch(query("applied"))}
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.InsufficientPrivilegeError) as error:
        checks.append(Check(name="schema", ok=False, detail=str(error), action="run `ct-stream migrate`"))
    else:
        lacking = missing_part(applied)
        checks.append(
            _check(
                "schema",
                lacking is None,
                f"{latest_migration()} is applied"
                if lacking is None
                else f"older than this version, {lacking} is missing",
                action="run `ct-stream migrate`",
            )
        )
    return [*checks, *_spine(row)]


def _spine(row: Any) -> list[Check]:
    if not row["spine"]:
        return [
            Check(
                name="spine",
                ok=False,
                detail="outreach.outreach is missing, or not for this login",
                action="have upstream make it, then run `ct-stream migrate` for the grants",
            )
        ]
    return [
        _check(
            "spine",
            row["reads_domain"],
            "outreach_id and domain can be read" if row["reads_domain"] else "outreach_id and domain cannot be read",
            action="run `ct-stream migrate`, which grants it",
        ),
        _check(
            "sovereign_id",
            not row["reads_sovereign_id"],
            "can be read by the gate's login" if row["reads_sovereign_id"] else "cannot be read by the gate's login",
            action="use a login that has ct_gate's rights only, and revoke the others",
        ),
        _check(
            "CL schema",
            not row["uses_cl"],
            "is open to the gate's login" if row["uses_cl"] else "is closed to the gate's login",
            action="revoke USAGE on schema cl from this login",
        ),
        _check(
            "row security",
            not row["row_security"],
            "hides spine rows from the gate's login" if row["row_security"] else "hides nothing",
            action="exempt the gate's login from it",
        ),
    ]


async def _postgres_ops(settings: Settings) -> list[Check]:
    return await _may_connect(
        "Postgres, people", "CT_POSTGRES_OPS_DSN", settings.postgres_ops_dsn, "show, held, failures and the like"
    )


async def _postgres_admin(settings: Settings) -> list[Check]:
    return await _may_connect("Postgres, migrations", "CT_POSTGRES_ADMIN_DSN", settings.postgres_admin_dsn, "migrate")


async def _may_connect(name: str, setting: str, dsn: str | None, used_by: str) -> list[Check]:
    if dsn is None:
        return [Check(name=name, ok=None, detail=f"{setting} is not set; needed by {used_by} only")]
    with postgres_answers(setting):
        connection: asyncpg.Connection[Any] = await asyncpg.connect(dsn, timeout=10)
        await connection.close()
    return [Check(name=name, ok=True, detail=f"{setting} lets us in")]


# ---------------------------------------------------------------- DNS and mail


async def _dns(settings: Settings) -> list[Check]:
    """Ask each resolver by itself: the gate needs one, and a second one to confirm an absence."""
    resolver = _resolver(settings)
    domain = settings.control_domains[0]
    results = await asyncio.gather(*(_resolver(settings, (server,)).dns_control(domain) for server in resolver.servers))
    checks = [
        Check(
            name=f"resolver {server}",
            ok=result.ok,
            detail=result.detail,
            action="" if result.ok else "name resolvers that answer for any domain in CT_DNS_SERVERS",
        )
        for server, result in zip(resolver.servers, results, strict=True)
    ]
    if not checks:
        return [Check(name="DNS", ok=False, detail="no resolver is known", action="set CT_DNS_SERVERS to ip:port,...")]
    if len(checks) == 1:
        checks.append(
            Check(
                name="second resolver", ok=None, detail="there is none: a domain without MX is not confirmed by another"
            )
        )
    return checks


async def _port_25(settings: Settings) -> list[Check]:
    smtp = SmtpSettings(
        helo=settings.smtp_helo or "localhost.localdomain",
        mail_from=settings.smtp_mail_from or "",
        port=settings.smtp_port,
    )
    control = SmtpControl(_resolver(settings), smtp)
    results = await asyncio.gather(*(control.smtp_control(domain) for domain in settings.control_domains))
    good = [result.detail for result in results if result.ok]
    detail = "; ".join(good or [result.detail for result in results])
    return [
        _check(
            f"outbound port {settings.smtp_port}",
            bool(good),
            detail,
            action="have your network let connections to that port out; many hosting networks close it",
        )
    ]


async def _helo(settings: Settings) -> list[Check]:
    """Compare HELO with DNS: servers refuse a name that does not lead to us, and an address without a name."""
    helo = settings.smtp_helo
    if helo is None:
        return [_not_looked_at("HELO", "CT_SMTP_HELO")]
    found = await _resolver(settings, anywhere=True).lookup_addresses(helo)
    if isinstance(found, NameTrouble):
        return [
            Check(
                name="HELO",
                ok=False,
                detail=f"CT_SMTP_HELO {helo!r} has no address ({found.trouble} {found.detail})".replace(" )", ")"),
                action="set it to the name in your address's reverse DNS",
            )
        ]
    checks = [Check(name="HELO", ok=True, detail=f"{helo} is {', '.join(found)}")]
    names = {address: await _reverse(settings, address) for address in found}
    wrong = [f"{address} is {' and '.join(its) or 'nobody'}" for address, its in names.items() if helo not in its]
    checks.append(
        _check(
            "reverse DNS",
            not wrong,
            f"{'; '.join(wrong)}, not {helo}" if wrong else f"leads back to {helo}",
            action=f"have the owner of the address set its PTR record to {helo}",
        )
    )
    own = _own_address()
    if own is not None:
        checks.append(
            _check(
                "our address",
                own in found,
                f"connections leave from {own}" + ("" if own in found else f", which is not {helo}"),
                action="set CT_SMTP_HELO to the name of the address that connections leave from",
            )
        )
    return checks


def _resolver(settings: Settings, servers: tuple[str, ...] = (), *, anywhere: bool = False) -> Resolver:
    networks = ("0.0.0.0/0", "::/0") if anywhere else settings.smtp_allow_cidrs
    return Resolver(
        servers or settings.dns_servers or None,
        allowed=[ipaddress.ip_network(network) for network in networks],
    )


async def _reverse(settings: Settings, address: str) -> list[str]:
    """Return the names of an address; none when its PTR record cannot be had."""
    servers = _resolver(settings).servers
    name = ipaddress.ip_address(address).reverse_pointer
    async with aiodns.DNSResolver(nameservers=list(servers), timeout=5, tries=1) as resolver:
        try:
            answer = await resolver.query_dns(name, "PTR")
        except aiodns.error.DNSError:
            return []
    return [str(record.data.dname).rstrip(".").lower() for record in answer.answer if hasattr(record.data, "dname")]


def _own_address() -> str | None:
    """Return the public address that connections leave from; None where that cannot be told (NAT, no network)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 25))  # nothing is sent: the kernel only chooses the way
            address = str(probe.getsockname()[0])
        except OSError:
            return None
    return address if ipaddress.ip_address(address).is_global else None


# ---------------------------------------------------------------- Tier-2


async def _tier2(settings: Settings) -> list[Check]:
    """Connect to the vendor, and say nothing: a request could cost money."""
    vendor = make_vendor(settings.tier2_provider, settings.tier2_url, settings.tier2_api_key)
    if vendor is None:
        return [Check(name="Tier-2", ok=None, detail="off: CT_TIER2_PROVIDER is none")]
    url = urlsplit(vendor.url)
    port = url.port or (443 if url.scheme == "https" else 80)
    where = f"{vendor.name} at {url.hostname} port {port}"
    try:
        async with asyncio.timeout(_VENDOR_S):
            _, writer = await asyncio.open_connection(url.hostname, port, ssl=url.scheme == "https")
            writer.close()
    except (OSError, TimeoutError) as error:
        return [
            Check(
                name="Tier-2",
                ok=False,
                detail=f"{where} cannot be connected to: {str(error) or type(error).__name__}",
                action="correct CT_TIER2_URL, or let connections out to it",
            )
        ]
    key = "" if vendor.secret else "; no CT_TIER2_API_KEY, which is right only for a back end without a secret"
    return [Check(name="Tier-2", ok=True, detail=f"{where} answers; asked for nothing, since it is paid{key}")]


# ----------------------------------------------------------------


def _not_looked_at(name: str, setting: str) -> Check:
    return Check(name=name, ok=None, detail=f"not looked at: {setting} is not set")


def _check(name: str, ok: bool, detail: str, *, action: str) -> Check:
    return Check(name=name, ok=ok, detail=detail, action="" if ok else action)
