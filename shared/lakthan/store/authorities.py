"""Authorities: whose certificates are answered for, by which names and keys, from which CRL, under which policy.

Promises: a CertID can mean one authority only; every change is in the audit chain of its authority, with the row before
and after, by triggers of the database.

Refuses to know: whether a certificate is fit to be an authority's. The caller has checked it against the profile.

Trusted: the actor's name is written down as the caller gives it; left out, it is the login's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from lakthan.certificates import CertificateView
from lakthan.store.acting import acting
from lakthan.store.changes import ChangeRefused, refusals_as_such
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import AuthorityPolicy, AuthorityRecord, CRLReason, CRLSource
from lakthan.store.status import AuthorityReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    import asyncpg

# Serialises `add_authority` between all writers; any number that nobody else uses in this database.
_AUTHORITY_LOCK = int.from_bytes(b"authorit", "big")


class AuthorityAdmin:
    """Adds and changes authorities.

    `pool` acts as `lakthan_registry`, or as `lakthan_registrar`, which may add and set policies, and neither revoke an
    authority nor say from which CRL its statuses come.
    """

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def add_authority(
        self,
        name: str,
        certificates: Sequence[bytes],
        extra_names: Sequence[bytes] = (),
        *,
        actor: str | None = None,
        through: str = "cli",
        detail: Mapping[str, str] | None = None,
    ) -> int:
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
        with refusals_as_such(), unavailable_as_such():
            async with acting(self._pool, actor=actor, through=through, detail=detail) as connection:
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

    async def revoke_authority(
        self,
        name: str,
        *,
        reason: CRLReason,
        revocation_time: datetime,
        actor: str | None = None,
        through: str = "cli",
    ) -> None:
        """Record that the CA itself is revoked or compromised: from now on every certificate of it is answered as
        revoked (RFC 6960 §2.7). Final. Raises `ChangeRefused` and `StoreUnavailable`.
        """
        with refusals_as_such(), unavailable_as_such():
            async with acting(self._pool, actor=actor, through=through) as connection:
                changed = await connection.execute(
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

    async def set_crl(
        self, authority_id: int, crl: CRLSource, *, actor: str | None = None, through: str = "cli"
    ) -> None:
        """Record the CRL that the statuses of an authority come from. Raises `ChangeRefused`, `StoreUnavailable`."""
        with refusals_as_such(), unavailable_as_such():
            async with acting(self._pool, actor=actor, through=through) as connection:
                await connection.execute(
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

    async def policy(self, authority_id: int) -> AuthorityPolicy:
        """The policy on record, or the default one. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            row = await self._pool.fetchrow(
                "SELECT crl_urls, declared_delay, crl_drop_limit_percent FROM authority_policy WHERE authority_id = $1",
                authority_id,
            )
        if row is None:
            return AuthorityPolicy()
        return AuthorityPolicy(tuple(row["crl_urls"]), row["declared_delay"], row["crl_drop_limit_percent"])

    async def set_policy(
        self, authority_id: int, policy: AuthorityPolicy, *, actor: str | None = None, through: str = "cli"
    ) -> None:
        """Record the policy of an authority. Raises `ChangeRefused` and `StoreUnavailable`."""
        with refusals_as_such(), unavailable_as_such():
            async with acting(self._pool, actor=actor, through=through) as connection:
                await connection.execute(
                    """
                    INSERT INTO authority_policy (authority_id, crl_urls, declared_delay, crl_drop_limit_percent)
                    VALUES ($1, $2, $3, $4)
                    ON CONFLICT (authority_id) DO UPDATE
                       SET (crl_urls, declared_delay, crl_drop_limit_percent)
                         = (excluded.crl_urls, excluded.declared_delay, excluded.crl_drop_limit_percent)
                    """,
                    authority_id,
                    policy.crl_urls,
                    policy.declared_delay,
                    policy.crl_drop_limit_percent,
                )
