"""Reading what a responder keeps beside its database, for when that is away: the answers that may be given now or soon.

Promises: only answers that are current (their certificate has not changed since they were published); page by page,
each page in one short statement, so that no vacuum and no replay waits for it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import CertStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import asyncpg

_PAGE = 500

_COLUMNS = """
    p.authority_id, p.serial_number, p.cert_id_hash, p.produced_at, p.this_update, p.next_update, p.published_at,
    p.cert_status, p.response, s.version IS NOT NULL AS current
"""
_STATUS = """
    LEFT JOIN certificate_status s
      ON s.authority_id = p.authority_id AND s.serial_number = p.serial_number AND s.version = p.status_version
"""
_NAMED = f"""
    SELECT {_COLUMNS}
      FROM unnest($1::int[], $2::bytea[], $3::text[]) AS a (authority_id, serial_number, cert_id_hash)
      JOIN published_answer p USING (authority_id, serial_number, cert_id_hash) {_STATUS}
     WHERE p.next_update > $4 AND p.this_update <= $5
"""  # noqa: S608 - texts of ours
_ALL = f"""
    SELECT {_COLUMNS}
      FROM (SELECT * FROM published_answer
             WHERE authority_id = $1 AND (serial_number, cert_id_hash, this_update) > ($2, $3, $4)
               AND next_update > $5 AND this_update <= $6
             ORDER BY serial_number, cert_id_hash, this_update LIMIT {_PAGE}) AS p {_STATUS}
     ORDER BY p.serial_number, p.cert_id_hash, p.this_update
"""  # noqa: S608 - as above
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class AnswerKey(NamedTuple):
    """What a published answer is found by; `cert_id_hash` as the store spells it."""

    authority_id: int
    serial_number: bytes
    cert_id_hash: str


class KeptAnswer(msgspec.Struct, frozen=True, array_like=True, tag="answer", gc=False):
    """A row of `published_answer`, as it goes into a file."""

    authority_id: int
    serial_number: bytes
    cert_id_hash: str
    produced_at: datetime
    this_update: datetime
    next_update: datetime
    published_at: datetime
    cert_status: CertStatus
    response: bytes

    @property
    def key(self) -> AnswerKey:
        """What it is found by."""
        return AnswerKey(self.authority_id, self.serial_number, self.cert_id_hash)


class KeptReader:
    """`pool` acts as `lakthan_responder`. `now` and `until`: an answer counts that holds at one of the instants between
    them. All raise `StoreUnavailable`.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def named(self, keys: Sequence[AnswerKey], now: datetime, until: datetime) -> AsyncIterator[list[KeptAnswer]]:
        """The answers of these keys that there are."""
        for first in range(0, len(keys), _PAGE):
            page = keys[first : first + _PAGE]
            yield _answers(await self._fetch(_NAMED, *map(list, zip(*page, strict=True)), now, until))

    async def all_of(self, authority_id: int, now: datetime, until: datetime) -> AsyncIterator[list[KeptAnswer]]:
        """Every answer of an authority, in the order of its serial numbers."""
        after: tuple[bytes, str, datetime] = (b"", "", _BEGINNING)
        while rows := await self._fetch(_ALL, authority_id, *after, now, until):
            yield _answers(rows)
            after = (rows[-1]["serial_number"], rows[-1]["cert_id_hash"], rows[-1]["this_update"])

    async def _fetch(self, query: str, *values: object) -> list[asyncpg.Record]:
        with unavailable_as_such():
            return await self._pool.fetch(query, *values)


def _answers(rows: Sequence[asyncpg.Record]) -> list[KeptAnswer]:
    return [
        KeptAnswer(
            row["authority_id"],
            row["serial_number"],
            row["cert_id_hash"],
            row["produced_at"],
            row["this_update"],
            row["next_update"],
            row["published_at"],
            CertStatus(row["cert_status"]),
            row["response"],
        )
        for row in rows
        if row["current"]
    ]
