"""The schema `outreach` as the catalog of Postgres has it, in lines that two databases can be compared by.

No pg_dump: its form changes with its version, and not every machine has one. No bodies of functions: those are in
ct_stream/store/functions, once. `python -m tests.store.catalog` writes the file that test_schema.py holds the schema
equal to.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from ct_stream.local.postgres import EmbeddedPostgres
from ct_stream.store.migrate import migrate

if TYPE_CHECKING:
    from collections.abc import Iterable

HELD = Path(__file__).parent / "data" / "schema.txt"

# What a role may do, but for the owner's own rights: their letters differ between versions (MAINTAIN is new in 17).
# The administrator's name is no part of the schema.
_SHOWN = """
CREATE FUNCTION pg_temp.owner_name(role oid) RETURNS text LANGUAGE sql AS $$
    SELECT CASE WHEN r.rolname = session_user THEN '(who migrates)' ELSE r.rolname::text END
    FROM pg_roles AS r WHERE r.oid = role
$$;
CREATE FUNCTION pg_temp.grants(acl aclitem[], owner oid) RETURNS SETOF text LANGUAGE sql AS $$
    SELECT format('grant %s to %s', string_agg(g.privilege_type, ', ' ORDER BY g.privilege_type), g.grantee)
    FROM (
        SELECT x.privilege_type, CASE WHEN x.grantee = 0 THEN 'PUBLIC' ELSE pg_temp.owner_name(x.grantee) END AS grantee
        FROM aclexplode(acl) AS x WHERE x.grantee <> owner
    ) AS g GROUP BY g.grantee ORDER BY g.grantee
$$;
"""

_RELATIONS = """
SELECT c.oid, c.relname AS name, CASE c.relkind WHEN 'v' THEN 'view' ELSE 'table' END AS kind,
    pg_temp.owner_name(c.relowner) AS owner,
    CASE c.relkind WHEN 'v' THEN pg_get_viewdef(c.oid) ELSE '' END AS definition,
    ARRAY(SELECT g FROM pg_temp.grants(c.relacl, c.relowner) AS g) AS grants
FROM pg_class AS c
WHERE c.relnamespace = 'outreach'::regnamespace AND c.relkind IN ('r', 'v', 'p', 'm') AND c.relname <> 'outreach'
ORDER BY c.relname
"""

_COLUMNS = """
SELECT concat_ws(' ', 'column', a.attname, format_type(a.atttypid, a.atttypmod),
        CASE WHEN a.attnotnull THEN 'NOT NULL' END,
        CASE WHEN a.attidentity <> '' THEN 'IDENTITY ' || a.attidentity::text END,
        'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid)) AS line,
    ARRAY(SELECT g FROM pg_temp.grants(a.attacl, c.relowner) AS g) AS grants
FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attname
"""

# Not 'n': from version 18 on NOT NULL is a constraint with a name.
_PARTS = """
SELECT line FROM (
    SELECT 1 AS part, k.conname AS name, format('constraint %s %s', k.conname, pg_get_constraintdef(k.oid)) AS line
    FROM pg_constraint AS k WHERE k.conrelid = $1 AND k.contype <> 'n'
    UNION ALL
    SELECT 2, c.relname, format('index %s', pg_get_indexdef(i.indexrelid))
    FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid WHERE i.indrelid = $1
    UNION ALL
    SELECT 3, t.tgname, format('trigger (%s) %s', t.tgenabled, pg_get_triggerdef(t.oid))
    FROM pg_trigger AS t WHERE t.tgrelid = $1 AND NOT t.tgisinternal
    UNION ALL
    SELECT 4, r.rulename, format('rule %s', pg_get_ruledef(r.oid))
    FROM pg_rewrite AS r WHERE r.ev_class = $1 AND r.rulename <> '_RETURN'
) AS p ORDER BY part, name
"""

_FUNCTIONS = """
SELECT p.oid::regprocedure::text COLLATE "C" AS name, pg_temp.owner_name(p.proowner) AS owner,
    split_part(pg_get_functiondef(p.oid), E'\\nAS $function$', 1) AS definition,
    ARRAY(SELECT g FROM pg_temp.grants(coalesce(p.proacl, acldefault('f', p.proowner)), p.proowner) AS g) AS grants
FROM pg_proc AS p WHERE p.pronamespace = 'outreach'::regnamespace
ORDER BY name
"""


async def dump(dsn: str) -> str:
    """Return the schema of a database but for the spine: tables, view, functions, and who may do what with them."""
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(dsn)
    try:
        await connection.execute("SET search_path = pg_catalog, pg_temp")
        await connection.execute(_SHOWN)
        lines: list[str] = []
        for relation in await connection.fetch(_RELATIONS):
            columns = await connection.fetch(_COLUMNS, relation["oid"])
            parts = await connection.fetch(_PARTS, relation["oid"])
            lines += [
                f"{relation['kind']} {relation['name']} of {relation['owner']}",
                *_indented(relation["grants"]),
                *_indented(relation["definition"].splitlines()),
                *_indented(line for column in columns for line in (column["line"], *_indented(column["grants"]))),
                *_indented(part["line"] for part in parts),
                "",
            ]
        for function in await connection.fetch(_FUNCTIONS):
            lines += [
                f"function {function['name']} of {function['owner']}",
                *_indented(function["grants"]),
                *_indented(function["definition"].splitlines()),
                "",
            ]
        return "\n".join(lines)
    finally:
        await connection.close()


def _indented(lines: Iterable[str]) -> list[str]:
    return [f"    {line}".rstrip() for line in lines]


async def _write() -> None:
    async with EmbeddedPostgres(durable=False) as postgres:
        dsn = await postgres.create_database("held")
        await migrate(dsn)
        HELD.write_text(await dump(dsn))


if __name__ == "__main__":
    asyncio.run(_write())
