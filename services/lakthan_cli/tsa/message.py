"""Time-stamp requests, responses and tokens as values, read from whatever people have: DER, PEM, base64.

Promises: all of a message is read at once, or `Unreadable` says what is wrong; nothing is left to fail later.

Refuses to know: what a token is worth. What is merely not allowed (a second signer, another version, octets that are
not distinguished encoding) is still read, so that `show` can show it; verification fails on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from asn1crypto import cms, core, parser, tsp
from asn1crypto import x509 as asn1_x509

from lakthan import der
from lakthan_cli.ocsp.certificate import Certificate, Unreadable, name_text, read_extensions, reading
from lakthan_cli.ocsp.message import Extension, encoding_problem, unwrap
from lakthan_cli.tsa import schema

# RFC 3161 §2.4.2.
PKI_STATUS = {
    0: "granted",
    1: "grantedWithMods",
    2: "rejection",
    3: "waiting",
    4: "revocationWarning",
    5: "revocationNotification",
}
PKI_FAILURE_INFO = {
    0: "badAlg",
    2: "badRequest",
    5: "badDataFormat",
    14: "timeNotAvailable",
    15: "unacceptedPolicy",
    16: "unacceptedExtension",
    17: "addInfoNotAvailable",
    25: "systemFailure",
}


@dataclass(frozen=True, slots=True)
class MessageImprint:
    """What is stamped (RFC 3161 §2.4.1). `hash_algorithm`: its dotted identifier."""

    hash_algorithm: str
    hashed_message: bytes


@dataclass(frozen=True, slots=True)
class TimeStampReq:
    """RFC 3161 §2.4.1."""

    encoded: bytes
    version: int
    message_imprint: MessageImprint
    req_policy: str | None
    nonce: int | None
    cert_req: bool
    extensions: tuple[Extension, ...]
    encoding_problem: str | None


@dataclass(frozen=True, slots=True)
class TSTInfo:
    """RFC 3161 §2.4.2. `gen_time_text`: as it is written. `accuracy`: None when the token does not say.

    `accuracy_parts`: seconds, millis and micros as written, None for one that is not there.
    """

    encoded: bytes
    version: int
    policy: str
    message_imprint: MessageImprint
    serial_number: int
    gen_time: datetime
    gen_time_text: str
    accuracy_parts: tuple[int | None, int | None, int | None] | None
    ordering: bool
    nonce: int | None
    tsa: asn1_x509.GeneralName | None
    extensions: tuple[Extension, ...]

    @property
    def accuracy(self) -> timedelta | None:
        """How far off genTime may be."""
        if self.accuracy_parts is None:
            return None
        seconds, millis, micros = (part or 0 for part in self.accuracy_parts)
        return timedelta(seconds=seconds, milliseconds=millis, microseconds=micros)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute of a signer. `values`: the elements of its SET, encoded."""

    oid: str
    values: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class SignerInfo:
    """RFC 5652 §5.3. `issuer` and `serial_number`, or `key_identifier`: how it names its certificate.

    `signed`: what the signature is over when there are signed attributes, their SET; None without.
    """

    version: int
    issuer: asn1_x509.Name | None
    serial_number: int | None
    key_identifier: bytes | None
    digest_algorithm: str
    signed_attributes: tuple[Attribute, ...]
    signed: bytes | None
    signature_algorithm: bytes
    signature: bytes
    unsigned_attributes: tuple[Attribute, ...]

    def names(self, certificate: Certificate) -> bool:
        """True for the certificate that it names."""
        if self.issuer is not None:
            return self.serial_number == certificate.serial_number and bool(self.issuer == certificate.issuer)
        return self.key_identifier is not None and self.key_identifier == certificate_key_identifier(certificate)


@dataclass(frozen=True, slots=True)
class TimeStampToken:
    """A CMS SignedData around a TSTInfo (RFC 3161 §2.4.2). `crls`: how many travel with it."""

    encoded: bytes
    version: int
    digest_algorithms: tuple[str, ...]
    content_type: str
    tst_info: TSTInfo
    certificates: tuple[Certificate, ...]
    crls: int
    signer_infos: tuple[SignerInfo, ...]
    encoding_problem: str | None


@dataclass(frozen=True, slots=True)
class TimeStampResp:
    """RFC 3161 §2.4.2. `fail_info`: the names of the bits that are set; a bit without a name is `bit 3`."""

    encoded: bytes
    status: str
    status_string: tuple[str, ...]
    fail_info: tuple[str, ...]
    token: TimeStampToken | None
    encoding_problem: str | None

    @property
    def granted(self) -> bool:
        """True when a token came."""
        return self.status in ("granted", "grantedWithMods") and self.token is not None

    @property
    def words(self) -> str:
        """What the authority says, in one line."""
        said = ", ".join((self.status, *self.fail_info))
        return f"{said}: {' '.join(self.status_string)}" if self.status_string else said


@dataclass(frozen=True, slots=True)
class TimeStampedData:
    """A document and its token in one file (RFC 5544 §2). `content`: None when the document is elsewhere."""

    encoded: bytes
    file_name: str | None
    media_type: str | None
    hash_protected: bool
    content: bytes | None
    token: TimeStampToken


Message = TimeStampReq | TimeStampResp | TimeStampToken | TimeStampedData


def read(data: bytes) -> Message:
    """Whichever message it is, in DER, PEM or base64. Raises `Unreadable`."""
    encoded = unwrap(data)
    with reading("a time-stamp message"):
        content = parser.parse(encoded, strict=True)[4]
        first = content[:1]
    if first == b"\x02":
        return read_request(encoded)
    if first == b"\x30":
        return read_response(encoded)
    if content.startswith(schema.ID_CT_TIMESTAMPED_DATA):
        return _read_timestamped_data(encoded)
    return read_token(encoded)


def read_request(encoded: bytes) -> TimeStampReq:
    """A TimeStampReq in DER. Raises `Unreadable`."""
    with reading("a TimeStampReq"):
        request = tsp.TimeStampReq.load(encoded, strict=True)
        return TimeStampReq(
            encoded,
            _number(request["version"]),
            _imprint(request["message_imprint"]),
            _optional(request["req_policy"], lambda value: str(value.dotted)),
            _optional(request["nonce"], _number),
            bool(request["cert_req"].native),
            _extensions(request["extensions"]),
            encoding_problem(encoded),
        )


def read_response(encoded: bytes) -> TimeStampResp:
    """A TimeStampResp in DER. Raises `Unreadable`."""
    with reading("a TimeStampResp"):
        response = schema.TimeStampResp.load(encoded, strict=True)
        status = response["status"]
        number = _number(status["status"])
        token = response["time_stamp_token"]
        return TimeStampResp(
            encoded,
            PKI_STATUS.get(number, f"status {number}"),
            _optional(status["status_string"], lambda texts: tuple(str(each.native) for each in texts)) or (),
            _optional(status["fail_info"], _bits) or (),
            _optional(token, lambda value: read_token(value.dump())),
            encoding_problem(encoded),
        )


def read_token(encoded: bytes) -> TimeStampToken:
    """A TimeStampToken, a CMS ContentInfo, in DER. Raises `Unreadable`."""
    with reading("a TimeStampToken"):
        info = schema.ContentInfo.load(encoded, strict=True)
        if info["content_type"].dotted != schema.ID_SIGNED_DATA:
            raise Unreadable(f"a CMS message of the type {info['content_type'].dotted}, not a SignedData")
        signed = info["content"].parse(schema.SignedData)
        content = signed["encap_content_info"]
        octets = content["content"]
        if isinstance(octets, core.Void):
            raise Unreadable("a SignedData without its content")
        encoded_info = bytes(octets)
        return TimeStampToken(
            encoded=encoded,
            version=_number(signed["version"]),
            digest_algorithms=tuple(_algorithm(each) for each in signed["digest_algorithms"]),
            content_type=str(content["content_type"].dotted),
            tst_info=_tst_info(encoded_info),
            # RFC 5652 §10.2.2: other kinds than X.509 certificates carry tags of their own; nobody here needs them.
            certificates=tuple(
                Certificate.from_der(each.dump())
                for each in _each(signed["certificates"])
                if each.dump()[:1] == b"\x30"
            ),
            crls=len(_each(signed["crls"])),
            signer_infos=tuple(_signer_info(each) for each in signed["signer_infos"]),
            encoding_problem=encoding_problem(encoded) or encoding_problem(encoded_info),
        )


def _read_timestamped_data(encoded: bytes) -> TimeStampedData:
    with reading("a TimeStampedData"):
        info = schema.ContentInfo.load(encoded, strict=True)
        data = info["content"].parse(schema.TimeStampedData)
        evidence = data["temporal_evidence"]
        if evidence.name != "tst_evidence" or not len(evidence.chosen):
            raise Unreadable("a TimeStampedData whose evidence is not a TimeStampToken")
        meta = data["meta_data"]
        has_meta = not isinstance(meta, core.Void)
        return TimeStampedData(
            encoded,
            _optional(meta["file_name"], _text) if has_meta else None,
            _optional(meta["media_type"], _text) if has_meta else None,
            bool(meta["hash_protected"].native) if has_meta else False,
            _optional(data["content"], bytes),
            read_token(evidence.chosen[0]["time_stamp"].dump()),
        )


def certificate_key_identifier(certificate: Certificate) -> bytes | None:
    """The subjectKeyIdentifier of a certificate."""
    parsed = asn1_x509.Certificate.load(certificate.encoded)
    return parsed.key_identifier if parsed.key_identifier is None else bytes(parsed.key_identifier)


def _tst_info(encoded: bytes) -> TSTInfo:
    with reading("a TSTInfo"):
        info = tsp.TSTInfo.load(encoded, strict=True)
        gen_time = info["gen_time"].native
        if not isinstance(gen_time, datetime):
            raise Unreadable(f"the time {gen_time}, which no calendar has")
        return TSTInfo(
            encoded=encoded,
            version=_number(info["version"]),
            policy=str(info["policy"].dotted),
            message_imprint=_imprint(info["message_imprint"]),
            serial_number=_number(info["serial_number"]),
            gen_time=gen_time,
            gen_time_text=info["gen_time"].contents.decode("ascii", "replace"),
            accuracy_parts=_optional(info["accuracy"], _accuracy),
            ordering=bool(info["ordering"].native),
            nonce=_optional(info["nonce"], _number),
            tsa=_optional(info["tsa"], _general_name),
            extensions=_extensions(info["extensions"]),
        )


def _accuracy(accuracy: Any) -> tuple[int | None, int | None, int | None]:  # noqa: ANN401 - asn1crypto has no types
    seconds, millis, micros = (_optional(accuracy[name], _number) for name in ("seconds", "millis", "micros"))
    return seconds, millis, micros


def _signer_info(signer: Any) -> SignerInfo:  # noqa: ANN401
    sid = cms.SignerIdentifier.load(signer["sid"].dump(), strict=True)
    by_serial = sid.name == "issuer_and_serial_number"
    if by_serial:
        name_text(sid.chosen["issuer"])  # reads all of it now
    attributes = signer["signed_attrs"]
    return SignerInfo(
        version=_number(signer["version"]),
        issuer=sid.chosen["issuer"] if by_serial else None,
        serial_number=_number(sid.chosen["serial_number"]) if by_serial else None,
        key_identifier=None if by_serial else bytes(sid.chosen),
        digest_algorithm=_algorithm(signer["digest_algorithm"]),
        signed_attributes=_attributes(attributes),
        # RFC 5652 §5.4: the signature is over the attributes with the tag of a SET, not with that of their field.
        signed=None if isinstance(attributes, core.Void) else der.encode(der.SET, attributes.contents),
        signature_algorithm=signer["signature_algorithm"].dump(),
        signature=bytes(signer["signature"]),
        unsigned_attributes=_attributes(signer["unsigned_attrs"]),
    )


def _attributes(attributes: Any) -> tuple[Attribute, ...]:  # noqa: ANN401
    return tuple(
        Attribute(str(each["type"].dotted), tuple(value.dump() for value in each["values"]))
        for each in _each(attributes)
    )


def _imprint(imprint: Any) -> MessageImprint:  # noqa: ANN401
    return MessageImprint(_algorithm(imprint["hash_algorithm"]), bytes(imprint["hashed_message"]))


def _general_name(name: Any) -> asn1_x509.GeneralName:  # noqa: ANN401
    _ = name_text(name.chosen) if name.name == "directory_name" else name.native  # reads all of it now
    return name


def _algorithm(identifier: Any) -> str:  # noqa: ANN401
    return str(identifier["algorithm"].dotted)


def _extensions(extensions: Any) -> tuple[Extension, ...]:  # noqa: ANN401
    return tuple(Extension(*each) for each in read_extensions(extensions))


def _each(values: Any) -> Sequence[Any]:  # noqa: ANN401
    return () if isinstance(values, core.Void) else list(values)


def _optional(value: Any, convert: Any) -> Any:  # noqa: ANN401
    return None if isinstance(value, core.Void) else convert(value)


def _number(value: Any) -> int:  # noqa: ANN401
    return int.from_bytes(value.contents, "big", signed=True)


def _text(value: Any) -> str:  # noqa: ANN401
    return str(value.native)


def _bits(value: Any) -> tuple[str, ...]:  # noqa: ANN401
    octets = value.contents[1:]
    numbers = [at for at in range(len(octets) * 8) if octets[at // 8] & (0x80 >> at % 8)]
    return tuple(PKI_FAILURE_INFO.get(number, f"bit {number}") for number in numbers)
