"""Who answers for which issuer: one responder each, and never another CA's."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from lakthan.certificates import CertificateView
from lakthan.config import KeyURI, ResponderConfig
from lakthan.errors import ConfigError
from lakthan.store.records import AuthorityRecord
from lakthan_ocsp.directory import Directory, NotEntitled, Responder
from lakthan_ocsp.opening import open_responder
from lakthan_ocsp.syntax import CertID, OCSPRequest, OCSPResponseStatus, parse_request
from support.pki import Issued, issue, new_ca, new_responder
from support.responder import request_for

CA, OTHER = new_ca("CA"), new_ca("Other")


def record(number: int, name: str, *certificates: Issued, extra_names: tuple[bytes, ...] = ()) -> AuthorityRecord:
    """An authority as the store gives it."""
    views = [CertificateView.of(each.certificate) for each in certificates]
    return AuthorityRecord(
        number,
        name,
        (*dict.fromkeys(view.subject for view in views), *extra_names),
        tuple(view.public_key for view in views),
        tuple(view.encoded for view in views),
    )


async def responder(folder: Path, issued: Issued, authority: str = "ca", profile: str = "pdf-ltv") -> Responder:
    """A configured responder with this certificate."""
    certificate, key = issued.write(folder, f"responder-{issued.certificate.serial_number}")
    return await open_responder(ResponderConfig(authority, certificate, KeyURI(f"file:{key}", folder), profile=profile))


def asked(*cert_ids: CertID) -> OCSPRequest:
    """A request for these."""
    return OCSPRequest(cert_ids)


def cert_id(issuer: Issued, algorithm: hashes.HashAlgorithm | None = None) -> CertID:
    """The CertID of some certificate of that issuer."""
    return parse_request(request_for(issue("leaf", issuer), issuer, algorithm=algorithm), max_cert_ids=1).cert_ids[0]


async def test_each_issuer_finds_its_responder(tmp_path: Path) -> None:
    """By any hash, and by the current key as by an earlier one with another encoding of the name.

    OCSP-64, OCSP-Q20, OCSP-Q26, OCSP-Q27.
    """
    rekeyed = new_ca("CA, the second key")
    directory = Directory([record(7, "ca", CA, rekeyed)], [await responder(tmp_path, new_responder(CA))])
    for issuer in (CA, rekeyed):
        for algorithm in (hashes.SHA1(), hashes.SHA224(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512()):
            assert directory.entitled(asked(cert_id(issuer, algorithm))).issuer.authority.id == 7
    assert directory.problems == {"ca (ecdsa-with-SHA256)": ""}


async def test_nobody_else_is_answered_for(tmp_path: Path) -> None:
    """Foreign issuers, mixtures, and authorities without a responder are refused, each with its cause. OCSP-Q23."""
    directory = Directory(
        [record(1, "ca", CA), record(2, "other", OTHER)], [await responder(tmp_path, new_responder(CA))]
    )
    stranger = new_ca("Stranger")
    for cert_ids, cause in (
        ([cert_id(stranger)], "foreign issuer"),
        ([cert_id(CA), cert_id(stranger)], "foreign issuer"),
        ([cert_id(CA), cert_id(OTHER)], "mixed issuers"),
        ([cert_id(OTHER)], "no responder"),
    ):
        with pytest.raises(NotEntitled, match=cause) as caught:
            directory.entitled(asked(*cert_ids))
        assert caught.value.status is OCSPResponseStatus.UNAUTHORIZED


@pytest.mark.parametrize(
    ("certificate", "says"),
    [
        (new_responder(OTHER), "that CA did not issue its certificate"),
        (issue("no purpose", CA), "no id-kp-OCSPSigning"),
        (CA, "no id-kp-OCSPSigning"),  # the CA's own key: it is for certificates and CRLs
        (
            issue("TLS", CA, extensions=((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),)),
            "no id-kp-OCSPSigning",
        ),
    ],
)
async def test_an_unentitled_responder_stays_silent(certificate: Issued, says: str, tmp_path: Path) -> None:
    """A responder certificate of another CA, or for another purpose, answers nothing (RFC 6960 §4.2.2.2).

    OCSP-15, OCSP-17.
    """
    directory = Directory([record(1, "ca", CA)], [await responder(tmp_path, certificate)])
    assert says in directory.problems["ca (ecdsa-with-SHA256)"]
    with pytest.raises(NotEntitled, match="no responder"):
        directory.entitled(asked(cert_id(CA)))


async def test_a_key_identifier_is_no_key_hash(tmp_path: Path) -> None:
    """A client that puts the CA's subject key identifier where the hash of the key belongs names nobody. OCSP-Q28."""
    directory = Directory([record(1, "ca", CA)], [await responder(tmp_path, new_responder(CA))])
    right = cert_id(CA)
    wrong = right._replace(issuer=right.issuer[:-32] + bytes(12) + CertificateView.of(CA.certificate).key_hash)
    assert directory.entitled(asked(right)).issuer.authority.id == 1
    with pytest.raises(NotEntitled, match="foreign issuer"):
        directory.entitled(asked(wrong))


async def test_a_responder_without_its_authority_waits(tmp_path: Path) -> None:
    """An authority that the store does not know yet is a problem that readiness shows."""
    directory = Directory([], [await responder(tmp_path, new_responder(CA))])
    assert directory.problems == {"ca (ecdsa-with-SHA256)": "the store has no such authority"}


def test_authorities_that_cannot_be_told_apart() -> None:
    """Two authorities with the same name and key would answer for each other: refused."""
    with pytest.raises(ConfigError, match="'one' and 'two' share a name and a key"):
        Directory([record(1, "one", CA), record(2, "two", CA)], [])
