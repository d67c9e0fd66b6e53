"""The quick reader of requests says what the strict one says, whatever it has seen before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lakthan import der
from lakthan_tsa.reading import RequestReader
from lakthan_tsa.syntax import ACCEPTED_HASHES, Rejection, TimeStampReq, by_identifier, parse_request
from support.tsa import HASH_NAMES, HASH_SIZES, POLICY, request_for

OFFERED = frozenset({der.object_identifier(POLICY)})


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Requests of a few shapes, with nonces of a few sizes, so that the next one often has the shape of an earlier."""
    name = draw(st.sampled_from(HASH_NAMES[:2]))
    octets = draw(st.sampled_from([1, 8]))
    return request_for(
        draw(st.binary(min_size=HASH_SIZES[name], max_size=HASH_SIZES[name])),
        hash_name=name,
        req_policy=draw(st.sampled_from([None, POLICY])),
        nonce=draw(st.none() | st.integers(-(1 << 8 * octets - 1), (1 << 8 * octets - 1) - 1)),
        cert_req=draw(st.booleans()),
    )


def said(read: object, body: bytes) -> TimeStampReq | str:
    """The request, or the words of the refusal."""
    assert callable(read)
    try:
        request = read(body)
    except Rejection as rejection:
        return str(rejection)
    assert isinstance(request, TimeStampReq)
    return request


def new_reader() -> RequestReader:
    """One without a memory."""
    return RequestReader(offered_policies=OFFERED, hashes=by_identifier(ACCEPTED_HASHES))


def strict(body: bytes) -> TimeStampReq:
    """What counts."""
    return parse_request(body, offered_policies=OFFERED)


@given(st.lists(requests(), min_size=2, max_size=6), st.data())
def test_the_same_as_the_strict_reader(bodies: list[bytes], data: st.DataObject) -> None:
    """After any requests, a request is read as the strict reader reads it, and so is one with any octets changed.

    TSA-R1, TSA-R11.
    """
    read = new_reader()
    for body in bodies:
        assert said(read, body) == said(strict, body)
        assert said(read, body) == said(strict, body)
        changed = bytearray(body)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        assert said(read, bytes(changed)) == said(strict, bytes(changed))


def test_every_octet_of_a_known_shape() -> None:
    """Whatever a single octet of a known request is changed to, both readers say the same."""
    body = request_for(bytes(32), nonce=0x4142434445464748, req_policy=POLICY, cert_req=True)
    read = new_reader()
    assert said(read, body) == said(strict, body)
    for at in range(len(body)):
        for octet in range(256):
            changed = body[:at] + bytes((octet,)) + body[at + 1 :]
            assert said(read, changed) == said(strict, changed)


def test_a_nonce_that_is_not_minimal() -> None:
    """Its value goes back and not its octets, also when it has the shape of a known request."""
    read = new_reader()
    minimal = request_for(nonce=0x4142434445464748)
    assert said(read, minimal) == said(strict, minimal)
    for first in (b"\x00\x41", b"\xff\xc1"):
        body = minimal.replace(b"\x02\x08\x41\x42", b"\x02\x08" + first)
        request = said(read, body)
        assert isinstance(request, TimeStampReq)
        assert request == said(strict, body)
        assert request.nonce is not None
        assert len(request.nonce) == 9


def test_the_memory_is_bounded() -> None:
    """A client that never sends the same shape twice does not fill the memory."""
    read = new_reader()
    for number in range(2000):
        nonce = 1 << (number % 700)
        name = HASH_NAMES[number % len(HASH_NAMES)]
        read(request_for(bytes(HASH_SIZES[name]), hash_name=name, nonce=nonce, null=bool(number & 1)))
    assert sum(map(len, read._shapes.values())) <= 256
