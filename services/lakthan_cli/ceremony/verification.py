"""Reading what a ceremony made, with other code than what made it, and believing nothing that no signature covers.

Answers are read by the client's reader (`lakthan_cli.ocsp`, on asn1crypto) and the ARL by pyca/cryptography, neither of
which had a part in writing them. Used three times: on the offline machine before anything is written, by
`lakthan ceremony verify`, and before an import.

Promises: an answer that is given was signed by the CA itself, or by a responder that this very CA certified for OCSP
signing (RFC 6960 §4.2.2.2), is about one certificate of that CA, and says good or revoked. The file's name counts for
nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan.errors import LakthanError
from lakthan.store.records import CertStatus, CRLReason
from lakthan_cli.ocsp import signature
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, same_name
from lakthan_cli.ocsp.message import read_response
from lakthan_cli.ocsp.trust import out_of_force

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lakthan_cli.ocsp.message import BasicResponse, CertID, SingleResponse

_ID_KP_OCSP_SIGNING = "1.3.6.1.5.5.7.3.9"
_LONGEST = timedelta(days=366)
_SKEW = timedelta(minutes=5)
# cryptography has types of its own for what it finds wrong.
_UNREADABLE = (
    ValueError,
    TypeError,  # of a Name with an attribute of a type that does not fit
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_HASHES = {each.oid: each for each in (HashAlgorithm.SHA_1, HashAlgorithm.SHA_256)}


class CeremonyRefused(LakthanError):
    """What a ceremony made, or is said to have made, is not as it must be. Nothing was changed."""


@dataclass(frozen=True, slots=True)
class StaticAnswer:
    """A verified OCSPResponse about one certificate. `signer`: the name of who signed it; `responder`: the serial
    number of its certificate, None when that is the CA itself.
    """

    encoded: bytes
    serial_number: bytes
    hash_algorithm: HashAlgorithm
    cert_status: CertStatus
    revocation_time: datetime | None
    revocation_reason: CRLReason | None
    produced_at: datetime
    this_update: datetime
    next_update: datetime
    signer: str
    responder: bytes | None


@dataclass(frozen=True, slots=True)
class Entry:
    """What an ARL says of a certificate."""

    revocation_time: datetime
    revocation_reason: CRLReason | None


@dataclass(frozen=True, slots=True)
class ARL:
    """A verified complete CRL of the CA."""

    encoded: bytes
    number: int
    this_update: datetime
    next_update: datetime
    entries: Mapping[bytes, Entry]


def read_answer(encoded: bytes, issuers: Sequence[Certificate]) -> StaticAnswer:
    """Read and verify an answer of the CA that `issuers` are the certificates of (one for each of its keys).

    Raises `CeremonyRefused`. Says nothing of what time it is now.
    """
    try:
        response = read_response(encoded)
    except Unreadable as error:
        raise CeremonyRefused(str(error)) from error
    basic = response.basic
    if basic is None:
        raise CeremonyRefused(f"it says {response.status}, which is no answer about a certificate")
    if response.encoding_problem:
        raise CeremonyRefused(f"it is not DER: {response.encoding_problem}")
    if len(basic.responses) != 1:
        raise CeremonyRefused(f"it is about {len(basic.responses)} certificates; a static answer is about one")
    if basic.extensions or basic.responses[0].extensions:
        raise CeremonyRefused("it has extensions, and a static answer is the same for everybody: none")
    single = basic.responses[0]
    issuer = _issuer(single.cert_id, issuers)
    signer = _signer(basic, issuer)
    _check_times(basic, single, signer)
    return StaticAnswer(
        encoded=encoded,
        serial_number=der.integer_content(single.cert_id.serial_number),
        hash_algorithm=_HASHES[single.cert_id.hash_algorithm],
        cert_status=_cert_status(single),
        revocation_time=single.revocation_time,
        revocation_reason=_reason(single.revocation_reason),
        produced_at=basic.produced_at,
        this_update=single.this_update,
        next_update=_next_update(single),
        signer=signer.name,
        responder=None if signer is issuer else der.integer_content(signer.serial_number),
    )


def read_arl(encoded: bytes, issuers: Sequence[Certificate]) -> ARL:
    """Read and verify the ARL of that CA. Raises `CeremonyRefused`."""
    try:
        crl = x509.load_der_x509_crl(encoded)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        critical = [extension.oid.dotted_string for extension in crl.extensions if extension.critical]
        entries = {der.integer_content(entry.serial_number): _entry(entry) for entry in crl}
        count, algorithm = len(crl), crl.signature_algorithm_oid.dotted_string
        this_update, next_update = crl.last_update_utc, crl.next_update_utc
        signed = any(_signed_by(crl, issuer) for issuer in issuers)
    except _UNREADABLE as error:
        raise CeremonyRefused(f"it is no CRL with a cRLNumber: {error}") from error
    if not signed:
        raise CeremonyRefused(f"the CA's key did not sign it ({algorithm})")
    if critical:
        raise CeremonyRefused(f"it is not a complete CRL: it has critical extensions, {', '.join(critical)}")
    if next_update is None or next_update <= this_update:
        raise CeremonyRefused("its nextUpdate is not later than its thisUpdate")
    if len(entries) != count:
        raise CeremonyRefused("it lists a certificate twice")
    return ARL(encoded, number, this_update, next_update, entries)


def check_together(answers: Iterable[StaticAnswer], arl: ARL) -> None:
    """OCSP and CRL say the same (EN 319 411-1 CSS-6.3.10-09): whatever an answer says stands in the ARL, or does not.

    Raises `CeremonyRefused`.
    """
    for answer in answers:
        if answer.responder in arl.entries:
            raise CeremonyRefused(f"the ARL lists the certificate of {answer.signer}, who signed answers, as revoked")
        who, entry = f"the certificate {answer.serial_number.hex()}", arl.entries.get(answer.serial_number)
        if entry is None and answer.cert_status is CertStatus.REVOKED:
            raise CeremonyRefused(f"an answer says that {who} is revoked, and the ARL does not list it")
        if entry is not None and answer.cert_status is CertStatus.GOOD:
            raise CeremonyRefused(f"an answer says that {who} is good, and the ARL lists it as revoked")
        if entry is not None and entry != Entry(
            answer.revocation_time or entry.revocation_time, answer.revocation_reason
        ):
            raise CeremonyRefused(f"time or reason of the revocation of {who} differ between its answer and the ARL")


def fingerprint(octets: bytes) -> str:
    """SHA-256, hexadecimal."""
    return hashlib.sha256(octets).hexdigest()


def _issuer(cert_id: CertID, issuers: Sequence[Certificate]) -> Certificate:
    algorithm = _HASHES.get(cert_id.hash_algorithm)
    if algorithm is None:
        raise CeremonyRefused(
            f"its CertID is made with {cert_id.hash_algorithm}, and clients ask with SHA-1 or SHA-256"
        )
    for issuer in issuers:
        if cert_id.issuer_name_hash == algorithm.digest(issuer.subject.dump()) and (
            cert_id.issuer_key_hash == algorithm.digest(issuer.key_bits)
        ):
            return issuer
    raise CeremonyRefused("it is about a certificate of another CA")


def _signer(basic: BasicResponse, issuer: Certificate) -> Certificate:
    named = [each for each in (issuer, *basic.certs) if _is_named(each, basic)]
    if not named:
        raise CeremonyRefused("the responder that it names is neither the CA nor a certificate in it")
    signer = next(
        (
            each
            for each in named
            if signature.problem(each.public_key, basic.signature_algorithm, basic.signature, basic.tbs) is None
        ),
        None,
    )
    if signer is None:
        raise CeremonyRefused("its signature does not verify")
    if weak := signature.weakness(signer.public_key, basic.signature_algorithm):
        raise CeremonyRefused(f"it is signed with a broken algorithm: {weak}")
    if signer.key_usage is not None and "digital_signature" not in signer.key_usage:
        raise CeremonyRefused(f"the keyUsage of {signer.name} does not allow it to sign answers")
    if same_name(signer.subject, issuer.subject) and signer.public_key == issuer.public_key:
        return issuer
    if not signer.signed_by(issuer):
        raise CeremonyRefused(f"{signer.name} was not issued by {issuer.name} and cannot speak for it")
    if weak := signature.weakness(issuer.public_key, signer.signature_algorithm):
        raise CeremonyRefused(f"the certificate of {signer.name} is signed with a broken algorithm: {weak}")
    if _ID_KP_OCSP_SIGNING not in signer.extended_key_usage or signer.is_ca:
        raise CeremonyRefused(f"the certificate of {signer.name} is not a responder's (id-kp-OCSPSigning)")
    return signer


def _is_named(certificate: Certificate, basic: BasicResponse) -> bool:
    if basic.responder_key_hash is not None:
        return HashAlgorithm.SHA_1.digest(certificate.key_bits) == basic.responder_key_hash
    return basic.responder_name is not None and same_name(certificate.subject, basic.responder_name)


def _check_times(basic: BasicResponse, single: SingleResponse, signer: Certificate) -> None:
    this_update, next_update = single.this_update, _next_update(single)
    for wrong, why in (
        (next_update <= this_update, "its nextUpdate is not later than its thisUpdate"),
        (next_update - this_update > _LONGEST, f"it would be valid for more than {_LONGEST.days} days"),
        (this_update > basic.produced_at + _SKEW, "its thisUpdate is later than its producedAt"),
        (next_update > signer.not_after, f"the certificate of {signer.name} ends before its nextUpdate"),
    ):
        if wrong:
            raise CeremonyRefused(why)
    for instant in (this_update, basic.produced_at):
        if problem := out_of_force(signer, instant):
            raise CeremonyRefused(problem)


def _next_update(single: SingleResponse) -> datetime:
    if single.next_update is None:
        raise CeremonyRefused("it has no nextUpdate, so nobody knows how long it holds")
    return single.next_update


def _cert_status(single: SingleResponse) -> CertStatus:
    try:
        return CertStatus(single.cert_status)
    except ValueError as error:
        raise CeremonyRefused(f"it says {single.cert_status}; static answers say good or revoked") from error


def _reason(label: str | None) -> CRLReason | None:
    try:
        return None if label is None else CRLReason.from_label(label)
    except ValueError as error:
        raise CeremonyRefused(str(error)) from error


def _signed_by(crl: x509.CertificateRevocationList, issuer: Certificate) -> bool:
    """Verified by hand: pyca's own check knows fewer kinds of keys than this does."""
    if crl.issuer.public_bytes() != issuer.subject.dump():
        return False
    usage = issuer.key_usage
    if usage is not None and "crl_sign" not in usage:
        raise CeremonyRefused(f"the keyUsage of {issuer.name} does not allow it to sign a CRL")
    outer = der.Reader(crl.public_bytes(Encoding.DER)).enter(der.SEQUENCE)
    outer.head()
    algorithm = outer.element(der.SEQUENCE)
    if signature.weakness(issuer.public_key, algorithm):
        return False
    return signature.problem(issuer.public_key, algorithm, crl.signature, crl.tbs_certlist_bytes) is None


def _entry(entry: x509.RevokedCertificate) -> Entry:
    try:
        reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except x509.ExtensionNotFound:
        return Entry(entry.revocation_date_utc, None)
    return Entry(entry.revocation_date_utc, CRLReason.from_label(reason.value))
