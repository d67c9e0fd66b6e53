"""The request that nearly every client sends, read at a fifth of the cost: one CertID of a known hash algorithm, by
nobody in particular, unsigned, and at most a nonce.

The same strict rules as in `syntax`, but written out for this one shape. Whatever differs in a single octet is not
refused here: it is left to the general reader, which knows all shapes and every reason for a refusal. So this reader
may only ever be too narrow, and a test holds the two against each other.
"""

from __future__ import annotations

from lakthan import der
from lakthan.algorithms import HASH_BY_ALGORITHM_IDENTIFIER, HashAlgorithm

_SEQUENCE = 0x30
_INTEGER = 0x02
_OCTET_STRING = 0x04
_EXPLICIT_2 = 0xA2
_NONCE_OID = der.object_identifier("1.3.6.1.5.5.7.48.1.2")
_SHORTEST = 60
LONGEST = 255

# CertID as sent, its hash algorithm, its issuer, its serial number, and the nonce: as in `syntax`.
Usual = tuple[bytes, HashAlgorithm, bytes, bytes, bytes | None]


def read(data: bytes) -> Usual | None:
    """The parts of such a request, or None for every other octets."""
    size = len(data)
    if not _SHORTEST <= size <= LONGEST or data[0] != _SEQUENCE:
        return None
    try:
        at, end = _inside(data, 0)
        if end != size or data[at] != _SEQUENCE:
            return None
        at, end = _inside(data, at)  # tbsRequest; no signature behind it
        if end != size or data[at] != _SEQUENCE:
            return None
        at, list_end = _inside(data, at)  # requestList; no version and no requestorName before it
        if data[at] != _SEQUENCE:
            return None
        at, end = _inside(data, at)  # one Request, without singleRequestExtensions
        if end != list_end or data[at] != _SEQUENCE:
            return None
        start = at
        at, end = _inside(data, at)
        if end != list_end:
            return None
        cert_id = _cert_id(data, start, at, end)
        nonce = _nonce(data, end, size) if end != size else None
    except IndexError:  # a length that says more than there is
        return None
    return None if cert_id is None or (nonce is None and end != size) else (*cert_id, nonce)


def _inside(data: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` starts and ends; an end beyond the data when its length is unusual."""
    length = data[at + 1]
    if length < 0x80:
        return at + 2, at + 2 + length
    if length == 0x81 and data[at + 2] >= 0x80:
        return at + 3, at + 3 + data[at + 2]
    return at, len(data) + 1


def _cert_id(data: bytes, start: int, at: int, end: int) -> tuple[bytes, HashAlgorithm, bytes, bytes] | None:
    name = at + 2 + data[at + 1]
    algorithm = HASH_BY_ALGORITHM_IDENTIFIER.get(data[at:name])
    if algorithm is None:
        return None
    size = algorithm.digest_size
    key = name + 2 + size
    serial = key + 2 + size
    length = data[serial + 1]
    if (
        data[name] != _OCTET_STRING
        or data[name + 1] != size
        or data[key] != _OCTET_STRING
        or data[key + 1] != size
        or data[serial] != _INTEGER
        or not 0 < length < 0x80
        or serial + 2 + length != end
    ):
        return None
    first = data[serial + 2]
    if length > 1 and first in {0x00, 0xFF} and (first >> 7) == (data[serial + 3] >> 7):
        return None  # needless octets
    issuer = algorithm.oid_der + data[name + 2 : key] + data[key + 2 : serial]
    return data[start:end], algorithm, issuer, data[serial + 2 : end]


def _nonce(data: bytes, at: int, size: int) -> bytes | None:
    """The extnValue of requestExtensions that are a nonce and nothing else, up to the end of the request."""
    if data[at] != _EXPLICIT_2:
        return None
    at, end = _inside(data, at)
    if end != size or data[at] != _SEQUENCE:
        return None
    at, end = _inside(data, at)
    if end != size or data[at] != _SEQUENCE:
        return None
    at, end = _inside(data, at)
    value = at + len(_NONCE_OID)
    if end != size or data[at:value] != _NONCE_OID or data[value] != _OCTET_STRING:
        return None
    at, end = _inside(data, value)
    # The nonce in an OCTET STRING of its own, of a length that needs one octet (RFC 9654 §2.1: 1 to 128).
    if end != size or data[at] != _OCTET_STRING or not 0 < data[at + 1] < 0x80 or at + 2 + data[at + 1] != size:
        return None
    return data[value:]
