"""Writing status changes. The database decides what is allowed; this module asks and translates.

Promises: the changes of one call are recorded all or none, by one statement, as one record of the audit chain; a change
and the notification of it are committed together; when a call returns, the change is on disk. Versions of one
certificate grow with every change. A call that is repeated with its idempotency key changes nothing a second time, and
returns no sooner than the first one could: when the change is wherever commits have to be.

Refuses to know: how the actor was authenticated. For which authorities it may act, the database decides by the login
and by `acting_for`.

Trusted: the actor's name is written down as the caller gives it.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg

from lakthan.errors import LakthanError
from lakthan.store.acting import acting
from lakthan.store.history import ChangeReader
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import Change, ChangeRequest, CRLReason, Idempotency, StatusChange

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime

# SQLSTATE class of the refusals that the schema itself raises.
_REFUSAL_CLASS = "LK"
_KEPT = timedelta(hours=24)  # at least; the database lets nobody delete a younger key
# A commit that waits for a synchronous standby is on the server's own disk and seen by all, and stays so when its
# caller gives up; who only reads it would not wait for it. A word in the log makes him wait for all that is before.
_WAIT_FOR_EARLIER = "SELECT pg_logical_emit_message(true, 'lakthan', '')"


class ChangeRefused(LakthanError):
    """The change is not allowed or not well formed. Nothing was recorded; the message says why and what to do.

    `serial_number`: of the certificate that is at fault, where it is a certificate.
    """

    def __init__(self, message: str, serial_number: bytes | None = None) -> None:
        super().__init__(message)
        self.serial_number = serial_number


class StateForbids(ChangeRefused):
    """The change is well formed, and the present state of the certificate forbids it."""


class NotYourAuthority(ChangeRefused):
    """Whoever asks may not act for that authority."""


class IdempotencyConflict(ChangeRefused):
    """The idempotency key stands for another request already."""


class ChangeWriter:
    """Records changes. OCSP-59, OCSP-86.

    `pool` acts as `lakthan_registry`, which may act for every authority, or as `lakthan_publisher` with `acting_for`,
    the one authority that the caller was authenticated for.
    """

    def __init__(self, pool: asyncpg.Pool, acting_for: int | None = None) -> None:
        self._pool = pool
        self._acting_for = acting_for

    async def record(
        self,
        changes: Sequence[ChangeRequest],
        actor: str,
        *,
        through: str = "cli",
        detail: Mapping[str, str] | None = None,
        idempotency: Idempotency | None = None,
    ) -> list[int]:
        """Record all of them or none, and give the version of each.

        A certificate that is announced a second time in the same words changes nothing and gives the version it
        already has. So does a whole call whose `idempotency` key was used for the same request before.

        `through`, `detail`: the way it came and what else belongs on record. Raises `ChangeRefused` (`StateForbids`,
        `NotYourAuthority`, `IdempotencyConflict`) and `StoreUnavailable`.
        """
        try:
            with refusals_as_such(), unavailable_as_such():
                async with acting(
                    self._pool, authority_id=self._acting_for, actor=actor, through=through, detail=detail
                ) as connection:
                    if idempotency is not None:
                        earlier = await _take(connection, idempotency)
                        if earlier is not None:
                            await connection.execute(_WAIT_FOR_EARLIER)
                            return earlier
                    versions = await _insert(connection, changes, actor) if changes else []
                    if idempotency is not None:
                        await _keep(connection, idempotency, versions)
                    return versions
        except ChangeRefused as error:
            at_fault = _at_fault(changes, error.__cause__)
            if at_fault is None:
                raise
            who, serial_number = at_fault
            raise ChangeRefused(f"{who}: {error}", serial_number) from error.__cause__

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

    async def confirm(self) -> None:
        """Return when all that is on record now is wherever commits have to be; to be asked before anybody is told that
        there is nothing to change. Raises `StoreUnavailable`.
        """
        with unavailable_as_such():
            await self._pool.execute(_WAIT_FOR_EARLIER)

    async def history(self, authority_id: int, serial_number: bytes) -> list[StatusChange]:
        """Every change of one certificate, oldest first. Raises `StoreUnavailable`."""
        return await ChangeReader(self._pool, self._acting_for).history(authority_id, serial_number)


async def _insert(
    connection: asyncpg.pool.PoolConnectionProxy, changes: Sequence[ChangeRequest], actor: str
) -> list[int]:
    # Everybody locks in the same order, so that two batches cannot wait for each other. The sort is stable: several
    # changes of one certificate keep their order.
    order = sorted(range(len(changes)), key=lambda at: (changes[at].authority_id, changes[at].serial_number))
    asked = [changes[at] for at in order]
    rows = await connection.fetch(
        """
        INSERT INTO status_change (authority_id, serial_number, change, revocation_time, revocation_reason,
                                   invalidity_date, not_after, certificate_sha256, actor)
        SELECT authority_id, serial_number, change::change_kind, date_trunc('second', revocation_time),
               revocation_reason, date_trunc('second', invalidity_date), date_trunc('second', not_after),
               certificate_sha256, $9
          FROM unnest($1::int[], $2::bytea[], $3::text[], $4::timestamptz[], $5::smallint[], $6::timestamptz[],
                      $7::timestamptz[], $8::bytea[]) WITH ORDINALITY
               AS asked (authority_id, serial_number, change, revocation_time, revocation_reason, invalidity_date,
                         not_after, certificate_sha256, place)
         ORDER BY place
        RETURNING version, authority_id, serial_number, change::text
        """,
        [each.authority_id for each in asked],
        [each.serial_number for each in asked],
        [each.change.value for each in asked],
        [each.revocation_time for each in asked],
        [each.revocation_reason for each in asked],
        [each.invalidity_date for each in asked],
        [each.not_after for each in asked],
        [each.certificate_sha256 for each in asked],
        actor,
    )
    versions = [0] * len(changes)
    known: list[int] = []  # announced before, in the same words: the database left these out
    made = iter(rows)
    row = next(made, None)
    for at in order:
        request = changes[at]
        wanted = (request.authority_id, request.serial_number, request.change.value)
        if row is not None and (row["authority_id"], row["serial_number"], row["change"]) == wanted:
            versions[at] = row["version"]
            row = next(made, None)
        else:
            known.append(at)
    if known:
        found = await connection.fetch(
            """
            SELECT version
              FROM unnest($1::int[], $2::bytea[]) WITH ORDINALITY AS known (authority_id, serial_number, place)
              JOIN certificate_status USING (authority_id, serial_number)
             ORDER BY place
            """,
            [changes[at].authority_id for at in known],
            [changes[at].serial_number for at in known],
        )
        for at, status in zip(known, found, strict=True):
            versions[at] = status["version"]
    return versions


async def _take(connection: asyncpg.pool.PoolConnectionProxy, asked: Idempotency) -> list[int] | None:
    """Take the key, or give the versions that it stands for. Two calls at once: the second waits for the first."""
    taken = await connection.fetchval(
        """
        INSERT INTO idempotency_key (credential_id, key, request_sha256) VALUES ($1, $2, $3)
        ON CONFLICT DO NOTHING RETURNING true
        """,
        asked.credential_id,
        asked.key,
        asked.request_sha256,
    )
    if taken:
        return None
    earlier = await connection.fetchrow(
        "SELECT request_sha256, versions FROM idempotency_key WHERE credential_id = $1 AND key = $2",
        asked.credential_id,
        asked.key,
    )
    if earlier is None or earlier["request_sha256"] != asked.request_sha256:
        raise IdempotencyConflict(
            f"the idempotency key {asked.key!r} was used for another request before; take a new key for a new request"
        )
    return list(earlier["versions"])


async def _keep(connection: asyncpg.pool.PoolConnectionProxy, asked: Idempotency, versions: list[int]) -> None:
    await connection.execute(
        "UPDATE idempotency_key SET versions = $3 WHERE credential_id = $1 AND key = $2",
        asked.credential_id,
        asked.key,
        versions,
    )
    await connection.execute(
        "DELETE FROM idempotency_key WHERE credential_id = $1 AND at < now() - $2::interval",
        asked.credential_id,
        _KEPT,
    )


def _at_fault(changes: Sequence[ChangeRequest], cause: BaseException | None) -> tuple[str, bytes] | None:
    """Which of the changes a constraint spoke of, in words and by its serial number."""
    if not isinstance(cause, asyncpg.CheckViolationError):
        return None
    for at, request in enumerate(changes, 1):
        serial, digest = request.serial_number, request.certificate_sha256
        if not _is_minimal(serial) or (digest is not None and len(digest) != 32):
            shown = serial.hex() if len(serial) <= 128 else f"{serial[:16].hex()}…"
            who = f"change {at} of {len(changes)}, serial number {shown!r} of authority {request.authority_id}"
            return who, serial
    return None


def _is_minimal(content: bytes) -> bool:
    if not 1 <= len(content) <= 128:
        return False
    return len(content) == 1 or (content[0], content[1] >> 7) not in ((0x00, 0), (0xFF, 1))


@contextmanager
def refusals_as_such() -> Iterator[None]:
    """Turn what the schema refuses into `ChangeRefused`; other errors pass."""
    try:
        yield
    except asyncpg.ForeignKeyViolationError as error:
        raise ChangeRefused("there is no such authority; add it first, or look its id up by name") from error
    except asyncpg.CheckViolationError as error:
        raise ChangeRefused(_CHECKS.get(error.constraint_name or "", str(error))) from error
    except asyncpg.InsufficientPrivilegeError as error:
        if "row-level security" in str(error):
            raise NotYourAuthority(f"the database refuses it: {error}") from error
        raise
    except asyncpg.PostgresError as error:
        if (error.sqlstate or "").startswith(_REFUSAL_CLASS):
            named = _NAMED.match(str(error))
            serial_number = bytes.fromhex(named[1]) if named else None
            raise _KINDS.get(error.sqlstate or "", ChangeRefused)(str(error), serial_number) from error
        raise


# How the schema begins its refusals of a change.
_NAMED = re.compile("serial number ([0-9a-f]+) of authority")
_KINDS = {"LK001": StateForbids, "LK006": NotYourAuthority}

_CHECKS = {
    "serial_number_is_a_minimal_integer": (
        "the serial number is not the content of a minimal DER INTEGER of 1 to 128 octets; remove superfluous leading "
        "octets"
    ),
    "certificate_sha256_is_a_sha256": "the hash of a certificate is a SHA-256, 32 octets",
    "crl_ends_after_it_begins": "the CRL ends before it begins; look at its thisUpdate and nextUpdate",
    "change_has_an_actor": "a change needs the name of the actor who makes it",
    "key_is_short": "an idempotency key has 1 to 255 octets",
    "request_sha256_is_a_sha256": "the hash of a request is a SHA-256, 32 octets",
    "token_sha256_is_a_sha256": "the hash of a token is a SHA-256, 32 octets",
    "credential_has_a_name": "a credential needs a name without blanks around it",
    "credential_has_a_maker": "a credential needs the name of the actor who makes it",
    "credential_role_is_one_of": "the role of a credential is publisher, registrar or auditor",
    "publisher_has_an_authority": "a publisher belongs to one authority; a registrar and an auditor to none",
    "publisher_has_scopes": "a publisher needs scopes; a registrar and an auditor have none",
    "scopes_are_known": "the scopes are issue, revoke, hold, crl and read",
    "token_or_certificate": "a credential is a token or a certificate",
    "delay_is_positive": "the declared delay is longer than nothing",
    "drop_limit_is_a_percentage": "the limit is a percentage, 0 to 100",
    "authority_has_a_name": "an authority needs a name without blanks around it",
}
