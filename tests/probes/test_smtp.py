"""What does one mail server say, and what do we keep of it?"""

from __future__ import annotations

import asyncio
import errno
import select
import socket
import threading
import time
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import uvloop

from ct_stream.gate.patterns import Address
from ct_stream.gate.questions import Attempt, Trouble
from ct_stream.gate.replies import Meaning, Reply, Stage, read_reply
from ct_stream.probes import smtp
from ct_stream.probes.smtp import _REPLY_LINE, SmtpSession, SmtpSettings, clean_text, read_wire
from ct_stream.probes.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.probes.conftest import Dialogue, MailFarm, SmtpServer, Step

INFO = Address(local_part="info", domain="acme.example")


def session(
    farm: MailFarm, ip: str = "127.0.0.1", *, command_s: float = 1.0, deadline_s: float = 5.0, quit_s: float = 0.05
) -> SmtpSession:
    settings = SmtpSettings(
        helo="gate.example",
        mail_from="probe@gate.example",
        port=farm.port,
        connect_s=0.5,
        command_s=command_s,
        quit_s=quit_s,
    )
    return SmtpSession("mx.example", ip, settings, Stopwatch(deadline_s))


async def talk(farm: MailFarm, *dialogue: Step, command_s: float = 1.0, deadline_s: float = 5.0) -> Attempt:
    """Play one dialogue and return the last attempt: where it stopped, or the reply to RCPT TO."""
    await farm.server(dialogue)
    talking = session(farm, command_s=command_s, deadline_s=deadline_s)
    try:
        return await talking.start() or await talking.rcpt(INFO)
    finally:
        await talking.end()


def ended(attempt: Attempt) -> tuple[Stage, Trouble | int | None]:
    return attempt.stage, attempt.reply.code if attempt.reply else attempt.trouble


async def test_a_plain_session_reaches_rcpt_and_says_quit(farm: MailFarm) -> None:
    server = await farm.server(farm.hello(farm.rcpt("info", "550 5.1.1 User unknown")))
    talking = session(farm)
    assert await talking.start() is None
    attempt = await talking.rcpt(INFO)
    assert attempt.reply == Reply(code=550, enhanced="5.1.1", text="User unknown")
    assert (attempt.host, attempt.ip, attempt.stage) == ("mx.example", "127.0.0.1", Stage.RCPT)
    assert talking.greeted
    await talking.end()
    await settle(server)
    assert server.commands[-1] == "QUIT"


async def settle(server: SmtpServer) -> None:
    """Let a server read what was sent to it."""
    for _ in range(20):
        if server.commands and server.commands[-1] in ("QUIT", "EOF"):
            return
        await asyncio.sleep(0.005)


async def test_ehlo_refused_falls_back_to_helo(farm: MailFarm) -> None:
    attempt = await talk(
        farm,
        "220 old.example",
        ("EHLO gate.example", "502 5.5.1 what?"),
        ("HELO gate.example", "250 old.example"),
        ("MAIL FROM:<probe@gate.example>", "250 ok"),
        farm.rcpt("info", "250 ok"),
    )
    assert ended(attempt) == (Stage.RCPT, 250)


@pytest.mark.parametrize(
    ("banner", "expected"),
    [
        pytest.param("554 5.7.1 listed", (Stage.BANNER, 554), id="refused"),
        pytest.param("421 too busy", (Stage.BANNER, 421), id="busy"),
        pytest.param("HTTP/1.1 400 Bad Request", (Stage.BANNER, Trouble.GARBLED), id="HTTP"),
        pytest.param(b"\0\0\0\0\n", (Stage.BANNER, Trouble.GARBLED), id="NUL"),
        pytest.param(b"999 x\n", (Stage.BANNER, Trouble.GARBLED), id="no such code"),
        pytest.param(b"-42 x\n", (Stage.BANNER, Trouble.GARBLED), id="negative code"),
        pytest.param(b"220\0mx.example\r\n", (Stage.BANNER, Trouble.GARBLED), id="NUL behind the code"),
        pytest.param(b"2201 mx.example\r\n", (Stage.BANNER, Trouble.GARBLED), id="four digits"),
        pytest.param(b"220-mx\r\n+20 ok\r\n", (Stage.BANNER, Trouble.GARBLED), id="garbage in a later line"),
        pytest.param(b"220 " + b"x" * 65536 + b"\r\n", (Stage.BANNER, Trouble.GARBLED), id="64 KiB line"),
        pytest.param(b"220 " + b"x" * 9000 + b"\r\n", (Stage.BANNER, Trouble.GARBLED), id="9 KB line"),
        pytest.param(b"220-x\r\n" * 9000, (Stage.BANNER, Trouble.GARBLED), id="too many lines"),
    ],
)
async def test_a_banner_that_is_no_welcome_ends_the_session(
    farm: MailFarm, banner: str | bytes, expected: tuple[Stage, Trouble | int]
) -> None:
    assert ended(await talk(farm, banner)) == expected


@pytest.mark.parametrize(
    "banner",
    [
        pytest.param(b"220 mx\n", id="LF only"),
        pytest.param(b"220-one\r\n220-two\r\n220 three\r\n", id="multi-line"),
        pytest.param(b"220 gr\xfc\xdfe \xe2\x80\xae\r\n", id="8-bit"),
        pytest.param(b"220\r\n", id="bare code"),
        pytest.param(b"220 mx\rready\r\r\n", id="CRs that end no line"),
    ],
)
async def test_odd_banners_that_are_a_welcome(farm: MailFarm, banner: bytes) -> None:
    dialogue: Dialogue = [banner, *farm.hello(farm.rcpt("info", "250 ok"))[1:]]
    assert ended(await talk(farm, *dialogue)) == (Stage.RCPT, 250)


async def test_a_reply_may_come_byte_by_byte(farm: MailFarm) -> None:
    banner = [bytes([byte]) for byte in b"220 mx.example\r\n"]
    dialogue: Dialogue = [*banner, *farm.hello(farm.rcpt("info", "250 ok"))[1:]]
    assert ended(await talk(farm, *dialogue)) == (Stage.RCPT, 250)


async def test_each_line_of_a_reply_is_read_once_however_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = 5000
    reads = []

    class Counting:
        def match(self, buffer: bytearray, begin: int, end: int) -> object:
            reads.append(begin)
            assert len(reads) <= lines + 1, "the reply is read from its beginning for each segment"
            return _REPLY_LINE.match(buffer, begin, end)

    monkeypatch.setattr(smtp, "_REPLY_LINE", Counting())
    wire = smtp._Wire()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire.connection_made(Connected(ours))
        reply = asyncio.ensure_future(wire.read_response())
        await asyncio.sleep(0)
        for _ in range(lines):
            wire.data_received(b"250-a\n")
        wire.data_received(b"250 b\n")
        assert (await reply).code == 250
        reply = asyncio.ensure_future(wire.read_response())  # the next reply begins afresh
        await asyncio.sleep(0)
        reads.clear()
        wire.data_received(b"550-a\n")
        wire.data_received(b"550 b\n")
        assert (await reply).message == "a\nb"


class Connected(asyncio.Transport):
    """What a protocol needs of its transport to read."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})


async def test_an_endless_banner_costs_bounded_memory_and_time(farm: MailFarm) -> None:
    chunk = b"220-" + b"x" * 60_000 + b"\r\n"
    server = await farm.server([chunk] * 2000)
    talking = session(farm)
    tracemalloc.start()
    try:
        attempt = await talking.start()
        assert attempt is not None
        assert attempt.trouble is Trouble.GARBLED
        await talking.end()
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()
    assert server.sent < len(chunk) * 200


@pytest.mark.parametrize("stage", [Stage.BANNER, Stage.HELO, Stage.MAIL, Stage.RCPT])
async def test_silence_ends_in_a_timeout_at_its_stage(farm: MailFarm, stage: Stage) -> None:
    whole: Dialogue = farm.hello(farm.rcpt("info", b""))
    steps = {Stage.BANNER: 0, Stage.HELO: 1, Stage.MAIL: 2, Stage.RCPT: 3}[stage]
    silent = whole[:steps]
    if steps:
        step = whole[steps]
        assert isinstance(step, tuple)
        silent = [*silent, (step[0], b"")]
    attempt = await talk(farm, *silent, command_s=0.6)  # for the replies before it, too
    assert ended(attempt) == (stage, Trouble.TIMEOUT)
    assert "within 0.6 s" in attempt.detail


@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_a_server_that_hangs_up_is_closed_at_its_stage(farm: MailFarm, steps: int) -> None:
    whole: Dialogue = farm.hello(farm.rcpt("info", None))
    step = whole[steps]
    assert isinstance(step, tuple)
    attempt = await talk(farm, *whole[:steps], (step[0], None))
    assert ended(attempt) == ([Stage.HELO, Stage.MAIL, Stage.RCPT][steps - 1], Trouble.CLOSED)


async def test_the_pass_deadline_cuts_a_tarpit_short(farm: MailFarm) -> None:
    begin = time.monotonic()
    attempt = await talk(farm, "220 mx", ("EHLO gate.example", b""), command_s=30.0, deadline_s=0.6)
    assert ended(attempt) == (Stage.HELO, Trouble.DEADLINE)
    assert time.monotonic() - begin < 20


async def test_mail_from_refused_ends_at_mail(farm: MailFarm) -> None:
    attempt = await talk(farm, *farm.hello(mail="550 5.1.8 sender domain refused"))
    assert ended(attempt) == (Stage.MAIL, 550)
    assert attempt.reply is not None
    assert attempt.reply.enhanced == "5.1.8"


async def test_nothing_listens_is_refused(farm: MailFarm) -> None:
    await farm.server()
    attempt = await session(farm, farm.no_answer_ip()).start()
    assert attempt is not None
    assert ended(attempt) == (Stage.CONNECT, Trouble.REFUSED)


@pytest.mark.parametrize(
    ("number", "ip", "trouble"),
    [
        pytest.param(errno.ENETUNREACH, "127.0.0.1", Trouble.UNREACHABLE, id="no way there"),
        pytest.param(errno.EHOSTUNREACH, "127.0.0.1", Trouble.UNREACHABLE, id="no host there"),
        pytest.param(errno.ETIMEDOUT, "127.0.0.1", Trouble.TIMEOUT, id="the network gave up"),
        pytest.param(errno.EADDRNOTAVAIL, "::1", Trouble.UNREACHABLE, id="no IPv6 here"),
        pytest.param(errno.EINVAL, "127.0.0.1", Trouble.UNREACHABLE, id="one of our own routes"),
        pytest.param(errno.EPROTO, "::1", Trouble.UNREACHABLE, id="an ICMP message of any kind"),
        pytest.param(errno.EMFILE, "127.0.0.1", None, id="our descriptors"),
        pytest.param(errno.EADDRNOTAVAIL, "127.0.0.1", None, id="our ports"),
        pytest.param(errno.ENOMEM, "127.0.0.1", None, id="our memory"),
    ],
)
async def test_trouble_of_this_process_is_no_answer(
    farm: MailFarm, monkeypatch: pytest.MonkeyPatch, number: int, ip: str, trouble: Trouble | None
) -> None:
    async def fail(*_: object) -> None:
        raise OSError(number, "scripted")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", fail)
    if trouble is None:
        with pytest.raises(OSError, match="scripted"):
            await session(farm, ip).start()
        return
    attempt = await session(farm, ip).start()
    assert attempt is not None
    assert attempt.trouble is trouble


# ---------------------------------------------------------------- in step


@pytest.mark.parametrize(
    "reply", [b"000-\n250\n", b"550-no such user\r\n250 ok\r\n", b"250-ok\r\n550 5.1.1 no\r\n", b"200-\n250\n"]
)
async def test_a_reply_that_contradicts_itself_is_no_answer(farm: MailFarm, reply: bytes) -> None:
    assert ended(await talk(farm, *farm.hello(farm.rcpt("info", reply)))) == (Stage.RCPT, Trouble.GARBLED)


async def test_lines_of_one_class_are_one_reply(farm: MailFarm) -> None:
    said = b"554-5.7.1 blocked\r\n550 5.7.1 see our page\r\n"
    assert ended(await talk(farm, *farm.hello(farm.rcpt("info", said)))) == (Stage.RCPT, 550)


@pytest.mark.parametrize("steps", [0, 1, 2])
async def test_a_reply_glued_to_another_is_never_read_as_the_next_answer(farm: MailFarm, steps: int) -> None:
    whole: Dialogue = farm.hello()
    step = whole[steps]
    if isinstance(step, tuple):
        command, reply = step
        glued: Dialogue = [*whole[:steps], (command, f"{reply!s}\n250 2.1.5 ok")]
    else:
        glued = [f"{step!s}\n250 ok"]
    attempt = await talk(farm, *glued)
    assert attempt.trouble is Trouble.GARBLED
    assert attempt.stage is not Stage.RCPT


async def test_an_answer_with_another_glued_to_it_counts_and_ends_the_session(farm: MailFarm) -> None:
    await farm.server(farm.hello(farm.rcpt("info", "550 5.1.1 unknown user\n250 2.1.5 ok")))
    talking = session(farm)
    assert await talking.start() is None
    assert ended(await talking.rcpt(INFO)) == (Stage.RCPT, 550)
    assert not await talking.in_step()
    await talking.end()


async def test_a_line_that_nobody_asked_for_ends_the_session(farm: MailFarm) -> None:
    async def later(server: SmtpServer) -> bytes:
        del server
        return b"550 5.1.1 unknown user\r\n"

    await farm.server(farm.hello(("RCPT TO:<info@acme.example>", later), b"250 2.1.5 ok\r\n"))
    talking = session(farm)
    assert await talking.start() is None
    assert ended(await talking.rcpt(INFO)) == (Stage.RCPT, 550)
    for _ in range(20):
        await asyncio.sleep(0.005)
        if not await talking.in_step():
            break
    assert not await talking.in_step()
    await talking.end()


class Heckler(threading.Thread):
    """A server in a thread, that says more, or hangs up, when told to: it has done so while our loop stands still."""

    def __init__(self, afterwards: bytes) -> None:
        super().__init__(daemon=True)
        self._afterwards = afterwards
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._told, self._has_done_so = threading.Event(), threading.Event()

    def run(self) -> None:
        talking, _ = self._listening.accept()
        with self._listening, talking, talking.makefile("rb") as commands:
            talking.sendall(b"220 mx.example\r\n")
            for reply in (b"250 mx.example", b"250 2.1.0 ok", b"550 5.1.1 unknown user"):
                commands.readline()
                talking.sendall(reply + b"\r\n")
            self._told.wait(10)
            if self._afterwards:
                talking.sendall(self._afterwards)
            else:
                talking.shutdown(socket.SHUT_WR)
            self._has_done_so.set()
            commands.read()

    def heckle(self) -> None:
        """Come back when it has."""
        self._told.set()
        assert self._has_done_so.wait(10)


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
@pytest.mark.parametrize("afterwards", [b"250 2.1.5 ok\r\n", b""], ids=["a line", "the end"])
def test_what_has_come_by_the_next_command_is_seen_however_busy_the_loop_was(
    new_loop: Callable[[], asyncio.AbstractEventLoop], afterwards: bytes
) -> None:
    server = Heckler(afterwards)
    server.start()

    async def ask_busily() -> None:
        settings = SmtpSettings(helo="gate.example", mail_from="probe@gate.example", port=server.port)
        talking = SmtpSession("mx.example", "127.0.0.1", settings, Stopwatch(5.0))
        assert await talking.start() is None
        assert ended(await talking.rcpt(INFO)) == (Stage.RCPT, 550)
        assert await talking.in_step()
        server.heckle()
        wire = talking._wire
        assert wire is not None
        assert wire.transport is not None
        arrived, _, _ = select.select([wire.transport.get_extra_info("socket").fileno()], [], [], 10)
        assert arrived, "and no turn for the loop"
        assert not await talking.in_step()
        await talking.end()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(ask_busily())
    server.join(10)


async def test_421_at_rcpt_is_the_answer_and_ends_the_session(farm: MailFarm) -> None:
    await farm.server(farm.hello(farm.rcpt("info", "421 4.7.0 too many errors")))
    talking = session(farm)
    assert await talking.start() is None
    assert ended(await talking.rcpt(INFO)) == (Stage.RCPT, 421)
    assert not await talking.in_step()
    await talking.end()


async def test_quit_that_is_never_answered_costs_no_more_than_its_own_time(farm: MailFarm) -> None:
    server = await farm.server(farm.hello(farm.rcpt("info", "250 ok")))
    server.answers_quit = False
    talking = session(farm, quit_s=0.05)
    assert await talking.start() is None
    await talking.rcpt(INFO)
    begin = time.monotonic()
    await talking.end()
    assert time.monotonic() - begin < 0.3


# ---------------------------------------------------------------- STARTTLS

OFFER = "250-mx.example\n250-SIZE 1000\n250 STARTTLS"


async def test_a_self_signed_certificate_is_good_enough(farm: MailFarm) -> None:
    after: Dialogue = farm.hello(farm.rcpt("info", "250 ok"))[1:]
    dialogue: Dialogue = ["220 mx", ("EHLO gate.example", OFFER), ("STARTTLS", "220 go"), *after]
    server = await farm.server(dialogue, tls=farm.self_signed())
    talking = session(farm)
    assert await talking.start() is None
    assert ended(await talking.rcpt(INFO)) == (Stage.RCPT, 250)
    await talking.end()
    await settle(server)
    assert server.commands[1] == "STARTTLS"


async def test_a_refused_starttls_leaves_the_session_as_it_was(farm: MailFarm) -> None:
    after: Dialogue = farm.hello(farm.rcpt("info", "250 ok"))[2:]
    attempt = await talk(farm, "220 mx", ("EHLO gate.example", OFFER), ("STARTTLS", "454 4.7.0 not now"), *after)
    assert ended(attempt) == (Stage.RCPT, 250)


@pytest.mark.parametrize("junk", [b"220 go\r\n", b"220 go\r\n\0\0junk that is no TLS\r\n"], ids=["silent", "junk"])
async def test_a_broken_starttls_says_so(farm: MailFarm, junk: bytes) -> None:
    server = await farm.server(["220 mx", ("EHLO gate.example", OFFER), ("STARTTLS", junk), b"more junk\r\n" * 20])
    server.hang_up_after = True
    talking = session(farm, command_s=0.3)
    attempt = await talking.start()
    assert attempt is not None
    assert ended(attempt) == (Stage.STARTTLS, Trouble.TLS)
    assert talking.tls_failed
    begin = time.monotonic()
    await talking.end()
    assert time.monotonic() - begin < 0.5


async def test_without_tls_the_offer_is_not_taken(farm: MailFarm) -> None:
    await farm.server(farm.hello(farm.rcpt("info", "250 ok"), ehlo=OFFER))
    talking = session(farm)
    assert await talking.start(tls=False) is None
    await talking.end()


# ---------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("code", "message", "expected"),
    [
        pytest.param(550, "5.1.1 User unknown", Reply(code=550, enhanced="5.1.1", text="User unknown"), id="plain"),
        pytest.param(550, "5.1.1 a\n5.1.1 b", Reply(code=550, enhanced="5.1.1", text="a\nb"), id="on each line"),
        pytest.param(550, "4.1.1 odd", Reply(code=550, text="4.1.1 odd"), id="another class"),
        pytest.param(250, "2.1.5", Reply(code=250, enhanced="2.1.5"), id="nothing else"),
        pytest.param(550, "5.1.1.1 x", Reply(code=550, text="5.1.1.1 x"), id="four numbers"),
        pytest.param(
            550, "5.7.606 Access denied", Reply(code=550, enhanced="5.7.606", text="Access denied"), id="three digits"
        ),
        pytest.param(550, "User 5.1.1", Reply(code=550, text="User 5.1.1"), id="not at the start"),
    ],
)
def test_enhanced_codes(code: int, message: str, expected: Reply) -> None:
    assert read_wire(code, message) == expected


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        pytest.param("plain", "plain", id="plain"),
        pytest.param("caf\udce9", "caf\\xe9", id="8-bit"),
        pytest.param("café", "café", id="UTF-8"),
        pytest.param("a\x1b[31mred\x1b[0m\x1b]0;title\x07b", "aredb", id="ANSI"),
        pytest.param("a\u202eb\u2066c\u200fd\ufeffe", "abcde", id="bidi"),
        pytest.param("a\0b\x7fc\x85d\u2028e", "abcde", id="controls"),
        pytest.param("a\n\n\r\nb\r\n", "a\nb", id="line breaks"),
        pytest.param("a\tb\u00a0c\u3000d", "a b c d", id="spaces of every kind"),
        pytest.param("a\u038bb\ue000c", "abc", id="unassigned and private"),
        pytest.param("x" * 512, "x" * 512, id="just short enough"),
        pytest.param("x" * 600 + "the end", f"{'x' * 325}\n[...]\n{'x' * 173}the end", id="long"),
        pytest.param("x" * 9000 + "\nthe end", f"{'x' * 325}\n[...]\n{'x' * 172}\nthe end", id="very long"),
        pytest.param("é" * 600, f"{'é' * 162}\n[...]\n{'é' * 90}", id="long in two bytes"),
        pytest.param("\udcff" * 9000, "\\xff" * 81 + "\\\n[...]\n" + "\\xff" * 45, id="long in bad bytes"),
    ],
)
def test_what_is_kept_of_a_text(said: str, kept: str) -> None:
    assert clean_text(said) == kept


def test_what_a_long_reply_says_last_is_kept_and_read() -> None:
    why = "\n".join(f"Line {n} of why: see the postmaster's page on what we ask of those who send." for n in range(9))
    for last, meaning in [
        ("Client host [192.0.2.1] blocked using zen.spamhaus.org", Meaning.ABOUT_US),
        ("Sender verify failed", Meaning.ABOUT_US),
        ("try again later, you are greylisted", Meaning.INCONCLUSIVE),
    ]:
        reply = read_wire(550, f"No such user here\n{why}\n{last}")
        assert len(reply.text.encode()) <= 512
        assert read_reply(Stage.RCPT, reply).meaning is meaning, last


def test_a_latin_1_text_is_read() -> None:
    said = "Destinataire non trouv\udce9".encode("utf-8", "surrogateescape").decode("ascii", "surrogateescape")
    assert read_reply(Stage.RCPT, read_wire(550, said)).meaning is Meaning.REJECT
