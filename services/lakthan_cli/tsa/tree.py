"""Everything in a message as nested names and values, in the RFC's spelling; for `show` and for its JSON."""

from __future__ import annotations

from collections.abc import Iterable

from asn1crypto import core
from asn1crypto import x509 as asn1_x509

from lakthan_cli.ocsp import signature
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, name_text, reading
from lakthan_cli.ocsp.message import Extension
from lakthan_cli.ocsp.tree import Value, hexadecimal, of_certificate
from lakthan_cli.tsa import schema
from lakthan_cli.tsa.checks import QC_STATEMENTS, accuracy_words, extension_name, moment_exactly
from lakthan_cli.tsa.cms_signature import signature_algorithm
from lakthan_cli.tsa.imprint import BY_OID
from lakthan_cli.tsa.message import (
    Attribute,
    Message,
    MessageImprint,
    SignerInfo,
    TimeStampedData,
    TimeStampReq,
    TimeStampResp,
    TimeStampToken,
    TSTInfo,
)

_ATTRIBUTES = {
    "1.2.840.113549.1.9.3": "contentType",
    "1.2.840.113549.1.9.4": "messageDigest",
    "1.2.840.113549.1.9.5": "signingTime",
    "1.2.840.113549.1.9.52": "cmsAlgorithmProtect",
    "1.2.840.113549.1.9.16.2.12": "signingCertificate",
    "1.2.840.113549.1.9.16.2.47": "signingCertificateV2",
    "1.2.840.113549.1.9.16.2.14": "timeStampToken",
}
_OIDS = {
    "1.3.6.1.5.5.7.3.8": "id-kp-timeStamping",
    schema.ID_CT_TST_INFO: "id-ct-TSTInfo",
    "0.4.0.2023.1.1": "best practices time-stamp policy (ETSI EN 319 421)",
}
_STATEMENTS = {"0.4.0.19422.1.1": "esi4-qtstStatement-1: a qualified time-stamp (ETSI EN 319 422)"}


def of_message(message: Message) -> dict[str, Value]:
    """The tree of a message. Octets are hexadecimal, instants ISO 8601; `octets` is the size of what it stands in."""
    if isinstance(message, TimeStampReq):
        return of_request(message)
    if isinstance(message, TimeStampResp):
        return of_response(message)
    return of_token(message) if isinstance(message, TimeStampToken) else of_timestamped_data(message)


def of_request(request: TimeStampReq) -> dict[str, Value]:
    """The tree of a TimeStampReq (RFC 3161 §2.4.1)."""
    tree: dict[str, Value] = {
        "message": "TimeStampReq",
        "octets": len(request.encoded),
        "version": request.version,
        "messageImprint": _imprint(request.message_imprint),
        "reqPolicy": request.req_policy,
        "nonce": None if request.nonce is None else hexadecimal(request.nonce),
        "certReq": request.cert_req,
        "extensions": _extensions(request.extensions),
    }
    return _with_problem(tree, request.encoding_problem)


def of_response(response: TimeStampResp) -> dict[str, Value]:
    """The tree of a TimeStampResp (RFC 3161 §2.4.2)."""
    tree: dict[str, Value] = {
        "message": "TimeStampResp",
        "octets": len(response.encoded),
        "status": {
            "status": response.status,
            "statusString": list(response.status_string),
            "failInfo": list(response.fail_info),
        },
        "timeStampToken": None if response.token is None else of_token(response.token),
    }
    return _with_problem(tree, response.encoding_problem)


def of_token(token: TimeStampToken) -> dict[str, Value]:
    """The tree of a TimeStampToken (RFC 3161 §2.4.2, RFC 5652 §5.1)."""
    tree: dict[str, Value] = {
        "message": "TimeStampToken",
        "octets": len(token.encoded),
        "version": token.version,
        "digestAlgorithms": [_hash_name(each) for each in token.digest_algorithms],
        "eContentType": _OIDS.get(token.content_type, token.content_type),
        "TSTInfo": of_info(token.tst_info),
        "certificates": [_certificate(each) for each in token.certificates],
        "crls": token.crls,
        "signerInfos": [_signer(each) for each in token.signer_infos],
    }
    return _with_problem(tree, token.encoding_problem)


def of_timestamped_data(data: TimeStampedData) -> dict[str, Value]:
    """The tree of a TimeStampedData (RFC 5544 §2); of the document only its size."""
    return {
        "message": "TimeStampedData",
        "octets": len(data.encoded),
        "metaData": {"hashProtected": data.hash_protected, "fileName": data.file_name, "mediaType": data.media_type},
        "content": None if data.content is None else {"octets": len(data.content)},
        "temporalEvidence": of_token(data.token),
    }


def of_info(info: TSTInfo) -> dict[str, Value]:
    """The tree of a TSTInfo."""
    return {
        "octets": len(info.encoded),
        "version": info.version,
        "policy": info.policy,
        "policyName": _OIDS.get(info.policy),
        "messageImprint": _imprint(info.message_imprint),
        "serialNumber": hexadecimal(info.serial_number),
        "genTime": moment_exactly(info.gen_time),
        "accuracy": accuracy_words(info) or None,
        "ordering": info.ordering,
        "nonce": None if info.nonce is None else hexadecimal(info.nonce),
        "tsa": None if info.tsa is None else _general_name(info.tsa),
        "extensions": _extensions(info.extensions),
    }


def _certificate(certificate: Certificate) -> dict[str, Value]:
    purposes = [_OIDS.get(each, each) for each in certificate.extended_key_usage]
    return {**of_certificate(certificate), "extKeyUsage": purposes}


def _signer(signer: SignerInfo) -> dict[str, Value]:
    if signer.issuer is not None:
        sid: dict[str, Value] = {
            "issuer": name_text(signer.issuer),
            "serialNumber": hexadecimal(signer.serial_number or 0),
        }
    else:
        sid = {"subjectKeyIdentifier": (signer.key_identifier or b"").hex()}
    return {
        "version": signer.version,
        "sid": sid,
        "digestAlgorithm": _hash_name(signer.digest_algorithm),
        "signedAttrs": [_attribute(each) for each in signer.signed_attributes],
        "signatureAlgorithm": _label(signer),
        "signature": {"octets": len(signer.signature), "hex": signer.signature.hex()},
        "unsignedAttrs": [_attribute(each) for each in signer.unsigned_attributes],
    }


def _attribute(attribute: Attribute) -> dict[str, Value]:
    tree: dict[str, Value] = {"attrType": attribute.oid, "name": _ATTRIBUTES.get(attribute.oid)}
    try:
        values: list[Value] = [_value(attribute.oid, each) for each in attribute.values]
    except Unreadable as error:
        return {**tree, "attrValues": [each.hex() for each in attribute.values], "problem": str(error)}
    return {**tree, "attrValues": values}


def _value(oid: str, encoded: bytes) -> Value:
    name = _ATTRIBUTES.get(oid)
    with reading(f"a {name}"):
        if name == "contentType":
            content_type = core.ObjectIdentifier.load(encoded, strict=True).dotted
            return str(_OIDS.get(content_type, content_type))
        if name == "messageDigest":
            return bytes(core.OctetString.load(encoded, strict=True)).hex()
        if name == "signingTime":
            return moment_exactly(core.load(encoded, strict=True).native)
        if name == "signingCertificateV2":
            certs = schema.SigningCertificateV2.load(encoded, strict=True)["certs"]
            return [
                {
                    "hashAlgorithm": _hash_name(each["hash_algorithm"]["algorithm"].dotted),
                    "certHash": each["cert_hash"].native.hex(),
                }
                for each in certs
            ]
        if name == "signingCertificate":
            certs = schema.SigningCertificate.load(encoded, strict=True)["certs"]
            return [{"hashAlgorithm": "sha1", "certHash": each["cert_hash"].native.hex()} for each in certs]
    return encoded.hex()


def _label(signer: SignerInfo) -> str:
    try:
        return signature.label(signature_algorithm(signer))
    except (ValueError, TypeError, KeyError) as error:
        return f"an algorithm that cannot be read: {error}"


def _imprint(imprint: MessageImprint) -> dict[str, Value]:
    return {"hashAlgorithm": _hash_name(imprint.hash_algorithm), "hashedMessage": imprint.hashed_message.hex()}


def _hash_name(oid: str) -> str:
    algorithm = BY_OID.get(oid)
    return algorithm.name if algorithm else oid


def _extensions(extensions: Iterable[Extension]) -> list[Value]:
    trees: list[Value] = []
    for each in extensions:
        tree: dict[str, Value] = {"extnID": each.oid, "name": extension_name(each), "critical": each.critical}
        tree["value"] = _statements(each) if each.oid == QC_STATEMENTS else each.value.hex()
        trees.append(tree)
    return trees


def _statements(extension: Extension) -> Value:
    """RFC 3739 §3.2.6: a sequence of statements, each with its identifier first."""
    try:
        with reading("a qcStatements"):
            statements = schema.QCStatements.load(extension.value, strict=True)
            oids = [str(each["statement_id"].dotted) for each in statements]
    except Unreadable:
        return extension.value.hex()
    return [_STATEMENTS.get(each, each) for each in oids]


def _general_name(name: asn1_x509.GeneralName) -> str:
    return name_text(name.chosen) if name.name == "directory_name" else f"{name.name}: {name.native}"


def _with_problem(tree: dict[str, Value], problem: str | None) -> dict[str, Value]:
    return tree if problem is None else {**tree, "notDER": problem}
