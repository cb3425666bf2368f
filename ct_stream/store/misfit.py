"""What does not fit in the users' own tables, and what to do about it: one line for each error of Postgres."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import asyncpg

from ct_stream.problems import ProblemError
from ct_stream.store.sql_files import sql_files

if TYPE_CHECKING:
    from collections.abc import Callable

#: Functions in an error's context, the innermost first. The words around them are in the server's language.
_PL = re.compile(r"PL/\w+.*?([\w.]+)\(")
_SQL = re.compile(r"\bSQL\b.*?[\"»«“”„]\s*([\w.]+)\s*[\"»«“”]")
#: How the names of the functions begin that a rehearsal makes (as_gate.py).
OF_REHEARSAL = "ct_as_gate_"
_DENIED = re.compile(r"permission denied for (\w+) (.+)")
#: A first migrate that is refused takes its roles back, too.
_ROLE = " (if there is no such role yet: CREATE ROLE ct_gate NOLOGIN first)"
#: The guard ct_guard_new_row says this of a row that somebody's trigger or type has changed.
_CONTRADICTS = re.compile(r"^(\w+): the row of \S+ contradicts what this transaction records: (.+)")
KEEP = "let triggers, rules, row security and types leave the gate's columns and rows as they are"
_TYPES = re.compile(r'column "(.+)" is of type (.+) but expression is of type')


#: Errors that only the users' tables can cause when an outcome is recorded: a column has another type or length, or an
#: index, a publication or a rule is in the way.
_OF_THEIR_COLUMNS = (
    asyncpg.StringDataRightTruncationError,
    asyncpg.NumericValueOutOfRangeError,
    asyncpg.DatetimeFieldOverflowError,
    asyncpg.DatatypeMismatchError,
    asyncpg.CannotCoerceError,
    asyncpg.GeneratedAlwaysError,
    asyncpg.InvalidColumnReferenceError,
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.FeatureNotSupportedError,
)


class Misfit(ProblemError):
    """The users' own tables refuse what the gate writes, or are not what it can read."""


def explain(error: asyncpg.PostgresError, doing: str) -> Misfit:
    """Return what an error says of the users' tables; `doing` is what Postgres refused."""
    foreign = _foreign(error)
    if foreign is not None:
        return _of_a_trigger(error, foreign, doing)
    for kind, read in _READERS:
        if isinstance(error, kind):
            return read(error, doing)
    return Misfit(
        f"Postgres refuses {doing}: {said(error)}",
        f"let {_table(error)} take what the gate writes" if _field(error, "table_name") else _field(error, "hint"),
    )


def runs_foreign_code(error: asyncpg.PostgresError) -> bool:
    """Return whether a function of somebody else's, such as a trigger's, was running when this was raised."""
    return _foreign(error) is not None


def is_of_others(error: asyncpg.PostgresError) -> bool:
    """Return whether a trigger, a type or a constraint of the users' tables refuses this one row."""
    if runs_foreign_code(error) or _CONTRADICTS.search(said(error)) is not None:
        return True
    is_refused = isinstance(error, asyncpg.IntegrityConstraintViolationError)
    is_theirs = _field(error, "table_name") in ("company_target", "company_target_errors")
    return (is_refused and is_theirs) or isinstance(error, _OF_THEIR_COLUMNS)


def _foreign(error: asyncpg.PostgresError) -> str | None:
    for line in _field(error, "context").splitlines():
        found = _PL.search(line) or _SQL.search(line)
        if found is not None and not _is_ours(found[1]):
            return found[1]
    return None


def said(error: asyncpg.PostgresError) -> str:
    """Return the first line of what Postgres says."""
    return (str(error).strip() or type(error).__name__).split("\n", 1)[0][:300]


def _is_ours(name: str) -> bool:
    schema, _, function = name.rpartition(".")
    return schema in ("", "outreach") and (function in sql_files().made_functions or function.startswith(OF_REHEARSAL))


def _field(error: asyncpg.PostgresError, name: str) -> str:
    """Return a field of the server's message, "" where it has none."""
    return str(getattr(error, name, None) or "")


def _table(error: asyncpg.PostgresError) -> str:
    return f"{_field(error, 'schema_name') or 'outreach'}.{_field(error, 'table_name')}"


def _of_a_trigger(error: asyncpg.PostgresError, function: str, doing: str) -> Misfit:
    what = f"{doing} runs the function {function} of a trigger or a default, which fails: {said(error)}"
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return Misfit(
            what,
            f"it runs with the rights of ct_gate: ALTER FUNCTION {function} SECURITY DEFINER (with a search_path of "
            "its own), or grant ct_gate what it needs, and of outreach.company_target only the columns that it writes: "
            "GRANT UPDATE (...) ON outreach.company_target TO ct_gate",
        )
    return Misfit(what, "let it accept what the gate writes")


def _of_a_domain(error: asyncpg.PostgresError, doing: str) -> Misfit:
    name = f"{_field(error, 'schema_name')}.{_field(error, 'data_type_name')}"
    constraint = _field(error, "constraint_name")
    return Misfit(
        f"the domain {name} refuses {doing}: {said(error)}",
        f"ALTER DOMAIN {name} DROP " + (f"CONSTRAINT {constraint}" if constraint else "NOT NULL"),
    )


def _not_null(error: asyncpg.PostgresError, doing: str) -> Misfit:
    if not _field(error, "table_name"):
        return _of_a_domain(error, doing)
    table, column = _table(error), _field(error, "column_name")
    if column in _EMPTY:
        return Misfit(
            f"{table}.{column} is NOT NULL, and a FAIL has no value there",
            f"ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL",
        )
    return Misfit(
        f"{table}.{column} is NOT NULL, and the gate does not fill it",
        f"ALTER TABLE {table} ALTER COLUMN {column} DROP NOT NULL, or give it a default",
    )


def _foreign_key(error: asyncpg.PostgresError, doing: str) -> Misfit:
    table, constraint = _table(error), _field(error, "constraint_name")
    return Misfit(
        f"the foreign key {constraint} of {table} refuses {doing}", f"ALTER TABLE {table} DROP CONSTRAINT {constraint}"
    )


def _check(error: asyncpg.PostgresError, doing: str) -> Misfit:
    if not _field(error, "table_name"):
        return _of_a_domain(error, doing)
    table, constraint = _table(error), _field(error, "constraint_name")
    return Misfit(
        f"the constraint {constraint} of {table} refuses {doing}",
        f"let it allow the gate's words, or ALTER TABLE {table} DROP CONSTRAINT {constraint}",
    )


def _unique(error: asyncpg.PostgresError, doing: str) -> Misfit:
    table, constraint = _table(error), _field(error, "constraint_name")
    return Misfit(
        f"{constraint} of {table} refuses {doing}, which it takes for a second one",
        "make it not unique: only outreach_id is, one row for each company",
    )


def _too_long(error: asyncpg.PostgresError, doing: str) -> Misfit:
    return Misfit(
        f"a column is too short for {doing}: {said(error)}",
        "make the columns of company_target and company_target_errors that the gate fills text (email_method at least "
        "varchar(100))",
    )


def _type(error: asyncpg.PostgresError, doing: str) -> Misfit:
    found = _TYPES.search(said(error))
    if found is None:
        return Misfit(f"a type does not fit {doing}: {said(error)}", "give the column the type that the README names")
    table = "company_target_errors" if found[1] in _ONLY_OF_ERRORS else "company_target"
    return Misfit(
        f"outreach.{table}.{found[1]} is of type {found[2]}, which does not take what the gate writes",
        f"ALTER TABLE outreach.{table} ALTER COLUMN {found[1]} TYPE {_WANTED.get(found[1], 'text')}",
    )


#: What only a PASS fills.
_EMPTY = {"email_method", "method_type", "confidence_score", "is_catchall"}
_ONLY_OF_ERRORS = {
    "pipeline_stage", "failure_code", "blocking_reason", "severity", "imo_stage", "retry_allowed", "raw_input",
}  # fmt: skip
_WANTED = {
    "outreach_id": "uuid",
    "confidence_score": "numeric(5, 4)",
    "is_catchall": "boolean",
    "imo_completed_at": "timestamptz",
    "retry_allowed": "boolean",
    "raw_input": "jsonb",
}


def _contradiction(error: asyncpg.PostgresError, doing: str) -> Misfit:
    found = _CONTRADICTS.search(said(error))
    if found is None:
        return Misfit(f"Postgres refuses {doing}: {said(error)}")
    return Misfit(f"outreach.{found[1]} does not keep what the gate writes: {found[2]}", KEEP)


def _generated(error: asyncpg.PostgresError, _doing: str) -> Misfit:
    return Misfit(f"the gate writes a column that Postgres generates: {said(error)}", "make it an ordinary column")


def _no_arbiter(error: asyncpg.PostgresError, doing: str) -> Misfit:
    if _field(error, "detail"):  # of a publication, whose row filter needs the old row
        return Misfit(
            f"a publication refuses {doing}: {said(error)}: {_field(error, 'detail')}",
            "ALTER TABLE outreach.company_target REPLICA IDENTITY FULL, or take the table out of that publication",
        )
    return Misfit(
        "outreach.company_target has no unique index over outreach_id alone",
        "CREATE UNIQUE INDEX ON outreach.company_target (outreach_id)",
    )


def _no_identity(error: asyncpg.PostgresError, doing: str) -> Misfit:
    return Misfit(
        f"a publication refuses {doing}: {said(error)}",
        "give the table a primary key, or a REPLICA IDENTITY (ALTER TABLE ... REPLICA IDENTITY FULL)",
    )


def _rules(error: asyncpg.PostgresError, doing: str) -> Misfit:
    return Misfit(
        f"Postgres refuses {doing}: {said(error)}",
        "drop the rules of outreach.company_target (DROP RULE), or make triggers of them",
    )


def _denied(error: asyncpg.PostgresError, doing: str) -> Misfit:
    text = said(error)
    found = _DENIED.search(text)
    if found is None:
        action = "give ct_gate a policy that lets it read, insert and update, or switch row security off for that table"
    elif found[1] == "sequence":
        action = f"GRANT USAGE ON SEQUENCE {found[2]} TO ct_gate{_ROLE}"
    elif found[1] == "function":
        action = f"GRANT EXECUTE ON FUNCTION {found[2]} TO ct_gate{_ROLE}"
    elif found[1] == "schema":
        action = f"GRANT USAGE ON SCHEMA {found[2]} TO ct_gate{_ROLE}"
    else:
        action = "run `ct-stream migrate`, which grants what the gate needs of its own list; grant it the rest"
    return Misfit(f"{doing} is refused: {text}", action)


def _undefined(error: asyncpg.PostgresError, doing: str) -> Misfit:
    return Misfit(
        f"{doing} cannot be put into this schema: {said(error)}",
        "run `ct-stream migrate`; outreach.outreach needs outreach_id uuid and domain",
    )


#: The first that holds. Subclasses come before the class of the rest.
_READERS: tuple[tuple[type[asyncpg.PostgresError], Callable[[asyncpg.PostgresError, str], Misfit]], ...] = (
    (asyncpg.NotNullViolationError, _not_null),
    (asyncpg.ForeignKeyViolationError, _foreign_key),
    (asyncpg.CheckViolationError, _check),
    (asyncpg.UniqueViolationError, _unique),
    (asyncpg.RestrictViolationError, _contradiction),
    (asyncpg.StringDataRightTruncationError, _too_long),
    (asyncpg.GeneratedAlwaysError, _generated),
    (asyncpg.InvalidColumnReferenceError, _no_arbiter),
    (asyncpg.ObjectNotInPrerequisiteStateError, _no_identity),
    (asyncpg.FeatureNotSupportedError, _rules),
    (asyncpg.DatatypeMismatchError, _type),
    (asyncpg.InsufficientPrivilegeError, _denied),
    (asyncpg.UndefinedColumnError, _undefined),
    (asyncpg.UndefinedFunctionError, _undefined),
    (asyncpg.UndefinedTableError, _undefined),
)
