"""Tell the database about the demo PKI: its authorities, and every certificate but `unissued.pem`.

Promises: what is on record already is left as it is, so that a certificate which somebody revoked, held or released
since the last start stays so. A new certificate gets the fate that its file name promises.

Refuses to know: files.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding

from lakthan import der
from lakthan.store.authorities import AuthorityAdmin
from lakthan.store.changes import ChangeWriter
from lakthan.store.records import Change, ChangeRequest, CRLReason
from lakthan.store.status import StatusReader
from lakthan_cli.demo.inventory import Fate

if TYPE_CHECKING:
    import asyncpg
    from cryptography import x509

    from lakthan_cli.demo.pki import DemoPKI

ACTOR = "demo"


async def register(pool: asyncpg.Pool, pki: DemoPKI) -> int:
    """Record what is not on record yet; gives how many certificates were new. The pool acts as the registry.

    Raises `StoreUnavailable`; then nothing or everything of the certificates is recorded.
    """
    admin, writer, reader = AuthorityAdmin(pool), ChangeWriter(pool), StatusReader(pool)
    ids = {
        name: await admin.add_authority(name, [authority.certificate.public_bytes(Encoding.DER)], actor=ACTOR)
        for name, authority in pki.authorities.items()
    }
    wanted = [(ids[name], certificate, fate) for name, certificate, fate in pki.to_register()]
    known = await asyncio.gather(*(reader.find(authority_id, serial_of(each)) for authority_id, each, _ in wanted))
    new = [entry for entry, record in zip(wanted, known, strict=True) if record is None]
    await writer.record([change for entry in new for change in _changes(*entry)], actor=ACTOR, through=ACTOR)
    return len(new)


def serial_of(certificate: x509.Certificate) -> bytes:
    """The serial number as the store keeps it."""
    return der.integer_content(certificate.serial_number)


def _changes(authority_id: int, certificate: x509.Certificate, fate: Fate) -> list[ChangeRequest]:
    serial_number = serial_of(certificate)
    changes = [ChangeRequest(authority_id, serial_number, Change.ISSUE, not_after=certificate.not_valid_after_utc)]
    if fate is Fate.REVOKED:
        reason = CRLReason.KEY_COMPROMISE
        changes.append(ChangeRequest(authority_id, serial_number, Change.REVOKE, revocation_reason=reason))
    elif fate is Fate.HELD:
        changes.append(ChangeRequest(authority_id, serial_number, Change.HOLD))
    return changes
