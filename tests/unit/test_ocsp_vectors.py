"""Published OCSP messages and some of our own, each with the verdict that is due and the reason for it.

Where they come from: the package cryptography-vectors (used where it lies), the appendix of RFC 9919, RFC 9654, and
`tests/vectors/ocsp`, whose files say in their first lines what is expected, why, and how they were made.
"""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan.certificates import CertificateView
from lakthan.identity import Identity
from lakthan.keys.software import SoftwareSigner
from lakthan.store.records import AuthorityRecord
from lakthan_ocsp import responder
from lakthan_ocsp.governor import Span
from lakthan_ocsp.syntax import OCSPResponseStatus, RequestError, parse_request
from support.judge import GOOD, read_response

PYCA = Path(cryptography_vectors.__file__).parent / "x509" / "ocsp"
OURS = Path(__file__).parents[1] / "vectors" / "ocsp"

# What pyca's requests are about, and what is due. The army's are requests that a responder of the US Army was sent.
PYCA_VERDICTS = {
    "ocsp-army.inapplicable-req.der": "request",
    "ocsp-army.revoked-req.der": "request",
    "ocsp-army.valid-req.der": "request",
    # OCSP-28: the list names the basic response, so the client can be answered.
    "req-acceptable-responses.der": "request",
    # OCSP-Q31: the same extension twice.
    "req-duplicate-ext.der": "malformedRequest",
    "req-ext-nonce.der": "request",
    # OCSP-2: an extension that is not known and not critical.
    "req-ext-unknown-oid.der": "request",
    # An algorithm that nobody knows: well-formed, and nobody's issuer.
    "req-invalid-hash-alg.der": "request",
    # OCSP-1: a version other than v1.
    "req-invalid-version.der": "malformedRequest",
    # OCSP-7: two certificates.
    "req-multi-sha1.der": "request",
    "req-sha1.der": "request",
}


def verdict(octets: bytes) -> str:
    """What the parser says: `request`, or the status of the refusal."""
    try:
        parse_request(octets, max_cert_ids=50)
    except RequestError as error:
        return error.status.label
    return "request"


def vector(name: str) -> tuple[dict[str, str], bytes]:
    """The first lines of a vector of ours, and its octets."""
    head, _, body = (OURS / f"{name}.txt").read_text(encoding="utf-8").partition("\n\n")
    return dict(line.split(": ", 1) for line in head.splitlines()), base64.b64decode(body)


@pytest.mark.parametrize("name", PYCA_VERDICTS)
def test_pyca(name: str) -> None:
    """OCSP-1, OCSP-2, OCSP-7, OCSP-28, OCSP-Q31: requests of pyca's collection get the verdict they are known for."""
    assert verdict((PYCA / name).read_bytes()) == PYCA_VERDICTS[name]


def test_no_request_of_pyca_is_left_out() -> None:
    """A new version of the collection with more requests in it makes somebody decide what they are."""
    assert {path.name for path in PYCA.glob("*req*.der")} == set(PYCA_VERDICTS)


def test_several_certificates_and_their_nonce_are_read() -> None:
    """OCSP-7, OCSP-26: two CertIDs are two, and a nonce is the element that came."""
    assert len(parse_request((PYCA / "req-multi-sha1.der").read_bytes(), max_cert_ids=50).cert_ids) == 2
    octets = (PYCA / "req-ext-nonce.der").read_bytes()
    nonce = parse_request(octets, max_cert_ids=50).nonce
    assert nonce is not None
    theirs = ocsp.load_der_ocsp_request(octets).extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    assert nonce.endswith(theirs)


@pytest.mark.parametrize("name", sorted(path.stem for path in OURS.glob("*.txt") if not path.stem.startswith("rfc")))
def test_ours(name: str) -> None:
    """OCSP-1, OCSP-2, OCSP-4, OCSP-28, OCSP-53, OCSP-54, OCSP-Q24, OCSP-Q25, OCSP-Q29, OCSP-Q31, OCSP-Q32, OCSP-Q35,
    OCSP-Q36: each vector of ours gets the verdict that its first line demands, and says why and how it was made.
    """
    head, octets = vector(name)
    assert set(head) == {"expect", "because", "made-by"}
    assert verdict(octets) == head["expect"]


def test_rfc_9654_nonce() -> None:
    """OCSP-52: the example of RFC 9654 §2.1 in a request: its extnValue is what is echoed, octet for octet."""
    _, extension = vector("rfc9654-nonce")
    _, octets = vector("rfc9919-b4-request")
    tbs_request = der.Reader(octets).enter(der.SEQUENCE).enter(der.SEQUENCE)
    extended = der.sequence(der.sequence(tbs_request.element(der.SEQUENCE), der.encode(0xA2, der.sequence(extension))))
    nonce = parse_request(extended, max_cert_ids=1).nonce
    assert nonce is not None
    assert extension.endswith(nonce)
    assert (len(nonce), nonce[:4].hex()) == (36, "04220420")


def test_rfc_9919_request() -> None:
    """OCSP-36: the request of RFC 9919 appendix B.4 asks about the certificate of B.2 of the CA of B.1."""
    view = CertificateView.from_der(vector("rfc9919-b1-root")[1])
    leaf = CertificateView.from_der(vector("rfc9919-b2-end-entity")[1])
    authority = AuthorityRecord(1, "root", (view.subject,), (view.public_key,), (view.encoded,))
    (cert_id,) = parse_request(vector("rfc9919-b4-request")[1], max_cert_ids=1).cert_ids
    assert responder.issuer_index([authority])[cert_id.issuer].authority is authority
    assert cert_id.hash_algorithm is HashAlgorithm.SHA_256
    assert der.encode(der.INTEGER, cert_id.serial_number) == leaf.serial_number


def test_rfc_9919_response() -> None:
    """OCSP-10, OCSP-12, OCSP-14, OCSP-37, OCSP-40, OCSP-43, OCSP-Q40: from the values of RFC 9919 appendix B.5 we make
    the octets printed there; all but the signature, which is put in.
    """
    _, octets = vector("rfc9919-b5-response")
    view = CertificateView.from_der(vector("rfc9919-b3-responder")[1])
    (cert_id,) = parse_request(vector("rfc9919-b4-request")[1], max_cert_ids=1).cert_ids
    theirs = ocsp.load_der_ocsp_response(octets)
    key = view.certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(theirs.signature, theirs.tbs_response_bytes, ec.ECDSA(hashes.SHA384()))
    assert read_response(octets).singles == [(cert_id.encoded, GOOD)]

    template = responder.ResponderTemplate(Identity(view, SoftwareSigner(ec.generate_private_key(ec.SECP384R1()))))
    produced_at = datetime(2024, 3, 29, 13, 48, 38, tzinfo=UTC)
    next_update = datetime(2024, 4, 6, 13, 48, 38, tzinfo=UTC)
    span = Span(produced_at, datetime(2024, 3, 30, 13, 48, 38, tzinfo=UTC), next_update, next_update)
    tbs = template.draft([(cert_id.encoded, responder.GOOD, b"")], span).tbs
    assert tbs == theirs.tbs_response_bytes
    assert template.seal(tbs, theirs.signature) == octets


@pytest.mark.parametrize("status", list(OCSPResponseStatus)[1:])
def test_refusals(status: OCSPResponseStatus) -> None:
    """OCSP-8, OCSP-9: a refusal is five octets, as pyca has one of them in its collection, and 4 is none of them."""
    assert responder.refusal(status).hex() == f"30030a010{status.value}"
    if status is OCSPResponseStatus.UNAUTHORIZED:
        assert responder.refusal(status) == (PYCA / "resp-unauthorized.der").read_bytes()
    assert status.value != 4
