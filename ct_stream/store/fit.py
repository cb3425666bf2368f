"""Have the users' own tables the columns, types and index that every statement of the gate rests on?

These are looked up in the catalogue, because what is wrong with them breaks statements before they run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from ct_stream.store.misfit import Misfit

if TYPE_CHECKING:
    import asyncpg

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]

_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "i": "an index", "S": "a sequence"}
#: Where the gate writes it needs tables; the spine may be whatever can be read.
_WRITTEN = ("company_target", "company_target_errors")

_RELATIONS = """
SELECT c.relname AS name, c.relkind::text AS kind,
    pg_catalog.format_type(a.atttypid, NULL) AS id_type,
    coalesce(nullif(t.typbasetype, 0), a.atttypid) = 'pg_catalog.uuid'::pg_catalog.regtype AS has_uuid,
    (
        SELECT pg_catalog.format_type(d.atttypid, NULL) FROM pg_catalog.pg_attribute AS d
        WHERE d.attrelid = c.oid AND d.attname = 'domain' AND NOT d.attisdropped
    ) AS domain_type,
    EXISTS (
        SELECT d.attnum FROM pg_catalog.pg_attribute AS d
        JOIN pg_catalog.pg_type AS y ON y.oid = d.atttypid
        WHERE d.attrelid = c.oid AND d.attname = 'domain' AND y.typcategory = 'S'
    ) AS has_text
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'outreach_id' AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
WHERE n.nspname = 'outreach' AND c.relname IN ('outreach', 'company_target', 'company_target_errors')
ORDER BY c.relname
"""
#: Columns that the gate reads or writes whose type somebody made: a cast of theirs would run as whoever reads.
_FOREIGN_TYPES = """
SELECT 'outreach.' || c.relname || '.' || a.attname AS name, pg_catalog.format_type(a.atttypid, NULL) AS type
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
JOIN pg_catalog.pg_type AS b ON b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
WHERE n.nspname = 'outreach' AND a.attnum > 0 AND NOT a.attisdropped
    AND b.typnamespace <> 'pg_catalog'::pg_catalog.regnamespace
    AND (
        (c.relname = 'company_target' AND a.attname IN ('email_method', 'method_type', 'confidence_score',
            'is_catchall', 'execution_status', 'imo_completed_at', 'created_at', 'updated_at'))
        OR (c.relname = 'company_target_errors' AND a.attname IN ('pipeline_stage', 'failure_code', 'blocking_reason',
            'severity', 'imo_stage', 'retry_allowed', 'created_at', 'resolved_at', 'resolution_note', 'raw_input'))
        OR (c.relname = 'outreach' AND a.attname = 'domain')
    )
ORDER BY 1
"""
#: Times that are kept as text: how they are read depends on a session's settings, and no report can compare them.
_TIMES_AS_TEXT = """
SELECT 'outreach.' || c.relname AS its_table, a.attname AS name, pg_catalog.format_type(a.atttypid, NULL) AS type
FROM pg_catalog.pg_attribute AS a
JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
WHERE n.nspname = 'outreach' AND NOT a.attisdropped
    AND coalesce(nullif(t.typbasetype, 0), t.oid) NOT IN (
        'pg_catalog.timestamptz'::pg_catalog.regtype, 'pg_catalog.timestamp'::pg_catalog.regtype,
        'pg_catalog.date'::pg_catalog.regtype
    )
    AND (
        (c.relname = 'company_target' AND a.attname = 'imo_completed_at')
        OR (c.relname = 'company_target_errors' AND a.attname = 'created_at')
    )
ORDER BY 1
"""
#: The longest template, and the longest domain.
_LONGEST_METHOD = len("{first}.{last}@") + 253
_METHOD = """
SELECT a.atttypmod - 4 FROM pg_catalog.pg_attribute AS a
WHERE a.attrelid = 'outreach.company_target'::pg_catalog.regclass AND a.attname = 'email_method'
    AND a.atttypid IN ('pg_catalog.varchar'::pg_catalog.regtype, 'pg_catalog.bpchar'::pg_catalog.regtype)
    AND a.atttypmod BETWEEN 5 AND $1 + 3
"""
_ARBITER = """
SELECT EXISTS (
    SELECT i.indexrelid FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
    WHERE i.indrelid = pg_catalog.to_regclass('outreach.company_target') AND i.indisunique AND i.indisvalid
        AND i.indimmediate AND i.indpred IS NULL AND i.indnkeyatts = 1 AND a.attname = 'outreach_id'
)
"""
_TAKEN = """
SELECT pg_catalog.pg_get_indexdef(i.indexrelid) FROM pg_catalog.pg_index AS i
WHERE i.indexrelid = pg_catalog.to_regclass('outreach.company_target_outreach_id_key')
"""


#: Rows of a child are seen in its parent, and no trigger of the parent guards them. Partitions have the triggers.
_CHILDREN = """
SELECT c.oid::pg_catalog.regclass::text AS child, i.inhparent::pg_catalog.regclass::text AS parent
FROM pg_catalog.pg_inherits AS i
JOIN pg_catalog.pg_class AS c ON c.oid = i.inhrelid
WHERE NOT c.relispartition AND i.inhparent IN (
    pg_catalog.to_regclass('outreach.company_target'), pg_catalog.to_regclass('outreach.company_target_errors')
)
"""


async def check_fit(connection: Connection) -> None:
    """Raise Misfit for the first thing that does not fit. Tables that do not exist yet are no misfit."""
    if (encoding := await connection.fetchval("SHOW server_encoding")) != "UTF8":
        raise Misfit(
            f"the database has the encoding {encoding}, in which not every text can be kept or read",
            "create one with ENCODING 'UTF8' TEMPLATE template0, and restore yours into it",
        )
    for row in await connection.fetch(_RELATIONS):
        name = f"outreach.{row['name']}"
        if row["name"] in _WRITTEN and row["kind"] not in ("r", "p"):
            kind = _KINDS.get(row["kind"], "no table")
            raise Misfit(f"{name} is {kind}, and the gate writes rows there", "rename it; migrate makes a table")
        if row["id_type"] is None:
            raise Misfit(
                f"{name} has no column outreach_id", "add it, of type uuid, with the company's id of the spine"
            )
        if not row["has_uuid"]:
            raise Misfit(
                f"{name}.outreach_id is of type {row['id_type']}, not uuid",
                f"ALTER TABLE {name} ALTER COLUMN outreach_id TYPE uuid USING outreach_id::uuid",
            )
        if row["name"] == "outreach" and row["domain_type"] is None:
            raise Misfit(f"the spine {name} has no column domain", "have upstream add it")
        if row["name"] == "outreach" and not row["has_text"]:
            raise Misfit(
                f"the domain in the spine {name} is of type {row['domain_type']}", "have upstream keep it as text"
            )
    for row in await connection.fetch(_CHILDREN):
        raise Misfit(
            f"{row['child']} inherits from {row['parent']}, whose triggers do not guard its rows",
            f"ALTER TABLE {row['child']} NO INHERIT {row['parent']}",
        )
    for row in await connection.fetch(_TIMES_AS_TEXT):
        raise Misfit(
            f"{row['its_table']}.{row['name']} is of type {row['type']}, and no time",
            f"ALTER TABLE {row['its_table']} ALTER COLUMN {row['name']} TYPE timestamptz USING "
            f"{row['name']}::text::timestamptz",
        )
    for row in await connection.fetch(_FOREIGN_TYPES):
        table, _, column = row["name"].rpartition(".")
        raise Misfit(
            f"{row['name']} is of type {row['type']}, and the gate takes built-in types only",
            f"ALTER TABLE {table} ALTER COLUMN {column} TYPE text",
        )


async def check_arbiter(connection: Connection) -> None:
    """Raise Misfit if no index holds company_target to one row for each company."""
    if await connection.fetchval(_ARBITER):
        return
    taken = await connection.fetchval(_TAKEN)
    if taken is None:
        raise Misfit(
            "outreach.company_target has no unique index over outreach_id alone",
            "CREATE UNIQUE INDEX company_target_outreach_id_key ON outreach.company_target (outreach_id)",
        )
    raise Misfit(
        f"the name company_target_outreach_id_key is taken by another index: {taken}",
        "ALTER INDEX outreach.company_target_outreach_id_key RENAME TO another name, and migrate again",
    )


async def longest_method(connection: Connection) -> int | None:
    """Return how many characters email_method takes; None: any method fits."""
    length: int | None = await connection.fetchval(_METHOD, _LONGEST_METHOD)
    return length
