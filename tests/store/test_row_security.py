"""A company that row security hides is not missing, however deep below the spine the policy lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg
import pytest

from ct_stream.company.checks import SpineCheck
from ct_stream.store.guardrails import Guardrails
from tests.store.parts import opened, role
from tests.store.test_roles import run

if TYPE_CHECKING:
    from tests.conftest import DatabaseDsns

BELOW = (
    "CREATE TABLE public.companies (outreach_id uuid PRIMARY KEY, domain text, tenant text);"
    "INSERT INTO public.companies SELECT gen_random_uuid(), 'a.example', 'mine' FROM generate_series(1, 3);"
    "ALTER TABLE public.companies ENABLE ROW LEVEL SECURITY;"
    "CREATE POLICY mine ON public.companies USING (tenant = current_setting('app.tenant', true));"
    "GRANT SELECT ON public.companies TO ct_gate, someone; DROP TABLE outreach.outreach CASCADE;"
)
VIEW = "CREATE VIEW outreach.outreach {} AS SELECT outreach_id, domain FROM public.companies;"
GRANT = "GRANT SELECT ON outreach.outreach TO ct_gate;"
KINDS = {
    "a policy of the spine": ("ALTER TABLE outreach.outreach ENABLE ROW LEVEL SECURITY", True),
    "below a view with the caller's rights": (BELOW + VIEW.format("WITH (security_invoker = true)") + GRANT, True),
    "below a view of somebody who is not exempt": (
        BELOW + VIEW.format("") + "ALTER VIEW outreach.outreach OWNER TO someone;" + GRANT, True,
    ),
    "below two views": (
        BELOW + VIEW.format("WITH (security_invoker = true)").replace("outreach.outreach", "public.inner")
        + "GRANT SELECT ON public.inner TO ct_gate;"
        "CREATE VIEW outreach.outreach WITH (security_invoker = true) AS SELECT * FROM public.inner;" + GRANT, True,
    ),
    "below a view of the table's owner": (BELOW + VIEW.format("") + GRANT, False),
    "none": ("SELECT 1", False),
}  # fmt: skip


@pytest.mark.parametrize(("made", "hides"), KINDS.values(), ids=KINDS)
async def test_a_row_that_may_be_hidden_does_not_count_as_missing(
    database: DatabaseDsns, made: str, hides: bool
) -> None:
    await run(
        database.admin,
        "INSERT INTO outreach.outreach (outreach_id, domain) VALUES (gen_random_uuid(), 'a.example');"
        + role("someone")
        + "GRANT USAGE ON SCHEMA outreach, public TO someone; GRANT CREATE ON SCHEMA outreach TO someone;"
        + made,
    )
    if hides:  # a row is seen, so that it is not the empty spine that is told
        admin = await asyncpg.connect(database.admin)
        if await admin.fetchval("SELECT to_regclass('public.companies') IS NOT NULL"):
            await admin.execute("CREATE POLICY one ON public.companies USING (domain = 'b.example')")
            await admin.execute("INSERT INTO public.companies VALUES (gen_random_uuid(), 'b.example', 'theirs')")
        else:
            await admin.execute("CREATE POLICY one ON outreach.outreach USING (true)")
        await admin.close()
    async with opened(database.gate) as db:
        trouble = await SpineCheck(db, Guardrails(db, 60.0)).trouble()
    assert ("may hide rows" in (trouble or "")) is hides, trouble
