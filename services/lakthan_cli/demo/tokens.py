"""The demo's tokens for the registry: one for each CA that issues to people, one for a registrar, one for an auditor.

Promises: a token that works is left as it is; one that is missing, has run out or was revoked is made anew. Each stands
in a file that only its owner reads, and nowhere else.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.credentials import CredentialAdmin, CredentialReader, token_sha256
from lakthan.store.pool import open_pool
from lakthan.store.records import CredentialRole
from lakthan_cli.demo.folder import write_text

if TYPE_CHECKING:
    from pathlib import Path

ACTOR = "demo"
_ROLES = {
    "public-ca": CredentialRole.PUBLISHER,
    "gov-ca": CredentialRole.PUBLISHER,
    "registrar": CredentialRole.REGISTRAR,
    "auditor": CredentialRole.AUDITOR,
}
_SCOPES = ("issue", "revoke", "hold", "crl", "read")
_LIFETIME = timedelta(days=90)
_RENEW_BEFORE = timedelta(days=7)


async def ensure_tokens(url: str, directory: Path) -> list[str]:
    """Make what is missing in `directory`/tokens; gives the files that are new. `url`: of a login that may act as
    `lakthan_registrar`. Raises `StoreUnavailable`.
    """
    pool = await open_pool(url, role="lakthan_registrar", min_size=1, max_size=1, application_name="lakthan-demo")
    try:
        reader, admin = CredentialReader(pool), CredentialAdmin(pool)
        ids = {record.name: record.id for record in await AuthorityAdmin(pool).authorities()}
        taken = {each.name for each in await admin.list()}
        made = []
        for name, role in _ROLES.items():
            path = directory / "tokens" / f"{name}.token"
            secret = _read(path)
            found = None if secret is None else await reader.find("token", token_sha256(secret))
            if found is not None and found.state == "valid" and found.expires_at - datetime.now(UTC) > _RENEW_BEFORE:
                continue
            publisher = role is CredentialRole.PUBLISHER
            _, token = await admin.create(
                next(each for each in (f"demo-{name}-{number}" for number in range(1, 10**6)) if each not in taken),
                role,
                expires_at=datetime.now(UTC) + _LIFETIME,
                authority_id=ids[name] if publisher else None,
                scopes=_SCOPES if publisher else (),
                actor=ACTOR,
                through=ACTOR,
            )
            _write(path, f"{token}\n")
            made.append(f"tokens/{path.name}")
        return made
    finally:
        await pool.close()


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    write_text(path, text)
