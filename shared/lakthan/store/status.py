"""Reading: the status of a certificate now, and the authorities that are answered for.

Promises: an answer of `StatusReader.find` was read after the question was asked, never before; all questions of one
turn of the event loop go to the database as one query; who gives up takes nobody else with him.

Trusted: whoever may write these tables can revoke or un-revoke any certificate.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from lakthan.errors import StoreUnavailable
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import AuthorityRecord, CertStatus, CRLReason, CRLSource, StatusRecord
from lakthan.store.told import DatabaseWentBack

if TYPE_CHECKING:
    from collections.abc import Callable

    import asyncpg

    from lakthan.store.told import ToldRevoked

    # Who is told of a status (None: not on record), or of the error instead.
    Tell = Callable[[StatusRecord | None, Exception | None], None]

_MOST_QUERIES = 2
_LOOK_UP = """
    SELECT authority_id, serial_number, cert_status, revocation_time, revocation_reason,
           invalidity_date, not_after, version, certificate_sha256
      FROM unnest($1::int[], $2::bytea[]) AS asked (authority_id, serial_number)
      JOIN certificate_status USING (authority_id, serial_number)
"""


class StatusReader:
    """Looks certificates up. `pool` acts as `lakthan_responder` or `lakthan_registry`. `told`: what may not be taken
    back; whoever asks about such a certificate gets `DatabaseWentBack`.
    """

    def __init__(self, pool: asyncpg.Pool, told: ToldRevoked | None = None) -> None:
        self._pool = pool
        self._told = told
        # Questions not sent yet. A question about the same certificate joins; once sent, a new one has to wait for
        # the next query, because the answer under way may be older than a change that the asker already knows of.
        self._waiting: dict[tuple[int, bytes], list[Tell]] = {}
        self._at_work = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def find(self, authority_id: int, serial_number: bytes) -> StatusRecord | None:
        """The status on record, or None for a certificate that is not. Raises `StoreUnavailable`."""
        found: asyncio.Future[StatusRecord | None] = asyncio.get_running_loop().create_future()

        def tell(record: StatusRecord | None, error: Exception | None) -> None:
            if found.done():  # its waiter has left
                return
            if error is None:
                found.set_result(record)
            else:
                found.set_exception(error)

        self.ask((authority_id, serial_number), tell)
        return await found

    def ask(self, certificate: tuple[int, bytes], tell: Tell) -> None:
        """The same for an authority's id and a serial number; `tell` is called once, in a later turn of the loop."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting.setdefault(certificate, []).append(tell)

    def _send(self) -> None:
        # While two are at work, or with every connection busy, questions gather: fewer and larger queries under
        # load. A query costs this process as much as a dozen of its rows.
        if self._waiting and self._at_work < min(_MOST_QUERIES, self._pool.get_max_size()):
            asked, self._waiting = self._waiting, {}
            self._at_work += 1
            work = asyncio.create_task(self._work(asked))
            self._tasks.add(work)
            work.add_done_callback(self._tasks.discard)

    async def _work(self, asked: dict[tuple[int, bytes], list[Tell]]) -> None:
        """Ask on one connection until nobody waits: to take it from the pool and give it back costs half a query."""
        error: Exception | None = StoreUnavailable("the look-up was given up: shutting down")
        try:
            with unavailable_as_such():
                async with self._pool.acquire() as connection:
                    while asked:
                        asked_at = 0 if self._told is None else self._told.now()
                        rows = await connection.fetch(
                            _LOOK_UP,
                            [authority_id for authority_id, _ in asked],
                            [serial_number for _, serial_number in asked],
                        )
                        found = {record[:2]: record for record in map(status_record, rows)}
                        _tell(self._kept(asked, found, asked_at), found)
                        asked, self._waiting = self._waiting, {}
            error = None
        except Exception as problem:  # noqa: BLE001 - everybody hears of it, whatever it was
            error = problem
        finally:
            self._at_work -= 1
            _tell(asked, {}, error)
            self._send()

    def _kept(
        self, asked: dict[tuple[int, bytes], list[Tell]], found: dict[tuple[int, bytes], StatusRecord], asked_at: int
    ) -> dict[tuple[int, bytes], list[Tell]]:
        """Those asked about of which nothing was taken back; who asks about another hears that at once."""
        if self._told is None:
            return asked
        kept = {}
        for certificate, waiting in asked.items():
            try:
                self._told.check(certificate, found.get(certificate), asked_at)
            except DatabaseWentBack as error:
                _tell({certificate: waiting}, {}, error)
            else:
                kept[certificate] = waiting
        return kept


def _tell(
    asked: dict[tuple[int, bytes], list[Tell]],
    found: dict[tuple[int, bytes], StatusRecord],
    error: Exception | None = None,
) -> None:
    """Tell everybody in a call of his own: the next query leaves first, and a defect of one is nobody else's."""
    loop = asyncio.get_running_loop()
    for certificate, waiting in asked.items():
        record = found.get(certificate)
        for tell in waiting:
            loop.call_soon(tell, record, error)


class AuthorityReader:
    """Loads the authorities. `pool` acts as `lakthan_responder` or `lakthan_registry`."""

    def __init__(self, pool: asyncpg.Pool | asyncpg.Connection) -> None:
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
        row["authority_id"],
        row["serial_number"],
        _CERT_STATUSES[row["cert_status"]],
        row["revocation_time"],
        None if reason is None else CRLReason(reason),
        row["invalidity_date"],
        row["not_after"],
        row["version"],
        row["certificate_sha256"],
    )


_CERT_STATUSES = {status.value: status for status in CertStatus}
