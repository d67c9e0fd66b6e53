"""Tokens from templates are, octet for octet, what a generic encoder makes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lakthan import der
from lakthan.identity import Identity
from lakthan_tsa.authority import TokenTemplate, draft
from lakthan_tsa.syntax import parse_request
from support.pki import KEY_KINDS
from support.tsa import (
    HASH_NAMES,
    HASH_SIZES,
    POLICY,
    new_unit,
    oracle_signed_attributes,
    oracle_token,
    oracle_tst_info,
    request_for,
)


@cache
def identity_of(kind: str) -> Identity:
    """One unit for each kind of key."""
    return new_unit(kind).identity()


@pytest.mark.parametrize("kind", KEY_KINDS)
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_equal_to_the_oracle(kind: str, data: st.DataObject) -> None:
    """For every key, request, instant, serial number and accuracy: the same TSTInfo, the same octets to sign, the same
    token as asn1crypto gives object by object.

    TSA-T1, TSA-T2, TSA-T4, TSA-T7, TSA-T8, TSA-T13, TSA-T14, TSA-T15, TSA-T16, TSA-T20, TSA-Q4, TSA-Q12, TSA-Q13.
    """
    identity = identity_of(kind)
    name = data.draw(st.sampled_from(HASH_NAMES))
    body = request_for(
        data.draw(st.binary(min_size=HASH_SIZES[name], max_size=HASH_SIZES[name])),
        hash_name=name,
        null=data.draw(st.booleans()),
        req_policy=data.draw(st.sampled_from([None, POLICY])),
        nonce=data.draw(st.none() | st.integers(-(2**64), 2**64) | st.integers(2**1000, 2**1001)),
        cert_req=data.draw(st.booleans()),
    )
    gen_time = data.draw(st.datetimes(datetime(2000, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
    serial_number = der.integer_content(data.draw(st.integers(1, 2**159 - 1)))
    accuracy = data.draw(st.timedeltas(timedelta(microseconds=1), timedelta(hours=1)))

    request = parse_request(body, offered_policies=frozenset({der.object_identifier(POLICY)}))
    qualified = data.draw(st.booleans())
    template = TokenTemplate(identity, policy=POLICY, accuracy=accuracy, qualified=qualified)
    made = draft(request, template, serial_number=serial_number, gen_time=gen_time)

    expected = oracle_tst_info(
        body,
        policy=POLICY,
        serial_number=serial_number,
        gen_time=gen_time,
        accuracy=accuracy,
        qualified=qualified,
    ).dump()
    assert made.tst_info == expected
    assert made.tbs == oracle_signed_attributes(identity, expected).dump()
    signature = asyncio.run(identity.signer.sign(made.tbs))
    assert made.seal(signature) == oracle_token(identity, expected, signature, cert_req=request.cert_req)
