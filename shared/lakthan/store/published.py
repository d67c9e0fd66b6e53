"""Answers signed elsewhere or ahead: given out as they are; those of a ceremony are put on record here.

Promises: answers are published all or none, and only while they say what is on record about their certificates; what
`find` gives is the newest that is valid at the instant asked for, and says whether the certificate has changed since.
Those that a publisher signs ahead (`lakthan.store.presigned`) are looked up in the same way.

Refuses to know: what the octets say. Whoever publishes has verified them.

Trusted: whoever may act for an authority can have any octets served about its certificates. Clients verify them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import TYPE_CHECKING, cast

from lakthan.store.acting import acting
from lakthan.store.changes import refusals_as_such
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import CertStatus, CRLReason, StatusRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import asyncpg

    from lakthan.algorithms import HashAlgorithm
    from lakthan.store.told import ToldRevoked


# While a publisher is behind with an answer, it is asked for again after this long.
_LOOK_AGAIN = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class PublishedAnswer:
    """A signed OCSPResponse (`response`, DER) about one certificate, with what it says, in whole seconds UTC."""

    serial_number: bytes
    cert_id_hash: HashAlgorithm
    cert_status: CertStatus
    produced_at: datetime
    this_update: datetime
    next_update: datetime
    response: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """An answer that may be given now. `newest_until`: when it ends, or another of the certificate begins or is due."""

    answer: PublishedAnswer
    newest_until: datetime


class Standing(Enum):
    """What there is about a certificate. CURRENT: a valid answer. OUTDATED: one, but the certificate has changed since.
    NOT_NOW: only answers for other times. NOT_YET: none, but the publisher owes one. NONE: no answer at all.
    """

    CURRENT = "current"
    OUTDATED = "outdated"
    NOT_NOW = "not now"
    NOT_YET = "not yet"
    NONE = "none"


class AnswerPublisher:
    """Publishes. `pool` acts as `lakthan_registry`, or as `lakthan_publisher` with `acting_for`."""

    def __init__(self, pool: asyncpg.Pool, acting_for: int | None = None) -> None:
        self._pool = pool
        self._acting_for = acting_for

    async def publish(
        self,
        authority_id: int,
        answers: Sequence[PublishedAnswer],
        actor: str,
        *,
        through: str = "cli",
        detail: Mapping[str, str] | None = None,
    ) -> int:
        """Publish all of them or none, and give how many are new; those that are there already stay.

        Responders hear of it, and it is in the audit chain, with `through` and `detail`. Raises `ChangeRefused` when
        one of them does not say what is on record, or is older than the one that is there; and `StoreUnavailable`.
        """
        with refusals_as_such(), unavailable_as_such():
            async with acting(
                self._pool, authority_id=self._acting_for, actor=actor, through=through, detail=detail
            ) as connection:
                count = await connection.fetchval(
                    "SELECT publish_answers($1, $2, $3, $4, $5, $6, $7::text[]::cert_status[], $8, $9)",
                    authority_id,
                    [answer.serial_number for answer in answers],
                    [answer.cert_id_hash.label for answer in answers],
                    [answer.produced_at for answer in answers],
                    [answer.this_update for answer in answers],
                    [answer.next_update for answer in answers],
                    [answer.cert_status.value for answer in answers],
                    [answer.response for answer in answers],
                    actor,
                )
        return cast("int", count)


class PublishedReader:
    """Looks answers up. `pool` acts as `lakthan_responder` or `lakthan_registry`. `told`: what may not be taken
    back.
    """

    def __init__(self, pool: asyncpg.Pool, told: ToldRevoked | None = None) -> None:
        self._pool = pool
        self._told = told

    async def find(
        self, authority_id: int, serial_number: bytes, cert_id_hash: HashAlgorithm, now: datetime
    ) -> tuple[Standing, Found | None]:
        """The answer for `now`, only with CURRENT; of several the one published last. Raises `StoreUnavailable`."""
        asked_at = 0 if self._told is None else self._told.now()
        with unavailable_as_such():
            row = await self._pool.fetchrow(
                """
                SELECT p.*, p.status_version = s.version AS current,
                       s.version, s.cert_status AS on_record, s.revocation_reason,
                       least(p.next_update, CASE WHEN p.due_at IS NOT NULL THEN greatest(p.due_at, $5) END,
                             (SELECT min(later.this_update) FROM published_answer later
                               WHERE later.authority_id = $1 AND later.serial_number = $2
                                 AND later.cert_id_hash = $3 AND later.this_update > $4)) AS newest_until,
                       EXISTS (SELECT FROM presigned_authority a
                                WHERE a.authority_id = $1 AND $3 = ANY (a.cert_id_hashes)
                                  AND s.version IS NOT NULL
                                  AND (a.keep_expired OR coalesce(s.not_after >= $4, true))) AS owed
                  FROM (VALUES (true)) AS one (row)
                  LEFT JOIN certificate_status s ON s.authority_id = $1 AND s.serial_number = $2
                  LEFT JOIN LATERAL (
                       SELECT q.this_update <= $4 AND q.next_update > $4 AS valid, q.*
                         FROM published_answer q
                        WHERE q.authority_id = $1 AND q.serial_number = $2 AND q.cert_id_hash = $3
                        ORDER BY valid DESC, (q.status_version = s.version) DESC NULLS LAST,
                                 q.published_at DESC, q.this_update DESC
                        LIMIT 1) AS p ON true
                """,
                authority_id,
                serial_number,
                cert_id_hash.label,
                now,
                now + _LOOK_AGAIN,
            )
        if self._told is not None and row is not None:
            self._told.check((authority_id, serial_number), _on_record(authority_id, serial_number, row), asked_at)
        if row is None or row["valid"] is None:
            return (Standing.NOT_YET if row is not None and row["owed"] else Standing.NONE), None
        if not row["valid"]:
            return Standing.NOT_NOW, None
        if not row["current"]:
            return Standing.OUTDATED, None
        answer = PublishedAnswer(
            serial_number=row["serial_number"],
            cert_id_hash=cert_id_hash,
            cert_status=CertStatus(row["cert_status"]),
            produced_at=row["produced_at"],
            this_update=row["this_update"],
            next_update=row["next_update"],
            response=row["response"],
        )
        return Standing.CURRENT, Found(answer, row["newest_until"])

    async def last_until(self) -> dict[str, datetime]:
        """For each authority with published answers, by its name, when the last of them ends: before that the next
        ones are due. Raises `StoreUnavailable`.
        """
        with unavailable_as_such():
            rows = await self._pool.fetch(
                """
                SELECT a.name, max(p.next_update) AS until
                  FROM published_answer p JOIN authority a ON a.id = p.authority_id GROUP BY a.name
                """
            )
        return {row["name"]: row["until"] for row in rows}


def _on_record(authority_id: int, serial_number: bytes, row: asyncpg.Record) -> StatusRecord | None:
    """Of the certificate's record, what a promise about it depends on."""
    if row["version"] is None:
        return None
    reason = None if row["revocation_reason"] is None else CRLReason(row["revocation_reason"])
    cert_status = CertStatus(row["on_record"])
    return StatusRecord(authority_id, serial_number, cert_status, None, reason, None, None, row["version"])
