"""The record of every timestamp token, and the epochs that keep serial numbers from repeating.

Promises: when `append` returns, the records are on disk; a serial number is recorded once, ever; nothing of a unit is
recorded after the commit that freezes it. An epoch is given to one start of one time-stamping unit. The partition for a
new month is made when its first token comes.

Trusted: nobody can take a record back through this role, but the owner of the database can drop the whole table.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from lakthan.errors import LakthanError, StoreUnavailable
from lakthan.store.pool import unavailable_as_such

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from lakthan.store.records import TokenRecord

_MICROSECOND = timedelta(microseconds=1)
_FROZEN = "LK004"
_NO_SUCH_MONTH = "LK005"


_COLUMNS = (
    "serial_number",
    "gen_time",
    "policy",
    "hash_algorithm",
    "hashed_message",
    "tsu",
    "clock_state",
    "clock_bound_us",
    "token_sha256",
)


class DuplicateSerial(LakthanError):
    """A serial number is on record already. None of these tokens was recorded, so none may be handed out."""


class TSUFrozen(LakthanError):
    """A unit with tokens among these is frozen. None of them was recorded. `tsu`: its name in the records."""

    def __init__(self, tsu: str) -> None:
        super().__init__(f"the time-stamping unit {tsu} is frozen")
        self.tsu = tsu


class TokenLog:
    """Appends token records. `pool` acts as `lakthan_tsa` and comes from `open_pool`, whose commits are durable."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def append(self, records: Sequence[TokenRecord]) -> None:
        """Record all of them, or none, durably (RFC 3161 §2.1, a unique serial number in each token).

        Raises `DuplicateSerial`, `TSUFrozen` and `StoreUnavailable`; after the last the records may or may not be
        there, as after every broken connection, so the tokens must be thrown away.
        """
        try:
            await self._append(records)
        except asyncpg.CheckViolationError as error:
            if error.constraint_name is not None:
                raise
            # "no partition of relation found": the first tokens of a month.
            for instant in {record.gen_time.replace(day=1): record.gen_time for record in records}.values():
                await self._make_partition(instant)
            await self._append(records)

    async def _append(self, records: Sequence[TokenRecord]) -> None:
        try:
            with unavailable_as_such():
                # COPY costs this process half of what an INSERT with arrays does, and is one statement as well: its
                # triggers run, and it takes all rows or none.
                await self._pool.copy_records_to_table(
                    "timestamp_token", columns=_COLUMNS, records=[_row(record) for record in records]
                )
        except asyncpg.UniqueViolationError as error:
            raise DuplicateSerial(
                "a serial number was given twice; stop this unit, and let it lease a new epoch before it stamps again"
            ) from error
        except asyncpg.PostgresError as error:
            if error.sqlstate == _FROZEN:
                raise TSUFrozen(str(error.detail)) from error
            raise

    async def _make_partition(self, instant: datetime) -> None:
        try:
            with unavailable_as_such():
                await self._pool.execute("SELECT make_token_partition($1)", instant)
        except asyncpg.PostgresError as error:
            if error.sqlstate == _NO_SUCH_MONTH:
                raise StoreUnavailable(str(error)) from error
            raise

    async def frozen(self) -> frozenset[str]:
        """The names of all units that may stamp no more. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            return frozenset(row["tsu"] for row in await self._pool.fetch("SELECT tsu FROM tsu_freeze"))

    async def lease_epoch(self, tsu: str) -> int:
        """A number that no start of any unit had before; `tsu` names the unit. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            epoch: int = await self._pool.fetchval("INSERT INTO serial_epoch (tsu) VALUES ($1) RETURNING epoch", tsu)
        return epoch


def _row(record: TokenRecord) -> tuple[object, ...]:
    """In the order of `_COLUMNS`."""
    return (
        record.serial_number,
        record.gen_time,
        record.policy,
        record.hash_algorithm,
        record.hashed_message,
        record.tsu,
        record.clock_state,
        None if record.clock_bound is None else record.clock_bound // _MICROSECOND,
        record.token_sha256,
    )
