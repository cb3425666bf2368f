"""The errors that are the database's own trouble, and never a company's."""

from __future__ import annotations

import ssl

import asyncpg

from ct_stream.problems import ProblemError, said_by


class UnfitDatabase(ProblemError):
    """The server answers, but outcomes must not be written to it."""


def no_triggers(login: str) -> UnfitDatabase:
    """Return what to say if this login's sessions act as those that apply a replication: most triggers rest then."""
    return UnfitDatabase(
        f"session_replication_role is replica for {login}, so neither your own triggers run nor those that send alerts",
        f"ALTER ROLE {login} RESET session_replication_role, or the same for the database",
    )


#: Run the statement again at once: two batches took locks in opposite orders, or their transactions conflict.
AGAIN = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
#: The database is in trouble, whatever the statement: wait and run again. Never charged to a company.
OUTAGE = (
    OSError,
    TimeoutError,
    UnfitDatabase,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,  # shutdown, crash, query cancelled, cannot connect now
    asyncpg.InsufficientResourcesError,  # disk full, out of memory, too many connections
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InsufficientPrivilegeError,  # a revoked grant is ours to repair
    asyncpg.UndefinedTableError,  # a migration is missing, or it is the wrong database
    asyncpg.UndefinedFunctionError,
    asyncpg.UndefinedColumnError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.PostgresSystemError,
    asyncpg.InternalClientError,  # also: no server is what the DSN's target_session_attrs asks for
    asyncpg.InvalidSQLStatementNameError,  # a pooler was switched to transaction mode
    asyncpg.DuplicatePreparedStatementError,
)

#: The server's own trouble, wherever it is met: also inside somebody's trigger.
OWN_TROUBLE = (
    asyncpg.InsufficientResourcesError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.PostgresSystemError,
)
#: Whatever can go wrong while checking the database: report it and try again.
ANY_TROUBLE = (*OUTAGE, asyncpg.PostgresError)


def sentence_of(error: BaseException) -> str:
    """Return what is wrong with the database, and what to do about it, as a sentence."""
    text = said_by(error)
    match error:
        case TimeoutError():
            return "no answer in time"
        case asyncpg.TargetServerAttributeNotMatched():
            return "no server that is named there is what target_session_attrs asks for (a primary, most often)"
        case asyncpg.TooManyConnectionsError():
            return f"{text}; raise that limit for all workers, or lower CT_POSTGRES_CONNECTIONS"
        case FileNotFoundError() | PermissionError():
            return f"a file that the DSN names (sslrootcert, sslcert, sslkey) cannot be read: {text}"
        case ssl.SSLError() if "PEM" in text:
            return f"sslcert, sslkey or sslrootcert is no PEM file of that kind ({text})"
        case asyncpg.UndefinedObjectError():
            return f"{text}; correct the option of that name in the DSN"
        case ConnectionRefusedError():
            return f"connection refused ({text})"
        case asyncpg.UndefinedTableError() | asyncpg.UndefinedFunctionError() | asyncpg.UndefinedColumnError():
            return (
                f"{_first_line(text)}; run `ct-stream migrate`, and check that outreach.outreach has outreach_id and "
                "domain, and that nobody has renamed a column of company_target or company_target_errors"
            )
        case asyncpg.InsufficientPrivilegeError():
            return f"{_first_line(text)}; run `ct-stream migrate`, which grants what the gate needs"
    return _first_line(text)


def _first_line(text: str) -> str:
    """Return it without the server's details and hints, which are for whoever wrote the statement."""
    return text.splitlines()[0][:300]
