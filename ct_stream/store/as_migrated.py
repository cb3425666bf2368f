"""Is the database still as `ct-stream migrate` made it: its triggers, its functions, and who may write?

Compared with this version's files. Triggers stop accidents and wrong roles, but not an administrator: one who switches
a trigger off for an hour of repairs and forgets it leaves outcomes that anybody may change. `doctor` and `verify` say
so. Who means harm can hide it: what was changed and put back is not seen, nor who is a member of which role.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ct_stream.store.queries import query
from ct_stream.store.sql_files import OF_READER, sql_files

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from typing import Any, TypeAlias

    import asyncpg

    from ct_stream.store.sql_files import SqlFiles

    #: Runs a named query as the gate, as a person or as who migrates.
    Fetch: TypeAlias = Callable[..., Awaitable[Sequence[asyncpg.Record]]]

_FLAGS = re.MULTILINE | re.DOTALL
_FUNCTION = re.compile(r"^CREATE (?:OR REPLACE )?FUNCTION outreach\.(\w+)\((.*?)AS\s+\$\$(.*?)\$\$", _FLAGS)
_SETTING = re.compile(r"\bSET (\w+) = (.+?)(?=\s+SET |\s*$)")
_TRIGGER = re.compile(
    r"^CREATE (?:OR REPLACE |CONSTRAINT )?TRIGGER (\w+) ([^;]*?)\sON outreach\.(\w+)([^;]*?)"
    r"EXECUTE FUNCTION outreach\.(\w+)\((?:'(\w+)')?\)",
    _FLAGS,
)
_ALWAYS = re.compile(r"^ALTER TABLE outreach\.(\w+) ENABLE ALWAYS TRIGGER (\w+);", _FLAGS)
_GRANT = re.compile(r"^GRANT ([^;]+?) ON ([^;]+?) TO ([^;]+?);", _FLAGS)
_CALLERS = re.compile(r"of_(\w+) CONSTANT name\[\] := ARRAY\[(.*?)\]", _FLAGS)
_ROLE_OF = {"gate": "ct_gate", "people": "ct_ops", "everybody": "PUBLIC", "owner": None}
_SECRET = ("ct_tier2_attempts", "SELECT")  #: of its column `token`
_WRITES = frozenset(
    {"INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRIGGER", "REFERENCES"}
)  #: who may read is the users' own affair
_NOT_CT_OWNERS = frozenset({"ct_migrations", "ct_functions"})  #: who migrates owns them
_OF_USERS = ("company_target", "company_target_errors")
#: The bits of pg_trigger.tgtype (catalog/pg_trigger.h).
_BITS = {"ROW": 1, "BEFORE": 2, "INSERT": 4, "DELETE": 8, "UPDATE": 16, "TRUNCATE": 32}
_MIGRATE = "run `ct-stream migrate`, which puts it back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Altered:
    """One thing that is not as `migrate` made it."""

    what: str
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What differs. Not `is_whole`: another version has migrated last, so only what is switched off is told."""

    altered: list[Altered]
    is_whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trigger:
    """A trigger as triggers.sql makes it; `enabled` as in pg_trigger: O for origin, A for always."""

    table: str
    name: str
    function: str
    argument: str
    enabled: str
    kind: int  #: pg_trigger.tgtype
    has_condition: bool


def fetching(connection: asyncpg.Connection[asyncpg.Record]) -> Fetch:
    """Return what runs a named query on this connection."""

    async def fetch(name: str, *args: Any) -> list[asyncpg.Record]:
        return list(await connection.fetch(query(name), *args))

    return fetch


async def compare(fetch: Fetch) -> Comparison:
    """Compare the database with this version's files."""
    sql = sql_files()
    if [row["checksum"] for row in await fetch("functions_version")] != [sql.functions_checksum]:
        wanted = {(trigger.table, trigger.name) for trigger in _triggers(sql)}
        rows = [row for row in await _triggers_now(sql, fetch) if (row["its_table"], row["name"]) in wanted]
        return Comparison(altered=[_off(row) for row in rows if row["enabled"] == "D"], is_whole=False)
    altered = [
        *await triggers_altered(sql, fetch),
        *_functions_altered(sql, await fetch("functions_now", list(sql.made_functions), list(OF_READER))),
        *_functions_beside(await fetch("functions_beside", list(sql.made_functions))),
        *_owners_altered(await fetch("owners_now", sorted(set(sql.made) - _NOT_CT_OWNERS))),
        *_widened(sql, [*await fetch("rights_now", list(sql.made)), *await _beyond_columns(fetch)]),
        *_keys(await fetch("keys_now", list(sql.made), ["outreach", *_OF_USERS])),
    ]
    return Comparison(altered=altered, is_whole=True)


async def triggers_altered(sql: SqlFiles, fetch: Fetch) -> list[Altered]:
    """Return which triggers are not as triggers.sql makes them, and which of our tables have others."""
    wanted = list(_triggers(sql))
    return [
        *_compared(wanted, await _triggers_now(sql, fetch), set(sql.made)),
        *_in_partitions(wanted, await fetch("partition_triggers_now", sorted({trigger.table for trigger in wanted}))),
    ]


async def _triggers_now(sql: SqlFiles, fetch: Fetch) -> Sequence[Any]:
    return await fetch("triggers_now", sorted({trigger.table for trigger in _triggers(sql)} | set(sql.made)))


def _triggers(sql: SqlFiles) -> Iterator[_Trigger]:
    always = {(table, name) for table, name in _ALWAYS.findall(sql.triggers)}
    for name, when, table, how, function, argument in _TRIGGER.findall(sql.triggers):
        words = set(re.findall(r"[A-Z]+", f"{when} {how}"))
        yield _Trigger(
            table=table,
            name=name,
            function=f"outreach.{function}",
            argument=argument,
            enabled="A" if (table, name) in always else "O",
            kind=sum(bit for word, bit in _BITS.items() if word in words),
            has_condition="WHEN" in words,
        )


def _off(row: Any) -> Altered:
    return Altered(what=f"the trigger {row['name']} of outreach.{row['its_table']} is disabled", action=_MIGRATE)


def _compared(wanted: Sequence[_Trigger], now: Sequence[Any], ours: set[str]) -> Iterator[Altered]:
    found = {(row["its_table"], row["name"]): row for row in now}
    for trigger in wanted:
        said = f"the trigger {trigger.name} of outreach.{trigger.table}"
        row = found.pop((trigger.table, trigger.name), None)
        if row is None:
            yield Altered(what=f"{said} is gone", action=_MIGRATE)
        elif row["function"] != trigger.function:
            yield Altered(what=f"{said} calls another function, {row['function']}", action=_MIGRATE)
        elif row["argument"] != trigger.argument:
            yield Altered(what=f"{said} calls its function with another argument", action=_MIGRATE)
        elif (row["kind"], row["has_condition"]) != (trigger.kind, trigger.has_condition) or row["columns"]:
            yield Altered(what=f"{said} fires at other events, or under a condition", action=_MIGRATE)
        elif row["enabled"] == "D":
            yield _off(row)
        elif row["enabled"] not in (trigger.enabled, "A"):
            yield Altered(what=f"{said} does not fire always", action=_MIGRATE)
    for (table, name), row in found.items():
        if table in ours:
            kind = "rule" if row["is_rule"] else "trigger"
            yield Altered(
                what=f"outreach.{table} has a {kind} that is not the gate's, {name}",
                action=f"find out whose it is and what it does: DROP {kind.upper()} {name} ON outreach.{table}",
            )


def _in_partitions(wanted: Sequence[_Trigger], now: Sequence[Any]) -> Iterator[Altered]:
    ours = {(trigger.table, trigger.name) for trigger in wanted}
    for row in now:
        if (row["its_table"], row["name"]) in ours:
            where = f"the partition {row['partition']} of outreach.{row['its_table']}"
            hows = {"": "is missing", "D": "is disabled"}
            how = hows.get(row["enabled"], "does not fire as it does for the whole table")
            yield Altered(what=f"the trigger {row['name']} of {where} {how}", action=_MIGRATE)


def _functions_altered(sql: SqlFiles, now: Sequence[Any]) -> Iterator[Altered]:
    found = defaultdict(list)
    for row in now:
        found[row["name"]].append(row)
    callers = {
        name.strip().strip("'"): _ROLE_OF[who]
        for who, names in _CALLERS.findall(sql.grants)
        for name in names.split(",")
    }
    too_many: defaultdict[str, list[str]] = defaultdict(list)
    for name, head, body in _FUNCTION.findall("\n".join(sql.functions.values())):
        said = f"the function outreach.{name}"
        rows = found[name]
        settings = [f"{setting}={value.strip()}" for setting, value in _SETTING.findall(head)]
        right = [row for row in rows if row["body"] == body and row["is_definer"] == ("SECURITY DEFINER" in head)]
        if not rows:
            yield Altered(what=f"{said} is gone, or not ct_owner's", action=_MIGRATE)
        elif not right:
            yield Altered(what=f"{said} was replaced", action=_MIGRATE)
        elif len(rows) > 1:
            signatures = ", ".join(row["signature"] for row in rows if row not in right[:1])
            yield Altered(
                what=f"{said} is there with other arguments too: {signatures}",
                action=f"find out who made it: DROP FUNCTION {signatures}",
            )
        elif list(right[0]["config"]) != settings:
            yield Altered(what=f"{said} has other settings, such as search_path", action=_MIGRATE)
        for row in rows:
            for caller in set(row["callers"]) - {callers.get(name)}:
                too_many[caller].append(row["signature"])
    for caller, signatures_of in sorted(too_many.items()):
        yield Altered(
            what=f"{caller} may call {_some(signatures_of)}",
            action=f"REVOKE EXECUTE ON FUNCTION {', '.join(sorted(signatures_of))} FROM {caller}",
        )


def _functions_beside(now: Sequence[Any]) -> Iterator[Altered]:
    for row in now:
        yield Altered(
            what=f"{row['who']} has the function {row['signature']}, which is not the gate's",
            action=f"find out who made it: DROP FUNCTION {row['signature']}",
        )


def _owners_altered(now: Sequence[Any]) -> Iterator[Altered]:
    for row in now:
        if row["is_schema"]:
            yield Altered(what=f"{row['who']} may create objects in the schema outreach", action=_MIGRATE)
        else:
            yield Altered(what=f"outreach.{row['name']} belongs to {row['who']}, not to ct_owner", action=_MIGRATE)


async def _beyond_columns(fetch: Fetch) -> Sequence[Any]:
    """Return what everybody may do with the users' tables, and what the gate may do beyond its columns.

    For a foreign key a column is enough. `migrate` takes away what the gate was granted by their owners.
    """
    return [
        row
        for row in await fetch("rights_now", list(_OF_USERS))
        if not row["kind"]
        and (
            row["grantee"] == "PUBLIC"
            or (row["grantee"] == "ct_gate" and (row["its_column"] is None or row["right"] == "REFERENCES"))
        )
    ]


def _widened(sql: SqlFiles, now: Sequence[Any]) -> Iterator[Altered]:
    granted = set(_granted(sql.grants))
    wide: defaultdict[tuple[str, str, str, str], list[str]] = defaultdict(list)
    for row in now:
        kind, table, column, who, right = (row[key] for key in ("kind", "its_table", "its_column", "grantee", "right"))
        is_ours = right in _WRITES or ((table, right) == _SECRET and column in (None, "token"))
        if kind or (is_ours and (right, table, column, who) not in granted):
            by = f"as {row['grantor']}: " if row["grantor"] else ""  # who has granted it takes it away
            wide[who, kind, f"{right} ({column})" if column else right, by].append(row["place"])
    for (who, kind, right, by), tables in sorted(wide.items()):
        yield Altered(
            what=f"{who} may {right} on {kind.lower()}{_some(tables)}",
            action=f"{by}REVOKE {right} ON {kind}{', '.join(sorted(tables))} FROM {who}",
        )


def _keys(now: Sequence[Any]) -> Iterator[Altered]:
    for row in now:
        yield Altered(
            what=f"{row['of_table']} of {row['who']} has a foreign key to outreach.{row['its_table']}, {row['name']}, "
            "which is checked with the rights of that table's owner",
            action=f"find out who made it: ALTER TABLE {row['of_table']} DROP CONSTRAINT {row['name']}",
        )


def _some(names: Iterable[str]) -> str:
    first, *others = sorted(names)
    return first if not others else f"{first} and {len(others)} more"


def _granted(grants: str) -> Iterator[tuple[str, str, str | None, str]]:
    """Yield (right, table, column or None, role) for each right on a table that grants.sql gives."""
    for rights, tables, roles in _GRANT.findall(grants):
        for right, columns in re.findall(r"(\w+)(?: \(([^)]*)\))?", rights):
            for table in re.findall(r"outreach\.(\w+)", tables):
                for role in roles.split(","):
                    for column in columns.split(",") if columns else [""]:
                        yield right, table, column.strip() or None, role.strip()
