"""A folder of certificates, PEM or DER, with its subfolders: what a CA keeps of what it issued.

Promises: a certificate counts only when a key of the authority signed it; its serial number, its end and its SHA-256
are read from its octets. Passed over are files with other names than a certificate's, PEM files of other things (many
CAs keep a key or a request beside the certificate), and the authority's own certificates.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan import der
from lakthan.certificates import CertificateView
from lakthan_registry.issued_list import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lakthan_registry.issued_list import Bad

_SUFFIXES = {".pem", ".crt", ".cer", ".der", ".cert"}
_MOST_OCTETS = 1 << 20


class CertificateFolder:
    """One such folder. `issuers`: the authority's own certificates, DER."""

    def __init__(self, folder: Path, issuers: Sequence[bytes]) -> None:
        self._issuers = [CertificateView.from_der(encoded) for encoded in issuers]
        self._own = set(issuers)
        self.files = _certificate_files(folder)
        self.position = 0
        self.octets = 0
        self.size = sum(map(_size, self.files))

    def read(self, bad: Bad, after: int = 0) -> Iterator[Entry]:
        """See `IssuedList`; a position is a file's number in the order of the paths."""
        self.octets = 0
        for number, path in enumerate(self.files, 1):
            self.position = number
            self.octets += _size(path)
            if number <= after:
                continue
            try:
                entries = self._entries(path)
            except (OSError, ValueError) as error:
                bad(number, f"{path}: {error}")
            else:
                yield from entries

    def sha256(self) -> bytes:
        """See `IssuedList`."""
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(os.fsencode(path) + b"\0" + _content_sha256(path))
        return digest.digest()

    def stamp(self) -> tuple[int, ...]:
        """See `IssuedList`. Always the same: each file stands for itself; what is added later waits for the next."""
        return (len(self.files), self.size)

    def _entries(self, path: Path) -> list[Entry]:
        entries: list[Entry] = []
        for certificate in _certificates(path):
            encoded = certificate.public_bytes(Encoding.DER)
            if encoded in self._own:
                continue
            view = CertificateView(certificate, encoded)
            if not any(view.issued_by(issuer) for issuer in self._issuers):
                raise ValueError(f"no key of the authority signed it; its issuer is {view.issuer_name}")
            serial_number = der.integer_content(certificate.serial_number)
            sha256 = hashlib.sha256(encoded).digest()
            entries.append((serial_number, view.not_after, sha256, None, None, None))
        return entries


def _certificate_files(folder: Path) -> list[Path]:
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(name).suffix.lower() in _SUFFIXES
    )


def _certificates(path: Path) -> list[x509.Certificate]:
    if path.stat().st_size > _MOST_OCTETS:
        raise ValueError("more than a mebibyte; that is no certificate")
    octets = path.read_bytes()
    try:
        if b"-----BEGIN CERTIFICATE-----" in octets:
            return x509.load_pem_x509_certificates(octets)
        if octets.startswith(b"-----BEGIN "):
            return []
        return [x509.load_der_x509_certificate(octets)]
    except Exception as error:  # cryptography has types of its own for versions that it does not know
        raise ValueError(f"no certificate in it can be read ({error})") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0  # a link to nowhere, perhaps: whoever reads it says so


def _content_sha256(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return b""
