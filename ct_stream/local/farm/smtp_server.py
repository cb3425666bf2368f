"""How does a scripted mail server talk? One dialogue per connection, broken in the ways that its scenario says."""

import asyncio
import random
import ssl
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from ct_stream.local.farm.certificate import server_context
from ct_stream.local.farm.faults import Faults, SmtpBlock, Stage
from ct_stream.local.farm.listeners import Endpoint
from ct_stream.local.farm.log import FarmLog, Session
from ct_stream.local.farm.names import Names
from ct_stream.local.farm.noise import noise
from ct_stream.local.farm.scenarios import OK, Scenario, Tls, Wire

_SESSION_S = 600.0  #: whatever a client does, its connection ends then
_LINGER_S = 1.0
_BYTE_DELAY_S = 0.004
_ENDLESS_LINE = "220-" + "x" * 76
_ENDLESS_PAUSE_S = 0.01
_LEAVES = 0.1  #: how often a noisy server hangs up, or resets the connection, in place of a reply
_TOO_MANY_CONNECTIONS = "421 4.7.0 {host} Too many concurrent connections from your address"


class _Ended(Exception):
    """The dialogue is over, for the reason given."""


@dataclass(slots=True, kw_only=True)
class _Dialogue:
    """One connection and what was said on it so far."""

    endpoint: Endpoint
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    session: Session
    peer: str
    recipients_seen: int = 0
    is_encrypted: bool = False
    read_at: float = field(default_factory=time.monotonic)  #: when what is answered next came
    dice: random.Random | None = None  #: of a noisy server
    sober: int = 0  #: how many replies a noisy server gives before the noise

    def __post_init__(self) -> None:
        """Let a noisy host make the same noise each time, so that what it caused can be seen again."""
        if self.scenario.wire is Wire.NOISE:
            which = f" {self.session.id}" if self.endpoint.is_shared else ""
            self.dice = random.Random(f"{self.endpoint.host.name}{which}")
            self.sober = self.dice.randrange(8)

    @property
    def scenario(self) -> Scenario:
        return self.endpoint.host.scenario


class MailServers:
    """All mail servers of the farm."""

    def __init__(
        self, *, names: Names, faults: Faults, log: FarmLog, probe_name: tuple[str, str], reply_delay_s: float
    ) -> None:
        self._names = names
        self._faults = faults
        self._log = log
        self._probe_name = probe_name
        self.reply_delay_s = reply_delay_s
        self.reply_spread = 0.0
        self._open: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._mailboxes: dict[str, frozenset[str]] = {}

    @property
    def open_connections(self) -> int:
        """Return how many connections are open now."""
        return len(self._tasks)

    async def talk(self, endpoint: Endpoint, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open[endpoint.address] += 1
        peername = writer.get_extra_info("peername")
        peer = peername[0] if peername else "gone"
        session = self._log.open(
            address=endpoint.address,
            host=endpoint.host.name,
            domain=None if endpoint.is_shared else endpoint.host.domain,
            peer=peer,
        )
        dialogue = _Dialogue(endpoint=endpoint, reader=reader, writer=writer, session=session, peer=peer)
        ended_by = "client"
        try:
            async with asyncio.timeout(_SESSION_S):
                await self._play(dialogue)
        except _Ended as reason:
            ended_by = str(reason)
        except (ConnectionError, ssl.SSLError, ValueError):
            pass  # the client went away, or sent a line without an end
        except (TimeoutError, asyncio.CancelledError):
            # Cancelled when the farm stops or a fault cuts the line; the task ends either way.
            ended_by = "farm"
        finally:
            self._tasks.discard(task)
            self._open[endpoint.address] -= 1
            self._log.close_session(session, ended_by)
            if ended_by == "server":
                await self._linger(dialogue)
            if ended_by == "farm":
                dialogue.writer.transport.abort()
            else:
                dialogue.writer.close()

    def cut_connections(self) -> None:
        """End all connections with a reset."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """End all connections and wait for their tasks."""
        tasks = list(self._tasks)
        self.cut_connections()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _play(self, dialogue: _Dialogue) -> None:
        await self._greet(dialogue)
        while True:
            line = await dialogue.reader.readline()
            if not line:
                return
            dialogue.read_at = time.monotonic()
            # Latin-1 takes every byte.
            await self._obey(dialogue, line.decode("latin-1").rstrip("\r\n"))

    async def _greet(self, dialogue: _Dialogue) -> None:
        scenario, endpoint = dialogue.scenario, dialogue.endpoint
        refusal = self._faults.refusal(endpoint.host.domain, endpoint.address, dialogue.peer, Stage.BANNER)
        if refusal == "":
            raise _Ended("server")
        banner = refusal or scenario.banner
        if scenario.max_connections is not None and self._open[endpoint.address] > scenario.max_connections:
            banner = _TOO_MANY_CONNECTIONS
        if scenario.endless_banner:
            await self._send_for_ever(dialogue)
        if banner is None:
            await self._until_the_client_leaves(dialogue)
            return
        await self._reply(dialogue, "", banner)
        if not banner.startswith("220"):
            raise _Ended("server")

    async def _obey(self, dialogue: _Dialogue, line: str) -> None:
        scenario = dialogue.scenario
        delay_s = self.reply_delay_s * random.uniform(1 - self.reply_spread, 1 + self.reply_spread)
        delay_s += scenario.command_delay_s
        if delay_s:
            await asyncio.sleep(delay_s)
        match line[:4].upper():
            case "EHLO":
                await self._reply(dialogue, line, self._ehlo(dialogue))
            case "HELO":
                await self._reply(dialogue, line, "250 {host}")
            case "STAR" if scenario.tls is not Tls.NONE and not dialogue.is_encrypted:
                await self._start_tls(dialogue, line)
            case "MAIL" if scenario.tls_required and not dialogue.is_encrypted:
                await self._reply(dialogue, line, "530 5.7.0 Must issue a STARTTLS command first")
            case "MAIL":
                endpoint = dialogue.endpoint
                refusal = self._faults.refusal(endpoint.host.domain, endpoint.address, dialogue.peer, Stage.MAIL)
                await self._reply(dialogue, line, refusal or scenario.mail)
            case "RCPT":
                await self._rcpt(dialogue, line)
            case "RSET" | "NOOP":
                await self._reply(dialogue, line, "250 2.0.0 Ok")
            case "QUIT" if scenario.quit is None:
                self._log.command(dialogue.session, line, "", dialogue.read_at)
                await self._until_the_client_leaves(dialogue)
            case "QUIT":
                await self._reply(dialogue, line, scenario.quit or "")
                raise _Ended("client")
            case "DATA":
                # No probe may get this far; the log shows who did.
                await self._reply(dialogue, line, "554 5.5.1 No valid recipients")
            case _:
                await self._reply(dialogue, line, "502 5.5.2 Command not recognized")

    def _ehlo(self, dialogue: _Dialogue) -> str:
        text = dialogue.scenario.ehlo
        if dialogue.scenario.tls is not Tls.NONE and not dialogue.is_encrypted:
            return text.replace("250-PIPELINING", "250-PIPELINING\n250-STARTTLS")
        return text

    async def _start_tls(self, dialogue: _Dialogue, line: str) -> None:
        if dialogue.scenario.tls is Tls.REFUSED:
            await self._reply(dialogue, line, "454 4.7.0 TLS not available due to local problem")
            return
        await self._reply(dialogue, line, "220 2.0.0 Ready to start TLS")
        if dialogue.scenario.tls is Tls.BROKEN:
            dialogue.writer.write(b"\0garbage\xff" * 32)
            raise _Ended("server")
        await dialogue.writer.start_tls(server_context(dialogue.scenario.tls))
        dialogue.is_encrypted = True

    async def _rcpt(self, dialogue: _Dialogue, line: str) -> None:
        recipient = line[8:].strip().partition(">")[0].lstrip("<")
        local, _, domain = recipient.rpartition("@")
        domain = domain.lower()
        company = self._names.company(domain)
        if dialogue.session.domain is None:
            dialogue.session.domain = domain
        dialogue.recipients_seen += 1
        endpoint = dialogue.endpoint
        refusal = self._faults.refusal(endpoint.host.domain, endpoint.address, dialogue.peer, Stage.RCPT)
        if refusal is not None:
            text = refusal
        elif dialogue.endpoint.host.mx.accepts_anything:
            text = OK
        elif company is None:
            text = "554 5.7.1 <{rcpt}>: Relay access denied"
        else:
            text = self._verdict(company.scenario, local.lower(), dialogue.recipients_seen)
        await self._reply(dialogue, line, text, recipient)
        is_refusal = not text.startswith("2")
        if company is not None and company.scenario.closes_after_refusal and is_refusal:
            raise _Ended("server")

    def _verdict(self, scenario: Scenario, local: str, nth: int) -> str:
        if scenario.turns_after is not None and nth > scenario.turns_after:
            return scenario.turns_to
        known = self._mailboxes.get(scenario.name)
        if known is None:
            known = self._mailboxes[scenario.name] = frozenset(self._rendered(scenario.known))
        return scenario.accepted if local in known else scenario.unknown

    def _rendered(self, templates: Iterable[str]) -> Iterable[str]:
        first, last = self._probe_name
        return (template.format(first=first, last=last, f=first[0], l=last[0]) for template in templates)

    async def _reply(self, dialogue: _Dialogue, command: str, text: str, recipient: str = "") -> None:
        if self._faults.smtp_block is SmtpBlock.TIMEOUT:
            await self._until_the_client_leaves(dialogue)
        text = text.replace("{host}", dialogue.endpoint.host.name).replace("{peer}", dialogue.peer)
        text = text.replace("{rcpt}", recipient)
        kept = text if len(text) < 2048 else text[:2048] + "..."
        self._log.command(dialogue.session, command, kept, dialogue.read_at)
        scenario, writer = dialogue.scenario, dialogue.writer
        line_end = "\n" if scenario.wire is Wire.LF else "\r\n"
        data = (text.replace("\n", line_end) + line_end).encode("latin-1", "replace")
        if dialogue.dice is not None:
            dialogue.sober -= 1
            if dialogue.sober < 0:
                await self._make_noise(dialogue, dialogue.dice)
                return
        if scenario.wire is Wire.BYTEWISE:
            for byte in data:
                writer.write(bytes([byte]))
                await asyncio.sleep(_BYTE_DELAY_S)
        else:
            writer.write(data)
        if text.startswith("421"):
            raise _Ended("server")

    async def _make_noise(self, dialogue: _Dialogue, dice: random.Random) -> None:
        if dice.random() < _LEAVES:
            raise _Ended(dice.choice(("server", "farm")))
        for piece in noise(dice):
            dialogue.writer.write(piece)
            await asyncio.sleep(0)  # a segment of its own

    async def _send_for_ever(self, dialogue: _Dialogue) -> None:
        line = (_ENDLESS_LINE + "\r\n").encode() * 16
        while True:
            dialogue.writer.write(line)
            await dialogue.writer.drain()
            await asyncio.sleep(_ENDLESS_PAUSE_S)

    async def _linger(self, dialogue: _Dialogue) -> None:
        """Take what the client still sends: closing on unread bytes is a reset, which can eat our last reply."""
        with suppress(ConnectionError, TimeoutError):
            if dialogue.writer.can_write_eof():
                dialogue.writer.write_eof()
            async with asyncio.timeout(_LINGER_S):
                while await dialogue.reader.read(4096):
                    pass

    async def _until_the_client_leaves(self, dialogue: _Dialogue) -> None:
        while await dialogue.reader.read(4096):
            pass
        raise _Ended("client")
