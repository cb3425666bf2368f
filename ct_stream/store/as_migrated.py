"""Is the database still as `ct-stream migrate` made it: its triggers, its functions, and who may write?

Compared with this version's files, so that nobody who can change the database can change what it is held against.
Triggers stop accidents and wrong roles, but not an administrator: one who switches a trigger off for an hour of repairs
and forgets it leaves outcomes that anybody may change. `doctor` and `verify` say so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ct_stream.store.sql_files import sql_files

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from typing import Any, TypeAlias

    import asyncpg

    from ct_stream.store.sql_files import SqlFiles

    #: Runs a named query as the gate, as a person or as who migrates.
    Fetch: TypeAlias = Callable[..., Awaitable[Sequence[asyncpg.Record]]]

_FLAGS = re.MULTILINE | re.DOTALL
_FUNCTION = re.compile(r"^CREATE (?:OR REPLACE )?FUNCTION outreach\.(\w+)\((.*?)AS\s+\$\$(.*?)\$\$", _FLAGS)
_TRIGGER = re.compile(
    r"^CREATE (?:OR REPLACE |CONSTRAINT )?TRIGGER (\w+) [^;]*?\sON outreach\.(\w+)"
    r"[^;]*?EXECUTE FUNCTION outreach\.(\w+)\(",
    _FLAGS,
)
_ALWAYS = re.compile(r"^ALTER TABLE outreach\.(\w+) ENABLE ALWAYS TRIGGER (\w+);", _FLAGS)
_GRANT = re.compile(r"^GRANT ([^;]+?) ON ([^;]+?) TO ([^;]+?);", _FLAGS)
_CALLERS = re.compile(r"of_(\w+) CONSTANT name\[\] := ARRAY\[(.*?)\]", _FLAGS)
_ROLE_OF = {"gate": "ct_gate", "people": "ct_ops", "everybody": "PUBLIC", "owner": None}
_WRITES = frozenset({"INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRIGGER"})  #: who may read is the users' own affair
_MIGRATE = "run `ct-stream migrate`, which puts it back"


@dataclass(frozen=True, slots=True, kw_only=True)
class Altered:
    """One thing that is not as `migrate` made it."""

    what: str
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trigger:
    """A trigger as triggers.sql makes it; `enabled` as in pg_trigger: O for origin, A for always."""

    table: str
    name: str
    function: str
    enabled: str


async def altered(fetch: Fetch) -> list[Altered] | None:
    """Return what differs; None where another version of ct-stream has migrated last, which made it differently.

    `fetch` runs a named query as the gate or as a person.
    """
    sql = sql_files()
    if [row["checksum"] for row in await fetch("functions_version")] != [sql.functions_checksum]:
        return None
    functions = await fetch("functions_now", list(sql.made_functions))
    rights = await fetch("rights_now", list(sql.made))
    return [*await triggers_altered(sql, fetch), *_functions_altered(sql, functions), *_widened(sql, rights)]


async def triggers_altered(sql: SqlFiles, fetch: Fetch) -> list[Altered]:
    """Return which triggers are not as triggers.sql makes them."""
    wanted = list(_triggers(sql))
    return list(_compared(wanted, await fetch("triggers_now", sorted({trigger.table for trigger in wanted}))))


def _triggers(sql: SqlFiles) -> Iterator[_Trigger]:
    always = {(table, name) for table, name in _ALWAYS.findall(sql.triggers)}
    for name, table, function in _TRIGGER.findall(sql.triggers):
        yield _Trigger(table=table, name=name, function=function, enabled="A" if (table, name) in always else "O")


def _compared(wanted: Sequence[_Trigger], now: Sequence[Any]) -> Iterator[Altered]:
    found = {(row["its_table"], row["name"]): row for row in now}
    for trigger in wanted:
        said = f"the trigger {trigger.name} of outreach.{trigger.table}"
        row = found.get((trigger.table, trigger.name))
        if row is None:
            yield Altered(what=f"{said} is gone", action=_MIGRATE)
        elif row["function"] != trigger.function:
            yield Altered(what=f"{said} calls another function, {row['function']}", action=_MIGRATE)
        elif row["enabled"] != trigger.enabled:
            how = "is disabled" if row["enabled"] == "D" else "does not fire always"
            yield Altered(what=f"{said} {how}", action=_MIGRATE)


def _functions_altered(sql: SqlFiles, now: Sequence[Any]) -> Iterator[Altered]:
    found = {row["name"]: row for row in now}
    callers = {
        name.strip().strip("'"): _ROLE_OF[who]
        for who, names in _CALLERS.findall(sql.grants)
        for name in names.replace("\n", " ").split(",")
    }
    for name, head, body in _FUNCTION.findall("\n".join(sql.functions.values())):
        said = f"the function outreach.{name}"
        row = found.get(name)
        if row is None:
            yield Altered(what=f"{said} is gone, or not ct_owner's", action=_MIGRATE)
            continue
        if row["body"] != body or row["is_definer"] != ("SECURITY DEFINER" in head):
            yield Altered(what=f"{said} was replaced", action=_MIGRATE)
        elif row["is_definer"] and not any(setting.startswith("search_path=pg_catalog") for setting in row["config"]):
            yield Altered(what=f"{said} has another search_path", action=_MIGRATE)
        for caller in sorted(set(row["callers"]) - {callers.get(name)}):
            yield Altered(
                what=f"{caller} may call {row['signature']}",
                action=f"REVOKE EXECUTE ON FUNCTION {row['signature']} FROM {caller}",
            )


def _widened(sql: SqlFiles, now: Sequence[Any]) -> Iterator[Altered]:
    granted = set(_granted(sql.grants))
    for row in now:
        table, column, who, right = row["its_table"], row["its_column"], row["grantee"], row["right"]
        if right not in _WRITES or (right, table, column, who) in granted:
            continue
        where = f" ({column})" if column else ""
        yield Altered(
            what=f"{who} may {right}{where} on outreach.{table}",
            action=f"REVOKE {right}{where} ON outreach.{table} FROM {who}",
        )


def _granted(grants: str) -> Iterator[tuple[str, str, str | None, str]]:
    """Yield (right, table, column or None, role) for each right on a table that grants.sql gives."""
    for rights, tables, roles in _GRANT.findall(grants):
        for right, columns in re.findall(r"(\w+)(?: \(([^)]*)\))?", rights):
            for table in re.findall(r"outreach\.(\w+)", tables):
                for role in roles.split(","):
                    for column in columns.split(",") if columns else [""]:
                        yield right, table, column.strip() or None, role.strip()
