"""Keep millions of records on disk and read them back sorted by outreach_id, to compare them in little memory."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ct_stream.ops.verify.judge import Event, Published

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

Row = TypeVar("Row")

END = b"\xff" * 17  #: greater than any outreach_id
_FETCH = 2000
_AT_ONCE = 5000

_TABLES = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -32000; PRAGMA temp_store = FILE;
CREATE TABLE events (id BLOB, part INTEGER, off INTEGER, at INTEGER);
CREATE TABLE records (id BLOB, topic INTEGER, part INTEGER, off INTEGER, digest BLOB);
CREATE TABLE unreadable (part INTEGER, off INTEGER, at INTEGER);
CREATE TABLE rejected (part INTEGER, off INTEGER, source_part INTEGER, source_off INTEGER);
CREATE TABLE suspects (id BLOB PRIMARY KEY) WITHOUT ROWID;
"""


def digest_of(key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]) -> bytes:
    """Return 32 bytes that identify a record: the query `verify_companies` computes the same for a ledger row."""
    text = json.dumps([[name, _header(data)] for name, data in headers], ensure_ascii=False)
    folded = (key or b"") + b"\0" + hashlib.sha256(value or b"").digest() + text.encode("utf-8", "surrogatepass")
    return hashlib.sha256(folded).digest()


def _header(data: bytes | None) -> object:
    """Return a header's value as the ledger keeps it (store/ledger.py)."""
    if data is None:
        return None
    if data.isascii() and (text := data.decode()).isprintable():
        return text
    return {"base64": base64.b64encode(data).decode()}


class RejectedRecord(NamedTuple):
    """A record of ct.rejected, and where it came from."""

    partition: int
    offset: int
    source_partition: int
    source_offset: int


class Spill:
    """A database of its own in a folder of its own, which is removed at the end, whatever the end is."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ct-stream-verify-"))
        self._rows: dict[str, list[tuple[Any, ...]]] = {}
        try:
            self._db = sqlite3.connect(self._folder / "spill.db", isolation_level=None)
            self._db.executescript(_TABLES)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def __enter__(self) -> Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # ---------------------------------------------------------------- writing

    def add(self, table: str, *row: Any) -> None:
        """Keep a row; written many at once."""
        rows = self._rows.setdefault(table, [])
        rows.append(row)
        if len(rows) >= _AT_ONCE:
            self._write(table)

    def flush(self) -> None:
        """Write what is kept back."""
        for table in self._rows:
            self._write(table)

    def _write(self, table: str) -> None:
        rows = self._rows[table]
        if rows:
            self._db.execute("BEGIN")
            self._db.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)
            self._db.execute("COMMIT")
            rows.clear()

    # ---------------------------------------------------------------- reading

    def events(self, *, of_suspects: bool) -> Groups[Event]:
        """Return the events of each company, by outreach_id."""
        return Groups(self._sorted("id, part, off, at", "events", of_suspects), lambda row: Event(*row[1:]))

    def records(self, *, of_suspects: bool) -> Groups[Published]:
        """Return the published records of each company, by outreach_id."""
        return Groups(
            self._sorted("id, topic, part, off, digest", "records", of_suspects), lambda row: Published(*row[1:])
        )

    def _sorted(self, columns: str, table: str, of_suspects: bool) -> Iterator[Sequence[Any]]:
        where = " WHERE id IN (SELECT id FROM suspects)" if of_suspects else ""
        return self._each(f"SELECT {columns} FROM {table}{where} ORDER BY id, part, off")

    def suspects(self) -> Iterator[list[bytes]]:
        """Yield the ids that are to be judged again, in order, some hundred at a time."""
        rows = self._each("SELECT id FROM suspects ORDER BY id")
        some: list[bytes] = []
        for (outreach_id,) in rows:
            some.append(outreach_id)
            if len(some) == _FETCH:
                yield some
                some = []
        if some:
            yield some

    def count(self, table: str) -> int:
        """Return how many rows were kept."""
        return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def rejected_without_source(self) -> Iterator[RejectedRecord]:
        """Yield the rejected records whose source was not read."""
        self._db.execute("CREATE INDEX IF NOT EXISTS unreadable_place ON unreadable (part, off)")
        missing = "SELECT r.part, r.off, r.source_part, r.source_off FROM rejected AS r WHERE NOT EXISTS (SELECT 1 "
        in_unreadable = "FROM unreadable AS u WHERE u.part = r.source_part AND u.off = r.source_off)"
        if self._db.execute(f"{missing}{in_unreadable} LIMIT 1").fetchone() is None:
            return
        # Another version of the gate may have rejected what this one reads.
        self._db.execute("CREATE INDEX IF NOT EXISTS events_place ON events (part, off)")
        in_events = "AND NOT EXISTS (SELECT 1 FROM events AS e WHERE e.part = r.source_part AND e.off = r.source_off)"
        for row in self._each(f"{missing}{in_unreadable} {in_events} ORDER BY r.part, r.off"):
            yield RejectedRecord(*row)

    def unreadable_not_rejected(self) -> Iterator[Event]:
        """Yield the unreadable records of spine.created that are not on ct.rejected."""
        self._db.execute("CREATE INDEX IF NOT EXISTS rejected_source ON rejected (source_part, source_off)")
        for row in self._each(
            "SELECT u.part, u.off, u.at FROM unreadable AS u WHERE NOT EXISTS ("
            "SELECT 1 FROM rejected AS r WHERE r.source_part = u.part AND r.source_off = u.off) ORDER BY u.part, u.off"
        ):
            yield Event(*row)

    def _each(self, statement: str) -> Iterator[Sequence[Any]]:
        cursor = self._db.execute(statement)
        while rows := cursor.fetchmany(_FETCH):
            yield from rows


class Groups(Generic[Row]):
    """Sorted rows, taken one outreach_id at a time."""

    def __init__(self, rows: Iterator[Sequence[Any]], make: Callable[[Sequence[Any]], Row]) -> None:
        self._rows = rows
        self._make = make
        self._next = next(rows, None)

    @property
    def key(self) -> bytes:
        """Return the outreach_id that comes next, or END."""
        return END if self._next is None else self._next[0]

    def take(self, key: bytes) -> list[Row]:
        """Return the rows of `key`, where it is the next one."""
        taken = []
        while self._next is not None and self._next[0] == key:
            taken.append(self._make(self._next))
            self._next = next(self._rows, None)
        return taken
