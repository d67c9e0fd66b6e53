"""RFC 3161's messages: the strict reader of a `TimeStampReq`, and the `TimeStampResp` that says yes or no.

Promises: any bytes give either a `TimeStampReq` or a `Rejection` that carries the PKIFailureInfo which fits, checked in
one fixed order: DER, version, extensions, hash algorithm, length of the imprint, policy.

Refuses to know: the clock, keys, serial numbers, and how a token is made (that is `authority`).

Lives by: RFC 3161 §2.4.1 and §2.4.2, X.690 §10 and §11. Where it is kinder than the DER, a comment says to whom.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from lakthan import der
from lakthan.algorithms import HASH_BY_ALGORITHM_IDENTIFIER, HashAlgorithm
from lakthan.errors import LakthanError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# SHA-1 and MD5 are refused because a token on a hash with collisions proves nothing, SHA-224 because nobody needs it.
ACCEPTED_HASHES = frozenset(
    {
        HashAlgorithm.SHA_256,
        HashAlgorithm.SHA_384,
        HashAlgorithm.SHA_512,
        HashAlgorithm.SHA3_256,
        HashAlgorithm.SHA3_384,
        HashAlgorithm.SHA3_512,
    }
)


def by_identifier(hashes: Collection[HashAlgorithm]) -> Mapping[bytes, HashAlgorithm]:
    """These hash algorithms by their encoded AlgorithmIdentifiers, with and without NULL, as `parse_request` asks."""
    return {
        identifier: algorithm for identifier, algorithm in HASH_BY_ALGORITHM_IDENTIFIER.items() if algorithm in hashes
    }


_ACCEPTED_BY_IDENTIFIER = by_identifier(ACCEPTED_HASHES)
_EXTENSIONS = 0xA0
_LONGEST_OID = 66  # octets with tag and length; registered ones are below 30, and a text must stay readable
_VERSION_1 = b"\x01"
_STATUS_GRANTED = der.sequence(der.integer(0))
_STATUS_REJECTION = der.integer(2)


class PKIFailureInfo(IntEnum):
    """Why there is no token; the values are the bit numbers (RFC 3161 §2.4.2)."""

    BAD_ALG = 0
    BAD_REQUEST = 2
    BAD_DATA_FORMAT = 5
    TIME_NOT_AVAILABLE = 14
    UNACCEPTED_POLICY = 15
    UNACCEPTED_EXTENSION = 16
    ADD_INFO_NOT_AVAILABLE = 17
    SYSTEM_FAILURE = 25

    @property
    def label(self) -> str:
        """The RFC's spelling, which logs and metrics show."""
        return _LABELS[self]


_LABELS = {
    PKIFailureInfo.BAD_ALG: "badAlg",
    PKIFailureInfo.BAD_REQUEST: "badRequest",
    PKIFailureInfo.BAD_DATA_FORMAT: "badDataFormat",
    PKIFailureInfo.TIME_NOT_AVAILABLE: "timeNotAvailable",
    PKIFailureInfo.UNACCEPTED_POLICY: "unacceptedPolicy",
    PKIFailureInfo.UNACCEPTED_EXTENSION: "unacceptedExtension",
    PKIFailureInfo.ADD_INFO_NOT_AVAILABLE: "addInfoNotAvailable",
    PKIFailureInfo.SYSTEM_FAILURE: "systemFailure",
}


class Rejection(LakthanError):
    """No token for this request: the one `fail_info`, and a `text` that the person at the other end can act on."""

    def __init__(self, fail_info: PKIFailureInfo, text: str) -> None:
        super().__init__(f"{fail_info.label}: {text}")
        self.fail_info = fail_info
        self.text = text


class TimeStampReq(NamedTuple):
    """A request that this service can answer (RFC 3161 §2.4.1).

    `message_imprint` is the whole element as it came: the token repeats it octet for octet. `req_policy` and `nonce`
    are whole elements too, or None; the nonce may have any size and sign.
    """

    message_imprint: bytes
    hash_algorithm: HashAlgorithm
    hashed_message: bytes
    req_policy: bytes | None
    nonce: bytes | None
    cert_req: bool


def parse_request(
    body: bytes,
    *,
    offered_policies: frozenset[bytes],
    hashes: Mapping[bytes, HashAlgorithm] = _ACCEPTED_BY_IDENTIFIER,
) -> TimeStampReq:
    """Read one TimeStampReq that fills `body`; `offered_policies` are encoded OBJECT IDENTIFIERs, `hashes` the accepted
    ones `by_identifier`.

    Raises `Rejection` (RFC 3161 §2.4.2).
    """
    try:
        return _parse(body, offered_policies, hashes)
    except der.DERError as error:
        raise Rejection(PKIFailureInfo.BAD_DATA_FORMAT, f"the request is not a DER TimeStampReq: {error}") from error


def _parse(body: bytes, offered_policies: frozenset[bytes], hashes: Mapping[bytes, HashAlgorithm]) -> TimeStampReq:
    outer = der.Reader(body)
    fields = outer.enter(der.SEQUENCE)
    outer.finish()
    # The version comes before everything else, because the fields of another version would be others.
    version = fields.content(der.INTEGER)
    if version != _VERSION_1:
        if not version or version != der.minimal_integer(version):
            raise der.DERError("a version that is not a minimal INTEGER")
        raise Rejection(PKIFailureInfo.BAD_REQUEST, "bad request version: only version 1 exists")

    at = fields.at
    imprint = fields.enter(der.SEQUENCE)
    message_imprint = body[at : fields.at]
    identifier = imprint.element(der.SEQUENCE)
    hash_algorithm = hashes.get(identifier)
    refused_algorithm = _refused_algorithm(identifier) if hash_algorithm is None else ""
    hashed_message = imprint.content(der.OCTET_STRING)
    imprint.finish()

    req_policy = nonce = None
    cert_req = False
    extension_oid = None
    if fields.peek() == der.OBJECT_IDENTIFIER:
        req_policy = fields.element(der.OBJECT_IDENTIFIER)
        if req_policy not in offered_policies:
            _dotted(req_policy)  # what is no OBJECT IDENTIFIER at all is badDataFormat
    if fields.peek() == der.INTEGER:
        nonce = _minimal(fields.element(der.INTEGER))
    if fields.peek() == der.BOOLEAN:
        # An explicit FALSE is not DER (X.690 §11.5), but clients built on pyasn1 send it (mozilla-releng/winsign did);
        # it says the same as silence and nothing of it is repeated in the token, so it is taken as what it means.
        cert_req = fields.boolean()
    if fields.peek() == _EXTENSIONS:
        extension_oid = _first_extension(fields.enter(_EXTENSIONS))
    fields.finish()

    if extension_oid is not None:
        # RFC 3161 §2.4.1: an extension that is not recognised, critical or not, SHALL be refused. None is recognised.
        raise Rejection(
            PKIFailureInfo.UNACCEPTED_EXTENSION,
            f"the request extension {extension_oid} is not supported; send the request without extensions",
        )
    if hash_algorithm is None:
        accepted = ", ".join(dict.fromkeys(each.label for each in hashes.values()))
        raise Rejection(
            PKIFailureInfo.BAD_ALG, f"the hash algorithm {refused_algorithm} is not accepted; use one of {accepted}"
        )
    if len(hashed_message) != hash_algorithm.digest_size:
        raise Rejection(
            PKIFailureInfo.BAD_DATA_FORMAT,
            f"hashedMessage has {len(hashed_message)} octets where {hash_algorithm.label} gives "
            f"{hash_algorithm.digest_size}",
        )
    if req_policy is not None and req_policy not in offered_policies:
        raise Rejection(
            PKIFailureInfo.UNACCEPTED_POLICY,
            f"the policy {_dotted(req_policy)} is not offered here; leave reqPolicy out to get the default",
        )
    return TimeStampReq(message_imprint, hash_algorithm, hashed_message, req_policy, nonce, cert_req)


def _minimal(nonce: bytes) -> bytes:
    """The INTEGER element in minimal DER. Random octets taken for an INTEGER as they are have needless leading ones now
    and then (some clients make their nonce so): the value goes back, which is what RFC 3161 §2.4.2 asks for.
    """
    content = der.Reader(nonce).content(der.INTEGER)
    if not content:
        raise der.DERError("an INTEGER without content")
    minimal = der.minimal_integer(content)
    return nonce if minimal == content else der.encode(der.INTEGER, minimal)


def _refused_algorithm(identifier: bytes) -> str:
    """What an AlgorithmIdentifier that is not in the table names. Parameters other than NULL are none of ours."""
    algorithm = der.Reader(identifier).enter(der.SEQUENCE)
    name = _dotted(algorithm.element(der.OBJECT_IDENTIFIER))
    if not algorithm.more():
        return name
    algorithm.head()
    algorithm.finish()
    return f"{name} with these parameters"


def _first_extension(extensions: der.Reader) -> str:
    """The dotted OID of the first one; all are checked for their shape (RFC 5280 §4.1, at least one)."""
    first = None
    while first is None or extensions.more():
        extension = extensions.enter(der.SEQUENCE)
        oid = _dotted(extension.element(der.OBJECT_IDENTIFIER))
        if extension.peek() == der.BOOLEAN:
            extension.boolean()
        extension.content(der.OCTET_STRING)
        extension.finish()
        first = first or oid
    return first


def _dotted(oid: bytes) -> str:
    if len(oid) > _LONGEST_OID:
        raise der.DERError(f"an OBJECT IDENTIFIER of {len(oid)} octets")
    return der.dotted_oid(der.Reader(oid).content(der.OBJECT_IDENTIFIER))


def granted(token: bytes) -> bytes:
    """The TimeStampResp that carries `token`: status granted, no failInfo (RFC 3161 §2.4.2), and no statusString,
    because old jarsigners stumble over one.
    """
    return b"".join((der.head(der.SEQUENCE, len(_STATUS_GRANTED) + len(token)), _STATUS_GRANTED, token))


def refusal(rejection: Rejection) -> bytes:
    """The TimeStampResp that says no: status rejection, one text, exactly one failInfo bit, no token
    (RFC 3161 §2.4.2).
    """
    status_string = der.sequence(der.encode(der.UTF8_STRING, rejection.text.encode()))
    return der.sequence(der.sequence(_STATUS_REJECTION, status_string, der.named_bit(rejection.fail_info)))
