"""Whatever a mail server says, a pass ends in time, and only real replies decide about mailboxes."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

import orjson
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bench.loop import NoLimits
from ct_stream.gate.failures import FailureCode
from ct_stream.gate.middle_stage import middle_stage
from ct_stream.gate.patterns import ProbeName
from ct_stream.gate.questions import MailboxAnswer, MxAnswer, MxStatus
from ct_stream.gate.replies import Stage
from ct_stream.gate.rules import Rules
from ct_stream.gate.transcript import from_json, to_json
from ct_stream.gate.verdicts import Failed, Held, Passed
from ct_stream.gate.waits import Wait, WaitReason
from ct_stream.probes.answer import PassDriver, Waiting, World
from ct_stream.probes.mailbox import MailboxProber
from ct_stream.probes.smtp import SmtpSettings
from ct_stream.probes.solo import NoMemory, NoSpine, Tier2Off
from tests.fuzz.rounds import EXAMPLES, hang_up, rounds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ct_stream.probes.mx import NameTrouble

ID = UUID("5f0c2b1e-9a41-4c53-9d6e-2f1c8e9b7a10")
RULES = Rules(probe_name=ProbeName(first="jordan", last="whitfield"))
COMMAND_S = 0.08
END_S = 12.0  #: nine questions, each over at most three sessions of some silent commands

# ---------------------------------------------------------------- what a server may say

codes = st.one_of(
    st.sampled_from([b"220", b"250", b"251", b"421", b"450", b"452", b"503", b"550", b"552", b"554"]),
    st.integers(0, 999).map(lambda code: b"%03d" % code),
)
texts = st.one_of(
    st.sampled_from(
        [
            b"Ok",
            b"5.1.1 User unknown",
            b"2.1.5 Ok",
            b"5.7.1 blocked using zen.example",
            b"4.2.0 greylisted",
            b"",
            b"x" * 600,
        ]
    ),
    st.binary(max_size=60),
)
line_ends = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b""])


@st.composite
def replies(draw: st.DrawFn) -> bytes:
    """Return a reply of some lines, well-formed or nearly."""
    code, lines = draw(codes), draw(st.lists(texts, min_size=1, max_size=3))
    said = b""
    for number, text in enumerate(lines, 1):
        mark = b" " if number == len(lines) else b"-"
        said += (
            draw(st.sampled_from([code, code, code, b"250"])) + draw(st.sampled_from([mark, mark, mark, b"-"])) + text
        )
        said += draw(line_ends)
    return said


GOOD = [b"220 mx\r\n", b"250-mx\r\n250 8BITMIME\r\n", b"250 2.1.0 Ok\r\n"]
NO, YES = b"550 5.1.1 User unknown\r\n", b"250 2.1.5 Ok\r\n"
#: One element for each command (the first for the connection): what is sent, None for a close. After the last: silence.
turns = st.one_of(
    st.sampled_from([*GOOD, NO, NO, NO, YES]),
    replies(),
    st.lists(replies(), min_size=2, max_size=3).map(b"".join),  # glued
    st.binary(max_size=200),
    st.none(),
)
sessions = st.one_of(
    st.lists(turns, max_size=12),
    st.lists(turns, min_size=1, max_size=9).map(lambda said: [*GOOD, *said]),
    st.integers(0, 8).map(lambda refusals: [*GOOD, *[NO] * refusals, *[YES] * 2]),
)


@dataclass
class Garbler:
    """A server that plays one list of turns for each connection, and notes what it sent after each RCPT."""

    plays: Sequence[Sequence[bytes | None]]
    connections: int = 0
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    after_rcpt: dict[str, list[bytes]] = field(default_factory=dict)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        turns = list(self.plays[min(self.connections, len(self.plays) - 1)])
        self.connections += 1
        self.writers.append(writer)
        command = b""
        try:
            while turns:
                said = turns.pop(0)
                recipient = re.match(rb"RCPT TO:<([^>]*)>", command)
                if recipient:
                    self.after_rcpt.setdefault(recipient[1].decode(), []).append(said or b"")
                if said is None:
                    break
                writer.write(said)
                command = await reader.readline()
                if not command or command.upper().startswith(b"QUIT"):
                    break
            else:
                await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()


# ---------------------------------------------------------------- the rest of the world


class Around(NoLimits):
    """Everything but the mail server: always at hand, and a refusal of us may be anybody's."""

    def __init__(self, refusals_wait: bool) -> None:
        self._refusals_wait = refusals_wait

    async def lookup_mx(self, domain: str) -> MxAnswer:
        return MxAnswer(status=MxStatus.FOUND, hosts=(f"mx.{domain}",))

    async def lookup_addresses(self, host: str) -> tuple[str, ...] | NameTrouble:  # noqa: ARG002
        return ("127.0.0.1",)

    async def judge(self, held: Held, domain: str, provider: str) -> Wait | None:  # noqa: ARG002
        return Wait(reason=WaitReason.REFUSED, detail="scripted") if self._refusals_wait else None


async def a_pass(plays: Sequence[Sequence[bytes | None]], refusals_wait: bool) -> None:
    garbler, around = Garbler(plays), Around(refusals_wait)
    server = await asyncio.start_server(garbler.talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    smtp = SmtpSettings(
        helo="gate.example", mail_from="probe@gate.example", port=port, connect_s=1.0, command_s=COMMAND_S, quit_s=0.02
    )
    world = World(
        spine=NoSpine("acme.example"), memory=NoMemory(), resolver=around, permits=around, controls=around,
        refusals=around, tier2=Tier2Off(),
        probers=lambda watch: MailboxProber(resolver=around, permits=around, settings=smtp, stopwatch=watch),
    )  # fmt: skip
    flow = lambda: middle_stage(ID, "acme.example", RULES, tier2_off="Tier-2 is off")  # noqa: E731
    driver = PassDriver(ID, RULES, world, deadline_s=60.0, flow=flow)
    try:
        async with asyncio.timeout(END_S):
            ending = await driver.run()
    finally:
        await hang_up(server, garbler.writers)
    check(ending, driver, garbler)


# A reply as RFC 5321 section 4.2.1 has it, by eyes other than the product's. A CR without an LF should not be there and
# ends no line (section 2.3.8); it does not change what a clear code and clear words say.
_REPLY = re.compile(rb"(?:([2-5]\d\d)-[^\n]*\n)*([2-5]\d\d)(?:\r*| [^\n]*)\n")


def well_formed(said: bytes) -> int | None:
    """Return the code of the complete reply that this begins with, or None.

    What follows a reply in the same breath is out of step, and the reply before it counts: Postfix says 421 right
    behind the 550 that was one too many.
    """
    match = _REPLY.match(said)
    return int(match[2]) if match else None


def check(ending: Passed | Failed | Waiting, driver: PassDriver, garbler: Garbler) -> None:
    for exchange in driver.exchanges:
        assert len(orjson.dumps(to_json([exchange]))) < 20_000
        if isinstance(exchange.answer, MailboxAnswer):
            for attempt in exchange.answer.attempts:
                text = attempt.reply.text if attempt.reply else attempt.detail
                assert len(text.encode()) <= 512
                assert all(char.isprintable() or char == "\n" for char in text), text
    assert from_json(orjson.loads(orjson.dumps(to_json(driver.exchanges)))) == list(driver.exchanges)
    if isinstance(ending, Failed):
        assert ending.code in (FailureCode.NO_PATTERN, FailureCode.SMTP_FAIL)
    if isinstance(ending, Failed) and ending.code is FailureCode.NO_PATTERN:
        for exchange in driver.exchanges:
            if exchange.key.startswith("rcpt:"):
                said = garbler.after_rcpt.get(exchange.asked, [])
                assert any((well_formed(part) or 0) >= 500 for part in said), f"a reject out of {said}"
    if isinstance(ending, Passed):
        [accepted] = [
            exchange.asked
            for exchange in driver.exchanges
            if isinstance(exchange.answer, MailboxAnswer)
            and exchange.key != "rcpt:random"
            and exchange.answer.attempts[-1].stage is Stage.RCPT
            and exchange.answer.attempts[-1].reply is not None
            and exchange.answer.attempts[-1].reply.code in (250, 251)
        ]
        said = garbler.after_rcpt.get(accepted, [])
        assert any(re.match(rb"25[01]", part) for part in said), f"an accept out of {said}"


@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(sessions, min_size=1, max_size=4), st.booleans())
@example([[*GOOD, b"500 \r5.1.1\n\0"]], False)
@example([[*GOOD, b"500\r5.1.1\n"]], False)
def garbage_in_smtp(plays: list[list[bytes | None]], refusals_wait: bool) -> None:
    asyncio.run(a_pass(plays, refusals_wait))


def test_garbage_from_a_mail_server_ends_a_pass_and_decides_nothing() -> None:
    rounds(garbage_in_smtp)
