"""What stands between a person's question and its answer, in one line?"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncpg
from aiokafka.errors import KafkaError

from ct_stream.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator


class ServiceTrouble(Exception):
    """A service does not answer, or cannot do what was asked; the message is one line that says what to do."""


class WrongInput(Exception):
    """What a person gave cannot be used; one line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class NotSupported(ServiceTrouble):
    """The broker cannot tell; a wrong number would be worse than none."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: not supported by this broker; ask an Apache Kafka cluster")


@contextmanager
def postgres_answers(setting: str) -> Iterator[None]:
    """Turn what a database that `setting` names can do to us into one line."""
    try:
        yield
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        raise SettingsError(
            [f"{setting} is refused by Postgres: {_line(error)}; correct its login or database"]
        ) from error
    except asyncpg.UndefinedTableError as error:
        raise ServiceTrouble(f"Postgres: {_line(error)}; run `ct-stream migrate`, or name another database") from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise ServiceTrouble(
            f"Postgres: {_line(error)}; {setting} needs another role, or run `ct-stream migrate`"
        ) from error
    except (OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
        raise ServiceTrouble(f"Postgres ({setting}) does not answer: {_line(error)}") from error
    except asyncpg.PostgresError as error:
        raise ServiceTrouble(f"Postgres: {_line(error)}") from error


@contextmanager
def kafka_answers(bootstrap: str | None) -> Iterator[None]:
    """Turn what brokers can do to us into one line."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise ServiceTrouble(
            f"Kafka at {bootstrap} does not answer: {_line(error)}; check CT_KAFKA_BOOTSTRAP"
        ) from error


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:300] or type(error).__name__
