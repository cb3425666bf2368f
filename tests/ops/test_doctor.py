"""The doctor looks at everything that can be reached, whatever else is broken."""

from __future__ import annotations

import asyncio
from pathlib import Path  # noqa: TC003 - pytest reads the annotation
from typing import TYPE_CHECKING

import asyncpg
import pytest

from ct_stream.local.broker import EmbeddedBroker
from ct_stream.local.farm import MailFarm
from ct_stream.ops.doctor import Check, examine
from ct_stream.settings import Settings
from ct_stream.store.migrate import migrate
from ct_stream.stream.topology import create_topics
from tests.ops.rows import execute
from tests.probes.vendors import KEY, Answer, VendorServer

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


async def test_on_the_embedded_stack_doctor_finds_only_that_helo_has_no_address(
    tmp_path: Path, database: DatabaseDsns
) -> None:
    async with EmbeddedBroker(tmp_path) as broker, MailFarm() as farm:
        await create_topics(Settings(kafka_bootstrap=broker.bootstrap))
        checks = await examine(
            farm.env()
            | {
                "CT_KAFKA_BOOTSTRAP": broker.bootstrap,
                "CT_POSTGRES_DSN": database.gate,
                "CT_POSTGRES_OPS_DSN": database.ops,
                "CT_POSTGRES_ADMIN_DSN": database.admin,
            }
        )
    # The farm's HELO is a name that no DNS server knows.
    assert [check.name for check in checks if check.ok is False] == ["HELO"]
    found = by_name(checks)
    assert found["topics"].detail == "all 5 are there, with 12 partitions"
    assert found["idempotent producer"].ok is None
    assert found["schema"].ok
    assert found["sovereign_id"].detail == "cannot be read by the gate's login"
    assert sum(name.startswith("resolver ") for name in found) == 2


async def test_doctor_names_each_service_that_does_not_answer_in_a_line_of_its_own(database: DatabaseDsns) -> None:
    checks = by_name(
        await examine(
            {
                "CT_KAFKA_BOOTSTRAP": "127.0.0.1:1",
                "CT_POSTGRES_DSN": "postgresql://ct_gate:x@127.0.0.1:1/outreach?sslmode=disable",
                "CT_POSTGRES_OPS_DSN": database.ops.replace("only-on-loopback", "guessed"),
                "CT_DNS_SERVERS": "127.0.0.1:1",
                "CT_SMTP_HELO": "localhost",
                "CT_MISTYPED": "1",
            }
        )
    )
    assert checks["CT_MISTYPED"].ok is False
    assert checks["CT_SMTP_HELO"].ok is False
    assert checks["Kafka"].detail.startswith("Kafka at 127.0.0.1:1 does not answer")
    assert checks["Postgres, gate"].detail.startswith("Postgres (CT_POSTGRES_DSN) does not answer")
    assert "is refused by Postgres" in checks["Postgres, people"].detail
    assert checks["resolver 127.0.0.1:1"].ok is False
    assert all(check.action for check in checks.values() if check.ok is False)


async def test_a_gate_login_that_sees_too_much_is_a_problem(database: DatabaseDsns) -> None:
    await execute(database.admin, "GRANT SELECT ON outreach.outreach TO ct_gate")
    await execute(database.admin, "GRANT USAGE ON SCHEMA cl TO ct_gate")
    checks = by_name(await examine({"CT_POSTGRES_DSN": database.gate, "CT_DNS_SERVERS": "127.0.0.1:1"}))
    assert checks["sovereign_id"].ok is False
    assert checks["CL schema"].ok is False


async def test_a_gate_login_that_may_create_objects_is_told(database: DatabaseDsns) -> None:
    async def seen() -> Check | None:
        return by_name(await examine({"CT_POSTGRES_DSN": database.gate})).get("objects")

    # A database that is made from another one is open for temporary objects until it is migrated.
    await execute(
        database.admin,
        'CREATE SCHEMA "our Hubs"; GRANT CREATE, USAGE ON SCHEMA "our Hubs" TO PUBLIC;',
    )
    found = await seen()
    assert found is not None
    assert found.ok is None
    assert '(in schema "our Hubs", temporary ones)' in found.detail
    schema, temporary = found.action.split("; ")
    assert schema == 'REVOKE CREATE ON SCHEMA "our Hubs" FROM PUBLIC, or from the role that has it'
    await execute(database.admin, schema.partition(", or")[0])
    await execute(database.admin, temporary.partition(", or")[0])
    assert await seen() is None


@pytest.mark.parametrize("table", ["company_target", "company_target_errors"])
async def test_a_copy_of_sovereign_id_that_was_added_since_migrate_is_named(database: DatabaseDsns, table: str) -> None:
    await execute(database.admin, f"ALTER TABLE outreach.{table} ADD COLUMN sovereign_id uuid")
    check = by_name(await examine({"CT_POSTGRES_DSN": database.gate}))["sovereign_id"]
    assert check.ok is False
    assert check.detail == f"can be read by the gate's login in outreach.{table}"
    assert check.action.startswith("run `ct-stream migrate`")
    await migrate(database.admin)
    assert by_name(await examine({"CT_POSTGRES_DSN": database.gate}))["sovereign_id"].ok is True


async def test_doctor_calls_autovacuum_that_is_off_a_problem(database: DatabaseDsns) -> None:
    async def looked_at(*, ok: bool) -> Check:
        for _ in range(100):  # the server's first process reads its settings again when it gets to them
            check = by_name(await examine({"CT_POSTGRES_DSN": database.gate}))["autovacuum"]
            if check.ok is ok:
                return check
            await asyncio.sleep(0.1)
        raise AssertionError(f"{check} after 10 s")

    await execute(database.admin, "ALTER SYSTEM SET autovacuum = off")
    try:
        await execute(database.admin, "SELECT pg_reload_conf()")
        assert (await looked_at(ok=False)).action.startswith("set autovacuum")
    finally:
        await execute(database.admin, "ALTER SYSTEM RESET autovacuum")
        await execute(database.admin, "SELECT pg_reload_conf()")
    await looked_at(ok=True)


async def test_doctor_names_migrate_for_a_database_without_the_gates_tables(database: DatabaseDsns) -> None:
    fresh = database.admin.rpartition("/")[0] + "/postgres?sslmode=disable"
    checks = by_name(await examine({"CT_POSTGRES_DSN": fresh, "CT_DNS_SERVERS": "127.0.0.1:1"}))
    assert checks["schema"].action == "run `ct-stream migrate`"
    assert checks["spine"].ok is False


async def test_doctor_calls_tier2_that_is_off_no_problem() -> None:
    assert by_name(await examine({"CT_DNS_SERVERS": "127.0.0.1:1"}))["Tier-2"].ok is None


async def test_doctor_connects_to_the_paid_vendor_and_asks_it_nothing() -> None:
    async with VendorServer(lambda _: Answer()) as server:
        settings = {"CT_TIER2_PROVIDER": "reacher", "CT_TIER2_URL": server.url, "CT_DNS_SERVERS": "127.0.0.1:1"}
        found = by_name(await examine(settings))["Tier-2"]
        assert found.ok
        assert "no CT_TIER2_API_KEY" in found.detail
        found = by_name(await examine(settings | {"CT_TIER2_API_KEY": KEY}))["Tier-2"]
        assert found.ok
        assert KEY not in found.detail
        assert not server.requests, "the doctor spends nothing"
    away = by_name(await examine(settings))["Tier-2"]
    assert away.ok is False
    assert "accepts no connection" in away.detail


async def test_a_missing_tier2_key_is_named() -> None:
    checks = by_name(await examine({"CT_TIER2_PROVIDER": "millionverifier", "CT_DNS_SERVERS": "127.0.0.1:1"}))
    assert checks["CT_TIER2_API_KEY"].ok is False
    assert "CT_TIER2_PROVIDER 'millionverifier' needs it" in checks["CT_TIER2_API_KEY"].detail
    assert checks["Kafka"].ok is None, "the other parts are looked at all the same"


async def test_a_semicolon_in_a_wrong_setting_does_not_split_doctors_line() -> None:
    checks = await examine({"CT_SMTP_HELO": "probe; example.com", "CT_DNS_SERVERS": "127.0.0.1:1"})
    (check,) = (check for check in checks if check.name == "CT_SMTP_HELO")
    assert check.detail == "'probe; example.com' is not a full host name"
    assert check.action == "set it to the name in your reverse DNS"


async def test_what_the_users_tables_refuse_is_told_before_a_worker_meets_it(database: DatabaseDsns) -> None:
    settings = {"CT_POSTGRES_DSN": database.gate}
    assert by_name(await examine(settings))["recording"].detail.startswith("not rehearsed: the spine outreach.outreach")
    await execute(database.admin, "INSERT INTO outreach.outreach VALUES (gen_random_uuid(), 'acme.example')")
    assert by_name(await examine(settings))["recording"].ok
    await execute(database.admin, "ALTER TABLE outreach.company_target ADD COLUMN region text NOT NULL")
    check = by_name(await examine(settings))["recording"]
    assert check.ok is False
    assert check.detail == "outreach.company_target.region is NOT NULL, and the gate does not fill it"
    assert check.action.startswith("ALTER TABLE outreach.company_target ALTER COLUMN region DROP NOT NULL")


async def test_doctor_notes_a_schema_in_which_everybody_may_plant_functions(database: DatabaseDsns) -> None:
    async def noted() -> list[str]:
        return [check.action for check in await examine({"CT_POSTGRES_DSN": database.gate}) if "public" in check.name]

    assert await noted() == []
    await execute(database.admin, "GRANT CREATE ON SCHEMA public TO PUBLIC")
    assert await noted() == ["REVOKE CREATE ON SCHEMA public FROM PUBLIC"]
    await execute(database.admin, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")


@pytest.mark.parametrize(
    ("limit", "others", "ok", "said"),
    [
        (8, 0, True, "8 at once, as many as a worker opens"),
        (5, 0, False, "fewer than 8: too many connections for role"),
        (9, 1, None, "not tried: this login has 1 other sessions"),
    ],
)
async def test_doctor_tries_whether_a_worker_gets_its_connections(
    database: DatabaseDsns, limit: int, others: int, ok: bool | None, said: str
) -> None:
    admin = await asyncpg.connect(database.admin)
    await admin.execute(f"ALTER ROLE ct_gate CONNECTION LIMIT {limit}")
    held = [await asyncpg.connect(database.gate) for _ in range(others)]
    try:
        checks = {check.name: check for check in await examine({"CT_POSTGRES_DSN": database.gate})}
    finally:
        for connection in held:
            await connection.close()
        await admin.execute("ALTER ROLE ct_gate CONNECTION LIMIT -1")
        await admin.close()
    assert (checks["connections"].ok, checks["connections"].detail.startswith(said)) == (ok, True), checks[
        "connections"
    ]
    assert checks["schema"].ok, "the other checks go on"


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        ([("default", "203.0.113.7"), ("default", "203.0.113.7"), ("dc2", "203.0.113.9")], []),
        ([("default", "203.0.113.7"), ("default", "203.0.113.9")], ["egress default"]),
        ([("default", "203.0.113.7"), ("dc2", "203.0.113.7"), ("dc2", None)], ["address 203.0.113.7"]),
    ],
    ids=["as it should be", "two addresses under one name", "one address under two names"],
)
async def test_doctor_notes_names_of_egresses_that_do_not_fit_their_addresses(
    database: DatabaseDsns, seen: list[tuple[str, str | None]], names: list[str]
) -> None:
    for number, (egress, address) in enumerate(seen):
        await execute(
            database.gate,
            "INSERT INTO outreach.ct_workers "
            "(worker, machine, egress, version, toolbox, troubles, partitions, running, address)"
            " VALUES ($1, 'm', $2, '1', '{}', '{}', '{}', 0, $3)",
            f"w/{number}",
            egress,
            address,
        )

    async def noted() -> list[Check]:
        checks = await examine({"CT_POSTGRES_DSN": database.gate})
        return [check for check in checks if check.name.startswith(("egress ", "address "))]

    found = await noted()
    assert [check.name for check in found] == names
    for check in found:
        assert check.ok is None, "no problem that ends a deployment: an address may change"
        assert bool(check.action) is check.name.startswith("egress")
    if names == ["egress default"]:
        assert "203.0.113.7 (worker w/0), 203.0.113.9 (worker w/1)" in found[0].detail
    await execute(database.gate, "UPDATE outreach.ct_workers SET ended_at = now()")
    assert await noted() == [], "only workers that run count"


# ---------------------------------------------------------------- controls


async def controls(**settings: str) -> dict[str, Check]:
    async with MailFarm() as farm:
        return by_name(await examine(farm.env() | settings))


async def test_doctor_says_who_a_control_proved_to_be_and_as_whom_it_sees_us() -> None:
    checks = await controls()
    assert checks["outbound port " + _port(checks)].ok
    assert checks["control control.example"] == Check(
        name="control control.example",
        ok=True,
        detail=(
            "mx1.control.example takes MAIL FROM; authenticated as control.example by ct-stream mail farm"
            "; it sees us as 127.0.0.1"
        ),
    )
    assert "authorities" not in checks


def _port(checks: dict[str, Check]) -> str:
    (name,) = [name for name in checks if name.startswith("outbound port ")]
    return name.removeprefix("outbound port ")


async def test_doctor_warns_of_a_control_that_is_plain() -> None:
    checks = await controls(CT_CONTROL_DOMAINS="control.example=plain")
    check = checks["control control.example"]
    assert (check.ok, check.detail.startswith("not authenticated: ")) == (None, True)
    assert check.action.startswith("pin the name in its certificate, control.example=NAME")
    assert "nobody checks who answers for control.example" in checks["settings"].detail
    assert checks["outbound port " + _port(checks)].ok


@pytest.mark.parametrize(
    ("domain", "detail", "action"),
    [
        ("controlnotls-x.example", "STARTTLS is stripped on the way", "have your network let STARTTLS through"),
        ("controlrefusestls-x.example", "STARTTLS is stripped on the way", "have your network let STARTTLS through"),
        ("controlselfsigned-x.example", "not signed by a known authority", "look for a proxy on port 25"),
        ("controlexpired-x.example", "is this machine's clock wrong?", "set this machine's clock (NTP)"),
        ("controlother-x.example", "not for controlother-x.example", "look for a proxy on port 25 and a resolver"),
    ],
)
async def test_doctor_names_whoever_answers_in_a_controls_place(domain: str, detail: str, action: str) -> None:
    checks = await controls(CT_CONTROL_DOMAINS=f"{domain}={domain},control.example=control.example")
    check = checks[f"control {domain}"]
    assert check.ok is False
    assert f"mx1.{domain}: somebody answers in its place: " in check.detail
    assert detail in check.detail
    assert check.action.startswith(action)
    assert checks["outbound port " + _port(checks)].ok, "the other control works"
    alone = await controls(CT_CONTROL_DOMAINS=f"{domain}={domain}")
    port = alone["outbound port " + _port(alone)]
    assert (port.ok, port.action.startswith(action)) == (False, True)


async def test_a_control_that_is_silent_beside_one_that_answers_is_no_problem_yet() -> None:
    checks = await controls(CT_CONTROL_DOMAINS="refuse-x.example,control.example=control.example")
    assert checks["control refuse-x.example"].ok is None
    alone = await controls(CT_CONTROL_DOMAINS="refuse-x.example")
    assert alone["outbound port " + _port(alone)].action.startswith("have your network let connections to that port")


async def test_doctor_names_a_machine_without_authorities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    check = (await controls(CT_CONTROL_CA_FILE=""))["authorities"]
    assert (check.ok, check.action) == (
        False,
        "install your system's ca-certificates, or set CT_CONTROL_CA_FILE",
    )
    assert "authorities" not in await controls()
    plain = await controls(CT_CONTROL_CA_FILE="", CT_CONTROL_DOMAINS="control.example=plain")
    assert "authorities" not in plain
    monkeypatch.undo()
    assert "authorities" not in await controls(CT_CONTROL_CA_FILE="")
