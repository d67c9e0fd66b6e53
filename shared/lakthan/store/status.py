"""Reading: the status of a certificate now, and the authorities that are answered for.

Promises: an answer of `StatusReader.find` was read after the question was asked, never before; all questions of one
turn of the event loop go to the database as one query; a waiter that is cancelled takes nobody else with it.

Trusted: whoever may write these tables can revoke or un-revoke any certificate.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lakthan.errors import StoreUnavailable
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import AuthorityRecord, CertStatus, CRLReason, CRLSource, StatusRecord

if TYPE_CHECKING:
    import asyncpg

_MOST_QUERIES = 2


class StatusReader:
    """Looks certificates up. `pool` acts as `lakthan_responder` or `lakthan_registry`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        # Questions not sent yet. A question about the same certificate joins; once sent, a new one has to wait for
        # the next query, because the answer under way may be older than a change that the asker already knows of.
        self._waiting: dict[tuple[int, bytes], list[asyncio.Future[StatusRecord | None]]] = {}
        self._queries: set[asyncio.Task[None]] = set()

    async def find(self, authority_id: int, serial_number: bytes) -> StatusRecord | None:
        """The status on record, or None for a certificate that is not. Raises `StoreUnavailable`."""
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        # One future for each who waits: to give up is then nobody else's business.
        answer: asyncio.Future[StatusRecord | None] = loop.create_future()
        self._waiting.setdefault((authority_id, serial_number), []).append(answer)
        return await answer

    def _send(self) -> None:
        # While two are under way, or with every connection busy, questions gather: fewer and larger queries under
        # load. A query costs this process as much as a dozen of its rows.
        if self._waiting and len(self._queries) < min(_MOST_QUERIES, self._pool.get_max_size()):
            asked, self._waiting = self._waiting, {}
            query = asyncio.create_task(self._ask(asked))
            self._queries.add(query)
            query.add_done_callback(self._done)

    def _done(self, query: asyncio.Task[None]) -> None:
        self._queries.discard(query)
        self._send()

    async def _ask(self, asked: dict[tuple[int, bytes], list[asyncio.Future[StatusRecord | None]]]) -> None:
        try:
            with unavailable_as_such():
                rows = await self._pool.fetch(
                    """
                    SELECT authority_id, serial_number, cert_status, revocation_time, revocation_reason,
                           invalidity_date, not_after, version, certificate_sha256
                      FROM unnest($1::int[], $2::bytea[]) AS asked (authority_id, serial_number)
                      JOIN certificate_status USING (authority_id, serial_number)
                    """,
                    [authority_id for authority_id, _ in asked],
                    [serial_number for _, serial_number in asked],
                )
            found = {(row["authority_id"], row["serial_number"]): status_record(row) for row in rows}
        except BaseException as error:
            # Every waiter hears of it, whatever it was; a cancelled query means that the service is going down.
            told = (
                error if isinstance(error, Exception) else StoreUnavailable("the look-up was given up: shutting down")
            )
            for answers in asked.values():
                for answer in answers:
                    if not answer.done():  # its waiter may have left
                        answer.set_exception(told)
            if told is not error:
                raise
        else:
            for key, answers in asked.items():
                record = found.get(key)
                for answer in answers:
                    if not answer.done():
                        answer.set_result(record)


class AuthorityReader:
    """Loads the authorities. `pool` acts as `lakthan_responder` or `lakthan_registry`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def load(self) -> list[AuthorityRecord]:
        """Every authority with all its names, keys and certificates, in the order of their ids.

        Raises `StoreUnavailable`.
        """
        with unavailable_as_such():
            rows = await self._pool.fetch(
                """
                SELECT a.id, a.name, a.revocation_time, a.revocation_reason, crl.*,
                       ARRAY(SELECT n.name FROM authority_name n WHERE n.authority_id = a.id ORDER BY n.name) AS names,
                       ARRAY(SELECT k.public_key FROM authority_key k
                              WHERE k.authority_id = a.id ORDER BY k.public_key) AS public_keys,
                       ARRAY(SELECT c.certificate FROM authority_certificate c
                              WHERE c.authority_id = a.id ORDER BY c.added_at, c.certificate) AS certificates
                  FROM authority a LEFT JOIN authority_crl crl ON crl.authority_id = a.id
                 ORDER BY a.id
                """
            )
        return [_authority_record(row) for row in rows]


def _authority_record(row: asyncpg.Record) -> AuthorityRecord:
    reason = row["revocation_reason"]
    return AuthorityRecord(
        id=row["id"],
        name=row["name"],
        names=tuple(row["names"]),
        public_keys=tuple(row["public_keys"]),
        certificates=tuple(row["certificates"]),
        revocation_time=row["revocation_time"],
        revocation_reason=None if reason is None else CRLReason(reason),
        crl=None
        if row["this_update"] is None
        else CRLSource(row["url"], row["crl_number"], row["this_update"], row["next_update"]),
    )


def status_record(row: asyncpg.Record) -> StatusRecord:
    """The value of a row of `certificate_status`."""
    reason = row["revocation_reason"]
    return StatusRecord(
        authority_id=row["authority_id"],
        serial_number=row["serial_number"],
        cert_status=CertStatus(row["cert_status"]),
        revocation_time=row["revocation_time"],
        revocation_reason=None if reason is None else CRLReason(reason),
        invalidity_date=row["invalidity_date"],
        not_after=row["not_after"],
        version=row["version"],
        certificate_sha256=row["certificate_sha256"],
    )
