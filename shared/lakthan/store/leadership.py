"""One of several processes does the work: an advisory lock of Postgres says which.

Promises: whoever is inside `leading` is the only one, for as long as his connection lives, and what he writes he writes
through that very connection: when it is lost, so is the lead, and nothing of his can come after his successor's. The
successor waits at the lock and has it at the moment in which the connection ends.

Trusted: everybody who may log in to this database can take the lock, and so keep the work from being done.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from lakthan.store.pool import unavailable_as_such

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

# The first half of every lock of this kind: "pres".
_CLASS = int.from_bytes(b"pres", "big")
# A waiter asks again before his connection gives up; and a leader whose machine has vanished is given up in seconds.
_PREPARE = """
    SET lock_timeout = '5s'; SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 2;
    SET tcp_keepalives_count = 3; SET tcp_user_timeout = '10s'
"""


@asynccontextmanager
async def leading(
    connect: Callable[[], Awaitable[asyncpg.Connection]], what: int, waiting: Callable[[], None] = lambda: None
) -> AsyncIterator[asyncpg.Connection]:
    """Wait until nobody else leads `what` (an authority's id, or 0), then lead until the end of the block, on this
    connection. `waiting` is called when somebody else leads. Raises `StoreUnavailable`, also where the block notices
    that the connection is lost.
    """
    connection = await connect()
    try:
        with unavailable_as_such():
            await connection.execute(_PREPARE)
            if not await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", _CLASS, what):
                waiting()
                while not await _wait(connection, what):
                    pass
        yield connection
    finally:
        # Closing gives the lock back; a connection that does not answer is cut.
        try:
            await connection.close(timeout=2)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()


async def _wait(connection: asyncpg.Connection, what: int) -> bool:
    try:
        await connection.execute("SELECT pg_advisory_lock($1, $2)", _CLASS, what)
    except asyncpg.LockNotAvailableError:
        return False
    return True
