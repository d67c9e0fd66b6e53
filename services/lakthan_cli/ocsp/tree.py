"""Everything in a message as nested names and values, in the RFC's spelling; for `show` and for its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from lakthan_cli.ocsp import extensions, signature
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, name_text
from lakthan_cli.ocsp.extensions import moment
from lakthan_cli.ocsp.message import BasicResponse, CertID, Extension, OCSPRequest, OCSPResponse, SingleResponse
from lakthan_cli.ocsp.request import HASHES

Value = str | int | float | bool | None | Sequence["Value"] | Mapping[str, "Value"]
_HASH_NAMES = {oid: name for name, oid in HASHES.items()}


def of_message(message: OCSPRequest | OCSPResponse) -> dict[str, Value]:
    """The tree of a message. Octets are hexadecimal, instants ISO 8601; `octets` is the size of what it stands in."""
    return of_request(message) if isinstance(message, OCSPRequest) else of_response(message)


def of_request(request: OCSPRequest) -> dict[str, Value]:
    """The tree of an OCSPRequest (RFC 6960 §4.1.1)."""
    requests: list[Value] = []
    for cert_id, found in request.requests:
        each: dict[str, Value] = {"reqCert": _cert_id(cert_id)}
        if found:
            each["singleRequestExtensions"] = _extensions(found)
        requests.append(each)
    tree: dict[str, Value] = {
        "message": "OCSPRequest",
        "octets": len(request.encoded),
        "version": "v1",
        "requestorName": request.requestor_name,
        "requestList": requests,
        "requestExtensions": _extensions(request.extensions),
        "signatureAlgorithm": request.signature_algorithm and _label(request.signature_algorithm),
        "certs": [of_certificate(each) for each in request.certs],
    }
    return _with_problem(tree, request.encoding_problem)


def of_response(response: OCSPResponse) -> dict[str, Value]:
    """The tree of an OCSPResponse (RFC 6960 §4.2.1)."""
    tree: dict[str, Value] = {
        "message": "OCSPResponse",
        "octets": len(response.encoded),
        "responseStatus": response.status,
    }
    if response.basic is not None:
        tree["responseType"] = "id-pkix-ocsp-basic"
        tree |= _basic(response.basic)
    return _with_problem(tree, response.encoding_problem)


def of_certificate(certificate: Certificate) -> dict[str, Value]:
    """A certificate as far as it concerns OCSP."""
    usage = certificate.key_usage
    return {
        "subject": certificate.name,
        "issuer": name_text(certificate.issuer),
        "serialNumber": hexadecimal(certificate.serial_number),
        "notBefore": moment(certificate.not_before),
        "notAfter": moment(certificate.not_after),
        "publicKey": key_words(certificate.public_key),
        "signatureAlgorithm": _label(certificate.signature_algorithm),
        "keyUsage": None if usage is None else [_camel(each) for each in sorted(usage)],
        "extKeyUsage": [
            "id-kp-OCSPSigning" if each == "1.3.6.1.5.5.7.3.9" else each for each in certificate.extended_key_usage
        ],
        "nocheck": certificate.no_check,
        "octets": len(certificate.encoded),
    }


def hexadecimal(number: int) -> str:
    """A serial number as tools print it."""
    digits = f"{abs(number):x}"
    return ("-" if number < 0 else "") + digits.zfill(len(digits) + len(digits) % 2)


def key_words(public_key: bytes) -> str:
    """What kind of key a SubjectPublicKeyInfo holds."""
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        return "of a kind that is not known here"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA, {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC, {key.curve.name}"
    return type(key).__name__.removesuffix("PublicKey")


def _basic(basic: BasicResponse) -> dict[str, Value]:
    if basic.responder_name is not None:
        responder_id: dict[str, Value] = {"byName": name_text(basic.responder_name)}
    else:
        responder_id = {"byKey": (basic.responder_key_hash or b"").hex()}
    return {
        "tbsResponseData": {
            "octets": len(basic.tbs),
            "version": "v1",
            "responderID": responder_id,
            "producedAt": moment(basic.produced_at),
            "responses": [_single(each) for each in basic.responses],
            "responseExtensions": _extensions(basic.extensions),
        },
        "signatureAlgorithm": _label(basic.signature_algorithm),
        "signature": {"octets": len(basic.signature), "hex": basic.signature.hex()},
        "certs": [of_certificate(each) for each in basic.certs],
    }


def _single(single: SingleResponse) -> dict[str, Value]:
    tree: dict[str, Value] = {"certID": _cert_id(single.cert_id), "certStatus": single.cert_status}
    if single.revocation_time is not None:
        tree["revocationTime"] = moment(single.revocation_time)
        tree["revocationReason"] = single.revocation_reason
    tree["thisUpdate"] = moment(single.this_update)
    tree["nextUpdate"] = None if single.next_update is None else moment(single.next_update)
    tree["singleExtensions"] = _extensions(single.extensions)
    return tree


def _cert_id(cert_id: CertID) -> dict[str, Value]:
    return {
        "hashAlgorithm": _HASH_NAMES.get(cert_id.hash_algorithm, cert_id.hash_algorithm),
        "issuerNameHash": cert_id.issuer_name_hash.hex(),
        "issuerKeyHash": cert_id.issuer_key_hash.hex(),
        "serialNumber": hexadecimal(cert_id.serial_number),
    }


def _extensions(found: Iterable[Extension]) -> list[Value]:
    trees: list[Value] = []
    for each in found:
        tree: dict[str, Value] = {
            "extnID": each.oid,
            "name": extensions.NAMES.get(each.oid),
            "critical": each.critical,
            "octets": len(each.value),
        }
        try:
            tree["value"] = extensions.decode(each)
        except Unreadable as error:
            tree["value"] = each.value.hex()
            tree["problem"] = str(error)
        trees.append(tree)
    return trees


def _label(algorithm: bytes) -> str:
    try:
        return signature.label(algorithm)
    except (ValueError, TypeError, KeyError) as error:
        return f"an algorithm whose parameters cannot be read: {error}"


def _camel(name: str) -> str:
    """`digital_signature` as RFC 5280 §4.2.1.3 spells it."""
    first, *rest = name.split("_")
    return first + "".join(word.upper() if word == "crl" else word.capitalize() for word in rest)


def _with_problem(tree: dict[str, Value], problem: str | None) -> dict[str, Value]:
    return tree if problem is None else {**tree, "notDER": problem}
