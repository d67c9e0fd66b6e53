"""Whatever arrives at the authority is a request or a refusal, never an accident."""

from __future__ import annotations

from asn1crypto import tsp
from hypothesis import given
from hypothesis import strategies as st

from lakthan import der
from lakthan_tsa.syntax import PKIFailureInfo, Rejection, parse_request, refusal
from support.tsa import HASH_NAMES, HASH_SIZES, POLICY, failure, request_for

OFFERED = frozenset({der.object_identifier(POLICY)})


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Any request that has to be understood."""
    name = draw(st.sampled_from(HASH_NAMES))
    return request_for(
        draw(st.binary(min_size=HASH_SIZES[name], max_size=HASH_SIZES[name])),
        hash_name=name,
        null=draw(st.booleans()),
        req_policy=draw(st.sampled_from([None, POLICY])),
        nonce=draw(st.none() | st.integers(-(2**200), 2**200)),
        cert_req=draw(st.booleans()),
    )


def outcome(body: bytes) -> PKIFailureInfo | None:
    """None for a request, else why it is none; nothing else may happen."""
    try:
        parse_request(body, offered_policies=OFFERED)
    except Rejection as rejection:
        refused = rejection
    else:
        return None
    assert failure(refusal(refused))[1] == refused.text
    return refused.fail_info


@given(st.binary(max_size=200))
def test_any_octets(body: bytes) -> None:
    """Random octets are refused as badDataFormat, or, should they be a request, read. TSA-R1."""
    assert outcome(body) in (None, PKIFailureInfo.BAD_DATA_FORMAT, PKIFailureInfo.BAD_REQUEST)


@given(requests(), st.data())
def test_broken_requests(body: bytes, data: st.DataObject) -> None:
    """A request with one octet changed is read or refused with a word of the RFC; one that is cut off or goes on is
    always badDataFormat.

    TSA-R1, TSA-R11.
    """
    at = data.draw(st.integers(0, len(body) - 1))
    changed = body[:at] + bytes((data.draw(st.integers(0, 255)),)) + body[at + 1 :]
    assert outcome(changed) in (None, *PKIFailureInfo)
    assert outcome(body[:at]) is PKIFailureInfo.BAD_DATA_FORMAT
    assert outcome(body + body[:at] + b"\x00") is PKIFailureInfo.BAD_DATA_FORMAT


@given(requests())
def test_read_as_others_read_it(body: bytes) -> None:
    """Every field is what asn1crypto finds in the same octets."""
    request = parse_request(body, offered_policies=OFFERED)
    other = tsp.TimeStampReq.load(body, strict=True)
    imprint = other["message_imprint"]
    assert request.message_imprint == imprint.dump()
    assert request.hashed_message == imprint["hashed_message"].native
    assert request.hash_algorithm.oid == imprint["hash_algorithm"]["algorithm"].dotted
    assert request.nonce == (None if other["nonce"].native is None else other["nonce"].dump())
    assert request.req_policy == (None if other["req_policy"].native is None else other["req_policy"].dump())
    assert request.cert_req == other["cert_req"].native
