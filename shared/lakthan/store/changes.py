"""Writing: status changes and authorities. The database decides what is allowed; this module asks and translates.

Promises: the changes of one call are recorded all or none; a change and the notification of it are committed
together; when a call returns, the change is on disk. Versions of one certificate grow with every change.

Refuses to know: who may change what. The caller has authenticated the `actor` and checked that.

Trusted: the actor's name is written down as the caller gives it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import asyncpg

from lakthan.certificates import CertificateView
from lakthan.errors import LakthanError
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import AuthorityRecord, Change, ChangeRequest, CRLReason, CRLSource, StatusChange
from lakthan.store.status import AuthorityReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime

# SQLSTATE class of the refusals that the schema itself raises.
_REFUSAL_CLASS = "LK"
# Serialises `add_authority` between all writers; any number that nobody else uses in this database.
_AUTHORITY_LOCK = int.from_bytes(b"authorit", "big")


class ChangeRefused(LakthanError):
    """The change is not allowed or not well formed. Nothing was recorded; the message says why and what to do."""


class ChangeWriter:
    """Records changes. `pool` acts as `lakthan_registry`. OCSP-59, OCSP-86."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def record(self, changes: Sequence[ChangeRequest], actor: str) -> list[int]:
        """Record all of them or none, and give the version of each.

        A certificate that is announced a second time in the same words changes nothing and gives the version it
        already has. Raises `ChangeRefused` and `StoreUnavailable`.
        """
        versions = [0] * len(changes)
        # Everybody locks in the same order, so that two batches cannot wait for each other. The sort is stable:
        # several changes of one certificate keep their order.
        order = sorted(range(len(changes)), key=lambda at: (changes[at].authority_id, changes[at].serial_number))
        with _refusals_as_such(), unavailable_as_such():
            async with self._pool.acquire() as connection, connection.transaction():
                for at in order:
                    versions[at] = await _record_one(connection, changes[at], actor)
        return versions

    async def issue(
        self,
        authority_id: int,
        serial_number: bytes,
        *,
        not_after: datetime | None = None,
        certificate_sha256: bytes | None = None,
        actor: str,
    ) -> int:
        """Announce a certificate: from now on it is good. Gives the version; raises as `record` does."""
        request = ChangeRequest(
            authority_id, serial_number, Change.ISSUE, not_after=not_after, certificate_sha256=certificate_sha256
        )
        return (await self.record([request], actor))[0]

    async def revoke(
        self,
        authority_id: int,
        serial_number: bytes,
        *,
        reason: CRLReason | None = None,
        revocation_time: datetime | None = None,
        invalidity_date: datetime | None = None,
        actor: str,
    ) -> int:
        """Revoke a certificate for good, also one that was never announced. Gives the version; raises as `record`."""
        request = ChangeRequest(
            authority_id, serial_number, Change.REVOKE, revocation_time, reason, invalidity_date=invalidity_date
        )
        return (await self.record([request], actor))[0]

    async def hold(
        self, authority_id: int, serial_number: bytes, *, revocation_time: datetime | None = None, actor: str
    ) -> int:
        """Suspend a good certificate. Gives the version; raises as `record` does."""
        request = ChangeRequest(authority_id, serial_number, Change.HOLD, revocation_time)
        return (await self.record([request], actor))[0]

    async def unhold(self, authority_id: int, serial_number: bytes, *, actor: str) -> int:
        """Make a suspended certificate good again. Gives the version; raises as `record` does."""
        return (await self.record([ChangeRequest(authority_id, serial_number, Change.UNHOLD)], actor))[0]

    async def history(self, authority_id: int, serial_number: bytes) -> list[StatusChange]:
        """Every change of one certificate, oldest first. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            rows = await self._pool.fetch(
                """
                SELECT version, authority_id, serial_number, change, revocation_time, revocation_reason,
                       invalidity_date, not_after, certificate_sha256, actor, recorded_at
                  FROM status_change
                 WHERE authority_id = $1 AND serial_number = $2
                 ORDER BY version
                """,
                authority_id,
                serial_number,
            )
        return [_status_change(row) for row in rows]

    async def add_authority(self, name: str, certificates: Sequence[bytes], extra_names: Sequence[bytes] = ()) -> int:
        """Add an authority, or more certificates, keys and names to the one of this name; gives its id.

        `certificates`: the authority's own, DER, for its current and its earlier keys; their subjects and keys are
        what CertIDs are matched with. `extra_names`: other encodings of its Name that stand as issuer in
        certificates. What is there already stays and is not added twice.

        Raises `ChangeRefused` when another authority already has one of the names together with one of the keys, for
        then a CertID could mean either; and `StoreUnavailable`.
        """
        try:
            views = [CertificateView.from_der(certificate) for certificate in certificates]
        except ValueError as error:
            raise ChangeRefused(f"authority {name}: a certificate cannot be read ({error}); give it as DER") from error
        names = [*(view.subject for view in views), *extra_names]
        with _refusals_as_such(), unavailable_as_such():
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", _AUTHORITY_LOCK)
                found: int | None = await connection.fetchval("SELECT id FROM authority WHERE name = $1", name)
                if found is None:
                    if not views:
                        raise ChangeRefused(f"authority {name} is new: give at least one certificate of it")
                    found = await connection.fetchval("INSERT INTO authority (name) VALUES ($1) RETURNING id", name)
                authority_id = cast("int", found)
                for table, column, values in (
                    ("authority_name", "name", names),
                    ("authority_key", "public_key", [view.public_key for view in views]),
                    ("authority_certificate", "certificate", certificates),
                ):
                    await connection.execute(
                        f"INSERT INTO {table} (authority_id, {column}) "
                        "SELECT $1, unnest($2::bytea[]) ON CONFLICT DO NOTHING",
                        authority_id,
                        values,
                    )
                other = await connection.fetchval(
                    """
                    SELECT a.name
                      FROM authority_name mine
                      JOIN authority_name theirs USING (name)
                      JOIN authority_key my_key ON my_key.authority_id = mine.authority_id
                      JOIN authority_key their_key ON their_key.authority_id = theirs.authority_id
                                                  AND their_key.public_key = my_key.public_key
                      JOIN authority a ON a.id = theirs.authority_id
                     WHERE mine.authority_id = $1 AND theirs.authority_id <> $1
                     LIMIT 1
                    """,
                    authority_id,
                )
                if other is not None:
                    raise ChangeRefused(
                        f"authority {name} shares a name and a key with the authority {other}; a CertID could mean "
                        "either, so use that one"
                    )
        return authority_id

    async def revoke_authority(self, name: str, *, reason: CRLReason, revocation_time: datetime) -> None:
        """Record that the CA itself is revoked or compromised: from now on every certificate of it is answered as
        revoked (RFC 6960 §2.7). Final. Raises `ChangeRefused` and `StoreUnavailable`.
        """
        with _refusals_as_such(), unavailable_as_such():
            changed = await self._pool.execute(
                """
                UPDATE authority SET revocation_time = date_trunc('second', $2::timestamptz), revocation_reason = $3
                 WHERE name = $1 AND revocation_time IS NULL AND $2 <= now()
                """,
                name,
                revocation_time,
                reason.value,
            )
        if changed != "UPDATE 1":
            raise ChangeRefused(
                f"authority {name} is not on record, or is revoked already, or the time lies in the future"
            )

    async def set_crl(self, authority_id: int, crl: CRLSource) -> None:
        """Record the CRL that the statuses of an authority come from. Raises `ChangeRefused`, `StoreUnavailable`."""
        with _refusals_as_such(), unavailable_as_such():
            await self._pool.execute(
                """
                INSERT INTO authority_crl (authority_id, url, crl_number, this_update, next_update)
                VALUES ($1, $2, $3, $4, $5)
                ON CONFLICT (authority_id) DO UPDATE
                   SET (url, crl_number, this_update, next_update)
                     = (excluded.url, excluded.crl_number, excluded.this_update, excluded.next_update)
                """,
                authority_id,
                crl.url,
                crl.crl_number,
                crl.this_update,
                crl.next_update,
            )

    async def find_authority(self, name: str) -> AuthorityRecord | None:
        """The authority of that name, or None. Raises `StoreUnavailable`."""
        return next((found for found in await self.authorities() if found.name == name), None)

    async def authorities(self) -> list[AuthorityRecord]:
        """Every authority on record. Raises `StoreUnavailable`."""
        return await AuthorityReader(self._pool).load()

    async def find_issuers(self, issuer: bytes) -> list[AuthorityRecord]:
        """The authorities that one of a certificate's issuer Names (its DER) stands for; several when they share it.

        Raises `StoreUnavailable`.
        """
        return [found for found in await self.authorities() if issuer in found.names]


async def _record_one(connection: asyncpg.pool.PoolConnectionProxy, request: ChangeRequest, actor: str) -> int:
    reason = request.revocation_reason
    version = await connection.fetchval(
        """
        INSERT INTO status_change (authority_id, serial_number, change, revocation_time, revocation_reason,
                                   invalidity_date, not_after, certificate_sha256, actor)
        VALUES ($1, $2, $3, date_trunc('second', $4::timestamptz), $5, date_trunc('second', $6::timestamptz),
                date_trunc('second', $7::timestamptz), $8, $9)
        RETURNING version
        """,
        request.authority_id,
        request.serial_number,
        request.change.value,
        request.revocation_time,
        None if reason is None else reason.value,
        request.invalidity_date,
        request.not_after,
        request.certificate_sha256,
        actor,
    )
    if version is None:  # announced before, in the same words
        version = await connection.fetchval(
            "SELECT version FROM certificate_status WHERE authority_id = $1 AND serial_number = $2",
            request.authority_id,
            request.serial_number,
        )
    return cast("int", version)


@contextmanager
def _refusals_as_such() -> Iterator[None]:
    try:
        yield
    except asyncpg.ForeignKeyViolationError as error:
        raise ChangeRefused("there is no such authority; add it first, or look its id up by name") from error
    except asyncpg.CheckViolationError as error:
        raise ChangeRefused(_CHECKS.get(error.constraint_name or "", str(error))) from error
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "").startswith(_REFUSAL_CLASS):
            raise ChangeRefused(str(error)) from error
        raise


_CHECKS = {
    "serial_number_is_a_minimal_integer": (
        "the serial number is not the content of a minimal DER INTEGER of 1 to 128 octets; remove superfluous leading "
        "octets"
    ),
    "certificate_sha256_is_a_sha256": "the hash of a certificate is a SHA-256, 32 octets",
    "crl_ends_after_it_begins": "the CRL ends before it begins; look at its thisUpdate and nextUpdate",
    "change_has_an_actor": "a change needs the name of the actor who makes it",
    "authority_has_a_name": "an authority needs a name without blanks around it",
}


def _status_change(row: asyncpg.Record) -> StatusChange:
    reason = row["revocation_reason"]
    request = ChangeRequest(
        authority_id=row["authority_id"],
        serial_number=row["serial_number"],
        change=Change(row["change"]),
        revocation_time=row["revocation_time"],
        revocation_reason=None if reason is None else CRLReason(reason),
        invalidity_date=row["invalidity_date"],
        not_after=row["not_after"],
        certificate_sha256=row["certificate_sha256"],
    )
    return StatusChange(row["version"], request, row["actor"], row["recorded_at"])
