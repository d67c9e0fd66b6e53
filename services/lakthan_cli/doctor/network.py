"""Where the configured certificates send their readers: OCSP, CRL and the CA's certificate must be there, and be right.

Trusted: nobody. What comes back is verified as any client would.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lakthan_cli.doctor.notes import Notes, Patient
from lakthan_cli.exchange import TransportError
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, parse_certificates
from lakthan_cli.ocsp.query import Asker, Options, Verdict
from lakthan_cli.ocsp.transport import Transport
from lakthan_cli.tsa.revocation import crl_urls, from_crl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lakthan_cli.commands.check_config import Findings

_REACH = "look at DNS, firewall and the service there; whoever meets this certificate asks there too"


async def look(patient: Patient, found: Findings, notes: Notes) -> None:
    """Every URL in every certificate, all at once, each with a time limit."""
    known = [*(issuer for each in found.opened for issuer in each.issuers), *(each.view for each in found.opened)]
    issuers = [Certificate.from_der(each) for each in dict.fromkeys(view.encoded for view in known)]
    ours = frozenset(each.view.encoded for each in found.opened)
    async with Transport.open(patient.patience.total_seconds()) as transport:
        readers = [
            _Reader(each.what, Certificate.from_der(each.view.encoded), issuers, ours, transport, notes)
            for each in found.opened
        ]
        await asyncio.gather(*(reader.follow() for reader in readers))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Somebody who meets one certificate. `ours`: certificates of this configuration."""

    what: str
    certificate: Certificate
    issuers: Sequence[Certificate]
    ours: frozenset[bytes]
    transport: Transport
    notes: Notes

    async def follow(self) -> None:
        """Every URL in it."""
        issuer = next((each for each in self.issuers if self.certificate.signed_by(each)), None)
        parts = [self._issuer(url) for url in self.certificate.ca_issuers_urls]
        parts += [self._ocsp(url, issuer) for url in self.certificate.ocsp_urls]
        if issuer is not None:
            parts += [self._crl(url, issuer) for url in crl_urls(self.certificate)]
        await asyncio.gather(*parts)

    async def _ocsp(self, url: str, issuer: Certificate | None) -> None:
        # Without a known issuer, what its caIssuers URL gives may be it.
        asker = Asker(Options(issuer=None if issuer is None else [issuer], url=url), self.transport)
        result = await asker.ask(Path(self.certificate.name), [self.certificate])
        if result.verdict is Verdict.GOOD:
            signer = result.verification.signer if result.verification else None
            by_us = ", answered by a responder of this configuration" if signer and signer.encoded in self.ours else ""
            self.notes.ok(f"{self.what}: {url}", "OCSP", f"good{by_us}")
        elif result.verdict in (Verdict.REVOKED, Verdict.UNKNOWN):
            todo = "have another one issued, or announce it to its responder: `lakthan status`, `lakthan import`"
            self.notes.failure(f"{self.what}: {url}", "OCSP", result.verdict.label, todo)
        elif result.verdict is Verdict.NOT_ASKED:
            todo = "put the certificate of its CA into the chain file"
            self.notes.warning(f"{self.what}: {url}", "OCSP", "not asked, for its issuer is not known here", todo)
        else:
            self.notes.failure(f"{self.what}: {url}", "OCSP", result.problem or result.verdict.label, _REACH)

    async def _issuer(self, url: str) -> None:
        try:
            fetched = parse_certificates(await self.transport.fetch(url))
        except (TransportError, Unreadable) as error:
            self.notes.warning(f"{self.what}: {url}", "issuer", str(error), _REACH)
            return
        if any(self.certificate.signed_by(each) for each in fetched):
            self.notes.ok(f"{self.what}: {url}", "issuer", "its CA's certificate is there")
        else:
            todo = "publish the certificate of its CA there"
            self.notes.warning(f"{self.what}: {url}", "issuer", "what is there did not sign it", todo)

    async def _crl(self, url: str, issuer: Certificate) -> None:
        try:
            fact = from_crl(await self.transport.fetch(url), url, self.certificate, issuer, datetime.now(UTC))
        except TransportError as error:
            self.notes.failure(f"{self.what}: {url}", "CRL", str(error), _REACH)
            return
        if fact.since is None:
            self.notes.ok(f"{self.what}: {url}", "CRL", "it holds, and does not list it")
        else:
            said = f"revoked since {fact.since:%Y-%m-%d %H:%M} UTC"
            self.notes.failure(f"{self.what}: {url}", "CRL", said, "have another one issued")
