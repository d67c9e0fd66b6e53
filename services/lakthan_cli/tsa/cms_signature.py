"""The CMS signature of a token: the attributes that bind it, and the mathematics (RFC 5652 §5.4, RFC 5816 §2.2.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from asn1crypto import cms, core, tsp

from lakthan import der
from lakthan_cli.ocsp import signature
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, reading
from lakthan_cli.ocsp.checks import Check, Outcome
from lakthan_cli.tsa import schema
from lakthan_cli.tsa.imprint import BY_OID, digest
from lakthan_cli.tsa.message import SignerInfo, TimeStampToken

_CONTENT_TYPE = "1.2.840.113549.1.9.3"
_MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
_ALGORITHM_PROTECTION = "1.2.840.113549.1.9.52"
_SIGNING_CERTIFICATE = "1.2.840.113549.1.9.16.2.12"
_SIGNING_CERTIFICATE_V2 = "1.2.840.113549.1.9.16.2.47"
_RSA_ENCRYPTION = "1.2.840.113549.1.1.1"
_NULL = b"\x05\x00"
# RFC 3370 §3.2: in CMS an RSA key is named by rsaEncryption, and the hash stands beside it.
_RSA_WITH = {
    "1.3.14.3.2.26": "1.2.840.113549.1.1.5",
    "2.16.840.1.101.3.4.2.4": "1.2.840.113549.1.1.14",
    "2.16.840.1.101.3.4.2.1": "1.2.840.113549.1.1.11",
    "2.16.840.1.101.3.4.2.2": "1.2.840.113549.1.1.12",
    "2.16.840.1.101.3.4.2.3": "1.2.840.113549.1.1.13",
    "2.16.840.1.101.3.4.2.8": "2.16.840.1.101.3.4.3.14",
    "2.16.840.1.101.3.4.2.9": "2.16.840.1.101.3.4.3.15",
    "2.16.840.1.101.3.4.2.10": "2.16.840.1.101.3.4.3.16",
}


def checks(token: TimeStampToken, signer: SignerInfo, unit: Certificate) -> Iterator[Check]:
    """Every check of the one signature of a token."""
    problem = _attributes_problem(signer)
    yield judge("signed_attributes", problem, "contentType, messageDigest and signing certificate are signed")
    if problem is not None or signer.signed is None:
        return
    yield judge("message_digest", _digest_problem(token, signer), "that of the TSTInfo")
    yield _signing_certificate(signer, unit)
    try:
        algorithm = signature_algorithm(signer)
        label = signature.label(algorithm)
    except (ValueError, TypeError, KeyError) as error:
        yield Check("signature", Outcome.FAILED, f"its algorithm cannot be read: {error}")
        return
    broken = signature.problem(unit.public_key, algorithm, signer.signature, signer.signed)
    yield judge("signature", broken, label)
    weak = signature.weakness(unit.public_key, algorithm)
    by = BY_OID.get(signer.digest_algorithm)
    if weak is None and by is not None and by.weakness is not None:
        weak = f"the TSTInfo is digested with {by.name}: {by.weakness}"
    yield judge("algorithm", weak, label)


def signature_algorithm(signer: SignerInfo) -> bytes:
    """The AlgorithmIdentifier that says hash and key at once. Raises `ValueError`."""
    named = schema.AlgorithmIdentifier.load(signer.signature_algorithm, strict=True)["algorithm"].dotted
    if named != _RSA_ENCRYPTION:
        return signer.signature_algorithm
    if signer.digest_algorithm not in _RSA_WITH:
        raise ValueError(f"RSA with the hash {signer.digest_algorithm}, which is not known here")
    return der.sequence(der.object_identifier(_RSA_WITH[signer.digest_algorithm]), _NULL)


def judge(name: str, problem: str | None, fine: str) -> Check:
    """A check that failed when there is a problem."""
    return Check(name, Outcome.OK, fine) if problem is None else Check(name, Outcome.FAILED, problem)


def _values(signer: SignerInfo, oid: str) -> tuple[bytes, ...]:
    return next((each.values for each in signer.signed_attributes if each.oid == oid), ())


def _attributes_problem(signer: SignerInfo) -> str | None:
    """RFC 5652 §5.3 and §11: present, in DER, each once, each with one value."""
    if signer.signed is None:
        return "there are none: nothing binds the signature to this TSTInfo and this certificate"
    oids = [each.oid for each in signer.signed_attributes]
    if len(set(oids)) != len(oids):
        return "an attribute occurs twice"
    for oid, name in ((_CONTENT_TYPE, "contentType"), (_MESSAGE_DIGEST, "messageDigest")):
        if len(_values(signer, oid)) != 1:
            return f"{name} is missing, or has not one value"
    if _values(signer, _CONTENT_TYPE)[0] != der.object_identifier(schema.ID_CT_TST_INFO):
        return "contentType does not say id-ct-TSTInfo"
    reader = der.Reader(signer.signed).enter(der.SET)
    elements = []
    while reader.more():
        elements.append(reader.element(reader.peek()))
    return None if elements == sorted(elements) else "they are not in the order of DER (X.690 §11.6)"


def _digest_problem(token: TimeStampToken, signer: SignerInfo) -> str | None:
    algorithm = BY_OID.get(signer.digest_algorithm)
    if algorithm is None:
        return f"the hash {signer.digest_algorithm} is not known here"
    if signer.digest_algorithm not in token.digest_algorithms:
        return "the signer's hash is not among the digestAlgorithms of the token"
    try:
        with reading("a messageDigest"):
            told = bytes(core.OctetString.load(_values(signer, _MESSAGE_DIGEST)[0], strict=True))
    except Unreadable as error:
        return f"it is {error}"
    if told != digest(token.tst_info.encoded, algorithm):
        return "not that of the TSTInfo: it was changed after it was signed"
    protected = _values(signer, _ALGORITHM_PROTECTION)
    if protected and not _protects(protected[0], signer):
        return "cmsAlgorithmProtect names other algorithms than the signer"
    return None


def _protects(encoded: bytes, signer: SignerInfo) -> bool:
    """RFC 6211 §2."""
    try:
        with reading("a CMSAlgorithmProtection"):
            told = cms.CMSAlgorithmProtection.load(encoded, strict=True)
            signed_by = der.encode(der.SEQUENCE, told["signature_algorithm"].contents)
            return bool(
                told["digest_algorithm"]["algorithm"].dotted == signer.digest_algorithm
                and signed_by == signer.signature_algorithm
            )
    except Unreadable:
        return False


def _signing_certificate(signer: SignerInfo, unit: Certificate) -> Check:
    """RFC 5816 §2.2.1: the certificate is signed along, so that none of the same key or name takes its place."""
    name = "signing_certificate"
    newer, older = _values(signer, _SIGNING_CERTIFICATE_V2), _values(signer, _SIGNING_CERTIFICATE)
    if not newer and not older:
        return Check(name, Outcome.FAILED, "neither SigningCertificate nor SigningCertificateV2 is signed along")
    try:
        with reading("a signing certificate attribute"):
            for values, kind in ((newer, schema.SigningCertificateV2), (older, schema.SigningCertificate)):
                if values and (problem := _cert_id_problem(values, kind, unit)):
                    return Check(name, Outcome.FAILED, problem)
    except Unreadable as error:
        return Check(name, Outcome.FAILED, f"it is {error}")
    if not newer:
        return Check(name, Outcome.NOTE, "ESSCertID of RFC 2634: the certificate is named by SHA-1 alone")
    return Check(name, Outcome.OK, "ESSCertIDv2 of the unit")


def _cert_id_problem(values: tuple[bytes, ...], kind: type[core.Sequence], unit: Certificate) -> str | None:
    if len(values) != 1:
        return "it has not one value"
    cert_ids = kind.load(values[0], strict=True)["certs"]
    if not len(cert_ids):
        return "it names no certificate"
    # RFC 5035 §3: the first one is that of the signer.
    first = cert_ids[0]
    oid = first["hash_algorithm"]["algorithm"].dotted if kind is schema.SigningCertificateV2 else "1.3.14.3.2.26"
    algorithm = BY_OID.get(oid)
    if algorithm is None:
        return f"its hash {oid} is not known here"
    if digest(unit.encoded, algorithm) != bytes(first["cert_hash"]):
        return "it names another certificate"
    issuer_serial: Any = first["issuer_serial"]
    if not isinstance(issuer_serial, core.Void):
        told = tsp.IssuerSerial.load(issuer_serial.dump(), strict=True)
        named = [each.chosen for each in told["issuer"] if each.name == "directory_name"]
        if unit.issuer not in named or told["serial_number"].native != unit.serial_number:
            return "its issuerSerial is not that of the unit's certificate"
    return None
