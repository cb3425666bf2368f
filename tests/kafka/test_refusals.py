"""Each way in which Kafka can refuse us has its own sentence: in the log, in /readyz and in `doctor`."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from ct_stream.cli.program import main
from ct_stream.ops.doctor.kafka_checks import KAFKA
from ct_stream.settings import load_settings
from ct_stream.stream.topology import create_topics
from tests.faults.harness import Stack
from tools.kafka.guarded import LOST_NAME, PASSWORD, USER, guarded_broker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ct_stream.ops.doctor.part import Check
    from tools.kafka.guarded import Guarded


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Run a broker that refuses people."""
    lent = guarded_broker(tmp_path_factory.mktemp("guarded"))
    with asyncio.Runner() as runner:
        broker = runner.run(lent.__aenter__())
        try:
            yield broker
        finally:
            runner.run(lent.__aexit__(None, None, None))


def login(guarded: Guarded, listener: str = "LOGIN", **more: str) -> dict[str, Any]:
    """Return the settings of the gate's login."""
    return {
        "CT_KAFKA_BOOTSTRAP": guarded.at(listener),
        "CT_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "CT_KAFKA_SASL_MECHANISM": "PLAIN",
        "CT_KAFKA_SASL_USERNAME": USER,
        "CT_KAFKA_SASL_PASSWORD": PASSWORD,
    } | more


def refused(guarded: Guarded, how: str) -> tuple[dict[str, Any], str, str]:
    """Return settings that are refused, and what the sentence says: what is wrong, and what to do."""
    tls = {"CT_KAFKA_SECURITY_PROTOCOL": "SSL", "CT_KAFKA_SSL_CAFILE": str(guarded.cafile)}
    match how:
        case "a wrong password":
            return (
                login(guarded, CT_KAFKA_SASL_PASSWORD="wrong-one"),
                f"{guarded.at('LOGIN')} (CT_KAFKA_BOOTSTRAP) refuses the Kafka login 'gate' (CT_KAFKA_SASL_USERNAME)",
                "CT_KAFKA_SASL_PASSWORD",
            )
        case "a wrong password over TLS":
            wrong = {"CT_KAFKA_SASL_PASSWORD": "wrong-one", "CT_KAFKA_SECURITY_PROTOCOL": "SASL_SSL"}
            return (
                login(guarded, "BOTH", **wrong, CT_KAFKA_SSL_CAFILE=str(guarded.cafile)),
                f"{guarded.at('BOTH')} (CT_KAFKA_BOOTSTRAP) refuses the Kafka login 'gate'",
                "CT_KAFKA_SASL_PASSWORD",
            )
        case "a mechanism that is off":
            return (
                login(guarded, CT_KAFKA_SASL_MECHANISM="SCRAM-SHA-512"),
                "does not support the login mechanism SCRAM-SHA-512",
                "CT_KAFKA_SASL_MECHANISM",
            )
        case "an unknown authority":
            return (
                tls | {"CT_KAFKA_BOOTSTRAP": guarded.at("TLS"), "CT_KAFKA_SSL_CAFILE": str(guarded.other_cafile)},
                f"the certificate of {guarded.at('TLS')} (CT_KAFKA_BOOTSTRAP) is from an authority that "
                f"CT_KAFKA_SSL_CAFILE {guarded.other_cafile} does not know",
                "set CT_KAFKA_SSL_CAFILE",
            )
        case "a certificate for another name":
            return (
                tls | {"CT_KAFKA_BOOTSTRAP": guarded.at("TLS").replace("127.0.0.1", "localhost")},
                "(CT_KAFKA_BOOTSTRAP) is for another name",
                "correct CT_KAFKA_BOOTSTRAP",
            )
        case "TLS to a plain port":
            return (
                tls | {"CT_KAFKA_BOOTSTRAP": guarded.plain},
                f"{guarded.plain} (CT_KAFKA_BOOTSTRAP) does not speak TLS, but CT_KAFKA_SECURITY_PROTOCOL is SSL",
                "set CT_KAFKA_SECURITY_PROTOCOL to PLAINTEXT",
            )
        case "plaintext to a TLS port":
            return (
                {"CT_KAFKA_BOOTSTRAP": guarded.at("TLS")},
                f"{guarded.at('TLS')} (CT_KAFKA_BOOTSTRAP) speaks TLS, but CT_KAFKA_SECURITY_PROTOCOL is PLAINTEXT",
                "set CT_KAFKA_SECURITY_PROTOCOL to SSL",
            )
        case "a login to a port without":
            return (
                login(guarded) | {"CT_KAFKA_BOOTSTRAP": guarded.plain},
                f"{guarded.plain} (CT_KAFKA_BOOTSTRAP) takes no login",
                "CT_KAFKA_SECURITY_PROTOCOL to PLAINTEXT",
            )
        case "no login to a port with":
            return (
                {"CT_KAFKA_BOOTSTRAP": guarded.at("LOGIN")},
                f"{guarded.at('LOGIN')} (CT_KAFKA_BOOTSTRAP) requires a login (PLAIN)",
                "set CT_KAFKA_SECURITY_PROTOCOL to SASL_PLAINTEXT",
            )
        case "no client certificate":
            return (
                tls | {"CT_KAFKA_BOOTSTRAP": guarded.at("CERT")},
                "it seems to require a client certificate",
                "set CT_KAFKA_SSL_CERTFILE and CT_KAFKA_SSL_KEYFILE",
            )
        case "an advertised name that does not resolve":
            return (
                {"CT_KAFKA_BOOTSTRAP": guarded.at("LOST")},
                f"the cluster advertises broker 1 as {LOST_NAME}:9092, a name that does not resolve here",
                "correct advertised.listeners of broker 1",
            )
        case "an advertised address where nobody listens":
            return (
                {"CT_KAFKA_BOOTSTRAP": guarded.at("MOVED")},
                f"the cluster advertises broker 1 as 127.0.0.1:{guarded.nobody}, where nobody listens",
                "correct advertised.listeners of broker 1",
            )
        case "a name that does not resolve":
            return (
                {"CT_KAFKA_BOOTSTRAP": "kafka-9.invalid:9092"},
                "the name kafka-9.invalid in CT_KAFKA_BOOTSTRAP does not resolve",
                "correct CT_KAFKA_BOOTSTRAP",
            )
        case "nobody listens":
            return (
                {"CT_KAFKA_BOOTSTRAP": f"127.0.0.1:{guarded.nobody}"},
                f"Kafka at 127.0.0.1:{guarded.nobody} does not answer: nobody listens there",
                "start the broker, or correct CT_KAFKA_BOOTSTRAP",
            )
    raise ValueError(how)


#: The worker looks every 15 s; the test need not wait for it.
_LOOKS_OFTEN = "import ct_stream.wiring.watching as w; w._LAG_EVERY_S = 1.0"
#: After which the group has dropped a member that may send no heartbeats (the session of the tests' workers is 6 s).
_EVICTED_S = 8.0

WAYS = (
    "a wrong password",
    "a wrong password over TLS",
    "a mechanism that is off",
    "an unknown authority",
    "a certificate for another name",
    "TLS to a plain port",
    "plaintext to a TLS port",
    "a login to a port without",
    "no login to a port with",
    "no client certificate",
    "an advertised name that does not resolve",
    "an advertised address where nobody listens",
    "a name that does not resolve",
    "nobody listens",
)


async def doctor(env: dict[str, str]) -> list[Check]:
    """Return what `doctor` finds wrong with Kafka."""
    return [check for check in await KAFKA.look(load_settings(env)) if check.ok is False]


@pytest.mark.parametrize("how", WAYS)
async def test_doctor_says_why_kafka_refuses_us(guarded: Guarded, how: str) -> None:
    env, what, action = refused(guarded, how)
    [check, *_] = await doctor(env)
    assert what in check.detail
    assert action in check.action
    assert "bootstrap from" not in check.detail
    assert "wrong-one" not in check.detail + check.action


def test_a_command_says_why_kafka_refuses_us(guarded: Guarded) -> None:
    env, what, action = refused(guarded, "a wrong password")
    for command in (["topics"], ["lag"], ["replay"]):
        result = CliRunner().invoke(main, command, env=env)
        assert (result.exit_code, what in result.stderr, action in result.stderr) == (69, True, True), result.stderr


async def test_rights_that_are_missing_are_named_with_the_command_that_grants_them(guarded: Guarded) -> None:
    env = login(guarded)
    result = await asyncio.to_thread(CliRunner().invoke, main, ["topics"], env=env)
    assert "may not create topic spine.created; grant it CREATE" in result.stderr
    await create_topics(load_settings({"CT_KAFKA_BOOTSTRAP": guarded.plain}))
    [rights, *_] = await doctor(env)
    assert rights.detail == (
        "the Kafka login 'gate' (CT_KAFKA_SASL_USERNAME) may not READ topic spine.created, WRITE topic ct.pass, "
        "WRITE topic ct.fail, WRITE topic ct.rejected, READ topic ct-stream-decided-changelog, "
        "WRITE topic ct-stream-decided-changelog, READ group ct-stream"
    )
    assert "--allow-principal User:gate --operation READ --topic spine.created" in rights.action
    await guarded.allow_gate()
    assert [check for check in await doctor(env) if "rights" in check.name] == []
    for operation, resource, name in (("WRITE", "topic", "ct.fail"), ("READ", "group", "ct-stream")):
        await guarded.forbid(operation, resource, name)
        [rights, *_] = await doctor(env)
        assert rights.detail.endswith(f"may not {operation} {resource} {name}")
        assert rights.action.endswith(f"--operation {operation} --{resource} {name}`")
        await guarded.allow(operation, resource, name)


async def test_a_worker_says_why_kafka_refuses_it_and_waits(guarded: Guarded, tmp_path: Path) -> None:
    ways = (
        "a wrong password",
        "an advertised name that does not resolve",
    )
    async with Stack(tmp_path, CT_KAFKA_BOOTSTRAP=guarded.plain) as stack:
        for how in ways:
            env, what, action = refused(guarded, how)
            worker = stack.start_worker(**env)
            assert await stack.wait_said(f"Waiting: {what}", 20), stack.worker_log()
            status, troubles = await stack.readyz()
            assert (status, what in troubles["kafka"], action in troubles["kafka"]) == (503, True, True), troubles
            assert stack.end_worker(worker) == 0
            assert "bootstrap from" not in stack.worker_log()
            assert "wrong-one" not in stack.worker_log()


async def test_a_right_that_is_taken_from_a_running_worker_stops_it_until_it_is_granted_again(
    guarded: Guarded, tmp_path: Path
) -> None:
    async with Stack(tmp_path, CT_KAFKA_BOOTSTRAP=guarded.plain) as stack:
        await guarded.allow_gate()
        worker = stack.start_worker(prelude=_LOOKS_OFTEN, **login(guarded))
        assert await stack.wait_said("Ready", 40), stack.worker_log()
        await stack.publish(await stack.mint(["info-a1.example"]))
        assert await stack.wait_decided(1, 20) == 1
        for number, (resource, name) in enumerate((("topic", "spine.created"), ("group", "ct-stream")), 2):
            await guarded.forbid("READ", resource, name)
            await stack.publish(await stack.mint([f"info-a{number}.example"]))
            # Each broker learns of it by itself; until all have, another sentence may be true for one of them.
            await stack.wait_trouble("kafka_group", f"may not READ {resource} {name}", 20)
            assert f"may not READ {resource} {name}" in stack.worker_log()
            await asyncio.sleep(_EVICTED_S if resource == "group" else 2.0)
            assert worker.poll() is None, stack.worker_log()
            await guarded.allow("READ", resource, name)
            await stack.wait_ready(200, 40)
            assert await stack.wait_decided(number, 40) == number, stack.worker_log()[-3000:]
            # What was decided while the group was away from it is delivered once more, and committed then.
            assert await stack.wait_committed(number, 40) == number, stack.worker_log()[-3000:]
            # Who is in no group can read on, and commit while the group is empty.
            assert await stack.members() == 1
        assert stack.end_worker(worker) == 0, stack.worker_log()[-3000:]
        assert await stack.wait_published(5) == 0
        assert re.search(r"Traceback|exit", stack.worker_log()) is None, stack.worker_log()
