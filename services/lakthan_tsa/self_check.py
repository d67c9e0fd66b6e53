"""The last look at a token before it goes on record: read again from its finished octets, as a stranger would.

Promises: a token passes only if its TSTInfo says the policy, imprint, serial number, genTime and nonce that were meant,
its messageDigest is that of this very TSTInfo, and its signer is the unit. So no defect of our own templates leaks a
token, in either mode.

Its signature is verified too, with the key that the unit's certificate names. In the mode `full` that is done for every
token, so no fault of a key leaks one (a fault can give away the key itself). In the mode `content` it is done for every
token of a key outside of this process (an HSM, a device) and of every key that verifies cheaply (RSA, ML-DSA), and for
an EC key in this process, where verifying costs three times as much as signing, for one token in 32, which nobody can
foretell, and for the first of each layout. docs/decisions/0013-self-check-cost.md has the figures.

How it is quick: what was read once by the strict reader and verified is remembered as a layout, the octets between the
places where tokens differ. A token that is, octet for octet, its layout with what was meant in those places would be
read the same way again. Every other token is read strictly, and that reading decides.

Refuses to know: how tokens are made. It reads them with the strict reader alone and takes nothing from the templates.

Lives by: RFC 3161 §2.4.2, RFC 5652 §5.4 and §5.6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from lakthan import der
from lakthan.errors import SignerUnusable
from lakthan.keys.signer import verify
from lakthan.keys.software import SoftwareSigner

if TYPE_CHECKING:
    from datetime import datetime

    from lakthan.identity import Identity
    from lakthan_tsa.syntax import TimeStampReq

    Mode = Literal["full", "content"]

_MESSAGE_DIGEST = der.object_identifier("1.2.840.113549.1.9.4")
_TAG_0 = 0xA0
# Of the last octet of a serial number, which is random and of this moment: one token in 32.
_SAMPLE_MASK = 0x1F
_MOST_LAYOUTS = 1024


class _Places(NamedTuple):
    """Where in a token its parts stand. `signed_attributes` lacks the tag; `nonce` is empty where there is none."""

    tst_info: slice
    policy: slice
    imprint: slice
    serial_number: slice
    gen_time: slice
    nonce: slice
    signed_attributes: slice
    digest: slice
    signature: slice


class _Layout(NamedTuple):
    """A token that was read strictly and verified: its places, and the octets between those that differ."""

    places: _Places
    before_imprint: bytes
    before_serial_number: bytes
    before_gen_time: bytes
    before_nonce: bytes
    before_digest: bytes
    before_signature: bytes


class SelfCheck:
    """Checks the tokens of one unit. `always_verifies`: whether every single signature is verified."""

    __slots__ = (
        "_digest",
        "_hash",
        "_instant",
        "_issuer_and_serial_number",
        "_layouts",
        "_public_key",
        "_written",
        "always_verifies",
    )

    def __init__(self, identity: Identity, mode: Mode = "full") -> None:
        self._public_key = identity.view.certificate.public_key()
        self._hash = identity.signer.algorithm.hash
        self._digest = self._hash.digest
        self._issuer_and_serial_number = der.sequence(identity.view.issuer, identity.view.serial_number)
        in_this_process = isinstance(identity.signer, SoftwareSigner)
        dear = isinstance(self._public_key, ec.EllipticCurvePublicKey)
        self.always_verifies = mode == "full" or not (in_this_process and dear)
        self._layouts: dict[tuple[bytes, int, int, int, int], _Layout] = {}
        # Tokens of one millisecond share their instant, the very object.
        self._instant: datetime | None = None
        self._written = b""

    def __call__(
        self, token: bytes, request: TimeStampReq, *, policy: bytes, serial_number: bytes, gen_time: datetime
    ) -> None:
        """Raise `SignerUnusable` unless `token` answers `request` with these values, signed by the unit.

        `policy`: the encoded OID. `serial_number`: content octets of the INTEGER. `gen_time`: in whole milliseconds.
        """
        if gen_time is not self._instant:
            self._instant, self._written = gen_time, _written(gen_time)
        imprint, nonce, written = request.message_imprint, request.nonce or b"", self._written
        key = (policy, len(token), len(imprint), len(written), len(nonce))
        layout = self._layouts.get(key)
        if layout is not None:
            places = layout.places
            expected = (
                layout.before_imprint,
                imprint,
                layout.before_serial_number,
                serial_number,
                layout.before_gen_time,
                written,
                layout.before_nonce,
                nonce,
                layout.before_digest,
                self._digest(token[places.tst_info]),
                layout.before_signature,
                token[places.signature],
            )
            if b"".join(expected) == token:
                if self.always_verifies or not serial_number[-1] & _SAMPLE_MASK:
                    self._verify(token, places)
                return
        places = self._read(token, (policy, imprint, serial_number, written, nonce))
        self._verify(token, places)
        if len(self._layouts) >= _MOST_LAYOUTS:
            self._layouts.clear()
        self._layouts[key] = _layout(token, places)

    def _read(self, token: bytes, meant: tuple[bytes, ...]) -> _Places:
        """Read strictly, and compare with what was meant."""
        try:
            places = self._places(token)
        except der.DERError as error:
            raise SignerUnusable(f"a finished token cannot be read: {error}") from error
        if tuple(token[place] for place in places[1:6]) != meant:
            raise SignerUnusable("a finished token does not say what was asked for")
        if token[places.digest] != self._digest(token[places.tst_info]):
            raise SignerUnusable("the messageDigest of a finished token is not that of its TSTInfo")
        return places

    def _verify(self, token: bytes, places: _Places) -> None:
        # RFC 5652 §5.4: what is signed is the attributes as a SET OF, not under the implicit tag that they carry.
        signed = _SET + token[places.signed_attributes]
        try:
            verify(self._public_key, self._hash, token[places.signature], signed)
        except InvalidSignature as error:
            raise SignerUnusable("the key made a signature that its certificate does not verify") from error

    def _places(self, token: bytes) -> _Places:
        """Where everything stands (RFC 5652 §5). Raises `DERError`."""
        outer = der.Reader(token)
        content_info = outer.enter(der.SEQUENCE)
        outer.finish()
        content_info.element(der.OBJECT_IDENTIFIER)
        signed_data = content_info.enter(_TAG_0).enter(der.SEQUENCE)
        signed_data.element(der.INTEGER)
        signed_data.element(der.SET)
        encapsulated = signed_data.enter(der.SEQUENCE)
        encapsulated.element(der.OBJECT_IDENTIFIER)
        tst_info = encapsulated.enter(_TAG_0).enter(der.OCTET_STRING)
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
        attributes_at = signer.at
        attributes = signer.enter(_TAG_0)
        after_tag = slice(attributes_at + 1, signer.at)
        digest = _message_digest(attributes)
        signer.element(der.SEQUENCE)
        signature = _whole(signer.enter(der.OCTET_STRING))
        signer.finish()
        return _Places(_whole(tst_info), *_tst_info_places(tst_info), after_tag, digest, signature)


_SET = bytes((der.SET,))


def _whole(reader: der.Reader) -> slice:
    return slice(reader.at, reader.end)


def _layout(token: bytes, places: _Places) -> _Layout:
    varying = (places.imprint, places.serial_number, places.gen_time, places.nonce, places.digest, places.signature)
    starts = (0, *(place.stop for place in varying))
    return _Layout(places, *(token[start : place.start] for start, place in zip(starts, varying, strict=False)))


def _tst_info_places(outer: der.Reader) -> tuple[slice, slice, slice, slice, slice]:
    """Policy, message imprint, serial number (content), genTime (content), nonce (RFC 3161 §2.4.2)."""
    fields = outer.enter(der.SEQUENCE)
    outer.finish()
    fields.element(der.INTEGER)
    policy = _element(fields, der.OBJECT_IDENTIFIER)
    imprint = _element(fields, der.SEQUENCE)
    serial_number = _whole(fields.enter(der.INTEGER))
    gen_time = _whole(fields.enter(der.GENERALIZED_TIME))
    fields.element(der.SEQUENCE)  # accuracy, which every token has
    nonce = _element(fields, der.INTEGER) if fields.peek() == der.INTEGER else slice(fields.at, fields.at)
    return policy, imprint, serial_number, gen_time, nonce


def _element(reader: der.Reader, tag: int) -> slice:
    at = reader.at
    reader.enter(tag)
    return slice(at, reader.at)


def _written(gen_time: datetime) -> bytes:
    """GeneralizedTime as RFC 3161 §2.4.2 wants it, by another way than the templates'."""
    text = gen_time.isoformat(timespec="milliseconds")
    digits = f"{text[0:4]}{text[5:7]}{text[8:10]}{text[11:13]}{text[14:16]}{text[17:23]}"
    return digits.rstrip("0").rstrip(".").encode() + b"Z"


def _message_digest(attributes: der.Reader) -> slice:
    """Where the messageDigest stands (RFC 5652 §11.2)."""
    while attributes.more():
        attribute = attributes.enter(der.SEQUENCE)
        if attribute.element(der.OBJECT_IDENTIFIER) == _MESSAGE_DIGEST:
            return _whole(attribute.enter(der.SET).enter(der.OCTET_STRING))
    raise der.DERError("no messageDigest among the signed attributes")
