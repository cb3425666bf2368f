"""Every command that prints a result prints it as a table and as JSON, on real rows of every kind and on none."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from click.testing import CliRunner

from ct_stream.cli import main
from ct_stream.gate.failures import FailureCode
from ct_stream.gate.waits import WaitReason, WaitsOn
from ct_stream.settings import Settings
from ct_stream.stream.topology import create_topics
from tests.brokers import kafka, lend_broker
from tests.cli.test_program import COMMANDS
from tests.ops.planted import Place, plant_violations, well
from tests.ops.rows import RUN, execute, failed, park, passed, record
from tests.texts import NASTY, assert_no_terminal_is_steered

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.conftest import DatabaseDsns

PASSED, FAILED, ADOPTED, WAITING, STUCK = (UUID(int=number) for number in range(1, 6))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """How to run a command in a world with rows, and what its JSON then holds."""

    args: tuple[str, ...] = ()
    exits: int = 0
    holds: Callable[[Any], bool]
    is_lines: bool = False


#: Each command with `--json`, and what it must find.
READERS: dict[tuple[str, ...], Reader] = {
    ("show",): Reader(
        args=(str(FAILED),),
        holds=lambda told: (
            told["outcome"]["failure_code"] == "CT-M-NO-PATTERN"
            and {answer["by"] for answer in told["outcome"]["transcript"]} == {RUN}
        ),
    ),
    ("held",): Reader(
        holds=lambda told: {row["outreach_id"] for row in told["companies"]} >= {str(WAITING), str(STUCK)}
    ),
    ("failures",): Reader(holds=lambda rows: str(FAILED) in {row["outreach_id"] for row in rows}),
    ("distribution",): Reader(holds=lambda rows: {"CT-M-NO-PATTERN", "OLD-CODE"} <= {r["failure_code"] for r in rows}),
    ("pass-rate",): Reader(holds=lambda row: row["passed"] > 0 and 0 < row["pass_rate"] < 100),
    ("guardrails", "list"): Reader(
        holds=lambda rows: (
            {(row["key"], row["base"], row["egress"]) for row in rows}
            >= {
                ("provider:bigmail.example", "provider:bigmail.example", "default"),
                ("tool:TOOL-005@dc2", "tool:TOOL-005", "dc2"),
                ("mail_from", "mail_from", None),
            }
        )
    ),
    ("workers",): Reader(
        holds=lambda rows: (
            rows[0]["troubles"] == {"kafka": NASTY}
            and rows[0]["notes"] == {"smtp6": NASTY}
            and (rows[0]["egress"], rows[0]["address"]) == ("dc2", "203.0.113.25")
            and rows[0]["is_running"]
        )
    ),
    ("whatif",): Reader(holds=lambda told: told["outcomes"] > 0 and told["moves"]),
    ("replay",): Reader(holds=lambda rows: len(rows) > 1, is_lines=True),
    ("lag",): Reader(holds=lambda told: told["lag"] >= 0),
    ("topics",): Reader(holds=lambda told: "ct.pass" in told["partitions"]),
    ("publish",): Reader(args=("--undecided", "--all", "--dry-run"), holds=lambda told: told["would_publish"] > 0),
    ("verify",): Reader(args=("--grace", "1s"), exits=1, holds=lambda told: told["violations"] != []),
    ("doctor",): Reader(exits=1, holds=lambda checks: {check["ok"] for check in checks} == {True, False, None}),
    ("check",): Reader(args=("acme.example",), exits=2, holds=lambda told: told["outcome"] == "HELD"),
    ("classify",): Reader(args=("-",), holds=lambda rows: len(rows) == 1),
    ("migrate",): Reader(holds=lambda told: told is not None),
    ("local", "status"): Reader(exits=1, holds=lambda told: told["running"] is False),
}
#: Commands that change this machine are run by tests of their own.
ELSEWHERE = {("local", "up"), ("local", "env")}
IN_A_PROCESS = {("verify",), ("classify",)}
REPLY = "stage\tcode\tenhanced\ttext\nrcpt\t550\t5.1.1\tno such user\n"


def test_every_command_with_json_is_tried_here() -> None:
    with_json = {
        path for path, command in COMMANDS.items() if any(option.name == "as_json" for option in command.params)
    }
    assert with_json - ELSEWHERE == set(READERS)


async def rows_of_every_kind(database: DatabaseDsns) -> None:
    """Record, adopt and park companies, in words of a stranger."""
    statement = "INSERT INTO outreach.outreach (outreach_id, domain) VALUES ($1, $2)"
    for number in (PASSED, FAILED, ADOPTED, WAITING, STUCK):
        await execute(database.admin, statement, number, "acme.example")
    outcomes = [passed(outreach_id=PASSED), failed(FailureCode.NO_PATTERN, reason=NASTY, outreach_id=FAILED)]
    outcomes += [failed(code, reason=NASTY) for code in FailureCode if code is not FailureCode.ALREADY_PROCESSED]
    await record(database.gate, *outcomes)
    await record(database.gate, passed(), stamp=False)
    await execute(
        database.admin,
        "INSERT INTO outreach.ct_outcomes (outreach_id, outcome, source, failure_code, decided_at) "
        "VALUES ($1, 'FAIL', 'adopted', 'OLD-CODE', clock_timestamp())",
        ADOPTED,
    )
    await execute(
        database.admin,
        "INSERT INTO outreach.company_target_errors (outreach_id, failure_code, blocking_reason) "
        "VALUES ($1, 'OLD-CODE', $2)",
        ADOPTED,
        NASTY,
    )
    await park(database.gate, WAITING, WaitReason.PROVIDER_CLOSED, NASTY)
    await park(database.gate, STUCK, WaitReason.OUR_MACHINE, NASTY)
    await execute(
        database.admin,
        "UPDATE outreach.ct_passes SET state = 'stuck', exceptions = 3, not_before = 'infinity', traceback = $2 "
        "WHERE outreach_id = $1",
        STUCK,
        NASTY,
    )
    await execute(
        database.gate,
        "INSERT INTO outreach.ct_workers "
        "(worker, machine, egress, version, toolbox, troubles, notes, partitions, running, address) VALUES ('a/1/x', "
        "'a', 'dc2', '1', '{}', jsonb_build_object('kafka', $1::text), jsonb_build_object('smtp6', $1::text), '{1,2}', "
        "3, '203.0.113.25')",
        NASTY,
    )
    for key in ("tool:TOOL-005@dc2", "mail_from"):
        await execute(database.gate, "SELECT outreach.ct_set_guardrail($1, 'halted', $2, NULL)", key, NASTY)
    for reason in WaitReason:
        await park(database.gate, uuid4(), reason, NASTY)
    await execute(
        database.gate, "SELECT outreach.ct_set_guardrail('provider:bigmail.example', 'closed', $1, NULL)", NASTY
    )


@pytest.fixture
async def world(database: DatabaseDsns, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """Lend the settings of a world with rows of every kind, in the database and on the topics."""
    async with lend_broker(tmp_path) as bootstrap:
        await create_topics(Settings(kafka_bootstrap=bootstrap))
        await rows_of_every_kind(database)
        place = Place(database.admin, bootstrap)
        await place.plant(well())
        await plant_violations(place)
        yield settings_of(database, bootstrap, tmp_path)


@pytest.fixture
async def empty_world(database: DatabaseDsns, tmp_path: Path) -> AsyncIterator[dict[str, str]]:
    """Lend the settings of a world in which nothing has happened."""
    async with lend_broker(tmp_path) as bootstrap:
        await create_topics(Settings(kafka_bootstrap=bootstrap))
        yield settings_of(database, bootstrap, tmp_path)


def tried() -> dict[tuple[str, ...], Reader]:
    """Return the commands that this broker can serve: the embedded one gives no lag."""
    return {path: reader for path, reader in READERS.items() if kafka() or path != ("lag",)}


def settings_of(database: DatabaseDsns, bootstrap: str, folder: Path) -> dict[str, str]:
    return {
        "CT_POSTGRES_DSN": database.gate,
        "CT_POSTGRES_OPS_DSN": database.ops,
        "CT_POSTGRES_ADMIN_DSN": database.admin,
        "CT_KAFKA_BOOTSTRAP": bootstrap,
        "CT_SMTP_HELO": "probe.example.com",
        "CT_SMTP_MAIL_FROM": "probe@example.com",
        "CT_DNS_SERVERS": "127.0.0.1:1",
        "CT_DATA_DIR": str(folder / "data"),
    }


@dataclass(frozen=True, slots=True)
class Run:
    """What a command did."""

    exit_code: int
    stdout: str
    output: str


async def run(path: tuple[str, ...], *args: str, settings: dict[str, str]) -> Run:
    """Run a command: in a thread, since it begins a loop of its own, or in a process where it wants the main thread."""
    if path in IN_A_PROCESS:
        program = (sys.executable, "-m", "ct_stream", *path, *args)
        process = await asyncio.create_subprocess_exec(
            *program, env=os.environ | settings, stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        stdout, stderr = (text.decode() for text in await process.communicate(REPLY.encode()))
        assert process.returncode is not None
        return Run(process.returncode, stdout, stdout + stderr)
    done = await asyncio.to_thread(CliRunner().invoke, main, [*path, *args], env=settings)
    return Run(done.exit_code, done.stdout, done.output)


async def both(path: tuple[str, ...], *args: str, settings: dict[str, str]) -> tuple[Run, Run]:
    """Run a command without and with `--json`; two in one process would share its standard output."""
    plain, as_json = run(path, *args, settings=settings), run(path, *args, "--json", settings=settings)
    if path in IN_A_PROCESS:
        plain_run, json_run = await asyncio.gather(plain, as_json)
        return plain_run, json_run
    return await plain, await as_json


def read(path: tuple[str, ...], stdout: str) -> Any:
    if READERS[path].is_lines:
        return [json.loads(line) for line in stdout.splitlines()]
    return json.loads(stdout)


async def test_rows_of_every_kind_are_printed_as_a_table_and_as_json(world: dict[str, str]) -> None:
    wrong: list[str] = []
    for path, reader in tried().items():
        name = " ".join(path)
        table, printed = await both(path, *reader.args, settings=world)
        if table.exit_code != reader.exits:
            wrong.append(f"{name}: exit {table.exit_code}\n{table.output}")
        assert_no_terminal_is_steered(table.output)
        if printed.exit_code != reader.exits or not reader.holds(read(path, printed.stdout)):
            wrong.append(f"{name} --json: exit {printed.exit_code}\n{printed.output[-3000:]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("wide", [40, 80, 400])
async def test_a_narrow_terminal_cuts_no_word(database: DatabaseDsns, wide: int) -> None:
    """The command that ends a wait can be copied from it."""
    rail = "provider:bigmail.example"
    company = uuid4()
    await execute(database.gate, "SELECT outreach.ct_set_guardrail($1, 'closed', 'refused by 3', NULL)", rail)
    await park(database.gate, company, WaitReason.PROVIDER_CLOSED, "it is closed", after_s=None, waits_on=WaitsOn(rail))
    ours, theirs = os.openpty()
    program = (sys.executable, "-m", "ct_stream", "held")
    settings = {"CT_POSTGRES_OPS_DSN": database.ops, "COLUMNS": str(wide), "TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(*program, env=os.environ | settings, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal, suppress(OSError):  # EIO: its other end is closed
        while part := await asyncio.to_thread(terminal.read, 65536):
            said += part
    assert await process.wait() == 0, said
    words = said.decode().replace("\r", "")
    assert f"a person resumes it: ct-stream guardrails resume {rail}" in words
    assert str(company) in words


async def test_no_cell_makes_a_row_of_its_own(database: DatabaseDsns) -> None:
    forged = "provider:x.example\nspine  open  2026-11-30 17:00:00Z  alice  looked at it"
    await execute(database.gate, "SELECT outreach.ct_set_guardrail($1, 'closed', E'one\\nline', NULL)", forged)
    lines = (await run(("guardrails", "list"), settings={"CT_POSTGRES_OPS_DSN": database.ops})).stdout.splitlines()
    assert [line for line in lines if "alice" in line] == [line for line in lines if line.startswith("provider:x")]
    assert "one\\nline" in "".join(lines)


async def test_guardrails_and_workers_are_shown_with_their_egress(database: DatabaseDsns) -> None:
    settings = {"CT_POSTGRES_OPS_DSN": database.ops}
    for key in ("tool:TOOL-005@dc2", "mail_from"):
        await execute(database.gate, "SELECT outreach.ct_set_guardrail($1, 'halted', 'listed', NULL)", key)
    table = (await run(("guardrails", "list"), settings=settings)).stdout
    sender, tool = sorted(line.split() for line in table.splitlines() if "halted" in line)
    assert sender[:3] == ["mail_from", "all", "halted"]
    assert tool[:3] == ["tool:TOOL-005", "dc2", "halted"]
    assert "ct-stream guardrails resume GUARDRAIL@EGRESS" in table
    refused = await run(("guardrails", "resume"), "TOOL-005", "--reason", "x", settings=settings)
    assert (refused.exit_code, "guardrails resume TOOL-005@dc2" in refused.output) == (64, True)
    resumed = await run(("guardrails", "resume"), "tool-005@dc2", "--reason", "x", settings=settings)
    assert resumed.output == "tool:TOOL-005@dc2: halted -> trial\n"
    await execute(
        database.gate,
        "INSERT INTO outreach.ct_workers "
        "(worker, machine, egress, version, toolbox, troubles, notes, partitions, running, address) VALUES "
        "('a/1/x', 'a', 'dc2', '1', '{}', '{}', "
        '\'{"smtp6": "no IPv6", "partitions": "left"}\', \'{}\', 0, \'203.0.113.25\'), '
        "('b/1/x', 'b', 'default', '1', '{}', '{\"control_smtp\": \"asks nobody\"}', "
        "'{\"partitions\": \"3 of them\"}', '{1}', 0, NULL)",
    )
    table = (await run(("workers",), settings=settings)).stdout
    assert re.search(r"^a/1/x +1 +dc2 +203\.0\.113\.25 +ready; (no IPv6; left|left; no IPv6) +0 ", table, re.MULTILINE)
    assert re.search(r"^b/1/x +1 +default +not ready: asks nobody +1 ", table, re.MULTILINE)


async def test_without_a_row_there_is_a_sentence_and_empty_json(empty_world: dict[str, str]) -> None:
    for path, reader in tried().items():
        args = (str(uuid4()),) if path == ("show",) else reader.args
        table, printed = await both(path, *args, settings=empty_world)
        assert table.exit_code in {0, 1, 2}, f"{' '.join(path)}: {table.output}"
        assert table.output.strip(), " ".join(path)
        assert printed.exit_code == table.exit_code, f"{' '.join(path)} --json: {printed.output}"
        read(path, printed.stdout)


async def test_the_numbers_of_the_json_are_those_of_the_table(world: dict[str, str]) -> None:
    for path in [("distribution",), ("pass-rate",)]:
        table = (await run(path, settings=world)).stdout
        told = json.loads((await run(path, "--json", settings=world)).stdout)
        numbers = [value for row in (told if isinstance(told, list) else [told]) for value in row.values()]
        for number in (value for value in numbers if isinstance(value, int | float)):
            assert re.search(rf"\b{re.escape(f'{number:g}')}\b", table), f"{number} of {path} is not in {table}"


@pytest.mark.parametrize(
    ("confidence", "method_type", "catchall", "said"),
    [
        (None, None, None, "method     info@acme.example\n"), ("high", "role", "false", " (role, high)"),
        ("85", "role", "t", " (role, 85, catch-all)"), ("0.7000", None, "no", " (0.7)"), ("NaN", "x", "", " (x, nan)"),
    ],
)  # fmt: skip
async def test_rows_from_before_the_gate_are_shown_whatever_their_columns_hold(
    database: DatabaseDsns, confidence: str | None, method_type: str | None, catchall: str | None, said: str
) -> None:
    settings = {"CT_POSTGRES_OPS_DSN": database.ops}
    for statement in (
        "ALTER TABLE outreach.company_target DROP CONSTRAINT company_target_status_check,"
        " ALTER confidence_score TYPE text, ALTER is_catchall TYPE text, ALTER imo_completed_at TYPE timestamp",
        "ALTER TABLE outreach.company_target_errors ALTER created_at TYPE timestamp, ALTER retry_allowed TYPE text",
        f"INSERT INTO outreach.outreach (outreach_id, domain) VALUES ('{ADOPTED}', 'acme.example')",
        "INSERT INTO outreach.ct_outcomes (outreach_id, outcome, source, decided_at)"
        f" VALUES ('{ADOPTED}', 'PASS', 'adopted', now())",
        f"INSERT INTO outreach.company_target_errors (outreach_id, failure_code) VALUES ('{ADOPTED}', 'OLD-CODE')",
    ):
        await execute(database.admin, statement)
    await execute(
        database.admin,
        "INSERT INTO outreach.company_target (outreach_id, email_method, method_type, confidence_score, is_catchall,"
        " execution_status, imo_completed_at) VALUES ($1, 'info@acme.example', $2, $3, $4, 'ready', now())",
        ADOPTED, method_type, confidence, catchall,
    )  # fmt: skip
    await execute(
        database.gate,
        "INSERT INTO outreach.ct_outcomes (outreach_id, outcome, decided_at) VALUES ($1, 'PASS', now())",
        uuid4(),
    )
    await execute(
        database.gate,
        "INSERT INTO outreach.ct_workers (worker, machine, egress, version, toolbox, troubles, partitions, running) "
        "VALUES ('a/1/x', 'a', 'default', '1', '[1]', '7', '{1,2}', 3)",
    )
    for path, args in (
        (("show",), (str(ADOPTED),)), (("failures",), ()), (("distribution",), ()), (("pass-rate",), ()),
        (("whatif",), ()), (("workers",), ()), (("held",), ()),
    ):  # fmt: skip
        table, printed = await both(path, *args, settings=settings)
        assert (table.exit_code, printed.exit_code) == (0, 0), f"{path}: {table.output}{printed.output}"
        json.loads(printed.stdout)
        if path == ("show",):
            assert said in table.stdout
