"""The errors that are the database's own trouble, and never a company's."""

from __future__ import annotations

import asyncpg

from ct_stream.problems import ProblemError


class UnfitDatabase(ProblemError):
    """The server answers, but outcomes must not be written to it."""


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
    asyncpg.InternalClientError,
    asyncpg.InvalidSQLStatementNameError,  # a pooler was switched to transaction mode
    asyncpg.DuplicatePreparedStatementError,
)
