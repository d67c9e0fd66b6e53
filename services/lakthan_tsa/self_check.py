"""The last look at a token before it goes on record: read again from its finished octets, as a stranger would.

Promises: a token passes only if its signature verifies with the key that the unit's certificate names, over exactly the
TSTInfo inside, and that TSTInfo says the policy, imprint, serial number, genTime and nonce that were meant. So neither
a device that signs wrongly (a fault can give away an RSA key, too) nor a defect of our own templates leaks a token.

Refuses to know: how tokens are made. It reads them with the strict reader alone and takes nothing from the templates.

Lives by: RFC 3161 §2.4.2, RFC 5652 §5.4 and §5.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature

from lakthan import der
from lakthan.errors import SignerUnusable
from lakthan.keys.signer import verify

if TYPE_CHECKING:
    from datetime import datetime

    from lakthan.identity import Identity
    from lakthan_tsa.syntax import TimeStampReq

_MESSAGE_DIGEST = der.object_identifier("1.2.840.113549.1.9.4")
_TAG_0 = 0xA0


class SelfCheck:
    """Checks the tokens of one unit."""

    __slots__ = ("_digest", "_hash", "_issuer_and_serial_number", "_public_key")

    def __init__(self, identity: Identity) -> None:
        self._public_key = identity.view.certificate.public_key()
        self._hash = identity.signer.algorithm.hash
        self._digest = self._hash.digest
        self._issuer_and_serial_number = der.sequence(identity.view.issuer, identity.view.serial_number)

    def __call__(
        self, token: bytes, request: TimeStampReq, *, policy: bytes, serial_number: bytes, gen_time: datetime
    ) -> None:
        """Raise `SignerUnusable` unless `token` answers `request` with these values, signed by the unit.

        `policy`: the encoded OID. `serial_number`: content octets of the INTEGER. `gen_time`: in whole milliseconds.
        """
        try:
            tst_info, signed_attributes, signature = self._take_apart(token)
            said = _read_tst_info(tst_info)
            digest = _message_digest(signed_attributes)
        except der.DERError as error:
            raise SignerUnusable(f"a finished token cannot be read: {error}") from error
        meant = (policy, request.message_imprint, serial_number, _written(gen_time), request.nonce)
        if said != meant:
            raise SignerUnusable("a finished token does not say what was asked for")
        if digest != self._digest(tst_info):
            raise SignerUnusable("the messageDigest of a finished token is not that of its TSTInfo")
        try:
            verify(self._public_key, self._hash, signature, signed_attributes)
        except InvalidSignature as error:
            raise SignerUnusable("the key made a signature that its certificate does not verify") from error

    def _take_apart(self, token: bytes) -> tuple[bytes, bytes, bytes]:
        """TSTInfo, the signed attributes under the tag that is signed, and the signature (RFC 5652 §5)."""
        outer = der.Reader(token)
        content_info = outer.enter(der.SEQUENCE)
        outer.finish()
        content_info.element(der.OBJECT_IDENTIFIER)
        signed_data = content_info.enter(_TAG_0).enter(der.SEQUENCE)
        signed_data.element(der.INTEGER)
        signed_data.element(der.SET)
        encapsulated = signed_data.enter(der.SEQUENCE)
        encapsulated.element(der.OBJECT_IDENTIFIER)
        tst_info = encapsulated.enter(_TAG_0).content(der.OCTET_STRING)
        if signed_data.peek() == _TAG_0:
            signed_data.head()
        signers = signed_data.enter(der.SET)
        signed_data.finish()
        signer = signers.enter(der.SEQUENCE)
        signers.finish()
        signer.element(der.INTEGER)
        if signer.element(der.SEQUENCE) != self._issuer_and_serial_number:
            raise der.DERError("the signer is another certificate")
        signer.element(der.SEQUENCE)
        # RFC 5652 §5.4: what is signed is the attributes as a SET OF, not under the implicit tag that they carry.
        signed_attributes = _SET + signer.element(_TAG_0)[1:]
        signer.element(der.SEQUENCE)
        signature = signer.content(der.OCTET_STRING)
        signer.finish()
        return tst_info, signed_attributes, signature


_SET = bytes((der.SET,))


def _read_tst_info(tst_info: bytes) -> tuple[bytes, bytes, bytes, bytes, bytes | None]:
    """Policy, message imprint, serial number (content), genTime (content), nonce (RFC 3161 §2.4.2)."""
    outer = der.Reader(tst_info)
    fields = outer.enter(der.SEQUENCE)
    outer.finish()
    fields.element(der.INTEGER)
    policy = fields.element(der.OBJECT_IDENTIFIER)
    imprint = fields.element(der.SEQUENCE)
    serial_number = fields.content(der.INTEGER)
    gen_time = fields.content(der.GENERALIZED_TIME)
    fields.element(der.SEQUENCE)  # accuracy, which every token has
    nonce = fields.element(der.INTEGER) if fields.peek() == der.INTEGER else None
    return policy, imprint, serial_number, gen_time, nonce


def _written(gen_time: datetime) -> bytes:
    """GeneralizedTime as RFC 3161 §2.4.2 wants it, by another way than the templates'."""
    text = gen_time.strftime("%Y%m%d%H%M%S.%f").rstrip("0").rstrip(".")
    return text.encode() + b"Z"


def _message_digest(signed_attributes: bytes) -> bytes:
    attributes = der.Reader(signed_attributes).enter(der.SET)
    while attributes.more():
        attribute = attributes.enter(der.SEQUENCE)
        if attribute.element(der.OBJECT_IDENTIFIER) == _MESSAGE_DIGEST:
            return attribute.enter(der.SET).content(der.OCTET_STRING)
    raise der.DERError("no messageDigest among the signed attributes")
