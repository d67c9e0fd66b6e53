"""Who speaks: a certificate with the signer of its key, and the proof that the two belong together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lakthan.certificates import CertificateView, read_certificates
from lakthan.errors import ConfigError, KeyAway, SignerBusy, SignerUnusable
from lakthan.keys import LateSigner, Signer, open_signer, prove

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
    async def open(cls, certificate: Path, key: KeyURI, *, chain: Path | None = None, late: bool = False) -> Identity:
        """Open the key and prove that it belongs to the (first) certificate of the file.

        `chain` is a PEM file of issuers; each must have issued the one before it. `late`: a key whose device or cloud
        is away signs as soon as it is back, and is tried again until then (`keys.late`). Raises `ConfigError` that
        names the file.
        """
        view = read_certificates(certificate)[0]
        above = read_certificates(chain) if chain else []
        for below, issuer in zip([view, *above], above, strict=False):
            if not below.issued_by(issuer):
                raise ConfigError(f"{chain}: {issuer.name} did not issue {below.name}; put the nearest issuer first")
        signer = await _open(certificate, key, view, late=late)
        return cls(view, signer, tuple(issuer for issuer in above if issuer.subject != issuer.issuer))


async def _open(certificate: Path, key: KeyURI, view: CertificateView, *, late: bool) -> Signer:
    certified = view.certificate.public_key()
    try:
        signer = await asyncio.to_thread(open_signer, key)  # a device or a cloud may take its time
    except KeyAway as error:
        if not late:
            raise
        return LateSigner(key, certified, error)
    try:
        await prove(signer, certified)
    except (SignerUnusable, SignerBusy) as error:
        await signer.aclose()
        if late and signer.public_key == certified:  # it is the right one, and does not sign now
            return LateSigner(key, certified, error)
        raise ConfigError(f"{certificate} and {key.uri}: {error}") from error
    return signer
