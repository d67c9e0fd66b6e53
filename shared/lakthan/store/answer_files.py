"""Published answers, many at a time: for whoever writes them elsewhere.

Promises: what is given says what is on record about its certificate, and holds at the instant asked for; of several
answers about one certificate and hash the one that was published last.

Trusted: as `lakthan.store.published`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lakthan.store.pool import unavailable_as_such
from lakthan.store.presigned import HASHES
from lakthan.store.records import CertStatus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import asyncpg

    from lakthan.algorithms import HashAlgorithm


class Outline(NamedTuple):
    """An answer without its octets. `size`: how many these are."""

    serial_number: bytes
    cert_id_hash: HashAlgorithm
    cert_status: CertStatus
    this_update: datetime
    next_update: datetime
    size: int


class AnswerReader:
    """`pool` acts as `lakthan_responder` or `lakthan_presigner`. Every method raises `StoreUnavailable`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def count(self, authority_id: int) -> int:
        """How many rows there are, about; for a progress bar."""
        with unavailable_as_such():
            count: int = await self._pool.fetchval(
                "SELECT count(*) FROM published_answer WHERE authority_id = $1", authority_id
            )
        return count

    async def page(self, authority_id: int, after: tuple[bytes, str], now: datetime, most: int) -> list[Outline]:
        """The next answers behind that serial number and hash label, in this order."""
        with unavailable_as_such():
            rows = await self._pool.fetch(
                """
                SELECT DISTINCT ON (p.serial_number, p.cert_id_hash) p.serial_number, p.cert_id_hash, p.cert_status,
                       p.this_update, p.next_update, octet_length(p.response) AS size
                  FROM published_answer p
                  JOIN certificate_status s ON s.authority_id = p.authority_id AND s.serial_number = p.serial_number
                                           AND s.version = p.status_version
                 WHERE p.authority_id = $1 AND (p.serial_number, p.cert_id_hash) > ($2, $3)
                   AND p.this_update <= $4 AND p.next_update > $4
                 ORDER BY p.serial_number, p.cert_id_hash, p.published_at DESC, p.this_update DESC LIMIT $5
                """,
                authority_id,
                *after,
                now,
                most,
            )
        return [_outline(row) for row in rows]

    async def about(self, authority_id: int, serial_numbers: Sequence[bytes], now: datetime) -> list[Outline]:
        """The answers about these certificates."""
        with unavailable_as_such():
            rows = await self._pool.fetch(
                """
                SELECT DISTINCT ON (p.serial_number, p.cert_id_hash) p.serial_number, p.cert_id_hash, p.cert_status,
                       p.this_update, p.next_update, octet_length(p.response) AS size
                  FROM published_answer p
                  JOIN certificate_status s ON s.authority_id = p.authority_id AND s.serial_number = p.serial_number
                                           AND s.version = p.status_version
                 WHERE p.authority_id = $1 AND p.serial_number = ANY ($2)
                   AND p.this_update <= $3 AND p.next_update > $3
                 ORDER BY p.serial_number, p.cert_id_hash, p.published_at DESC, p.this_update DESC
                """,
                authority_id,
                serial_numbers,
                now,
            )
        return [_outline(row) for row in rows]

    async def responses(self, authority_id: int, outlines: Sequence[Outline]) -> list[tuple[Outline, bytes]]:
        """The octets of these answers, of those that are still there."""
        by_key = {(each.serial_number, each.cert_id_hash.label, each.this_update): each for each in outlines}
        with unavailable_as_such():
            rows = await self._pool.fetch(
                """
                SELECT p.serial_number, p.cert_id_hash, p.this_update, p.response
                  FROM unnest($2::bytea[], $3::text[], $4::timestamptz[])
                       AS asked (serial_number, cert_id_hash, this_update)
                  JOIN published_answer p ON p.authority_id = $1 AND p.serial_number = asked.serial_number
                                         AND p.cert_id_hash = asked.cert_id_hash
                                         AND p.this_update = asked.this_update
                """,
                authority_id,
                *([key[part] for key in by_key] for part in range(3)),
            )
        return [
            (by_key[row["serial_number"], row["cert_id_hash"], row["this_update"]], row["response"]) for row in rows
        ]


def _outline(row: asyncpg.Record) -> Outline:
    return Outline(
        row["serial_number"],
        HASHES[row["cert_id_hash"]],
        CertStatus(row["cert_status"]),
        row["this_update"],
        row["next_update"],
        row["size"],
    )
