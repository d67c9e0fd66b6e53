"""The time-stamp token: a pure core that turns a request, an instant and a serial number into the bytes to sign, and a
signature into the finished token.

Promises: strict DER, and the same bytes that a generic encoder would give, at the price of some joins. Everything that
is constant for a unit is encoded once, in its `TokenTemplate`, and the lengths once for each size of what is inside;
per request only the TSTInfo, its digest and the signature are new. A token with certificates always carries the same
ones, because clients reserve room for the next token by the size of the last.

Refuses to know: the clock, the key, the database, and whether the request was acceptable (that is `syntax`).

Lives by: RFC 3161 §2.4.2, RFC 5816 §2.2.1 (SigningCertificateV2), RFC 5652 §5 (SignedData) and §11 (attributes).
What is left out on purpose: `ordering` (it cannot be promised by several processes), `tsa` (it says nothing that
the certificate does not), signingTime (genTime is the time), unsigned attributes, the root certificate.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from lakthan import der
from lakthan.algorithms import HashAlgorithm
from lakthan.errors import ConfigError
from lakthan_tsa.syntax import TimeStampReq

if TYPE_CHECKING:
    from lakthan.identity import Identity

_ID_SIGNED_DATA = der.object_identifier("1.2.840.113549.1.7.2")
_ID_CT_TST_INFO = der.object_identifier("1.2.840.113549.1.9.16.1.4")
_ID_CONTENT_TYPE = der.object_identifier("1.2.840.113549.1.9.3")
_ID_MESSAGE_DIGEST = der.object_identifier("1.2.840.113549.1.9.4")
# ETSI EN 319 422 §9.1: one qcStatements extension, not critical, that says esi4-qtstStatement-1.
_QUALIFIED_STATEMENT = der.encode(
    0xA1,
    der.sequence(
        der.object_identifier("1.3.6.1.5.5.7.1.3"),
        der.octet_string(der.sequence(der.sequence(der.object_identifier("0.4.0.19422.1.1")))),
    ),
)
_ID_AA_SIGNING_CERTIFICATE_V2 = der.object_identifier("1.2.840.113549.1.9.16.2.47")
_VERSION_1 = der.integer(1)
_VERSION_3 = der.integer(3)
_DIRECTORY_NAME = 0xA4
_TAG_0 = 0xA0
_MOST_SHAPES = 256
# What `serials` gives: always as many, because every octet counts in a reserved space.
SERIAL_NUMBER_OCTETS = 18


def encode_accuracy(accuracy: timedelta) -> bytes:
    """Accuracy ::= SEQUENCE of seconds, [0] millis, [1] micros, each left out when zero (RFC 3161 §2.4.2).

    Raises `ConfigError` when it is not positive.
    """
    if accuracy <= timedelta(0):
        raise ConfigError("the accuracy must be longer than nothing: write for example PT1S")
    seconds = accuracy.days * 86400 + accuracy.seconds
    millis, micros = divmod(accuracy.microseconds, 1000)
    return der.sequence(
        der.integer(seconds) if seconds else b"",
        der.encode(0x80, der.integer_content(millis)) if millis else b"",
        der.encode(0x81, der.integer_content(micros)) if micros else b"",
    )


def encode_gen_time(gen_time: datetime) -> bytes:
    """GeneralizedTime with milliseconds, no trailing zeros, no point when they are zero (RFC 3161 §2.4.2). What is
    finer than a millisecond is dropped.
    """
    if gen_time.tzinfo is not UTC:
        gen_time = gen_time.astimezone(UTC)
    millis = gen_time.microsecond // 1000
    whole = b"%04d%02d%02d%02d%02d%02d" % (
        gen_time.year,
        gen_time.month,
        gen_time.day,
        gen_time.hour,
        gen_time.minute,
        gen_time.second,
    )
    if not millis:
        return b"\x18\x0f%bZ" % whole
    fraction = (b"%03d" % millis).rstrip(b"0")
    return b"\x18%c%b.%bZ" % (16 + len(fraction), whole, fraction)


class Shape(NamedTuple):
    """What stands before TSTInfo, before the signed attributes and before the signature, all tags and lengths included.
    The certificates are not in it: they stand between TSTInfo and the signers.
    """

    before_content: bytes
    before_attributes: bytes
    before_signature: bytes


def encode_policy(policy: str) -> bytes:
    """A dotted OID in DER. Raises `ConfigError` when it is none."""
    try:
        return der.object_identifier(policy)
    except ValueError as error:
        raise ConfigError(f"the policy {policy!r} is no object identifier, such as 0.4.0.2023.1.1") from error


class TokenTemplate:
    """Everything of a token that is the same for every request to one unit under one profile, encoded once.

    `policy` is a dotted OID, `accuracy` what every token claims, `qualified` whether it says that it is qualified
    (EN 319 422 §9.1), `chain` whether the intermediates travel with the unit's certificate. Raises `ConfigError` when
    one of them cannot be.
    """

    __slots__ = (
        "_attributes_size",
        "_encoded_instant",
        "_instant",
        "_shapes",
        "_signature_algorithm",
        "_signed_data_start",
        "_signer_info_start",
        "_tst_info_accuracy",
        "_tst_info_end",
        "_tst_info_start",
        "attributes_after_digest",
        "attributes_before_digest",
        "certificates",
        "digest",
        "policy",
    )

    def __init__(
        self, identity: Identity, *, policy: str, accuracy: timedelta, qualified: bool = False, chain: bool = True
    ) -> None:
        self.policy = encode_policy(policy)
        algorithm = identity.signer.algorithm
        self.digest = algorithm.hash.digest
        self._tst_info_start = _VERSION_1 + self.policy
        self._tst_info_accuracy = encode_accuracy(accuracy)
        self._tst_info_end = _QUALIFIED_STATEMENT if qualified else b""

        view = identity.view
        digest_algorithm = algorithm.hash.algorithm_identifier
        self._signed_data_start = _VERSION_3 + der.set_of(digest_algorithm)
        # Nobody asked for the root (a client that trusts it has it), and every octet counts in a reserved space.
        above = [issuer.encoded for issuer in identity.intermediates] if chain else []
        self.certificates = der.encode(_TAG_0, *sorted([view.encoded, *above]))
        # sid is issuerAndSerialNumber: no deployed validator reads the other choice in a token.
        self._signer_info_start = _VERSION_1 + der.sequence(view.issuer, view.serial_number) + digest_algorithm
        self._signature_algorithm = algorithm.cms_algorithm_identifier
        # Tokens of one millisecond share their instant, the very object.
        self._instant: datetime | None = None
        self._encoded_instant = b""
        self._shapes: dict[tuple[int, int, bool], Shape] = {}
        self._attributes(algorithm.hash, view.encoded, view.issuer, view.serial_number)

    def _attributes(self, digest: HashAlgorithm, certificate: bytes, issuer: bytes, serial_number: bytes) -> None:
        """The signed attributes in the order of DER (X.690 §11.6), with a hole where the digest of TSTInfo goes.

        The digest comes after the attribute's length and OID, in which the attributes differ already, so it has no
        say in their order.
        """
        hole = bytes(digest.digest_size)
        message_digest = der.sequence(_ID_MESSAGE_DIGEST, der.set_of(der.octet_string(hole)))
        general_names = der.sequence(der.encode(_DIRECTORY_NAME, issuer))
        # RFC 5035 §3: hashAlgorithm is left out because SHA-256 is its DEFAULT.
        cert_id = der.sequence(
            der.octet_string(HashAlgorithm.SHA_256.digest(certificate)), der.sequence(general_names, serial_number)
        )
        attributes = sorted(
            [
                der.sequence(_ID_CONTENT_TYPE, der.set_of(_ID_CT_TST_INFO)),
                message_digest,
                der.sequence(_ID_AA_SIGNING_CERTIFICATE_V2, der.set_of(der.sequence(der.sequence(cert_id)))),
            ]
        )
        at = attributes.index(message_digest)
        before = b"".join(attributes[: at + 1])[: -len(hole)]
        after = b"".join(attributes[at + 1 :])
        self._attributes_size = len(before) + len(hole) + len(after)
        self.attributes_before_digest = der.head(der.SET, self._attributes_size) + before
        self.attributes_after_digest = after

    def shape(self, tst_info_size: int, signature_size: int, *, cert_req: bool) -> Shape:
        """The shape of a token whose variable parts have these sizes in octets. There are only a few dozen in use."""
        key = (tst_info_size, signature_size, cert_req)
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= _MOST_SHAPES:  # somebody plays with the length of the nonce
                self._shapes.clear()
            shape = self._shapes[key] = self._new_shape(tst_info_size, signature_size, cert_req=cert_req)
        return shape

    def _new_shape(self, tst_info_size: int, signature_size: int, *, cert_req: bool) -> Shape:
        """Encode a token of zeros the plain way, and cut out what varies, from its end to its start."""
        certificates = self.certificates if cert_req else b""
        content = der.encode(_TAG_0, der.octet_string(bytes(tst_info_size)))
        attributes = der.encode(_TAG_0, bytes(self._attributes_size))
        signature = der.octet_string(bytes(signature_size))
        signer_info = der.sequence(self._signer_info_start, attributes, self._signature_algorithm, signature)
        signer_infos = der.encode(der.SET, signer_info)
        signed_data = der.sequence(
            self._signed_data_start, der.sequence(_ID_CT_TST_INFO, content), certificates, signer_infos
        )
        token = der.sequence(_ID_SIGNED_DATA, der.encode(_TAG_0, signed_data))

        before_signature = self._signature_algorithm + signature[:-signature_size]
        attributes_after_tag = len(attributes) - 1
        return Shape(
            token[: -tst_info_size - len(certificates) - len(signer_infos)],
            signer_infos[: -attributes_after_tag - len(before_signature) - signature_size],
            before_signature,
        )

    def tst_info(self, request: TimeStampReq, serial_number: bytes, gen_time: datetime) -> bytes:
        """TSTInfo (RFC 3161 §2.4.2); `serial_number` is the content of a minimal INTEGER."""
        if gen_time is not self._instant:
            self._instant, self._encoded_instant = gen_time, encode_gen_time(gen_time)
        instant = self._encoded_instant
        nonce = request.nonce or b""
        imprint = request.message_imprint
        start, accuracy, end = self._tst_info_start, self._tst_info_accuracy, self._tst_info_end
        number = der.head(der.INTEGER, len(serial_number)) + serial_number
        size = len(start) + len(imprint) + len(number) + len(instant) + len(accuracy) + len(nonce) + len(end)
        return b"".join((der.head(der.SEQUENCE, size), start, imprint, number, instant, accuracy, nonce, end))

    def longest_token(self, signature_size: int) -> int:
        """The octets of the longest token with certificates: the longest hash, a nonce of 160 bits, all fractions of a
        second, and a signature of this size. Other tokens are shorter by the hash and the nonce that were sent, and by
        the few octets of fractions and ECDSA.
        """
        longest = max(HashAlgorithm, key=lambda algorithm: algorithm.digest_size)
        imprint = der.sequence(longest.algorithm_identifier_with_null, der.octet_string(bytes(longest.digest_size)))
        nonce = der.encode(der.INTEGER, b"\x00", b"\xff" * 20)
        request = TimeStampReq(imprint, longest, bytes(longest.digest_size), None, nonce, cert_req=True)
        instant = datetime(2000, 1, 1, microsecond=999_000, tzinfo=UTC)
        made = draft(request, self, serial_number=b"\x40" + bytes(SERIAL_NUMBER_OCTETS - 1), gen_time=instant)
        return len(made.seal(bytes(signature_size)))


@dataclass(slots=True)
class Draft:
    """A token that lacks its signature. `tbs` is the DER of the signed attributes as a SET OF, which is what the key
    signs (RFC 5652 §5.4); `tst_info` is the TSTInfo element inside.
    """

    tst_info: bytes
    tbs: bytes
    _template: TokenTemplate
    _cert_req: bool

    def seal(self, signature: bytes) -> bytes:
        """The TimeStampToken that `signature` over `tbs` completes."""
        template = self._template
        shape = template.shape(len(self.tst_info), len(signature), cert_req=self._cert_req)
        certificates = template.certificates if self._cert_req else b""
        # tbs[1:]: the signed attributes again, under their implicit tag, with which `before_attributes` ends.
        return b"".join(
            (
                shape.before_content,
                self.tst_info,
                certificates,
                shape.before_attributes,
                self.tbs[1:],
                shape.before_signature,
                signature,
            )
        )


def draft(request: TimeStampReq, template: TokenTemplate, *, serial_number: bytes, gen_time: datetime) -> Draft:
    """The token for this request, ready to be signed.

    `serial_number`: content octets of a minimal INTEGER, at most 20 of them. `gen_time`: stamped in milliseconds.
    """
    tst_info = template.tst_info(request, serial_number, gen_time)
    tbs = b"".join(
        (
            template.attributes_before_digest,
            template.digest(tst_info),
            template.attributes_after_digest,
        )
    )
    return Draft(tst_info, tbs, template, request.cert_req)
