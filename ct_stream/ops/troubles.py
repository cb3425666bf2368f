"""Errors of the commands: a service that does not answer, or input that cannot be used."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import asyncpg
from aiokafka.errors import KafkaError

from ct_stream.problems import ProblemError, said_by
from ct_stream.settings import SettingsError, WrongSetting
from ct_stream.store.connecting import UnusablePooler, WrongLogin
from ct_stream.store.outage import sentence_of
from ct_stream.stream.refusals import explain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from ct_stream.settings import Settings


class ServiceTrouble(ProblemError):
    """A service does not answer, or cannot do what was asked."""


class WrongInput(Exception):
    """The input cannot be used; one line for each problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class NotSupported(ServiceTrouble):
    """This broker does not know the answer; a wrong number would be worse than none."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: not supported by this broker", "ask an Apache Kafka cluster")


@contextmanager
def postgres_answers(setting: str) -> Iterator[None]:
    """Turn the errors of the database that `setting` names into SettingsError or ServiceTrouble."""
    try:
        yield
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError) as error:
        refused = WrongSetting(
            setting=setting, what=f"is refused by Postgres: {_line(error)}", action="correct its login or database"
        )
        raise SettingsError([refused]) from error
    except (UnusablePooler, WrongLogin) as error:
        refused = WrongSetting(setting=setting, what=error.problem.what, action=error.problem.action)
        raise SettingsError([refused]) from error
    except asyncpg.UndefinedTableError as error:
        raise ServiceTrouble(
            f"Postgres: {_line(error)}", "run `ct-stream migrate`, or name another database"
        ) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise ServiceTrouble(
            f"Postgres: {_line(error)}", f"{setting} needs another role, or run `ct-stream migrate`"
        ) from error
    except asyncpg.TargetServerAttributeNotMatched as error:
        raise ServiceTrouble(f"Postgres ({setting}): {sentence_of(error)}") from error
    except (
        OSError, TimeoutError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError
    ) as error:  # fmt: skip
        raise ServiceTrouble(f"Postgres ({setting}) does not answer: {_line(error)}") from error
    except asyncpg.PostgresError as error:
        raise ServiceTrouble(f"Postgres: {_line(error)}") from error


@asynccontextmanager
async def kafka_answers(settings: Settings) -> AsyncIterator[None]:
    """Turn the errors of brokers into ServiceTrouble that says what refuses us."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        problem = await explain(settings, error)
        raise ServiceTrouble(problem.what, problem.action) from error


def _line(error: BaseException) -> str:
    return said_by(error).split("\n", 1)[0][:300]
