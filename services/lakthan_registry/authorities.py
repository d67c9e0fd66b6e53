"""The authorities of the store as the registry needs them: by id, by name, by the Name in a certificate.

They are read again when what is known is older than two seconds, or when somebody asks for one that is not known: an
authority that was added is there at once, and an authority's new key after two seconds at most.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lakthan.certificates import CertificateView
from lakthan_registry.problems import not_found
from lakthan_registry.reading import Issuer

if TYPE_CHECKING:
    from lakthan.store.records import AuthorityRecord
    from lakthan.store.status import AuthorityReader

_KEPT_SECONDS = 2.0


class Authorities:
    """What `reader` reads, kept for a moment. Every method raises `StoreUnavailable`."""

    def __init__(self, reader: AuthorityReader) -> None:
        self._reader = reader
        self._records: list[AuthorityRecord] = []
        self._issuers: dict[int, Issuer] = {}
        self._read_at = -_KEPT_SECONDS

    async def all(self) -> list[AuthorityRecord]:
        """Every authority."""
        if time.monotonic() - self._read_at >= _KEPT_SECONDS:
            await self._read()
        return self._records

    async def issuer(self, authority_id: int) -> Issuer:
        """The authority of a credential, with what its certificates are recognised by."""
        await self.all()
        if authority_id not in self._issuers:
            await self._read()
        return self._issuers[authority_id]

    async def named(self, name: str) -> AuthorityRecord:
        """The authority of this name. Raises `Problem`."""
        for _ in range(2):
            for record in await self.all():
                if record.name == name:
                    return record
            await self._read()
        raise not_found(f"there is no authority {name}", hint="GET /v1/authorities lists their names")

    async def issuers_of(self, view: CertificateView) -> list[AuthorityRecord]:
        """The authorities that issued this certificate: their Name stands in it, and one of their keys signed it."""
        return [
            record
            for record in await self.all()
            if view.issuer in record.names
            and any(view.issued_by(issuer) for issuer in (await self.issuer(record.id)).certificates)
        ]

    async def name_of(self, authority_id: int) -> str:
        """The name of the authority with this id."""
        return (await self.issuer(authority_id)).name

    async def _read(self) -> None:
        began = time.monotonic()
        records = await self._reader.load()
        known = {record.id: record for record in self._records}
        self._issuers = {
            record.id: self._issuers[record.id]
            if known.get(record.id) == record
            else Issuer(record.id, record.name, tuple(map(CertificateView.from_der, record.certificates)))
            for record in records
        }
        self._records, self._read_at = records, began
