"""Who speaks: a certificate with the signer of its key, and the proof that the two belong together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan.certificates import CertificateView, read_certificates
from lakthan.errors import ConfigError, SignerBusy, SignerUnusable
from lakthan.keys import Signer, open_signer, prove

if TYPE_CHECKING:
    from pathlib import Path

    from lakthan.config import KeyURI


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and the signer of its key: who speaks.

    `intermediates`: issuers that travel with the certificate, nearest first, never a self-signed root.
    """

    view: CertificateView
    signer: Signer
    intermediates: tuple[CertificateView, ...] = ()

    @classmethod
    async def open(cls, certificate: Path, key: KeyURI, *, chain: Path | None = None) -> Identity:
        """Open the key and prove that it belongs to the (first) certificate of the file.

        `chain` is a PEM file of issuers; each must have issued the one before it. Raises `ConfigError` that names the
        file.
        """
        view = read_certificates(certificate)[0]
        above = read_certificates(chain) if chain else []
        for below, issuer in zip([view, *above], above, strict=False):
            if not below.issued_by(issuer):
                raise ConfigError(f"{chain}: {issuer.name} did not issue {below.name}; put the nearest issuer first")
        signer = await asyncio.to_thread(open_signer, key)  # a device or a cloud may take its time
        try:
            await prove(signer, view.certificate.public_key())
        except (SignerUnusable, SignerBusy) as error:
            await signer.aclose()
            raise ConfigError(f"{certificate} and {key.uri}: {error}") from error
        return cls(view, signer, tuple(issuer for issuer in above if issuer.subject != issuer.issuer))
