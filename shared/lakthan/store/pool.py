"""Connections to Postgres, and the one place that says which of its errors mean "not now".

A service connects as its login user and acts at once as its limited role (`role`), so that a flaw in it can do no
more than the role may. Every connection has time limits on both sides: a database that has stopped answering is
noticed in seconds. Commits wait until they are on disk, whatever the server's default says.

Statements of the store never change session state, so a connection goes back to the pool without the usual reset
query: one round trip per look-up, not two.

Trusted: the server that the URL names, and the network in between unless the URL demands TLS (`sslmode`).
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from lakthan.errors import ConfigError, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

_CONNECT_TIMEOUT_SECONDS = 5
# The server gives up first, so that its reason arrives; the client's limit is for a server that says nothing.
_STATEMENT_TIMEOUT_SECONDS = 10
_COMMAND_TIMEOUT_SECONDS = 12

_UNAVAILABLE = (
    OSError,  # also TimeoutError and every refused or broken connection
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutdown, crash recovery, cancelled statements, "cannot connect now"
    asyncpg.InsufficientResourcesError,  # too many connections, disk full, out of memory
    asyncpg.TransactionRollbackError,  # deadlock, serialization failure: nothing was changed, try again
    asyncpg.PostgresSystemError,  # the server's own I/O errors
    asyncpg.ReadOnlySQLTransactionError,  # we reached a standby
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.LockNotAvailableError,
    asyncpg.InvalidAuthorizationSpecificationError,  # a password changed under a running pool
    asyncpg.InterfaceError,  # pool or connection closed
    asyncpg.InternalClientError,  # what asyncpg says of a connection that broke between two queries
)


@contextmanager
def unavailable_as_such() -> Iterator[None]:
    """Turn whatever says that the database cannot serve now into `StoreUnavailable`; other errors pass."""
    try:
        yield
    except _UNAVAILABLE as error:
        if isinstance(error, ValueError):  # an InterfaceError about a wrong URL or argument: waiting will not help
            raise
        raise StoreUnavailable(f"the database cannot be used now: {str(error) or type(error).__name__}") from error


async def connect(
    url: str, *, role: str | None = None, password: str | None = None, application_name: str, plain: bool = False
) -> asyncpg.Connection:
    """One connection of its own, outside any pool. `plain`: with the settings that the server gives everybody.

    Raises `ConfigError` and `StoreUnavailable`.
    """
    parameters = _parameters(role=role, password=password, application_name=application_name)
    if plain:
        parameters["server_settings"] = {"application_name": application_name}
    with _refusals_explained(role), unavailable_as_such():
        connection: asyncpg.Connection = await asyncpg.connect(url, **parameters)
    return connection


async def open_pool(
    url: str,
    *,
    role: str | None,
    min_size: int,
    max_size: int,
    password: str | None = None,
    application_name: str,
) -> asyncpg.Pool:
    """A pool whose connections all act as `role` (None: as the login user).

    `min_size` connections are opened at once, so that a wrong setting shows now; with 0 the database may come later.
    Raises `ConfigError` when the server refuses these settings, `StoreUnavailable` when there is no server.
    """

    async def leave_as_is(_connection: object) -> None:
        """See the module's docstring: there is nothing to reset."""

    with _refusals_explained(role), unavailable_as_such():
        pool: asyncpg.Pool = await asyncpg.create_pool(
            url,
            min_size=min_size,
            max_size=max_size,
            reset=leave_as_is,
            **_parameters(role=role, password=password, application_name=application_name),
        )
    return pool


def _parameters(*, role: str | None, password: str | None, application_name: str) -> dict[str, Any]:
    server_settings = {
        "application_name": application_name,
        "search_path": "public",
        "timezone": "UTC",
        "synchronous_commit": "on",
        "statement_timeout": f"{_STATEMENT_TIMEOUT_SECONDS}s",
        "lock_timeout": f"{_STATEMENT_TIMEOUT_SECONDS}s",
        "idle_in_transaction_session_timeout": f"{_STATEMENT_TIMEOUT_SECONDS}s",
    }
    if role is not None:
        server_settings["role"] = role
    return {
        "password": password,
        "timeout": _CONNECT_TIMEOUT_SECONDS,
        "command_timeout": _COMMAND_TIMEOUT_SECONDS,
        "server_settings": server_settings,
    }


@contextmanager
def _refusals_explained(role: str | None) -> Iterator[None]:
    """While connecting, the server's "no" is the operator's turn, not a database that is away."""
    try:
        yield
    except (ValueError, asyncpg.InterfaceError) as error:
        raise ConfigError(f"the database URL cannot be used: {error}") from error
    except StoreUnavailable as error:
        if isinstance(error.__cause__, asyncpg.InvalidAuthorizationSpecificationError):
            raise ConfigError(
                f"the database refuses the login: {error.__cause__}; check user and password"
            ) from error.__cause__
        raise
    except asyncpg.InvalidCatalogNameError as error:
        raise ConfigError(f"{error}; create the database, then run `lakthan db migrate`") from error
    except (asyncpg.InvalidParameterValueError, asyncpg.UndefinedObjectError) as error:
        raise ConfigError(
            f"the database does not accept the settings of this service ({error}); when the role {role} is missing, "
            "run `lakthan db migrate`"
        ) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise ConfigError(
            f"the login may not act as {role} ({error}); an administrator can allow it: GRANT {role} TO the login"
        ) from error
