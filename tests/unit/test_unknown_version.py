"""A certificate or CRL of a version that nobody knows: cryptography has an error of its own for it, no ValueError."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from lakthan.errors import ConfigError, LakthanError
from lakthan.keys import approval, pkcs11_public
from lakthan.store.records import AuthorityRecord
from lakthan_cli.ceremony.verification import CeremonyRefused, read_arl
from lakthan_cli.ocsp.certificate import Certificate
from lakthan_registry import tls
from lakthan_registry.monitor_crl import CRLUnusable, read_published
from support.crl import Listed, new_crl
from support.pki import new_ca

CA = new_ca("Public CA")
MISFIT = Path(__file__).parents[1] / "fuzz/crashers/crl/crash-a4c5438c5b766e91b996c06b748e18ccde16fa44"
_CRL_VERSION = bytes.fromhex("020101")
_CERTIFICATE_VERSION = bytes.fromhex("a003020102")


def _of_version_17(encoded: bytes, version: bytes) -> bytes:
    assert 0 < encoded.find(version) < 16
    return encoded.replace(version, version[:-1] + b"\x11", 1)


def _pem(label: str, encoded: bytes) -> bytes:
    return f"-----BEGIN {label}-----\n{base64.encodebytes(encoded).decode()}-----END {label}-----\n".encode()


CRL = _of_version_17(new_crl(CA, Listed()), _CRL_VERSION)
CERTIFICATE = _pem("CERTIFICATE", _of_version_17(CA.der, _CERTIFICATE_VERSION))
READERS: dict[str, tuple[bytes, Callable[[Path, bytes], object], type[LakthanError]]] = {
    "ceremony": (CRL, lambda _, octets: read_arl(octets, []), CeremonyRefused),
    "clients": (CRL, lambda path, _: tls._read_crl(path, []), ConfigError),
    "monitor": (
        CRL,
        lambda _, octets: read_published("http://ca", octets, AuthorityRecord(1, "ca", (), (), ()), []),
        CRLUnusable,
    ),
    "approvers": (CERTIFICATE, lambda path, _: approval._read(path), ConfigError),
    "public key": (CERTIFICATE, lambda path, _: pkcs11_public._from_file(path), ConfigError),
}


def test_a_name_that_does_not_fit_is_refused_by_name() -> None:
    """Cryptography has a TypeError for an attribute whose type is not one of text (found by fuzzing)."""
    octets = MISFIT.read_bytes()
    with pytest.raises(CeremonyRefused):
        read_arl(octets, [Certificate.from_der(CA.der)])
    with pytest.raises(CRLUnusable):
        read_published("http://ca", octets, AuthorityRecord(1, "ca", (), (), ()), [])


@pytest.mark.parametrize("name", READERS)
def test_it_is_refused_by_name(name: str, tmp_path: Path) -> None:
    """By the reader's own error, not by a traceback."""
    octets, read, refusal = READERS[name]
    path = tmp_path / "file"
    path.write_bytes(octets)
    with pytest.raises(refusal):
        read(path, octets)
