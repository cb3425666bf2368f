"""What was the farm asked, when, and what did it say? The oracle of the tests about limits and repeats."""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

import orjson

_FLUSH_S = 0.25
_BUFFER_BYTES = 256 * 1024


@dataclass(slots=True, kw_only=True)
class DnsQuery:
    """One question to one resolver; times in seconds, `read_at` and `at` (its answer is made) are monotonic."""

    read_at: float
    at: float
    wall: float
    resolver: int
    transport: str
    name: str
    rtype: str
    answer: str
    peer: str = ""  #: the address that asked


@dataclass(slots=True, kw_only=True)
class Command:
    """One command and its reply; the reply is empty where none was sent.

    `read_at` and `at` are monotonic seconds: when the command was read (the connection taken, for the greeting), and
    when it was answered.
    """

    read_at: float
    at: float
    text: str
    reply: str


@dataclass(slots=True, kw_only=True)
class Session:
    """One SMTP connection; `opened` and `closed` are monotonic seconds, `wall` is the time of day of the opening.

    `domain` is that of the first recipient; before the first, that of the MX host unless many share its address.
    """

    id: int
    address: str
    host: str
    domain: str | None
    opened: float
    wall: float
    peer: str = ""  #: the address that connected
    closed: float | None = None
    ended_by: str = ""
    commands: list[Command] = field(default_factory=list)

    @property
    def recipients(self) -> list[tuple[str, str]]:
        """Return each recipient that was asked, with the reply."""
        return [
            (command.text[8:].strip().partition(">")[0].lstrip("<"), command.reply)
            for command in self.commands
            if command.text[:8].upper() == "RCPT TO:"
        ]


class FarmLog:
    """Keep all questions in memory, and as JSON lines in a file when a path is given."""

    def __init__(self, path: Path | None = None) -> None:
        self._file: BinaryIO | None = path.open("wb") if path is not None else None
        self._buffer = bytearray()
        self._flush_timer: asyncio.TimerHandle | None = None
        self._queries: list[DnsQuery] = []
        self._sessions: list[Session] = []

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the log that a farm wrote to `path`; flush it first if the farm still runs."""
        log = cls()
        for line in path.read_bytes().splitlines():
            event = orjson.loads(line)
            match event.pop("event"):
                case "dns":
                    log._queries.append(DnsQuery(**event))
                case "open":
                    log._sessions.append(Session(**event))
                case "command":
                    session = log._sessions[event.pop("session")]
                    session.domain = event.pop("domain")
                    session.commands.append(Command(**event))
                case "close":
                    session = log._sessions[event["session"]]
                    session.closed, session.ended_by = event["at"], event["ended_by"]
        return log

    # Writing: the servers' side.

    def query(
        self, *, read_at: float, resolver: int, transport: str, name: str, rtype: str, answer: str, peer: str
    ) -> None:
        """Record a DNS question and the kind of its answer."""
        query = DnsQuery(
            read_at=read_at,
            at=time.monotonic(),
            wall=time.time(),
            resolver=resolver,
            transport=transport,
            name=name,
            rtype=rtype,
            answer=answer,
            peer=peer,
        )
        self._queries.append(query)
        self._write("dns", query)

    def open(self, *, address: str, host: str, domain: str | None, peer: str) -> Session:
        """Record a new SMTP connection."""
        session = Session(
            id=len(self._sessions),
            address=address,
            host=host,
            domain=domain,
            opened=time.monotonic(),
            wall=time.time(),
            peer=peer,
        )
        self._sessions.append(session)
        self._write(
            "open",
            {name: getattr(session, name) for name in ("id", "address", "host", "domain", "opened", "wall", "peer")},
        )
        return session

    def command(self, session: Session, text: str, reply: str, read_at: float) -> None:
        """Record a command with its reply; the greeting is a reply to no command."""
        command = Command(read_at=read_at, at=time.monotonic(), text=text, reply=reply)
        session.commands.append(command)
        self._write(
            "command",
            {"session": session.id, "domain": session.domain, "read_at": read_at, "at": command.at, "text": text,
             "reply": reply},
        )  # fmt: skip

    def close_session(self, session: Session, ended_by: str) -> None:
        """Record the end of a connection and who ended it: `client`, `server`, `fault`."""
        session.closed, session.ended_by = time.monotonic(), ended_by
        self._write("close", {"session": session.id, "at": session.closed, "ended_by": ended_by})

    def flush(self) -> None:
        """Write everything to the file."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._file is not None and self._buffer:
            self._file.write(self._buffer)
            self._file.flush()
            self._buffer.clear()

    def close(self) -> None:
        """Flush and close the file."""
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, event: str, fields: object) -> None:
        if self._file is None:
            return
        # Dictionaries get the kind of event in front, dataclasses too: one object a line.
        self._buffer += b'{"event":"%s",' % event.encode() + orjson.dumps(fields)[1:] + b"\n"
        if len(self._buffer) > _BUFFER_BYTES:
            self.flush()
        elif self._flush_timer is None:
            self._flush_timer = asyncio.get_running_loop().call_later(_FLUSH_S, self.flush)

    # Reading: the tests' side.

    def queries(self, name: str | None = None, rtype: str | None = None) -> list[DnsQuery]:
        """Return the DNS questions in order, of one name or one type if given."""
        return [query for query in self._queries if name in (None, query.name) and rtype in (None, query.rtype)]

    def sessions(self, domain: str | None = None) -> list[Session]:
        """Return the SMTP connections in the order of their opening, of one company if given."""
        return [session for session in self._sessions if domain in (None, session.domain)]

    def company_sessions(self) -> list[Session]:
        """Return the connections for companies: those of controls take no unit of the day.

        A control is known by its host: its domain may be unknown until its recipient is (see `Session`).
        """
        return [session for session in self._sessions if not _is_controls(session.host)]

    def answered_twice(self) -> dict[str, list[str]]:
        """Return the recipients that got a final reply (2xx or 5xx) more than once, with all those replies."""
        replies: dict[str, list[str]] = defaultdict(list)
        for session in self._sessions:
            for recipient, reply in session.recipients:
                if reply[:1] in ("2", "5"):
                    replies[recipient].append(reply)
        return {recipient: all_replies for recipient, all_replies in replies.items() if len(all_replies) > 1}

    def too_close(self, gap_s: float = 2.0, slack_s: float = 0.05) -> list[tuple[Session, Session]]:
        """Return the pairs of sessions of one domain that overlap, or where the second came within `gap_s`.

        `slack_s`: the farm sees a close later than the client did it.
        """
        per_domain: dict[str, list[Session]] = defaultdict(list)
        for session in self._sessions:
            if session.domain is not None:
                per_domain[session.domain].append(session)
        return [
            (before, after)
            for sessions in per_domain.values()
            for before, after in itertools.pairwise(sessions)
            if before.closed is None or after.opened - before.closed < gap_s - slack_s
        ]

    def most_queries_in(self, window_s: float = 1.0, rtype: str | None = "MX") -> int:
        """Return the highest number of DNS questions in any window of that length."""
        return _most_in_window((query.at for query in self.queries(rtype=rtype)), window_s)

    def most_sessions_at_once(self, host: str | None = None) -> int:
        """Return the highest number of connections that were open at one time, at one MX host if given."""
        changes: list[tuple[float, int]] = []
        for session in self._sessions:
            if host in (None, session.host):
                changes.append((session.opened, 1))
                if session.closed is not None:
                    changes.append((session.closed, -1))
        most = now = 0
        for _, change in sorted(changes):  # an end sorts before a beginning at the same moment
            now += change
            most = max(most, now)
        return most


def _is_controls(host: str) -> bool:
    return host.partition(".")[2].startswith("control")


def _most_in_window(times: Iterable[float], window_s: float) -> int:
    ordered = sorted(times)
    most = first = 0
    for last, moment in enumerate(ordered):
        while moment - ordered[first] >= window_s:
            first += 1
        most = max(most, last - first + 1)
    return most
