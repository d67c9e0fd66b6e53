"""What operators and auditors do with the token log: list it, freeze a unit, drop months after their retention.

Promises: when `freeze` returns, nothing more of that unit comes on record, in any process, and what is not on record
does not leave. A dropped month is on record as dropped, and no token is ever recorded in it again, so a serial number
stays unique even against those that are gone.

Trusted: whoever may act as `lakthan_registry` can stop a unit for good; the owner of the database can drop the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lakthan.errors import ConfigError
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import TokenRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

_MICROSECOND = timedelta(microseconds=1)
_PREFIX = "timestamp_token_"


@dataclass(frozen=True, slots=True)
class Freeze:
    """A unit that stamps no more. `tsu`: the SHA-256 of its certificate in hexadecimal."""

    tsu: str
    reason: str
    actor: str
    frozen_at: datetime


@dataclass(frozen=True, slots=True)
class Month:
    """A partition of the log: the first instant of its month, and how many tokens are in it."""

    begin: datetime
    tokens: int


class TokenAdmin:
    """Reads the log and freezes units. `pool` acts as `lakthan_registry`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def tokens(
        self,
        begin: datetime,
        end: datetime,
        *,
        tsu: str | None = None,
        clock_worse_than: timedelta | None = None,
    ) -> AsyncIterator[TokenRecord]:
        """Every token with `begin` <= genTime < `end`, oldest first, however many there are.

        `tsu`: of this unit only. `clock_worse_than`: only those whose clock could be further off, or could not tell.
        Raises `StoreUnavailable`.
        """
        with unavailable_as_such():
            async with self._pool.acquire() as connection, connection.transaction(readonly=True):
                # A reader may pause at every page for as long as it likes.
                await connection.execute("SET LOCAL statement_timeout = 0")
                await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
                rows = connection.cursor(
                    """
                    SELECT serial_number, gen_time, policy, hash_algorithm, hashed_message, tsu, clock_state,
                           clock_bound_us, token_sha256
                    FROM timestamp_token
                    WHERE gen_time >= $1 AND gen_time < $2 AND ($3::text IS NULL OR tsu = $3)
                      AND ($4::bigint IS NULL OR clock_bound_us IS NULL OR clock_bound_us > $4)
                    ORDER BY gen_time, serial_number
                    """,
                    begin,
                    end,
                    tsu,
                    None if clock_worse_than is None else clock_worse_than // _MICROSECOND,
                    prefetch=1000,
                )
                async for row in rows:
                    yield _record(row)

    async def freeze(self, tsu: str, reason: str, actor: str) -> tuple[Freeze, bool]:
        """Freeze a unit, for good; gives what is on record, and False when it was frozen before.

        Waits for commits that are under way. Raises `StoreUnavailable`.
        """
        with unavailable_as_such():
            made = await self._pool.fetchrow(
                """
                INSERT INTO tsu_freeze (tsu, reason, actor) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING
                RETURNING tsu, reason, actor, frozen_at
                """,
                tsu,
                reason,
                actor,
            )
            if made is not None:
                return Freeze(**made), True
            [before] = [each for each in await self.freezes() if each.tsu == tsu]
            return before, False

    async def freezes(self) -> list[Freeze]:
        """Every frozen unit, in the order of the freezes. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            rows = await self._pool.fetch("SELECT tsu, reason, actor, frozen_at FROM tsu_freeze ORDER BY frozen_at")
        return [Freeze(**row) for row in rows]


class TokenRetention:
    """Drops months. `connection` belongs to the owner of the database."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def months(self, before: datetime | None = None) -> list[Month]:
        """The months of the log that have ended before this instant, or all. Raises `StoreUnavailable`."""
        found = []
        with unavailable_as_such():
            await self._connection.execute("SET statement_timeout = 0")  # counting takes its time
            for name in await self._partitions():
                begin = datetime.strptime(name, f"{_PREFIX}%Y_%m").replace(tzinfo=UTC)
                if before is None or begin < before:
                    tokens: int = await self._connection.fetchval(f"SELECT count(*) FROM {name}")  # noqa: S608 - no input
                    found.append(Month(begin, tokens))
        return found

    async def drop(self, before: datetime, actor: str) -> list[Month]:
        """Drop every month that ended before this instant, and record who did it; all or nothing.

        `before`: the first instant of a month that has begun. Raises `ConfigError`, and `StoreUnavailable` when
        somebody reads the log at this moment.
        """
        if before != before.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0):
            raise ConfigError("months are dropped whole: name the first month that is to stay, for example 2016-01")
        if before > datetime.now(UTC):
            raise ConfigError("the present month cannot be dropped: units stamp in it")
        with unavailable_as_such():
            async with self._connection.transaction():
                months = await self.months(before)
                names = [f"{_PREFIX}{month.begin:%Y_%m}" for month in months]
                for name in names:
                    await self._connection.execute(f"DROP TABLE {name}")
                await self._connection.execute(
                    "INSERT INTO token_retention (drop_before, partitions, tokens, actor) VALUES ($1, $2, $3, $4)",
                    before,
                    names,
                    sum(month.tokens for month in months),
                    actor,
                )
        return months

    async def _partitions(self) -> list[str]:
        rows = await self._connection.fetch(
            "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'timestamp_token'::regclass"
        )
        return sorted(row["name"] for row in rows)


def _record(row: asyncpg.Record) -> TokenRecord:
    microseconds = row["clock_bound_us"]
    return TokenRecord(
        serial_number=row["serial_number"],
        gen_time=row["gen_time"],
        policy=row["policy"],
        hash_algorithm=row["hash_algorithm"],
        hashed_message=row["hashed_message"],
        tsu=row["tsu"],
        clock_state=row["clock_state"],
        clock_bound=None if microseconds is None else timedelta(microseconds=microseconds),
        token_sha256=row["token_sha256"],
    )
