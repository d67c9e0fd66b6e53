"""Credentials of the registry's callers: made, looked up, revoked. OCSP-94.

Promises: of a token only a hash is kept, and it is shown once; of a client certificate, the hash of its DER. A
credential ends at a set time by the database's clock, and a revoked one stays revoked. Every change is in the audit
chain.

Refuses to know: HTTP and TLS. The caller has checked that whoever presents a certificate holds its key.

Trusted: whoever acts as `lakthan_registrar` can give anybody the right to write for any authority.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import asyncpg

from lakthan.store.acting import acting
from lakthan.store.changes import ChangeRefused, refusals_as_such
from lakthan.store.pool import unavailable_as_such
from lakthan.store.records import Credential, CredentialRole

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import datetime

Kind = Literal["token", "certificate"]

# So that a scanner for leaked secrets can tell whose it is.
_TOKEN_PREFIX = "lak_"  # noqa: S105 - the part that is no secret
_TOKEN_OCTETS = 32


def new_token() -> str:
    """A token that nobody can guess: `lak_` and 43 characters, 256 random bits."""
    return _TOKEN_PREFIX + secrets.token_urlsafe(_TOKEN_OCTETS)


def token_sha256(token: str) -> bytes:
    """What is kept of a token. A plain hash will do: 256 random bits cannot be tried out."""
    return hashlib.sha256(token.encode()).digest()


class CredentialReader:
    """Looks up what a caller presents. `pool` acts as `lakthan_publisher`, `lakthan_registrar` or `lakthan_auditor`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def find(self, kind: Kind, sha256: bytes) -> Credential | None:
        """The credential of this hash: of a token (`token_sha256`), or of a client certificate's DER.

        Also one that has expired or was revoked: its `state` says so. None when nobody has it. Raises
        `StoreUnavailable`.
        """
        with unavailable_as_such():
            row = await self._pool.fetchrow("SELECT * FROM find_credential($1, $2)", kind, sha256)
        return None if row is None else _credential(row)


class CredentialAdmin:
    """Makes and revokes credentials. `pool` acts as `lakthan_registrar` or `lakthan_registry`."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def create(
        self,
        name: str,
        role: CredentialRole,
        *,
        expires_at: datetime,
        authority_id: int | None = None,
        scopes: Collection[str] = (),
        certificate: bytes | None = None,
        actor: str,
        through: str = "cli",
    ) -> tuple[Credential, str | None]:
        """Make a credential and, unless it is for a client `certificate` (DER), its token, which is shown only here.

        A publisher has an authority and scopes (issue, revoke, hold, crl, read), the other roles have neither. Raises
        `ChangeRefused` and `StoreUnavailable`.
        """
        token = new_token() if certificate is None else None
        with _doubles_explained(name), refusals_as_such(), unavailable_as_such():
            async with acting(self._pool, actor=actor, through=through) as connection:
                row = await connection.fetchrow(
                    f"""
                    INSERT INTO credential (name, role, authority_id, scopes, token_sha256, certificate_sha256,
                                            expires_at, created_by)
                    SELECT $1, $2, $3, $4, $5, $6, $7, $8 WHERE $7 > now()
                    RETURNING {_COLUMNS}
                    """,
                    name,
                    role.value,
                    authority_id,
                    sorted(scopes),
                    None if token is None else token_sha256(token),
                    None if certificate is None else hashlib.sha256(certificate).digest(),
                    expires_at,
                    actor,
                )
        if row is None:
            raise ChangeRefused(f"the credential {name} would have ended already at {expires_at}; choose a later end")
        return _credential(row), token

    async def list(self) -> list[Credential]:
        """Every credential that was ever made, by name. Raises `StoreUnavailable`."""
        with unavailable_as_such():
            rows = await self._pool.fetch(f"SELECT {_COLUMNS} FROM credential ORDER BY name")  # noqa: S608 - our own
        return [_credential(row) for row in rows]

    async def revoke(self, name: str, *, actor: str, through: str = "cli") -> None:
        """From now on the credential opens nothing. Final. Raises `ChangeRefused` and `StoreUnavailable`."""
        with refusals_as_such(), unavailable_as_such():
            async with acting(self._pool, actor=actor, through=through) as connection:
                changed = await connection.execute(
                    "UPDATE credential SET revoked_at = now() WHERE name = $1 AND revoked_at IS NULL", name
                )
        if changed != "UPDATE 1":
            raise ChangeRefused(f"there is no credential {name!r}, or it was revoked before")

    async def bind_login(self, login: str, authority_id: int, *, actor: str, through: str = "cli") -> None:
        """Let a login of the database act for this authority and never for another one.

        The login itself, a member of `lakthan_publisher` and of nothing else, is made by the database's administrator.
        Raises `ChangeRefused` and `StoreUnavailable`.
        """
        with refusals_as_such(), unavailable_as_such():
            async with acting(self._pool, actor=actor, through=through) as connection:
                await connection.execute("DELETE FROM authority_login WHERE login = $1", login)
                await connection.execute("INSERT INTO authority_login VALUES ($1, $2)", login, authority_id)


_COLUMNS = """id, name, role, authority_id, scopes,
    CASE WHEN token_sha256 IS NULL THEN 'certificate' ELSE 'token' END AS kind, expires_at, revoked_at, created_by,
    created_at, CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= clock_timestamp() THEN 'expired'
                     ELSE 'valid' END AS state"""


def _credential(row: asyncpg.Record) -> Credential:
    return Credential(
        id=row["id"],
        name=row["name"],
        role=CredentialRole(row["role"]),
        authority_id=row["authority_id"],
        scopes=frozenset(row["scopes"]),
        kind=row["kind"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        created_by=row["created_by"],
        created_at=row["created_at"],
        state=row["state"],
    )


@contextmanager
def _doubles_explained(name: str) -> Iterator[None]:
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        what = "has this name" if error.constraint_name == "credential_name_key" else "is for this certificate"
        raise ChangeRefused(f"credential {name}: another credential {what} already, perhaps a revoked one") from error
