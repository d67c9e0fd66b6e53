"""Reading requests of a shape that was seen before: the same `TimeStampReq` that the strict reader gives, in a quarter
of the time.

Clients send the same request again and again, but for the hash and the nonce. What the strict reader (`syntax`) has
accepted is remembered as a shape: the octets before the hash, between hash and nonce, and after the nonce. A request
that has these octets in the same places, and a minimal nonce, would be accepted by the same steps. Every other one is
read strictly; no refusal is ever decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lakthan import der
from lakthan_tsa.syntax import TimeStampReq, parse_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lakthan.algorithms import HashAlgorithm

# Of all lengths together, and of one length: a client that sends ever new shapes only makes itself slower.
_MOST_SHAPES = 256
_MOST_OF_ONE_LENGTH = 4


class _Shape(NamedTuple):
    """Where what stands. Without a nonce, its place is empty and `nonce_at` is -1."""

    before: bytes
    imprint_at: int
    hash_at: int
    hash_end: int
    between: bytes
    nonce_at: int
    nonce_content_at: int
    nonce_end: int
    after: bytes
    hash_algorithm: HashAlgorithm
    req_policy: bytes | None
    cert_req: bool


class RequestReader:
    """`parse_request` for one profile, with a memory."""

    def __init__(self, *, offered_policies: frozenset[bytes], hashes: Mapping[bytes, HashAlgorithm]) -> None:
        self._offered_policies = offered_policies
        self._hashes = hashes
        self._shapes: dict[int, list[_Shape]] = {}
        self._size = 0

    def __call__(self, body: bytes) -> TimeStampReq:
        """See `parse_request`. Raises `Rejection`."""
        for shape in self._shapes.get(len(body), ()):
            content_at, end = shape.nonce_content_at, shape.nonce_end
            if (
                body.startswith(shape.before)
                and body[shape.hash_end : content_at] == shape.between
                and body.endswith(shape.after)
                and (end - content_at < 2 or not _has_needless_octet(body[content_at], body[content_at + 1]))
            ):
                hash_end = shape.hash_end
                return TimeStampReq(
                    body[shape.imprint_at : hash_end],
                    shape.hash_algorithm,
                    body[shape.hash_at : hash_end],
                    shape.req_policy,
                    None if shape.nonce_at < 0 else body[shape.nonce_at : end],
                    shape.cert_req,
                )
        request = parse_request(body, offered_policies=self._offered_policies, hashes=self._hashes)
        self._learn(body, request)
        return request

    def _learn(self, body: bytes, request: TimeStampReq) -> None:
        fields = der.Reader(body).enter(der.SEQUENCE)
        fields.enter(der.INTEGER)
        imprint_at = fields.at
        imprint = fields.enter(der.SEQUENCE)
        imprint.enter(der.SEQUENCE)
        hashed = imprint.enter(der.OCTET_STRING)
        if request.req_policy is not None:
            fields.enter(der.OBJECT_IDENTIFIER)
        nonce_at, content_at, end = -1, fields.at, fields.at
        if request.nonce is not None:
            nonce_at = fields.at
            nonce = fields.enter(der.INTEGER)
            content_at, end = nonce.at, nonce.end
            if request.nonce != body[nonce_at:end]:  # it was not minimal, and what is given is not what came
                return
        if self._size >= _MOST_SHAPES:
            self._shapes.clear()
            self._size = 0
        of_this_length = self._shapes.setdefault(len(body), [])
        if len(of_this_length) >= _MOST_OF_ONE_LENGTH:
            return
        self._size += 1
        of_this_length.append(
            _Shape(
                before=body[: hashed.at],
                imprint_at=imprint_at,
                hash_at=hashed.at,
                hash_end=hashed.end,
                between=body[hashed.end : content_at],
                nonce_at=nonce_at,
                nonce_content_at=content_at,
                nonce_end=end,
                after=body[end:],
                hash_algorithm=request.hash_algorithm,
                req_policy=request.req_policy,
                cert_req=request.cert_req,
            )
        )


def _has_needless_octet(first: int, second: int) -> bool:
    """True for the beginning of an INTEGER that is not minimal (X.690 §8.3.2)."""
    return (first == 0x00 and second < 0x80) or (first == 0xFF and second >= 0x80)
