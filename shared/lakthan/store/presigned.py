"""Answers signed ahead: which ones are wanted, and putting them on record.

Promises: an answer comes on record only while the certificate has the status that was signed, and takes the place of
the one before it in the same statement. What has changed is told in the order of the commits, none left out
(`changes`), so whoever has taken in all of them since he looked at everything knows everything.

Instants are the caller's: nothing here asks the database for the time.

Refuses to know: what the octets say, and who may sign them. Trusted: whoever acts as `lakthan_presigner` can have any
octets served for the certificates of any authority that no ceremony speaks for. Clients verify them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lakthan.algorithms import HashAlgorithm
from lakthan.store.changes import refusals_as_such
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import Change
from lakthan.store.status import status_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    import asyncpg

    from lakthan.store.records import CertStatus, StatusRecord

# Of one record of the audit chain; what is more is told as "many".
_MOST_CHANGES = 100_000
_MOST_COUNTED = 100_000
_CHAIN_PAGE = 1000  # records that `changes_after` looks at
HASHES = {
    algorithm.label: algorithm
    for algorithm in (
        HashAlgorithm.SHA_1,
        HashAlgorithm.SHA_224,
        HashAlgorithm.SHA_256,
        HashAlgorithm.SHA_384,
        HashAlgorithm.SHA_512,
    )
}

# With a million rows a plan that was made when there were few would scan them all, again and again.
_PREPARE = "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off"


@dataclass(frozen=True, slots=True)
class PresignedAnswer:
    """A signed OCSPResponse (`response`, DER) about one certificate whose status has the version `status_version`.
    `due_at`: when it is to be signed anew.
    """

    serial_number: bytes
    cert_id_hash: HashAlgorithm
    cert_status: CertStatus
    status_version: int
    produced_at: datetime
    this_update: datetime
    next_update: datetime
    due_at: datetime
    response: bytes


class Wanted(NamedTuple):
    """An answer that is to be signed, about a certificate with this record. `due_at` and `next_update`: of the one that
    is there and says the same, if one is.
    """

    record: StatusRecord
    cert_id_hash: HashAlgorithm
    due_at: datetime | None = None
    next_update: datetime | None = None


class Page(NamedTuple):
    """Of the certificates of an authority, in the order of their serial numbers: how many were looked at, up to which
    one (None: these were the last), and what is wanted for them.
    """

    looked_at: int
    last: bytes | None
    wanted: list[Wanted]


class Changed(NamedTuple):
    """A certificate whose status changed. `at`: shortly before the commit, by the database's clock."""

    serial_number: bytes
    change: Change
    at: datetime


class Changes(NamedTuple):
    """What changed in an authority up to the record `number` of its audit chain. `certificates`: of which each may be
    there several times; `many`: and more than are named; `authority`: itself, or its CRL. `more`: ask again at once.
    """

    number: int
    certificates: list[Changed]
    many: bool
    authority: bool
    more: bool


class Backlog(NamedTuple):
    """What is due: how many (counted up to 100,000), since when the longest, and the earliest nextUpdate of these."""

    answers: int
    longest: datetime | None
    next_update: datetime | None


async def prepare(connection: asyncpg.Connection) -> None:
    """Make a connection ready that is used for nothing but this module. Raises `StoreUnavailable`."""
    with unavailable_as_such():
        await connection.execute(_PREPARE)


class Presigned:
    """`connection` acts as `lakthan_presigner`; for `changes` and `position`, `lakthan_responder` is enough.

    Every method raises `StoreUnavailable`.
    """

    def __init__(self, connection: asyncpg.Pool | asyncpg.Connection) -> None:
        self._connection = connection

    async def register(self, authority_id: int, hashes: Iterable[HashAlgorithm], *, keep_expired: bool) -> None:
        """From now on the answers of this authority are signed ahead, with CertIDs of these hashes, and about expired
        certificates with `keep_expired`. Raises `ChangeRefused` when a ceremony speaks for it.
        """
        labels = sorted(algorithm.label for algorithm in hashes)
        with refusals_as_such(), unavailable_as_such():
            await self._connection.execute("SELECT presign_authority($1, $2, $3)", authority_id, labels, keep_expired)

    async def put(self, authority_id: int, answers: Sequence[PresignedAnswer]) -> int:
        """Put them on record, each in the place of the one before it. Gives how many were not taken because their
        certificate has changed since. Raises `ChangeRefused` when the authority is not registered.
        """
        with refusals_as_such(), unavailable_as_such():
            refused: list[int] = await self._connection.fetchval(
                "SELECT put_presigned($1, $2, $3, $4, $5, $6, $7, $8::text[]::cert_status[], $9, $10)",
                authority_id,
                [answer.serial_number for answer in answers],
                [answer.cert_id_hash.label for answer in answers],
                [answer.produced_at for answer in answers],
                [answer.this_update for answer in answers],
                [answer.next_update for answer in answers],
                [answer.due_at for answer in answers],
                [answer.cert_status.value for answer in answers],
                [answer.status_version for answer in answers],
                [answer.response for answer in answers],
            )
        return len(refused)

    async def drop(self, authority_id: int, answers: Sequence[tuple[bytes, HashAlgorithm]]) -> None:
        """Take the answers about these serial numbers away: nothing may be said of them any more."""
        with unavailable_as_such():
            await self._connection.execute(
                "SELECT drop_presigned($1, $2, $3)",
                authority_id,
                [serial_number for serial_number, _ in answers],
                [algorithm.label for _, algorithm in answers],
            )

    async def due(self, authority_id: int, since: datetime, now: datetime, most: int) -> list[Wanted]:
        """The answers that are due, since that instant or later, the longest due first."""
        with unavailable_as_such():
            rows = await self._connection.fetch(
                """
                SELECT s.authority_id, s.serial_number, s.cert_status, s.revocation_time, s.revocation_reason,
                       s.invalidity_date, s.not_after, s.version, s.certificate_sha256,
                       p.cert_id_hash, p.due_at, p.next_update
                  FROM (SELECT serial_number, cert_id_hash, due_at, next_update FROM published_answer
                         WHERE authority_id = $1 AND due_at BETWEEN $2 AND $3 ORDER BY due_at LIMIT $4) AS p
                  JOIN certificate_status s ON s.authority_id = $1 AND s.serial_number = p.serial_number
                 ORDER BY p.due_at
                """,
                authority_id,
                since,
                now,
                most,
            )
        return [_wanted(row) for row in rows]

    async def missing(
        self,
        authority_id: int,
        after: bytes,
        hashes: Sequence[HashAlgorithm],
        now: datetime,
        *,
        all_revoked: bool,
        most: int,
    ) -> Page:
        """Look at `most` certificates whose serial numbers follow `after`, in the order of the octets. Wanted are those
        without an answer that says what is on record and still holds, and those whose answer holds no longer than until
        it is due, for that may have had a reason that is gone. `all_revoked`: the authority itself is revoked.
        """
        with unavailable_as_such():
            [(looked_at, last)] = await self._connection.fetch(
                """
                SELECT count(*), (array_agg(serial_number))[count(*)]
                  FROM (SELECT serial_number::bytea FROM certificate_status
                         WHERE authority_id = $1 AND serial_number > $2 ORDER BY serial_number LIMIT $3) AS page
                """,
                authority_id,
                after,
                most,
            )
            rows = await self._connection.fetch(
                """
                SELECT s.authority_id, s.serial_number, s.cert_status, s.revocation_time, s.revocation_reason,
                       s.invalidity_date, s.not_after, s.version, s.certificate_sha256,
                       h.cert_id_hash, p.due_at, p.next_update
                  FROM certificate_status s CROSS JOIN unnest($4::text[]) AS h (cert_id_hash)
                  LEFT JOIN LATERAL (
                       SELECT a.due_at, a.next_update FROM published_answer a
                        WHERE a.authority_id = $1 AND a.serial_number = s.serial_number
                          AND a.cert_id_hash = h.cert_id_hash AND a.due_at IS NOT NULL
                          AND a.status_version = s.version AND a.next_update > $5
                          AND a.cert_status = CASE WHEN $6 THEN 'revoked' ELSE s.cert_status END
                        ORDER BY a.next_update DESC LIMIT 1) AS p ON true
                 WHERE s.authority_id = $1 AND s.serial_number > $2 AND s.serial_number <= $3
                   AND (p.next_update IS NULL OR p.due_at >= p.next_update)
                 ORDER BY s.serial_number
                """,
                authority_id,
                after,
                b"" if last is None else last,
                [algorithm.label for algorithm in hashes],
                now,
                all_revoked,
            )
        return Page(looked_at, last if looked_at == most else None, [_wanted(row) for row in rows])

    async def records(self, authority_id: int, serial_numbers: Sequence[bytes]) -> list[StatusRecord]:
        """The statuses of these certificates, of those that are on record."""
        with unavailable_as_such():
            rows = await self._connection.fetch(
                """
                SELECT s.authority_id, s.serial_number, s.cert_status, s.revocation_time, s.revocation_reason,
                       s.invalidity_date, s.not_after, s.version, s.certificate_sha256
                  FROM unnest($2::bytea[]) AS asked (serial_number)
                  JOIN certificate_status s ON s.authority_id = $1 AND s.serial_number = asked.serial_number
                """,
                authority_id,
                serial_numbers,
            )
        return [status_record(row) for row in rows]

    async def announced(
        self, authority_id: int, serial_numbers: Sequence[bytes], hashes: Sequence[HashAlgorithm], now: datetime
    ) -> list[Wanted]:
        """What is wanted for these certificates, of those that are on record: a look at all of them may have found one
        before its announcement was heard, and what has an answer that says what is on record is not signed twice.
        """
        with unavailable_as_such():
            rows = await self._connection.fetch(
                """
                SELECT s.authority_id, s.serial_number, s.cert_status, s.revocation_time, s.revocation_reason,
                       s.invalidity_date, s.not_after, s.version, s.certificate_sha256,
                       h.cert_id_hash, NULL::timestamptz AS due_at, NULL::timestamptz AS next_update
                  FROM unnest($2::bytea[]) AS asked (serial_number)
                  JOIN certificate_status s ON s.authority_id = $1 AND s.serial_number = asked.serial_number
                 CROSS JOIN unnest($3::text[]) AS h (cert_id_hash)
                 WHERE NOT EXISTS (
                       SELECT FROM published_answer a
                        WHERE a.authority_id = $1 AND a.serial_number = s.serial_number
                          AND a.cert_id_hash = h.cert_id_hash AND a.due_at IS NOT NULL
                          AND a.status_version = s.version AND a.next_update > $4)
                """,
                authority_id,
                serial_numbers,
                [algorithm.label for algorithm in hashes],
                now,
            )
        return [_wanted(row) for row in rows]

    async def instant(self) -> datetime:
        """The database's clock."""
        with unavailable_as_such():
            at: datetime = await self._connection.fetchval("SELECT clock_timestamp()")
        return at

    async def certificates(self, authority_id: int) -> int:
        """How many are on record."""
        with unavailable_as_such():
            count: int = await self._connection.fetchval(
                "SELECT count(*) FROM certificate_status WHERE authority_id = $1", authority_id
            )
        return count

    async def backlog(self, authority_id: int, now: datetime) -> Backlog:
        """How much is due."""
        with unavailable_as_such():
            [row] = await self._connection.fetch(
                """
                SELECT count(*), min(due_at), min(next_update)
                  FROM (SELECT due_at, next_update FROM published_answer
                         WHERE authority_id = $1 AND due_at <= $2 ORDER BY due_at LIMIT $3) AS due
                """,
                authority_id,
                now,
                _MOST_COUNTED,
            )
        return Backlog(*row)

    async def position(self, authority_id: int) -> int:
        """The last record of the authority's audit chain; 0 for none. Taken before everything is looked at."""
        with unavailable_as_such():
            number = await self._connection.fetchval("SELECT number FROM audit_head WHERE chain = $1", authority_id)
        return number or 0

    async def changes(self, authority_id: int, after_number: int) -> Changes:
        """What has changed since that record."""
        with unavailable_as_such():
            rows = await self._connection.fetch(
                "SELECT * FROM changes_after($1, $2, $3)", authority_id, after_number, _MOST_CHANGES
            )
        records = {row["number"] for row in rows}
        return Changes(
            max(records, default=after_number),
            [
                Changed(row["serial_number"], Change(row["change"]), row["at"])
                for row in rows
                if row["serial_number"] is not None
            ],
            many=any(row["change_count"] is not None and row["serial_number"] is None for row in rows),
            authority=any(row["change_count"] is None for row in rows),
            more=len(records) >= _CHAIN_PAGE,
        )

    async def beat(self) -> datetime:
        """Write down that a publisher is alive, for those who read a copy of this database; gives the instant."""
        with unavailable_as_such():
            at: datetime = await self._connection.fetchval("SELECT beat()")
        return at


def _wanted(row: asyncpg.Record) -> Wanted:
    """The columns of a status, then those of an answer."""
    return Wanted(status_record(row), HASHES[row["cert_id_hash"]], row["due_at"], row["next_update"])
