"""The ASN.1 of RFC 3161, RFC 5652 and RFC 5544 where asn1crypto's own classes cannot be used.

Its TimeStampResp demands a token, which a refusal has not; its attributes and algorithm identifiers insist on values
that fit their identifiers, so that one unknown kind would hide all the rest; its TimeStampedData wraps tokens wrongly.
"""
# asn1crypto has no types, and completes the lists of fields in place.
# ruff: noqa: RUF012, D101
# mypy: disable-error-code="misc"

from __future__ import annotations

from asn1crypto import core, tsp

from lakthan import der

ID_SIGNED_DATA = "1.2.840.113549.1.7.2"
ID_CT_TST_INFO = "1.2.840.113549.1.9.16.1.4"
ID_CT_TIMESTAMPED_DATA = der.object_identifier("1.2.840.113549.1.9.16.1.31")


class TimeStampResp(core.Sequence):
    _fields = [("status", tsp.PKIStatusInfo), ("time_stamp_token", core.Any, {"optional": True})]


class ContentInfo(core.Sequence):
    _fields = [("content_type", core.ObjectIdentifier), ("content", core.Any, {"explicit": 0})]


class AlgorithmIdentifier(core.Sequence):
    _fields = [("algorithm", core.ObjectIdentifier), ("parameters", core.Any, {"optional": True})]


class _Algorithms(core.SetOf):
    _child_spec = AlgorithmIdentifier


class _EncapsulatedContentInfo(core.Sequence):
    _fields = [
        ("content_type", core.ObjectIdentifier),
        ("content", core.OctetString, {"explicit": 0, "optional": True}),
    ]


class _AnySet(core.SetOf):
    _child_spec = core.Any


class _Attribute(core.Sequence):
    _fields = [("type", core.ObjectIdentifier), ("values", _AnySet)]


class _Attributes(core.SetOf):
    _child_spec = _Attribute


class _SignerInfo(core.Sequence):
    _fields = [
        ("version", core.Integer),
        ("sid", core.Any),
        ("digest_algorithm", AlgorithmIdentifier),
        ("signed_attrs", _Attributes, {"implicit": 0, "optional": True}),
        ("signature_algorithm", core.Any),
        ("signature", core.OctetString),
        ("unsigned_attrs", _Attributes, {"implicit": 1, "optional": True}),
    ]


class _SignerInfos(core.SetOf):
    _child_spec = _SignerInfo


class SignedData(core.Sequence):
    _fields = [
        ("version", core.Integer),
        ("digest_algorithms", _Algorithms),
        ("encap_content_info", _EncapsulatedContentInfo),
        ("certificates", _AnySet, {"implicit": 0, "optional": True}),
        ("crls", _AnySet, {"implicit": 1, "optional": True}),
        ("signer_infos", _SignerInfos),
    ]


class _MetaData(core.Sequence):
    _fields = [
        ("hash_protected", core.Boolean),
        ("file_name", core.UTF8String, {"optional": True}),
        ("media_type", core.IA5String, {"optional": True}),
        ("other_meta_data", core.Any, {"optional": True}),
    ]


class _TimeStampAndCRL(core.Sequence):
    _fields = [("time_stamp", ContentInfo), ("crl", core.Any, {"optional": True})]


class _TimeStampTokenEvidence(core.SequenceOf):
    _child_spec = _TimeStampAndCRL


class _Evidence(core.Choice):
    _alternatives = [
        ("tst_evidence", _TimeStampTokenEvidence, {"implicit": 0}),
    ]


class TimeStampedData(core.Sequence):
    _fields = [
        ("version", core.Integer),
        ("data_uri", core.IA5String, {"optional": True}),
        ("meta_data", _MetaData, {"optional": True}),
        ("content", core.OctetString, {"optional": True}),
        ("temporal_evidence", _Evidence),
    ]


class ESSCertID(core.Sequence):
    """RFC 5035 §5."""

    _fields = [("cert_hash", core.OctetString), ("issuer_serial", core.Any, {"optional": True})]


class ESSCertIDv2(core.Sequence):
    """RFC 5035 §4."""

    _fields = [
        ("hash_algorithm", AlgorithmIdentifier, {"default": {"algorithm": "2.16.840.1.101.3.4.2.1"}}),
        ("cert_hash", core.OctetString),
        ("issuer_serial", core.Any, {"optional": True}),
    ]


class _ESSCertIDs(core.SequenceOf):
    _child_spec = ESSCertID


class _ESSCertIDv2s(core.SequenceOf):
    _child_spec = ESSCertIDv2


class SigningCertificate(core.Sequence):
    _fields = [("certs", _ESSCertIDs), ("policies", core.Any, {"optional": True})]


class SigningCertificateV2(core.Sequence):
    _fields = [("certs", _ESSCertIDv2s), ("policies", core.Any, {"optional": True})]


class _QCStatement(core.Sequence):
    _fields = [("statement_id", core.ObjectIdentifier), ("statement_info", core.Any, {"optional": True})]


class QCStatements(core.SequenceOf):
    _child_spec = _QCStatement
