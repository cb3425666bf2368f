"""What does one mail server say in one session, from its banner to RCPT TO?

One connection to one checked address, one command at a time, never DATA. Every reply is attacker text: it is bounded,
cleaned, and judged only if it is the only thing that came after its command.
"""

from __future__ import annotations

import asyncio
import errno
import re
import select
import ssl
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from aiosmtplib.errors import SMTPResponseException, SMTPServerDisconnected
from aiosmtplib.protocol import SMTPProtocol

from ct_stream.gate.questions import Attempt, Trouble
from ct_stream.gate.replies import Reply, Stage
from ct_stream.probes.peer import STRIPPED, Identity, Impostor, Mismatch, Peer
from ct_stream.probes.stopwatch import OutOfTime, Stopwatch
from ct_stream.problems import RUN_OUT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiosmtplib.response import SMTPResponse

    from ct_stream.gate.patterns import Address

#: RCPT TO in one session: 8 patterns and one random address. Exim's shipped configuration denies all after 10.
MAX_RCPTS = 9
_MAX_TEXT_BYTES = 512
_MAX_TAIL_BYTES = 180  #: of them from the end: servers that explain at length put their decision last
_CUT = "\n[...]\n"
_CLOSE_S = 0.2  #: for the event loop to let go of a socket that was aborted
_TURNS = 3  #: of the event loop, in which it reads what a socket holds; a socket that it has given up keeps its bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SmtpSettings:
    """How we introduce ourselves, and how long we listen."""

    helo: str  #: the name in our reverse DNS
    mail_from: str  #: the envelope sender; "" is the null sender
    port: int = 25
    connect_s: float = 5.0
    command_s: float = 15.0  #: for the whole reply to one command, and for the banner
    quit_s: float = 0.5  #: for the reply to QUIT, which nothing depends on


class SmtpSession:
    """One session with `host` at `ip`.

    Its attempts say how far it came. Trouble of this process (descriptors, ports, memory) raises OSError, because it
    says nothing about the company.
    """

    def __init__(self, host: str, ip: str, settings: SmtpSettings, stopwatch: Stopwatch) -> None:
        self.host = host
        self.ip = ip
        self.greeted = False  #: the banner was 220
        self.tls_failed = False  #: STARTTLS was offered and broke the session
        self.greeting = ""  #: the first line of the last reply to EHLO or HELO
        self.identity: Identity | None = None  #: who the other end proved to be, where that was asked
        self.impostor: Impostor | None = None  #: why it is not the one that it must be
        self.rcpts = 0
        self._settings = settings
        self._stopwatch = stopwatch
        self._wire: _Wire | None = None
        self._over = False  #: nothing may be asked any more
        self._offers_starttls = False

    async def greet(self) -> Attempt | None:
        """Connect and return None if the banner is 220; otherwise return where and why this failed."""
        return await self._connect() or await self._banner()

    async def start(self, *, tls: bool = True, peer: Peer | None = None) -> Attempt | None:
        """Come as far as an accepted MAIL FROM and return None; otherwise return where and why it ended before.

        With `peer`, MAIL FROM is said to nobody else: without TLS, or to another, the session ends.
        """
        stopped = await self.greet() or await self._helo()
        if stopped is None and peer is not None and not self._offers_starttls:
            stopped = self._somebody_else(STRIPPED)
        elif stopped is None and tls and self._offers_starttls:
            stopped = await self._starttls(peer)
        if stopped is None:
            stopped = await self._expect_2xx(Stage.MAIL, "MAIL", f"FROM:<{self._settings.mail_from}>")
        if stopped is None and not await self.in_step():
            stopped = self._out_of_step(Stage.MAIL)
        return stopped

    async def rcpt(self, address: Address) -> Attempt:
        """Ask RCPT TO for `address` and return the answer, whatever it is."""
        self.rcpts += 1
        return await self._command(Stage.RCPT, "RCPT", f"TO:<{address}>")

    async def in_step(self) -> bool:
        """Return whether the session is alive and the server has sent nothing but replies to our commands."""
        for _ in range(_TURNS):  # what has already arrived is read before we decide
            if self._wire is None or not self._wire.has_unread():
                break
            await asyncio.sleep(0)
        return not self._over and self._wire is not None and self._wire.is_connected and not self._wire.surplus

    async def end(self) -> None:
        """Say QUIT if the server still listens, and close; waits at most `quit_s`."""
        wire, self._wire = self._wire, None
        if wire is None:
            return
        try:
            if not self._over and wire.is_connected and not wire.surplus:
                async with asyncio.timeout(self._settings.quit_s):
                    await wire.execute_command(b"QUIT")
        except (TimeoutError, SMTPServerDisconnected, SMTPResponseException):
            pass  # the verdict does not depend on it
        finally:
            await wire.abort()

    async def _connect(self) -> Attempt | None:
        loop = asyncio.get_running_loop()
        try:
            async with self._stopwatch.waiting(self._settings.connect_s):
                _, self._wire = await loop.create_connection(_Wire, self.ip, self._settings.port)
        except OutOfTime:
            return self._trouble(Stage.CONNECT, Trouble.DEADLINE)
        except OSError as error:
            trouble = _connect_trouble(error, self.ip)
            detail = f"no connection within {self._settings.connect_s:g} s" if trouble is Trouble.TIMEOUT else ""
            return self._trouble(Stage.CONNECT, trouble, detail)
        return None

    async def _banner(self) -> Attempt | None:
        attempt = await self._command(Stage.BANNER)
        self.greeted = attempt.reply is not None and attempt.reply.code == 220
        return None if self.greeted else attempt

    async def _helo(self) -> Attempt | None:
        attempt = await self._command_in_step(Stage.HELO, "EHLO", self._settings.helo)
        if attempt.reply is not None and attempt.reply.code >= 500:
            return await self._expect_2xx(Stage.HELO, "HELO", self._settings.helo)  # RFC 5321 section 3.2
        return None if _is_2xx(attempt) else attempt

    async def _starttls(self, peer: Peer | None) -> Attempt | None:
        """Encrypt. Without `peer` it may be anybody, as for mail servers (RFC 7435), and a refusal changes nothing.

        With `peer` the host's name is sent along (SNI): without it Google shows a certificate that nobody signed.
        """
        if not await self.in_step():
            return self._out_of_step(Stage.STARTTLS)
        assert self._wire is not None
        try:
            async with self._stopwatch.waiting(self._settings.command_s):
                if peer is None:
                    await self._wire.start_tls(_unverified())
                else:
                    await self._wire.start_tls(peer.context, server_hostname=self.host)
        except OutOfTime:
            return self._trouble(Stage.STARTTLS, Trouble.DEADLINE)
        except SMTPResponseException as refusal:
            attempt = self._read(Stage.STARTTLS, refusal.code, refusal.message)
            if peer is not None and attempt.reply is not None:
                said = f"{attempt.reply.code} {attempt.reply.text}"
                reason = f"STARTTLS is stripped on the way: it is offered, and refused with {said!r}"
                return self._somebody_else(Impostor(mismatch=Mismatch.NO_TLS, reason=reason))
            return attempt if self._over else None
        except ssl.SSLCertVerificationError as error:  # only with `peer`
            assert peer is not None
            return self._somebody_else(peer.why_not(error, self.host))
        except (SMTPServerDisconnected, OSError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            return self._no_tls(clean_text(str(error)) or "timeout")
        if peer is not None:
            seen = peer.identify(self._wire.certificate, self.host)
            if isinstance(seen, Impostor):
                return self._somebody_else(seen)
            self.identity = seen
        stopped = await self._helo()
        if stopped is not None and stopped.reply is None and stopped.trouble is not Trouble.DEADLINE:
            return self._no_tls(f"{stopped.trouble} after the handshake")
        return stopped

    def _somebody_else(self, impostor: Impostor) -> Attempt:
        self.impostor = impostor
        return self._trouble(Stage.STARTTLS, Trouble.TLS, impostor.reason)

    def _no_tls(self, detail: str) -> Attempt:
        self.tls_failed = True
        return self._trouble(Stage.STARTTLS, Trouble.TLS, detail)

    async def _expect_2xx(self, stage: Stage, *words: str) -> Attempt | None:
        attempt = await self._command_in_step(stage, *words)
        return None if _is_2xx(attempt) else attempt

    async def _command_in_step(self, stage: Stage, *words: str) -> Attempt:
        if not await self.in_step():
            return self._out_of_step(stage)
        return await self._command(stage, *words)

    async def _command(self, stage: Stage, *words: str) -> Attempt:
        """Send one command, or none for the banner, and return its reply or the trouble that came instead."""
        assert self._wire is not None
        try:
            async with self._stopwatch.waiting(self._settings.command_s):
                if words:
                    response = await self._wire.execute_command(*(word.encode("ascii") for word in words))
                else:
                    response = await self._wire.read_response()
        except OutOfTime:
            return self._trouble(stage, Trouble.DEADLINE)
        except SMTPResponseException as error:
            return self._trouble(stage, Trouble.GARBLED, clean_text(error.message)[:120])
        except SMTPServerDisconnected as error:
            if self._wire.surplus:
                return self._trouble(
                    stage, Trouble.GARBLED, "the server closed the connection in the middle of a reply"
                )
            if isinstance(error.__cause__, TimeoutError):  # ETIMEDOUT: the network gave up before we did
                return self._trouble(stage, Trouble.TIMEOUT)
            return self._trouble(stage, Trouble.CLOSED)
        except TimeoutError:
            what = words[0] if words else "banner"
            return self._trouble(stage, Trouble.TIMEOUT, f"no reply ({what}) within {self._settings.command_s:g} s")
        if stage is Stage.HELO:
            self.greeting, *offers = response.message.split("\n")
            # Some servers write something behind it, which RFC 3207 does not know.
            self._offers_starttls = any(offer.upper().split()[:1] == ["STARTTLS"] for offer in offers)
        return self._read(stage, response.code, response.message)

    def _read(self, stage: Stage, code: int, message: str) -> Attempt:
        if not 200 <= code <= 599:
            return self._trouble(stage, Trouble.GARBLED, clean_text(message)[:120])
        if code == 421:  # RFC 5321 section 3.8: the server closes the channel
            self._over = True
        return Attempt(host=self.host, ip=self.ip, stage=stage, reply=read_wire(code, message))

    def _out_of_step(self, stage: Stage) -> Attempt:
        if self._wire is not None and not self._wire.surplus:
            return self._trouble(stage, Trouble.CLOSED)
        return self._trouble(stage, Trouble.GARBLED, "a reply came before its command")

    def _trouble(self, stage: Stage, trouble: Trouble, detail: str = "") -> Attempt:
        self._over = True
        return Attempt(host=self.host, ip=self.ip, stage=stage, trouble=trouble, detail=detail)


_REPLY_LINE = re.compile(rb"\d{3}(?:[ \t-]|\r*\Z)")


class _Wire(SMTPProtocol):
    """aiosmtplib's reader (8 KiB a line, 32 KiB a reply), made to notice bytes that arrive out of step.

    The original drops bytes that come between commands. It also keeps bytes that follow a reply in the same segment,
    and would read them as the reply to the next command.
    """

    def __init__(self) -> None:
        super().__init__(asyncio.get_running_loop())
        self._out_of_step = False
        self._checked = 0  #: how many bytes of the buffer are whole lines of an unfinished reply
        self._codes: set[bytes] = set()  #: theirs
        self._lost = asyncio.Event()

    @property
    def surplus(self) -> bool:
        """Return whether the server sent something that no command asked for."""
        return self._out_of_step or bool(self._buffer)

    @property
    def certificate(self) -> Mapping[str, Any]:
        """Return the other end's certificate, as the ssl module spells it; empty if nothing verified it."""
        return (self.transport and self.transport.get_extra_info("peercert")) or {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def has_unread(self) -> bool:
        """Return whether the socket of a live connection holds bytes, or an end, that the loop has not read yet.

        The kernel is asked: to give the loop a turn to look would cost each reply a round of all other companies' work.
        """
        return self.is_connected and bool(self._poll.poll(0))

    def data_received(self, data: bytes) -> None:
        if not self._response_pending or self._response_waiter is None or self._response_waiter.done():
            self._out_of_step = True
            self._hang_up()  # otherwise a server could keep talking for ever
            return
        super().data_received(data)

    def _read_response_from_buffer(self) -> SMTPResponse | None:
        """Parse a reply, but only if its lines have the form of RFC 5321 section 4.2 and one class of code.

        The original accepts any byte after any three characters that `int` accepts, so garbage could say "no such
        mailbox". Of lines that contradict each other it takes the last. It also reads the whole buffer again for each
        segment: 5,000 short lines that come one by one cost half a minute of CPU. Here each line is checked once, and
        the original reads once, when the reply has ended.
        """
        while (end := self._buffer.find(b"\n", self._checked)) != -1:
            begin, self._checked = self._checked, end + 1
            if not _REPLY_LINE.match(self._buffer, begin, end):
                line = bytes(self._buffer[begin:end]).decode("utf-8", "surrogateescape")
                raise SMTPResponseException(-1, f"Malformed SMTP response line: {line}")
            self._codes.add(bytes(self._buffer[begin : begin + 3]))
            # A yes has one code. Two refusals of one class still make one reply, so that a block is not missed.
            if len(self._codes) > 1 and (len({code[:1] for code in self._codes}) > 1 or max(self._codes) < b"400"):
                raise SMTPResponseException(-1, "one reply with two codes")
            if self._buffer[begin + 3 : begin + 4] != b"-":
                break
        else:
            return None
        self._codes, self._checked = set(), 0
        return super()._read_response_from_buffer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost.set()

    async def abort(self) -> None:
        """Close at once. Unlike `close`, this waits neither for unsent bytes nor for the end of TLS."""
        self._hang_up()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._lost.wait()
        except TimeoutError:
            pass  # after a failed handshake `connection_lost` is never called

    def _hang_up(self) -> None:
        if self.transport is not None:
            cast("asyncio.Transport", self.transport).abort()


# ---------------------------------------------------------------- what was said

_ENHANCED = re.compile(r"([245])\.\d{1,3}\.\d{1,3}(?![\d.])")  # RFC 3463 section 2
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
#: Controls, bidi and other format characters, separators, unassigned and private-use characters.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Cn", "Co", "Zl", "Zp"})


def read_wire(code: int, message: str) -> Reply:
    """Return one reply as it is kept: the enhanced code separate from the text.

    The enhanced code counts only if its class is the reply code's (RFC 3463 section 2).
    """
    text = clean_text(message)
    match = _ENHANCED.match(text)
    if match is None or match[1] != str(code)[0]:
        return Reply(code=code, text=text)
    # Each line of a multi-line reply repeats the enhanced code (RFC 2034 section 4).
    lines = (line.removeprefix(match[0]).strip() for line in text.split("\n"))
    return Reply(code=code, enhanced=match[0], text="\n".join(line for line in lines if line))


def clean_text(said: str) -> str:
    """Return at most 512 printable bytes of what a server said, without empty lines. A long text loses its middle.

    `said` may hold lone surrogates: aiosmtplib passes on bytes that are not UTF-8 in this form.
    """
    window = _MAX_TEXT_BYTES * 4
    text = said if len(said) <= 2 * window else said[:window] + "\n" + said[-window:]
    if not (text.isascii() and text.replace("\n", "").isprintable()):  # nearly every reply is
        raw = text.encode("utf-8", "surrogateescape")
        text = _ANSI.sub("", raw.decode("utf-8", "backslashreplace")).replace("\t", " ")
        text = "".join(c for c in map(_seen, text) if c)
    lines = text.split("\n")
    kept = "\n".join(stripped for line in lines if (stripped := line.strip())).encode()
    if len(kept) <= _MAX_TEXT_BYTES:
        return kept.decode()
    head = kept[: _MAX_TEXT_BYTES - _MAX_TAIL_BYTES - len(_CUT)].decode("utf-8", "ignore").rstrip()
    return head + _CUT + kept[-_MAX_TAIL_BYTES:].decode("utf-8", "ignore").lstrip()


def _seen(char: str) -> str:
    """Return a character as it is shown: a plain space for any space, "" if it cannot be seen."""
    if char in "\n ":
        return char
    category = unicodedata.category(char)
    return " " if category == "Zs" else "" if category in _UNSEEN else char


# ---------------------------------------------------------------- ways to fail

_CONNECT_TROUBLES = {
    errno.ECONNREFUSED: Trouble.REFUSED,
    errno.ECONNRESET: Trouble.CLOSED,
    errno.ECONNABORTED: Trouble.CLOSED,
    errno.EPIPE: Trouble.CLOSED,
    errno.ETIMEDOUT: Trouble.TIMEOUT,
}


def _connect_trouble(error: OSError, ip: str) -> Trouble:
    """Return what a failed connection means; raises `error` if it is trouble of this process.

    Everything that is not ours means UNREACHABLE: whoever is asked chooses the ICMP message that answers our SYN, and
    the kernel turns each type and code into an error of its own (Linux: icmp_err_convert). A route or packet filter of
    this machine (EINVAL, EPERM) is met by the SMTP control too.
    """
    if isinstance(error, TimeoutError):
        return Trouble.TIMEOUT
    if ":" in ip and error.errno == errno.EADDRNOTAVAIL:
        return Trouble.UNREACHABLE  # this machine has no IPv6; for IPv4 it means that our ports are used up
    if error.errno in RUN_OUT:
        raise error
    return _CONNECT_TROUBLES.get(error.errno or 0, Trouble.UNREACHABLE)


def _is_2xx(attempt: Attempt) -> bool:
    return attempt.reply is not None and 200 <= attempt.reply.code < 300


@cache
def _unverified() -> ssl.SSLContext:
    """Return a context that accepts any certificate and any cipher: the alternative is no encryption at all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context
