"""What an error says of whose code was running, in whatever language the server speaks."""

from __future__ import annotations

import asyncpg
import pytest

from ct_stream.store.misfit import runs_foreign_code


def met_in(context: str) -> asyncpg.PostgresError:
    error = asyncpg.RaiseError("no")
    error.context = context
    return error


@pytest.mark.parametrize(
    "context",
    [
        "PL/pgSQL function audit.note() line 3 at RAISE",
        "PL/pgSQL-Funktion audit.note() Zeile 3 bei RAISE",
        "fonction PL/pgSQL audit.note(), ligne 3 à RAISE",
        "función PL/pgSQL audit.note() en la línea 3 en RAISE",
        'SQL function "note" statement 1',
        "SQL-Funktion »note« Anweisung 1",
        "fonction SQL « note », instruction 1",
        'SQL statement "INSERT INTO vip VALUES (1)"\nPL/pgSQL function public.note(uuid) line 3 at SQL statement',
        "PL/pgSQL function outreach.ct_hub_audit() line 1 at RAISE",
        "PL/pgSQL function hub.ct_guard_new_row() line 1 at RAISE",
        "PL/pgSQL function outreach.ct_guard_company_target() line 1 at RAISE\nPL/pgSQL function note() line 2 at SQL",
    ],
)
def test_a_function_of_the_users_is_told_from_ours(context: str) -> None:
    assert runs_foreign_code(met_in(context))


@pytest.mark.parametrize(
    "context",
    [
        "",
        'while locking tuple (0,1) in relation "company_target"',
        "PL/pgSQL function outreach.ct_guard_new_row() line 60 at RAISE",
        "PL/pgSQL-Funktion ct_guard_outcome() Zeile 3 bei RAISE",
        'SQL function "ct_as_gate_record" statement 2',
        'SQL statement "INSERT INTO outreach.ct_alerts VALUES (1)"',
    ],
)
def test_our_own_functions_are_ours(context: str) -> None:
    assert not runs_foreign_code(met_in(context))
